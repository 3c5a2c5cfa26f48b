"""What is written as GIF is read back equal, by a decoder of these tests and by Pillow."""

import struct

import numpy as np
import pytest
import torch

from fastgen.data import write_gif
from fastgen.data.gif import CODES, lzw


def unpacked(data, size):
    """The values of an LZW's codes."""
    clear, end = 1 << size, (1 << size) + 1
    bits, values, width = int.from_bytes(data, "little"), [], size + 1
    while True:
        code, bits = bits & ((1 << width) - 1), bits >> width
        if code == end:
            assert bits == 0
            return values
        if code == clear:
            table, width, before = {i: [i] for i in range(clear)}, size + 1, None
            free = end + 1
            continue
        row = table[code] if code in table else [*before, before[0]]
        if before is not None and free < CODES:
            table[free] = [*before, row[0]]
            free += 1
        assert table[code] == row
        width = min(12, max(width, free.bit_length()))
        values += row
        before = row


def read(path):
    """Frames (N, H, W, 3) of a file, their hundredths of seconds, and their rectangles."""
    data = path.read_bytes()
    assert data[:6] == b"GIF89a"
    W, H, flags, _, _ = struct.unpack_from("<HHBBB", data, 6)
    K, at = 2 << (flags & 7), 13
    palette = np.frombuffer(data, np.uint8, 3 * K, at).reshape(K, 3)
    at += 3 * K
    assert data[at : at + 19] == b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    at += 19
    canvas, frames, times, boxes = np.zeros((H, W), np.uint8), [], [], []
    while data[at] != ord(";"):
        assert data[at : at + 4] == b"!\xf9\x04\x04"
        times.append(struct.unpack_from("<H", data, at + 4)[0])
        at += 8
        assert data[at] == ord(",")
        left, top, w, h = struct.unpack_from("<HHHH", data, at + 1)
        size, parts, at = data[at + 10], [], at + 11
        while data[at]:
            parts.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        values = unpacked(b"".join(parts), size)
        canvas[top : top + h, left : left + w] = np.reshape(values, (h, w))
        frames.append(palette[canvas])
        boxes.append((left, top, w, h))
        at += 1
    assert at == len(data) - 1
    return np.stack(frames), times, boxes


@pytest.mark.parametrize("kinds", [1, 2, 3, 16, 17, 256])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 61, 90), (1, 1, 5000)])
def test_written_is_read(tmp_path, kinds, shape):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(kinds, shape, generator=generator).to(torch.uint8)
    palette = torch.randint(256, (kinds, 3), generator=generator).to(torch.uint8)
    write_gif(tmp_path / "a.gif", frames, palette, seconds=0.25)
    want = palette.numpy()[frames.numpy()]
    got, times, _ = read(tmp_path / "a.gif")
    assert np.array_equal(got, want)
    assert times == [25] * len(frames)
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(tmp_path / "a.gif") as image:
        for i, frame in enumerate(want):
            image.seek(i)
            assert np.array_equal(np.asarray(image.convert("RGB")), frame)
        assert i == image.n_frames - 1 or (want[1:] == want[:-1]).all()


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("length", [*range(1, 20), 253, 254, 255, 3837, 3838, 3839, 3840, 20_000])
def test_codes_of_every_width(size, length):
    """Random values fill the table again and again; one value, as slowly as can be."""
    values = torch.randint(1 << size, (length,), generator=torch.Generator().manual_seed(size))
    for row in (values.tolist(), [1] * length):
        assert unpacked(lzw(row, size), size) == row


def test_only_what_changes_is_written(tmp_path):
    frames = torch.zeros(3, 40, 50, dtype=torch.uint8)
    frames[1:, 10:13, 20:25] = 1
    write_gif(tmp_path / "a.gif", frames, torch.tensor([[0, 0, 0], [255, 9, 1]]).to(torch.uint8))
    assert read(tmp_path / "a.gif")[2] == [(0, 0, 50, 40), (20, 10, 5, 3), (0, 0, 1, 1)]


BLACK = torch.zeros(1, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("frames", "palette", "seconds", "what"),
    [
        (torch.zeros(2, 3), BLACK, 0.1, r"expected \(N, H, W\), none 0.*got \(2, 3\)"),
        (torch.zeros(0, 2, 3), BLACK, 0.1, r"none 0.*got \(0, 2, 3\)"),
        (torch.zeros(1, 1, 65_536), BLACK, 0.1, "H and W < 65,536"),
        (torch.zeros(1, 2, 3), BLACK[0], 0.1, r"palette: expected \(1 ... 256, 3\), got \(3,\)"),
        (torch.zeros(1, 2, 3), BLACK.expand(257, 3), 0.1, "palette: expected"),
        (torch.ones(1, 2, 3), BLACK, 0.1, "expected places < 1, got 1"),
        (torch.zeros(1, 2, 3), BLACK, -1, "seconds: expected 0 to 655, got -1"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, frames, palette, seconds, what):
    with pytest.raises(ValueError, match=rf"write_gif: .*a\.gif: .*{what}"):
        write_gif(tmp_path / "a.gif", frames.to(torch.uint8), palette, seconds)
    with pytest.raises(TypeError, match=r"a\.gif: expected uint8, got torch.float32"):
        write_gif(tmp_path / "a.gif", frames.float(), palette)
    assert not list(tmp_path.iterdir())
