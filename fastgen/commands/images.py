"""The commands for autoregressive models of images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from .. import images
from .. import options as common
from ..data import grid, write_png
from ..options import (
    NAMELESS,
    Descent,
    Device,
    Family,
    Files,
    check_device,
    check_output,
    fit,
    parameters,
    prepared,
)
from ..text import number, table
from ..tractable.binary import Binary
from ..tractable.raster import Raster
from ..verify import images as checks


@dataclass(frozen=True)
class Drawn:
    label: Annotated[
        int | None,
        arg(
            metavar="INT",
            help="class of the images",
            help_behavior_hint="(default: all in turn)",
        ),
    ] = None


def sample(net, meta, form, out, n, drawn, sampling):
    check_output(out, ".png")
    n, options = n or 64, prepared(sampling)
    options.pop("threads")  # torch has been told
    labels = images.labels(net, n, drawn.label)
    codes, rate = images.timed_draw(net, n, form, label=labels, **options)
    write_png(out, grid(form.decode(codes)))
    size = " x ".join(map(str, form.shape[1:]))
    print(f"wrote {out}: {n} images of {size}, seed {options['seed']}")
    naive = images.naive_speed(net, codes, labels, common.NAIVE_SECONDS)
    rows = [
        ("fastgen", f"{number(rate)} images/s", f"{sampling.dtype}, cached"),
        (
            "naive",
            f"{number(naive)} images/s",
            f"a forward pass for each pixel, timed for {common.NAIVE_SECONDS} s",
        ),
        ("ratio", f"{number(rate / naive)}x"),
    ]
    print(table(rows))


def trainer(Kind):
    """The command that trains a model of images, of sizes of a class of `images.SIZES`."""
    default = Kind()

    def train(
        *,
        data: Annotated[str, arg(metavar="DATA")],
        out: Path,
        levels: int = 2,
        binarize: Literal["dynamic", "fixed", "threshold"] = "dynamic",
        files: Files = None,
        device: Device = "cpu",
        sizes: Annotated[Kind, NAMELESS] = default,
        descent: Annotated[Descent, NAMELESS] = Descent(batch_size=100),
    ):
        """Train a model of images; the same command goes on where a run was stopped.

        Args:
            data: mnist, fashion, an npz file, or a folder of IDX files or pictures
            out: folder of the run
            levels: of a pixel
            binarize: with 2 levels, draw the ones anew at each step, once, or from 128 on
            files: held-out images to validate on
        """
        check_device(device)
        torch.manual_seed(descent.seed)
        options = {"levels": levels, "binarize": binarize, "seed": descent.seed}
        net, source, own = images.prepare(sizes, data, **options)
        validation = images.Validation(net, own, data, out, files)
        print(f"{parameters(net)}, images of {' x '.join(map(str, own['shape']))}", flush=True)
        meta = {"images": own, "data": data}
        last = fit(net.to(device), source, out, validation, meta, descent)
        print(table([(name, f"{value:.4f}, held out") for name, value in last.items()]))

    return train


def evaluate(net, form, name, files, seed):
    unseen = images.Unseen(name, form, images.labelled(net), files)
    print(f"{len(unseen.codes)} {unseen.split} images of {name}")
    print(table(images.likelihoods(net, form, unseen, name)))


IMAGES = Family(
    kind="images",
    models=(Binary, Raster),
    train={name: trainer(Kind) for name, Kind in images.SIZES.items()},
    verify={name: partial(checks.verify, name) for name in checks.MODELS},
    commands={},
    format_of=lambda net, meta: images.pictures_of(net, meta.get("images")),
    options=Drawn,
    sample=sample,
    evaluate=evaluate,
)
