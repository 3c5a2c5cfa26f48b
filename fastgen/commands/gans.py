"""The commands for GANs, of points and of images."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from .. import gans, infogan
from ..data import write_png
from ..game import GAMES
from ..images import SHOWN
from ..implicit.adversarial import BETAS, Adversarial
from ..implicit.dcgan import DCGAN
from ..implicit.gan import GAN
from ..implicit.infogan import InfoGAN
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
from ..verify import games
from ..verify.infogan import verify_infogan
from ..verify.latent import verify_dcgan
from .flows import Shown
from .images import Drawn

Game = Annotated[Literal[tuple(GAMES)], arg(metavar="GAME", help="one of " + ", ".join(GAMES))]


@dataclass(frozen=True)
class Rules:
    game: Game = "nonsaturating"
    discriminator_steps: int = 1  # for one of the generator
    unrolled: int = 0  # steps of the discriminator that the generator looks ahead
    inner_lr: float = 2e-4  # of these
    penalty: float = 0.0  # weight of the penalty on the discriminator's slope
    latent: int = 100  # size of the noise


@dataclass(frozen=True)
class GANSizes(Rules):
    hidden: tuple[int, ...] = (128, 128)  # units of each layer of both networks
    activation: Literal["tanh", "relu", "leaky"] = "relu"

    def build(self, shape, classes):
        output = "tanh" if len(shape) == 3 else "linear"
        return GAN(shape, classes=classes, output=output, **own(self))


@dataclass(frozen=True)
class DCGANSizes(Rules):
    channels: int = 64  # of the largest pictures within

    def build(self, shape, classes):
        return DCGAN(shape, classes=classes, **own(self))


@dataclass(frozen=True)
class InfoGANSizes:
    game: Game = "nonsaturating"
    discriminator_steps: int = 1  # for one of the generator
    generator_lr: float = 5.0  # factor of its learning rate
    latent: int = 62  # size of the noise
    categories: int = 10  # of a code
    continuous: int = 2  # codes on [-1, 1]
    weight: float = 1.0  # of the codes' information
    sd: float = 1.0  # of what Q says of a continuous code
    channels: int = 64  # of the largest pictures within
    units: int = 1024  # of the dense layers

    def build(self, shape, classes):
        if classes:
            raise ValueError("labels: expected none of an InfoGAN, whose codes are its own")
        return InfoGAN(shape, **own(self))


SIZES = {"gan": GANSizes, "dcgan": DCGANSizes, "infogan": InfoGANSizes}


def own(sizes):
    """The arguments of a model."""
    options = asdict(sizes)
    return options | {"steps": options.pop("discriminator_steps")}


def trainer(Kind):
    """The command that trains a GAN, of sizes of a class of SIZES."""
    default = Kind()

    def train(
        *,
        data: Annotated[str, arg(metavar="DATA")],
        out: Path,
        labels: bool = False,
        flips: bool = False,
        device: Device = "cpu",
        sizes: Annotated[Kind, NAMELESS] = default,
        descent: Annotated[Descent, NAMELESS] = Descent(batch_size=128, lr=2e-4, clip=math.inf),
    ):
        """Train a GAN of points or images; the same command goes on where a run was stopped.

        Args:
            data: eight_gaussians, two_moons, two_spirals or checkerboard; or images: mnist,
                fashion, cifar, an npz file, or a folder of IDX files or pictures
            out: folder of the run
            labels: tell both networks the labels of the images
            flips: mirror half of the images at each step, left for right
        """
        check_device(device)
        torch.manual_seed(descent.seed)
        options = {"labels": labels, "flips": flips, "seed": descent.seed}
        net, source, meta = gans.prepare(sizes, data, **options)
        print(f"{parameters(net)}, {data}, {' x '.join(map(str, net.shape))}", flush=True)
        validation = gans.Validation(gans.format_of(net, meta), out)
        last = fit(net.to(device), source, out, validation, meta, descent, betas=BETAS)
        if last:
            print(table([(name, f"{value:.4g}") for name, value in last.items()]))

    return train


@dataclass(frozen=True)
class Pictured(Shown, Drawn):
    """What `sample` takes for GANs: what is shown, and of which class."""


def sample(net, meta, form, out, n, drawn, sampling):
    check_output(out, ".png")
    if sampling.dtype != "float32" or sampling.temperature != 1:
        got = f"{sampling.dtype!r} and {sampling.temperature:g}"
        raise ValueError(f"dtype, temperature: expected 'float32' and 1 of a GAN, got {got}")
    show = drawn.show or "samples"
    if show not in gans.PICTURES:
        raise ValueError(f"show: expected one of {[*gans.PICTURES]} of a GAN, got {show!r}")
    if drawn.data is not None:
        raise ValueError(f"data: expected none of a GAN, got {drawn.data!r}")
    seed, began = prepared(sampling)["seed"], time.perf_counter()
    made = gans.picture(net, form, n, seed, drawn.label, show)
    took = time.perf_counter() - began
    write_png(out, made)
    if isinstance(form, gans.Plane):
        n = n or gans.POINTS_SHOWN
        print(f"wrote {out}: as many points of {form.name}, and {n:,} samples, seed {seed}")
        return
    if show != "samples":
        print(f"wrote {out}: {show}, seed {seed}")
        return
    size = " x ".join(map(str, form.shape[1:]))
    print(f"wrote {out}: {n or SHOWN} images of {size}, seed {seed}")
    print(table([("fastgen", f"{number((n or SHOWN) / took)} images/s", sampling.dtype)]))


def evaluate(net, form, name, files, seed):
    if isinstance(net, InfoGAN):
        title, rows = infogan.report(net, form, name, files, seed)
        print(f"{title}\n{table(rows)}")
        return
    if not isinstance(form, gans.Plane):
        raise ValueError("eval: expected a model with a likelihood, which a GAN of images has not")
    if name != form.name:
        raise ValueError(f"data: expected {form.name}, which the model is of, got {name}")
    count = gans.COUNTED if files is None else files
    found = gans.numbers(net, form, count, seed)
    if not found:
        raise ValueError(f"eval: expected points that have modes, which {form.name} have not")
    print(f"{count:,} samples of seed {seed}, within 3 standard deviations of a mode")
    print(table([(name, f"{value:.4g}") for name, value in found.items()]))


GANS = Family(
    kind="GANs",
    models=(Adversarial,),
    train={name: trainer(Kind) for name, Kind in SIZES.items()},
    verify={
        "gan": games.verify_gan,
        "fgan": games.verify_fgan,
        "unrolled": games.verify_unrolled,
        "infogan": verify_infogan,
        "dcgan": verify_dcgan,
    },
    commands={},
    format_of=gans.format_of,
    options=Pictured,
    sample=sample,
    evaluate=evaluate,
)
