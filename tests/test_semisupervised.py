"""Semi-supervised GANs: what each player moves, whose labels are known, and what is learned."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastgen import SemiSupervisedGAN, gans
from fastgen.data.levels import PartlyLabelled
from fastgen.game import Game
from fastgen.implicit import semisupervised as own
from fastgen.train import train
from fastgen.verify import semisupervised as verify
from fastgen.weights import load

TURN = {"lr": 0.01, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}


def small(**options):
    torch.manual_seed(0)
    sizes = {"shape": (6,), "logits": 4, "latent": 3, "made": (8,), "hidden": (12, 7)}
    return SemiSupervisedGAN(**sizes | options)


class Patterns:
    """Four patterns of bits, of which each bit of a row is another with probability 0.3.

    16 rows have labels, all others come once.
    """

    def __init__(self, bits=6):
        generator = torch.Generator().manual_seed(7)
        self.patterns = (torch.rand(4, bits, generator=generator) < 0.5).float()

    def draw(self, label, seed):
        u = torch.rand(len(label), self.patterns.shape[1], generator=seeded(seed))
        return (self.patterns[label] - (u < 0.3).float()).abs()

    def batch(self, step, size):
        known = torch.arange(size) % 16
        x = self.draw(torch.arange(16) % 4, 0)[known]
        label = torch.randint(4, (size,), generator=seeded(1 + step))
        return x, known % 4, self.draw(label, 1 + step)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def state(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@pytest.mark.parametrize("options", [{}, {"kernels": 3}, {"matching": False, "game": "hinge"}])
def test_each_player_moves_its_own_parameters_alone(options):
    model = small(**options)
    tells, makes = model.players()
    for mover, other in ((tells, makes), (makes, tells)):
        model.players = lambda mover=mover: [mover]
        moved, kept = state(mover.module), state(other.module)
        Game(model, "adam", (0.5, 0.9)).turn([Patterns().batch(0, 8)], **TURN)
        assert not torch.equal(state(mover.module), moved)
        assert torch.equal(state(other.module), kept)


def test_norms_stay_but_of_the_last_layer():
    model = small()
    model.initialize(Patterns().batch(0, 8)[2])
    norms = lambda: [  # noqa: E731
        p.clone() for name, p in model.discriminator.named_parameters() if "original0" in name
    ]
    before = norms()
    Game(model, "adam", (0.5, 0.9)).turn([Patterns().batch(0, 8)], **TURN)
    assert [torch.equal(a, b) for a, b in zip(before, norms(), strict=True)] == [True, True, False]


def test_the_pace_is_the_generators_own():
    rates = [player.lr for player in small(pace=3.0).players()]
    assert rates == [1, 3]


def test_without_weight_labels_alone_are_learned():
    model = small(weight=0.0)
    [tells] = model.players()
    x, label, unlabelled = Patterns().batch(0, 8)
    model.eval()
    assert tells.loss(x, label, unlabelled) == tells.loss(x, label, 0 * unlabelled)
    want = -model.classify(x).gather(1, label[:, None]).mean()
    torch.testing.assert_close(tells.loss(x, label, unlabelled), want)


@pytest.mark.parametrize("options", [{}, {"kernels": 3, "matching": False}, {"weight": 0.0}])
def test_a_run_that_was_stopped_is_the_run_that_was_not(tmp_path, options):
    more = {"batch_size": 8, "progress": False}
    whole = train(small(**options), Patterns(), out=tmp_path / "a", steps=5, **more)
    train(small(**options), Patterns(), out=tmp_path / "b", steps=2, **more)
    parts = train(small(**options), Patterns(), out=tmp_path / "b", steps=5, **more)
    assert torch.equal(state(whole), state(parts))
    net, _ = load(tmp_path / "a")
    x = Patterns().batch(0, 8)[2]
    assert torch.equal(net.classify(x), whole.classify(x))
    if net.config["weight"]:
        assert torch.equal(net.sample(5, seed=0), whole.sample(5, seed=0))
        assert 0 <= net.sample(5, seed=0).min() <= net.sample(5, seed=0).max() <= 1


@pytest.mark.parametrize("kernels", [0, 3])
def test_batches_in_one_pass_do_not_meet(kernels):
    model = small(kernels=kernels).eval()
    x, _, other = Patterns().batch(0, 8)
    with torch.no_grad():
        both, alone = model.logits(x, other), [model.logits(v)[0] for v in (x, other)]
    for got, want in zip(both, alone, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(model.classify(x).exp().sum(1), torch.ones(8))
    mates = model.classify(torch.cat([x[:1], other[1:]]))[0]
    assert torch.equal(mates, model.classify(x)[0]) == (not kernels)


def test_a_model_in_training_classifies_as_it_will_when_trained():
    model, x = small(), Patterns().batch(0, 8)[2]
    found = model.classify(x)
    assert model.training
    assert model.discriminator.training
    torch.testing.assert_close(model.classify(x), found)
    torch.testing.assert_close(model.eval().classify(x), found)


def test_images_without_labels_are_of_use(tmp_path):
    source, errors = Patterns(64), []
    label = torch.arange(4000) % 4
    for weight in (0.0, 1.0):
        model = small(weight=weight, shape=(64,), latent=8, made=(32,), hidden=(64, 32))
        model.initialize(source.batch(0, 100)[2])
        options = {"steps": 300, "batch_size": 40, "lr": 1e-3, "betas": (0.5, 0.999)}
        options |= {"schedule": "cosine", "progress": False}
        trained = train(model, source, out=tmp_path / str(weight), **options)
        x = source.draw(label, 1 << 20)
        errors.append((trained.classify(x).argmax(1) != label).double().mean().item())
    assert 0.1 < errors[0] < 0.3
    assert errors[1] < 0.6 * errors[0]


def test_losses_are_of_float32_under_autocast():
    for options in ({}, {"kernels": 3, "matching": False}):
        with torch.autocast("cpu", torch.bfloat16):
            for player in small(**options).players():
                assert player.loss(*Patterns().batch(0, 8)).dtype == torch.float32


def test_pictures_are_of_noise_that_there_is():
    model = small(shape=(1, 2, 2), latent=40)
    seen = []
    model.generator.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    for show in ("interpolations", "traversal"):
        gans.PICTURES[show](model, 64, 0, None)
    for z in seen:
        assert 0 <= z.min() <= z.max() <= 1
    ends = seen[1].view(8, 8, -1)[:, [0, -1]].diagonal(dim1=0, dim2=2)  # (2, 8)
    torch.testing.assert_close(ends, torch.tensor([[0.02], [0.98]]).expand(2, 8))


def test_a_generator_that_does_not_play_makes_nothing():
    with pytest.raises(ValueError, match="sample: expected weight > 0, got 0"):
        small(weight=0.0).sample(2, seed=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": ()}, "shape, logits, made, hidden: expected ints >= 1"),
        ({"hidden": ()}, "shape, logits, made, hidden"),
        ({"logits": 0}, "shape, logits, made, hidden"),
        ({"made": (2.5,)}, "shape, logits, made, hidden"),
        ({"kernels": -1}, "kernels, weight: expected >= 0, got -1"),
        ({"weight": math.inf}, "kernels, weight: expected >= 0, got 3 and inf"),
        ({"pace": 0.0}, "pace: expected > 0, got 0.0"),
        ({"output": "tanh"}, r"output: expected one of \['softplus', 'sigmoid'\], got 'tanh'"),
        ({"game": "chess"}, "SemiSupervisedGAN: game: expected one of minimax"),
        ({"latent": 0}, "latent: expected an int >= 1"),
        ({"steps": 0}, "steps: expected an int >= 1"),
    ],
)
def test_models_refuse_what_they_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        small(**{"kernels": 3} | options)


def test_batches_of_another_shape_are_refused():
    model, (x, label, u) = small(), Patterns().batch(0, 8)
    tells, makes = model.players()
    for call in (
        lambda: tells.loss(x[:, 1:], label, u),
        lambda: tells.loss(x, label, u[:, 1:]),
        lambda: makes.loss(x, label, u[:, 1:]),
        lambda: model.classify(x[:, 1:]),
        lambda: model.initialize(x[:, 1:]),
    ):
        with pytest.raises(ValueError, match=r"x: expected examples of \(6,\), got \(5,\)"):
            call()


def test_one_example_has_no_spread_to_be_fitted_to():
    with pytest.raises(ValueError, match="initialize: x: expected at least 2 examples, got 1"):
        small().initialize(torch.zeros(1, 6))


def test_a_sigmoid_that_is_driven_far_has_no_slope():
    for output, vanishes in (("sigmoid", True), ("softplus", False)):
        model = small(output=output)
        with torch.no_grad():
            model.generator.layers[-3].bias += 200.0
        x = model.make(torch.rand(4, 3))
        assert x.max() == 1  # as a picture; the discriminator is shown what is above
        slopes = torch.autograd.grad(
            model.players()[1].loss(None, None, Patterns().batch(0, 8)[2]),
            model.generator.layers[-3].bias,
        )
        assert (slopes[0].abs().max() == 0) == vanishes


def images(N=90):
    x = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).expand(N, 1, 2, 2)
    return SimpleNamespace(x=x, labels=torch.arange(N) % 3, classes=3, path="here")


def test_labels_are_known_of_as_many_of_each_class():
    source = PartlyLabelled(images(), 12, seed=5)
    assert torch.bincount(images().labels[source.rows]).tolist() == [4, 4, 4]
    seen = torch.cat([source.batch(i, 10)[2][:, 0, 0, 0] for i in range(9)])
    assert sorted(seen.tolist()) == [*range(90)]
    x, label, _ = source.batch(0, 12)
    assert sorted(x[:, 0, 0, 0].tolist()) == sorted(source.rows.tolist())
    assert torch.equal(x[:, 0, 0, 0] % 3, label)
    again = PartlyLabelled(images(), 12, seed=5)
    for step in (7, 0):
        for got, want in zip(again.batch(step, 10), source.batch(step, 10), strict=True):
            assert torch.equal(got, want)
    assert not torch.equal(source.rows, PartlyLabelled(images(), 12, seed=6).rows)
    assert len(source.batch(0, 40)[0]) == 40  # more than there are with labels


@pytest.mark.parametrize(
    ("labels", "known", "match"),
    [
        (0, True, "labels: expected a multiple of the 3 classes, got 0"),
        (10, True, "labels: expected a multiple of the 3 classes, got 10"),
        (93, True, "labels: expected 31 images of each class, got 30 of class 0"),
        (3, False, "labels: expected images with labels, got none in here"),
    ],
)
def test_labels_that_there_are_not_are_refused(labels, known, match):
    some = images()
    some.labels = some.labels if known else None
    with pytest.raises(ValueError, match=match):
        PartlyLabelled(some, labels, seed=0)


def test_all_hold():
    assert [check.name for check in verify.verify() if not check.ok] == []


def failing():
    return {check.name.split(":")[0] for check in verify.verify() if not check.ok}


def test_what_is_wrong_is_found(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(own, "feature_matching", lambda real, fake: (real - fake).mean(0).sum())
        assert failing() == {"feature matching of equal batches"}
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "logsumexp", lambda l, dim: l.amax(dim))
        assert "-log D is that of K + 1 classes" in failing()
        assert "unlabelled images' slope" in failing()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "logsumexp", lambda l, dim: l.exp().sum(dim).log())
        assert failing() == {"losses and slopes at logits of +-100"}
    with monkeypatch.context() as patch:
        patch.setattr(own, "standardize", lambda std, layer, inputs, y: y)
        assert failing() == {"initial outputs"}


@pytest.fixture
def digits(tmp_path):
    path = tmp_path / "set.npz"
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(80) % 3, x_test=x[:9], y_test=np.arange(9) % 3)
    return path


def run(*words):
    pytest.importorskip("tyro")
    from fastgen import cli

    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("more", [(), ("--no-matching", "--kernels", 3), ("--weight", 0)])
def test_images_are_learned_tested_and_made(tmp_path, digits, capsys, more):
    out = tmp_path / "run"
    sizes = ["--hidden", 9, 8, "--made", 7, "--steps", 3, "--batch-size", 5]
    command = ["train", "semisup", "--data", digits, "--labels", 6, "--out", out, *sizes]
    assert run(*command, *more) == 0
    assert "held out" in capsys.readouterr().out
    assert (out / "samples.png").is_file() == ("--weight" not in more)
    assert run("eval", out) == 0
    assert "9 test images" in capsys.readouterr().out
    alone = "--weight" in more  # the classifier; then there is nothing to be sampled
    for show in ("interpolations", "traversal", "samples"):
        made = run("sample", out, "--n", 4, "--show", show, "--out", tmp_path / "a.png")
        assert made == (2 if alone else 0)
    told = capsys.readouterr()
    assert ("expected weight > 0" in told.err) if alone else ("4 images of 8 x 8" in told.out)


@pytest.mark.parametrize("other", [("--labels", 3), ("--labels", 6, "--seed", 1)])
def test_a_run_keeps_the_labels_that_it_began_with(tmp_path, digits, capsys, other):
    command = ["train", "semisup", "--data", digits, "--out", tmp_path / "run", "--batch-size", 5]
    command += ["--hidden", 9, 8, "--made", 7]
    assert run(*command, "--labels", 6, "--steps", 1) == 0
    assert run(*command, *other, "--steps", 2) == 2
    assert "labelled expected" in capsys.readouterr().err
    assert run(*command, "--labels", 6, "--steps", 2) == 0


def test_what_cannot_be_trained_is_refused(tmp_path, digits, capsys):
    command = ["train", "semisup", "--data", digits, "--out", tmp_path / "run", "--steps", 1]
    assert run(*command) == 2
    assert "labels: expected a multiple of the 3 classes, got 100" in capsys.readouterr().err
    assert run(*command, "--labels", 3, "--weight", -1) == 2
    assert "weight: expected >= 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_verify_by_the_command(capsys):
    assert run("verify", "semisup") == 0
    assert "8 of 8 hold" in capsys.readouterr().out
