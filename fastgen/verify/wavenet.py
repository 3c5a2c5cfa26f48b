"""What is known exactly about a WaveNet, and what ours does."""

import itertools
import math
import tempfile

import numpy as np
import torch
from torch import nn

from .. import kernels
from ..data import linear_decode, linear_encode
from ..tractable.wavenet import WaveNet
from ..train import train
from . import Check, run

# x[t] = A1 x[t-1] + A2 x[t-2] + SIGMA e, rounded to the nearest of CLASSES levels in [-1, 1]
A1, A2, SIGMA, CLASSES = 1.5, -0.8, 0.12, 32
PERIOD = 25  # samples of the sine


def verify(each=None):
    """Run every check, some 10 s on one core; returns a list of `Check`, told to `each` in turn."""
    return run(CHECKS, each)


def sums_to_one():
    return total("sums to one over all 4^5 sequences", small(classes=4))


def mixture_sums_to_one():
    return total("as a mixture, sums to one", small(classes=4, mixtures=2))


def frequencies():
    """Pearson's chi-square of sampled triples; above 4.5 standard deviations is no chance."""
    model, n = small(classes=4), 50_000
    x = sequences(4, 3)
    with torch.no_grad():
        expected = n * model.log_prob(x).exp()
    codes = model.sample(n, 3, seed=0, dtype="float64")
    got = torch.bincount(codes @ torch.tensor([16, 4, 1]), minlength=64)
    statistic = ((got - expected).square() / expected).sum().item()
    bound = 63 + 4.5 * math.sqrt(2 * 63)
    return Check(
        "samples have their probabilities",
        f"chi-square < {bound:.0f}",
        f"{statistic:.1f}",
        statistic < bound,
    )


def past_only():
    """Change a code; whatever was said of it and of those before must not change by a bit."""
    model, T = small(), 40
    x = torch.randint(16, (1, T))
    changed = x.repeat(T, 1)
    changed[range(T), range(T)] = (x + 1) % 16
    with torch.no_grad():
        before, after = model(x), torch.cat([model(row[None]) for row in changed])
    wrong = sum((before[0, :, : t + 1] != after[t, :, : t + 1]).sum().item() for t in range(T))
    return Check("no code sees itself or a later one", "0 logits move", str(wrong), wrong == 0)


def receptive_field():
    """The gradient of a prediction is zero but at the codes of its receptive field."""
    model, seen = small(), []
    T = model.receptive_field + 9

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    hook = model.embed.register_forward_hook(keep)
    model(torch.randint(16, (1, T)))[..., -1].square().sum().backward()
    hook.remove()
    got = seen[0].grad[0].abs().amax(1).nonzero()[:, 0].tolist()
    expected = list(range(T - 1 - model.receptive_field, T - 1))
    return Check(
        "sees its receptive field, all of it",
        f"codes {expected[0]} to {expected[-1]}",
        f"codes {got[0]} to {got[-1]}" if got else "none",
        got == expected,
    )


