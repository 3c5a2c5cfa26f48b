"""The commands for the networks that samples are measured by."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from .. import scores
from ..data.images import Images
from ..data.levels import Batches
from ..gans import LEVELS, Canvas
from ..images import Unseen
from ..metrics.lenet import LeNet
from ..options import (
    NAMELESS,
    Descent,
    Device,
    Family,
    check_device,
    fit,
    parameters,
)
from ..text import progress, table

MANY = 12  # blobs, shown as one number from here on


@dataclass(frozen=True)
class Nothing:
    """What `sample` takes for a model that makes nothing."""


@dataclass(frozen=True)
class LeNetSizes:
    channels: tuple[int, ...] = (16, 32, 48)  # of each convolution, after which sides are halved
    features: int = 64


def train(
    *,
    data: Annotated[str, arg(metavar="DATA")],
    out: Path,
    flips: bool = False,
    device: Device = "cpu",
    sizes: Annotated[LeNetSizes, NAMELESS] = LeNetSizes(),
    descent: Annotated[Descent, NAMELESS] = Descent(
        steps=5000, batch_size=128, lr=3e-3, schedule="cosine", clip=math.inf
    ),
):
    """Train a LeNet to tell images apart; the same command goes on where a run was stopped.

    Args:
        data: mnist, fashion, cifar, an npz file, or a folder of IDX files or pictures, with labels
        out: folder of the run
        flips: mirror half of the images at each step, left for right
    """
    check_device(device)
    torch.manual_seed(descent.seed)
    images = Images(data)
    source = Batches(images, LEVELS, seed=descent.seed, labelled=True, flips=flips)
    net = LeNet(images.shape, images.classes, **asdict(sizes))
    print(f"{parameters(net)}, images of {' x '.join(map(str, net.shape))}", flush=True)
    unseen = Unseen(data, Canvas(net.shape), True, split="held out")
    last = fit(net.to(device), source, out, lambda net: told(net, unseen), {"data": data}, descent)
    print(table([(name, f"{value:.4f}, held out") for name, value in last.items()]))


def told(net, unseen):
    """By name, how well a classifier tells images apart.

    Raises ValueError for labels that it does not know.
    """
    most, classes = int(unseen.labels.max()), net.config["classes"]
    if most >= classes:
        raise ValueError(f"data: expected labels 0 to {classes - 1}, got {most}")
    _, log_p = net.read(Canvas(net.shape).decode(unseen.codes))
    log_p = log_p.cpu()
    return {
        "accuracy": (log_p.argmax(1) == unseen.labels).double().mean().item(),
        "nats": -log_p.gather(1, unseen.labels[:, None]).mean().item(),
    }


def evaluate(net, form, name, files, seed):
    unseen = Unseen(name, form, True, files)
    print(f"{len(unseen.codes):,} {unseen.split} images of {unseen.title}")
    print(table([(name, f"{value:.4f}") for name, value in told(net, unseen).items()]))


def show_scores(net, form, data, files, seed, features=None):
    """Print the scores of a model's samples, beside those of images it was trained on."""
    device = next(net.parameters()).device
    lenet, name = scores.network(features, data, device)
    score = scores.scores(net, form, data, lenet, files)
    with progress() as show:
        made = score(net, seed, show)
        show("train images")
        floor = score.floor()
    print(f"{score.count:,} samples of seed {seed}, {score.split} images of {score.title}")
    rows = [
        (f"{key}@{name}" if key in ("fid", "kid") else key, text(*made[key]), text(*floor[key]))
        for key in made
    ]
    print(table([("", "samples", "train images"), *rows]))


def show_counts(net, form, data, files, seed):
    """Print what a model's samples are as wholes, beside images of blobs."""
    counts, found = scores.counted(net, form, data, files, seed)
    n = len(counts[0])
    print(f"{n:,} samples of seed {seed}, {n:,} test images of {data}")
    shown = [c.clamp(max=MANY) for c in counts]
    rows = [
        (
            f"of {k} blobs" + " or more" * (k == MANY),
            *(f"{100 * (c == k).double().mean().item():.4g}%" for c in shown),
        )
        for k in sorted({*torch.cat(shown).tolist()})
    ]
    rows += [(name, *(f"{part[name]:.4g}" for part in found)) for name in found[0]]
    print(table([("", "samples", "test images"), *rows]))


def text(value, error):
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def sample(net, *rest):
    raise ValueError(f"sample: expected a model that samples, got a {type(net).__name__}")


CLASSIFIERS = Family(
    kind="classifiers of images",
    models=(LeNet,),
    train={"lenet": train},
    verify={},
    commands={},
    format_of=lambda net, meta: Canvas(net.shape),
    options=Nothing,
    sample=sample,
    evaluate=evaluate,
)
