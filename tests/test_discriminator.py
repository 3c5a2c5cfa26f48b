"""The layers of discriminators: whose statistics a row is normalised by, and what a batch tells."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from fastgen.kernels import minibatch_discrimination_ref
from fastgen.nn import (
    BatchNorm,
    GaussianNoise,
    Maxout,
    MinibatchDiscrimination,
    MinibatchStd,
    Reference,
)


def network(stats, dtype=torch.float32):
    """A network of images, with a reference batch where its statistics want one; and a batch."""
    torch.manual_seed(0)
    norms = [BatchNorm(4, stats=stats), BatchNorm(5, stats=stats)]
    parts = [nn.Conv2d(3, 4, 3), norms[0], nn.Tanh(), nn.Flatten(), nn.Linear(36, 5), norms[1]]
    net = nn.Sequential(*parts).to(dtype)
    if stats in ("reference", "virtual"):
        net = Reference(net, torch.randn(6, 3, 5, 5, dtype=dtype))
    return net, torch.randn(4, 3, 5, 5, dtype=dtype)


def swapped(net, x):
    """How much the first row's output moves when the others are exchanged."""
    other = torch.cat([x[:1], 3 * torch.randn_like(x[1:]) + 1])
    return (net(x)[0] - net(other)[0]).abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stats", ["batch", "running", "reference", "virtual"])
def test_what_a_row_sees_of_its_batch(stats, training):
    net, x = network(stats)
    net(x)
    net.train(training)
    if stats == "batch" or (stats == "running" and training):
        assert swapped(net, x) > 0.1
    else:
        assert swapped(net, x) == 0


@pytest.mark.parametrize("stats", ["batch", "running", "reference", "virtual"])
def test_all_of_the_state_survives(stats):
    net, x = network(stats)
    net(3 * x + 1)
    want = net.eval()(x)
    torch.manual_seed(1)
    other = copy.deepcopy(net)
    for v in other.state_dict().values():
        v.fill_(1)
    assert not torch.allclose(other(x), want)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), want)
    names = set(net.state_dict())
    assert ("reference0" in names) == (stats in ("reference", "virtual"))
    assert any("running_mean" in name for name in names) == (stats == "running")


@pytest.mark.parametrize("training", [True, False])
def test_running_and_batch_statistics_are_those_of_torch(training):
    x = torch.randn(6, 3, 4, 5)
    for stats in ("running", "batch"):
        ours = BatchNorm(3, momentum=0.3, stats=stats)
        theirs = nn.BatchNorm2d(3, momentum=0.3, track_running_stats=stats == "running")
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours(x), theirs(x)
        ours.train(training), theirs.train(training)
        assert torch.equal(ours(2 * x), theirs(2 * x))
        theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
def test_statistics_of_a_union(shape):
    R, N = 5, 4
    ref, x = (torch.randn(n, *shape, dtype=torch.float64) for n in (R, N))
    for stats in ("reference", "virtual"):
        layer = BatchNorm(3, stats=stats).double()
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
        y = Reference(layer, ref)(x)
        for i in range(N):
            if stats == "virtual":
                seen = torch.cat([ref, x[i : i + 1]])
                want = F.batch_norm(seen, None, None, layer.weight, layer.bias, True)[-1]
            else:
                var, mean = torch.var_mean(ref, [d for d in range(x.ndim) if d != 1], correction=0)
                want = F.batch_norm(x[i : i + 1], mean, var, layer.weight, layer.bias)[0]
            torch.testing.assert_close(y[i], want)


@pytest.mark.parametrize("stats", ["reference", "virtual"])
def test_gradients_of_a_normalised_network(stats):
    net, x = network(stats, torch.float64)
    small = Reference(net.net[0:2], net.reference0[:2, :, :3, :3])
    x = x[:2, :, :3, :3].requires_grad_()
    weight = small.net[0].weight
    assert gradcheck(lambda x, _: small(x), (x, weight), fast_mode=True)
    assert gradgradcheck(lambda x, _: small(x), (x, weight), fast_mode=True)
    before = small.net[0].weight.grad
    small(x).sum().backward()
    assert before is None
    assert small.net[0].weight.grad is not None


def test_half_precision_of_a_normalised_network():
    for stats in ("reference", "virtual"):
        net, x = network(stats)
        want = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(net(x).float(), want, atol=0.1)
        got = net.bfloat16()(x.bfloat16())
        assert got.dtype == torch.bfloat16
        assert torch.allclose(got.float(), want, atol=0.15)


def test_several_reference_batches():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchNorm(2, stats="virtual")

        def forward(self, x, y):
            return self.norm(x + y)

    a, b = torch.randn(3, 2), torch.randn(3, 2)
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    got = Reference(Sum(), a, b)(x, y)
    assert torch.equal(got, Reference(BatchNorm(2, stats="virtual"), a + b)(x + y))


def layer(groups=1, keep_self=False, dtype=torch.float32):
    torch.manual_seed(0)
    made = MinibatchDiscrimination(6, 3, 4, groups=groups, keep_self=keep_self, dtype=dtype)
    return made, torch.randn(8, 2, 3, dtype=dtype)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"keep_self": True}])
def test_minibatch_discrimination_is_its_formula(options):
    made, x = layer(**options)
    y = made(x)
    assert y.shape == (8, 9)
    rows = x.flatten(1)
    assert torch.equal(y[:, :6], rows)
    weight = made.project.weight
    assert torch.allclose(weight.norm(dim=1), torch.ones(12))
    want = minibatch_discrimination_ref((rows @ weight.T).view(8, 3, 4), **options)
    assert torch.allclose(y[:, 6:], want - 1, atol=1e-5)


