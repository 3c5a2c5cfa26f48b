"""What is shown of a GAN of points while it learns, and what a run that goes on keeps of it."""

import json

import numpy as np
import pytest
import torch

from fastgen.data import POINTS
from fastgen.film import FIRST, FRAMES, PALETTE, PLAIN, SHOWN, SIZE, Film

RING = POINTS["ring"]


def logged(out, step):
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def at(*modes):
    """Samples that are spread evenly over the centres of some modes."""
    return RING.rule[0][list(modes)].repeat(SHOWN // len(modes), 1).float()


def test_modes_and_the_share_of_each(tmp_path):
    film = Film(tmp_path, RING)
    for step, modes in ((100, (3,)), (300, (0, 5)), (400, (6, 2, 1, 4))):
        logged(tmp_path, step)
        film.add(at(*modes) + (0.059 if step < 400 else 0.061) * torch.tensor([0.0, 1.0]))
    seen = film.history()
    assert tuple(seen.shape) == SIZE
    H, W = SIZE
    bright = lambda k: FIRST + 2 * k  # noqa: E731
    assert (seen[:, : W // 4] == bright(3)).all()
    assert (seen[: H // 2, W // 4 : 3 * W // 4] == bright(5)).all()
    assert (seen[H // 2 :, W // 4 : 3 * W // 4] == bright(0)).all()
    for i, k in enumerate((6, 4, 2, 1)):  # dim, as more than 3 standard deviations off
        assert (seen[H // 4 * i : H // 4 * (i + 1), 3 * W // 4 :] == bright(k) + 1).all()
    assert (tmp_path / "modes.png").is_file()
    assert len(PALETTE.unique(dim=0)) == len(PALETTE)


def test_a_frame_shows_samples_and_how_far_the_run_is(tmp_path):
    film = Film(tmp_path, RING)
    for step in (50, 100):
        logged(tmp_path, step)
        film.add(at(2))
    first, last = film.frame(0), film.frame(1)
    assert (first[-1] == PLAIN).sum() == len(first) // 2
    assert (last[-1] == PLAIN).all()
    rows, columns = (first == FIRST + 4).nonzero(as_tuple=True)
    assert rows.max() < len(first) // 8  # the mode 2 is above
    assert abs(columns.float().mean() - len(first) / 2) < 2


def test_a_run_that_goes_on_keeps_what_came_before(tmp_path):
    film = Film(tmp_path, RING)
    for step in (10, 20, 30):
        logged(tmp_path, step)
        film.add(at(step // 10))
    (tmp_path / "log.jsonl").unlink()
    again = Film(tmp_path, RING)
    logged(tmp_path, 20)
    again.add(at(7))
    assert again.steps == [10, 20]
    assert torch.equal(torch.stack(again.samples), torch.stack([at(1), at(7)]))
    with np.load(tmp_path / "film.npz") as file:
        assert file["steps"].tolist() == [10, 20]


@pytest.mark.parametrize("left", [0, 4, 300])
def test_a_broken_film_is_begun_anew(tmp_path, left):
    film = Film(tmp_path, RING)
    logged(tmp_path, 10)
    film.add(at(1))
    whole = (tmp_path / "film.npz").read_bytes()
    (tmp_path / "film.npz").write_bytes(whole[:left])
    again = Film(tmp_path, RING)
    logged(tmp_path, 20)
    again.add(at(7))
    assert again.steps == [20]


def test_a_long_run_has_no_more_frames_than_a_short_one(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    film = Film(tmp_path, POINTS["two_moons"])
    film.steps, film.samples = [*range(3 * FRAMES)], [at(0)] * 3 * FRAMES
    logged(tmp_path, 3 * FRAMES)
    film.add(at(1))
    with pillow.open(tmp_path / "samples.gif") as image:
        assert image.n_frames == FRAMES
    assert not (tmp_path / "modes.png").exists()  # a curve has no modes
