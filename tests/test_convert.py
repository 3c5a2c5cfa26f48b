"""`convert` on models as users write them: what is swapped, what is left, and the way back."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import fastgen
from fastgen.nn import CausalConv1d, MaskedConv2d


def raster(kind, kh, kw):
    """Ones before the centre, and at it for B."""
    mask = torch.ones(kh, kw)
    mask[kh // 2, kw // 2 + (kind == "B") :] = 0
    mask[kh // 2 + 1 :] = 0
    return mask


class Multiplied(nn.Conv2d):
    """A buffer, multiplied in the forward pass."""

    def __init__(self, kind, *args, **options):
        super().__init__(*args, **options)
        self.mask_type = kind
        mask = raster(kind, *self.kernel_size).expand_as(self.weight)
        self.register_buffer("mask", mask.clone())

    def forward(self, x):
        w = self.weight * self.mask
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def count(self):
        return int(self.mask.sum())


class Overwritten(Multiplied):
    """The weight, masked in place before each use."""

    def forward(self, x):
        self.weight.data *= self.mask
        return nn.Conv2d.forward(self, x)


class Rgb(nn.Conv2d):
    """Thirds of the channels are red, green and blue; the mask is a plain tensor in a list."""

    def __init__(self, kind, n_in, n_out, k):
        super().__init__(n_in, n_out, k, padding=k // 2)
        mask = raster("A", k, k).expand_as(self.weight).clone()
        for o in range(3):
            for i in range(o + (kind == "B")):
                third = slice(o * n_out // 3, (o + 1) * n_out // 3)
                mask[third, i * n_in // 3 : (i + 1) * n_in // 3, k // 2, k // 2] = 1
        self.masks = [mask]

    def forward(self, x):
        w = self.weight * self.masks[0].to(self.weight)
        return F.conv2d(x, w, self.bias, padding=self.padding)


class Stack(nn.Module):
    """A wrapper whose child is masked in place: the vertical or the horizontal stack."""

    def __init__(self, channels, mask):
        super().__init__()
        self.register_buffer("mask", mask[None, None])
        self.conv = nn.Conv2d(channels, channels, mask.shape, padding=[k // 2 for k in mask.shape])

    def forward(self, x):
        self.conv.weight.data *= self.mask
        return self.conv(x)


class Cropped(nn.Conv2d):
    """A kernel of the rows above, padded outside: nothing to gain."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 2, 0)))[..., :-1, :]


class Trimmed(nn.Conv1d):
    """Padded on both sides, and cut at the end."""

    def forward(self, x):
        return super().forward(x)[..., : -self.padding[0]]


class Module(nn.Module):
    """A wrapper with its pad as a module."""

    def __init__(self, pad, conv):
        super().__init__()
        self.pad, self.conv = pad, conv

    def forward(self, x):
        return self.conv(self.pad(x))