def test_minibatch_discrimination_against_another_batch():
    made, x = layer()
    other = torch.randn(5, 6)
    m, n = ((v.flatten(1) @ made.project.weight.T).view(-1, 3, 4) for v in (x, other))
    want = minibatch_discrimination_ref(m, n)
    assert torch.allclose(made(x, other)[:, 6:], want - 1, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_data_dependent_initialisation(groups):
    made, x = layer(groups=groups)
    y = made.initialize(x)
    assert torch.equal(y, made(x))
    assert torch.allclose(y[:, 6:].mean(0), torch.zeros(3), atol=1e-6)
    m = made.features(x.flatten(1)).unflatten(0, (groups, -1))
    distance = (m[:, :, None] - m[:, None]).abs().sum(-1)  # (groups, n, n, B)
    distance = distance + 1e6 * torch.eye(8 // groups)[..., None]
    assert torch.allclose(distance.amin(2).mean((0, 1)), torch.full((3,), 2.0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"expected a batch of rows that differ, got .* 0 to the"):
        made.initialize(torch.ones(8, 6))
    with pytest.raises(ValueError, match=r"got a mean distance of inf to the nearest"):
        layer()[0].initialize(torch.ones(1, 6))
    for rows in (0, 9):
        with pytest.raises(ValueError, match=f"a batch of 2 equal groups, got {rows} rows"):
            layer(groups=2)[0].initialize(torch.ones(rows, 6))


def test_data_dependent_initialisation_of_short_numbers():
    made, x = layer()
    made.bfloat16().initialize(x.bfloat16())
    y = made(x.bfloat16()).float()
    assert torch.allclose(y[:, 6:].mean(0), torch.zeros(3), atol=0.02)


def test_minibatch_discrimination_of_nothing_is_refused():
    for sizes in ((6, 0, 4), (6, 3, -1), (0, 3, 4)):
        with pytest.raises(ValueError, match="MinibatchDiscrimination: expected sizes >= 1, got"):
            MinibatchDiscrimination(*sizes)


def test_a_gradient_penalty():
    made, x = layer(dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    head = torch.randn(9, dtype=torch.float64)

    def penalty(y):
        (grad,) = torch.autograd.grad((y @ head).tanh().sum(), leaf, create_graph=True)
        loss = grad.flatten(1).norm(dim=1).sub(1).square().sum()
        return torch.autograd.grad(loss, list(made.parameters()), allow_unused=True)

    got = penalty(made(leaf))
    rows = leaf.flatten(1)
    m = (rows @ made.project.weight.T).view(8, 3, 4)
    o = minibatch_discrimination_ref(m) + made.bias
    torch.testing.assert_close(got, penalty(torch.cat([rows, o], 1)))


def test_minibatch_std():
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    y = MinibatchStd(groups=2)(x)
    assert y.shape == (6, 3, 3, 3)
    assert torch.equal(y[:, :2], x)
    for rows in (slice(3), slice(3, 6)):
        want = x[rows].std(0, correction=0).mean()
        torch.testing.assert_close(y[rows, 2], want.expand(3, 3, 3))
    assert MinibatchStd()(torch.ones(4, 5)).shape == (4, 6)
    x = x[:, :, :1, :2].requires_grad_()
    assert gradgradcheck(MinibatchStd(), x, fast_mode=True)


def test_gaussian_noise():
    noise, x = GaussianNoise(0.3), torch.ones(100_000)
    y = noise(x)
    assert abs((y - x).std() - 0.3) < 0.01
    assert abs((y - x).mean()) < 0.01
    assert not torch.equal(noise(x), y)
    assert torch.equal(noise.eval()(x), x)
    assert torch.equal(GaussianNoise(0)(x), x)


def test_maxout():
    x = torch.randn(2, 6, 3)
    y = Maxout(3)(x)
    assert torch.equal(y[:, 0], x[:, :3].amax(1))
    assert torch.equal(y[:, 1], x[:, 3:].amax(1))
    assert Maxout(2)(torch.randn(5, 4)).shape == (5, 2)


WRONG = {
    "BatchNorm: stats: expected one of": lambda: BatchNorm(3, stats="mean"),
    "BatchNorm: x: expected (N, 3, ...), got (2, 4)": lambda: BatchNorm(3)(torch.ones(2, 4)),
    "expected a network in fastgen.nn.Reference, got 2 rows, 0": lambda: BatchNorm(
        3, stats="virtual"
    )(torch.ones(2, 3)),
    "Reference: net: expected a BatchNorm": lambda: Reference(BatchNorm(3), torch.ones(2, 3)),
    "Reference: batch: expected 2 rows or more, of each, got [2, 3]": lambda: Reference(
        BatchNorm(3, stats="virtual"), torch.ones(2, 3), torch.ones(3, 3)
    ),
    "Reference: expected 1 batches, got 2": lambda: network("virtual")[0](0, 0),
    "MinibatchStd: groups: expected a divisor of 3, got 2": lambda: MinibatchStd(2)(
        torch.ones(3, 1)
    ),
    "GaussianNoise: std: expected 0 or more, got -1": lambda: GaussianNoise(-1),
    "Maxout: pieces: expected 1 or more, got 0": lambda: Maxout(0),
    "Maxout: x: expected (N, C 2, ...), got (1, 3)": lambda: Maxout(2)(torch.ones(1, 3)),
    "minibatch_discrimination: groups: expected a divisor of 8": lambda: layer(3)[0](
        torch.ones(8, 6)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    with pytest.raises(ValueError, match=r"expected") as error:
        WRONG[message]()
    assert message in str(error.value)
