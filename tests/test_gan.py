"""GANs: whose parameters a step moves, what noise makes, and how modes are counted."""

import dataclasses
import math

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fastgen.game import GAMES, Game, gradient_penalty
from fastgen.implicit.dcgan import DCGAN
from fastgen.implicit.gan import GAN
from fastgen.implicit.lstm import LSTMGAN
from fastgen.metrics.modes import modes
from fastgen.nn import MinibatchDiscrimination
from fastgen.train import train
from fastgen.verify import games
from fastgen.weights import load

TURN = {"lr": 0.01, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}


def small(**options):
    torch.manual_seed(0)
    return GAN(**{"shape": (2,), "latent": 3, "hidden": (8, 8)} | options)


class Pairs:
    def __init__(self, classes=0):
        self.classes = classes

    def batch(self, step, size):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(size, 2, generator=generator)
        return (x, torch.arange(size) % self.classes) if self.classes else (x,)


def state(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@pytest.mark.parametrize(
    "options", [{}, {"unrolled": 2}, {"penalty": 10.0}, {"classes": 3}, {"minibatch": 3}]
)
@pytest.mark.parametrize("game", ["minimax", "wasserstein", "f-jeffrey"])
def test_each_player_moves_its_own_parameters_alone(game, options):
    model = small(game=game, **options)
    tells, makes = model.players()
    batch = Pairs(options.get("classes", 0)).batch(0, 6)
    for mover, other in ((tells, makes), (makes, tells)):
        model.players = lambda mover=mover: [mover]
        moved, kept = state(mover.module), state(other.module)
        Game(model, "adam", (0.5, 0.9)).turn([batch], **TURN)
        assert not torch.equal(state(mover.module), moved)
        assert torch.equal(state(other.module), kept)


@pytest.mark.parametrize("game", GAMES)
def test_every_game_trains(tmp_path, game):
    model = small(game=game, steps=2)
    options = {"steps": 4, "batch_size": 8, "progress": False, "log_every": 1}
    trained = train(model, Pairs(), out=tmp_path, **options)
    assert trained.sample(5, seed=0).isfinite().all()
    lines = (tmp_path / "log.jsonl").read_text()
    assert '"discriminator/loss"' in lines
    assert '"generator/grad_norm"' in lines
    net, _ = load(tmp_path)
    assert torch.equal(net.sample(5, seed=0), trained.sample(5, seed=0))


def bounded(**options):
    """With a discriminator of spectral norm 1, a generator of normalized weights."""
    model = small(**options)
    for of, net in ((spectral_norm, model.discriminator), (weight_norm, model.generator)):
        for layer in net.modules():
            if isinstance(layer, torch.nn.Linear):
                of(layer)
    return model


@pytest.mark.parametrize(
    ("make", "options"),
    [(small, {"steps": 3}), (bounded, {"steps": 3}), (bounded, {"unrolled": 2})],
)
def test_a_run_that_was_stopped_is_the_run_that_was_not(tmp_path, make, options):
    run = {"batch_size": 8, "progress": False}
    whole = train(make(**options), Pairs(), out=tmp_path / "a", steps=6, **run)
    train(make(**options), Pairs(), out=tmp_path / "b", steps=2, **run)
    parts = train(make(**options), Pairs(), out=tmp_path / "b", steps=6, **run)
    assert torch.equal(state(whole), state(parts))


def test_an_unrolled_discriminator_changes_what_the_generator_learns():
    def slope(unrolled):
        torch.manual_seed(0)
        model = GAN((2,), 3, (8,), unrolled=unrolled, inner_lr=0.1)
        _, makes = model.players()
        torch.manual_seed(1)
        loss = makes.loss(*Pairs().batch(0, 6))
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, [*model.generator.parameters()])]
        )

    assert (slope(0) - slope(3)).norm() > 1e-3 * slope(0).norm()


