"""affine_coupling against its rivals: `pytest bench/bench_affine_coupling.py`.

Images of 64 x C x 32 x 32 and vectors, split by channel, scale = exp(tanh(s)), from the network's
output h on. Of x with E numbers a forward or inverse pass moves 3 E (x, h and y), gradients 4 E
more (dy, what changes of x, s, dx, dh); the floor is the time that a copy takes to move as many
bytes in the same process. Values and gradients are checked before anything is timed.

Beside eager torch and torch.compile stand the couplings of normflows and nflows as they are, where
they are installed, with networks that return h: they have maps of their own (exp(s) and
sigmoid(s + 2) + 1e-3), and are held to ours with the same map.
"""

import importlib.util

import pytest
import torch
from measure import DEVICE, compare, copier

from fastgen.kernels import affine_coupling, affine_coupling_ref

IMAGES = [(64, C, 32, 32) for C in (12, 24, 48)]
VECTORS = [(65_536, D) for D in (2, 4, 8, 16, 32, 64)]
GPU, SMALL = (512, 48, 32, 32), (2, 4, 4, 4)
MOVED = {"forward": 3, "inverse": 3, "both": 7}  # both: forward and backward


def build(shape, **options):
    """x, h, and gradients of the results; x and h take gradients."""
    torch.manual_seed(0)
    x, h, dy = (torch.randn(shape).to(**options) for _ in range(3))
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.requires_grad_(), h.requires_grad_(), (dy, torch.ones(len(x)).to(x.device, wide))


def both(coupling, x, h, douts):
    """A forward and a backward pass; returns what it computed, gradients last."""
    outputs = coupling(x, h)
    return [*outputs, *torch.autograd.grad(outputs, (x, h), douts)]


def once(coupling, x, h):
    with torch.no_grad():
        return coupling(x, h)


def kernels(fn):
    """A forward and an inverse coupling by `affine_coupling` or what acts like it."""
    return (
        lambda x, h: fn(x, h, split="channel"),
        lambda x, h: fn(x, h, split="channel", inverse=True),
    )


class Given(torch.nn.Module):
    """A network that returns what it was given."""

    def forward(self, x, context=None):
        return self.h


def layered(layer, net):
    """The couplings of a layer whose network is `net`."""

    def run(x, h, inverse):
        net.h = h
        return (layer.inverse if inverse else layer)(x)

    return lambda x, h: run(x, h, False), lambda x, h: run(x, h, True)


def rivals(shape):
    """Forward and inverse couplings by name."""
    torch.compiler.reset()  # else it gives up on compiling for one more shape
    found = {"ours": kernels(affine_coupling), "eager": kernels(affine_coupling_ref)}
    compiled = torch.compile(affine_coupling_ref, fullgraph=True, dynamic=False)
    found["torch.compile"] = kernels(compiled)
    net = Given()
    if importlib.util.find_spec("normflows"):
        import normflows

        found["normflows"] = layered(normflows.flows.AffineCouplingBlock(net), net)
    if importlib.util.find_spec("nflows"):
        from nflows.transforms import AffineCouplingTransform

        mask = torch.arange(shape[1]) * 2 >= shape[1]
        found["nflows"] = layered(AffineCouplingTransform(mask, lambda *_: net), net)
    return found


def exponents(name, h):
    """Ours that has the map of a library's: what "exp" is given of h, and in what layout."""
    if name == "normflows":
        return h, "tsts"
    t, s = h.chunk(2, 1)
    return torch.cat([t, torch.log(torch.sigmoid(s + 2) + 1e-3)], 1), "ts"


def hold_libraries(found, x, h):
    """Raise AssertionError unless the couplings of normflows and nflows are ours, to 1e-5."""
    for name in found.keys() & {"normflows", "nflows"}:
        own, layout = exponents(name, h.detach())
        options = {"scale": "exp", "split": "channel", "layout": layout}
        for coupling, inverse in zip(found[name], (False, True), strict=True):
            want = affine_coupling(x.detach(), own, inverse=inverse, **options)
            for a, b in zip(once(coupling, x, h), want, strict=True):
                assert (a - b).norm() <= 1e-5 * b.norm(), name


def calls(found, x, h, douts):
    """What is timed of each rival: forward, inverse, both."""
    return {
        "forward": {n: lambda f=f: once(f[0], x, h) for n, f in found.items()},
        "inverse": {n: lambda f=f: once(f[1], x, h) for n, f in found.items()},
        "both": {n: lambda f=f: both(f[0], x, h, douts) for n, f in found.items()},
    }


def rows(x, h, douts, found, device="cpu"):
    """Check, time, and yield a row for each kind of pass."""
    want = both(
        found["eager"][0], *(v.detach().double().requires_grad_() for v in (x, h)), douts64(douts)
    )
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[x.dtype]
    for got, expected in zip(both(found["ours"][0], x, h, douts), want, strict=True):
        assert (got.double() - expected).norm() <= bound * expected.norm()
    if x.dtype == torch.float32:
        hold_libraries(found, x, h)
    y, _ = once(found["ours"][0], x, h)
    assert (once(found["ours"][1], y, h)[0] - x).norm() <= bound * x.norm()
    size = x.numel() * x.element_size()
    for kind, runs in calls(found, x, h, douts).items():
        copy = {"copy": copier(size, device)}
        seconds = compare({**runs, **copy}, rounds=9, device=device)
        floor = MOVED[kind] / 2 * seconds["copy"]
        row = {"shape": "x".join(map(str, x.shape)), "pass": kind}
        row["ms"] = f"{1000 * seconds['ours']:.2f}"
        row["of copy bandwidth"] = f"{floor / seconds['ours']:.2f}"
        for name in found:
            if name != "ours":
                row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
        yield row


def douts64(douts):
    return tuple(v.double() for v in douts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [*IMAGES, *VECTORS], ids=str)
def test_affine_coupling(report, small, shape, threads):
    torch.set_num_threads(threads)
    shape = (8, *shape[1:]) if small else shape
    for row in rows(*build(shape), rivals(shape)):
        report(threads=threads, **row)


def test_rivals_are_installed():
    absent = [name for name in ("normflows", "nflows") if not importlib.util.find_spec(name)]
    if absent:
        pytest.skip(f"without {' and '.join(absent)}: `pip install --no-deps {' '.join(absent)}`")


def workload(dtype, device, small):
    """A call of a coupling, forward and backward, for the tuner."""
    made = build(SMALL if small else GPU, dtype=getattr(torch, dtype), device=device)
    return lambda: both(kernels(affine_coupling)[0], *made)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_affine_coupling_on_a_gpu(report, small, dtype):
    shape = SMALL if small else GPU
    made = build(shape, dtype=getattr(torch, dtype), device=DEVICE)
    found = {name: f for name, f in rivals(shape).items() if name != "nflows"}
    for row in rows(*made, found, device=DEVICE):
        report(dtype=dtype, **row)
