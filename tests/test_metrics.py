"""Metrics of samples are what theory says of distributions that are known."""

import math

import pytest
import torch

from fastgen.metrics import (
    distances,
    expected_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    neighbours,
    overlap,
)
from fastgen.metrics.parzen import log_window, parzen


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # arrays this small lose by more


def normal(N, D, mean=0.0, sd=1.0):
    return mean + sd * torch.randn(N, D, dtype=torch.float64)


def shaped(mean, covariance, N=50):
    """Rows whose sample mean and covariance are these, to rounding."""
    x = normal(N, len(mean))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (N - 1))).T
    return mean + x @ torch.linalg.cholesky(covariance).T


def test_frechet_distance_of_known_gaussians():
    zero, one = torch.zeros(3).double(), torch.eye(3).double()
    x = shaped(zero, one)
    # scales and a shift: |m|^2 + sum (s - 1)^2
    s = torch.tensor([0.5, 2.0, 3.0]).double()
    y = shaped(torch.tensor([1.0, -2.0, 0.0]).double(), torch.diag(s**2))
    assert frechet_distance(x, y) == pytest.approx(5 + (s - 1).square().sum().item(), rel=1e-12)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    # covariances that do not commute, of which in two dimensions
    # tr (A B)^(1/2) = (tr(A B) + 2 (det A det B)^(1/2))^(1/2)
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    B = torch.tensor([[1.0, -0.5], [-0.5, 0.5]]).double()
    root = ((A @ B).trace() + 2 * (A.det() * B.det()).sqrt()).sqrt()
    a, b = shaped(zero[:2], A), shaped(zero[:2], B)
    want = (A.trace() + B.trace() - 2 * root).item()
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-12)
    # of one direction: (s - t)^2 whatever else is 0, which an inverse would not survive
    line = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    got = frechet_distance(3 * x[:, :1] @ line, x[:, :1] @ line)
    assert got == pytest.approx(4, rel=1e-12)


def test_frechet_distance_has_the_floor_of_its_numbers():
    # two sets of N(0, 1): E (m_x - m_y)^2 = 2/N, E (s_x - s_y)^2 = 1/N to the first order
    found = [frechet_distance(normal(100, 1), normal(100, 1)) for _ in range(400)]
    assert sum(found) / 400 == pytest.approx(3 / 100, rel=0.2)


def moments(mean, sd):
    return torch.tensor([mean, mean**2 + sd**2, mean**3 + 3 * mean * sd**2])


def test_kernel_distance_of_known_gaussians():
    # (ab + 1)^3 = 1 + 3 ab + 3 a^2 b^2 + a^3 b^3, so MMD^2 is of moments
    gap = moments(0.0, 1.0) - moments(0.5, 1.5)
    want = (torch.tensor([3.0, 3.0, 1.0]) * gap.square()).sum().item()
    found = [kernel_distance(normal(40, 1), normal(60, 1, 0.5, 1.5)) for _ in range(400)]
    values, errors = torch.tensor(found).double().T
    spread = values.std()
    assert abs(values.mean() - want) < 4 * spread / 400**0.5
    assert spread**2 <= errors.square().mean() < 2 * spread**2
    x, y = normal(2000, 1), normal(2000, 1, 0.5, 1.5)
    value, error = kernel_distance(x, y)
    assert abs(value - want) < 4 * error < want


def test_kernel_distance_is_0_in_the_mean_of_equal_distributions():
    found = [kernel_distance(normal(20, 3), normal(30, 3)) for _ in range(1000)]
    values, errors = torch.tensor(found).double().T
    assert abs(values.mean()) < 4 * values.std() / 1000**0.5
    assert values.min() < 0
    assert values.std() ** 2 <= errors.square().mean()


