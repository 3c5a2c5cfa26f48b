"""CIFAR-10 as its users have it: the binary version, and JPEG files end to end in an npz."""

import importlib
import io

import numpy as np

from .idx import ImageError

SIDE, COLOURS = 32, 3
DEEP = ("I", "F")  # modes of more than 8 bits, which Pillow clips
RECORD = 1 + COLOURS * SIDE**2  # bytes: a label, then rows of red, of green, of blue
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
LUMINANCE = 3688  # the sum of the quantization table that JPEG's appendix K gives for luminance


def bin_folder(path):
    """The folder with the files of the binary version in `path`, or None."""
    for folder in (path, path / "cifar-10-batches-bin"):
        if (folder / FILES["train"][0]).is_file():
            return folder
    return None


def read_bin(folder, part):
    """Images (N, 3, 32, 32) uint8 and labels (N,) of the binary version.

    Raises ImageError, which names the file; OSError.
    """
    rows = []
    for name in FILES[part]:
        data = np.fromfile(folder / name, np.uint8)
        if not len(data) or len(data) % RECORD:
            want = f"records of {RECORD} bytes"
            raise ImageError(f"Images: {folder / name}: expected {want}, got {len(data)} bytes")
        rows.append(data.reshape(-1, RECORD))
    rows = np.concatenate(rows)
    return rows[:, 1:].reshape(-1, COLOURS, SIDE, SIDE), rows[:, 0]


def read_jpegs(data, offset, where):
    """Pictures whose JPEG files are data[offset[i] : offset[i + 1]], and their quality.

    returns: (N, H, W) or (N, H, W, 3) uint8, and 1 ... 100 as the first one's tables say
    Raises ImageError, which names the key and the picture; ImportError without Pillow.
    """
    fits = data.dtype == np.uint8 and data.ndim == 1 and offset.dtype.kind in "iu"
    fits = fits and offset.ndim == 1 and len(offset) > 1 and offset[0] >= 0
    if not fits or (offset[1:] <= offset[:-1]).any() or offset[-1] > len(data):
        raise ImageError(f"Images: {where}: expected bytes, and offsets that rise within them")
    x = []
    for i, (a, b) in enumerate(zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True)):
        x.append(picture(io.BytesIO(data[a:b]), f"{where}: {i}", ("JPEG",)))
        if x[-1].shape != x[0].shape:
            raise ImageError(f"Images: {where}: {i}: expected {x[0].shape}, got {x[-1].shape}")
    first = data[offset[0] : offset[1]]
    return np.stack(x), quality(io.BytesIO(first))


def quality(file):
    """The q of 1 ... 100 that a JPEG's table is scaled by: 2 - q / 50, below 50 that of 50 / q.

    Below about 20 entries end at 255, and the answer is too high.
    """
    with pillow().open(file) as image:
        scale = sum(image.quantization[0]) / LUMINANCE
    return round(100 - 50 * scale if scale <= 1 else 50 / scale)


def picture(file, where, formats=None):
    """(H, W) uint8 of a grey picture, (H, W, 3) of another.

    Raises ImageError, which says where; ImportError without Pillow; OSError.
    """
    library = pillow()
    try:
        with library.open(file, formats=formats) as image:
            if image.mode in DEEP or image.mode.startswith("I;"):
                raise ValueError(f"expected 8 bits a color, got the mode {image.mode}")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ImageError(f"Images: {where}: expected a picture: {error}") from error


def pillow():
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        message = "Images: pictures expected the package pillow: pip install 'fastgen[images]'"
        raise ImportError(message) from error
