"""Points of the plane whose density and entropy are known."""

import math
from functools import cached_property

import numpy as np
import torch

from ..kernels import uniforms

NODES = 100  # of a quadrature along a curve
FINE, TAIL = 5, 7  # of a grid: lines in a standard deviation, standard deviations around it all
BLOCK = 1 << 10  # points whose density is found at once


class Curves:
    """Points of K curves in turn, blurred by a Gaussian.

        p(x) = 1/K sum_k integral_0^1 N(x; c_k(t), sd^2 I) dt

    The integral is Gauss and Legendre's, exact to rounding where a curve is smooth over `sd`.

    curves: t (N,) -> (N, K, 2)    sd: of a coordinate    nodes: of the quadrature
    """

    def __init__(self, curves, sd, nodes=NODES):
        self.curves, self.sd, self.nodes = curves, sd, nodes

    @cached_property
    def rule(self):
        """The points of the curves that a density is summed over, and the logs of their weights."""
        at, weights = np.polynomial.legendre.leggauss(self.nodes)
        t, w = torch.from_numpy(at / 2 + 0.5), torch.from_numpy(weights / 2)
        centres = self.curves(t)  # (nodes, K, 2)
        K = centres.shape[1]
        log_w = (w / K).log().repeat_interleave(K) - math.log(2 * math.pi * self.sd**2)
        return centres.flatten(0, 1), log_w

    def sample(self, n, *, seed, start=0):
        """The points start ... start + n - 1 of a seed, (n, 2) float64."""
        k, t, a, b = uniforms(seed, 4, n, start)
        centres = self.curves(t)  # (n, K, 2)
        own = centres[torch.arange(n), (k * centres.shape[1]).long()]
        radius = self.sd * (-2 * torch.log1p(-a)).sqrt()
        return own + radius[:, None] * circle(2 * math.pi * b)

    def log_prob(self, x):
        """Exact log-density of points (n, 2), in nats, (n,) float64."""
        parts = [self._log_prob(part) for part in x.double().cpu().split(BLOCK)]
        return torch.cat(parts)

    def _log_prob(self, x):
        centres, log_w = self.rule
        scaled = centres / self.sd**2
        at_0 = log_w - (centres * scaled).sum(1) / 2
        log_p = torch.addmm(at_0, x, scaled.T).logsumexp(1)  # of (n, nodes K)
        return log_p - x.square().sum(1) / (2 * self.sd**2)

    @property
    def box(self):
        """What holds all but e^-24 of the mass: low (2,), high (2,)."""
        centres, margin = self.rule[0], TAIL * self.sd
        return centres.amin(0) - margin, centres.amax(0) + margin

    @cached_property
    def entropy(self):
        """In nats: the integral of -p log p by the trapezoid rule, to 1e-7."""
        low, high = self.box
        step = self.sd / FINE
        lines = [
            torch.arange(a, b, step, dtype=torch.float64)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]
        log_p = self.log_prob(torch.cartesian_prod(*lines))
        return -(log_p.exp() * log_p).sum().item() * step**2


class Checkerboard:
    """The points of every other square of a board of 4 x 4 squares, of 1 x 1, all alike."""

    def sample(self, n, *, seed, start=0):
        """As `Curves.sample`."""
        k, a, b = uniforms(seed, 3, n, start)
        row, column = (8 * k).long() // 2, (8 * k).long() % 2 * 2
        return torch.stack([column + row % 2 + a, row + b], dim=1) - 2

    def log_prob(self, x):
        """As `Curves.log_prob`; -inf off the squares."""
        x = x.double().cpu()
        column, row = (x + 2).floor().T
        on = (column - row) % 2 == 0
        on &= (torch.minimum(column, row) >= 0) & (torch.maximum(column, row) < 4)
        return torch.full_like(column, -self.entropy).masked_fill(~on, -math.inf)

    @property
    def box(self):
        edge = torch.full((2,), 2.5, dtype=torch.float64)
        return -edge, edge

    entropy = math.log(8)  # nats


def circle(angle):
    """Points of the unit circle, (..., 2)."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def ring(t):
    eighths = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return (2 * circle(eighths)).expand(len(t), 8, 2)


def moons(t):
    """An arch and a cup, whose middles the arch's and the cup's ends touch."""
    arch = circle(math.pi * t)
    return torch.stack([arch, torch.tensor([1, 0.5]) - arch], dim=1)


def spirals(t):
    """Two arms, about as dense all along."""
    angle = 3 * math.pi * (t + (1 - t) / 36).sqrt()
    arm = 2 * (angle / (3 * math.pi))[:, None] * circle(angle)
    return torch.stack([arm, -arm], dim=1)


POINTS = {
    "eight_gaussians": Curves(ring, 0.25, nodes=1),
    "ring": Curves(ring, 0.02, nodes=1),  # of Metz et al. 2017, Unrolled GANs
    "two_moons": Curves(moons, 0.1),
    "two_spirals": Curves(spirals, 0.1, nodes=2 * NODES),
    "checkerboard": Checkerboard(),
}


class Draws:
    """Batches of new points of a set, at each step others: (size, 2) float32."""

    def __init__(self, points, seed):
        self.points, self.seed = points, seed

    def batch(self, step, size):
        return (self.points.sample(size, seed=self.seed, start=step * size).float(),)
