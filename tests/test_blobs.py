"""Images of blobs hold what they say, and blobs are counted exactly."""

import pytest
import torch

from fastgen.data.blobs import APART, BLOBS, blobs, centres, discs, mirrored, read_blobs
from fastgen.data.images import Images, has_test
from fastgen.metrics import counts
from fastgen.metrics.counts import count_blobs, mirror_overlap, swapped, total_variation


@pytest.mark.parametrize(("name", "number"), [("blobs", 5), ("mirrored", 6)])
@pytest.mark.parametrize("part", ["train", "test"])
def test_the_counter_is_exact_on_the_data(name, number, part):
    x = torch.from_numpy(read_blobs(name, part))
    assert (count_blobs(x) == number).all()
    overlap = mirror_overlap(x)
    assert (overlap == 1).all() if name == "mirrored" else overlap.mean() < 0.2
    assert mirror_overlap(swapped(x)).mean() < 0.2


def test_sets_have_splits_of_their_own():
    parts = {split: Images("blobs", split).x[:, 0] for split in ("train", "held out", "test")}
    assert {split: len(x) for split, x in parts.items()} == {
        "train": 19_000,
        "held out": 1000,
        "test": 2000,
    }
    x = torch.cat([*parts.values()]).flatten(1).double()
    assert len((x @ torch.rand(x.shape[1], dtype=torch.float64)).unique()) == 22_000
    assert has_test("mirrored")
    assert Images("mirrored").labels is None
    assert Images("mirrored").shape == (1, 32, 32)


@pytest.mark.parametrize("draw", BLOBS.values())
def test_images_follow_the_seed(draw):
    x = draw(9, 3)
    assert torch.equal(draw(5, 3), x[:5])
    assert not torch.equal(draw(9, 4), x)


def test_centres_are_apart_and_in_their_box():
    at = centres(200, 3, 0, 8.75)
    gap = (at[:, :, None] - at[:, None]).norm(dim=3)
    assert gap[gap > 0].min() >= APART
    low, high = at.flatten(0, 1).amin(0), at.flatten(0, 1).amax(0)
    assert (low >= 3.5).all()
    assert high[0] <= 12.25
    assert 27 < high[1] <= 27.5


def test_discs_are_round():
    x = discs(torch.tensor([[[10.0, 20.0]], [[10.25, 20.0]]], dtype=torch.float64))
    assert x[0, 0, 20, 7:14].tolist() == [0, 128, 255, 255, 255, 128, 0]
    assert x[0, 0, 17:24, 10].tolist() == [0, 128, 255, 255, 255, 128, 0]
    assert x[1, 0, 20, 7:14].tolist() == [0, 64, 255, 255, 255, 191, 0]
    assert torch.equal(x[0], x[0].transpose(1, 2).roll((10, -10), (1, 2)))


def drawn(*rows):
    return torch.tensor([[255 * (c == "#") for c in row] for row in rows], dtype=torch.uint8)


def test_counts_by_hand(monkeypatch):
    monkeypatch.setattr(counts, "BLOCK", 3)
    images = {
        drawn("....", "....", "...."): 0,
        drawn("####", "####", "####"): 1,
        drawn("#...", ".#..", "..#."): 1,  # neighbours at corners
        drawn("#.#.", "....", "#..#"): 4,
        drawn("###.", "#.#.", "###."): 1,  # a hole
        drawn("#.##", "#.#.", "###."): 1,  # a bend
        drawn("##.#", "##..", "...#"): 3,
    }
    x = torch.stack([*images])[:, None]
    assert count_blobs(x).tolist() == [*images.values()]
    assert count_blobs(x[:0]).tolist() == []
    assert count_blobs(x.clamp(max=127)).tolist() == [0] * len(x)
    assert count_blobs(x.clamp(max=128)).tolist() == [*images.values()]
    # the longest way: a snake through a whole image
    snake = torch.zeros(1, 1, 31, 32, dtype=torch.uint8)
    snake[..., ::2, :] = 255
    assert count_blobs(snake).item() == 16
    snake[..., 1::4, -1] = snake[..., 3::4, 0] = 255
    assert count_blobs(snake).item() == 1


def test_total_variation_by_hand():
    a, b = torch.tensor([5, 5, 5, 5]), torch.tensor([4, 5, 5, 6, 7, 5, 5, 5])
    assert total_variation(a, b) == 3 / 8
    assert total_variation(b, a) == 3 / 8
    assert total_variation(a, a) == 0
    assert total_variation(a, a + 1) == 1


def test_mirror_overlap_by_hand():
    even, half, none = drawn("#..#", ".##."), drawn("##.#", "...."), drawn("#...", "....")
    x = torch.stack([even, half, none, torch.zeros_like(none)])[:, None]
    assert mirror_overlap(x).tolist() == [1, 2 / 4, 0, 1]
    assert torch.equal(swapped(x)[1, 0], drawn("##.#", "..#."))
    assert mirror_overlap(mirrored(20, 1)).min() == 1
    assert mirror_overlap(blobs(20, 1)).max() < 1


def test_what_is_not_an_image_is_refused():
    with pytest.raises(ValueError, match=r"count_blobs: expected images \(N, 1, H, W\), got"):
        count_blobs(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError, match="mirror_overlap: expected uint8"):
        mirror_overlap(torch.zeros(2, 1, 4, 4))
    for a in ([], [-1]):
        with pytest.raises(ValueError, match="total_variation: expected counts >= 0"):
            total_variation(torch.tensor(a), torch.tensor([1]))
