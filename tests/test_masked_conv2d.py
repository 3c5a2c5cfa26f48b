"""PixelCNN's masked convolution against the full one with zeros, and what it may not see."""

import cases
import pytest
import torch
import torch.nn.functional as F
from check import close, compare
from torch.autograd import gradcheck, gradgradcheck

from fastgen.kernels import masked_conv2d, masked_conv2d_ref

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def case(**sizes):
    """The function and the reference with their options, and the inputs."""
    *inputs, options = cases.masked_conv2d(**sizes)
    return (
        lambda *v: masked_conv2d(*v, **options),
        lambda *v: masked_conv2d_ref(*v, **options),
        inputs,
    )


@pytest.mark.parametrize("name", cases.MASKED_CONV2D)
def test_values_and_gradients(name):
    for dtype in DTYPES:
        op, ref, inputs = case(**cases.MASKED_CONV2D[name], dtype=dtype)
        compare(op, ref, inputs, str(dtype))
        compare(op, ref, inputs, f"{dtype}, strided", strided=True)


@pytest.mark.parametrize("name", ["plain", "colors", "no row above", "groups"])
def test_gradients_of_gradients(name):
    op, _, inputs = case(**cases.MASKED_CONV2D[name], dtype=torch.float64)
    inputs = [v.requires_grad_() for v in inputs]
    assert gradcheck(op, inputs, fast_mode=True)
    assert gradgradcheck(op, inputs, fast_mode=True)


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("mask", ["A", "B"])
def test_what_a_pixel_sees(mask, colors):
    C, O, H, W = 3, 6, 4, 5
    weight = torch.rand(O, C, 7, 9, dtype=torch.float64) + 0.1
    x = torch.rand(C, H, W, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(
        lambda x: masked_conv2d(x, weight, mask=mask, colors=colors), x
    )
    place = torch.arange(H * W).view(H, W)
    now, then = place[:, :, None, None, None], place
    o, c = torch.arange(O) * colors // O, torch.arange(C) * colors // C
    o, c = o[:, None, None, None, None, None], c[:, None, None]
    past = (then < now) | ((then == now) & ((c < o) if mask == "A" else (c <= o)))
    assert torch.equal(seen != 0, past.expand_as(seen))


@pytest.mark.parametrize("name", ["plain", "colors", "first layer", "no live tap", "vertical"])
def test_what_is_shut_out_has_no_influence(name):
    *inputs, options = cases.masked_conv2d(**cases.MASKED_CONV2D[name], dtype=torch.float64)
    x, weight, bias = inputs
    ones = torch.ones_like(weight, requires_grad=True)
    masked_conv2d_ref(torch.rand_like(x) + 0.1, ones, **options).sum().backward()
    live = ones.grad != 0
    spoiled = weight.masked_fill(~live, float("nan")).requires_grad_()
    y = masked_conv2d(x, spoiled, bias, **options)
    close(y.detach(), masked_conv2d_ref(*inputs, **options), torch.float64, name)
    y.square().sum().backward()
    assert spoiled.grad.isfinite().all()
    assert not spoiled.grad[~live].any()


def test_memory_formats_are_those_of_conv2d():
    last = {"memory_format": torch.channels_last}
    x, weight = torch.rand(2, 4, 5, 6), torch.rand(8, 4, 3, 3)
    for a in (x, x.contiguous(**last)):
        for b in (weight, weight.contiguous(**last)):
            got = masked_conv2d(a, b, mask="A")
            want = F.conv2d(a, b, padding=1)
            assert got.is_contiguous(**last) == want.is_contiguous(**last)


def test_autocast():
    *inputs, options = cases.masked_conv2d(C=3, O=6, colors=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = masked_conv2d(*inputs, **options)
        inputs[0] = inputs[0].bfloat16()
        assert torch.equal(masked_conv2d(*inputs, **options), y)
    assert y.dtype == torch.bfloat16


def test_an_image_without_a_batch():
    x, weight, bias, options = cases.masked_conv2d()
    y = masked_conv2d(x[0], weight, bias, **options)
    assert torch.allclose(y, masked_conv2d(x, weight, bias, **options)[0], atol=1e-6)


def test_compiled():
    *inputs, options = cases.masked_conv2d(C=3, O=6, colors=3, mask="A")
    compiled = torch.compile(masked_conv2d, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*inputs, **options), masked_conv2d(*inputs, **options))


WRONG = {
    "mask: expected one of": {"mask": "C"},
    "x: expected (B, C, H, W)": {"x": torch.ones(3, 3)},
    "weight: expected (O, C / groups, kh, kw)": {"weight": torch.ones(6, 4, 3)},
    "odd heights and widths, got 2 x 3": {"weight": torch.ones(6, 4, 2, 3)},
    "weight has 3 input channels, x has 4": {"weight": torch.ones(6, 3, 3, 3)},
    "groups: expected a divisor of 6, got 4": {"groups": 4},
    "groups: expected a divisor of 6, got 0": {"groups": 0},
    "dilation: expected >= 1, got (0, 1)": {"dilation": (0, 1)},
    "colors: expected a divisor of 4 and 6, got 3": {"colors": 3},
    'colors: expected 1, for mask "vertical A"': {"mask": "vertical A", "colors": 2},
    "x: expected a pixel at least, got (2, 4, 0, 3)": {"x": torch.ones(2, 4, 0, 3)},
    "bias: expected (6,), got (5,)": {"bias": torch.ones(5)},
    "weight: expected cpu, got meta": {"weight": torch.ones(6, 4, 3, 3, device="meta")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    x, weight, bias, options = cases.masked_conv2d()
    arguments = {"x": x, "weight": weight, "bias": bias, **options, **WRONG[message]}
    with pytest.raises(ValueError, match=r"masked_conv2d: ") as error:
        masked_conv2d(**arguments)
    assert message in str(error.value)


def test_mixed_dtypes():
    x, weight, bias, options = cases.masked_conv2d()
    message = r"masked_conv2d: weight: expected torch.float64, got torch.float32"
    with pytest.raises(TypeError, match=message):
        masked_conv2d(x.double(), weight, bias, **options)
