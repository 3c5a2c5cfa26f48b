import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.data import (
    LogMel,
    linear_decode,
    linear_encode,
    load_audio,
    mulaw_decode,
    mulaw_encode,
    write_wav,
)
from fastgen.data.audio import mulaw_edges

CLASSES = [2, 3, 16, 255, 256, 1024, 65536]
PAIRS = [(mulaw_encode, mulaw_decode), (linear_encode, linear_decode)]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("encode", "decode"), PAIRS)
def test_a_level_encodes_to_its_code(encode, decode, classes):
    codes = torch.arange(classes)
    levels = decode(codes, classes)
    assert levels.dtype == torch.float32
    assert levels[0] == -1
    assert levels[-1] == 1
    assert (levels.diff() > 0).all()
    torch.testing.assert_close(levels, -levels.flip(0), rtol=0, atol=1e-7)
    again = encode(levels, classes)
    assert again.dtype == torch.int64
    assert torch.equal(again, codes)


@pytest.mark.parametrize("classes", CLASSES[:-1])
def test_mulaw_takes_the_nearest_level(classes):
    mu = classes - 1
    x = torch.linspace(-1, 1, 1999, dtype=torch.float64)
    y = x.sign() * (1 + mu * x.abs()).log() / math.log(1 + mu)
    levels = torch.linspace(-1, 1, classes, dtype=torch.float64)
    distance = (y[:, None] - levels).abs()
    chosen = distance.gather(1, mulaw_encode(x, classes)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.amin(1), rtol=0, atol=1e-12)


@given(x=st.floats(-1, 1, width=32), classes=st.integers(2, 65536))
@settings(max_examples=300, deadline=None)
def test_quantisation_error_is_bounded(x, classes):
    mu = classes - 1
    # half a level in y, on the side away from 0
    bound = (1 + mu * abs(x)) * math.expm1(math.log1p(mu) / mu) / mu
    assert abs(mulaw_decode(mulaw_encode(torch.tensor(x), classes), classes) - x) <= bound + 1e-7
    assert abs(linear_decode(linear_encode(torch.tensor(x), classes), classes) - x) <= 1 / mu + 1e-7


def test_values_from_the_formula():
    x = torch.tensor([-1, -0.5, -1e-9, 0, 0.01, 0.5, 1])
    assert mulaw_encode(x).tolist() == [0, 16, 127, 128, 157, 239, 255]
    assert linear_encode(x).tolist() == [0, 64, 127, 128, 129, 191, 255]
    smallest = (256 ** (1 / 255) - 1) / 255
    middle = mulaw_decode(torch.tensor([127, 128]))
    torch.testing.assert_close(middle, torch.tensor([-smallest, smallest]))


@pytest.mark.parametrize("classes", CLASSES)
def test_the_code_changes_at_the_edges(classes):
    edges = mulaw_edges(classes)
    assert edges.shape == (classes - 1,)
    gap = 1e-9 / classes
    assert torch.equal(mulaw_encode(edges - gap, classes), torch.arange(classes - 1))
    assert torch.equal(mulaw_encode(edges + gap, classes), torch.arange(1, classes))


@pytest.mark.parametrize(("encode", "decode"), PAIRS)
def test_shapes_dtypes_and_clipping(encode, decode):
    assert encode(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    assert encode(torch.tensor(0.5)).shape == ()
    assert encode(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.tensor([0.25, -1])
        assert torch.equal(encode(x.to(dtype)), encode(x))
    for dtype in (torch.uint8, torch.int16, torch.int64):
        assert torch.equal(decode(torch.tensor([7], dtype=dtype)), decode(torch.tensor([7])))


@pytest.mark.parametrize(("encode", "decode"), PAIRS)
def test_bad_input_is_named(encode, decode):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="_encode: x expected finite"):
            encode(torch.tensor([0, value]))
    with pytest.raises(TypeError, match=r"_encode: x expected float samples, got torch.int64"):
        encode(torch.tensor([0]))
    for value in (-1, 16, 2**40):
        with pytest.raises(ValueError, match=f"_decode: codes expected 0 to 15, got {value}"):
            decode(torch.tensor([3, value]), 16)
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=r"_decode: codes expected integers, got torch"):
            decode(torch.zeros(1, dtype=dtype))
    for classes in (1, 0, -3, 65537, 2.0):
        with pytest.raises(ValueError, match="classes expected 2 to 65536, got"):
            encode(torch.zeros(1), classes)
        with pytest.raises(ValueError, match="classes expected 2 to 65536, got"):
            decode(torch.zeros(1, dtype=torch.int64), classes)


