"""AffineCoupling by itself, and in place of the couplings of other people's flows."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck

from fastgen.kernels import affine_coupling_ref, kept_half
from fastgen.kernels.affine_coupling import SPLITS
from fastgen.nn import AffineCoupling


class Perceptron(nn.Sequential):
    """From D features to O; takes and ignores a context, as nflows gives one."""

    def __init__(self, D, O):
        super().__init__(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, O))

    def forward(self, x, context=None):
        return super().forward(x)


class Mapped(nn.Module):
    """A network whose t and s, in `order`, go by a map l of their own, as l and t: for "exp"."""

    def __init__(self, net, log_scale, order):
        super().__init__()
        self.net, self.log_scale, self.order = net, log_scale, order

    def forward(self, x, context=None):
        h = self.net(x)
        t, s = h.chunk(2, 1) if self.order == "ts" else (h[:, ::2], h[:, 1::2])
        return torch.cat([self.log_scale(s), t], 1)


def test_a_layer():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.rand(3))
    layer = AffineCoupling(
        nn.Conv2d(3, 6, 3, padding=1), split="checkerboard", weight=weight, swap=True, layout="ts"
    )
    x = torch.randn(2, 3, 4, 6)
    y, logdet = layer(x)
    options = {"weight": weight, "split": "checkerboard", "swap": True, "layout": "ts"}
    want = affine_coupling_ref(x, layer.net(kept_half(x, "checkerboard", True)), **options)
    for a, b in zip((y, logdet), want, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    back, negative = layer.inverse(y)
    assert torch.allclose(back, x, atol=1e-6)
    assert torch.allclose(negative, -logdet, atol=1e-6)
    assert list(layer.state_dict()) == ["weight", "net.weight", "net.bias"]
    (y.square().mean() - logdet.mean()).backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("scale", ["tanh", "additive"])
@pytest.mark.parametrize("split", SPLITS[1:])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_gradients_meet_in_x(scale, split, swap, many, monkeypatch):
    if many:
        monkeypatch.setattr("fastgen.nn.affine_coupling.FEW", 0)
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    K = 5 if split == "checkerboard" else (5 + swap) // 2
    net = nn.Conv2d(kept_half(x, split, swap).shape[1], K if scale == "additive" else 2 * K, 1)
    layer = AffineCoupling(net, split=split, scale=scale, swap=swap).double()
    assert (layer.parted(x)[1].grad_fn.name() == "PartedBackward") == many

    def plain(x):
        return affine_coupling_ref(x, net(kept_half(x, split, swap)), None, scale, None, **options)

    options = {"split": split, "swap": swap}
    dy, dlogdet = torch.randn_like(x), torch.randn(2, dtype=torch.float64)
    douts = (dy, dlogdet)[: 1 if scale == "additive" else 2]
    given = dy.clone()
    for v in (x, x * 1):  # a leaf, and not
        hooked = []
        v.retain_grad()
        v.register_hook(hooked.append)
        want = torch.autograd.grad(plain(v)[: len(douts)], (v, *net.parameters()), douts)
        outputs = layer(v)[: len(douts)]
        for _ in range(2):
            v.grad = None
            net.zero_grad()
            torch.autograd.backward(outputs, douts, retain_graph=True)
            got = v.grad, *(p.grad for p in net.parameters())
            for a, b in zip((hooked.pop(), *got), (want[0], *want), strict=True):
                assert torch.allclose(a, b, atol=1e-12)
    assert torch.equal(dy, given)
    assert gradgradcheck(lambda x: layer(x)[: len(douts)], (x,), fast_mode=True)
    J, want = (torch.func.jacrev(lambda x, f=f: f(x)[0])(x) for f in (layer, plain))
    assert torch.allclose(J, want, atol=1e-12)


def test_a_fixed_weight():
    layer = AffineCoupling(Perceptron(2, 4), scale="sigmoid", weight=-1)
    assert not [name for name, _ in layer.named_parameters() if name == "weight"]
    assert layer.double()(torch.ones(3, 4, dtype=torch.float64))[0].dtype == torch.float64


@pytest.mark.parametrize("option", ["split", "scale", "layout"])
def test_wrong_options(option):
    with pytest.raises(ValueError, match=rf"AffineCoupling: {option}: expected one of .* got 'x'"):
        AffineCoupling(nn.Identity(), **{option: "x"})


def same(model, other, x):
    """Hold two flows to the same densities, and gradients of them, and one to the inverse."""
    first, second = model.log_prob(x), other.log_prob(x)
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
    grads = [
        torch.autograd.grad(p.mean(), m.parameters()) for p, m in ((first, model), (second, other))
    ]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv", None])
@pytest.mark.parametrize("mode", ["channel", "channel_inv"])
def test_in_a_normflows_model(scale_map, mode):
    normflows = pytest.importorskip("normflows")
    torch.manual_seed(0)
    scale = {"scale": bool(scale_map), "scale_map": scale_map}
    options = {
        "exp": {"scale": "exp"},
        "sigmoid": {"scale": "sigmoid", "weight": -1.0},
        "sigmoid_inv": {"scale": "sigmoid"},
        None: {"scale": "additive"},
    }[scale_map]
    nets = [Perceptron(3, 6 if scale_map else 3) for _ in range(4)]
    theirs, ours = [], []
    for net in nets:
        permute = normflows.flows.Permute(6, mode="swap")
        theirs += [normflows.flows.AffineCouplingBlock(net, **scale, split_mode=mode), permute]
        swap = mode == "channel_inv"
        ours += [AffineCoupling(net, layout="tsts", swap=swap, **options), permute]
    base = normflows.distributions.DiagGaussian(6)
    x = torch.randn(64, 6)
    same(*(normflows.NormalizingFlow(base, flows) for flows in (theirs, ours)), x)


@pytest.mark.parametrize("scale", ["additive", "exp"])
def test_in_an_nflows_model(scale):
    nflows = pytest.importorskip("nflows.flows")
    transforms, masks = (
        pytest.importorskip(f"nflows.{name}") for name in ("transforms", "utils.torchutils")
    )
    from nflows.distributions import StandardNormal

    torch.manual_seed(0)
    coupling = {
        "additive": transforms.AdditiveCouplingTransform,
        "exp": transforms.AffineCouplingTransform,
    }[scale]
    theirs, ours = [], []
    for i in range(4):
        mask = masks.create_alternating_binary_mask(7, even=bool(i % 2))
        layer = coupling(mask, Perceptron)
        theirs += [layer, transforms.ReversePermutation(7)]
        net = layer.transform_net
        if scale == "exp":
            net = Mapped(net, lambda s: torch.log(torch.sigmoid(s + 2) + 1e-3), "ts")
        # the mask is 1 where x changes
        ours += [AffineCoupling(net, split="alternate", scale=scale, swap=bool(i % 2)), theirs[-1]]
    flows = [
        nflows.Flow(transforms.CompositeTransform(parts), StandardNormal([7]))
        for parts in (theirs, ours)
    ]
    same(*flows, torch.randn(64, 7))


def test_in_a_zuko_model():
    zuko = pytest.importorskip("zuko")

    class Coupling(torch.distributions.Transform):
        domain = codomain = torch.distributions.constraints.real_vector
        bijective = True

        def __init__(self, layer):
            super().__init__()
            self.call_and_ladj = layer
            self._call, self._inverse = (lambda x: layer(x)[0]), lambda y: layer.inverse(y)[0]

    class Lazy(zuko.lazy.LazyTransform):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, c=None):
            return Coupling(self.layer)

    torch.manual_seed(0)
    model, other = (zuko.flows.NICE(7, transforms=4) for _ in range(2))
    for i, theirs in enumerate(model.transform.transforms):
        net = Mapped(theirs.hyper, lambda s: s / (1 + abs(s / math.log(1e-3))), "tsts")
        ours = AffineCoupling(net, split="alternate", scale="exp", swap=bool(i % 2))
        other.transform.transforms[i] = Lazy(ours)

    class Density(nn.ModuleList):
        def log_prob(self, x):
            return self[0]().log_prob(x)

    x = torch.randn(64, 7)
    same(Density([model]), Density([other]), x)
    there = other().transform
    assert torch.allclose(there.inv(there(x)), x, atol=1e-5)


@pytest.mark.parametrize("rows", [4, 1 << 15])
@pytest.mark.parametrize("grad", [False, True])
def test_a_network_that_changes_what_it_sees_is_refused(rows, grad):
    layer = AffineCoupling(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 4)))
    x = torch.randn(rows, 4, requires_grad=grad)
    with pytest.raises((ValueError, RuntimeError), match=r"in ?place"):
        layer(x if not grad else 1 * x)
    with torch.inference_mode():  # in which nothing tells
        layer(torch.randn(rows, 4))
