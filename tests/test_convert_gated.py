"""`convert` on gated PixelCNNs and WaveNets as users write them: a layer becomes one kernel."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from fastgen.nn.gated import Gated


class Masked(nn.Module):
    """A convolution masked in place by a buffer, the image's size kept."""

    def __init__(self, n_in, n_out, mask):
        super().__init__()
        self.register_buffer("mask", mask[None, None])
        self.conv = nn.Conv2d(n_in, n_out, mask.shape, padding=[k // 2 for k in mask.shape])

    def forward(self, x):
        self.conv.weight.data *= self.mask
        return self.conv(x)


def upper(k, own):
    mask = torch.zeros(k, k)
    mask[: k // 2 + own] = 1
    return mask


def left(k, own):
    return (torch.arange(k) < k // 2 + own).float()[None]


class MaskedBlock(nn.Module):
    """Two stacks of masked convolutions and their 1x1s, in and out as a pair."""

    def __init__(self, c, k=3):
        super().__init__()
        self.conv_vert = Masked(c, 2 * c, upper(k, True))
        self.conv_horiz = Masked(c, 2 * c, left(k, True))
        self.conv_vert_to_horiz = nn.Conv2d(2 * c, 2 * c, kernel_size=1)
        self.conv_horiz_1x1 = nn.Conv2d(c, c, kernel_size=1)

    def forward(self, v_stack, h_stack):
        v_feat = self.conv_vert(v_stack)
        value, gate = v_feat.chunk(2, dim=1)
        v_out = torch.tanh(value) * torch.sigmoid(gate)
        h_feat = self.conv_horiz(h_stack) + self.conv_vert_to_horiz(v_feat)
        value, gate = h_feat.chunk(2, dim=1)
        return v_out, h_stack + self.conv_horiz_1x1(torch.tanh(value) * torch.sigmoid(gate))


class MaskedNet(nn.Module):
    def __init__(self, c=8, levels=4):
        super().__init__()
        self.vert, self.horiz = Masked(1, c, upper(5, False)), Masked(1, c, left(5, False))
        self.layers = nn.ModuleList(MaskedBlock(c, k) for k in (3, 5))
        self.out = nn.Conv2d(c, levels, 1)

    def forward(self, x):
        v, h = self.vert(x), self.horiz(x)
        for layer in self.layers:
            v, h = layer(v, h)
        return self.out(F.elu(h))


class Gate(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)


class CroppedBlock(nn.Module):
    """Kernels of the rows above and the columns to the left, and a label added to both gates."""

    def __init__(self, mask_type, c_in, c, k, residual, classes):
        super().__init__()
        self.mask_type, self.residual = mask_type, residual
        self.label = nn.Embedding(classes, 2 * c)
        self.vert = nn.Conv2d(c_in, 2 * c, (k // 2 + 1, k), padding=(k // 2, k // 2))
        self.v_to_h = nn.Conv2d(2 * c, 2 * c, 1)
        self.horiz = nn.Conv2d(c_in, 2 * c, (1, k // 2 + 1), padding=(0, k // 2))
        self.resid = nn.Conv2d(c, c, 1)
        self.gate = Gate()

    def forward(self, x_v, x_h, y):
        if self.mask_type == "A":
            self.vert.weight.data[:, :, -1].zero_()
            self.horiz.weight.data[:, :, :, -1].zero_()
        y = self.label(y)[:, :, None, None]
        h_vert = self.vert(x_v)[:, :, : x_v.shape[2]]
        h_horiz = self.horiz(x_h)[..., : x_h.shape[3]]
        out = self.resid(self.gate(self.v_to_h(h_vert) + h_horiz + y))
        return self.gate(h_vert + y), out + x_h if self.residual else out


class CroppedNet(nn.Module):
    def __init__(self, c=6, levels=4, classes=3):
        super().__init__()
        self.embed = nn.Embedding(levels, c)
        self.layers = nn.ModuleList(
            CroppedBlock("B" if i else "A", c, c, 3 if i else 7, i > 0, classes) for i in range(3)
        )
        self.out = nn.Sequential(nn.Conv2d(c, 16, 1), nn.ReLU(), nn.Conv2d(16, levels, 1))

    def forward(self, x, y):
        v = h = self.embed(x[:, 0]).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, h = layer(v, h, y)
        return self.out(h)


class OneTensorBlock(nn.Module):
    """Both stacks in one tensor, as a Sequential wants it; the mask is multiplied in forward."""

    def __init__(self, c_in, c, k, first):
        super().__init__()
        self.first, self.pad = first, k // 2
        self.v = nn.Conv2d(c_in, 2 * c, k, padding=k // 2, bias=False)
        self.h = nn.Conv2d(c_in, 2 * c, (1, k), padding=(0, k // 2), bias=False)
        self.vh = nn.Conv2d(2 * c, 2 * c, 1, bias=False)
        self.hh = nn.Conv2d(c, c, 1)
        self.v_mask = nn.Parameter(upper(k, not first), requires_grad=False)
        self.h_mask = nn.Parameter(left(k, not first), requires_grad=False)
        self.gate = Gate()

    def forward(self, x):
        v, h = x.chunk(2, dim=1)
        v = F.conv2d(v, self.v.weight * self.v_mask, padding=self.pad)
        a = F.conv2d(h, self.h.weight * self.h_mask, padding=(0, self.pad)) + self.vh(v)
        out = self.hh(self.gate(a))
        return torch.cat([self.gate(v), out if self.first else out + h], dim=1)


class Causal(nn.Module):
    """Padded on both sides, and cut."""

    def __init__(self, n_in, n_out, k, dilation):
        super().__init__()
        self.cut = (k - 1) * dilation
        self.conv = nn.Conv1d(n_in, n_out, k, padding=self.cut, dilation=dilation)

    def forward(self, x):
        y = self.conv(x)
        return y[:, :, : -self.cut] if self.cut else y


class TwoConvs(nn.Module):
    """A convolution for tanh and one for sigmoid, weight-normed."""

    def __init__(self, residual, gate, skip, k, dilation):
        super().__init__()
        self.filter = Causal(residual, gate, k, dilation)
        self.gate = Causal(residual, gate, k, dilation)
        nn.utils.parametrizations.weight_norm(self.filter.conv)
        self.to_skip = nn.Conv1d(gate, skip, 1)
        self.to_res = nn.Conv1d(gate, residual, 1)

    def forward(self, x):
        z = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return self.to_skip(z), self.to_res(z) + x


class OneConv(nn.Module):
    """One convolution padded left, halves the other way round, a local condition, skips summed."""

    def __init__(self, c, cond, k, dilation):
        super().__init__()
        self.pad = nn.ConstantPad1d(((k - 1) * dilation, 0), 0.0)
        self.dilated = nn.Conv1d(c, 2 * c, k, dilation=dilation)
        self.cond = nn.Conv1d(cond, 2 * c, 1, bias=False)
        self.res = nn.Conv1d(c, c, 1)
        self.skip = nn.Conv1d(c, c, 1)

    def forward(self, x, skip, c):
        gate, value = (self.dilated(self.pad(x)) + self.cond(c)).split(x.shape[1], dim=1)
        z = value.tanh() * gate.sigmoid()
        return [x + self.res(z), skip + self.skip(z)]


class Shared1x1(nn.Module):
    """One product for both ends."""

    def __init__(self, c, dilation):
        super().__init__()
        self.conv = Causal(c, 2 * c, 2, dilation)
        self.one = nn.Conv1d(c, c, 1)

    def forward(self, x):
        f, g = torch.chunk(self.conv(x), 2, 1)
        z = self.one(torch.tanh(f) * torch.sigmoid(g))
        return x + z, z


class WaveNet(nn.Module):
    def __init__(self, kind, c=6, classes=5):
        super().__init__()
        self.kind = kind
        self.front = Causal(classes, c, 2, 1)
        make = {
            "two": lambda d: TwoConvs(c, c + 2, c, 2, d),
            "one": lambda d: OneConv(c, 3, 3, d),
            "shared": lambda d: Shared1x1(c, d),
        }[kind]
        self.blocks = nn.ModuleList(make(d) for d in (1, 2, 4))
        self.end = nn.Conv1d(c, classes, 1)

    def forward(self, x):
        h = self.front(x)
        total = torch.zeros_like(h)
        for block in self.blocks:
            if self.kind == "one":
                h, total = block(h, total, c=x[:, :3])
            else:
                a, b = block(h)
                s, h = (a, b) if self.kind == "two" else (b, a)
                total = total + s
        return self.end(torch.relu(total))


def image(B=2):
    return torch.randn(B, 1, 7, 5)


def sound(B=2):
    return torch.randn(B, 5, 13)


def one_tensor_net():
    blocks = [OneTensorBlock(1, 6, 5, True), OneTensorBlock(6, 6, 3, False)]
    return nn.Sequential(*blocks)


PIXEL, WAVE = "kernels.pixelcnn_layer", "kernels.wavenet_layer"
MODELS = {  # a model, inputs, what becomes of which modules
    "masked": (MaskedNet, lambda: (image(),), dict.fromkeys(("layers.0", "layers.1"), PIXEL)),
    "cropped": (
        CroppedNet,
        lambda: (torch.randint(4, (3, 1, 7, 5)), torch.tensor([0, 2, 1])),
        dict.fromkeys(("layers.0", "layers.1", "layers.2"), PIXEL),
    ),
    "one tensor": (
        one_tensor_net,
        lambda: (image().repeat(1, 2, 1, 1),),
        dict.fromkeys(("0", "1"), PIXEL),
    ),
    **{
        kind: (
            lambda kind=kind: WaveNet(kind),
            lambda: (sound(),),
            dict.fromkeys(("blocks.0", "blocks.1", "blocks.2"), WAVE),
        )
        for kind in ("two", "one", "shared")
    },
}
models = pytest.mark.parametrize("name", MODELS)


def build(name):
    torch.manual_seed(0)
    make, inputs, what = MODELS[name]
    return make(), inputs(), what


def outcome(model, inputs):
    """Outputs, and the gradients of all parameters, zero where a mask shuts one out."""
    y = model(*inputs)
    generator = torch.Generator().manual_seed(1)
    model.zero_grad()
    (y * torch.randn(y.shape, generator=generator).to(y)).sum().backward()
    return y.detach(), {k: p.grad for k, p in model.named_parameters() if p.requires_grad}


@models
def test_a_layer_becomes_one_kernel_and_is_given_back(name):
    model, inputs, what = build(name)
    model(*inputs)  # what is masked in place is masked
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    y, grads = outcome(model, inputs)
    report = fastgen.convert(model)
    got = {k: v.partition(";")[0] for k, v in report.swapped.items() if "kernels" in v}
    assert got == what, report
    z, others = outcome(model, inputs)
    assert torch.allclose(y, z, atol=1e-5)
    for key, grad in grads.items():
        assert (grad is None) == (others[key] is None), key
        if grad is None:
            continue
        seen = others[key] != 0
        assert torch.allclose(grad * seen, others[key], atol=1e-4), key
        assert seen.any()
    assert {k: torch.equal(v, state[k]) for k, v in model.state_dict().items()} == dict.fromkeys(
        state, True
    )
    assert not fastgen.convert(model).swapped
    report.undo()
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(outcome(model, inputs)[0], y)


@models
def test_copies_and_autocast(name):
    model, inputs, what = build(name)
    model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*inputs)
    want = model(*inputs)
    fastgen.convert(model)
    others = [copy.deepcopy(model)]
    if name != "two":  # torch pickles no parametrized module
        others.append(pickle.loads(pickle.dumps(model)))  # noqa: S301
    for other in others:
        assert torch.allclose(other(*inputs), want, atol=1e-5)
        assert sum(isinstance(m, Gated) for m in other.modules()) == len(what)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(*inputs)
    assert got.dtype == half.dtype
    assert torch.allclose(got.float(), half.float(), atol=0.1)


@pytest.mark.parametrize("name", ["masked", "two"])
def test_converted_models_compile(name):
    model, inputs, _ = build(name)
    want = model(*inputs)
    fastgen.convert(model)
    torch.compiler.reset()  # of what other tests compiled, of which there may be too much
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*inputs), want, atol=1e-5)


@pytest.mark.parametrize("name", ["masked", "two"])
def test_training_goes_the_same_way(name):
    losses = []
    for converted in (False, True):
        model, inputs, _ = build(name)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        if converted:
            fastgen.convert(model)
        losses.append([])
        for _ in range(5):
            loss = model(*inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


class Dilated(MaskedBlock):
    def __init__(self, c):
        super().__init__(c)
        for part in (self.conv_vert, self.conv_horiz):
            conv = part.conv
            conv.dilation = (2, 2)
            conv.padding = tuple(2 * p for p in conv.padding)


class Scaled(TwoConvs):
    """The sum is scaled, so that its variance stays."""

    def forward(self, x):
        skip, res = super().forward(x)
        return skip, res * 0.5**0.5


class Shifted(MaskedBlock):
    """The link is moved a row down."""

    def forward(self, v, h):
        v_feat = self.conv_vert(v)
        down = F.pad(v_feat, (0, 0, 1, 0))[:, :, :-1]
        gate = Gate()
        out = gate(self.conv_horiz(h) + self.conv_vert_to_horiz(down))
        return gate(v_feat), h + self.conv_horiz_1x1(out)


def hooked(block):
    block.conv_vert_to_horiz.register_forward_hook(lambda *_: None)
    return block


LEFT = {  # a block, why it is left, how many of its convolutions are swapped all the same
    "dilated": (lambda: Dilated(4), "like a gated layer, but dilated", 2),
    "shifted": (lambda: Shifted(4), f"like a gated layer, but {PIXEL} has other outputs", 2),
    "hooked": (lambda: hooked(MaskedBlock(4)), "like a gated layer, but hooks of its conv_vert", 2),
    "scaled": (
        lambda: Scaled(4, 4, 6, 2, 1),
        f"like a gated layer, but {WAVE} has other outputs",
        2,
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_layer_that_is_left_says_why(name):
    make, why, n = LEFT[name]
    model = nn.ModuleList([make()])
    report = fastgen.convert(model)
    assert report.left["0"].startswith(why), report
    assert len(report.swapped) == n, report
    assert not any(isinstance(m, Gated) for m in model.modules())


def test_calls_that_were_not_probed_go_the_layers_own_way():
    torch.manual_seed(0)
    block, x = OneConv(6, 3, 3, 2), torch.randn(2, 6, 9)
    skip, c = torch.zeros(2, 6, 9), torch.randn(2, 3, 9)
    calls = [((x, skip, c), {}), ((x,), {"skip": skip, "c": c}), ((x, 0, c), {})]
    calls += [((x, skip[:1]), {"c": c[:, :, :1]})]
    want = [block(*args, **options) for args, options in calls]
    assert list(fastgen.convert(block).swapped) == [""]
    for (args, options), y in zip(calls, want, strict=True):
        for a, b in zip(block(*args, **options), y, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


class InAPair(MaskedBlock):
    """A pair in, and a pair out, for a Sequential."""

    def forward(self, pair):
        return super().forward(*pair)


class InAList(InAPair):
    def forward(self, pair):
        return list(super().forward(pair))


@pytest.mark.parametrize("kind", [InAPair, InAList])
def test_stacks_in_a_pair(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(4), kind(4, 5))
    pair = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    want = model(pair)
    assert fastgen.convert(model).swapped.keys() == {"0", "1"}
    for x in (pair, list(pair)):
        got = model(x)
        assert type(got) is type(want)
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_a_replaced_forward_is_left():
    block = MaskedBlock(4)
    block.conv_vert.forward = lambda x: x.repeat(1, 2, 1, 1)
    report = fastgen.convert(block)
    assert report.left[""] == "like a gated layer, but the forward of conv_vert was replaced"


def test_a_label_for_the_whole_batch():
    torch.manual_seed(0)
    block = CroppedBlock("B", 4, 4, 3, True, 5)
    v, h, y = torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5), torch.tensor([2])
    want = block(v, h, y)
    assert list(fastgen.convert(block).swapped) == [""]
    for a, b in zip(block(v, h, y=y), want, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
