"""The commands for flows, of points and of images."""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from .. import flows
from ..data import grid, write_png
from ..data.images import Images
from ..images import SHOWN, Unseen, bits, independent, spread
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
from ..tractable.flow import Flow
from ..tractable.glow import Glow
from ..tractable.ica import ICA
from ..tractable.nice import NICE
from ..tractable.realnvp import RealNVP
from ..verify import flows as checks


@dataclass(frozen=True)
class RealNVPSizes:
    layers: int | None = None  # couplings of a kind at a scale (default: 3), of points in all (16)
    hidden: int | None = None  # channels of a network (default: 32), of points units (64)
    blocks: int = 2  # of a network
    scales: int = 2  # of images
    norm: Literal["batch", "actnorm", "none"] | None = None  # (default: batch, of points actnorm)
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16, "hidden": 64, "norm": "actnorm"} if len(shape) == 1 else {}
        return RealNVP(shape, levels, **own | given(self))


@dataclass(frozen=True)
class GlowSizes:
    layers: int | None = None  # steps at a scale (default: 8), of points in all (16)
    hidden: int | None = None  # channels of a network (default: 128), of points units (64)
    scales: int = 2  # of images
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16, "hidden": 64} if len(shape) == 1 else {}
        return Glow(shape, levels, **own | given(self))


@dataclass(frozen=True)
class NICESizes:
    layers: int | None = None  # couplings (default: 4), of points (16)
    hidden: int | None = None  # units of a layer of a network (default: 1000), of points (64)
    depth: int | None = None  # hidden layers of a network (default: 5), of points (2)
    source: Literal["logistic", "normal", "laplace", "mixture"] = "logistic"
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16, "hidden": 64, "depth": 2} if len(shape) == 1 else {}
        return NICE(shape, levels, **own | given(self))


@dataclass(frozen=True)
class ICASizes:
    layers: int | None = None  # couplings (default: 0, a linear map), of points (16)
    hidden: int = 64  # units of a layer of a network
    source: Literal["mixture", "logistic", "laplace", "normal"] = "mixture"
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16} if len(shape) == 1 else {}
        return ICA(shape, levels, **own | given(self))


SIZES = {"realnvp": RealNVPSizes, "glow": GlowSizes, "nice": NICESizes, "ica": ICASizes}


def given(sizes):
    return {name: value for name, value in asdict(sizes).items() if value is not None}


@dataclass(frozen=True)
class Shown:
    show: Annotated[
        Literal[tuple(flows.PICTURES)] | None,
        arg(
            help="of a flow of images: samples; images and what the inverse makes of their "
            "sources; images between two; images whose fine detail is drawn anew",
            help_behavior_hint="(default: samples)",
        ),
    ] = None


def trainer(Kind):
    """The command that trains a flow, of sizes of a class of SIZES."""
    default = Kind()

    def train(
        *,
        data: Annotated[str, arg(metavar="DATA")],
        out: Path,
        levels: int = 256,
        flips: bool = False,
        files: Files = None,
        device: Device = "cpu",
        sizes: Annotated[Kind, NAMELESS] = default,
        descent: Annotated[Descent, NAMELESS] = Descent(batch_size=100),
    ):
        """Train a flow of points or images; the same command goes on where a run was stopped.

        Args:
            data: eight_gaussians, two_moons, two_spirals or checkerboard; or images: mnist,
                fashion, cifar, an npz file, or a folder of IDX files or pictures
            out: folder of the run
            levels: of a pixel
            flips: mirror half of the images at each step, left for right
            files: held-out points or images to validate on
        """
        check_device(device)
        torch.manual_seed(descent.seed)
        options = {"levels": levels, "flips": flips, "seed": descent.seed}
        net, source, meta = flows.prepare(sizes, data, **options)
        form, points = flows.format_of(net, meta), "images" not in meta
        if points:
            validation = flows.PointValidation(form, out, files)
        else:
            validation = flows.ImageValidation(form, data, out, files)
        what = f"points of {data}" if points else f"images of {validation.unseen.title}"
        print(f"{parameters(net)}, {what}, {' x '.join(map(str, net.shape))}", flush=True)
        last = fit(net.to(device), source, out, validation, meta, descent)
        print(table([(name, f"{value:.4f}, held out") for name, value in last.items()]))

    return train


