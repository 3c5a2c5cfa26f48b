"""What `fastgen verify` checks holds, and each check fails where a model is broken in its way."""

import pytest
import torch

from fastgen import kernels
from fastgen.tractable import wavenet as model
from fastgen.tractable import wavenet_stream
from fastgen.verify import wavenet as verify


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_all_hold_and_leave_the_generator_alone():
    before, told = torch.get_rng_state(), []
    found = verify.verify(told.append)
    assert [check.name for check in found if not check.ok] == []
    assert len(found) == len(verify.CHECKS)
    assert told == found
    assert torch.equal(torch.get_rng_state(), before)


def failing(*checks):
    return [check.__name__ for check in checks if not check().ok]


def test_a_leak_of_the_present_is_found(monkeypatch):
    forward = model.WaveNet.forward
    ahead = lambda self, x, *conditions: forward(self, x.roll(-1, 1), *conditions)  # noqa: E731
    monkeypatch.setattr(model.WaveNet, "forward", ahead)
    checks = verify.sums_to_one, verify.mixture_sums_to_one, verify.past_only
    assert failing(*checks) == [check.__name__ for check in checks]


def test_a_missing_tap_is_found(monkeypatch):
    layer = kernels.wavenet_layer

    def blind(x, skip, weight, *rest):
        return layer(x, skip, weight * torch.tensor([0.0, 1.0]), *rest)

    monkeypatch.setattr(kernels, "wavenet_layer", blind)
    checks = verify.receptive_field, verify.cached_logits
    assert failing(*checks) == [check.__name__ for check in checks]


@pytest.mark.parametrize("change", [-1, 2])
def test_a_receptive_field_of_another_length_is_found(monkeypatch, change):
    field = model.WaveNet.receptive_field.fget
    monkeypatch.setattr(model.WaveNet, "receptive_field", property(lambda m: field(m) + change))
    expected = ["receptive_field", "cached_is_naive"] if change < 0 else ["receptive_field"]
    assert failing(verify.receptive_field, verify.cached_is_naive) == expected


def test_a_sampler_of_another_distribution_is_found(monkeypatch):
    cached = kernels.wavenet_sample

    def warm(weights, uniforms, **options):
        return cached(weights, uniforms, **{**options, "temperature": 1.2})

    monkeypatch.setattr(kernels, "wavenet_sample", warm)
    checks = verify.frequencies, verify.cached_is_naive
    assert failing(*checks) == [check.__name__ for check in checks]


def test_a_stream_that_begins_again_with_each_chunk_is_found(monkeypatch):
    def forget(seed, n, length, start=0, *options):
        return uniforms(seed, n, length, 0, *options)

    uniforms = kernels.uniforms
    monkeypatch.setattr(wavenet_stream.kernels, "uniforms", forget)
    assert failing(verify.streams) == ["streams"]


def test_an_untrained_model_that_knows_too_much_is_found(monkeypatch):
    def sharp():
        net = model.WaveNet()
        torch.nn.init.normal_(net.out.bias)
        return net

    monkeypatch.setattr(verify, "WaveNet", sharp)
    assert failing(verify.initial_loss) == ["initial_loss"]


def test_a_model_that_does_not_learn_is_found(monkeypatch):
    learn = verify.learn
    monkeypatch.setattr(verify, "learn", lambda *codes: learn(*codes, steps=2))
    checks = verify.sine, verify.autoregression
    assert failing(*checks) == [check.__name__ for check in checks]


def test_the_process_is_what_its_entropy_says():
    codes, entropy = verify.ar2(4, 3)
    assert codes.shape == entropy.shape == (4, 3)
    # by the sum over all codes of the first place, whose mean is 0
    half = 1 / (verify.CLASSES - 1)
    levels = torch.linspace(-1, 1, verify.CLASSES, dtype=torch.float64)
    edges = torch.cat([levels - half, levels[-1:] + half])
    edges[0], edges[-1] = -torch.inf, torch.inf
    p = torch.special.ndtr(edges / verify.SIGMA).diff()
    torch.testing.assert_close(p.sum().item(), 1.0)
    torch.testing.assert_close(entropy[:, 0], -p[codes[:, 0]].log())
