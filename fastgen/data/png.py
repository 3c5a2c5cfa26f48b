"""PNG files, written by zlib alone, and grids of small images."""

import struct
import zlib

import torch

from ..files import atomic

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2


def write_png(path, pixels):
    """Write `pixels`, (H, W) or (3, H, W) uint8, whole or not at all.

    Raises TypeError for another dtype, ValueError for another shape; OSError naming the file.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"write_png: {path}: expected uint8, got {pixels.dtype}")
    if pixels.dim() not in (2, 3) or (pixels.dim() == 3 and len(pixels) != 3) or not pixels.numel():
        got = tuple(pixels.shape)
        raise ValueError(f"write_png: {path}: expected (H, W) or (3, H, W), none 0, got {got}")
    H, W = pixels.shape[-2:]
    colour = GREY if pixels.dim() == 2 else RGB
    rows = pixels.cpu().movedim(0, -1) if colour else pixels.cpu()
    # a byte before each row names its filter, and 0 is none
    lines = torch.nn.functional.pad(rows.reshape(H, -1), (1, 0)).numpy().tobytes()
    head = struct.pack(">IIBBBBB", W, H, 8, colour, 0, 0, 0)
    with atomic(path) as file:
        file.write(SIGNATURE + _chunk(b"IHDR", head))
        file.write(_chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b""))


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grid(images, columns=None, margin=2, scale=None):
    """Images side by side, row by row, a margin of grey around each.

    images: (N, C, H, W) uint8, C 1 or 3    columns: about sqrt(N) unless given
    scale: how many pixels wide and high a pixel becomes; unless given, what makes an image 64 wide
    returns: (H', W') or (3, H', W') uint8
    Raises ValueError for other shapes and numbers below 1.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
        got = tuple(images.shape)
        raise ValueError(f"grid: expected (N, 1 or 3, H, W), none 0, got {got}")
    N, C, _, W = images.shape
    scale = max(1, round(64 / W)) if scale is None else scale
    columns = min(N, max(1, round(N**0.5)) if columns is None else columns)
    if min(scale, columns) < 1 or margin < 0:
        got = f"{scale}, {columns} and {margin}"
        raise ValueError(f"grid: expected scale, columns >= 1 and margin >= 0, got {got}")
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    tiles = torch.nn.functional.pad(images, (0, margin, 0, margin), value=128)
    empty = tiles.new_full((-N % columns, *tiles.shape[1:]), 128)
    tiles = torch.cat([tiles, empty])
    rows = tiles.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # (C, rows, H, columns, W)
    whole = rows.flatten(3, 4).flatten(1, 2)
    whole = torch.nn.functional.pad(whole, (margin, 0, margin, 0), value=128)
    return whole[0] if C == 1 else whole
