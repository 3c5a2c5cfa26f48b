import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.data.wav import WavError, read_wav, write_wav

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
DTYPES = {
    (PCM, 8): "u1",
    (PCM, 16): "<i2",
    (PCM, 32): "<i4",
    (FLOAT, 32): "<f4",
    (FLOAT, 64): "<f8",
}
CODECS = [*DTYPES, (PCM, 24)]


def chunk(name, data, size=None):
    size = len(data) if size is None else size
    return struct.pack("<4sI", name, size) + data + bytes(len(data) % 2)


def form(codec=PCM, channels=1, rate=8000, bits=16, frame=None, extensible=False):
    frame = channels * bits // 8 if frame is None else frame
    tag = EXTENSIBLE if extensible else codec
    data = struct.pack("<HHIIHH", tag, channels, rate, rate * frame % 2**32, frame, bits)
    if extensible:
        data += struct.pack("<HHIH", 22, bits, 0, codec) + GUID_TAIL
    return chunk(b"fmt ", data)


def riff(*chunks, magic=b"RIFF", kind=b"WAVE", size=None):
    body = kind + b"".join(chunks)
    return struct.pack("<4sI", magic, len(body) if size is None else size) + body


def read(tmp_path, data):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    return read_wav(path)


def ramp(codec, bits, count):
    """Bytes of `count` samples over the whole range, and their values in float64."""
    if codec == FLOAT:
        samples = np.linspace(-1.5, 1.5, count).astype(DTYPES[codec, bits])
        return samples.tobytes(), samples.astype(np.float64)
    levels = np.linspace(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, count).round().astype(np.int64)
    stored = levels + 128 if bits == 8 else levels
    width = bits // 8
    data = b"".join(int(k).to_bytes(width, "little", signed=bits > 8) for k in stored)
    return data, levels / 2 ** (bits - 1)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(("codec", "bits"), CODECS)
def test_reads_every_sample_format(tmp_path, codec, bits, channels, extensible):
    data, expected = ramp(codec, bits, 35 * channels)
    header = form(codec, channels, 22050, bits, extensible=extensible)
    samples, rate = read(tmp_path, riff(header, chunk(b"data", data)))
    assert rate == 22050
    assert samples.dtype == torch.float32
    assert samples.is_contiguous()
    expected = expected.astype(np.float32).reshape(-1, channels).T
    np.testing.assert_array_equal(samples.numpy(), expected)


def test_full_scale(tmp_path):
    for bits, data in ((8, b"\0\x80\xff"), (24, b"\0\0\x80" + b"\0\0\0" + b"\xff\xff\x7f")):
        samples, _ = read(tmp_path, riff(form(bits=bits), chunk(b"data", data)))
        assert samples.tolist() == [[-1.0, 0.0, 1 - 2.0 ** (1 - bits)]]


def test_skips_other_chunks_with_their_padding(tmp_path):
    other = chunk(b"LIST", b"odd")
    data = riff(other, form(), other, chunk(b"JUNK", b""), chunk(b"data", b"\1\0\2\0"), other)
    samples, _ = read(tmp_path, data)
    assert (samples * 32768).tolist() == [[1, 2]]


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_an_odd_data_chunk_may_end_the_file_without_padding(tmp_path, pad):
    samples, _ = read(tmp_path, riff(form(bits=8), struct.pack("<4sI", b"data", 3) + b"abc" + pad))
    assert samples.shape == (1, 3)


def test_ignores_what_follows_the_riff_chunk(tmp_path):
    data = riff(form(), chunk(b"data", b"\1\0")) + b"after the end"
    assert read(tmp_path, data)[0].shape == (1, 1)


def test_no_frames_are_no_error(tmp_path):
    samples, rate = read(tmp_path, riff(form(channels=3), chunk(b"data", b"")))
    assert samples.shape == (3, 0)
    assert rate == 8000


