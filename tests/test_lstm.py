"""The generator that draws a column a step, and what it learns of a discriminator to come."""

import math

import numpy as np
import pytest
import torch

from fastgen import LSTMGAN
from fastgen.game import Game
from fastgen.train import train
from fastgen.weights import load


def small(**options):
    torch.manual_seed(0)
    return LSTMGAN(**{"shape": (2, 8, 8), "latent": 3, "units": 6, "channels": 2} | options)


class Images:
    def __init__(self, classes=0):
        self.classes = classes

    def batch(self, step, size):
        x = 2 * torch.rand(size, 2, 8, 8, generator=torch.Generator().manual_seed(step)) - 1
        return (x, torch.arange(size) % self.classes) if self.classes else (x,)


def test_a_column_knows_those_before_it_alone():
    G = small().generator
    z, seen = torch.randn(4, 3), []
    G.lstm.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    x = G(z)
    for t in range(8):
        want = torch.tanh(G.last(seen[0][:, t])).view(4, 2, 8)
        torch.testing.assert_close(x[:, :, :, t], want)
        grads = torch.autograd.grad(x[:, :, :, t].sum(), seen[0], retain_graph=True)[0]
        assert grads[:, t].abs().sum() > 0
        assert not grads[:, :t].any()
        assert not grads[:, t + 1 :].any()
    h = c = torch.zeros(1, 4, 6)
    for t in range(8):
        one, (h, c) = G.lstm(z[:, None], (h, c))
        torch.testing.assert_close(one[:, 0], seen[0][:, t])


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("unrolled", [0, 2])
def test_it_is_trained_and_loaded(tmp_path, classes, unrolled):
    model = small(classes=classes, unrolled=unrolled, inner_lr=0.01)
    options = {"steps": 2, "batch_size": 4, "progress": False}
    trained = train(model, Images(classes), out=tmp_path, **options)
    label = torch.arange(4) % 3 if classes else None
    x = trained.sample(4, seed=0, label=label)
    assert x.shape == (4, 2, 8, 8)
    assert 0 < x.abs().max() <= 1
    assert torch.equal(load(tmp_path)[0].sample(4, seed=0, label=label), x)


def test_looking_ahead_changes_what_is_learned_and_moves_no_other():
    slopes = []
    for unrolled in (0, 3):
        model = small(unrolled=unrolled, inner_lr=0.05)
        makes = model.players()[1]
        model.players = lambda makes=makes: [makes]
        kept = [p.detach().clone() for p in model.discriminator.parameters()]
        game = Game(model, "adam", (0.5, 0.9))
        torch.manual_seed(1)
        turn = {"lr": 0.01, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}
        game.turn([Images().batch(0, 6)], **turn)
        slopes.append(game.descents[0].gradient[:-2].clone())
        for p, before in zip(model.discriminator.parameters(), kept, strict=True):
            assert torch.equal(p, before)
    assert (slopes[0] - slopes[1]).norm() > 1e-3 * slopes[0].norm()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (1, 8, 9)}, "shape: expected"),
        ({"units": 0}, "LSTMGAN: units, channels: expected ints >= 1, got 0 and 2"),
        ({"channels": 1.5}, "LSTMGAN: units, channels"),
        ({"unrolled": -1}, "LSTMGAN: unrolled: expected an int >= 0"),
    ],
)
def test_models_refuse_what_they_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        small(**options)


def test_the_command(tmp_path, capsys):
    pytest.importorskip("tyro")
    from fastgen import cli

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", x_train=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    out, options = tmp_path / "run", ["--units", "4", "--channels", "2", "--unrolled", "1"]
    train = ["train", "lstmgan", "--data", str(tmp_path / "set.npz"), "--out", str(out), *options]
    assert cli.main([*train, "--steps", "2", "--batch-size", "4"]) == 0
    assert (out / "samples.png").is_file()
    assert cli.main(["sample", str(out), "--n", "3", "--out", str(tmp_path / "a.png")]) == 0
    assert "3 images of 8 x 8" in capsys.readouterr().out