def sample(net, meta, form, out, n, shown, sampling):
    check_output(out, ".png")
    if sampling.dtype not in ("float32", "float64"):
        raise ValueError(
            f"dtype: expected 'float32' or 'float64' of a flow, got {sampling.dtype!r}"
        )
    seed, net = prepared(sampling)["seed"], net.to(getattr(torch, sampling.dtype))
    began, drawing = time.perf_counter(), {"seed": seed, "temperature": sampling.temperature}
    if isinstance(form, flows.Plane):
        if shown.show:
            raise ValueError(f"show: expected none, which is for images, got {shown.show!r}")
        n = n or flows.POINTS_SHOWN
        write_png(out, flows.plane(net, form.points, n, **drawing))
        print(f"wrote {out}: true density, density, {n:,} points of {form.name}, seed {seed}")
        return
    show, codes = shown.show or "samples", None
    if show != "samples":
        codes = Unseen(meta.get("data"), form, False).codes
    made, columns = flows.PICTURES[show](net, codes, n or SHOWN, **drawing)
    took = time.perf_counter() - began
    write_png(out, grid(form.decode(made), columns))
    size = " x ".join(map(str, form.shape[1:]))
    print(f"wrote {out}: {show}, {len(made)} images of {size}, seed {seed}")
    if show == "samples":
        print(table([("fastgen", f"{number(len(made) / took)} images/s", sampling.dtype)]))
    if show == "reconstructions":
        print(exactness(net, made[::2]))


def evaluate(net, form, name, files, seed):
    if isinstance(form, flows.Plane):
        return evaluate_points(net, form, name, files, seed)
    unseen = Unseen(name, form, False, files)
    print(f"{len(unseen.codes)} {unseen.split} images of {unseen.title}, noise of seed {seed}")
    nats = {"model": flows.image_nats(net, unseen.codes, seed)}
    nats["pixels on their own"] = independent(Images(name).x, unseen.codes, form)
    nats[f"uniform, ln {form.levels} a pixel"] = math.prod(form.shape) * math.log(form.levels)
    rows = [
        (label, f"{value:.4f} nats", f"{bits(value, form.shape):.4f} bits/dim")
        for label, value in nats.items()
    ]
    print(table(rows))
    print(exactness(net, unseen.codes[spread(len(unseen.codes), SHOWN)]))


def evaluate_points(net, form, name, files, seed):
    if name != form.name:
        raise ValueError(f"data: expected {form.name}, which the model is of, got {name}")
    nats, gap, error = flows.point_nats(net, form.points, files, seed)
    count = flows.NUMBER if files is None else files
    print(f"{count:,} points of {name}, of seed {seed} and not of the training's")
    rows = [
        ("model", f"{nats:.4f} nats"),
        ("true density, on these points", f"{nats - gap:.4f} nats"),
        ("true density, entropy", f"{form.points.entropy:.4f} nats"),
        ("gap, on these points", f"{gap:.4f} nats, standard error {error:.4f}"),
        ("mass in the picture's box", f"{flows.mass(net, form.points):.4f}"),
    ]
    print(table(rows))


def exactness(net, codes):
    """A line about how exact the reconstructions of images are."""
    missed, error = flows.missed_levels(net, codes)
    total = f"{codes.numel():,} levels of {len(codes)} images"
    found = f"all {total} are the same" if not missed else f"{missed:,} of {total} are MISSED"
    return f"reconstructions: {found}; before rounding the largest error is {error:.2g} of a level"


FLOWS = Family(
    kind="flows of images",
    models=(Flow,),
    train={name: trainer(Kind) for name, Kind in SIZES.items()},
    verify={name: partial(checks.verify, name) for name in checks.MODELS},
    commands={},
    format_of=flows.format_of,
    options=Shown,
    sample=sample,
    evaluate=evaluate,
)
