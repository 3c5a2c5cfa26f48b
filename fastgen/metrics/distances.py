"""How far samples are from data, by their features.

    x (N, D) features of data    y (M, D) features of samples

Features are of a network, and figures of two networks do not compare.
"""

from typing import NamedTuple

import torch

BLOCK = 128  # rows whose kernel with all others is found at once


class Estimate(NamedTuple):
    """A figure, and how uncertain it is."""

    value: float
    error: float


def frechet_distance(x, y):
    """Squared Fréchet distance of the Gaussians with the features' means and covariances.

        |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    The estimate is biased, by terms that fall as 1 / N and 1 / M, and none is unbiased for all
    distributions: read it beside the distance of two sets of data, of the same numbers.

    x: (N, D)    y: (M, D)    returns: a number, by the eigenvalues in float64
    Raises ValueError for other shapes, fewer than 2 rows, NaN and Inf.
    Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium; Bińkowski et al. 2018, Demystifying MMD GANs, appendix D, on the bias.
    """
    x, y = features("frechet_distance", x, y, 2)
    roots = [half(z) for z in (x, y)]
    # The eigenvalues of C_x C_y are the squares of these, which loses no digits of small ones.
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    traces = sum(root.square().sum() for root in roots)
    return ((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * cross).clamp(min=0).item()


def half(x):
    """A square root R of the covariance R^T R of rows (N, D), by its eigenvalues: (D, D)."""
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / (len(x) - 1))
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def kernel_distance(x, y):
    """The kernel distance KID: MMD^2 of k(a, b) = (a.b / D + 1)^3, unbiased.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    All pairs are taken, where subsets of 1,000 are usual. The standard error is the jackknife's,
    over the rows of x and of y: in the mean it is not too small. Below 0 is as good as 0.

    x: (N, D)    y: (M, D)    returns: `Estimate`
    Raises ValueError for other shapes, fewer than 3 rows, NaN and Inf.
    Bińkowski et al. 2018, Demystifying MMD GANs; Gretton et al. 2012, A Kernel Two-Sample Test,
    lemma 6; Efron and Stein 1981, The Jackknife Estimate of Variance.
    """
    x, y = features("kernel_distance", x, y, 3)
    N, M = len(x), len(y)
    a, b = (sums(z, z)[0] - (z.square().mean(1) + 1) ** 3 for z in (x, y))
    c, d = sums(x, y)
    cross = c.sum()

    def mmd(a_sum, N, b_sum, M, cross):
        return a_sum / (N * (N - 1)) + b_sum / (M * (M - 1)) - 2 * cross / (N * M)

    value = mmd(a.sum(), N, b.sum(), M, cross)
    without_x = mmd(a.sum() - 2 * a, N - 1, b.sum(), M, cross - c)
    without_y = mmd(a.sum(), N, b.sum() - 2 * b, M - 1, cross - d)
    variance = sum((len(t) - 1) * t.var(correction=0) for t in (without_x, without_y))
    return Estimate(value.item(), variance.sqrt().item())


def sums(x, y):
    """The kernel's sums over y for each row of x, and over x for each row of y: (N,), (M,)."""
    rows, columns = [], torch.zeros_like(y[:, 0])
    for part in x.split(BLOCK):
        root = (part @ y.T).div_(x.shape[1]).add_(1)
        k = root * root * root
        rows.append(k.sum(1))
        columns += k.sum(0)
    return torch.cat(rows), columns


def inception_score(log_p, splits=10):
    """Of a classifier's opinion of samples, exp(mean KL(p(label | x) || mean p(label | x))).

    1 of samples that all look alike, K of the K classes in equal parts, each surely recognised. It
    knows nothing of data, and is too small of few samples.

    log_p: (N, K), rows that are log-probabilities    splits: in how many parts, one after another
    returns: `Estimate` of the parts' mean and standard deviation
    Raises ValueError for other shapes, rows that do not sum to one, fewer rows than parts.
    Salimans et al. 2016, Improved Techniques for Training GANs, section 4; Barratt and Sharma 2018,
    A Note on the Inception Score.
    """
    if log_p.dim() != 2 or not 1 <= splits <= len(log_p):
        got = f"{tuple(log_p.shape)} in {splits}"
        raise ValueError(f"inception_score: expected log_p (N, K) in 1 to N parts, got {got}")
    log_p = log_p.double()
    if not (log_p.logsumexp(1).abs() < 1e-3).all():
        raise ValueError("inception_score: log_p: expected rows whose probabilities sum to one")
    scores = []
    for part in log_p.exp().tensor_split(splits):
        # the mean of KL(p || q) is the entropy of the mean q, less the mean of the entropies
        gain = torch.special.entr(part.mean(0)).sum() - torch.special.entr(part).sum(1).mean()
        scores.append(gain.exp())
    scores = torch.stack(scores)
    return Estimate(scores.mean().item(), scores.std(correction=0).item())


def features(name, x, y, least):
    """Features (N, D) and (M, D) in float64.

    Raises ValueError for other shapes, fewer than `least` rows, NaN and Inf.
    """
    fits = x.dim() == y.dim() == 2 and x.shape[1] == y.shape[1] and x.shape[1]
    if not fits or min(len(x), len(y)) < least:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{name}: expected (N, D) and (M, D), N, M >= {least}, got {got}")
    x, y = x.detach().double(), y.detach().double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"{name}: expected finite features, got NaN or Inf")
    return x, y


def squares(x, y):
    """Squared distances of rows (N, D) and (M, D): (N, M), to rounding of the largest square."""
    own, other = (z.square().sum(1) for z in (x, y))
    return torch.addmm(other, x, y.T, alpha=-2).add_(own[:, None]).clamp_(min=0)
