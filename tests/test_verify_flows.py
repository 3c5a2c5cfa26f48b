"""Each check of a flow fails where the model is broken in its way."""

import pytest
import torch

from fastgen import nn
from fastgen.nn import AffineCoupling, affine_coupling
from fastgen.tractable.flow import Flow
from fastgen.tractable.sources import Sources
from fastgen.verify import flows as verify


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(verify, "GRID", 480)


def failing(name, *checks):
    return [check.__name__ for check in checks if not check(verify.MODELS[name]).ok]


@pytest.mark.parametrize("name", verify.MODELS)
def test_all_hold_and_leave_the_generator_alone(name):
    before, told = torch.get_rng_state(), []
    found = verify.verify(name, told.append)
    assert [check for check in found if not check.ok] == []
    assert told == found
    assert len(found) == 8 + (name == "ica")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_logdet_that_forgets_is_found(monkeypatch):
    forward = nn.Diagonal.forward
    monkeypatch.setattr(nn.Diagonal, "forward", lambda self, x: (forward(self, x)[0], x[:, 0] * 0))
    checks = verify.jacobian, verify.integral, verify.frequencies
    assert failing("nice", *checks) == [check.__name__ for check in checks]


def test_an_inverse_that_is_none_is_found(monkeypatch):
    inverse = AffineCoupling.inverse
    monkeypatch.setattr(AffineCoupling, "inverse", lambda self, y: inverse(self, 1.2 * y))
    checks = verify.inverts, verify.same_images, verify.frequencies
    assert failing("realnvp", *checks) == [check.__name__ for check in checks]


def test_a_gradient_from_the_output_that_lacks_a_part_is_found(monkeypatch):
    slopes = affine_coupling.slopes

    def lacking(*given):
        dseen, grads = slopes(*given)
        return torch.zeros_like(dseen), grads

    monkeypatch.setattr(affine_coupling, "slopes", lacking)
    assert failing("glow", verify.reversible) == ["reversible"]


def test_sources_of_another_density_are_found(monkeypatch):
    quantile = Sources.quantile
    monkeypatch.setattr(Sources, "quantile", lambda self, u, t=1.0: quantile(self, u, 1.1 * t))
    assert failing("realnvp", verify.integral, verify.frequencies) == ["frequencies"]


def test_levels_without_their_width_are_found(monkeypatch):
    forward = nn.Rescale.forward
    monkeypatch.setattr(nn.Rescale, "forward", lambda self, x: (forward(self, x)[0], x[:, 0, 0, 0]))
    assert failing("glow", verify.bits) == ["bits"]


def test_what_is_not_finite_is_found(monkeypatch):
    log_prob = Flow.log_prob
    monkeypatch.setattr(Flow, "log_prob", lambda self, x, **how: log_prob(self, x.exp(), **how))
    assert failing("realnvp", verify.finite) == ["finite"]


def test_sources_that_are_not_found(monkeypatch):
    learned = verify.learned
    monkeypatch.setattr(verify, "learned", lambda model, x: learned(model, x, steps=3))
    assert failing("ica", verify.components) == ["components"]
