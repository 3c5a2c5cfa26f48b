"""The commands for flows, of points and of images."""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from .. import flows, gans
from ..data import grid, write_png
from ..data.images import Images
from ..images import SHOWN, Unseen, bits, independent, spread
from ..options import (
    NAMELESS,
    Descent,
    Device,
    Family,
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


def by_kind(text, images, points, metavar="INT"):
    """What is said of an option whose default depends on what there is to learn."""
    hint = f"(default: {images}, of points {points})"
    return arg(metavar=metavar, help=text, help_behavior_hint=hint)


@dataclass(frozen=True)
class RealNVPSizes:
    layers: Annotated[
        int | None, by_kind("couplings of a kind at a scale, of points in all", 3, 16)
    ] = None
    hidden: Annotated[int | None, by_kind("channels of a network, of points units", 32, 64)] = None
    blocks: int = 2  # of a network
    scales: int = 2  # of images
    norm: Annotated[
        Literal["batch", "actnorm", "none"] | None,
        by_kind("after each coupling", "batch", "actnorm", "{batch,actnorm,none}"),
    ] = None
    scale_l2: float = 0.0  # of the scales' squares, added to the loss; Dinh et al. take 5e-5
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16, "hidden": 64, "norm": "actnorm"} if len(shape) == 1 else {}
        return RealNVP(shape, levels, **own | given(self))


@dataclass(frozen=True)
class GlowSizes:
    layers: Annotated[int | None, by_kind("steps at a scale, of points in all", 8, 16)] = None
    hidden: Annotated[int | None, by_kind("channels of a network, of points units", 128, 64)] = None
    scales: int = 2  # of images
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16, "hidden": 64} if len(shape) == 1 else {}
        return Glow(shape, levels, **own | given(self))


@dataclass(frozen=True)
class NICESizes:
    layers: Annotated[int | None, by_kind("couplings", 4, 16)] = None
    hidden: Annotated[int | None, by_kind("units of a layer of a network", 1000, 64)] = None
    depth: Annotated[int | None, by_kind("hidden layers of a network", 5, 2)] = None
    source: Literal["logistic", "normal", "laplace", "mixture"] = "logistic"
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16, "hidden": 64, "depth": 2} if len(shape) == 1 else {}
        return NICE(shape, levels, **own | given(self))


@dataclass(frozen=True)
class ICASizes:
    layers: Annotated[int | None, by_kind("couplings; none make a linear map", 0, 16)] = None
    hidden: int = 64  # units of a layer of a network
    source: Literal["mixture", "logistic", "laplace", "normal"] = "mixture"
    reversible: bool = False  # compute activations again, in memory that depth does not change

    def build(self, shape, levels):
        own = {"layers": 16} if len(shape) == 1 else {}
        return ICA(shape, levels, **own | given(self))


SIZES = {"realnvp": RealNVPSizes, "glow": GlowSizes, "nice": NICESizes, "ica": ICASizes}


def given(sizes):
    return {name: value for name, value in asdict(sizes).items() if value is not None}


PICTURES = tuple(dict.fromkeys([*flows.PICTURES, *gans.PICTURES]))


@dataclass(frozen=True)
class Shown:
    show: Annotated[
        Literal[PICTURES] | None,
        arg(
            metavar="{" + ",".join(PICTURES) + "}",
            help="of a flow or GAN of images: samples; images between two; of a flow, images and "
            "what the inverse makes of their sources, and images whose fine detail is drawn anew; "
            "of a GAN, images along a code",
            help_behavior_hint="(default: samples)",
        ),
    ] = None
    data: Annotated[
        str | None,
        arg(
            metavar="DATA",
            help="of a flow of images: where those are that are shown",
            help_behavior_hint="(default: the model's)",
        ),
    ] = None


def trainer(Kind):
    """The command that trains a flow, of sizes of a class of SIZES."""
    default = Kind()

    def train(
        *,
        data: Annotated[str, arg(metavar="DATA")],
        out: Path,
        levels: Annotated[
            int | None, arg(metavar="INT", help_behavior_hint=f"(default: {flows.LEVELS})")
        ] = None,
        flips: bool = False,
        files: Annotated[
            int | None, arg(metavar="INT", help_behavior_hint="(default: all, 10,000 points)")
        ] = None,
        device: Device = "cpu",
        sizes: Annotated[Kind, NAMELESS] = default,
        descent: Annotated[Descent, NAMELESS] = Descent(batch_size=100),
    ):
        """Train a flow of points or images; the same command goes on where a run was stopped.

        Args:
            data: eight_gaussians, two_moons, two_spirals or checkerboard; or images: mnist,
                fashion, cifar, an npz file, or a folder of IDX files or pictures
            out: folder of the run
            levels: of a pixel of images
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
        for name, value in asdict(shown).items():
            if value is not None:
                raise ValueError(f"{name}: expected none, which is for images, got {value!r}")
        n = n or flows.POINTS_SHOWN
        write_png(out, flows.plane(net, form.points, n, **drawing))
        print(f"wrote {out}: true density, density, {n:,} points of {form.name}, seed {seed}")
        return
    show, codes = shown.show or "samples", None
    if show not in flows.PICTURES:
        raise ValueError(f"show: expected one of {[*flows.PICTURES]} of a flow, got {show!r}")
    if show == "samples" and shown.data is not None:
        raise ValueError(f"data: expected none of samples, got {shown.data!r}")
    if show != "samples":
        name = shown.data or meta.get("data")
        if not isinstance(name, str):
            raise ValueError(f"{show}: expected --data: the model does not say what it is of")
        codes = Unseen(name, form, False).codes
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
