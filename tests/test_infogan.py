"""InfoGAN: whose parameters the bound moves, what codes draw, and what Q reads."""

import math

import pytest
import torch

from fastgen import InfoGAN, infogan
from fastgen.game import Game
from fastgen.train import train
from fastgen.verify.infogan import verify_infogan
from fastgen.weights import load

TURN = {"lr": 0.01, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}


def small(**options):
    torch.manual_seed(0)
    sizes = {"latent": 3, "categories": 4, "channels": 2, "units": 8}
    return InfoGAN((1, 8, 8), **sizes | options)


class Noise:
    def batch(self, step, size):
        return (torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(step)),)


def state(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_all_hold():
    assert [check for check in verify_infogan() if not check.ok] == []


def failing():
    return [check.name for check in verify_infogan() if not check.ok]


def test_a_q_of_its_own_is_found(monkeypatch):
    """Q that does not train the layers that it shares, as of other InfoGANs."""
    from fastgen.implicit import infogan as module

    def both(self, x):
        h = self.trunk(x)
        return self.last(h)[:, 0], self.q(h.detach())

    monkeypatch.setattr(module.Discriminator, "both", both)
    assert "the bound moves" in failing()


def test_a_wrong_density_is_found(monkeypatch):
    right = InfoGAN.nats
    monkeypatch.setattr(InfoGAN, "nats", lambda *args: right(*args) + 0.01)
    assert failing()[:3] == [
        "35 pairs, Q exact: bound = information",
        "35 pairs, other Q: below by the mean KL",
        "N(0.3, 0.7^2) of an even code: bound",
    ]


@pytest.mark.parametrize("game", ["nonsaturating", "wasserstein"])
@pytest.mark.parametrize("continuous", [0, 2])
def test_each_player_moves_its_own_parameters_alone(game, continuous):
    model = small(game=game, continuous=continuous)
    tells, makes = model.players()
    for mover, other in ((tells, makes), (makes, tells)):
        model.players = lambda mover=mover: [mover]
        moved, kept = state(mover.module), state(other.module)
        Game(model, "adam", (0.5, 0.9)).turn([Noise().batch(0, 6)], **TURN)
        assert not torch.equal(state(mover.module), moved)
        assert torch.equal(state(other.module), kept)


def test_the_generator_learns_faster():
    tells, makes = small(generator_lr=7.0, steps=3).players()
    assert (tells.lr, tells.steps, makes.lr, makes.steps) == (1, 3, 7, 1)


def test_the_bound_is_the_log_density():
    model = small(sd=0.4).double().eval()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    category, c = torch.arange(6) % 4, torch.rand(6, 2, dtype=torch.float64)
    codes, got = model.codes(x), model.bound(x, category, c)
    normal = torch.distributions.Normal(codes.continuous, 0.4)
    torch.testing.assert_close(got[:, 1:], normal.log_prob(c) + math.log(2))
    each = torch.distributions.Categorical(logits=codes.category)
    torch.testing.assert_close(got[:, 0], each.log_prob(category) + math.log(4))
    torch.testing.assert_close(codes.category.exp().sum(1), torch.ones(6).double())


def test_codes_are_read_as_in_evaluation():
    model, x = small(), torch.rand(6, 1, 8, 8)
    model.discriminator(x)  # so that the running statistics are not those of a batch
    found = model.codes(x)
    assert model.training
    torch.testing.assert_close(model.eval().codes(x), found)
    torch.testing.assert_close(model.codes(x[:1]).category, found.category[:1])


def test_samples_follow_the_seed_and_the_codes():
    model = small()
    a = model.sample(6, seed=1)
    assert torch.equal(a, model.sample(6, seed=1))
    assert torch.equal(a, model.sample(6, **model.draw(6, 1)))
    torch.testing.assert_close(a[:2], model.sample(2, seed=1))
    category = (model.draw(6, 1)["category"] + 1) % 4
    assert not torch.equal(a, model.sample(6, seed=1, category=category))
    assert not torch.equal(a, model.sample(6, seed=1, continuous=torch.ones(6, 2)))
    assert not torch.equal(a, model.sample(6, seed=1, z=torch.zeros(6, 3)))
    assert model.sample(0).shape == (0, 1, 8, 8)


def test_codes_are_drawn_evenly():
    drawn = small().draw(4000, 0)
    count = drawn["category"].bincount(minlength=4)
    assert (count - 1000).abs().max() < 150
    assert drawn["continuous"].abs().max() <= 1
    assert drawn["continuous"].std(0).sub(1 / math.sqrt(3)).abs().max() < 0.02
    assert drawn["z"].std(0).sub(1).abs().max() < 0.05
    z = small().noise(4000, torch.zeros(1))
    assert torch.equal(z[:, 3:7].sum(1), torch.ones(4000))
    assert z[:, 7:].abs().max() <= 1
    assert z[:, 3:7].mean(0).sub(0.25).abs().max() < 0.04


def test_a_run_is_loaded_again(tmp_path):
    options = {"steps": 3, "batch_size": 8, "progress": False}
    trained = train(small(), Noise(), out=tmp_path, **options)
    again, _ = load(tmp_path)
    assert torch.equal(again.sample(4, seed=0), trained.sample(4, seed=0))
    x = trained.sample(4, seed=0)
    assert torch.equal(again.codes(x).category, trained.codes(x).category)


def test_a_traversal_goes_along_each_code():
    model = small(continuous=2)
    x, columns = infogan.traversal(model, 0)
    assert (len(x), columns) == (4 * 20, 20)
    z = model.draw(1, 0)["z"]
    second = {"category": torch.tensor([1]), "continuous": torch.tensor([[0.0, -2.0]])}
    torch.testing.assert_close(x[20 + 10][None], model.sample(1, z=z, **second))
    assert infogan.traversal(small(continuous=0), 0)[1] == 1


def test_categories_are_matched_with_classes():
    found, labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), torch.tensor([2, 2, 0, 0, 0, 0, 1, 1])
    share, pairs = infogan.accuracy(found, labels)
    assert pairs == [(0, 2), (1, 0), (2, 1)]
    assert share == 6 / 8
    assert infogan.accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1]))[0] == 3 / 4


