"""A long sequence in windows has the likelihood that one pass gives it."""

import pytest
import torch

from fastgen import WaveNet
from fastgen.metrics import likelihood
from fastgen.metrics.likelihood import network_nats, sampler_nats


def spread(**config):
    torch.manual_seed(0)
    sizes = {"classes": 16, **config}
    model = WaveNet(4, 2, 6, 8, 6, **sizes).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model


@pytest.fixture(params=["plain", "features", "mixture"])
def case(request):
    config = {
        "plain": {},
        "features": {"cond_channels": 3, "hop_length": 8},
        "mixture": {"mixtures": 2, "classes": 100},
    }[request.param]
    model = spread(**config)
    codes = torch.randint(model.classes, (9000,))
    cond = None
    if model.config["cond_channels"]:
        cond = torch.randn(3, 9000 // 8 + 1, dtype=torch.float64)
    with torch.no_grad():
        expected = -model.log_prob(codes[None], None if cond is None else cond[None]).item()
    return model, codes, cond, expected


@pytest.mark.parametrize("window", [100, 1000, 9001])
def test_windows_see_all_of_their_past(case, window, monkeypatch):
    monkeypatch.setattr(likelihood, "WINDOW", window)
    model, codes, cond, expected = case
    assert network_nats(model, codes, cond) == pytest.approx(expected, rel=1e-12)


def test_the_sampler_says_the_same(case):
    model, codes, cond, expected = case
    assert sampler_nats(model, codes, cond, "float64") == pytest.approx(expected, rel=1e-12)
    assert sampler_nats(model, codes, cond, "float32") == pytest.approx(expected, rel=1e-5)
    for dtype in ("bfloat16", "int8"):
        assert sampler_nats(model, codes, cond, dtype) == pytest.approx(expected, rel=0.02)
        assert sampler_nats(model, codes, cond, dtype) != expected


def test_no_codes():
    empty = torch.zeros(0, dtype=torch.int64)
    assert network_nats(spread(), empty) == sampler_nats(spread(), empty) == 0
