"""How likely samples make other data, if each of them were a small Gaussian."""

import math
from typing import NamedTuple

import torch

from .distances import features, squares

BLOCK = 256  # rows whose distances to all samples are found at once


class Parzen(NamedTuple):
    """What `parzen` finds."""

    nats: float  # mean log-likelihood of a test point
    error: float  # its standard error
    sd: float  # of the window


def parzen(samples, validation, test, sds=None):
    """Log-likelihood of test points by a Gaussian window around each sample.

        log p(x) = logsumexp_i(-|x - y_i|^2 / (2 sd^2)) - log N - D/2 log(2 pi sd^2)

    sd is the one under which the validation points are likeliest. In many dimensions the figure
    says little of how good samples look (Theis et al. 2016), but it is what early papers give.

    samples: (N, D)    validation, test: (V, D) and (T, D)    sds: to choose from, unless given 10
    from 0.1 to 1, evenly in their logs
    returns: `Parzen`
    Raises ValueError for other shapes, no rows, fewer than 2 test points, NaN, Inf, and sds <= 0.
    Breuleux et al. 2011, Quickly Generating Representative Samples from an RBM-Derived Process;
    Goodfellow et al. 2014, Generative Adversarial Nets, section 5.
    """
    sds = torch.logspace(-1, 0, 10, dtype=torch.float64).tolist() if sds is None else [*sds]
    if not sds or not all(0 < sd < math.inf for sd in sds):
        raise ValueError(f"parzen: sds: expected numbers > 0, got {sds}")
    samples, validation = features("parzen", samples, validation, 1)
    samples, test = features("parzen", samples, test, 1)
    if len(test) < 2:
        raise ValueError(f"parzen: test: expected at least 2 points, got {len(test)}")
    if len(sds) > 1:
        nats = log_window(samples, validation, sds).mean(1)
        sds = [sds[nats.argmax()]]
    [nats] = log_window(samples, test, sds)
    return Parzen(nats.mean().item(), (nats.std() / len(nats) ** 0.5).item(), sds[0])


def log_window(samples, x, sds):
    """log p of rows (T, D) by windows of each of S standard deviations: (S, T)."""
    N, D = samples.shape
    found = []
    for part in x.split(BLOCK):
        square = squares(part, samples)
        found.append(torch.stack([(square / (-2 * sd**2)).logsumexp(1) for sd in sds]))
    norm = [math.log(N) + D / 2 * math.log(2 * math.pi * sd**2) for sd in sds]
    return torch.cat(found, dim=1) - samples.new_tensor(norm)[:, None]
