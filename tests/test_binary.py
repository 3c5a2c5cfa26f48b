"""FVSBN, NADE and MADE: densities that sum to one, see the past alone, and sample themselves."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fastgen import checkpoint, kernels, weights
from fastgen.tractable import nade
from fastgen.tractable.fvbn import FVSBN
from fastgen.tractable.made import MADE
from fastgen.tractable.nade import NADE
from fastgen.train import train

ORDER = [3, 0, 5, 4, 1, 2]
SHAPE = (1, 3, 2)
MODELS = {
    "fvsbn": lambda: FVSBN(SHAPE),
    "fvsbn, in an order": lambda: FVSBN(SHAPE, ORDER),
    "nade": lambda: NADE(SHAPE, 5),
    "nade, in an order": lambda: NADE((6,), 1, ORDER),
    "made": lambda: MADE(SHAPE, (20,)),
    "made without a hidden layer": lambda: MADE(SHAPE, ()),
    "made, deep and direct, in an order": lambda: MADE(SHAPE, (9, 8, 7), 1, ORDER, True),
    "made, a mixture of masks": lambda: MADE(SHAPE, (12, 8), 3, seed=5),
    "made, a mixture of orders": lambda: MADE((2, 3, 1), (12,), 4, "random", True),
    "one pixel": lambda: MADE((1, 1, 1), (3,), 2, "random"),
}


@pytest.fixture(params=MODELS)
def model(request):
    return spread(MODELS[request.param]())


def spread(model, seed=0):
    """A float64 model whose probabilities are neither flat nor sharp."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator).mul_(0.7)
    return model


def images(shape):
    D = math.prod(shape)
    return torch.tensor([*itertools.product((0, 1), repeat=D)]).view(-1, *shape)


def index(x):
    """The row of `images` that each of x is."""
    x = x.flatten(1)
    return x @ 2 ** torch.arange(x.shape[1] - 1, -1, -1)


def test_sums_to_one(model):
    assert model.log_prob(images(model.shape)).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_log_prob_is_the_chain_rule_over_the_logits(model):
    x = images(model.shape)
    each = []
    for s in range(len(model.order)):
        p = torch.sigmoid(model(x, s))
        assert p.shape == x.shape
        each.append(torch.where(x == 1, p, 1 - p).flatten(1).prod(1))
    torch.testing.assert_close(model.log_prob(x).exp(), torch.stack(each).mean(0))
    D = model.pixels
    torch.testing.assert_close(model.bits_per_dim(x), -model.log_prob(x) / D / math.log(2))


def test_sees_the_past_of_its_order_alone(model):
    x = images(model.shape)
    for s, order in enumerate(model.order):
        logits = model(x, s)
        for i, pixel in enumerate(order.tolist()):
            flip = F.one_hot(torch.tensor(pixel), model.pixels).view(model.shape)
            moved = (model(x ^ flip, s) - logits).abs().flatten(1).amax(0) > 1e-12
            assert not moved[order[: i + 1]].any()


def test_samplers_agree_and_sample_the_density(model):
    n, x = 20_000, images(model.shape)
    u = kernels.uniforms(3, n, model.pixels).view(n, *model.shape)
    fast, naive = (model.sample(n, uniforms=u, method=m, dtype="float64") for m in METHODS)
    assert torch.equal(fast, naive)
    assert torch.equal(fast, model.sample(n, seed=3, dtype="float64"))
    assert fast.dtype == torch.int64
    held(fast, model.log_prob(x).exp())


METHODS = ("cached", "naive")


def held(drawn, p):
    """Pearson's chi-square, over the images of which ten or more are expected."""
    p = p.detach()
    expected, got = len(drawn) * p, torch.bincount(index(drawn), minlength=len(p))
    assert not got[p == 0].any()
    often = expected >= 10
    statistic = ((got - expected).square() / expected)[often].sum().item()
    degrees = int(often.sum())
    assert statistic < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "name", ["fvsbn", "nade", "made", "made, deep and direct", "made, a mixture of masks"]
)
def test_what_begins_the_order_can_be_given(name):
    make = {**MODELS, "made, deep and direct": lambda: MADE(SHAPE, (9, 8), direct=True)}[name]
    model, n, x = spread(make()), 20_000, images(SHAPE)
    given = torch.tensor([[1, 0], [1, -1]]).view(1, 1, 2, 2)
    agree = ((x[:, :, :2] == given) | (given < 0)).flatten(1).all(1)
    p = model.log_prob(x).exp() * agree
    prefix = given.expand(n, -1, -1, -1)
    fast, naive = (
        model.sample(n, seed=1, prefix=prefix, method=m, dtype="float64") for m in METHODS
    )
    assert torch.equal(fast, naive)
    held(fast, p / p.sum())


