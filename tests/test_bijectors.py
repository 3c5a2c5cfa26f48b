"""Each bijection inverts, and its log-determinant is that of autograd's Jacobian."""

import copy
import math

import pytest
import torch
from torch import nn

from fastgen.nn import (
    ActNorm,
    AffineCoupling,
    Chain,
    Diagonal,
    Half,
    InvertibleBatchNorm,
    InvertibleConv1x1,
    InvertibleLinear,
    Logit,
    Rescale,
    Squeeze,
    Unsqueeze,
    normalize,
)
from fastgen.tractable.networks import MLP, ResNet

IMAGE, VECTOR = (4, 4, 6), (5,)
BIJECTORS = {
    "actnorm": (lambda: ActNorm(4), IMAGE),
    "actnorm of vectors": (lambda: ActNorm(5), VECTOR),
    "batch norm": (lambda: InvertibleBatchNorm(4), IMAGE),
    "batch norm without an affine map": (lambda: InvertibleBatchNorm(4, affine=False), IMAGE),
    "batch norm of vectors": (lambda: InvertibleBatchNorm(5), VECTOR),
    "diagonal": (lambda: Diagonal(5), VECTOR),
    "1x1 convolution": (lambda: InvertibleConv1x1(4), IMAGE),
    "1x1 convolution of vectors": (lambda: InvertibleConv1x1(5), VECTOR),
    "1x1 convolution of sequences": (lambda: InvertibleConv1x1(4), (4, 6)),
    "linear": (lambda: InvertibleLinear(5), VECTOR),
    "squeeze": (Squeeze, IMAGE),
    "unsqueeze": (Unsqueeze, IMAGE),
    "rescale": (lambda: Rescale(7), IMAGE),
    "logit": (Logit, IMAGE),
    "logit without a margin": (lambda: Logit(0), VECTOR),
    "half": (lambda: Half(InvertibleConv1x1(2)), IMAGE),
    "checkerboard": (
        lambda: AffineCoupling(
            ResNet(6, 1, 4, 8), split="checkerboard", swap=True, weight=weights(4)
        ),
        IMAGE,
    ),
    "channels": (lambda: AffineCoupling(MLP(6, 1, 3, 4), scale="sigmoid"), VECTOR),
    "swapped channels": (
        lambda: AffineCoupling(MLP(6, 1, 2, 6), swap=True, scale="exp", layout="tsts"),
        VECTOR,
    ),
    "alternate": (
        lambda: AffineCoupling(MLP(6, 1, 3, 2), split="alternate", scale="additive"),
        VECTOR,
    ),
    "chain": (
        lambda: Chain(
            *(Squeeze(), Half(Chain(InvertibleConv1x1(8), ActNorm(8))), InvertibleBatchNorm(16)),
            *(Unsqueeze(), AffineCoupling(ResNet(4, 1, 4, 8), split="checkerboard")),
        ),
        IMAGE,
    ),
}


def weights(K):
    return nn.Parameter(torch.linspace(0.5, 1.5, K))


@pytest.fixture(params=BIJECTORS)
def case(request):
    """A bijection in evaluation, none of whose numbers is what it is at first, and a batch."""
    make, shape = BIJECTORS[request.param]
    return woken(make, shape)


def woken(make, shape, n=7):
    torch.manual_seed(0)
    module = make().double()
    with torch.no_grad():
        for p in module.parameters():
            p += 0.2 * torch.randn_like(p)
        for _ in range(3):
            module(batch(shape, n))
    return module.eval(), batch(shape, n)


def batch(shape, n):
    return torch.rand(n, *shape, dtype=torch.float64) * 0.9 + 0.05


def test_inverts(case):
    module, x = case
    y, logdet = module(x)
    back, minus = module.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(minus, -logdet)
    assert logdet.shape == (len(x),)


def test_logdet_is_that_of_the_jacobian(case):
    module, x = case
    D = x[0].numel()
    for row, logdet in zip(x[:3], module(x)[1], strict=False):
        J = torch.autograd.functional.jacobian(lambda v: module(v[None])[0][0], row).reshape(D, D)
        torch.testing.assert_close(logdet, torch.linalg.slogdet(J)[1])


