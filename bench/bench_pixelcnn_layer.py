"""pixelcnn_layer against its rivals: `pytest bench/bench_pixelcnn_layer.py`.

16 images of 32 x 32, 64 channels, both memory formats, one thread. A pixel takes 2P (V k (r + 1) +
C (r + 1)) + (2P)^2 + P O multiply-adds, r being k // 2, and twice as many again for the gradients;
their floor is the measured peak of torch.mm. The eager rival crops its kernels and pads above and
to the left alone, as measured best. Values and gradients are checked before anything is timed.

On a GPU, 256 images, in float32 and in bfloat16.
"""

import pytest
import torch
import torch.nn.functional as F
from measure import DEVICE, compare, multiplier

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


def build(k, format, n=B, dtype="float32", device="cpu"):
    """Inputs, which take gradients, and gradients of the outputs."""
    torch.manual_seed(0)
    to = {"dtype": getattr(torch, dtype), "device": device}
    images = {"memory_format": getattr(torch, format)}
    shapes = [(2 * P, P, k // 2 + 1, k), (2 * P,), (2 * P, P, 1, k // 2 + 1), (2 * P,)]
    shapes += [(2 * P, 2 * P), (P, P), (P,)]
    drawn = [torch.randn(n, P, H, W).to(**to, **images) for _ in range(4)]
    weights = [(torch.randn(s) / 8).to(**to, **(images if len(s) == 4 else {})) for s in shapes]
    return [v.requires_grad_() for v in (*drawn[:2], *weights)], drawn[2:]


def ours(*inputs):
    return pixelcnn_layer(*inputs, mask="B")


def rivals():
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    return {"ours": ours, "eager": eager, "torch.compile": compiled}


def step(network, inputs, dys, backward=True):
    """What a network computes, gradients last."""
    with torch.set_grad_enabled(backward):
        outputs = network(*inputs)
    return [*outputs, *torch.autograd.grad(outputs, inputs, dys)] if backward else outputs


def operations(k, n=B):
    """Of a forward pass."""
    r = k // 2
    products = 2 * P * (P * k * (r + 1) + P * (r + 1)) + (2 * P) ** 2 + P * P
    return 2 * n * H * W * products


def workload(dtype, device, small):
    """A call of one layer, forward and backward, for the tuner."""
    inputs, dys = build(3, "contiguous_format", 1 if small else 64, dtype, device)
    return lambda: [v.detach() for v in step(ours, inputs, dys)]


@pytest.mark.parametrize("format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_pixelcnn_layer(benchmark, report, k, format, backward):
    torch.set_num_threads(1)
    inputs, dys = build(k, format)
    networks = rivals()
    want = step(eager, inputs, dys, backward)
    for network in networks.values():
        for got, expected in zip(step(network, inputs, dys, backward), want, strict=True):
            assert (got - expected).norm() <= 1e-5 * expected.norm()
    runs = {name: lambda f=f: step(f, inputs, dys, backward) for name, f in networks.items()}
    seconds = compare({**runs, "mm": multiplier(SIDE)}, rounds=15)
    speed = (3 if backward else 1) * operations(k) / seconds["ours"]
    row = {"k": k, "format": format, "pass": "both" if backward else "forward"}
    row |= {"ms": f"{1000 * seconds['ours']:.1f}", "GF/s": f"{speed / 1e9:.0f}"}
    row["of mm peak"] = f"{speed / (2 * SIDE**3 / seconds['mm']):.2f}"
    for name in ("eager", "torch.compile"):
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=3)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("k", [3, 7])
def test_pixelcnn_layer_on_a_gpu(report, small, k, format, dtype):
    n, side = (2, 256) if small else (256, 8192)
    inputs, dys = build(k, format, n, dtype, DEVICE)
    wide = [v.detach().double().requires_grad_() for v in inputs]
    want = step(eager, wide, [v.double() for v in dys])
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    networks = rivals()
    for network in networks.values():
        for got, expected in zip(step(network, inputs, dys), want, strict=True):
            assert (got - expected).norm() <= bound * expected.norm()
    runs = {name: lambda f=f: step(f, inputs, dys) for name, f in networks.items()}
    runs["mm"] = multiplier(side, getattr(torch, dtype), DEVICE)
    seconds = compare(runs, device=DEVICE)
    speed = 3 * operations(k, n) / seconds["ours"]
    row = {"dtype": dtype, "k": k, "format": format, "ms": f"{1000 * seconds['ours']:.3f}"}
    row["TF/s"] = f"{speed / 1e12:.2f}"
    row["of mm peak"] = f"{speed / (2 * side**3 / seconds['mm']):.2f}"
    report(**row, **{f"x {n}": f"{seconds[n] / seconds['ours']:.2f}" for n in list(networks)[1:]})
