"""The commands for GANs, of points and of images."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from .. import figure1, gans, infogan
from ..data import grid, write_gif, write_png
from ..data.blobs import BLOBS
from ..game import GAMES
from ..images import SHOWN
from ..implicit.adversarial import BETAS, Adversarial
from ..implicit.dcgan import DCGAN
from ..implicit.gan import GAN
from ..implicit.infogan import InfoGAN
from ..implicit.lstm import LSTMGAN
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
from .scores import show_counts, show_scores

Game = Annotated[Literal[tuple(GAMES)], arg(metavar="GAME", help="one of " + ", ".join(GAMES))]


@dataclass(frozen=True)
class Rules:
    game: Game = "nonsaturating"
    smooth: float = 0.0  # one-sided: data's target is 1 - smooth
    discriminator_steps: int = 1  # of a turn, on batches of its own
    generator_steps: int = 1  # of a turn
    discriminator_lr: float = 1.0  # factor of lr for the discriminator
    unrolled: int = 0  # steps of the discriminator that the generator looks ahead
    inner_lr: float = 2e-4  # of these
    penalty: float = 0.0  # weight of the penalty on the discriminator's slope
    minibatch: int = 0  # kernels of minibatch discrimination
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


@dataclass(frozen=True)
class LSTMSizes(Rules):
    units: int = 128  # of the LSTM
    channels: int = 16  # of the discriminator's largest pictures

    def build(self, shape, classes):
        return LSTMGAN(shape, classes=classes, **own(self))


SIZES = {"gan": GANSizes, "dcgan": DCGANSizes, "infogan": InfoGANSizes, "lstmgan": LSTMSizes}


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
        simultaneous: bool = False,
        ema: float = 0.999,
        device: Device = "cpu",
        sizes: Annotated[Kind, NAMELESS] = default,
        descent: Annotated[Descent, NAMELESS] = Descent(batch_size=128, lr=2e-4, clip=math.inf),
    ):
        """Train a GAN of points or images; the same command goes on where a run was stopped.

        Args:
            data: ring, eight_gaussians, two_moons, two_spirals or checkerboard; or images: mnist,
                fashion, cifar, blobs or mirrored (drawn here, see `fastgen.data.blobs`), an npz
                file, or a folder of IDX files or pictures
            out: folder of the run
            labels: tell both networks the labels of the images
            flips: mirror half of the images at each step, left for right
            simultaneous: take both players' gradients before either steps
            ema: of the averaged weights, by which what is saved and shown is made; 0 for none
        """
        check_device(device)
        torch.manual_seed(descent.seed)
        options = {"labels": labels, "flips": flips, "seed": descent.seed}
        net, source, meta = gans.prepare(sizes, data, **options)
        print(f"{parameters(net)}, {data}, {' x '.join(map(str, net.shape))}", flush=True)
        validation = gans.Validation(gans.format_of(net, meta), out)
        options = {"betas": BETAS, "ema": ema, "simultaneous": simultaneous}
        last = fit(net.to(device), source, out, validation, meta, descent, **options)
        if last:
            print(table([(name, f"{value:.4g}") for name, value in last.items()]))

    return train


@dataclass(frozen=True)
class Pictured(Shown, Drawn):
    """What `sample` takes for GANs: what is shown, and of which class."""


def play(*, out: Path, seed: int = 0):
    """Play figure 1 of Goodfellow et al. 2014: a GAN on a line, as an animation and four panels.

    Data's density is in black dots, the generator's green, the discriminator in blue dashes over
    the best one, pale; below, where the generator takes noise to.

    Args:
        out: GIF file to write, beside a PNG file of the panels
        seed: of the networks and their batches
    """
    check_output(out, ".gif")
    check_output(out.with_suffix(".png"), ".png")
    torch.manual_seed(seed)
    frames, panels, distance = figure1.draw()
    write_gif(out, frames, figure1.PALETTE)
    pixels = figure1.PALETTE[panels.long()].movedim(3, 1)  # (4, 3, H, W)
    write_png(out.with_suffix(".png"), grid(pixels, 2, scale=1))
    print(f"wrote {out} and {out.with_suffix('.png').name}: {len(frames)} frames, seed {seed}")
    print(table([("Kolmogorov-Smirnov distance", f"{distance:.4f}")]))


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
        return (show_counts if name in BLOBS else show_scores)(net, form, name, files, seed)
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
    commands={"figure1": play},
    format_of=gans.format_of,
    options=Pictured,
    sample=sample,
    evaluate=evaluate,
)