DATA = chunk(b"data", b"\1\0\2\0")
BAD = {
    "an empty or special file": b"",
    "byte 0: expected 12 bytes, got 5": b"RIFF\0",
    r"b'RIFX', which is not supported": riff(form(), DATA, magic=b"RIFX"),
    r"b'RF64', which is not supported": riff(form(), DATA, magic=b"RF64"),
    r"got b'fLaC'": riff(form(), DATA, magic=b"fLaC"),
    r"got b'RIFF' and b'AVI '": riff(form(), DATA, kind=b"AVI "),
    r"byte 4: expected a size, got 0x0": riff(form(), DATA, size=0),
    r"byte 4: expected a size, got 0xffffffff": riff(form(), DATA, size=2**32 - 1),
    r"byte 4: expected a size of at most 40 bytes, got 41": riff(form(), DATA, size=41),
    r"byte 12: expected a chunk b'data', got the end": riff(),
    r"byte 36: expected a chunk b'data', got the end": riff(form()),
    r"byte 40: expected a chunk b'data', got the end": riff(form(), b"data"),
    r"b'data' at byte 12: expected a chunk b'fmt ' before": riff(DATA, form()),
    r"b'fmt ' at byte 36: expected one format": riff(form(), form(), DATA),
    r"b'data' at byte 36: .* at most 4 bytes, got 5": riff(form(), chunk(b"data", b"1234", 5)),
    r"b'data' .* got 4294967295": riff(form(), chunk(b"data", b"1234", 2**32 - 1)),
    r"at most 4 bytes, got 6": riff(form(), chunk(b"data", b"1234", 6)) + b"56",
    r"b'LIST' at byte 36: .* at most 2 bytes, got 3": riff(form(), chunk(b"LIST", b"12", 3)),
    r"b'fmt ' at byte 12: expected at least 16 bytes, got 14": riff(chunk(b"fmt ", bytes(14))),
    r"expected 40 bytes for codec 0xfffe, got 16": riff(form(EXTENSIBLE), DATA),
    r"got GUID 01000000.*55": riff(form(extensible=True)[:-1] + b"\x55", DATA),
    r"got codec 0x0006 of 8 bits": riff(form(6, bits=8), DATA),
    r"got codec 0x0055 of 16 bits": riff(form(0x55, extensible=True), DATA),
    r"got codec 0x0001 of 12 bits": riff(form(bits=12), DATA),
    r"got codec 0x0003 of 16 bits": riff(form(FLOAT), DATA),
    r"got 0 and 8000 Hz": riff(form(channels=0), DATA),
    r"got 1 and 0 Hz": riff(form(rate=0), DATA),
    r"frames of 4 bytes for 2 channels of 16 bits, got 2": riff(form(channels=2, frame=2), DATA),
    r"whole frames of 2 bytes, got 3": riff(form(), chunk(b"data", b"123")),
    r"byte 48: expected finite .* nan": riff(
        form(FLOAT, bits=32), chunk(b"data", struct.pack("<ff", 0, float("nan")))
    ),
    r"byte 44: expected finite .* -inf": riff(
        form(FLOAT, bits=64), chunk(b"data", struct.pack("<d", -1e300))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_is_named_with_the_place(tmp_path, message):
    with pytest.raises(WavError, match=message) as caught:
        read(tmp_path, BAD[message])
    assert str(caught.value).startswith(f"read_wav: {tmp_path / 'a.wav'}: ")


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_an_error_and_no_warning(tmp_path):
    data = riff(form(FLOAT, bits=64), chunk(b"data", struct.pack("<Q", 0x7FF0000000000001)))
    with pytest.raises(WavError, match="nan"):
        read(tmp_path, data)


def test_every_truncation_is_an_error(tmp_path):
    whole = riff(form(), chunk(b"data", bytes(6)), chunk(b"LIST", b"odd"))
    for length in range(len(whole)):
        with pytest.raises(WavError):
            read(tmp_path, whole[:length])


def test_a_file_that_cannot_be_opened_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_wav(tmp_path / "absent.wav")
    with pytest.raises(IsADirectoryError):
        read_wav(tmp_path)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_raise_nothing_but_wav_errors(tmp_path_factory, data):
    codec, bits = data.draw(st.sampled_from(CODECS))
    channels = data.draw(st.integers(1, 3))
    samples, _ = ramp(codec, bits, 4 * channels)
    header = form(codec, channels, bits=bits, extensible=data.draw(st.booleans()))
    damaged = bytearray(riff(chunk(b"LIST", b"odd"), header, chunk(b"data", samples)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] + data.draw(st.binary(max_size=8))
    try:
        samples, rate = read(tmp_path_factory.getbasetemp(), damaged)
    except WavError:
        return
    assert samples.isfinite().all()
    assert samples.shape[0] >= 1
    assert rate >= 1


def test_every_16_bit_sample_survives_the_round_trip(tmp_path):
    samples = torch.arange(-32768, 32768).reshape(2, -1) / 32768
    write_wav(tmp_path / "a.wav", samples, 44100)
    again, rate = read_wav(tmp_path / "a.wav")
    assert rate == 44100
    assert torch.equal(again, samples)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_round_trip(tmp_path_factory, data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(0, 50)))
    rate = data.draw(st.integers(1, 2**29 - 1))
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    values = st.floats(-2, 2, width=16)
    count = shape[0] * shape[1]
    flat = data.draw(st.lists(values, min_size=count, max_size=count))
    samples = torch.tensor(flat, dtype=dtype).reshape(shape)
    path = tmp_path_factory.getbasetemp() / "round.wav"
    write_wav(path, samples, rate)
    again, got = read_wav(path)
    assert got == rate
    clipped = samples.double().clamp(-1, 1 - 1 / 32768)
    assert again.shape == samples.shape
    assert ((again - clipped).abs() <= 0.5 / 32768).all()


def test_one_dimension_is_one_channel_and_strides_are_followed(tmp_path):
    samples = torch.arange(-8, 8).reshape(2, 8)[:, ::2] / 32768
    write_wav(tmp_path / "a.wav", samples, 8000)
    assert torch.equal(read_wav(tmp_path / "a.wav")[0], samples)
    write_wav(tmp_path / "a.wav", samples[1].requires_grad_(), 8000)
    assert torch.equal(read_wav(tmp_path / "a.wav")[0], samples[1:])


def test_the_header_is_the_usual_44_bytes(tmp_path):
    write_wav(tmp_path / "a.wav", torch.tensor([[0.5, 0.0], [-0.5, -2.0]]), 8000)
    data = struct.pack("<hhhh", 16384, -16384, 0, -32768)
    expected = riff(form(channels=2), chunk(b"data", data))
    assert (tmp_path / "a.wav").read_bytes() == expected


@pytest.mark.parametrize(
    ("samples", "rate", "error", "message"),
    [
        (
            torch.zeros(3, dtype=torch.int16),
            8000,
            TypeError,
            r"expected float samples, got .*int16",
        ),
        (torch.zeros(3), 8000.0, TypeError, r"expected an integer rate, got 8000\.0"),
        (torch.zeros(1, 2, 3), 8000, ValueError, r"expected samples .* got \(1, 2, 3\)"),
        (torch.tensor(0.0), 8000, ValueError, r"expected samples .* got \(\)"),
        (torch.zeros(0, 3), 8000, ValueError, r"expected 1 to 32767 channels, got 0"),
        (torch.zeros(2**15, 1), 8000, ValueError, r"expected 1 to 32767 channels, got 32768"),
        (torch.zeros(3), 0, ValueError, r"got 0 Hz"),
        (torch.zeros(2, 3), 2**30, ValueError, r"got 1073741824 Hz"),
        (torch.zeros(1).expand(2**31), 8000, ValueError, r"less than 4 GiB, got 2147483648"),
        (torch.tensor([0, float("nan")]), 8000, ValueError, r"expected finite samples"),
        (torch.tensor([0, float("inf")]), 8000, ValueError, r"expected finite samples"),
    ],
)
def test_write_refuses_before_it_touches_the_file(tmp_path, samples, rate, error, message):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(error, match=message) as caught:
        write_wav(path, samples, rate)
    assert str(caught.value).startswith(f"write_wav: {path}: ")
    assert [name.name for name in tmp_path.iterdir()] == ["a.wav"]
    assert path.read_bytes() == b"old"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"a\.wav"):
        write_wav(path, torch.zeros(3), 8000)
    assert [name.name for name in tmp_path.iterdir()] == ["a.wav"]
    assert path.read_bytes() == b"old"