def test_pixels_given_out_of_turn_stay(model):
    x = images(model.shape)[-5:]
    prefix = x.clone()
    prefix.view(len(x), -1)[:, 0] = -1
    got = model.sample(len(x), seed=0, prefix=prefix)
    assert torch.equal(got.flatten(1)[:, 1:], x.flatten(1)[:, 1:])


def test_cold_samples_are_the_likelier_value_each(model):
    cold = model.sample(2, seed=0, temperature=0, dtype="float64")
    for x in cold[:1] if len(model.order) == 1 else ():
        assert torch.equal(model(x[None]) > 0, x[None] == 1)
    assert model.sample(0, seed=0).shape == (0, *model.shape)
    assert model(cold[:0]).shape == (0, *model.shape)


def test_float32_is_float64_rounded(model):
    x = images(model.shape)
    exact = model.log_prob(x)
    torch.testing.assert_close(model.float().log_prob(x).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("D", [1, 2, 31, 32, 33, 70])
@pytest.mark.parametrize("ones", [0.0, 0.2, 1.0])
def test_nade_is_its_equation(D, ones):
    model = spread(NADE((D,), 4))
    x = (torch.rand(5, D, generator=torch.Generator().manual_seed(1)) < ones).long()
    want = []
    for i in range(D):
        h = torch.sigmoid(model.c + x[:, :i].double() @ model.W[:i])
        want.append(h @ model.V[i] + model.b[i])
    torch.testing.assert_close(model(x), torch.stack(want, dim=1), rtol=1e-12, atol=1e-12)


def test_nade_has_gradients_of_gradients():
    x = (torch.rand(3, nade.CHUNK + 3, generator=torch.Generator().manual_seed(0)) < 0.3).long()
    model = spread(NADE((x.shape[1],), 2))
    names = [name for name, _ in model.named_parameters()]

    def logits(*values):
        values = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, values, (x,)).square()

    leaves = [p.detach().requires_grad_() for p in model.parameters()]
    torch.autograd.gradcheck(logits, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(logits, leaves, fast_mode=True)


def test_nade_keeps_a_hidden_layer_for_each_one_not_each_pixel():
    B, D, H, kept = 50, 784, 64, []
    x = torch.zeros(B, D, dtype=torch.int64)
    x[:, ::100] = 1
    count = lambda t: kept.append(t.numel()) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        NADE((D,), H)(x)
    assert sum(kept) < B * D * H / 3


def test_made_masks_are_those_of_the_paper():
    model = MADE((5,), (40, 30), sets=6, order="random", seed=1)
    for s in range(6):
        assert model.order[s].sort()[0].tolist() == [0, 1, 2, 3, 4]
        first, second = model.degree0[s], model.degree1[s]
        assert first.unique().tolist() == [1, 2, 3, 4]
        assert int(second.min()) >= int(first.min())
        assert int(second.max()) <= 4
    assert len({tuple(order) for order in model.order.tolist()}) > 1
    assert torch.equal(model.order, MADE((5,), (40, 30), 6, "random", seed=1).order)
    assert not torch.equal(model.degree0, MADE((5,), (40, 30), 6, "random", seed=2).degree0)


def test_each_set_of_masks_is_played():
    model = spread(MADE((4,), (8,), sets=3, order="random"))
    x = images((4,))
    alone = {round(-model.log_prob_of(x, s).mean().item() / 4, 9) for s in range(3)}
    [player] = model.players()
    torch.manual_seed(0)
    assert {round(player.loss(x).item(), 9) for _ in range(40)} == alone


class Stripes:
    """Images whose columns are alike: a bit each, so that the entropy is ln 2 a column."""

    def batch(self, step, size):
        bits = torch.randint(2, (size, 1, 1, 3), generator=torch.Generator().manual_seed(step))
        return (bits.expand(-1, -1, 4, -1).contiguous(),)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FVSBN((1, 4, 3)),
        lambda: NADE((1, 4, 3), 16),
        lambda: MADE((1, 4, 3), (64,), direct=True),
        lambda: MADE((1, 4, 3), (64, 64), 2, "random"),
    ],
)
def test_learns_what_there_is_to_learn(make, tmp_path):
    torch.manual_seed(0)
    options = {"steps": 300, "batch_size": 32, "lr": 0.03, "ema": 0.9, "progress": False}
    model = train(make(), Stripes(), out=tmp_path, **options)
    nats = -model.log_prob(*Stripes().batch(10**6, 200)).mean().item()
    assert 3 * math.log(2) - 0.1 < nats < 3 * math.log(2) + 0.4
    loaded, _ = weights.load(tmp_path)
    x = images((1, 4, 3))[::50]
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))


