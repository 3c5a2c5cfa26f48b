"""wavenet_layer against its rivals, forward and backward: `pytest bench/bench_wavenet_layer.py`.

The 20 layers of REF (64 residual, 128 gate, 256 skip channels, kernel 2, dilations 1 ... 512 twice)
on 4 sequences of 4,096 samples. A sample of a layer takes 2 H K R + H R + H S multiply-adds, and
twice as many again for the gradients: 85 G float32 operations in all, whose floor is the measured
peak of torch.mm. Values and gradients are checked before anything is timed.
"""

import pytest
import torch
from measure import compare, multiplier

from fastgen.kernels import wavenet_layer, wavenet_layer_ref

B, T, R, H, S, K = 4, 4096, 64, 64, 256, 2
DILATIONS = [2 ** (i % 10) for i in range(20)]
OPERATIONS = 3 * 2 * B * T * sum(2 * H * K * R + H * R + H * S for _ in DILATIONS)
SIDE = 512


def build():
    """x, and for each layer its weights, all of which take gradients."""
    torch.manual_seed(0)
    shapes = ((2 * H, R, K), (2 * H,), (R, H), (R,), (S, H), (S,))
    layers = [[torch.randn(shape) / 8 for shape in shapes] for _ in DILATIONS]
    x = torch.randn(B, R, T)
    for v in (x, *(v for layer in layers for v in layer)):
        v.requires_grad_()
    return x, layers


def stack(layer, x, layers):
    skip = x.new_zeros(B, S, T)
    for weights, dilation in zip(layers, DILATIONS, strict=True):
        x, skip = layer(x, skip, *weights, dilation=dilation)
    return x, skip


def step(network, x, layers, douts):
    """A forward and backward pass; returns what it computed, gradients last."""
    inputs = [x, *(v for layer in layers for v in layer)]
    outputs = network(x, layers)
    return [*outputs, *torch.autograd.grad(outputs, inputs, douts)]


@pytest.mark.parametrize("threads", [1, 2])
def test_wavenet_layer(benchmark, report, threads):
    torch.set_num_threads(threads)
    x, layers = build()
    douts = [torch.randn(B, R, T), torch.randn(B, S, T)]
    networks = {
        "ours": lambda x, layers: stack(wavenet_layer, x, layers),
        "eager": lambda x, layers: stack(wavenet_layer_ref, x, layers),
    }
    networks["torch.compile"] = torch.compile(networks["eager"], fullgraph=True)
    want = step(networks["eager"], x, layers, douts)
    for network in networks.values():
        for got, expected in zip(step(network, x, layers, douts), want, strict=True):
            assert (got - expected).norm() <= 1e-5 * expected.norm()
    runs = {name: lambda f=f: step(f, x, layers, douts) for name, f in networks.items()}
    seconds = compare({**runs, "mm": multiplier(SIDE)}, rounds=5)
    speed = OPERATIONS / seconds["ours"]
    row = {"threads": threads, "ms": f"{1000 * seconds['ours']:.0f}", "GF/s": f"{speed / 1e9:.0f}"}
    row["of mm peak"] = f"{speed / (2 * SIDE**3 / seconds['mm']):.2f}"
    for name in ("eager", "torch.compile"):
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=3)
