"""MaskedConv2d against its rivals: `pytest bench/bench_masked_conv2d.py`.

16 images of 32 x 32, 64 to 64 channels, type B, both memory formats, one thread. Rivals are conv2d
of the masked weight, that under torch.compile, the crop (the rows through the centre's, the image
padded above and beside) and the split (rows above, and the centre's row, apart). Values and
gradients are checked before anything is timed.
"""

import pytest
import torch
import torch.nn.functional as F
from measure import compare

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


@pytest.mark.parametrize("format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_masked_conv2d(benchmark, report, k, format, backward):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout = getattr(torch, f"{format}_format" if format == "contiguous" else format)
    layer = MaskedConv2d(C, C, k, mask="B").to(memory_format=layout)
    x = torch.randn(B, C, H, W).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn(B, C, H, W).contiguous(memory_format=layout)
    mask = live_mask(layer.weight, "B").to(x)
    inputs = (x, layer.weight, layer.bias)
    networks = {"ours": lambda *v: layer(v[0])}
    for rival in (masked, crop, split):
        networks[rival.__name__] = lambda *v, f=rival: f(*v, mask)
    torch._dynamo.reset()
    networks["torch.compile"] = torch.compile(networks["masked"], fullgraph=True, dynamic=False)

    def step(network):
        with torch.set_grad_enabled(backward):
            y = network(*inputs)
        return [y, *torch.autograd.grad(y, inputs, dy)] if backward else [y]

    want = step(networks["masked"])
    for network in networks.values():
        for got, expected in zip(step(network), want, strict=True):
            assert (got - expected).norm() <= 1e-5 * expected.norm()
    runs = {name: lambda f=f: step(f) for name, f in networks.items()}
    seconds = compare(runs, rounds=15)
    row = {"k": k, "format": format, "pass": "both" if backward else "forward"}
    row["ms"] = f"{1000 * seconds['ours']:.1f}"
    for name in list(networks)[1:]:
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=3)
