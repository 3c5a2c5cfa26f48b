import math

import pytest
import torch

from fastgen.kernels import draw, logistic_mixture, uniforms
from fastgen.kernels.logistic_mixture import value

LOG_SCALES = (-1000, -90, -70, -30, -3, 0, 10, 50, 80, 100, 1000)


def params(B=3, M=4, T=5, dtype=torch.float64):
    """Logits, means in and beyond [-1, 1], log-scales of narrow and wide components."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, 3, M, T, generator=generator, dtype=torch.float64)
    x[:, 2] = 1.5 * x[:, 2] - 2
    return x.flatten(1, 2).to(dtype)


def log_prob(x, codes, classes):
    """Of codes (B, T) of sound, which has one color."""
    return logistic_mixture(x, codes[:, None], classes)


def everything(x, classes):
    """The log-probability of each class: (classes, B, T)."""
    B, _, T = x.shape
    return torch.stack([log_prob(x, torch.full((B, T), c), classes) for c in range(classes)])


def directly(x, codes, classes):
    """The definition in float64, by differences of the logistic CDF."""
    logits, mean, log_scale = x.double().chunk(3, dim=1)
    centre = (codes.double() * 2 / (classes - 1) - 1)[:, None]
    above = torch.sigmoid((centre + 1 / (classes - 1) - mean) / log_scale.exp())
    below = torch.sigmoid((centre - 1 / (classes - 1) - mean) / log_scale.exp())
    above = torch.where((codes == classes - 1)[:, None], 1.0, above)
    below = torch.where((codes == 0)[:, None], 0.0, below)
    return (torch.softmax(logits, dim=1) * (above - below)).sum(1).log()


@pytest.mark.parametrize("classes", [2, 3, 10, 256])
def test_sums_to_one(classes):
    total = everything(params(), classes).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    total = everything(params(dtype=torch.float32), classes).double().exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=3e-6)


@pytest.mark.parametrize("classes", [2, 17, 256, 65536])
def test_equals_the_definition(classes):
    x = params(T=200)
    codes = torch.randint(classes, (3, 200), generator=torch.Generator().manual_seed(0))
    codes[:, :2] = torch.tensor([0, classes - 1])
    want = directly(x, codes, classes)
    sound = want > -15  # beyond, the differences of the definition cancel
    assert sound.double().mean() > 0.9
    got = log_prob(x, codes, classes)
    torch.testing.assert_close(got[sound], want[sound], rtol=0, atol=1e-6)
    close = log_prob(x.float(), codes, classes)[sound]
    torch.testing.assert_close(close.double(), want[sound], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 65536])
def test_extreme_parameters_have_finite_gradients(classes, dtype):
    for log_scale in LOG_SCALES:
        for mean in (-1e4, -1.0, 0.0, 1.0, 1e4):
            x = torch.tensor([0.0, -1e4, mean, 0.5, log_scale, 0.0], dtype=dtype)
            x = x[None, :, None].repeat(3, 1, 1).requires_grad_()
            codes = torch.tensor([[0], [classes // 2], [classes - 1]])
            found = log_prob(x, codes, classes)
            assert found.isfinite().all(), (mean, log_scale)
            assert (found <= 0).all(), (mean, log_scale)
            found.sum().backward()
            assert x.grad.isfinite().all(), (mean, log_scale)


def test_gradients():
    x = params(B=2, M=2, T=3).requires_grad_()
    codes = torch.tensor([[0, 5, 9], [3, 9, 0]])
    assert torch.autograd.gradcheck(lambda x: log_prob(x, codes, 10), [x])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 9, 32])
def test_draws_have_these_probabilities(classes, temperature):
    n = 20000
    x = params(B=1, M=3, T=1)
    u = uniforms(classes, 1, n, draws=2)[0]
    codes = draw(x[:, :, 0].expand(n, -1), u, temperature, classes, mixtures=3)
    # a temperature divides the logits and multiplies the scales
    logits, mean, log_scale = x.chunk(3, dim=1)
    tempered = torch.cat([logits / temperature, mean, log_scale + math.log(temperature)], 1)
    expected = n * everything(tempered, classes)[:, 0, 0].exp()
    many = expected > 5
    statistic = ((torch.bincount(codes, minlength=classes) - expected)[many] ** 2).div(
        expected[many]
    )
    df = int(many.sum()) - 1
    assert df >= 1
    assert statistic.sum() < df + 4.5 * math.sqrt(2 * df)


def test_the_heaviest_component_at_temperature_0():
    x = torch.tensor([[0.0, 2.0, 2.0, 0.9, -0.5, 0.7, 1.0, 1.0, 1.0]])
    u = torch.tensor([[0.9, 0.9]])
    assert draw(x, u, 0.0, 5, mixtures=3).tolist() == [1]


def test_draws_beyond_the_ends_are_the_end_codes():
    x = torch.tensor([[0.0, 30.0, 0.0], [0.0, -30.0, 0.0], [0.0, 0.0, 300.0], [0.0, 0.0, 300.0]])
    u = torch.tensor([[0.5, 0.1], [0.5, 0.9], [0.5, 0.0], [0.5, 0.5]], dtype=torch.float64)
    assert draw(x, u, 1.0, 255, mixtures=1).tolist() == [254, 0, 0, 127]


def test_values_are_equidistant_from_minus_one_to_one():
    x = value(torch.arange(5), 5)
    assert x.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert x.dtype == torch.float32
    assert value(torch.tensor([0, 65535]), 65536, torch.float64).tolist() == [-1, 1]