def test_load_audio_averages_the_channels(tmp_path):
    path = tmp_path / "a.WAV"
    write_wav(path, torch.tensor([[0.5, 0.0, -0.5], [0.25, 0.0, 0.5]]), 8000)
    for given_rate in (None, 8000):
        wave, rate = load_audio(str(path), given_rate)
        assert rate == 8000
        assert wave.dtype == torch.float32
        assert wave.tolist() == [0.375, 0.0, 0.0]


def test_load_audio_names_the_file(tmp_path):
    path = tmp_path / "a.wav"
    with pytest.raises(FileNotFoundError):
        load_audio(path)
    path.write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"read_wav: .*a\.wav"):
        load_audio(path)
    write_wav(path, torch.zeros(1, 0), 8000)
    with pytest.raises(ValueError, match=r"load_audio: .*a\.wav: expected at least 1 sample"):
        load_audio(path)
    write_wav(path, torch.zeros(1, 1), 8000)
    with pytest.raises(ValueError, match=r"load_audio: .*a\.wav: expected 16000 Hz, got 8000 Hz"):
        load_audio(path, 16000)


@pytest.mark.parametrize(("name", "package"), [("a.flac", "soundfile"), ("a.g722", "av")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImportError, match=rf"{name}: .*package {package}: pip install 'fastgen\["):
        load_audio(tmp_path / name)


def test_other_files_are_read_by_soundfile(tmp_path, monkeypatch):
    def read(file, dtype, always_2d):
        assert dtype == "float32"
        assert always_2d
        data = file.read()
        if data == b"bad":
            raise RuntimeError("not recognised")
        return np.frombuffer(data, np.float32).reshape(-1, 2), 16000

    monkeypatch.setitem(sys.modules, "soundfile", types.SimpleNamespace(read=read))
    path = tmp_path / "a.flac"
    with pytest.raises(FileNotFoundError):
        load_audio(path)
    path.write_bytes(np.array([[1, 0], [0.5, -0.5]], np.float32).tobytes())
    wave, rate = load_audio(path)
    assert wave.tolist() == [0.5, 0.0]
    assert rate == 16000
    path.write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"load_audio: .*a\.flac: not recognised"):
        load_audio(path)
    path.write_bytes(np.array([0, np.nan], np.float32).tobytes())
    with pytest.raises(ValueError, match=r"load_audio: .*a\.flac: expected finite samples"):
        load_audio(path)


class Container:
    """What PyAV's `open` returns, for a file that is 16-bit samples in frames of three."""

    def __init__(self, file, format):
        assert format == "g722"
        self.samples = np.frombuffer(file.read(), "<i2")
        self.streams = types.SimpleNamespace(audio=[types.SimpleNamespace(rate=16000)])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def decode(self, audio):
        if 13 in self.samples:
            raise LookupError("damaged")
        for i in range(0, len(self.samples), 3):
            frame = self.samples[None, i : i + 3]
            yield types.SimpleNamespace(to_ndarray=lambda frame=frame: frame)


def test_g722_is_read_by_av(tmp_path, monkeypatch):
    av = types.SimpleNamespace(open=Container, FFmpegError=LookupError)
    monkeypatch.setitem(sys.modules, "av", av)
    path = tmp_path / "a.g722"
    path.write_bytes(np.arange(-3, 4).astype("<i2").tobytes())
    wave, rate = load_audio(path)
    assert (wave * 32768).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert rate == 16000
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.g722: expected at least 1 sample"):
        load_audio(path)
    path.write_bytes(b"\x0d\0")
    with pytest.raises(ValueError, match=r"load_audio: .*a\.g722: damaged"):
        load_audio(path)


