"""What is known exactly about an autoregressive model of images, and what ours do.

Of images of 3 x 3 pixels of 2 levels there are 512, so that every sum is a sum over all of them.
"""

import itertools
import math
from functools import partial

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..tractable.fvbn import FVSBN
from ..tractable.made import MADE
from ..tractable.nade import NADE
from ..tractable.pixelcnn import GatedPixelCNN, PixelCNN
from ..tractable.pixelcnnpp import PixelCNNpp
from ..tractable.raster import Raster
from . import Check, run

RARE = 10
SHAPE, ORDER = (1, 3, 3), [4, 8, 0, 2, 7, 1, 3, 6, 5]
MODELS = {  # name: what makes it, and its samplers
    "fvbn": (
        [partial(FVSBN, SHAPE), partial(FVSBN, SHAPE, ORDER)],
        ("cached", "naive"),
    ),
    "nade": (
        [partial(NADE, SHAPE, 7), partial(NADE, SHAPE, 16, ORDER)],
        ("cached", "naive"),
    ),
    "made": (
        [
            partial(MADE, SHAPE, (50,)),
            partial(MADE, SHAPE, (60, 50), order=ORDER, direct=True),
            partial(MADE, SHAPE, (50, 60), sets=3, order="random"),
        ],
        ("cached", "naive"),
    ),
    "pixelcnn": (
        [
            partial(GatedPixelCNN, 3, 12, 10, 3, levels=2, height=3, width=3),
            # its first kernel sees over the whole image, or it would have a blind spot
            partial(PixelCNN, 2, 16, 10, 5, levels=2, height=3, width=3),
        ],
        ("cached", "naive", "jacobi"),
    ),
    "pixelcnnpp": (
        [partial(PixelCNNpp, 1, 6, 2, 3, levels=2, colors=1, height=3, width=3)],
        ("cached", "naive", "jacobi"),
    ),
}


def verify(name, each=None):
    """Run every check of a model; returns a list of `Check`, told to `each` in turn."""
    makers, methods = MODELS[name]
    samplers = (partial(same_images, makers, m) for m in methods if m != "naive")
    return run([*(partial(check, makers) for check in CHECKS), *samplers], each)


def sums_to_one(makers):
    sums = []
    for model in map(small, makers):
        with torch.no_grad():
            sums.append(model.log_prob(images()).double().exp().sum().item())
    worst = max(sums, key=lambda total: abs(total - 1))
    ok = abs(worst - 1) < 1e-5
    return Check("sums to one over all 2^9 images", "1 within 1e-5", f"{worst:.9f}", ok)


def past_only(makers):
    """Change a pixel: what is said of others moves by a bit or more just where it comes before."""
    wrong = places = 0
    for model in map(exact, makers):
        for order, forward in orders(model):
            got = dependencies(forward)
            place = order.argsort()
            wrong += (got != (place[:, None] < place)).sum().item()
            places += got.numel()
    name = "a pixel sees those before it, and only them"
    return Check(name, f"{places} pairs as they must", str(places - wrong), wrong == 0)


def frequencies(makers):
    """Pearson's chi-square of sampled images; above 4.5 standard deviations is no chance.

    The images that are expected fewer than RARE times count as one.
    """
    statistic, degrees, n = 0.0, 0, 50_000
    for model in map(small, makers):
        with torch.no_grad():
            expected = n * model.log_prob(images()).double().exp()
        drawn = model.sample(n, seed=0, dtype="float64").flatten(1)
        got = torch.bincount(drawn @ 2 ** torch.arange(8, -1, -1), minlength=512)
        rare = expected < RARE
        if rare.any():
            got, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (got, expected))
        statistic += ((got - expected).square() / expected).sum().item()
        degrees += len(got) - 1
    bound = degrees + 4.5 * math.sqrt(2 * degrees)
    return Check(
        "samples have their probabilities",
        f"chi-square < {bound:.0f}",
        f"{statistic:.1f}",
        statistic < bound,
    )


def same_images(makers, method):
    """The same uniforms give the same images, and some of their pixels may be given."""
    wrong = total = 0
    for model in map(small, makers):
        for prefix in (None, images()[::3, :, :2] - (torch.arange(6).view(1, 1, 2, 3) == 4).long()):
            options = {"seed": 1, "dtype": "float64", "prefix": prefix}
            n = 171 if prefix is None else len(prefix)
            fast, naive = (model.sample(n, method=m, **options) for m in (method, "naive"))
            wrong, total = wrong + (fast != naive).sum().item(), total + fast.numel()
    expected = f"{total} pixels equal"
    return Check(f"{method} sampler = naive, float64", expected, str(total - wrong), wrong == 0)


CHECKS = (sums_to_one, past_only, frequencies)


@torch.no_grad()
def small(make):
    """A model of random weights, neither flat nor sharp."""
    model = make().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=2 * p[0].numel() ** -0.5 if p.dim() > 1 else 0.5)
    if isinstance(model, Raster):  # so deep that its outputs may have any size
        hook = model.out.register_forward_hook(standardize)
        model(images())
        hook.remove()
    return model


def standardize(conv, inputs, y):
    """Give a convolution outputs of mean 0 and together of variance 1, where they are y now."""
    scale = y.std()
    weight = conv.parametrizations.weight.original0 if is_parametrized(conv) else conv.weight
    weight.div_(scale)
    conv.bias.sub_(y.mean((0, 2, 3))).div_(scale)


@torch.no_grad()
def exact(make):
    """A model whose sums are not rounded, so that their order, which is the BLAS's, is no matter.

    Its weights are a few eighths, of PixelCNN++, without their norms, a quarter of that, so that no
    logistic says 0 or 1; the hidden units of NADE are 0 or 1.
    """
    model = make(weight_norm=False) if make.func is PixelCNNpp else make()
    for p in model.parameters():
        p.copy_(torch.randint(1, 9, p.shape) * (2 * torch.randint(2, p.shape) - 1) / 8)
        if isinstance(model, PixelCNNpp):
            p.div_(4)
    if isinstance(model, NADE):
        model.W *= 2048
        model.c.mul_(2048).add_(128)
    return model.eval()


def images():
    """Every image that there is, (512, 1, 3, 3)."""
    return torch.tensor([*itertools.product((0, 1), repeat=9)]).view(-1, *SHAPE)


def orders(model):
    """Each order (9,) of a model and the forward pass that goes with it."""
    if not hasattr(model, "order"):
        return [(torch.arange(9), model)]
    return [(order, partial(model, s=s)) for s, order in enumerate(model.order)]


@torch.no_grad()
def dependencies(forward):
    """Whether pixel i (a row) moves what is said of pixel j (a column), for some image. (9, 9)"""
    flips = torch.eye(9, dtype=torch.int64).view(9, *SHAPE)
    logits = forward(images())
    moved = [forward(images() ^ flip) != logits for flip in flips]
    return torch.stack(moved).reshape(9, -1, 9).any(1)
