"""What is written as PNG is read back equal, and grids hold each image where it belongs."""

import numpy as np
import pytest
import torch

from fastgen.data import grid, write_png


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (28, 28), (3, 1, 1), (3, 4, 9)])
def test_written_is_read(tmp_path, shape):
    pillow = pytest.importorskip("PIL.Image")
    x = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_png(tmp_path / "a.png", x)
    with pillow.open(tmp_path / "a.png") as image:
        assert image.mode == ("L" if x.dim() == 2 else "RGB")
        got = np.asarray(image)
    want = x if x.dim() == 2 else x.permute(1, 2, 0)
    assert np.array_equal(got, want)


def test_a_grid():
    x = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2) * 10
    got = grid(x, columns=3, margin=1, scale=2)
    assert got.shape == (3, 1 + 2 * 5, 1 + 3 * 5)
    for i in range(6):
        top, left = 1 + 5 * (i // 3), 1 + 5 * (i % 3)
        tile = got[:, top : top + 4, left : left + 4]
        assert tile.unique().tolist() == [10 * i if i < 5 else 128]
    lines = torch.ones_like(got[0], dtype=torch.bool)
    for i in range(6):
        lines[1 + 5 * (i // 3) :][:4, 1 + 5 * (i % 3) :][:, :4] = False
    assert got[:, lines].unique().tolist() == [128]


def test_a_grid_by_default():
    x = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    assert grid(x).shape == (8 * 58 + 2, 8 * 58 + 2)
    assert grid(x[:1], margin=0, scale=1).shape == (28, 28)
    assert grid(x[:, :, :3, :3]).shape == (8 * 65 + 2, 8 * 65 + 2)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.zeros(2, 2, 4, 4), {}),
        (torch.zeros(2, 4, 4), {}),
        (torch.zeros(0, 1, 4, 4), {}),
        (torch.zeros(2, 1, 4, 4), {"scale": 0}),
        (torch.zeros(2, 1, 4, 4), {"columns": 0}),
        (torch.zeros(2, 1, 4, 4), {"margin": -1}),
    ],
)
def test_no_grid(x, options):
    with pytest.raises(ValueError, match="grid: expected"):
        grid(x.to(torch.uint8), **options)


@pytest.mark.parametrize("shape", [(2,), (0, 3), (2, 4, 4), (1, 3, 4, 4)])
def test_no_png(tmp_path, shape):
    with pytest.raises(ValueError, match=r"a\.png: expected \(H, W\) or \(3, H, W\)"):
        write_png(tmp_path / "a.png", torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"a\.png: expected uint8, got torch.float32"):
        write_png(tmp_path / "a.png", torch.zeros(3, 3))
    assert not list(tmp_path.iterdir())
