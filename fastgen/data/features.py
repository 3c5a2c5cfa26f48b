"""What stands between waves and a model of sound: a rate, levels and features."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..kernels import uniforms
from .audio import LogMel, linear_decode, linear_encode, mulaw_decode, mulaw_encode
from .speech import normalize


class Conditioning:
    """The features of a wave as a model takes them: normalised log-mels and a channel of ones.

        c = [(mel(wave) - mean) / std; 1]

    wave (..., T) -> (..., mels + 1, F), see `LogMel`. All zeros mean that there are no features:
    the last channel tells an average sound from an unknown one.

    mean, std: (mels,). Raises ValueError for other shapes and for std that is not above 0.
    """

    def __init__(self, mel, mean, std):
        self.mel, self.channels = mel, mel.mels + 1
        self.mean, self.std = (torch.as_tensor(x, dtype=torch.float32) for x in (mean, std))
        for name, x in (("mean", self.mean), ("std", self.std)):
            if x.shape != (mel.mels,) or not x.isfinite().all():
                got = tuple(x.shape)
                raise ValueError(f"Conditioning: {name}: expected {mel.mels} numbers, got {got}")
        if not (self.std > 0).all():
            raise ValueError(f"Conditioning: std: expected above 0, got {self.std.min():g}")
        self.config = {
            "features": mel.config,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    def __call__(self, wave):
        return self.normalize(self.mel(wave))

    def normalize(self, log_mels):
        """The features of log-mels (..., mels, F): (..., mels + 1, F)."""
        return with_presence(normalize(log_mels, self.mean, self.std))


class ConditioningDropout:
    """Batches of a source (codes, features), of which a row loses its features now and then.

    A row's features (mels, F) get the channel of ones, or become zeros, with probability p: so one
    model learns p(x | features) and p(x). Which rows is a function of (seed, step, row) alone.

    Raises ValueError for p outside [0, 1].
    """

    def __init__(self, source, p, *, seed):
        if not 0 <= p <= 1:
            raise ValueError(f"ConditioningDropout: p expected in [0, 1], got {p}")
        self.source, self.p, self.seed = source, p, seed

    def batch(self, step, size):
        """Codes (size, T) and features (size, mels + 1, F)."""
        codes, features = self.source.batch(step, size)
        kept = uniforms(self.seed, size, 1, step)[..., None] >= self.p  # (size, 1, 1)
        return codes, with_presence(features) * kept


class Format(NamedTuple):
    """How a model's codes become sound, and sound its codes and features."""

    rate: int  # Hz
    encode: Callable  # wave (...) to codes
    decode: Callable  # codes (...) to wave
    conditioning: Conditioning | None


def format_of(model, audio):
    """The format of a model of codes; `audio` is its file's meta["audio"].

    Raises ValueError for `audio` that is not what `Format` needs or that does not fit the model.
    """
    if not isinstance(audio, dict):
        raise ValueError(f"audio: expected rate, features, mean and std, got {audio!r:.80}")
    rate, features = audio.get("rate"), audio.get("features")
    if not isinstance(rate, int) or rate < 1:
        raise ValueError(f"audio: rate: expected Hz, got {rate!r}")
    conditioning = None
    if features is not None:
        try:
            conditioning = Conditioning(LogMel(**features), audio.get("mean"), audio.get("std"))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"audio: features: {error}") from error
        for name, got, expected in (
            ("rate", conditioning.mel.rate, rate),
            ("hop_length", conditioning.mel.hop_length, model.hop_length),
        ):
            if got != expected:
                raise ValueError(f"audio: features: {name}: expected {expected}, got {got}")
    channels = conditioning.channels if conditioning else 0
    if model.config["cond_channels"] != channels:
        expected = model.config["cond_channels"]
        raise ValueError(f"audio: features: expected {expected} channels, got {channels}")
    return Format(rate, *levels(model), conditioning)


def levels(model):
    """From waves to a model's codes, and back: uniform levels for a mixture, else mu-law ones."""
    pair = (linear_encode, linear_decode) if model.mixtures else (mulaw_encode, mulaw_decode)
    return [partial(f, classes=model.classes) for f in pair]


def with_presence(features):
    """Features (..., mels, F) with a channel of ones: (..., mels + 1, F)."""
    return F.pad(features, (0, 0, 0, 1), value=1.0)
