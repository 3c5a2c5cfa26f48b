"""The layers as stand-ins for torch's: state, initialisation, copies, compilation, dtypes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fastgen.kernels import masked_conv2d_ref
from fastgen.nn import CausalConv1d, MaskedConv2d, MaskedLinear, degree_mask

MASK = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
LAYERS = {  # ours, torch's, an input
    "MaskedConv2d": (
        lambda **kw: MaskedConv2d(4, 6, 3, mask="B", **kw),
        lambda **kw: nn.Conv2d(4, 6, 3, padding=1, **kw),
        (2, 4, 5, 6),
    ),
    "CausalConv1d": (
        lambda **kw: CausalConv1d(4, 6, 3, dilation=2, **kw),
        lambda **kw: nn.Conv1d(4, 6, 3, dilation=2, **kw),
        (2, 4, 9),
    ),
    "MaskedLinear": (
        lambda **kw: MaskedLinear(4, 5, mask=MASK, **kw),
        lambda **kw: nn.Linear(4, 5, **kw),
        (2, 3, 4),
    ),
}
layers = pytest.mark.parametrize("name", LAYERS)


def layer(name, **options):
    """One of ours, torch's, and an input, from the same seed."""
    ours, theirs, shape = LAYERS[name]
    torch.manual_seed(0)
    first = ours(**options)
    torch.manual_seed(0)
    return first, theirs(**options), torch.randn(shape, dtype=options.get("dtype"))


@layers
def test_parameters_are_those_of_torch(name):
    ours, theirs, _ = layer(name)
    assert isinstance(ours, type(theirs))
    state, other = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(other)
    for key in state:
        assert torch.equal(state[key], other[key])
    ours.load_state_dict(other)
    assert list(layer(name, bias=False)[0].state_dict()) == ["weight"]


@layers
def test_copies(name):
    ours, _, x = layer(name)
    want, buffer = ours(x), io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    pickled = pickle.loads(pickle.dumps(ours))  # noqa: S301
    for other in (copy.deepcopy(ours), pickled, loaded):
        assert torch.equal(other(x), want)


@layers
def test_compiled(name):
    ours, _, x = layer(name)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got, want = compiled(x), ours(x)
    assert torch.allclose(got, want, atol=1e-6)
    grads = [torch.autograd.grad(y.square().sum(), ours.parameters()) for y in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@layers
def test_half_precision(name):
    ours, _, x = layer(name)
    want = ours(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(ours(x).float(), want, atol=0.05)
    assert torch.allclose(ours.bfloat16()(x.bfloat16()).float(), want, atol=0.05)


@layers
def test_double_and_meta(name):
    ours, _, x = layer(name, dtype=torch.float64)
    assert ours(x).dtype == torch.float64
    assert ours.to("meta")(x.to("meta")).shape == layer(name)[0](x.float()).shape


def test_a_masked_conv2d_of_each_kind():
    options = {"mask": "A", "colors": 3, "dilation": 2, "groups": 3, "padding": (4, 2)}
    ours = MaskedConv2d(6, 9, (5, 3), **options)
    x = torch.randn(2, 6, 7, 8)
    del options["padding"]
    want = masked_conv2d_ref(x, ours.weight, ours.bias, **options)
    assert torch.allclose(ours(x), want, atol=1e-6)
    assert torch.allclose(ours(x[0]), want[0], atol=1e-6)
    assert "mask='A', colors=3" in repr(ours)
    last = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    assert last(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last(x), want, atol=1e-6)


def test_masked_weights_keep_their_values():
    ours, _, x = layer("MaskedConv2d")
    before = ours.weight.detach().clone()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(x).square().sum().backward()
    optimizer.step()
    moved = (ours.weight != before).flatten(2)
    assert moved[..., :5].all()
    assert not moved[..., 5:].any()


def test_a_causal_conv1d_sees_no_later_sample():
    ours, theirs, x = layer("CausalConv1d")
    y = ours(x)
    assert y.shape == (2, 6, 9)
    assert torch.allclose(y[..., 4:], theirs(x), atol=1e-6)
    seen = torch.autograd.functional.jacobian(lambda x: ours(x).sum((0, 1)), x).abs().sum((1, 2))
    assert not seen.triu(1).any()
    assert (seen.diagonal() != 0).all()


def test_a_masked_linear_multiplies_what_it_may():
    ours, theirs, x = layer("MaskedLinear")
    with torch.no_grad():
        theirs.weight.mul_(MASK)
        ours.weight[~MASK] = float("nan")
    y = ours(x)
    assert torch.allclose(y, theirs(x), atol=1e-6)
    y.square().sum().backward()
    assert torch.equal(ours.weight.grad != 0, MASK)


def test_degrees():
    hidden = degree_mask([1, 2, 3], [1, 2, 1, 2])
    out = degree_mask([1, 2, 1, 2], [1, 2, 3], strict=True)
    sees = out.int() @ hidden.int() > 0
    assert torch.equal(sees, torch.ones(3, 3).tril(-1).bool())


WRONG = {
    "MaskedConv2d: mask: expected one of": lambda: MaskedConv2d(1, 1, 3, mask="C"),
    "colors: expected a divisor of 4 and 6, got 3": lambda: MaskedConv2d(
        4, 6, 3, mask="A", colors=3
    ),
    "colors: expected 1 for mask": lambda: MaskedConv2d(2, 2, 3, mask="vertical A", colors=2),
    "kernel_size: expected odd, got (3, 2)": lambda: MaskedConv2d(1, 1, (3, 2), mask="A"),
    "got (2, 2) and 'zeros'": lambda: MaskedConv2d(1, 1, 3, 2, 1, mask="A"),
    "got (1, 1) and 'circular'": lambda: MaskedConv2d(1, 1, 3, padding_mode="circular", mask="A"),
    'padding: expected "same" or (1, 1), got 2': lambda: MaskedConv2d(1, 1, 3, 1, 2, mask="A"),
    "CausalConv1d: expected a stride of 1": lambda: CausalConv1d(1, 1, 3, stride=2),
    "CausalConv1d: padding: expected 0": lambda: CausalConv1d(1, 1, 3, padding=2),
    "MaskedLinear: mask: expected (2, 3), got (3, 2)": lambda: MaskedLinear(
        3, 2, mask=torch.ones(3, 2)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    with pytest.raises(ValueError, match=r"expected") as error:
        WRONG[message]()
    assert message in str(error.value)
