"""What is known exactly about a model by change of variables, and what ours do.

In two dimensions the integral of a density is a sum over a fine grid.
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import torch

from .. import kernels
from ..tractable.glow import Glow
from ..tractable.ica import ICA
from ..tractable.nice import NICE
from ..tractable.realnvp import RealNVP
from . import Check, run

FAR = 1e3
GRID, CELLS = 960, 24  # points and cells on each side of a square
DRAWN, RARE = 20_000, 10  # samples; fewer than so many expected in a cell are put together
LEVELS = 8


class Makers(NamedTuple):
    """What makes a model of vectors of D numbers, and one of images of `LEVELS` levels."""

    vector: object
    image: object


def vectors(kind, **sizes):
    return lambda D, **options: kind((D,), 0, **sizes, **options)


def pictures(kind, shape, **sizes):
    return lambda **options: kind(shape, LEVELS, **sizes, **options)


MODELS = {
    "nice": Makers(
        vectors(NICE, layers=4, hidden=16, depth=2),
        pictures(NICE, (1, 4, 4), layers=4, hidden=16, depth=2),
    ),
    "ica": Makers(
        vectors(ICA, layers=3, hidden=16),
        pictures(ICA, (1, 4, 4), layers=2, hidden=16),
    ),
    "realnvp": Makers(
        vectors(RealNVP, layers=4, hidden=16, blocks=2),
        pictures(RealNVP, (1, 4, 4), layers=2, hidden=8, blocks=1),
    ),
    "glow": Makers(
        vectors(Glow, layers=4, hidden=16),
        pictures(Glow, (1, 4, 4), layers=2, hidden=8),
    ),
}


def verify(name, each=None):
    """Run every check of a model; returns a list of `Check`, told to `each` in turn."""
    checks = (*CHECKS, components) if name == "ica" else CHECKS
    return run([partial(check, MODELS[name]) for check in checks], each)


def inverts(makers):
    """x -> z -> x of a few numbers, and of all levels of an image."""
    model = woken(makers.vector(6)).float()
    with torch.no_grad():
        x = torch.randn(1000, 6)
        error = (model.inverse(model(x)[0])[0] - x).abs().max().item()
    return Check("inverse(forward(x)) = x, float32", "within 1e-5", f"{error:.1e}", error < 1e-5)


def same_images(makers):
    model = woken(makers.image()).float()
    x = torch.randint(LEVELS, (500, *model.shape))
    with torch.no_grad():
        z, _ = model(model.dequantize(x, uniforms=torch.full(x.shape, 0.5)))
        wrong = (model.quantize(model.inverse(z)[0]) != x).sum().item()
    expected = f"{x.numel()} levels equal"
    return Check("images come back", expected, str(x.numel() - wrong), wrong == 0)


def jacobian(makers):
    """The log-determinants of both ways, of vectors and images, against those of autograd."""
    worst = 0.0
    for model in (woken(makers.vector(5)), woken(makers.image())):
        D = model.dims
        x = torch.rand(3, *model.shape, dtype=torch.float64) * (model.levels or 1)
        z, logdet = model(x)
        _, back = model.inverse(z)
        for i in range(len(x)):
            J = torch.autograd.functional.jacobian(lambda v, f=model: f(v[None])[0][0], x[i])
            exact = torch.linalg.slogdet(J.view(D, D))[1]
            error = max((logdet[i] - exact).abs(), (back[i] + exact).abs()).item()
            worst = max(worst, error if math.isfinite(error) else math.inf)
    name = "log-det = log |det| of autograd's Jacobian"
    return Check(name, "within 1e-9", f"{worst:.1e}", worst < 1e-9)


def integral(makers):
    total = density(woken(makers.vector(2)))[0].sum().item()
    ok = abs(total - 1) < 1e-3
    return Check("the density's integral over a 2-D grid", "1 within 1e-3", f"{total:.6f}", ok)


def frequencies(makers):
    """Pearson's chi-square of samples in cells; above 4.5 standard deviations is no chance."""
    model = woken(makers.vector(2))
    p, low, high = density(model)
    side = GRID // CELLS
    p = p.view(CELLS, side, CELLS, side).sum((1, 3)).flatten()
    x = model.sample(DRAWN, seed=0)
    place = ((x - low) / (high - low) * CELLS).floor()
    inside = ((place >= 0) & (place < CELLS)).all(1)
    cell = (place[:, 0] * CELLS + place[:, 1])[inside].long()
    got = torch.bincount(cell, minlength=CELLS**2).double()
    expected = DRAWN * p
    rare = expected < RARE
    often = [v[~rare] for v in (expected, got)]
    expected, got = (torch.cat([v, DRAWN - v.sum()[None]]) for v in often)
    statistic = ((got - expected).square() / expected.clamp(min=1)).sum().item()
    bound = len(got) - 1 + 4.5 * math.sqrt(2 * (len(got) - 1))
    name, want = "samples have the density", f"chi-square < {bound:.0f}"
    return Check(name, want, f"{statistic:.1f}", statistic < bound)