@pytest.mark.parametrize("training", [False, True])
def test_back_is_the_gradient_of_the_graph(case, training):
    module, x = case
    module.train(training)
    other = copy.deepcopy(module)
    x.requires_grad_()
    y, logdet = module(x)
    dy, dlogdet = torch.randn_like(y), torch.randn_like(logdet)
    given = dy.clone()
    total = (y * dy).sum() + (logdet * dlogdet).sum()
    wanted = torch.autograd.grad(
        total, (x, *module.parameters()), allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        again, added, kept = other.keep(x.detach())
        before, dx, grads = other.back(kept, again, dy, dlogdet)
    torch.testing.assert_close((again, added), (y.detach(), logdet.detach()))
    torch.testing.assert_close(before, x.detach())
    torch.testing.assert_close((dx, *grads), wanted)
    assert torch.equal(dy, given)
    torch.testing.assert_close(again, y.detach())
    assert not any(v.requires_grad for v in (before, dx, *grads))
    for ours, theirs in zip(other.buffers(), module.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_float32_keeps_its_dtype_and_half_its_logdet_in_float32(case):
    module, x = case
    module, x = module.float(), x.float()
    for way in (module, module.inverse):
        y, logdet = way(x)
        assert (y.dtype, logdet.dtype) == (torch.float32, torch.float32)


def test_autocast_loses_nothing(case):
    module, x = case
    module, x = module.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        y, logdet = module(x)
        back, minus = module.inverse(y)
    assert (y.dtype, logdet.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(minus, -logdet, rtol=1e-4, atol=1e-5)


def test_bfloat16_goes_both_ways(case):
    module, x = case
    want, _ = module(x)
    module, x = module.bfloat16(), x.bfloat16()
    y, logdet = module(x)
    back, minus = module.inverse(y)
    assert (y.dtype, back.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (logdet.dtype, minus.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y.double(), want, rtol=0.1, atol=0.1)
    torch.testing.assert_close(back, x, rtol=0.1, atol=0.1)


def test_nothing_waits_for_values(case):
    """A tensor without values raises where one is asked for."""
    module, x = case
    module, x = module.to("meta").train(), x.to("meta").requires_grad_()
    y, logdet = module(x)
    (y.sum() + logdet.sum()).backward()
    module.inverse(y)
    assert x.grad.shape == x.shape


def test_an_empty_batch(case):
    module, x = case
    y, logdet = module(x[:0])
    assert y.numel() == 0
    assert logdet.shape == (0,)
    assert module.inverse(y)[0].shape == x[:0].shape


def test_frozen_parameters_are_left_out(case):
    module, x = case
    for p in module.parameters():
        p.requires_grad_(False)
    y, logdet, kept = module.keep(x)
    assert module.back(kept, y, torch.ones_like(y), torch.ones_like(logdet))[2] == []


def test_a_1x1_convolution_begins_as_a_rotation():
    for C in (1, 2, 7):
        conv = InvertibleConv1x1(C).double()
        y, logdet = conv(torch.eye(C, dtype=torch.float64))
        torch.testing.assert_close(y @ y.T, torch.eye(C).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(logdet, torch.zeros(C).double(), atol=1e-6, rtol=0)


def test_actnorm_is_set_by_the_first_batch_of_training():
    x = torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1) + 7
    module = ActNorm(3)
    assert torch.equal(module.eval()(x)[0], x)
    y, _ = module.train()(x)
    for moment in (y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0) - 1):
        torch.testing.assert_close(moment, torch.zeros(3), atol=1e-4, rtol=0)
    before = copy.deepcopy(module.state_dict())
    module(9 * x)
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())


def test_actnorm_is_set_anew_only_by_a_state_that_was_not():
    x, fresh = torch.randn(50, 3), ActNorm(3).state_dict()
    first, second = ActNorm(3), ActNorm(3)
    first(x)
    second.load_state_dict(first.state_dict())
    second(5 * x + 1)
    assert torch.equal(second.mean, first.mean)
    assert torch.equal(copy.deepcopy(second)(x)[0], first(x)[0])
    first.load_state_dict(fresh)
    first(5 * x + 1)
    torch.testing.assert_close(first.mean, 5 * second.mean + 1)


def test_actnorm_takes_the_batch_of_all_processes(monkeypatch):
    x = torch.randn(2, 40, 3, dtype=torch.float64) * 3 + torch.tensor([[[1.0]], [[-4.0]]])

    class Two:
        """A group of two processes, of which the other has the second half of x."""

        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)

        @staticmethod
        def all_reduce(both):
            both += torch.stack([x[1].mean(0), x[1].square().mean(0)])

    whole, part = ActNorm(3).double(), ActNorm(3).double()
    whole(x.flatten(0, 1))
    monkeypatch.setattr(normalize, "dist", Two)
    part(x[0])
    torch.testing.assert_close(part.mean, whole.mean)
    torch.testing.assert_close(part.log_std, whole.log_std)


def test_batch_norm_takes_the_moments_of_the_batch():
    x = 3 * torch.randn(40, 2, 3, 3, dtype=torch.float64) + 1
    module, torchs = InvertibleBatchNorm(2, eps=1e-5).double(), nn.BatchNorm2d(2).double()
    for _ in range(4):
        y, logdet = module(x)
        torch.testing.assert_close(y, torchs(x))
    var = x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(logdet, (-4.5 * (var + 1e-5).log().sum()).expand(40))
    torch.testing.assert_close(module.running_mean, torchs.running_mean)
    torch.testing.assert_close(
        module.eval()(x)[0].mean(), torchs.eval()(x).mean(), atol=0.01, rtol=0
    )


def test_squeeze_takes_squares():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y, logdet = Squeeze()(x)
    assert y[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert logdet.tolist() == [0]


def test_logit_by_hand():
    y, logdet = Logit(0.05)(torch.tensor([[0.0, 0.5]]))
    torch.testing.assert_close(y, torch.tensor([[math.log(0.05 / 0.95), 0.0]]))
    by_hand = 2 * math.log(0.9) - math.log(0.05 * 0.95) - 2 * math.log(0.5)
    assert logdet.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Logit(0.5), r"Logit: alpha: expected in \[0, 0.5\), got 0.5"),
        (lambda: Rescale(0), "Rescale: width: expected finite and above 0, got 0"),
        (lambda: Squeeze()(torch.zeros(1, 1, 3, 2)), r"Squeeze: x: expected .* even H and W"),
        (
            lambda: Half(Squeeze())(torch.zeros(1, 3)),
            "Half: x: expected an even number of channels",
        ),
        (
            lambda: InvertibleBatchNorm(2)(torch.zeros(0, 2)),
            r"InvertibleBatchNorm: x: expected 2 numbers a channel, got \(0, 2\)",
        ),
        (
            lambda: InvertibleBatchNorm(2)(torch.zeros(1, 2)),
            r"InvertibleBatchNorm: x: expected 2 numbers a channel, got \(1, 2\)",
        ),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_many_actnorms_are_one_graph_of_torch_compile():
    torch.manual_seed(0)
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    def flow():
        return Chain(*(ActNorm(3) for _ in range(12))), [torch.randn(20, 3) for _ in range(4)]

    chain, batches = flow()
    twin = copy.deepcopy(chain)
    torch.compiler.reset()
    compiled = torch.compile(chain, fullgraph=True, backend=backend)
    for x in batches:
        for got, want in zip(compiled(x), twin(x), strict=True):
            torch.testing.assert_close(got, want)
    assert len(graphs) == 2  # that which sets, and that which has been set
    fresh = flow()[0].state_dict()
    for module in (chain, twin):
        module.load_state_dict(fresh)
    for got, want in zip(compiled(batches[1]), twin(batches[1]), strict=True):
        torch.testing.assert_close(got, want)
    assert chain.steps[0].ready


def test_of_one_row_actnorm_takes_the_mean():
    norm, x = ActNorm(3), torch.randn(1, 3)
    y, logdet = norm(x)
    torch.testing.assert_close(y, torch.zeros(1, 3))
    assert logdet == 0


@pytest.mark.parametrize("kind", [ActNorm, Diagonal, InvertibleBatchNorm])
def test_short_numbers_stay_short(kind):
    x = torch.randn(8, 3, 2, 2).bfloat16()
    for norm in (kind(3), kind(3).bfloat16()):
        y, logdet = norm(x)
        assert (y.dtype, logdet.dtype) == (torch.bfloat16, torch.float32)
        assert norm.inverse(y)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize(
    "kind", [ActNorm, Diagonal, InvertibleBatchNorm, InvertibleConv1x1, InvertibleLinear]
)
def test_other_channels_are_not_broadcast(kind, way):
    for C, shape in ((1, (5, 4)), (4, (5, 1)), (4, (4,)), (3, (2, 4))):
        module = kind(C)
        before = copy.deepcopy(module.state_dict())
        want = rf"{kind.__name__}: x: expected \(B, {C}.*\), got \({shape[0]},"
        with pytest.raises(ValueError, match=want):
            getattr(module, way)(torch.ones(shape))
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])


def test_what_is_no_square_of_pixels():
    for shape in ((2, 3, 4, 4), (8, 4, 4)):
        with pytest.raises(ValueError, match=r"Squeeze: y: expected \(B, 4C, H, W\), got \("):
            Squeeze().inverse(torch.ones(shape))
