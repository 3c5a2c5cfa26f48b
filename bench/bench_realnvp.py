"""A training step of Real NVP against its model on plain torch: `pytest bench/bench_realnvp.py`.

The gradient of the mean log-likelihood by all parameters: of 32 images of 1 x 28 x 28, 7 couplings
at two scales (residual networks of 2 blocks of 32 and 64 channels) with batch norms, and of 512
points of the plane, 16 couplings (2 hidden layers of 64 units) with actnorms. The plain model is
the same one, its couplings in torch's own operations. In float64 losses and gradients are equal to
1e-9; in float32, where a rectifier near zero moves a gradient by 1e-4 (with seed 0 one of the
points by 1.2e-3, on plain torch too), to 1e-3, and each row says how far ours and torch.compile are
from float64.
"""

import copy

import pytest
import torch
from measure import compare

from fastgen import RealNVP, kernels
from fastgen.nn import AffineCoupling

MODELS = {
    "images": lambda layers: RealNVP((1, 28, 28), 256, layers, 32, 2),
    "points": lambda layers: RealNVP((2,), 0, layers, 64, 2, norm="actnorm"),
}
SIZES = {"images": (32, 2), "points": (512, 16)}  # B, layers


class Plain(AffineCoupling):
    """The coupling in torch's own operations."""

    def couple(self, x, context, inverse):
        h = self.net(kernels.kept_half(x, self.split, self.swap), *context)
        return kernels.affine_coupling_ref(x, h, inverse=inverse, **self.options())


def build(name, small):
    """Ours and the plain model, of equal parameters, none of which is zero; and a batch."""
    torch.manual_seed(1)
    B, layers = (4, 1) if small else SIZES[name]
    ours = MODELS[name](layers)
    with torch.no_grad():
        for p in ours.parameters():
            p += 0.02 * torch.randn_like(p)
    plain = copy.deepcopy(ours)
    for module in plain.modules():
        if isinstance(module, AffineCoupling):
            module.__class__ = Plain
    return ours, plain, torch.rand(B, *ours.shape) * (ours.levels or 1)


def step(model, x, nll=lambda model, x: -model.log_prob(x).mean()):
    """The loss and all gradients."""
    loss = nll(model, x)
    return [loss.detach(), *torch.autograd.grad(loss, [*model.parameters()])]


def error(got, want):
    """Of the loss by its size, and of the gradients by the largest of all."""
    scale = max(v.abs().max() for v in want[1:])
    worst = max((a - b).abs().max() for a, b in zip(got[1:], want[1:], strict=True))
    return max(worst / scale, abs(got[0] / want[0] - 1)).item()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_realnvp(benchmark, report, small, name, threads):
    torch.set_num_threads(threads)
    torch.compiler.reset()
    ours, plain, x = build(name, small)
    exact = step(copy.deepcopy(plain).double(), x.double())
    assert error(step(copy.deepcopy(ours).double(), x.double()), exact) <= 1e-9
    runs = {"ours": lambda: step(ours, x), "eager": lambda: step(plain, x)}
    if not small:  # it takes minutes
        compiled = torch.compile(lambda model, x: -model.log_prob(x).mean(), dynamic=False)
        runs["torch.compile"] = lambda: step(plain, x, compiled)
        runs["ours, compiled"] = lambda: step(ours, x, compiled)
    errors = {n: error(run(), exact) for n, run in runs.items()}
    assert max(errors.values()) <= 1e-3, errors
    seconds = compare(runs, rounds=2 if small else 15)
    row = {"of": name, "threads": threads}
    row |= {f"{n}, ms": f"{1000 * v:.1f}" for n, v in seconds.items()}
    row["x eager"] = f"{seconds['eager'] / seconds['ours']:.2f}"
    if not small:
        ratio = seconds["torch.compile"] / seconds["ours, compiled"]
        row["compiled, x torch.compile"] = f"{ratio:.2f}"
    row |= {f"error, {n}": f"{v:.1g}" for n, v in errors.items() if n != "eager"}
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=1 if small else 3)
