"""WAV files: a strict reader of PCM and float, and a writer of 16-bit PCM."""

import numbers
import os
import struct
from typing import NamedTuple

import numpy as np
import torch

from ..files import atomic

PCM, FLOAT, EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
SAMPLE_FORMATS = {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}
# KSDATAFORMAT_SUBTYPE GUIDs are a codec's two bytes and these fourteen
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


class WavError(ValueError):
    """A file that is not a whole WAV file of a known codec; names the file and the place in it."""


class _Format(NamedTuple):
    codec: int
    channels: int
    rate: int  # Hz
    frame: int  # bytes of one sample of every channel
    bits: int  # per sample


def read_wav(path):
    """Samples of a WAV file, (channels, T) float32, and their rate in Hz.

    PCM samples of b bits become k / 2^(b-1), in [-1, 1]; float samples are returned as stored.
    Reads little-endian RIFF with PCM of 8, 16, 24 or 32 bits or float of 32 or 64 bits, plain or
    WAVE_FORMAT_EXTENSIBLE, skips the other chunks, and ignores what follows the RIFF chunk. A
    stream whose sizes were never filled in (0 or 0xFFFFFFFF) is refused: nothing tells whether it
    is whole.

    Raises WavError, which names the file, the byte or chunk, what was expected and what was there;
    OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            form, data, start = _parse(file, os.fstat(file.fileno()).st_size)
            samples = _decode(data, form)
            _check_finite(samples, form, start)
        except WavError as error:
            raise WavError(f"read_wav: {path}: {error}") from None
    samples = samples.reshape(-1, form.channels).T
    return torch.from_numpy(np.ascontiguousarray(samples)), form.rate


def write_wav(path, samples, rate):
    """Write `samples`, (T,) or (channels, T), at `rate` Hz as 16-bit PCM, whole or not at all.

    k = round(32768 x), clipped to [-32768, 32767], so that 16-bit samples that `read_wav`
    returned are written back bit for bit.

    Raises TypeError for samples that are not float or a rate that is not an integer; ValueError for
    other shapes, NaN or Inf, and sizes that the format cannot hold; OSError naming the file.
    """
    samples = torch.as_tensor(samples)
    _check_writable(path, samples, rate)
    samples, rate = torch.atleast_2d(samples).cpu(), int(rate)  # (channels, T)
    codes = (samples.double() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    data = codes.T.numpy().astype("<i2").tobytes()
    frame = 2 * len(samples)
    riff = struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, len(samples), rate, rate * frame, frame, 16)
    with atomic(path) as file:
        file.write(riff + form + struct.pack("<4sI", b"data", len(data)))
        file.write(data)


def _parse(file, size):
    """Format, bytes of the data chunk, and the byte at which they start."""
    end = _riff_end(file, size)
    form = None
    position = 12
    while position + 8 <= end:
        name, length = struct.unpack("<4sI", _read(file, position, 8))
        start = position + 8
        where = f"chunk {name!r} at byte {position}"
        if length > end - start:
            raise WavError(f"{where}: expected a size of at most {end - start} bytes, got {length}")
        if name == b"fmt ":
            if form:
                raise WavError(f"{where}: expected one format, got a second")
            form = _parse_format(_read(file, start, min(length, 40)), where)
        elif name == b"data":
            if not form:
                raise WavError(f"{where}: expected a chunk b'fmt ' before it")
            if length % form.frame:
                raise WavError(
                    f"{where}: expected whole frames of {form.frame} bytes, got {length} bytes"
                )
            return form, _read(file, start, length), start
        position = start + length + length % 2  # chunks start at even bytes
    raise WavError(f"byte {end}: expected a chunk b'data', got the end")


def _riff_end(file, size):
    """The byte after the RIFF chunk, checked against the file's size."""
    if size == 0:
        raise WavError("expected a file of at least 12 bytes, got an empty or special file")
    magic, length, kind = struct.unpack("<4sI4s", _read(file, 0, 12))
    if magic in (b"RIFX", b"RF64"):
        raise WavError(f"byte 0: expected b'RIFF', got {magic!r}, which is not supported")
    if magic != b"RIFF" or kind != b"WAVE":
        raise WavError(f"byte 0: expected b'RIFF' and b'WAVE', got {magic!r} and {kind!r}")
    if length in (0, 0xFFFFFFFF):
        raise WavError(f"byte 4: expected a size, got {length:#x}: an unfinished stream")
    if length > size - 8:
        raise WavError(f"byte 4: expected a size of at most {size - 8} bytes, got {length}")
    return 8 + length


def _parse_format(data, where):
    if len(data) < 16:
        raise WavError(f"{where}: expected at least 16 bytes, got {len(data)}")
    codec, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", data[:16])
    if codec == EXTENSIBLE:
        if len(data) < 40:
            raise WavError(f"{where}: expected 40 bytes for codec {codec:#06x}, got {len(data)}")
        codec = int.from_bytes(data[24:26], "little")
        if data[26:40] != GUID_TAIL:
            raise WavError(f"{where}: expected PCM or float, got GUID {data[24:40].hex()}")
    if (codec, bits) not in SAMPLE_FORMATS:
        raise WavError(
            f"{where}: expected PCM (0x0001) of 8, 16, 24 or 32 bits or float (0x0003) of 32 or 64 "
            f"bits, got codec {codec:#06x} of {bits} bits"
        )
    if channels == 0 or rate == 0:
        raise WavError(
            f"{where}: expected at least 1 channel and 1 Hz, got {channels} and {rate} Hz"
        )
    if frame != channels * bits // 8:
        raise WavError(
            f"{where}: expected frames of {channels * bits // 8} bytes for {channels} channels of "
            f"{bits} bits, got {frame}"
        )
    return _Format(codec, channels, rate, frame, bits)


def _read(file, position, length):
    file.seek(position)
    data = file.read(length)
    if len(data) != length:
        raise WavError(f"byte {position}: expected {length} bytes, got {len(data)}")
    return data


def _decode(data, form):
    """Little-endian samples as float32."""
    if form.codec == FLOAT:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.frombuffer(data, f"<f{form.bits // 8}").astype(np.float32)
    if form.bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if form.bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(data, f"<i{form.bits // 8}").astype(np.float32) / 2 ** (form.bits - 1)


def _check_finite(samples, form, start):
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        byte = start + int(bad[0]) * form.bits // 8
        raise WavError(
            f"chunk b'data', byte {byte}: expected finite float32 samples, got {samples[bad[0]]}"
        )


def _check_writable(path, samples, rate):
    where = f"write_wav: {path}: "
    if not samples.is_floating_point():
        raise TypeError(f"{where}expected float samples, got {samples.dtype}")
    if not isinstance(rate, numbers.Integral):
        raise TypeError(f"{where}expected an integer rate, got {rate!r}")
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{where}expected samples (T,) or (channels, T), got {tuple(samples.shape)}"
        )
    channels = 1 if samples.ndim == 1 else samples.shape[0]
    if not 1 <= channels < 2**15:
        raise ValueError(f"{where}expected 1 to 32767 channels, got {channels}")
    if not 1 <= rate < 2**32 / (2 * channels):
        raise ValueError(f"{where}expected 1 Hz to 2^32 bytes a second, got {rate} Hz")
    if 36 + 2 * samples.numel() >= 2**32:
        raise ValueError(f"{where}expected less than 4 GiB, got {samples.numel()} samples")
    if not samples.isfinite().all():
        raise ValueError(f"{where}expected finite samples, got NaN or Inf")