class Frozen(nn.Conv2d):
    """The mask is a parameter that is not trained."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        mask = raster("B", *self.kernel_size)[None, None]
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Padded(nn.Module):
    """A wrapper that pads left."""

    def __init__(self, channels, k, dilation):
        super().__init__()
        self.left = (k - 1) * dilation
        self.conv = nn.Conv1d(channels, channels, k, dilation=dilation)

    def forward(self, x):
        return self.conv(F.pad(x, (self.left, 0)))


class Blurred(Multiplied):
    """Something else than a masked convolution."""

    def forward(self, x):
        return F.relu(super().forward(x))


class Dropped(Multiplied):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Conditional(Multiplied):
    def forward(self, x, condition):
        return super().forward(x) + condition


def vertical(k, own):
    mask = torch.zeros(k, k)
    mask[: k // 2 + own] = 1
    return mask


IMAGE, SOUND = (2, 6, 7, 5), (2, 6, 11)
SWAPPED = {  # a layer, what it becomes, an input's shape
    "multiplied": (lambda: Multiplied("A", 6, 9, 5, padding=2), 'MaskedConv2d "A"', IMAGE),
    "overwritten": (lambda: Overwritten("B", 6, 6, 3, padding=1), 'MaskedConv2d "B"', IMAGE),
    "dilated": (
        lambda: Multiplied("B", 6, 6, (3, 5), padding=(2, 4), dilation=2),
        'MaskedConv2d "B"',
        IMAGE,
    ),
    "groups": (lambda: Multiplied("B", 6, 6, 3, padding=1, groups=2), 'MaskedConv2d "B"', IMAGE),
    "first of colors": (lambda: Rgb("A", 6, 9, 5), 'MaskedConv2d "A", 3 colors', IMAGE),
    "colors": (lambda: Rgb("B", 6, 9, 3), 'MaskedConv2d "B", 3 colors', IMAGE),
    "vertical": (lambda: Stack(6, vertical(3, 1)), 'MaskedConv2d "vertical B"', IMAGE),
    "vertical, first": (lambda: Stack(6, vertical(5, 0)), 'MaskedConv2d "vertical A"', IMAGE),
    "horizontal": (lambda: Stack(6, raster("B", 1, 3)), 'MaskedConv2d "B"', IMAGE),
    "old weight_norm": (
        lambda: nn.utils.weight_norm(Multiplied("B", 6, 6, 3, padding=1)),
        'MaskedConv2d "B"',
        IMAGE,
    ),
    "weight_norm": (
        lambda: nn.utils.parametrizations.weight_norm(Multiplied("B", 6, 6, 3, padding=1)),
        'MaskedConv2d "B"',
        IMAGE,
    ),
    "trimmed": (lambda: Trimmed(6, 4, 3, padding=4, dilation=2), "CausalConv1d", SOUND),
    "frozen mask": (lambda: Frozen(6, 6, 3, padding=1), 'MaskedConv2d "B"', IMAGE),
    "pad module": (
        lambda: Module(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(6, 6, 3, dilation=2)),
        "CausalConv1d",
        SOUND,
    ),
    "padded": (lambda: Padded(6, 2, 4), "CausalConv1d", SOUND),
    "bfloat16": (
        lambda: Multiplied("A", 6, 9, 5, padding=2).bfloat16(),
        'MaskedConv2d "A"',
        IMAGE,
    ),
}


class Optional(Multiplied):
    def forward(self, x, condition=0):
        return super().forward(x) + condition


class Short(nn.Conv2d):
    """The pixels to the left, and the pixel."""

    def forward(self, x):
        return super().forward(x)[..., : x.shape[3]]


def zeroed(layer):
    """Frozen, and all zero."""
    for p in layer.requires_grad_(False).parameters():
        p.zero_()
    return layer


LEFT = {
    "plain": (lambda: nn.Conv2d(6, 6, 3), "a plain convolution"),
    "cropped": (lambda: Cropped(6, 6, (2, 3)), 'cropped to what mask "vertical A"'),
    "rows above": (
        lambda: Module(nn.ZeroPad2d((1, 1, 1, 0)), nn.Conv2d(6, 6, (2, 3))),
        'cropped to what mask "vertical B"',
    ),
    "columns to the left": (
        lambda: Short(6, 6, (1, 2), padding=(0, 1)),
        'cropped to what mask "B"',
    ),
    "perhaps more arguments": (lambda: Optional("A", 6, 6, 3, padding=1), "its forward takes more"),
    "something else, of zeros": (
        lambda: zeroed(Blurred("A", 6, 6, 3, padding=1)),
        "no masked or causal",
    ),
    "something else": (lambda: Blurred("A", 6, 6, 3, padding=1), "no masked or causal"),
    "random": (lambda: Dropped("A", 6, 6, 3, padding=1), "no masked or causal"),
    "more arguments": (lambda: Conditional("A", 6, 6, 3, padding=1), "its forward takes more"),
    "strided": (lambda: Multiplied("A", 6, 6, 3, stride=2, padding=1), "strided"),
    "not padded": (lambda: Multiplied("A", 6, 6, 3), "no masked or causal"),
    "symmetric": (lambda: nn.Sequential(nn.Conv1d(6, 6, 3, padding=1)), "a plain convolution"),
}
swapped = pytest.mark.parametrize("name", SWAPPED)


def build(name):
    torch.manual_seed(0)
    make, what, shape = SWAPPED[name]
    model = nn.Sequential(make())
    return model, what, torch.randn(shape, dtype=next(model.parameters()).dtype)


def step(model, x):
    """The output, and the gradient of x and of what stays alive of the parameters."""
    x = x.detach().requires_grad_()
    y = model(x)
    generator = torch.Generator().manual_seed(1)
    (dx,) = torch.autograd.grad((y * torch.randn(y.shape, generator=generator).to(y)).sum(), x)
    return y.detach(), dx


@swapped
def test_swapped_and_back(name):
    model, what, x = build(name)
    model(x)
    want, state = step(model, x), copy.deepcopy(model.state_dict())
    parameters, rng, cls = list(model.parameters()), torch.get_rng_state(), type(model[0])
    report = fastgen.convert(model)
    assert report.swapped["0"].startswith(what)
    assert torch.equal(torch.get_rng_state(), rng)
    assert any(isinstance(m, (MaskedConv2d, CausalConv1d)) for m in model.modules())
    own = cls.__mro__[parametrize.is_parametrized(model[0])]  # torch makes a class for these
    assert isinstance(model[0], own)
    for got in (step(model, x), step(model.eval(), x)):
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, atol=1e-5 if a.dtype == torch.float32 else 0.1)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert not fastgen.convert(model).swapped
    report.undo()
    assert type(model[0]) is cls or own is not cls
    assert type(model[0]).__mro__[1:] == cls.__mro__[1:]
    for a, b in zip(step(model, x), want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LEFT)
def test_left(name):
    make, why = LEFT[name]
    model = make()
    classes = [type(m) for m in model.modules()]
    report = fastgen.convert(model)
    assert not report.swapped
    assert any(reason.startswith(why) for reason in report.left.values()), report
    assert [type(m) for m in model.modules()] == classes


def network():
    torch.manual_seed(0)
    shared = Overwritten("B", 8, 8, 3, padding=1)
    layers = [Multiplied("A", 1, 8, 7, padding=3), nn.ReLU(), shared, nn.ReLU(), shared]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1))


def test_training_goes_the_same_way():
    losses = []
    for converted in (False, True):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        if converted:
            report = fastgen.convert(model)
            assert list(report.swapped) == ["0", "2"]
            assert "its masked weights had gradients" in report.swapped["2"]
            assert list(report.left) == ["5"]
        generator = torch.Generator().manual_seed(0)
        losses.append([])
        for _ in range(5):
            loss = model(torch.randn(3, 1, 8, 8, generator=generator)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_hooks_stay():
    model, calls = network(), []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    fastgen.convert(model)
    assert not calls
    model(torch.randn(1, 1, 8, 8).requires_grad_()).sum().backward()
    assert calls == ["forward", "backward"]


def test_methods_and_attributes_stay():
    model = network()
    fastgen.convert(model)
    assert model[0].count() == 8 * 24
    assert model[0].mask.shape == (8, 1, 7, 7)
    assert "mask='A'" in repr(model)


def test_what_happens_between_stays_when_undone():
    model = network()
    report = fastgen.convert(model)
    model.double()
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    weight = model[0].weight.detach().clone()
    report.undo()
    assert torch.equal(model[0].weight, weight)
    assert model[0].mask.dtype == torch.float64
    assert model(torch.randn(1, 1, 8, 8).double()).dtype == torch.float64


def test_copies_of_a_converted_model():
    model, x = network(), torch.randn(1, 1, 8, 8)
    fastgen.convert(model)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(other(x), want)
        assert isinstance(other[0], MaskedConv2d)
        fastgen.restore(other)
        assert type(other[0]) is Multiplied
        assert torch.allclose(other(x), want, atol=1e-6)


def test_a_model_that_is_compiled_after():
    model, x = network(), torch.randn(1, 1, 8, 8)
    want = model(x)
    fastgen.convert(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), want, atol=1e-5)


def test_a_compiled_model_is_left():
    model = torch.compile(network(), backend="eager")
    report = fastgen.convert(model)
    assert not report.swapped
    assert set(report.left.values()) == {"compiled: convert the model first"}


def test_a_compiled_part_is_left_and_no_other():
    model = nn.ModuleDict({"net": torch.compile(network(), backend="eager"), "net2": network()})
    report = fastgen.convert(model)
    assert list(report.swapped) == ["net2.0", "net2.2"]
    assert set(report.left.values()) == {"compiled: convert the model first", "a plain convolution"}
    model = network()
    model[2].compile(backend="eager")
    assert list(fastgen.convert(model).swapped) == ["0"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_converts_where_there_are_no_gradients(mode):
    model = network()
    with mode():
        assert len(fastgen.convert(model).swapped) == 2


def test_converts_under_autocast_and_what_is_frozen():
    model, x = network().requires_grad_(False), torch.randn(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        assert len(fastgen.convert(model).swapped) == 2
        got = model(x)
    assert got.dtype == want.dtype
    assert torch.allclose(got.float(), want.float(), atol=0.05)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_convolution_that_two_modules_have_is_left():
    first, second = Stack(6, vertical(3, 1)), Stack(6, raster("B", 3, 3))
    second.conv = first.conv
    model, x = nn.Sequential(first, second), torch.randn(IMAGE)
    model(x)
    want = model(x)
    report = fastgen.convert(model)
    assert set(report.left.values()) == {"another module has the convolution too"}
    assert not report.swapped
    assert torch.equal(model(x), want)


def test_wrapped_for_several_devices(monkeypatch):
    x = torch.randn(2, 1, 8, 8)
    want = network()(x)
    model = nn.DataParallel(network())
    assert len(fastgen.convert(model).swapped) == 2
    assert torch.allclose(model(x), want, atol=1e-5)
    dist = torch.distributed
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        assert len(fastgen.convert(model).swapped) == 2
        for _ in range(2):
            y = model(x)
            y.sum().backward()
        assert torch.allclose(y, want, atol=1e-5)
    finally:
        dist.destroy_process_group()


def test_parametrized_later_and_no_more():
    model, x = network(), torch.randn(1, 1, 8, 8)
    want = model(x)
    fastgen.convert(model)
    nn.utils.parametrizations.weight_norm(model[0])
    other = copy.deepcopy(model)
    assert torch.allclose(other(x), want, atol=1e-5)
    fastgen.restore(model)
    assert isinstance(model[0], Multiplied)
    assert not isinstance(model[0], MaskedConv2d)
    assert torch.allclose(model(x), want, atol=1e-5)
    fastgen.convert(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert isinstance(model[0], MaskedConv2d)
    assert torch.allclose(model(x), want, atol=1e-5)
    fastgen.restore(model)
    assert type(model[0]) is Multiplied


class Stateful(Multiplied):
    """Pickles in its own way."""

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "call"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.call = lambda: 7


def test_a_pickle_goes_the_modules_own_way():
    layer = Stateful("A", 1, 2, 3, padding=1)
    layer.call = lambda: 0
    fastgen.convert(layer)
    assert isinstance(layer, MaskedConv2d)
    other = pickle.loads(pickle.dumps(layer))  # noqa: S301
    assert other.call() == 7
    assert isinstance(other, MaskedConv2d)


def test_what_is_no_module():
    with pytest.raises(TypeError, match="convert: model: expected a Module, got str"):
        fastgen.convert("model")


def test_a_replaced_forward_is_left():
    model = network()
    model[0].forward = lambda x: x
    assert fastgen.convert(model).left["0"] == "its forward was replaced"


def test_a_report_reads_as_lines():
    report = fastgen.convert(network())
    assert str(report).splitlines()[0] == 'swapped  0: MaskedConv2d "A"'
    assert str(report).splitlines()[-1] == "left     5: a plain convolution"
    assert str(fastgen.convert(nn.ReLU())) == "no convolutions"
