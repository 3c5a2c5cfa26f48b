"""CIFAR-10 is found and read in each of its forms, or one error names what is wrong."""

import io

import numpy as np
import pytest
import torch

from fastgen.data import Batches, ImageError, Images, find_images, images


def some(N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (N, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, N, dtype="u1")


def write_bin(folder):
    """8 images a file; returns those to train on and those to test on."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        x, labels = some(8, i)
        records = np.concatenate([labels[:, None], x.reshape(8, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        parts.append((x, labels))
    return [np.concatenate(p) for p in zip(*parts[:5], strict=True)], parts[5]


def write_jpegs(path, quality, N=45, **change):
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    arrays, shown = {}, {}
    for part, n in (("train", N), ("test", 3)):
        x = np.repeat(np.repeat(rng.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8), 8, 1), 8, 2)
        files, seen = [], []
        for image in x:
            file = io.BytesIO()
            pillow.fromarray(image).save(file, "JPEG", quality=quality)
            files.append(file.getvalue())
            seen.append(np.asarray(pillow.open(file)))
        shown[part] = np.stack(seen).transpose(0, 3, 1, 2)
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offset_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = np.arange(n) % 10
    np.savez(path, **arrays | change)
    return shown


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_the_binary_version(tmp_path, monkeypatch, place):
    monkeypatch.setattr(images, "FOLDERS", ())
    monkeypatch.setenv("FASTGEN_DATA", str(tmp_path))
    (x, labels), (test, test_labels) = write_bin(tmp_path / "CIFAR10" / place)
    held = np.arange(40) % 20 == 0
    for split, want, y in (
        ("train", x[~held], labels[~held]),
        ("held out", x[held], labels[held]),
        ("test", test, test_labels),
    ):
        got = Images("cifar", split)
        assert np.array_equal(got.x, want)
        assert got.labels.tolist() == y.tolist()
        assert got.title == "CIFAR-10"
    assert images.has_test("cifar")


def test_pictures_and_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FOLDERS", ())
    monkeypatch.setenv("FASTGEN_DATA", str(tmp_path))
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "cifar10" / "train" / "cat").mkdir(parents=True)
    x, _ = some(1)
    pillow.fromarray(x[0].transpose(1, 2, 0)).save(tmp_path / "cifar10" / "train" / "cat" / "0.png")
    assert np.array_equal(Images("cifar", "held out").x, x)
    np.savez(tmp_path / "cifar10-jpeg.npz", x_train=x)
    assert find_images("cifar") == tmp_path / "cifar10"
    (tmp_path / "cifar10").rename(tmp_path / "elsewhere")
    assert find_images("cifar") == tmp_path / "cifar10-jpeg.npz"


def test_pickles_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FOLDERS", ())
    monkeypatch.setenv("FASTGEN_DATA", str(tmp_path))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileNotFoundError, match="Python version holds pickles, which can run code"):
        Images("cifar")
    with pytest.raises(FileNotFoundError, match="expected pictures or IDX files, got none"):
        Images(folder)
    with pytest.raises(ImageError, match=r"data_batch_1: expected an npz file"):
        Images(folder / "data_batch_1")


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpegs_end_to_end(tmp_path, monkeypatch, quality):
    monkeypatch.setattr(images, "FOLDERS", ())
    monkeypatch.setenv("FASTGEN_DATA", str(tmp_path))
    want = write_jpegs(tmp_path / "cifar10.npz", quality)
    got = Images("cifar")
    held = np.arange(45) % 20 == 0
    assert np.array_equal(got.x, want["train"][~held])
    assert got.labels.tolist() == (np.arange(45) % 10)[~held].tolist()
    assert got.title == f"CIFAR-10 (JPEG {quality})"
    assert np.array_equal(Images("cifar", "test").x, want["test"])
    assert images.has_test("cifar")
    assert Images(tmp_path / "cifar10.npz").title == f"{tmp_path / 'cifar10.npz'} (JPEG {quality})"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset_train": np.array([0, 5, 3])}, "offsets that rise"),
        ({"offset_train": np.array([0, 1 << 40])}, "offsets that rise"),
        ({"offset_train": np.array([-1, 9])}, "offsets that rise"),
        ({"offset_train": np.array([0.0, 9.0])}, "offsets that rise"),
        ({"offset_train": np.array([3])}, "offsets that rise"),
        ({"offset_train": np.array([0, 100])}, "jpeg_train: 0: expected a picture"),
        ({"jpeg_train": np.zeros(9)}, "expected bytes"),
        ({"y_train": np.zeros(3, int)}, "y_train: expected 45 labels"),
    ],
)
def test_broken_jpegs(tmp_path, change, message):
    write_jpegs(tmp_path / "a.npz", 75, **change)
    with pytest.raises(ImageError, match=message):
        Images(tmp_path / "a.npz")


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_a_broken_binary_version(tmp_path, size):
    write_bin(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(ImageError, match=rf"data_batch_3.bin: expected records .* got {size} byte"):
        Images(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3"):
        Images(tmp_path)


def test_flips(tmp_path):
    x, _ = some(21)
    np.savez(tmp_path / "a.npz", images=x)
    data = Images(tmp_path / "a.npz")
    plain, flipped = (Batches(data, 256, seed=3, flips=flips) for flips in (False, True))
    (a,), (b,) = plain.batch(5, 200), flipped.batch(5, 200)
    mirrored = (a.flip(3) == b).flatten(1).all(1)
    assert torch.equal(mirrored, (a != b).flatten(1).any(1))
    assert 60 < mirrored.sum() < 140
    assert torch.equal(b, flipped.batch(5, 200)[0])
    assert not torch.equal(b, flipped.batch(6, 200)[0])