def mel8k(mels=40):
    return LogMel(rate=8000, n_fft=512, win_length=400, hop_length=100, mels=mels)


def noise(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [1, 2, 99, 100, 101, 1000])
def test_log_mel_shape_and_dtype(T, dtype):
    mel = mel8k()
    for batch in ((), (1,), (2, 3)):
        features = mel(noise(*batch, T, dtype=dtype))
        assert features.shape == (*batch, 40, T // 100 + 1)
        assert features.dtype == dtype
        assert features.isfinite().all()


def test_log_mel_against_the_definition():
    mel = LogMel(rate=8000, n_fft=64, win_length=50, hop_length=20, mels=10)
    wave = noise(130, dtype=torch.float64)
    corners = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 12)
    corners = 700 * (10 ** (corners / 2595) - 1)
    bins = np.arange(33) * 8000 / 64
    filters = [np.interp(bins, corners[i : i + 3], [0, 1, 0]) for i in range(10)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(50) / 50)
    padded = np.concatenate([np.zeros(100), wave.numpy(), np.zeros(100)])
    for f in range(130 // 20 + 1):
        start = 100 + 20 * f - 25  # the window's middle is sample 20 f
        power = np.abs(np.fft.rfft(padded[start : start + 50] * window, 64)) ** 2
        expected = np.log(np.maximum(np.array(filters) @ power, 1e-8))
        np.testing.assert_allclose(mel(wave)[:, f].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("band", [3, 17, 30, 38])
def test_a_sine_peaks_in_its_band(band):
    top = 2595 * math.log10(1 + 4000 / 700)
    frequency = 700 * (10 ** (top * (band + 1) / 41 / 2595) - 1)
    wave = torch.sin(2 * math.pi * frequency * torch.arange(8000) / 8000)
    inner = mel8k()(wave)[:, 4:-4]
    assert (inner.argmax(0) == band).all()


def test_a_shift_by_a_hop_shifts_the_frames():
    wave = noise(2000)
    shifted = torch.cat([torch.zeros(300), wave])
    mel = mel8k()
    torch.testing.assert_close(mel(shifted)[:, 3:], mel(wave), rtol=0, atol=1e-4)


def test_silence_is_the_floor_and_calls_repeat():
    mel = mel8k()
    assert (mel(torch.zeros(500)) == torch.tensor(1e-8).log()).all()
    wave = noise(1000)
    assert torch.equal(mel(wave), mel(wave))
    torch.testing.assert_close(mel(10 * wave) - mel(wave), torch.full((40, 11), math.log(100)))


def test_log_mel_config_builds_the_same():
    mel = mel8k()
    again = LogMel(**json.loads(json.dumps(mel.config)))
    assert again.config == mel.config
    assert torch.equal(again(noise(500)), mel(noise(500)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mels": 0}, "mels expected a positive integer, got 0"),
        ({"rate": 8000.0}, r"rate expected a positive integer, got 8000\.0"),
        ({"hop_length": -1}, "hop_length expected a positive integer, got -1"),
        ({"n_fft": 401}, "n_fft expected even and >= win_length, got 401"),
        ({"n_fft": 398}, "n_fft expected even and >= win_length, got 398"),
        ({"mels": 256}, "got none in filter 0 of 256: use fewer mels or a larger n_fft than 512"),
    ],
)
def test_log_mel_refuses_sizes(change, message):
    with pytest.raises(ValueError, match=f"LogMel: .*{message}"):
        LogMel(**{**mel8k().config, **change})


def test_log_mel_refuses_waves():
    with pytest.raises(TypeError, match=r"LogMel: wave expected float32 or float64, got .*int16"):
        mel8k()(torch.zeros(500, dtype=torch.int16))
    for shape in ((), (0,), (0, 500), (3, 0)):
        with pytest.raises(ValueError, match="LogMel: wave expected"):
            mel8k()(torch.zeros(shape))