def test_bounds_have_their_errors():
    model = small().eval()
    found = infogan.bounds(model, 300, 0)
    drawn = model.draw(300, 0)
    x = model.sample(300, **drawn)
    with torch.no_grad():
        nats = model.bound(x, drawn["category"], drawn["continuous"]).double()
    torch.testing.assert_close(found[:, 0], nats.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[:, 1], nats.std(0) / 300**0.5, rtol=1e-4, atol=1e-6)


def test_losses_are_of_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        for player in small().players():
            assert player.loss(*Noise().batch(0, 6)).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"game": "chess"}, "InfoGAN: game: expected one of minimax"),
        ({"categories": 1}, "categories: expected an int >= 2, got 1"),
        ({"continuous": -1}, "continuous: expected an int >= 0, got -1"),
        ({"units": 7}, "units: expected an int >= 8, got 7"),
        ({"weight": 0}, "weight: expected > 0, got 0"),
        ({"sd": math.inf}, "sd: expected > 0, got inf"),
        ({"latent": 0}, "latent: expected an int >= 1, got 0"),
    ],
)
def test_models_refuse_what_they_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        small(**options)
    with pytest.raises(ValueError, match="InfoGAN: shape: expected"):
        InfoGAN((1, 9, 9))


def test_other_shapes_are_refused():
    model, x = small(), torch.rand(4, 1, 8, 8)
    one, c = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"bound: category: expected \(4,\), got \(3,\)"):
        model.bound(x, one[:3], c)
    with pytest.raises(ValueError, match=r"bound: continuous: expected \(4, 2\), got \(4, 1\)"):
        model.bound(x, one, c[:, :1])
    with pytest.raises(ValueError, match="category: expected 0 to 3, got 4 to 4"):
        model.sample(4, category=one + 4)
    with pytest.raises(ValueError, match=r"sample: z: expected \(4, 3\)"):
        model.sample(4, z=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="n: expected >= 0"):
        model.sample(-1)
    with pytest.raises(ValueError, match="InfoGAN: x: expected examples of"):
        model.codes(x[..., 1:])
    for player in model.players():
        with pytest.raises(ValueError, match="InfoGAN: x: expected examples of"):
            player.loss(x[..., 1:])
    with pytest.raises(ValueError, match="files: expected at least 2"):
        infogan.bounds(model, 1, 0)
