"""The ring's experiment: GANs that train side by side are those that train alone."""

import json
import math

import pytest
import ring
import torch

from fastgen import GAN
from fastgen.game import Game

TURN = {"lr": 0.01, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}


class Given:
    """Noise that is given beforehand, for one GAN or several."""

    def noise(self, n, like):
        return self.given[:, :n].flatten(0, 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"unrolled": 2}, {"minibatch": 3}, {"game": "f-kl", "steps": 2, "activation": "relu"}],
)
def test_side_by_side_is_alone(monkeypatch, options):
    torch.manual_seed(0)
    alone = [GAN((2,), 3, (8, 6), inner_lr=0.01, **options).double() for _ in range(2)]
    beside = ring.GANs(alone)
    x, z = torch.randn(2, 5, 2).double(), torch.randn(2, 5, 3).double()
    for kind in (GAN, ring.GANs):
        monkeypatch.setattr(kind, "noise", Given.noise, raising=False)
    beside.given = z
    game = Game(beside, "adam", (0.5, 0.9))
    game.turn([(x.flatten(0, 1),)] * game.batches, **TURN)
    for i, model in enumerate(alone):
        model.given = z[i : i + 1]
        Game(model, "adam", (0.5, 0.9)).turn([(x[i],)] * game.batches, **TURN)
        mine = slice(5 * i, 5 * i + 5)
        torch.testing.assert_close(
            beside.discriminator(x.flatten(0, 1))[mine], model.discriminator(x[i])
        )
        torch.testing.assert_close(beside.generator(z.flatten(0, 1))[mine], model.generator(z[i]))


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ring, "SIDE", 2)
    monkeypatch.setattr(ring, "COUNTED", 50)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    argv = ["ring.py", str(tmp_path), "--steps", "2", "--only", "GAN", "f-GAN, kl", "--seeds"]
    for seeds in ("2", "3"):
        monkeypatch.setattr("sys.argv", [*argv, seeds])
        ring.main()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["experiment"], row["seed"]) for row in rows] == [
        ("GAN", 0),
        ("GAN", 1),
        ("f-GAN, kl", 0),
        ("f-GAN, kl", 1),
        ("GAN", 2),
        ("f-GAN, kl", 2),
    ]
    assert (tmp_path / "ring.md").read_text().count("| 2     | 3 ") == 2
    monkeypatch.setattr("sys.argv", [*argv, "2", "--steps", "1"])
    ring.main()  # of other turns, which have rows of their own
    assert (tmp_path / "ring.md").read_text().count("| 1     | 2 ") == 2


def test_a_seed_that_diverges_has_no_modes_and_spoils_no_other(monkeypatch):
    def trained(options, seeds, steps):
        if 2 in seeds:
            raise ValueError("a loss that is not finite")
        return list(seeds)

    monkeypatch.setattr(ring, "trained", trained)
    assert ring.found_by({}, [0, 1, 2, 3], 5) == [0, 1, (0, 0.0, math.inf), 3]
    assert ring.spread([1.0, math.inf]) == "∞"
    assert ring.spread([1.0, 3.0]) == "2.00 ± 1.41"
