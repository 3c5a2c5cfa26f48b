"""MaskedConv2d against its rivals: `pytest bench/bench_masked_conv2d.py`.

16 images of 32 x 32, 64 to 64 channels, type B, both memory formats, one thread. Rivals are conv2d
of the masked weight, that under torch.compile, the crop (the rows through the centre's, the image
padded above and beside) and the split (rows above, and the centre's row, apart). Values and
gradients are checked before anything is timed.
"""

import pytest
import torch
import torch.nn.functional as F
from measure import DEVICE, compare

from fastgen.kernels.masked_conv2d import live_mask
from fastgen.nn import MaskedConv2d

B, C, H, W = 16, 64, 32, 32


def masked(x, weight, bias, mask):
    return F.conv2d(x, weight * mask, bias, padding=mask.shape[-1] // 2)


def crop(x, weight, bias, mask):
    r = mask.shape[-1] // 2
    return F.conv2d(F.pad(x, (r, r, r, 0)), (weight * mask)[:, :, : r + 1], bias)


def split(x, weight, bias, mask):
    r = mask.shape[-1] // 2
    above = F.conv2d(F.pad(x, (r, r, r, 0))[:, :, :-1], weight[:, :, :r], bias)
    return above + F.conv2d(F.pad(x, (r, 0)), weight[:, :, r : r + 1, : r + 1])


def networks(layer, mask):
    """The layer and its rivals, by name: functions of x, weight and bias."""
    made = {"ours": lambda *v: layer(v[0])}
    for rival in (masked, crop, split):
        made[rival.__name__] = lambda *v, f=rival: f(*v, mask)
    torch._dynamo.reset()
    made["torch.compile"] = torch.compile(made["masked"], fullgraph=True, dynamic=False)
    return made


def build(k, format, n=B, dtype="float32", device="cpu"):
    """The layer, its inputs, and a gradient of its output."""
    torch.manual_seed(0)
    to = {"memory_format": getattr(torch, format), "dtype": getattr(torch, dtype), "device": device}
    layer = MaskedConv2d(C, C, k, mask="B").to(**to)
    x, dy = (torch.randn(n, C, H, W).to(**to) for _ in range(2))
    return layer, (x.requires_grad_(), layer.weight, layer.bias), dy


def step(network, inputs, dy, backward):
    with torch.set_grad_enabled(backward):
        y = network(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)] if backward else [y]


def workload(dtype, device, small):
    """A call of one layer, forward and backward, for the tuner."""
    layer, inputs, dy = build(3, "contiguous_format", 1 if small else 64, dtype, device)
    return lambda: step(lambda *v: layer(v[0]), inputs, dy, True)


@pytest.mark.parametrize("format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_masked_conv2d(benchmark, report, k, format, backward):
    torch.set_num_threads(1)
    layer, inputs, dy = build(k, format)
    rivals = networks(layer, live_mask(layer.weight, "B").to(dy))
    want = step(rivals["masked"], inputs, dy, backward)
    for network in rivals.values():
        for got, expected in zip(step(network, inputs, dy, backward), want, strict=True):
            assert (got - expected).norm() <= 1e-5 * expected.norm()
    runs = {name: lambda f=f: step(f, inputs, dy, backward) for name, f in rivals.items()}
    seconds = compare(runs, rounds=15)
    row = {"k": k, "format": format, "pass": "both" if backward else "forward"}
    row["ms"] = f"{1000 * seconds['ours']:.1f}"
    for name in list(rivals)[1:]:
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=3)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("k", [3, 7])
def test_masked_conv2d_on_a_gpu(report, small, k, format, dtype):
    layer, inputs, dy = build(k, format, 2 if small else 256, dtype, DEVICE)
    rivals = networks(layer, live_mask(layer.weight, "B").to(dy))
    wide = [v.detach().double().requires_grad_() for v in inputs]
    mask = live_mask(layer.weight, "B").to(wide[0])
    want = step(lambda *v: masked(*v, mask), wide, dy.double(), True)
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for network in rivals.values():
        for got, expected in zip(step(network, inputs, dy, True), want, strict=True):
            assert (got - expected).norm() <= bound * expected.norm()
    runs = {name: lambda f=f: step(f, inputs, dy, True) for name, f in rivals.items()}
    seconds = compare(runs, device=DEVICE)
    row = {"dtype": dtype, "k": k, "format": format, "ms": f"{1000 * seconds['ours']:.3f}"}
    report(**row, **{f"x {n}": f"{seconds[n] / seconds['ours']:.2f}" for n in list(rivals)[1:]})
