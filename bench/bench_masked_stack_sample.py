"""masked_stack_sample against its floor and rivals: `pytest bench/bench_masked_stack_sample.py`.

A PixelCNN of 28 x 28 pixels of 256 levels: a first kernel of 7, 8 residual blocks of 128 channels
with kernels of 3 between, a head of 128 channels. The floor is the arithmetic of the live taps at
the peak that torch.mm reaches, on one thread.

Rivals: naively a forward pass for each pixel, and Jacobi iteration, whose passes are counted; it
needs a whole image in float32 to agree with the cached sampler but at steps of the CDF. That equal
uniforms give equal images is checked in float64 before all timing.
"""

import pytest
import torch
from measure import compare, multiplier

import fastgen
from fastgen import kernels
from fastgen.tractable.raster import raster_uniforms, sample_jacobi

SIDE = 28


def build():
    torch.manual_seed(0)
    model = fastgen.PixelCNN()
    with torch.no_grad():
        model.out.weight *= 16  # away from uniform, so that equal levels mean something
    return model.requires_grad_(False)


@pytest.mark.parametrize("n", [1, 16])
def test_masked_stack_sample(benchmark, report, n):
    torch.set_num_threads(1)
    model = build()
    few = {"seed": 0, "size": (4, 6), "dtype": "float64"}
    want = model.sample(n, method="naive", **few)
    for method in ("cached", "jacobi"):
        assert torch.equal(model.sample(n, method=method, **few), want)
    packed = kernels.pack_stack(model.weights())
    uniforms = raster_uniforms(1, n, 1, SIDE, SIDE)
    image = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.int64)

    def ours():
        return kernels.masked_stack_sample(packed, uniforms)

    seconds = compare(
        {
            "ours": ours,
            "mm": multiplier(),
            "naive": torch.inference_mode()(lambda: model(image)),  # for one pixel
        }
    )
    products = n * SIDE**2 * packed.words.numel()
    row = {"images": n, "threads": 1, "seconds": f"{seconds['ours']:.4f}"}
    row["of mm peak"] = f"{products * seconds['mm'] / 384**3 / seconds['ours']:.2f}"
    row["x naive"] = f"{seconds['naive'] * SIDE**2 / seconds['ours']:,.0f}"
    if n == 1:
        one = torch.ones((), dtype=torch.float64)
        inputs = (model, uniforms, image - 1, one, None, None, "float32")
        jacobi = compare({"jacobi": lambda: sample_jacobi(*inputs)}, rounds=1)["jacobi"]
        row["x Jacobi"] = f"{jacobi / seconds['ours']:,.0f}"
        row["Jacobi's passes"] = sample_jacobi(*inputs)[1]
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(ours, rounds=5)
