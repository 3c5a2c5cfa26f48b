"""The gated PixelCNN layer against its reference, and what its stacks may not see."""

import cases
import pytest
import torch
from check import check, close, compare
from torch.autograd import gradcheck, gradgradcheck

from fastgen import kernels
from fastgen.kernels import pixelcnn_layer, pixelcnn_layer_ref
from fastgen.kernels.pixelcnn_layer import live


def case(**sizes):
    """The op and the reference with their options, and the inputs."""
    *inputs, options = cases.pixelcnn_layer(**sizes)
    return (
        lambda *v: pixelcnn_layer(*v, **options),
        lambda *v: pixelcnn_layer_ref(*v, **options),
        inputs,
    )


@pytest.mark.parametrize("name", cases.PIXELCNN_LAYER)
def test_values_and_gradients(name):
    check(*case(**cases.PIXELCNN_LAYER[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    compare(*case(C=8, P=8, H=9, W=17, cond=True, dtype=dtype), str(dtype))


@pytest.mark.parametrize("name", ["plain", "first", "first of colors", "channels last"])
def test_gradients_of_gradients(name):
    op, _, inputs = case(**cases.PIXELCNN_LAYER[name], dtype=torch.float64)
    leaves = [v if v is None else v.requires_grad_() for v in inputs]
    assert gradcheck(op, leaves, fast_mode=True)
    assert gradgradcheck(op, leaves, fast_mode=True)


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    *inputs, _ = cases.pixelcnn_layer(cond=True, dtype=torch.float64)
    inputs = [*live(inputs, "B", 1)]
    if last:
        inputs[:2] = (v.permute(0, 2, 3, 1) for v in inputs[:2])
    inputs = [v.detach().contiguous().requires_grad_() for v in inputs]
    torch.library.opcheck(torch.ops.fastgen.pixelcnn_layer.default, (*inputs, 3, True, True, last))


@pytest.mark.parametrize("formats", [(True, True), (True, False), (False, True)])
def test_memory_formats(formats):
    *inputs, options = cases.pixelcnn_layer(C=17, P=16, H=4, W=9)
    want = pixelcnn_layer(*inputs, **options)
    layouts = [torch.channels_last if last else torch.contiguous_format for last in formats]
    for i, layout in enumerate(layouts):
        inputs[i] = inputs[i].contiguous(memory_format=layout)
    for y, expected in zip(pixelcnn_layer(*inputs, **options), want, strict=True):
        assert y.is_contiguous(memory_format=layouts[0])
        assert torch.equal(y, expected), "the bits depend on the memory format"


def test_one_output_alone():
    op, ref, inputs = case(cond=True, dtype=torch.float64)
    leaves = [v.requires_grad_() for v in inputs]
    for i in (0, 1):
        got, want = (
            torch.autograd.grad(fn(*leaves)[i].sum(), leaves, allow_unused=True) for fn in (op, ref)
        )
        for a, b in zip(got, want, strict=True):
            a, b = (torch.zeros(1) if g is None else g for g in (a, b))
            assert torch.allclose(a.double(), b.double(), atol=1e-12)


@pytest.mark.parametrize("colors", [1, 3])
def test_what_two_layers_see(colors):
    C, P, H, W = 3, 6, 4, 5
    first = cases.pixelcnn_layer(C=C, P=P, O=P, k=7, dtype=torch.float64)[2:-1]
    second = cases.pixelcnn_layer(C=P, P=P, k=7, dtype=torch.float64)[2:-1]

    def network(x):
        options = {"mask": "A", "residual": False, "colors": colors}
        v, h = pixelcnn_layer(x[None], x[None], *first, **options)
        return pixelcnn_layer(v, h, *second, mask="B", colors=colors)[1][0]

    x = torch.randn(C, H, W, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(network, x) != 0
    place = torch.arange(H * W).view(H, W)
    now, then = place[:, :, None, None, None], place
    o, c = torch.arange(P) * colors // P, torch.arange(C) * colors // C
    o, c = o[:, None, None, None, None, None], c[:, None, None]
    past = (then < now) | ((then == now) & (c < o))
    # no blind spot: all of the past that is as near as the taps of two layers
    assert torch.equal(seen, past.expand_as(seen))


@pytest.mark.parametrize("name", ["plain", "first", "colors", "first of colors"])
def test_what_is_shut_out_has_no_influence(name):
    *inputs, options = cases.pixelcnn_layer(**cases.PIXELCNN_LAYER[name], dtype=torch.float64)
    want = pixelcnn_layer_ref(*inputs, **options)
    leaves = [v if v is None else v.clone().requires_grad_() for v in inputs]
    loss = sum(y.square().sum() for y in pixelcnn_layer(*leaves, **options))
    loss.backward()
    for i in (2, 4, 7):
        spoiled = inputs[i].masked_fill(leaves[i].grad == 0, float("nan"))
        outputs = pixelcnn_layer(*inputs[:i], spoiled, *inputs[i + 1 :], **options)
        for a, b in zip(outputs, want, strict=True):
            close(a, b, torch.float64, name)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("used", [0, 1])
def test_no_gradient_of_what_an_unused_output_is_made_of(used, twice):
    *inputs, options = cases.pixelcnn_layer(C=6, colors=3, cond=True, dtype=torch.float64)
    found = []
    for layer in (pixelcnn_layer, pixelcnn_layer_ref):
        leaves = [v.clone().requires_grad_() for v in inputs]
        loss = layer(*leaves, **options)[used].square().sum()
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True, create_graph=twice))
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            close(got, want, torch.float64, "of one output")


def test_autocast():
    *inputs, options = cases.pixelcnn_layer(C=8, P=8, cond=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = pixelcnn_layer(*inputs, **options)
    halves = [v.bfloat16() for v in inputs]
    for a, b in zip(outputs, pixelcnn_layer(*halves, **options), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.bfloat16


def test_compiled():
    *inputs, options = cases.pixelcnn_layer(C=6, colors=3, cond=True)
    compiled = torch.compile(pixelcnn_layer, fullgraph=True, backend="aot_eager")
    pairs = zip(compiled(*inputs, **options), pixelcnn_layer(*inputs, **options), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)


def test_transforms_go_by_the_reference():
    *inputs, options = cases.pixelcnn_layer(dtype=torch.float64)
    v, *others = inputs

    def loss(v):
        return sum(y.square().sum() for y in pixelcnn_layer(v, *others, **options))

    leaf = v.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.allclose(torch.func.grad(loss)(v), want)
    assert torch.allclose(torch.func.jvp(loss, (v,), (v,))[1], (want * v).sum())


WRONG = {
    'mask: expected "A" or "B", got': {"mask": "vertical A"},
    "v: expected (B, V, H, W)": {"v": torch.ones(2, 4, 5)},
    "h: expected (2, 4, 5, 7), got (2, 4, 5, 8)": {"h": torch.ones(2, 4, 5, 8)},
    "v_weight: expected (12, 4, 2, 3), got (12, 3, 2, 3)": {"v_weight": torch.ones(12, 3, 2, 3)},
    "v_weight: expected an odd width, got 4": {"v_weight": torch.ones(12, 4, 2, 4)},
    "h_weight: expected (12, 4, 1, 2)": {"h_weight": torch.ones(12, 4, 2, 2)},
    "link_weight: expected (12, 12)": {"link_weight": torch.ones(12, 6)},
    "res_bias: expected (4,)": {"res_bias": torch.ones(3)},
    "cond_v: expected (2, 12)": {"cond_v": torch.ones(1, 12)},
    "h_bias: expected cpu, got meta": {"h_bias": torch.ones(12, device="meta")},
    "colors: expected a divisor of (4, 6, 4), got 3": {"colors": 3},
    'residual: mask "A" would see the pixel itself': {"mask": "A"},
    "residual: h has 4 channels, res_weight 3 rows": {
        "res_weight": torch.ones(3, 6),
        "res_bias": torch.ones(3),
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    *inputs, options = cases.pixelcnn_layer()
    names = kernels.pixelcnn_layer.__code__.co_varnames
    arguments = {**dict(zip(names, inputs, strict=False)), **options, **WRONG[message]}
    with pytest.raises(ValueError, match=r"pixelcnn_layer: ") as error:
        pixelcnn_layer(**arguments)
    assert message in str(error.value)


def test_mixed_dtypes():
    *inputs, options = cases.pixelcnn_layer()
    message = r"pixelcnn_layer: h: expected torch.float64, got torch.float32"
    with pytest.raises(TypeError, match=message):
        pixelcnn_layer(inputs[0].double(), *inputs[1:], **options)