def test_kernel_distance_takes_blocks_and_leaves_no_pair_out(monkeypatch):
    x, y = normal(7, 2), normal(5, 2)

    def direct(x, y):
        k = [(a @ b.T / 2 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
        own = [(m.sum() - m.trace()) / (len(m) * (len(m) - 1)) for m in k[:2]]
        return own[0] + own[1] - 2 * k[2].mean()

    monkeypatch.setattr(distances, "BLOCK", 3)
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(direct(x, y).item(), rel=1e-12)
    rows = [torch.arange(len(z)) for z in (x, y)]
    left = torch.stack([direct(x[rows[0] != i], y) for i in range(7)])
    right = torch.stack([direct(x, y[rows[1] != i]) for i in range(5)])
    jackknife = 6 * left.var(correction=0) + 4 * right.var(correction=0)
    assert error == pytest.approx(jackknife.sqrt().item(), rel=1e-10)


def test_inception_score_of_constants_and_of_sure_opinions():
    K = 10
    same = torch.full((100, K), 1 / K).log()
    assert inception_score(same) == (pytest.approx(1), pytest.approx(0))
    skewed = torch.randn(K).log_softmax(0).expand(100, K)
    assert inception_score(skewed).value == pytest.approx(1)
    sure = torch.eye(K).repeat(10, 1).log()  # with -inf
    assert inception_score(sure) == (pytest.approx(K), pytest.approx(0))
    # half of the samples of each class sure, half of them of no opinion: KL's by hand
    log_p = torch.cat([torch.eye(2).repeat(5, 1), torch.full((10, 2), 0.5)]).log()
    assert inception_score(log_p, 1).value == pytest.approx(math.sqrt(2))
    # of its two parts one has score 2, the other 1
    assert inception_score(log_p, 2) == (pytest.approx(1.5), pytest.approx(0.5))


def test_overlap_by_hand():
    # squares' corners at distance 1: the balls of k = 1 have radius 1, and hold their spheres
    real = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    fake = torch.tensor([[2.0, 0], [2, 1], [9, 9], [9, 10], [9, 9]])
    # [2, 0] is in the ball of [1, 0], [2, 1] in that of [1, 1]; of fakes the balls of
    # [2, 0] and [2, 1] have radius 1, and those of the others 0, 1 and 0
    assert overlap(real, fake, 1) == (2 / 5, 2 / 4, 2 / 5, 2 / 4)
    assert overlap(real, real, 2) == (1, 1, 3 / 2, 1)
    assert overlap(real, real + 5, 3) == (0, 0, 0, 0)
    # a collapse to one point of the data: precise, and covers what its ball is in
    assert overlap(real, real[:1].expand(6, 2), 1) == (1, 1 / 4, 3, 3 / 4)
    # far from the origin too, where squares of distances lose digits
    assert overlap(real + 1000, real[:1].expand(6, 2) + 1000, 1) == (1, 1 / 4, 3, 3 / 4)


def test_overlap_of_one_distribution(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    found = torch.tensor([overlap(normal(150, 2), normal(100, 2), 3) for _ in range(64)])
    mean, error = found.mean(0), found.std(0) / 8
    assert abs(mean[2] - 1) < 4 * error[2]
    assert abs(mean[3] - expected_coverage(150, 100, 3)) < 4 * error[3]
    assert error.max() < 0.01


def test_overlap_sees_collapse_and_noise():
    real = normal(500, 4)
    narrow, wide = normal(500, 4, sd=0.3), normal(500, 4, sd=3.0)
    precise, noisy = overlap(real, narrow), overlap(real, wide)
    assert precise.precision > 0.95 > 0.5 > precise.recall
    assert noisy.precision < 0.5
    assert noisy.recall > 0.95
    assert noisy.density < 0.5 < precise.density


def test_parzen_of_one_sample_is_a_gaussian():
    mean, x = normal(1, 3), normal(7, 3)
    gaussian = torch.distributions.Normal(mean[0], 0.7)
    want = gaussian.log_prob(x).sum(1)
    torch.testing.assert_close(log_window(mean, x, [0.7])[0], want)
    got = parzen(mean, x, x, [0.7])
    assert got.nats == pytest.approx(want.mean().item())
    assert got.error == pytest.approx((want.std() / 7**0.5).item())
    pair = torch.stack([mean[0], mean[0] + 1])
    mixed = torch.stack([torch.distributions.Normal(c, 0.7).log_prob(x).sum(1) for c in pair])
    got = log_window(pair, x, [0.5, 0.7])[1]
    torch.testing.assert_close(got, mixed.logsumexp(0) - math.log(2))


def test_parzen_of_a_known_gaussian():
    # samples of N(0, 1) and a window of sd h are N(0, 1 + h^2) where samples are many
    samples, validation, test = normal(2000, 1), normal(1000, 1), normal(1000, 1)
    got = parzen(samples, validation, test, [0.01, 0.3, 3.0])
    assert got.sd == 0.3
    variance = 1 + 0.3**2
    want = -math.log(2 * math.pi * variance) / 2 - test.square().mean() / (2 * variance)
    assert got.nats == pytest.approx(want.item(), abs=0.01)
    assert got.error == pytest.approx(1 / variance / 2 * math.sqrt(2 / 1000), rel=0.1)
    assert 0.1 < parzen(samples[:300], validation[:300], test[:300]).sd < 1


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, overlap])
def test_features_that_do_not_fit_are_refused(metric):
    x = normal(9, 2)
    for y, match in (
        (normal(9, 3), r"expected \(N, D\) and \(M, D\), .*, got \(9, 2\) and \(9, 3\)"),
        (x[0], r"got \(9, 2\) and \(2,\)"),
        (x[:1], r"N, M >= ., got \(9, 2\) and \(1, 2\)"),
        (x * math.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=f"{metric.__name__}: .*{match}"):
            metric(x, y)


def test_what_is_out_of_range_is_refused():
    x = normal(9, 2)
    for call, match in (
        (lambda: overlap(x, x, 0), "overlap: k: expected >= 1, got 0"),
        (lambda: overlap(x, x, 9), "N, M >= 10"),
        (lambda: inception_score(x, 3), "sum to one"),
        (lambda: inception_score(x.log_softmax(1)), "in 1 to N parts"),
        (lambda: inception_score(x[0], 1), "expected log_p"),
        (lambda: parzen(x, x, x, [0.0]), "sds: expected numbers > 0"),
        (lambda: parzen(x, x, x, []), "sds: expected numbers > 0"),
        (lambda: parzen(x, x, x[:1]), "test: expected at least 2 points, got 1"),
        (lambda: parzen(x, x[:0], x), "parzen: expected"),
        (lambda: parzen(x, x, x * math.inf), "parzen: expected finite"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
