"""From sound files to what models take: codes of mu-law or uniform levels, and log-mel features."""

import importlib
import math
from pathlib import Path

import numpy as np
import torch

from .wav import read_wav

MOST_CLASSES = 65536  # neighbouring levels stay apart in float32
FLOOR = 1e-8  # power, about that of the rounding noise of 16-bit samples


def mulaw_encode(x, classes=256):
    """The code of the mu-law level nearest to x, int64 in [0, classes).

        y = sign(x) ln(1 + mu |x|) / ln(1 + mu),  mu = classes - 1;  c = floor((y + 1)/2 mu + 1/2)

    x: (...), clipped to [-1, 1]. Nearest is meant in y, where the levels are evenly spaced.
    Raises TypeError for x that is not float, ValueError for NaN, Inf and classes out of range.
    ITU-T G.711; van den Oord et al. 2016, WaveNet, section 2.2.
    """
    mu = _check_classes("mulaw_encode", classes) - 1
    x = _check_samples("mulaw_encode", x)
    return _nearest(x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu), classes)


def mulaw_decode(codes, classes=256):
    """The mu-law levels of codes, float32 in [-1, 1]; `mulaw_encode` gives the codes back.

        x = sign(y) ((1 + mu)^|y| - 1) / mu,  y = 2 c/mu - 1,  mu = classes - 1

    codes: (...). Raises TypeError for codes that are not integers, ValueError for codes or classes
    out of range.
    """
    _check_classes("mulaw_decode", classes)
    return _expand(_level(check_codes("mulaw_decode", codes, classes), classes), classes).float()


def mulaw_edges(classes):
    """The samples at which `mulaw_encode` goes from a code to the next, (classes - 1,) float64.

    Raises ValueError for classes out of range.
    """
    _check_classes("mulaw_edges", classes)
    return _expand(_level(torch.arange(classes - 1) + 0.5, classes), classes)


def linear_encode(x, classes=256):
    """The code of the uniform level nearest to x, int64 in [0, classes).

        c = floor((x + 1)/2 (classes - 1) + 1/2)

    x: (...), clipped to [-1, 1]. Raises as `mulaw_encode` does.
    """
    _check_classes("linear_encode", classes)
    return _nearest(_check_samples("linear_encode", x), classes)


def linear_decode(codes, classes=256):
    """The uniform levels of codes, x = 2 c/(classes - 1) - 1, float32 in [-1, 1].

    codes: (...). Raises as `mulaw_decode` does.
    """
    _check_classes("linear_decode", classes)
    return _level(check_codes("linear_decode", codes, classes), classes).float()