def test_samples_follow_the_seed_and_the_labels():
    model = small(classes=4)
    label = torch.arange(6) % 4
    a = model.sample(6, seed=1, label=label)
    assert torch.equal(a, model.sample(6, seed=1, label=label))
    assert torch.equal(a[:2], model.sample(2, seed=1, label=label[:2]))
    assert not torch.equal(a, model.sample(6, seed=2, label=label))
    assert not torch.equal(a[1:], model.sample(6, seed=1, label=label.roll(1))[1:])
    z = torch.randn(6, 3)
    assert torch.equal(model.sample(6, z=z, label=label), model.sample(6, z=z, label=label))
    assert model.sample(0, label=label[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"game": "chess"}, "game: expected one of minimax"),
        ({"shape": ()}, "shape, hidden"),
        ({"hidden": (0,)}, "shape, hidden"),
        ({"activation": "sine"}, "activation: expected one of"),
        ({"output": "step"}, "output: expected one of"),
        ({"steps": 0}, "steps: expected an int >= 1, got 0"),
        ({"generator_steps": 0}, "generator_steps: expected an int >= 1, got 0"),
        ({"penalty": -1.0}, "penalty: expected >= 0"),
        ({"minibatch": -1}, "minibatch: expected an int >= 0, got -1"),
        ({"smooth": 0.1, "game": "hinge"}, "smooth: expected 0 of hinge, got 0.1"),
        ({"smooth": 1.5}, r"smooth: expected in \[0, 1\), got 1.5"),
    ],
)
def test_models_refuse_what_they_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        small(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": -1}, "n: expected >= 0"),
        ({"z": torch.ones(2, 2)}, r"z: expected \(4, 3\), got \(2, 2\)"),
        ({"label": torch.zeros(4, dtype=torch.int64)}, "none of a model without classes"),
    ],
)
def test_sampling_refuses_what_does_not_fit(options, match):
    with pytest.raises(ValueError, match=match):
        small().sample(**{"n": 4} | options)
    with pytest.raises(ValueError, match="expected 0 to 2, got 0 to 3"):
        small(classes=3).sample(4, label=torch.arange(4))
    with pytest.raises(ValueError, match=r"expected labels \(4,\)"):
        small(classes=3).sample(4)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (2, 10, 10)])
@pytest.mark.parametrize("classes", [0, 3])
def test_convolutions_make_the_shape_that_is_asked_for(tmp_path, shape, classes):
    torch.manual_seed(0)
    model = DCGAN(shape, latent=5, channels=2, classes=classes)
    label = torch.arange(4) % 3 if classes else None
    batch = (torch.rand(4, *shape), label)[: 1 + bool(classes)]
    source = type("Source", (), {"batch": lambda self, step, size: batch})()
    options = {"steps": 2, "batch_size": 4, "betas": (0.5, 0.999), "progress": False}
    trained = train(model, source, out=tmp_path, **options)
    x = trained.sample(4, seed=0, label=label)
    assert x.shape == (4, *shape)
    assert 0 < x.abs().max() <= 1
    assert torch.equal(load(tmp_path)[0].sample(4, seed=0, label=label), x)


@pytest.mark.parametrize("shape", [(1, 28), (1, 28, 32), (1, 27, 27), (1, 7, 7), (1, 18, 18)])
def test_convolutions_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match="DCGAN: shape: expected"):
        DCGAN(shape)


def test_modes_are_counted():
    centres = torch.eye(4)
    x = torch.cat([centres[0].expand(6, 4), centres[1].expand(2, 4), torch.full((2, 4), 9.0)])
    found = modes(x, centres, 0.1)
    assert found.covered == 2
    assert found.share == 0.8
    assert found.reverse_kl == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1), abs=1e-12)
    even = modes(centres.repeat(5, 1), centres, 0.1)
    assert even == (4, 1.0, pytest.approx(0))
    assert modes(x[-2:], centres, 0.1) == (0, 0.0, math.inf)
    edge = centres[:1] + torch.tensor([0.3, 0, 0, 0])
    assert modes(edge * 0.999999, centres, 0.1).covered == 1
    assert modes(edge * 1.01, centres, 0.1).covered == 0
    with pytest.raises(ValueError, match="some twice"):
        modes(x, torch.ones(2, 4), 0.1)
    with pytest.raises(ValueError, match="sd: expected > 0"):
        modes(x, centres, 0.0)
    with pytest.raises(ValueError, match="centres"):
        modes(x, torch.ones(2, 3), 0.1)


@pytest.mark.parametrize("verify", [games.verify_gan, games.verify_fgan, games.verify_unrolled])
def test_games_verify(verify):
    for check in verify():
        assert check.ok, check


def test_a_wrong_divergence_is_found(monkeypatch):
    wrong = games.DIVERGENCES["kl"]
    monkeypatch.setitem(games.DIVERGENCES, "pearson", wrong)
    assert [c.name for c in games.verify_fgan() if not c.ok] == [
        "pearson: the bound at its best logits"
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"penalty": 10.0}, {"activation": "relu", "classes": 3}, {"minibatch": 3, "smooth": 0.1}],
)
def test_the_generator_sees_the_discriminator_that_adam_would_make(options):
    model = small(unrolled=3, inner_lr=0.01, **options)
    x, *label = Pairs(options.get("classes", 0)).batch(0, 6)
    torch.manual_seed(1)
    got = model.players()[1].loss(x, *label)
    torch.manual_seed(1)
    label = [model.one_hot(x, *label)] if label else []
    fake = model.generator(model.noise(6, x), *label).detach()
    D = model.discriminator
    adam = torch.optim.Adam(D.parameters(), lr=0.01, betas=(0.5, 0.999))
    for _ in range(3):
        loss = model.game.discriminator(D(x, *label), D(fake, *label))
        if "penalty" in options:
            loss = loss + 10 * gradient_penalty(D, x, fake)
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(got, model.game.generator(D(fake, *label)))


@pytest.mark.parametrize("game", ["wasserstein", "f-jeffrey"])
def test_losses_are_of_float32_under_autocast(game):
    model = small(game=game, penalty=10.0)
    with torch.autocast("cpu", torch.bfloat16):
        for player in model.players():
            assert player.loss(*Pairs().batch(0, 6)).dtype == torch.float32


def test_batches_of_another_shape_are_refused():
    DC = DCGAN((1, 8, 8), latent=2, channels=2)
    for player in DC.players():
        with pytest.raises(ValueError, match=r"DCGAN: x: expected examples of \(1, 8, 8\)"):
            player.loss(torch.ones(4, 1, 9, 9))
        with pytest.raises(ValueError, match="GAN: label: expected the batch to have labels"):
            small(classes=3).players()[0].loss(torch.ones(4, 2))


def test_a_model_in_training_samples_as_it_will_when_trained():
    torch.manual_seed(0)
    model = DCGAN((1, 8, 8), latent=2, channels=2).train()
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    x = model.sample(4, seed=0)
    torch.testing.assert_close(model.sample(2, seed=0), x[:2])
    assert model.training
    assert model.generator.training
    for name, t in model.state_dict().items():
        assert torch.equal(t, kept[name])
    torch.testing.assert_close(model.eval().sample(4, seed=0), x)


def test_play_ahead_moves_no_statistics_of_the_discriminators():
    torch.manual_seed(0)
    model = DCGAN((1, 16, 16), latent=3, channels=2, unrolled=2)
    before = {name: b.clone() for name, b in model.discriminator.named_buffers()}
    model.players()[1].loss(torch.randn(6, 1, 16, 16).tanh())
    assert before
    for name, b in model.discriminator.named_buffers():
        assert torch.equal(b, before[name]), name


def test_a_discriminator_may_be_frozen_in_part():
    model = small(unrolled=2)
    first = model.discriminator.layers[0].weight.requires_grad_(False)
    kept = first.clone()
    Game(model, "adam", (0.5, 0.9)).turn([Pairs().batch(0, 6)], **TURN)
    assert torch.equal(first, kept)


def test_a_bound_that_is_exceeded_is_found(monkeypatch):
    kl = games.DIVERGENCES["kl"]
    lost = dataclasses.replace(kl, fake=lambda v: kl.fake(v) - 0.1 * (v - 1).square())
    monkeypatch.setitem(games.DIVERGENCES, "kl", lost)
    assert "kl: at other logits" in [c.name for c in games.verify_fgan() if not c.ok]


