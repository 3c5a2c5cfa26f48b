"""How alike two clips sound, and how likely simple models find held-out speech."""

import importlib
import math
import warnings

import torch
import torch.nn.functional as F

from ..data.audio import check_codes, mulaw_decode, mulaw_edges, mulaw_encode

LEAST_SECONDS = 0.4  # of speech, 30 frames of 256 samples at 10 kHz, half overlapping
BLOCK = 65536  # samples regressed at once


def log_mel_distance(x, y, mel):
    """Root mean square difference of two waves' log-mel powers over all bands and frames, in dB.

        d = 10/ln 10 sqrt(mean (mel(x) - mel(y))^2)

    x, y: (..., T) -> (...). Raises ValueError for shapes that differ.
    """
    if x.shape != y.shape:
        raise ValueError(f"log_mel_distance: y expected {tuple(x.shape)}, got {tuple(y.shape)}")
    return 10 / math.log(10) * (mel(x) - mel(y)).square().mean((-2, -1)).sqrt()


def stoi(x, y, rate):
    """Short-time objective intelligibility of y against the clean x: at most 1, which is best.

    x, y: (T,) at `rate` Hz. Computed by the package pystoi, from what both hold below 5 kHz.

    Raises ImportError without that package; ValueError for shapes that differ, NaN or Inf, and x
    that holds less than 0.4 s of sound.
    Taal et al. 2011, An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy
    Speech.
    """
    try:
        pystoi = importlib.import_module("pystoi")
    except ImportError as error:
        message = "stoi: expected the package pystoi: pip install 'fastgen[metrics]'"
        raise ImportError(message) from error
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"stoi: expected two (T,), got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (wave.detach().cpu().double() for wave in (x, y))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("stoi: expected finite samples, got NaN or Inf")
    sound = x.count_nonzero().item() / rate
    if sound < LEAST_SECONDS:
        raise ValueError(f"stoi: x expected {LEAST_SECONDS} s of speech, got {sound:g} s of sound")
    with warnings.catch_warnings():
        # where too little is left without silent frames, pystoi warns and returns 1e-5
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(x.numpy(), y.numpy(), rate))
        except RuntimeWarning as warning:
            raise ValueError(
                f"stoi: x expected {LEAST_SECONDS} s of speech: {warning}"
            ) from warning


def unigram_nats(train, heldout, classes):
    """Held-out negative log-likelihood of codes drawn independently, in nats a sample.

        p(c) = (n[c] + 1) / (N + classes),  n[c] the count of c among the N codes of `train`

    train, heldout: sequences of (T,) codes. Raises TypeError for codes that are not integers,
    ValueError for codes out of range and for none held out.
    """
    n = _counts(train, classes)
    p = (n + 1) / (n.sum() + classes)
    n = _counts(heldout, classes)
    if n.sum() == 0:
        raise ValueError("unigram_nats: heldout expected at least 1 code, got none")
    return -(n @ p.log() / n.sum()).item()


def linear_predictor_nats(train, heldout, order=16, scale_order=32, classes=256):
    """Held-out negative log-likelihood of mu-law codes, predicted linearly, in nats a sample.

        p(c[t] | c[<t]) = the mass of Laplace(m[t], s[t]) on the samples that `mulaw_encode` to c[t]
        m[t] = a_0 + sum_{i=1}^{order} a_i x[t-i],  x = mulaw_decode(c)
        s[t] = b_0 + sum_{i=1}^{scale_order} b_i |x[t-i] - m[t-i]|

    a and b minimise the squared errors of m and s on `train`; with scale_order 0, s is the mean
    residual, its most likely value. Zeros stand before a wave, and s is at least the least
    distance of two levels. The p sum to one, so that the figure compares with any model of these
    codes.

    train, heldout: sequences of (T,) waves. Raises ValueError for orders < 0, other shapes
    and no samples.
    """
    if min(order, scale_order) < 0:
        raise ValueError(f"linear_predictor_nats: orders expected >= 0, got {order}, {scale_order}")
    for name, waves in (("train", train), ("heldout", heldout)):
        shapes = [tuple(wave.shape) for wave in waves]
        if any(len(shape) != 1 for shape in shapes) or not sum(math.prod(s) for s in shapes):
            raise ValueError(
                f"linear_predictor_nats: {name} expected waves (T,) with samples, got {shapes[:3]}"
            )
    edges = mulaw_edges(classes)
    least = mulaw_decode(torch.arange(classes), classes).double().diff().min()
    edges = F.pad(F.pad(edges, (1, 0), value=-math.inf), (0, 1), value=math.inf)

    x = [mulaw_decode(mulaw_encode(wave, classes), classes).double() for wave in train]
    a = _regress(x, order)
    b = _regress([(wave - _predict(wave, a)).abs() for wave in x], scale_order)
    total = 0.0
    for wave in heldout:
        codes = mulaw_encode(wave, classes)
        x = mulaw_decode(codes, classes).double()
        m = _predict(x, a)
        s = _predict((x - m).abs(), b).clamp_min(least)
        total -= _laplace_log_mass((edges[codes] - m) / s, (edges[codes + 1] - m) / s).sum().item()
    return total / sum(map(len, heldout))


def _counts(sequences, classes):
    n = torch.zeros(classes, dtype=torch.float64)
    for codes in sequences:
        codes = check_codes("unigram_nats", codes, classes)
        n += torch.bincount(codes.flatten().cpu(), minlength=classes)
    return n


def _blocks(x, order):
    """Blocks of the regression of x[t] on 1 and its past: (T, order + 1), (T,)."""
    padded = F.pad(x, (order, 0))
    for start in range(0, len(x), BLOCK):
        y = x[start : start + BLOCK]
        past = padded[start : start + order + len(y) - 1].unfold(0, order, 1)
        yield torch.cat([past, y.new_ones(len(y), 1)], dim=1), y


def _regress(waves, order):
    """The weights (order + 1,) that predict each sample from the ones before, by least squares."""
    gram = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    moment = torch.zeros(order + 1, 1, dtype=torch.float64)
    for wave in waves:
        for past, y in _blocks(wave, order):
            gram += past.T @ past
            moment += past.T @ y[:, None]
    return torch.linalg.lstsq(gram, moment, driver="gelsd").solution[:, 0]


def _predict(x, weights):
    return torch.cat([x[:0], *(past @ weights for past, _ in _blocks(x, len(weights) - 1))])


def _laplace_log_mass(lower, upper):
    """ln of the mass of exp(-|z|)/2 between `lower` < `upper`, exact far from 0 too."""
    right = lower >= 0
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    tail = upper + torch.log(-torch.expm1(lower - upper) / 2)
    middle = torch.log(-(torch.expm1(lower) + torch.expm1(-upper)) / 2)
    return torch.where(upper <= 0, tail, middle)