def check_codes(name, codes, classes):
    """`codes` as int64; `name` is the caller that a TypeError or ValueError speaks for."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name}: codes expected integers, got {codes.dtype}")
    codes = codes.long()
    bad = codes[(codes < 0) | (codes >= classes)]
    if bad.numel():
        raise ValueError(f"{name}: codes expected 0 to {classes - 1}, got {bad[0].item()}")
    return codes


def load_audio(path, rate=None):
    """The clip in a sound file, (T,) float32, and its rate in Hz; channels are averaged.

    Reads .wav with `read_wav`, .g722 with PyAV, and any other file with soundfile.

    Raises ValueError naming the file: what its reader cannot decode, no samples, NaN or Inf,
    another rate than `rate`; ImportError if the file needs a package that is not installed; OSError
    if it cannot be read.
    """
    path = Path(path)
    readers = {".wav": read_wav, ".g722": _read_g722}
    samples, got = readers.get(path.suffix.lower(), _read_soundfile)(path)
    if samples.shape[1] == 0:
        raise ValueError(f"load_audio: {path}: expected at least 1 sample, got none")
    if rate is not None and got != rate:
        raise ValueError(f"load_audio: {path}: expected {rate} Hz, got {got} Hz")
    return samples.mean(0), got


class LogMel:
    """Natural logarithm of the power in bands evenly spaced on the mel scale.

        m(f) = 2595 log10(1 + f/700),  y = ln max(W |STFT(x)|^2, 1e-8)

    W is triangles of height 1 whose corners are evenly spaced in m from 0 to rate/2 (HTK). The
    window is a periodic Hann window, not normalised; beyond its ends the wave counts as silent.

    wave (..., T) -> (..., mels, F), F = T // hop_length + 1; frame f is centred at sample
    f hop_length. The lengths are in samples, the rate in Hz.

    Raises ValueError at construction for sizes out of range and for a filter between two bins of
    the STFT (more mels than n_fft can tell apart); when called, TypeError for a wave that is
    neither float32 nor float64 and ValueError for an empty one.
    """

    def __init__(self, rate, n_fft, win_length, hop_length, mels):
        self.config = {k: v for k, v in locals().items() if k != "self"}
        for name, value in self.config.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"LogMel: {name} expected a positive integer, got {value!r}")
        if n_fft % 2 or n_fft < win_length:
            raise ValueError(f"LogMel: n_fft expected even and >= win_length, got {n_fft}")
        self.rate, self.n_fft, self.win_length = rate, n_fft, win_length
        self.hop_length, self.mels = hop_length, mels
        self.window = torch.hann_window(win_length, dtype=torch.float64)
        self.filters = self._filters()  # (mels, n_fft/2 + 1)

    def __call__(self, wave):
        if wave.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"LogMel: wave expected float32 or float64, got {wave.dtype}")
        if wave.ndim == 0 or wave.numel() == 0:
            raise ValueError(f"LogMel: wave expected (..., T), T >= 1, got {tuple(wave.shape)}")
        spectrum = torch.stft(
            wave.reshape(-1, wave.shape[-1]),
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window.to(wave),
            pad_mode="constant",
            return_complex=True,
        )  # (N, n_fft/2 + 1, F)
        power = self.filters.to(wave) @ spectrum.abs().square()
        return power.clamp_min(FLOOR).log().reshape(*wave.shape[:-1], self.mels, -1)

    def _filters(self):
        top = 2595 * math.log10(1 + self.rate / 1400)  # mel of rate/2
        corners = torch.linspace(0, top, self.mels + 2, dtype=torch.float64)
        corners = 700 * (10 ** (corners / 2595) - 1)  # Hz
        low, centre, high = (corners[i : i + self.mels, None] for i in range(3))
        bins = torch.arange(self.n_fft // 2 + 1, dtype=torch.float64) * self.rate / self.n_fft
        rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
        filters = torch.minimum(rise, fall).clamp_min(0)
        empty = (filters.amax(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"LogMel: expected a bin of the STFT in every filter, got none in filter {empty[0]}"
                f" of {self.mels}: use fewer mels or a larger n_fft than {self.n_fft}"
            )
        return filters


def _level(codes, classes):
    return codes.double() * 2 / (classes - 1) - 1


def _nearest(y, classes):
    return ((y + 1) / 2 * (classes - 1) + 0.5).floor().long()


def _expand(y, classes):
    mu = classes - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


def _check_classes(name, classes):
    if not isinstance(classes, int) or not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"{name}: classes expected 2 to {MOST_CLASSES}, got {classes!r}")
    return classes


def _check_samples(name, x):
    if not x.is_floating_point():
        raise TypeError(f"{name}: x expected float samples, got {x.dtype}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: x expected finite samples, got NaN or Inf")
    return x.double().clamp(-1, 1)


def _package(name, path):
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise ImportError(
            f"load_audio: {path}: expected the package {name}: pip install 'fastgen[audio]'"
        ) from error


def _read_g722(path):
    av = _package("av", path)
    with open(path, "rb") as file:
        try:
            with av.open(file, format="g722") as container:
                frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
                rate = container.streams.audio[0].rate
        except av.FFmpegError as error:
            raise ValueError(f"load_audio: {path}: {error}") from error
    samples = np.concatenate([np.zeros((1, 0), np.int16), *frames], axis=1)
    return torch.from_numpy(samples.astype(np.float32) / 32768), rate


def _read_soundfile(path):
    soundfile = _package("soundfile", path)
    with open(path, "rb") as file:
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except RuntimeError as error:  # of which soundfile's errors are a kind
            raise ValueError(f"load_audio: {path}: {error}") from error
    if not np.isfinite(samples).all():
        raise ValueError(f"load_audio: {path}: expected finite samples, got NaN or Inf")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate
