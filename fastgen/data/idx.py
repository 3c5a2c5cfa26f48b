"""IDX files, the format of MNIST, compressed by gzip or not."""

import gzip
import math
import zlib

import numpy as np

GZIP = b"\x1f\x8b"
UINT8 = 0x08
MOST = 1 << 32  # bytes


class ImageError(ValueError):
    """A file that is not whole or not of images; names the file and the byte or key."""


def read_idx(path, dims):
    """The unsigned bytes of an IDX file, as a NumPy array of `dims` dimensions.

    Raises ImageError, which names the file, the byte, what was expected and what was there;
    OSError if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP
        with gzip.open(path) if zipped else open(path, "rb") as file:
            return _parse(file, dims)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"read_idx: {path}: broken gzip: {error}") from error
    except ImageError as error:
        raise ImageError(f"read_idx: {path}: {error}") from None


def _parse(file, dims):
    magic = file.read(4)
    if magic != bytes([0, 0, UINT8, dims]):
        want = bytes([0, 0, UINT8, dims]).hex(" ")
        raise ImageError(f"byte 0: expected {want} ({dims} dimensions), got {magic.hex(' ')}")
    head = file.read(4 * dims)
    if len(head) < 4 * dims:
        raise ImageError(f"byte 4: expected {dims} sizes of 4 bytes, got {len(head)} bytes")
    shape = [int(n) for n in np.frombuffer(head, ">u4")]
    size, start = math.prod(shape), 4 + 4 * dims
    if size > MOST:
        raise ImageError(f"byte 4: expected at most {MOST} values, got {shape}")
    data = file.read(size + 1)
    if len(data) != size:
        got = "more" if len(data) > size else len(data)
        raise ImageError(f"byte {start}: expected {size} values of {shape}, got {got}")
    return np.frombuffer(data, np.uint8).reshape(shape)
