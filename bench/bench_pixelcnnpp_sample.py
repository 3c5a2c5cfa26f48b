"""A PixelCNN++ by masked_stack_sample: `pytest bench/bench_pixelcnnpp_sample.py`.

32 x 32 pixels of 3 colors of 256 levels, 3 stages of 2 resnets of 64 channels, 10 logistics. The
floor is the arithmetic of the layers, each in its own resolution, at the peak that torch.mm reaches
on one thread; the probabilities of the levels come on top.

Rivals: naively a forward pass for each number, and Jacobi iteration on the upper rows, whose passes
are counted: few, as random weights pass on little. That equal uniforms give equal images is checked
in float64 before all timing.
"""

import pytest
import torch
from measure import compare, multiplier

import fastgen
from fastgen import kernels
from fastgen.tractable.raster import raster_uniforms, sample_jacobi

SIDE, COLORS = 32, 3


def build():
    torch.manual_seed(0)
    model = fastgen.PixelCNNpp(2, 64, 3, 10, 0.0)
    with torch.no_grad():
        model.out.weight *= 4  # away from uniform, so that equal levels mean something
    return model.requires_grad_(False)


def products_of(packed):
    """Multiply-adds of an image, of layers of a pixel for each scale x scale of the image's."""
    found = 0
    for y, shape in zip(packed.layers, packed.shapes[1:], strict=True):
        weights = sum(f.weight.numel() // (4 if f.scale == "up" else 1) for f in y.convs)
        found += weights * (SIDE // shape.scale) ** 2
    return found


@pytest.mark.parametrize("n", [1, 16])
def test_pixelcnnpp_sample(benchmark, report, n):
    torch.set_num_threads(1)
    model = build()
    few = {"seed": 0, "size": (3, 5), "dtype": "float64"}
    want = model.sample(2, method="naive", **few)
    for method in ("cached", "jacobi"):
        assert torch.equal(model.sample(2, method=method, **few), want)
    packed = kernels.pack_stack(model.weights(), COLORS, levels=256)
    uniforms = raster_uniforms(1, n, COLORS, SIDE, SIDE)
    image = torch.zeros(n, COLORS, SIDE, SIDE, dtype=torch.int64)

    def ours():
        return kernels.masked_stack_sample(packed, uniforms)

    runs = {
        "ours": ours,
        "mm": multiplier(),
        "naive": torch.inference_mode()(lambda: model(image)),  # for one number
        "packing": lambda: kernels.pack_stack(model.weights(), COLORS, levels=256),
    }
    seconds = compare(runs, rounds=3)
    row = {"images": n, "threads": 1, "seconds": f"{seconds['ours']:.3f}"}
    floor = n * products_of(packed) * seconds["mm"] / 384**3
    row["of mm peak"] = f"{floor / seconds['ours']:.2f}"
    row["packing"] = f"{seconds['packing']:.3f}"
    row["x naive"] = f"{seconds['naive'] * COLORS * SIDE**2 / seconds['ours']:,.0f}"
    if n == 1:
        one = torch.ones((), dtype=torch.float64)
        few = (slice(None), slice(None), slice(4))  # rows: all of them take minutes
        inputs = (model, uniforms[few], image[few] - 1, one, None, None, "float32")
        jacobi = compare({"jacobi": lambda: sample_jacobi(*inputs)}, rounds=1)["jacobi"]
        part = compare({"ours": lambda: kernels.masked_stack_sample(packed, uniforms[few])})
        row["x Jacobi, 4 rows"] = f"{jacobi / part['ours']:,.0f}"
        row["Jacobi's passes"] = sample_jacobi(*inputs)[1]
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(ours, rounds=3)
