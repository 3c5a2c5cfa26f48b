"""How much of the data samples reach, and how many of them look like data, by near neighbours."""

from typing import NamedTuple

import torch

from .distances import features, squares

BLOCK = 512  # rows whose distances to all others are found at once
ROUNDING = 1e-12  # of the largest square, so that a point on a sphere is in its ball


class Overlap(NamedTuple):
    """What `overlap` finds."""

    precision: float  # of samples, the share within the manifold of data
    recall: float  # of data, the share within the manifold of samples
    density: float  # of how many balls of data a sample is within, over k; 1 of data
    coverage: float  # of balls of data, the share with a sample within


def overlap(real, fake, k=5):
    """Compare two sets by the balls around each point that reach to its k-th neighbour in its set.

    The union of a set's balls is its manifold. Of two sets of one distribution, N and M, the
    density is 1 in the mean and the coverage `expected_coverage(N, M, k)`.

    real: (N, D)    fake: (M, D)    returns: `Overlap`
    Raises ValueError for other shapes, NaN and Inf, and k outside 1 ... min(N, M) - 1.
    Kynkäänniemi et al. 2019, Improved Precision and Recall Metric for Assessing Generative Models,
    with k = 3; Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models,
    with k = 5.
    """
    if k < 1:
        raise ValueError(f"overlap: k: expected >= 1, got {k}")
    real, fake = features("overlap", real, fake, k + 1)
    mean = real.mean(0)
    real, fake = real - mean, fake - mean
    slack = ROUNDING * torch.cat([real, fake]).square().sum(1).max()
    reach, reaches = radii(real, k) + slack, radii(fake, k) + slack
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    recalled, within = covered.clone(), []
    for part, own in zip(fake.split(BLOCK), reaches.split(BLOCK), strict=True):
        square = squares(part, real)  # (b, N)
        inside = square <= reach
        within.append(inside.sum(1))
        covered |= inside.any(0)
        recalled |= (square <= own[:, None]).any(0)
    within = torch.cat(within).double()
    parts = (within > 0).double(), recalled.double(), within / k, covered.double()
    return Overlap(*(part.mean().item() for part in parts))


def expected_coverage(N, M, k):
    """The mean coverage of N points by M of the same distribution, which has a density.

        1 - (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k))

    Naeem et al. 2020, lemma 2.
    """
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (N - i) / (M + N - i)
    return 1 - missed


def radii(x, k):
    """The squared distance of each row to its k-th nearest other one, (N,)."""
    found = []
    for i, part in zip(range(0, len(x), BLOCK), x.split(BLOCK), strict=True):
        square = squares(part, x)
        own = torch.arange(len(part), device=x.device)
        square[own, own + i] = torch.inf
        found.append(square.topk(k, largest=False).values[:, -1])
    return torch.cat(found)
