"""The commands for semi-supervised GANs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from .. import gans, semisupervised
from ..game import GAMES
from ..images import Unseen
from ..implicit.adversarial import BETAS
from ..implicit.semisupervised import OUTPUTS, SemiSupervisedGAN
from ..options import NAMELESS, Descent, Device, Family, Files, check_device, fit, parameters
from ..text import table
from ..verify import semisupervised as checks
from .gans import Pictured, sample

EMA = 0.9999  # of the weights that classify
EPS = 1e-4  # of Adam, so that matched features, whose slopes are less, are left as they are


@dataclass(frozen=True)
class Sizes:
    hidden: tuple[int, ...] = (1000, 500, 250, 250, 250)  # units of each layer of the classifier
    made: tuple[int, ...] = (500, 500)  # units of each layer of the generator
    latent: int = 100  # size of the noise
    game: Annotated[
        Literal[tuple(GAMES)], arg(metavar="GAME", help="one of " + ", ".join(GAMES))
    ] = "nonsaturating"
    steps: Annotated[int, arg(name="discriminator-steps")] = 1  # for one of the generator
    matching: bool = True  # of features by the generator, or else it plays the game
    kernels: int = 0  # of minibatch discrimination
    weight: float = 1.0  # of the unlabelled images' loss; 0 learns from the labelled ones alone
    pace: float = 1.0  # of the generator's learning rate to the discriminator's
    output: Literal[tuple(OUTPUTS)] = "softplus"  # of the generator; the paper has sigmoid

    def build(self, shape, classes):
        return SemiSupervisedGAN(shape, classes, **vars(self))


def train(
    *,
    data: Annotated[str, arg(metavar="DATA")],
    out: Path,
    labels: int = 100,
    files: Files = None,
    device: Device = "cpu",
    sizes: Annotated[Sizes, NAMELESS] = Sizes(),
    descent: Annotated[Descent, NAMELESS] = Descent(
        batch_size=semisupervised.BATCH, lr=3e-3, clip=math.inf
    ),
):
    """Train a classifier of few labels and a GAN; the same command goes on where a run was stopped.

    Args:
        data: mnist, fashion, cifar, an npz file, or a folder of IDX files or pictures
        out: folder of the run
        labels: how many images have labels, as many of each class, of the seed's choice
        files: held-out images to validate on
    """
    check_device(device)
    torch.manual_seed(descent.seed)
    options = {"labels": labels, "seed": descent.seed}
    net, source, meta = semisupervised.prepare(sizes, data, **options)
    print(f"{parameters(net)}, {data}, {labels} labels", flush=True)
    validation = semisupervised.Validation(net, meta, out, files)
    options = {"betas": BETAS, "eps": EPS, "ema": EMA}
    last = fit(net.to(device), source, out, validation, meta, descent, **options)
    print(table([(name, f"{100 * value:.2f} %, held out") for name, value in last.items()]))


def evaluate(net, form, name, files, seed):
    unseen = Unseen(name, form, True, files)
    wrong, count = semisupervised.errors(net, unseen), len(unseen.codes)
    print(f"{count:,} {unseen.split} images of {unseen.title}")
    print(table([("errors", f"{wrong:,}", f"{100 * wrong / count:.2f} %")]))


SEMISUPERVISED = Family(
    kind="semi-supervised GANs",
    models=(SemiSupervisedGAN,),
    train={"semisup": train},
    verify={"semisup": checks.verify},
    commands={},
    format_of=gans.format_of,
    options=Pictured,
    sample=sample,
    evaluate=evaluate,
)
