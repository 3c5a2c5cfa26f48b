"""A model of sound: its making, its sampling, and how well it does on clips it has not heard."""

import math
import statistics
import time
from functools import partial

import torch

from . import kernels
from .data import Crops, LogMel, Speech
from .data.features import Conditioning, ConditioningDropout, levels
from .metrics import linear_predictor_nats, log_mel_distance, stoi, unigram_nats
from .metrics.likelihood import network_nats, sampler_nats
from .text import progress
from .tractable.wavenet import WaveNet

DTYPES = ("float32", "bfloat16", "int8")


def prepare(speech, sizes, *, crop, mels, drop, seed):
    """A WaveNet, its source of batches, and the "audio" of its meta.

    mels: bands of the features to condition on, or None    drop: see `ConditioningDropout`
    sizes: of `WaveNet`
    """
    conditioned = mels is not None
    hop = speech.rate // 100 if conditioned else 1
    net = WaveNet(**sizes, cond_channels=mels + 1 if conditioned else 0, hop_length=hop)
    encode, _ = levels(net)
    if not conditioned:
        audio = {"rate": speech.rate, "features": None, "mean": None, "std": None}
        return net, Crops(speech.waves, crop, encode, seed=seed), audio
    window = speech.rate // 25
    n_fft = 1 << (window - 1).bit_length()
    mel = LogMel(speech.rate, n_fft, window, hop, mels)
    crops = Crops(speech.waves, crop, encode, seed=seed, mel=mel)
    audio = {"rate": speech.rate, **Conditioning(mel, crops.mean, crops.std).config}
    return net, ConditioningDropout(crops, drop, seed=seed), audio


def draw(model, n, T, rate, **options):
    """Codes (n, T) from a stream of a model, and how many of them it made a second."""
    began, made, parts = time.perf_counter(), 0, []
    with progress() as show:
        for codes in model.stream(n, chunk=min(T, 1024), **options):
            parts.append(codes.cpu().to(torch.int32))
            made += codes.shape[1]
            if made >= T:
                break
            show(f"{made / rate:.1f} of {T / rate:.1f} s")
    return torch.cat(parts, dim=1)[:, :T], n * made / (time.perf_counter() - began)


@torch.no_grad()
def naive_speed(model, codes, seconds):
    """Codes a second of a sampler that runs the network over its receptive field for each."""
    device = next(model.parameters()).device
    window = codes[:, -model.receptive_field - 1 :].long().to(device)
    u = torch.full((len(codes), 2) if model.mixtures else (len(codes),), 0.5, device=device)
    began, steps, took = time.perf_counter(), 0, 0.0
    while took < seconds:
        logits = model(window)[..., -1]
        kernels.draw(logits, u, 1.0, model.classes, model.mixtures).cpu()
        steps, took = steps + 1, time.perf_counter() - began
    return len(codes) * steps / took


class Clips:
    """The held-out clips of a set, or the first `files` of them, as a model takes them.

    codes: list of (T,)    conds: list of (channels, F), or of None    rate: Hz

    Raises ValueError for files < 1, another rate than the format's, and as `Speech` does.
    """

    def __init__(self, name, form, files=None):
        if files is not None and files < 1:
            raise ValueError(f"files: expected at least 1, got {files}")
        speech = Speech(name, "held out")
        if speech.rate != form.rate:
            raise ValueError(f"{name}: expected {form.rate} Hz, got {speech.rate} Hz")
        self.waves, self.rate = speech.waves[:files], form.rate
        self.codes = [form.encode(wave) for wave in self.waves]
        features = form.conditioning or (lambda wave: None)
        self.conds = [features(wave) for wave in self.waves]
        self.samples = sum(map(len, self.waves))

    def nats(self, measure, show=lambda line: None):
        """Mean of measure(codes, cond), in nats a sample."""
        total = 0.0
        for i, (codes, cond) in enumerate(zip(self.codes, self.conds, strict=True)):
            show(f"clip {i + 1} of {len(self.codes)}")
            total += measure(codes, cond)
        return total / self.samples


def likelihoods(model, form, clips, name, show):
    """Nats a sample of the clips, by the model and by what it must beat: rows of text."""
    rows = []
    if form.conditioning:
        nats = clips.nats(lambda x, cond: network_nats(model, x, cond), show)
        rows.append(("model, given features", nats))
    rows.append(("model", clips.nats(lambda x, cond: network_nats(model, x), show)))
    show("baselines")
    train = Speech(name).waves
    if not model.mixtures:  # which are of mu-law levels
        nats = linear_predictor_nats(train, clips.waves, classes=model.classes)
        rows.append(("linear predictor", nats))
    codes = [form.encode(wave) for wave in train]
    rows.append(("unigram", unigram_nats(codes, clips.codes, model.classes)))
    rows.append((f"uniform, ln {model.classes}", math.log(model.classes)))
    return [(label, f"{nats:.4f}") for label, nats in rows]


def arithmetic(model, clips, show):
    """Nats a sample by what the sampler draws from, in each dtype: rows of text."""
    return [
        (dtype, f"{clips.nats(partial(sampler_nats, model, dtype=dtype), show):.4f}")
        for dtype in DTYPES
    ]


def resynthesis(model, form, clips, seed, show):
    """How clips sound when spoken again from their features: rows of text."""
    mel, distances, scores = form.conditioning.mel, [], []
    missing = "no clip holds enough speech"
    for i, (wave, cond) in enumerate(zip(clips.waves, clips.conds, strict=True)):
        show(f"clip {i + 1} of {len(clips.waves)}")
        spoken = form.decode(model.sample(1, len(wave), seed=seed, cond=cond[None])[0])
        distances.append(log_mel_distance(wave, spoken, mel).item())
        try:
            scores.append(stoi(wave, spoken, clips.rate))
        except ValueError:  # too short a clip
            continue
        except ImportError as error:
            missing = str(error)
    intelligibility = f"{statistics.mean(scores):.3f}" if scores else missing
    return [
        ("STOI, 1 is best", intelligibility),
        ("log-mel distance", f"{statistics.mean(distances):.2f} dB"),
    ]