def finite(makers):
    """Log-density, gradients and inverse far out, and of the most extreme images and sources."""
    vector, image = (woken(model).float() for model in (makers.vector(2), makers.image()))
    x = torch.tensor([*itertools.product((-FAR, 0.0, FAR), repeat=2)], requires_grad=True)
    log_p = vector.log_prob(x)
    ends = torch.tensor([0, LEVELS - 1]).view(2, 1, 1, 1).expand(2, *image.shape)
    edges = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    far = image.sources.quantile(edges.expand(2, image.dims))
    found = [
        log_p,
        *torch.autograd.grad(log_p.sum(), [x, *vector.parameters()]),
        vector.inverse(x)[0],
        *(image.log_prob(ends, uniforms=torch.full(ends.shape, u)) for u in (0.0, 1 - 2**-24)),
        image.inverse(far.float().view(2, *image.shape))[0],
    ]
    bad = sum((~v.isfinite()).sum().item() for v in found)
    return Check("finite at x = -1000 and 1000", "0 are not", str(bad), bad == 0)


def bits(makers):
    """Bits a dimension of levels from the sources alone: noise, scale, logit and ln 2 by hand."""
    model, worst = woken(makers.image()), 0.0
    x = torch.randint(LEVELS, (20, *model.shape))
    got = model.bits_per_dim(x, seed=0)
    u = kernels.uniforms(0, len(x), model.dims).view(x.shape)
    y = (x + u) / LEVELS
    alpha = model.config.get("alpha")
    correction = model.dims * math.log(LEVELS)
    if alpha:
        p = alpha + (1 - 2 * alpha) * y
        y = (p / (1 - p)).log()
        correction = correction - ((1 - 2 * alpha) / (p * (1 - p))).log().flatten(1).sum(1)
    steps = [step for step in model.chain.steps if type(step).__name__ not in ("Rescale", "Logit")]
    y, nats = y.flatten(1) if model.flat else y, correction
    for step in steps:
        y, logdet = step(y)
        nats = nats - logdet
    nats = nats - model.sources.log_prob(y.flatten(1))
    worst = (got - nats / (model.dims * math.log(2))).abs().max().item()
    return Check("bits/dim = those computed by hand", "within 1e-9", f"{worst:.1e}", worst < 1e-9)


def reversible(makers):
    """Gradients from the output alone, without what lies between, against those of the graph."""
    worst = 0.0
    for make in (partial(makers.vector, 6), makers.image):
        plain, own = woken(make()).train(), woken(make(reversible=True)).train()
        own.load_state_dict(plain.state_dict())
        x = torch.rand(20, *plain.shape, dtype=torch.float64) * (plain.levels or 1)
        wanted, got = (
            torch.autograd.grad(model.log_prob(x).mean(), [*model.parameters()])
            for model in (plain, own)
        )
        scale = max(g.abs().max().item() for g in wanted)
        error = max((a - b).abs().max().item() for a, b in zip(wanted, got, strict=True))
        worst = max(worst, error / scale)
    name = "gradients from the output = the graph's"
    return Check(name, "within 1e-8", f"{worst:.1e}", worst < 1e-8)


def components(makers):
    """Three sources, mixed by a matrix, found up to order and scale by the likeliest of 3 fits."""
    u = kernels.uniforms(0, 3, 1500).T  # (N, 3)
    laplace = torch.where(u < 0.5, torch.log(2 * u + 1e-9), -torch.log(2 - 2 * u))[:, 0]
    sources = torch.stack([laplace, u[:, 1] - 0.5, -torch.log1p(-u[:, 2])], 1)
    mixing = torch.tensor([[1.0, 0.6, -0.4], [0.5, 2.0, 0.7], [-0.3, 0.8, 0.5]]).double()
    x = ((sources / sources.std(0)) @ mixing.T).float()
    models = [learned(ICA((3,)), x) for _ in range(3)]
    with torch.no_grad():
        model = max(models, key=lambda model: model.log_prob(x).mean().item())
        z = model(x)[0].double()
    R = torch.corrcoef(torch.cat([z, sources], 1).T)[:3, 3:].abs()
    best = max(R[[0, 1, 2], p].mean().item() for p in map(list, itertools.permutations(range(3))))
    name = "mixed sources found, mean |correlation|"
    return Check(name, "> 0.95", f"{best:.4f}", best > 0.95)


CHECKS = (
    inverts,
    same_images,
    jacobian,
    integral,
    frequencies,
    finite,
    bits,
    reversible,
)


@torch.no_grad()
def woken(model):
    """A float64 model in evaluation, its parameters and averages moved from where they begin."""
    for p in model.parameters():
        p += 0.3 * p[0].numel() ** -0.5 * torch.randn_like(p)
    model.double().train()
    for _ in range(5):  # batches for the averages of a batch norm to follow
        x = torch.rand(50, *model.shape, dtype=torch.float64)
        model(x * model.levels if model.levels else 3 * x)
    return model.eval()


@torch.no_grad()
def density(model):
    """Probabilities (GRID, GRID) of small squares of the plane, and the corners of them all."""
    some = model.sample(4096, seed=1)
    low, high = some.amin(0), some.amax(0)
    low, high = low - 0.6 * (high - low), high + 0.6 * (high - low)
    places = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    x, y = (low + (high - low) * places[:, None]).T
    points = torch.cartesian_prod(x, y)
    p = torch.cat([model.log_prob(part).exp() for part in points.split(1 << 16)])
    return p.view(GRID, GRID) * (high - low).prod() / GRID**2, low, high


def learned(model, x, steps=300, lr=0.04):
    """The model after steps of Adam on all of x, at a rate that falls to zero."""
    adam = torch.optim.Adam(model.train().parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        (-model.log_prob(x).mean()).backward()
        adam.step()
        rate.step()
    return model.eval()