def cached_is_naive():
    """The same uniforms give the same codes, one at a time and by full forward passes."""
    wrong = n = 0
    for config in ({}, {"kernel_size": 3}, {"cond_channels": 3, "hop_length": 4}, {"mixtures": 3}):
        model = small(**config)
        N, T, cond = 32, 4 * model.receptive_field, None
        if "cond_channels" in config:
            cond = torch.randn(N, 3, T // 4 + 1, dtype=torch.float64)
        options = {"seed": 1, "cond": cond, "dtype": "float64"}
        cached, naive = (model.sample(N, T, method=m, **options) for m in ("cached", "naive"))
        wrong, n = wrong + (cached != naive).sum().item(), n + cached.numel()
    return Check("cached sampler = naive, float64", f"{n} codes equal", str(n - wrong), wrong == 0)


def cached_logits():
    """Along one history, in float32."""
    model = small(layers=20, stacks=2, residual_channels=32, gate_channels=64, classes=256)
    x, model = torch.randint(256, (1, 3000)), model.float()
    with torch.no_grad():
        forward = model(x).transpose(1, 2)
    _, _, cached = kernels.wavenet_sample(
        model.weights(), torch.zeros(x.shape), **model.sampling(1, None), prefix=x, logits=True
    )
    error = (cached - forward).abs().max().item()
    got = f"{error:.0e}, of {forward.abs().max():.1f}"
    return Check("cached logits = forward's, float32", "within 1e-4", got, error < 1e-4)


def streams():
    """A stream's codes depend on its seed alone: not on neighbours, threads and chunks."""
    wrong = 0
    for dtype in ("float32", "float64", "bfloat16", "int8"):
        model = small()
        u = kernels.uniforms(0, 5, 200)
        together = model.sample(5, 200, uniforms=u, dtype=dtype, threads=2)
        for i in range(5):
            alone = model.sample(1, 200, uniforms=u[i : i + 1], dtype=dtype, threads=1)
            wrong += (together[i] != alone[0]).sum().item()
        chunks = itertools.islice(model.stream(5, seed=0, chunk=7, dtype=dtype), 29)
        wrong += (together != torch.cat([*chunks], dim=1)[:, :200]).sum().item()
    return Check("one stream = many = in chunks", "8000 codes equal", str(8000 - wrong), wrong == 0)


def initial_loss():
    model, x = WaveNet(), torch.randint(256, (1, 2048))
    with torch.no_grad():
        got = -model.log_prob(x).item() / x.numel()
    return nats("untrained: ln 256", math.log(256), got, -0.1, 0.1)


def sine():
    """A sine from an unknown one of PERIOD phases: a sequence holds ln PERIOD nats, no more."""
    T = 128
    t = torch.arange(PERIOD)[:, None] + torch.arange(T)
    codes = linear_encode(0.9 * torch.sin(2 * math.pi * t / PERIOD), CLASSES)
    got = learn(codes.repeat(128, 1)[torch.randperm(128 * PERIOD)], codes)
    return nats("learns a sine: entropy", math.log(PERIOD) / T, got, 0, 0.02)


def autoregression():
    """An AR(2) process on rounded values: the true p(x[t]) is a Gaussian's mass on intervals.

    Blind to x[t-2] the loss would be 0.51 nats above it. No model is below but by chance.
    """
    codes, entropy = ar2(3456, 128)
    heldout = 256
    got, expected = learn(codes[heldout:], codes[:heldout]), entropy[:heldout].mean().item()
    return nats("learns an AR(2) process: entropy", expected, got, -0.005, 0.05)


CHECKS = (
    sums_to_one,
    mixture_sums_to_one,
    frequencies,
    past_only,
    receptive_field,
    cached_is_naive,
    cached_logits,
    streams,
    initial_loss,
    sine,
    autoregression,
)


def small(**config):
    """A float64 WaveNet whose logits spread over some units, unlike those of an untrained one."""
    sizes = {"layers": 4, "stacks": 2, "residual_channels": 8, "gate_channels": 12}
    sizes |= {"skip_channels": 10, "classes": 16, **config}
    model = WaveNet(**sizes).double()
    for name, p in model.named_parameters():
        if p.dim() > 1 and not name.startswith("embed"):
            nn.init.normal_(p, std=1.2 * p[0].numel() ** -0.5)
    return model


def sequences(classes, T):
    """Every sequence there is, (classes^T, T)."""
    return torch.tensor([*itertools.product(range(classes), repeat=T)])


def total(name, model):
    with torch.no_grad():
        got = model.log_prob(sequences(4, 5)).exp().sum().item()
    return Check(name, "1 within 1e-10", f"{got:.12f}", abs(got - 1) < 1e-10)


def nats(name, truth, got, least, most):
    """A check of nats a sample that must be above the truth by at least `least`, at most `most`."""
    expected = f"{truth + least:.4f} to {truth + most:.4f} nats"
    return Check(f"{name} {truth:.4f}", expected, f"{got:.4f}", least <= got - truth <= most)


class Rows:
    """Batches of the rows of codes (N, T), one after another."""

    def __init__(self, codes):
        self.codes = codes

    def batch(self, step, size):
        return (self.codes.roll(-step * size, 0)[:size],)


def learn(codes, heldout, steps=200):
    """Nats a sample that a small WaveNet needs for `heldout` once it has learned `codes`."""
    model = WaveNet(4, 2, 16, 32, 16, CLASSES)
    options = {"steps": steps, "batch_size": 16, "lr": 1e-2, "schedule": "cosine", "ema": 0.98}
    with tempfile.TemporaryDirectory() as out:
        model = train(model, Rows(codes), out=out, save_every=steps, progress=False, **options)
    with torch.no_grad():
        return -model.log_prob(heldout).mean().item() / heldout.shape[1]


def ar2(n, T):
    """Codes (n, T), and -log p of each, in nats, under the process that made them."""
    noise = torch.from_numpy(np.random.Generator(np.random.Philox(0)).normal(size=(T, n)))
    past, before = noise.new_zeros(2, n)
    codes, entropy = [], []
    half = 1 / (CLASSES - 1)  # of the distance of two levels
    for e in noise:
        mean = A1 * past + A2 * before
        code = linear_encode(mean + SIGMA * e, CLASSES)
        past, before = linear_decode(code, CLASSES).double(), past
        above = torch.where(code == CLASSES - 1, math.inf, past + half - mean) / SIGMA
        below = torch.where(code == 0, -math.inf, past - half - mean) / SIGMA
        codes.append(code)
        entropy.append(-(torch.special.ndtr(above) - torch.special.ndtr(below)).log())
    return torch.stack(codes, 1), torch.stack(entropy, 1)
