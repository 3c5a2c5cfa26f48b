"""pixelcnn_layer against its rivals: `pytest bench/bench_pixelcnn_layer.py`.

16 images of 32 x 32, 64 channels, both memory formats, one thread. A pixel takes 2P (V k (r + 1) +
C (r + 1)) + (2P)^2 + P O multiply-adds, r being k // 2, and twice as many again for the gradients;
their floor is the measured peak of torch.mm. The eager rival crops its kernels and pads above and
to the left alone, as measured best. Values and gradients are checked before anything is timed.
"""

import pytest
import torch
import torch.nn.functional as F
from measure import compare, multiplier

from fastgen.kernels import pixelcnn_layer

B, P, H, W = 16, 64, 32, 32
SIDE = 512


def gate(a):
    f, g = a.chunk(2, dim=1)
    return torch.tanh(f) * torch.sigmoid(g)


def eager(v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, res_bias):
    r = h_weight.shape[3] - 1
    a_v = F.conv2d(F.pad(v, (0, 0, r, 0)), v_weight, v_bias, padding=(0, r))
    a_h = F.conv2d(F.pad(h, (r, 0)), h_weight, h_bias)
    a_h = a_h + F.conv2d(a_v, link_weight[..., None, None])
    return gate(a_v), F.conv2d(gate(a_h), res_weight[..., None, None], res_bias) + h


def ours(*inputs):
    return pixelcnn_layer(*inputs, mask="B")


@pytest.mark.parametrize("format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_pixelcnn_layer(benchmark, report, k, format, backward):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout = getattr(torch, f"{format}_format" if format == "contiguous" else format)
    shapes = [(B, P, H, W), (B, P, H, W), (2 * P, P, k // 2 + 1, k), (2 * P,)]
    shapes += [(2 * P, P, 1, k // 2 + 1), (2 * P,), (2 * P, 2 * P), (P, P), (P,)]
    inputs = [torch.randn(s) / (8 if len(s) != 4 or s[0] != B else 1) for s in shapes]
    inputs = [v.contiguous(memory_format=layout) if v.ndim == 4 else v for v in inputs]
    inputs = [v.requires_grad_() for v in inputs]
    dys = [torch.randn(shapes[0]).contiguous(memory_format=layout) for _ in range(2)]
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    networks = {"ours": ours, "eager": eager, "torch.compile": compiled}

    def step(network):
        with torch.set_grad_enabled(backward):
            outputs = network(*inputs)
        return [*outputs, *torch.autograd.grad(outputs, inputs, dys)] if backward else outputs

    want = step(eager)
    for network in networks.values():
        for got, expected in zip(step(network), want, strict=True):
            assert (got - expected).norm() <= 1e-5 * expected.norm()
    runs = {name: lambda f=f: step(f) for name, f in networks.items()}
    seconds = compare({**runs, "mm": multiplier(SIDE)}, rounds=15)
    r = k // 2
    products = 2 * P * (P * k * (r + 1) + P * (r + 1)) + (2 * P) ** 2 + P * P
    speed = (3 if backward else 1) * 2 * B * H * W * products / seconds["ours"]
    row = {"k": k, "format": format, "pass": "both" if backward else "forward"}
    row |= {"ms": f"{1000 * seconds['ours']:.1f}", "GF/s": f"{speed / 1e9:.0f}"}
    row["of mm peak"] = f"{speed / (2 * SIDE**3 / seconds['mm']):.2f}"
    for name in ("eager", "torch.compile"):
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=3)