def test_players_have_the_rates_and_steps_that_are_asked_for():
    tells, makes = small(discriminator_lr=0.1, steps=2, generator_steps=5).players()
    assert (tells.lr, tells.steps, makes.lr, makes.steps) == (0.1, 2, 1.0, 5)
    model = small(generator_steps=5)
    assert Game(model, "adam", (0.5, 0.9)).batches == 5
    with pytest.raises(ValueError, match="discriminator's steps >= 1 and lr > 0 expected"):
        Game(small(discriminator_lr=0.0), "adam", (0.5, 0.9))
    with pytest.raises(ValueError, match="one step a turn of a simultaneous game"):
        Game(model, "adam", (0.5, 0.9), simultaneous=True)


def test_labels_are_smoothed():
    x = Pairs().batch(0, 6)[0]
    losses = []
    for smooth in (0.0, 0.1):
        model = small(smooth=smooth)
        torch.manual_seed(1)
        losses.append(model.players()[0].loss(x))
    torch.testing.assert_close(losses[1] - losses[0], 0.1 * model.discriminator(x).mean())


@pytest.mark.parametrize("kind", [GAN, DCGAN])
def test_minibatch_discrimination_sees_data_and_samples_apart(kind):
    torch.manual_seed(0)
    model = kind((1, 8, 8), latent=3, minibatch=4).eval()
    x, fake = torch.randn(2, 6, 1, 8, 8).tanh()
    seen = []
    model.game = type("Game", (), {"discriminator": lambda self, d, g: seen.append((d, g))})()
    for made in (fake, fake.flip(0) / 2):
        model.loss(model.discriminator, x, made, None)
    assert torch.equal(seen[0][0], seen[1][0])  # what data are does not depend on samples
    assert not torch.equal(seen[0][1], seen[1][1].flip(0))
    alone = model.discriminator(x[:1])
    assert (alone - seen[0][0][:1]).abs().max() > 1e-4  # but on the other data


@pytest.mark.parametrize("kind", [GAN, DCGAN, LSTMGAN])
def test_minibatch_discrimination_is_fitted_to_data(kind):
    torch.manual_seed(0)
    model, x = kind((1, 8, 8), latent=3, minibatch=4), torch.randn(12, 1, 8, 8).tanh()
    before = {name: t.clone() for name, t in model.state_dict().items() if "running" not in name}
    model.initialize(x)
    [layer] = [m for m in model.modules() if isinstance(m, MinibatchDiscrimination)]
    seen = []
    layer.register_forward_hook(lambda layer, inputs, y: seen.append((inputs[0], y)))
    model.discriminator(x)
    [(inputs, y)] = seen
    torch.testing.assert_close(y[:, -4:].mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    m = layer.features(inputs)
    distance = (m[:, None] - m).abs().sum(3) + 1e9 * torch.eye(12)[:, :, None]
    torch.testing.assert_close(distance.amin(1).mean(0), torch.full((4,), 2.0))
    moved = {name for name, t in before.items() if not torch.equal(t, model.state_dict()[name])}
    ends = {name.rpartition(".")[2] for name in moved}
    assert ends - {"num_batches_tracked"} == {"original0", "bias"}
    with pytest.raises(ValueError, match="rows that differ"):
        model.initialize(x[:1].expand(4, -1, -1, -1))
    with pytest.raises(RuntimeError):
        model.initialize(x.double())
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("fit", [0, 5])
def test_a_wrong_fit_is_found(monkeypatch, fit):
    name = games.FITS[fit][0]
    assert games.fitted(*games.FITS[fit]).ok
    monkeypatch.setitem(games.DIVERGENCES, name, games.DIVERGENCES["reverse-kl"])
    assert not games.fitted(*games.FITS[fit]).ok


def test_what_is_known_of_a_game_fails_where_it_is_broken(monkeypatch):
    wrong = lambda self, d, g: d.square().mean() + g.mean()  # noqa: E731
    monkeypatch.setattr(games.Minimax, "discriminator", wrong)
    assert not games.equal_value().ok
    monkeypatch.setattr(games.BatchNorm, "forward", torch.nn.BatchNorm1d.forward)
    assert [games.mates(stats).ok for stats in ("reference", "virtual")] == [False, False]
    monkeypatch.setitem(games.POINTS, "ring", games.POINTS["two_moons"])
    assert not games.ring().ok
    monkeypatch.setattr(games.figure1, "play", lambda *args, **options: None)
    assert not games.line_learned().ok