def test_a_file_brings_orders_and_masks(tmp_path, model):
    meta = {"model": type(model).__name__, "config": model.config}
    model = model.float()
    checkpoint.save(tmp_path / "m.safetensors", model.state_dict(), meta)
    loaded, _ = weights.load(tmp_path / "m.safetensors")
    x = images(model.shape)
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert torch.equal(loaded.order, model.order)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FVSBN(()), "FVSBN: shape: expected"),
        (lambda: NADE((2, 3)), "NADE: shape: expected"),
        (lambda: NADE((1, 0, 3)), "NADE: shape: expected"),
        (lambda: NADE((1 << 21,)), "at most 1048576 pixels"),
        (lambda: NADE((4,), 0), "NADE: hidden: expected an int >= 1, got 0"),
        (lambda: NADE((4,), 2, [0, 1, 2]), "NADE: order: expected a permutation of 0 ... 3"),
        (lambda: FVSBN((4,), [0, 1, 2, 2]), "FVSBN: order: expected a permutation"),
        (lambda: MADE((4,), 500), "MADE: hidden: expected sizes of layers, got 500"),
        (lambda: MADE((4,), (5, 0)), "MADE: hidden 1: expected an int >= 1, got 0"),
        (lambda: MADE((4,), (5,), 0), "MADE: sets: expected an int >= 1, got 0"),
        (lambda: MADE((4,), (5,), 1, "raster"), "MADE: order: expected a permutation"),
        (lambda: MADE((4,), seed=-1), "seed: expected 0 <= seed"),
    ],
)
def test_a_model_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": -1}, ValueError, "n: expected an int >= 0, got -1"),
        ({"n": 2.5}, ValueError, "n: expected an int >= 0, got 2.5"),
        ({"temperature": torch.ones(3)}, ValueError, "temperature: expected finite"),
        ({"method": "fast"}, ValueError, "method: expected 'cached' or 'naive', got 'fast'"),
        ({"dtype": "int8"}, ValueError, "dtype: expected 'float32' or 'float64', got 'int8'"),
        ({"temperature": -1.0}, ValueError, "temperature: expected finite and >= 0, got -1"),
        ({"temperature": math.nan}, ValueError, "temperature: expected finite"),
        ({"uniforms": torch.zeros(2, 6)}, ValueError, r"uniforms: expected \(2, 1, 3, 2\)"),
        ({"uniforms": torch.ones(2, *SHAPE)}, ValueError, r"uniforms: expected values in \[0, 1\)"),
        ({"prefix": torch.zeros(2, 1, 4, 2).long()}, ValueError, "at most 3, 2"),
        ({"prefix": torch.zeros(1, 1, 2, 2).long()}, ValueError, "prefix: expected"),
        ({"prefix": torch.zeros(2, 3).long()}, ValueError, "prefix: expected"),
        ({"prefix": torch.zeros(2, 1, 1, 2)}, TypeError, "prefix: expected int64"),
        ({"prefix": torch.full((2, 1, 1, 2), 2)}, ValueError, "prefix: expected 0, 1, or -1"),
        ({"seed": -1}, ValueError, "seed: expected 0 <= seed"),
    ],
)
def test_what_cannot_be_sampled(options, error, message):
    with pytest.raises(error, match=message):
        FVSBN(SHAPE).sample(**{"n": 2, **options})


def test_logits_that_are_not_finite():
    model = FVSBN(SHAPE)
    torch.nn.init.constant_(model.bias, math.nan)
    for method in METHODS:
        with pytest.raises(ValueError, match="logit of image 0 at place 0 is not finite"):
            model.sample(2, seed=0, method=method)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 6).long(), ValueError, r"FVSBN: x: expected \(B, 1, 3, 2\), got \(2, 6\)"),
        (torch.zeros(()).long(), ValueError, "FVSBN: x: expected"),
        (torch.zeros(2, *SHAPE), TypeError, "FVSBN: x: expected int64, got torch.float32"),
        (torch.full((2, *SHAPE), 2), ValueError, "expected values 0 and 1, got 2 to 2"),
        (torch.full((2, *SHAPE), -1), ValueError, "expected values 0 and 1, got -1 to -1"),
    ],
)
def test_what_is_no_image(x, error, message):
    with pytest.raises(error, match=message):
        FVSBN(SHAPE).log_prob(x)
