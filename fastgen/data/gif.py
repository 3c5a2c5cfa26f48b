"""GIF files: animations of pixels that are places in a palette, by an LZW of our own."""

import struct

import torch

from ..files import atomic

CODES = 1 << 12  # that LZW may have


def write_gif(path, frames, palette, seconds=0.1):
    """Write `frames`, (N, H, W) uint8, places in a palette, whole or not at all; played for ever.

    A frame's pixels are written where it differs from the one before it.

    palette: (K, 3) uint8, K <= 256    seconds: that a frame stays, in hundredths
    Raises TypeError for other dtypes, ValueError for other shapes and places that there are not;
    OSError naming the file.
    """
    check(path, frames, palette, seconds)
    _, H, W = frames.shape
    bits = max(1, (len(palette) - 1).bit_length())
    colours = bytes(palette.flatten().tolist()).ljust(3 << bits, b"\0")
    with atomic(path) as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", W, H, 0x80 | (bits - 1), 0, 0) + colours)
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", 0) + b"\0")
        before = None
        for frame in frames.cpu():
            file.write(picture(frame, before, bits, round(100 * seconds)))
            before = frame
        file.write(b";")


def check(path, frames, palette, seconds):
    if frames.dtype != torch.uint8 or palette.dtype != torch.uint8:
        got = f"{frames.dtype} and {palette.dtype}"
        raise TypeError(f"write_gif: {path}: expected uint8, got {got}")
    sizes = tuple(frames.shape)
    if frames.dim() != 3 or not frames.numel() or max(sizes[1:]) >= 1 << 16:
        raise ValueError(
            f"write_gif: {path}: expected (N, H, W), none 0, H and W < 65,536, got {sizes}"
        )
    if palette.dim() != 2 or palette.shape[1] != 3 or not 0 < len(palette) <= 256:
        got = tuple(palette.shape)
        raise ValueError(f"write_gif: {path}: palette: expected (1 ... 256, 3), got {got}")
    if int(frames.max()) >= len(palette):
        got = int(frames.max())
        raise ValueError(f"write_gif: {path}: expected places < {len(palette)}, got {got}")
    if not 0 <= seconds < 655:
        raise ValueError(f"write_gif: {path}: seconds: expected 0 to 655, got {seconds}")


def picture(frame, before, bits, hundredths):
    """The bytes of a frame (H, W): of the rectangle in which it differs from the one before."""
    top, left, (H, W) = 0, 0, frame.shape
    if before is not None:
        rows, columns = ((frame != before).any(d).nonzero()[:, 0].tolist() for d in (1, 0))
        rows, columns = rows or [0], columns or [0]
        top, left = rows[0], columns[0]
        H, W = rows[-1] + 1 - top, columns[-1] + 1 - left
    head = b"!\xf9\x04\x04" + struct.pack("<HBB", hundredths, 0, 0)  # left in place
    head += b"," + struct.pack("<HHHHB", left, top, W, H, 0)
    size = max(2, bits)
    data = lzw(frame[top : top + H, left : left + W].flatten().tolist(), size)
    parts = (data[i : i + 255] for i in range(0, len(data), 255))
    return head + bytes([size]) + b"".join(bytes([len(p)]) + p for p in parts) + b"\0"


def lzw(values, size):
    """Values below 2^size in codes of growing width, the first bit lowest.

    Welch 1984, A technique for high-performance data compression; GIF89a, appendix F.
    """
    clear, end = 1 << size, (1 << size) + 1
    known, width = {}, size + 1  # (code of a prefix, value): code
    out, fill = clear, width  # bits not yet written, from the lowest on, and their number
    written = bytearray()
    code = values[0]
    for value in values[1:]:
        longer = known.get((code, value))
        if longer is not None:
            code = longer
            continue
        out |= code << fill
        fill += width
        new = end + 1 + len(known)
        if new < CODES:
            known[code, value] = new
            width += new == 1 << width
        else:
            out |= clear << fill
            fill += width
            known, width = {}, size + 1
        if fill >= 64:
            whole = fill // 8
            written += (out & ((1 << 8 * whole) - 1)).to_bytes(whole, "little")
            out, fill = out >> 8 * whole, fill - 8 * whole
        code = value
    out |= code << fill
    fill += width
    # The decoder's table has grown by one more when it reads the last code.
    new = end + 1 + len(known)
    width += new == 1 << width and width < 12
    out |= end << fill
    fill += width
    return bytes(written + out.to_bytes(-(-fill // 8), "little"))
