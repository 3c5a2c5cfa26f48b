"""A chain trained from its output alone: the graph's gradients, in memory constant in depth."""

import copy
import gc

import pytest
import torch
from torch import nn

from fastgen import Glow, RealNVP
from fastgen.nn import (
    ActNorm,
    AffineCoupling,
    Chain,
    Half,
    InvertibleBatchNorm,
    InvertibleConv1x1,
    Squeeze,
)
from fastgen.tractable.networks import MLP, ResNet


def chain(L, reversible, D=6, hidden=16):
    torch.manual_seed(0)
    steps = []
    for i in range(L):
        steps += [InvertibleConv1x1(D), AffineCoupling(MLP(hidden, 1, D // 2, D), swap=i % 2 == 1)]
    return moved(Chain(*steps, reversible=reversible))


def moved(module):
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn_like(p)
    return module


def gradients(module, x):
    y, logdet = module(x)
    (y.square().sum() - logdet.sum()).backward()
    return [p.grad for p in module.parameters()]


def near(got, wanted, tolerance=1e-4):
    scale = max(w.abs().max() for w in wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= tolerance * scale


@pytest.mark.parametrize("norm", ["batch", "actnorm", "none"])
@pytest.mark.parametrize("kind", ["vectors", "images", "glow"])
def test_gradients_are_those_of_the_graph(kind, norm):
    torch.manual_seed(0)  # of some draws a rectifier is as near zero as rounding
    if kind == "glow":
        make = lambda **how: Glow((1, 8, 8), 16, 2, 8, 2, **how)  # noqa: E731
    elif kind == "images":
        make = lambda **how: RealNVP((1, 8, 8), 16, 2, 8, 1, 2, norm=norm, **how)  # noqa: E731
    else:
        make = lambda **how: RealNVP((6,), 0, 8, 16, 2, norm=norm, **how)  # noqa: E731
    plain = moved(make())
    own = make(reversible=True)
    own.load_state_dict(plain.state_dict())
    x = torch.rand(9, *plain.shape) * max(1, plain.levels)
    for _ in range(2):  # once to set what the data set
        for model in (plain, own):
            model.zero_grad()
            model.log_prob(x).mean().backward()
    near([p.grad for p in own.parameters()], [p.grad for p in plain.parameters()])
    for a, b in zip(own.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_also_of_the_input():
    x, other = (torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    near(gradients(chain(4, True), x.requires_grad_()), gradients(chain(4, False), other))
    other.requires_grad_()
    gradients(chain(4, False), other)
    torch.testing.assert_close(x.grad, other.grad)


def held(L, reversible):
    """Bytes of what the graph of a chain of L steps keeps, besides its parameters."""
    module, kept = chain(L, reversible), {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        outputs = module(torch.randn(512, 6))
    del outputs
    return sum(kept.values())


def test_what_is_kept_does_not_grow_with_depth():
    assert held(2, True) == held(32, True) == 512 * 6 * 4
    assert held(32, False) > 8 * held(4, False) / 2 > 32 * held(32, True)


def alive():
    """Bytes of all tensors that there are, but those of a compiler, which have no memory."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(found.values())


class Peak(AffineCoupling):
    """A coupling that notes what is alive when it is differentiated."""

    most = 0

    def back(self, *args):
        Peak.most = max(Peak.most, alive())
        return super().back(*args)


@pytest.mark.parametrize("L", [2, 16])
def test_nor_does_what_is_alive_going_back(L):
    torch.manual_seed(0)
    steps = [Peak(MLP(8, 1, 3, 6), swap=i % 2 == 1) for i in range(L)]
    module, x, before = Chain(*steps, reversible=True), torch.randn(4096, 6), alive()
    Peak.most = 0
    gradients(module, x)
    parameters = sum(p.numel() * 4 for p in module.parameters())
    assert Peak.most - before < 6 * x.numel() * 4 + 3 * parameters


def test_hooks_of_parameters_run_once():
    plain, own = chain(3, False), chain(3, True)
    for module in (plain, own):
        for p in module.parameters():
            p.register_hook(lambda grad: 2 * grad)
    x = torch.randn(5, 6)
    near(gradients(own, x), gradients(plain, x))
    seen = []
    for p in own.parameters():
        p.register_post_accumulate_grad_hook(seen.append)
    gradients(own, x)
    assert len(seen) == len([*own.parameters()])


def test_a_parameter_of_two_steps_has_the_sum_of_both():
    def tied(reversible):
        torch.manual_seed(0)
        net = moved(MLP(8, 1, 3, 6))
        steps = [AffineCoupling(net), AffineCoupling(net, swap=True), ActNorm(6)]
        return Chain(*steps, steps[0], reversible=reversible)

    x = torch.randn(5, 6)
    near(gradients(tied(True), x), gradients(tied(False), x))


def test_a_parameter_of_two_names_has_the_sum_of_both():
    def tied(reversible):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 6))
        net[2].weight = net[0].weight
        return Chain(AffineCoupling(net), reversible=reversible)

    x = torch.randn(5, 6)
    near(gradients(tied(True), x), gradients(tied(False), x))


def test_chains_within_chains():
    def nested(reversible):
        torch.manual_seed(0)
        inner = Chain(Half(Chain(InvertibleConv1x1(2), ActNorm(2))), InvertibleBatchNorm(4))
        coupling = AffineCoupling(ResNet(4, 1, 2, 4))
        return moved(Chain(Squeeze(), inner, coupling, reversible=reversible))

    x = torch.randn(5, 1, 4, 4)
    plain, own = nested(False), nested(True)
    near(gradients(own, x), gradients(plain, x))
    for a, b in zip(own.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_parameters_have_no_gradient():
    plain, own = chain(3, False), chain(3, True)
    for module in (plain, own):
        for p in [*module.parameters()][::2]:
            p.requires_grad_(False)
    x = torch.randn(5, 6)
    pairs = zip(gradients(own, x), gradients(plain, x), strict=True)
    assert [a is None for a, _ in pairs] == [i % 2 == 0 for i in range(len([*own.parameters()]))]


def test_a_batch_norm_in_the_network_counts_a_batch_once():
    def normed(reversible):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        return Chain(AffineCoupling(net), reversible=reversible)

    plain, own, x = normed(False), normed(True), torch.randn(50, 6)
    near(gradients(own, x), gradients(plain, x))
    for a, b in zip(own.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_spectral_norms_have_the_directions_that_they_had():
    torch.manual_seed(0)

    def net():
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 16))
        return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 6))

    a = Chain(*(AffineCoupling(net(), swap=i % 2 == 1) for i in range(4))).double()
    b = copy.deepcopy(a)
    b.reversible = True
    x = torch.randn(32, 6, dtype=torch.float64)
    for got, wanted in zip(gradients(b, x), gradients(a, x), strict=True):
        torch.testing.assert_close(got, wanted)
    for name, buffer in a.named_buffers():
        assert torch.equal(buffer, b.get_buffer(name)), name


def test_autocast_goes_back_as_it_went():
    plain, own, x = chain(3, False), chain(3, True), torch.randn(50, 6)
    for module in (plain, own):
        with torch.autocast("cpu", torch.bfloat16):
            y, logdet = module(x)
        (y.square().sum() - logdet.sum()).backward()
    near(*([p.grad for p in module.parameters()] for module in (own, plain)), tolerance=0.03)


def test_no_gradient_no_function():
    module, x = chain(2, True), torch.randn(5, 6)
    with torch.no_grad():
        assert module(x)[0].grad_fn is None
    assert module(x)[0].grad_fn is not None
    torch.testing.assert_close(module.inverse(module(x)[0])[0], x, atol=1e-5, rtol=1e-4)


def test_gradients_of_gradients_are_refused():
    module = chain(2, True)
    x = torch.randn(5, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Chain: gradients of gradients.*reversible=False"):
        torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)


def test_a_parameter_that_was_changed_is_noticed():
    module, x = chain(2, True), torch.randn(5, 6)
    y, _ = module(x)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_copies_train_apart():
    module, x = chain(2, True), torch.randn(5, 6)
    other = copy.deepcopy(module)
    near(gradients(other, x), gradients(module, x), 0)
