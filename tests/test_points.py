"""The density of points is a density, the points have it, and the entropy is its mean."""

import math

import pytest
import torch

from fastgen.data import POINTS, Draws
from fastgen.data.points import Curves, circle

N = 40_000


@pytest.mark.parametrize("name", POINTS)
def test_the_density_integrates_to_one(name):
    low, high = POINTS[name].box
    step = 0.01 if name == "ring" else 0.05
    x, y = (
        torch.arange(a + step / 2, b, step, dtype=torch.float64)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    )
    total = POINTS[name].log_prob(torch.cartesian_prod(x, y)).exp().sum().item() * step**2
    assert total == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", POINTS)
def test_the_entropy_is_the_mean_of_the_points(name):
    points = POINTS[name]
    nats = -points.log_prob(points.sample(N, seed=0))
    error = nats.std().item() / math.sqrt(N)
    assert nats.mean().item() == pytest.approx(points.entropy, abs=4 * error + 1e-9)


@pytest.mark.parametrize("name", POINTS)
def test_points_fall_as_the_density_says(name):
    """Counts in the cells of a grid against the density's integral over each: chi-square."""
    points, cell, fine = POINTS[name], 0.03 if name == "ring" else 0.25, 10
    x = points.sample(N, seed=1)
    low = torch.floor(x.amin(0) / cell) * cell
    size = ((x.amax(0) - low) / cell).floor().long() + 1
    at = ((x - low) / cell).long()
    got = torch.bincount(at[:, 0] * size[1] + at[:, 1], minlength=int(size.prod())).view(*size)
    lines = [
        a + (torch.arange(n * fine, dtype=torch.float64) + 0.5) * cell / fine
        for a, n in zip(low, size, strict=True)
    ]
    p = points.log_prob(torch.cartesian_prod(*lines)).exp().view(len(lines[0]), -1)
    p = p.unflatten(1, (-1, fine)).sum(-1).unflatten(0, (-1, fine)).sum(1) * (cell / fine) ** 2
    often = N * p > 10
    square = ((got - N * p).square() / (N * p))[often].sum().item()
    n = int(often.sum())
    assert n > 25
    assert square < n + 4.5 * math.sqrt(2 * n)


def test_the_density_of_two_moons_is_the_integral():
    sd, steps = 0.1, 20_000
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    arch = circle(math.pi * t)
    for x in ((0.3, 0.9), (1.0, 0.5), (2.05, 0.45), (-0.8, -0.1)):
        x = torch.tensor(x, dtype=torch.float64)
        both = torch.cat([arch, torch.tensor([1, 0.5]) - arch])
        kernel = torch.exp(-(x - both).square().sum(1) / (2 * sd**2)) / (2 * math.pi * sd**2)
        got = POINTS["two_moons"].log_prob(x[None]).exp().item()
        assert got == pytest.approx(kernel.mean().item(), rel=1e-6)


def test_one_gaussian_is_the_gaussian():
    points = Curves(lambda t: torch.tensor([[3.0, -1.0]]).double().expand(len(t), 1, 2), 0.5)
    assert points.entropy == pytest.approx(1 + math.log(2 * math.pi * 0.25), abs=1e-9)
    got = points.log_prob(torch.tensor([[3.0, 0.0], [1e3, 0.0]]))
    want = -torch.tensor([1, 997.0**2 + 1]) / 0.5 - math.log(2 * math.pi * 0.25)
    torch.testing.assert_close(got, want.double())


def test_off_the_board():
    x = torch.tensor([[-1.5, -1.5], [-0.5, -1.5], [-0.5, -0.5], [-2.5, -1.5], [9.0, 9.0]])
    got = POINTS["checkerboard"].log_prob(x)
    assert got.isfinite().tolist() == [True, False, True, False, False]
    assert got[0].item() == pytest.approx(-math.log(8))


def test_batches_are_a_function_of_seed_and_step():
    source = Draws(POINTS["two_moons"], 3)
    (x,) = source.batch(2, 5)
    assert x.dtype == torch.float32
    assert torch.equal(x, POINTS["two_moons"].sample(20, seed=3)[10:15].float())
    assert not torch.equal(x, source.batch(3, 5)[0])
    assert not torch.equal(x, Draws(POINTS["two_moons"], 4).batch(2, 5)[0])
