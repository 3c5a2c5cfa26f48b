"""Features come from one place, and a model's file must fit the model."""

import pytest
import torch

from fastgen import WaveNet
from fastgen.data import Crops, LogMel, mulaw_encode
from fastgen.data.features import Conditioning, ConditioningDropout, format_of

MEL = LogMel(8000, 128, 128, 32, 6)


def waves(n=3, T=400):
    generator = torch.Generator().manual_seed(0)
    return [0.3 * torch.randn(T, generator=generator) for _ in range(n)]


def crops(seed=0):
    return Crops(waves(), 64, mulaw_encode, seed=seed, mel=MEL)


def conditioning():
    source = crops()
    return Conditioning(MEL, source.mean, source.std)


def audio(**changes):
    return {"rate": 8000, **conditioning().config, **changes}


def wavenet(**config):
    sizes = {"cond_channels": 7, "hop_length": 32, **config}
    return WaveNet(2, 1, 4, 4, 4, **sizes)


def test_features_are_those_of_training():
    source = ConditioningDropout(crops(), 0.0, seed=0)
    wave = waves()[0]
    features = conditioning()(wave)
    assert features.shape == (7, 400 // 32 + 1)
    assert (features[-1] == 1).all()
    codes, cond = source.batch(0, 8)
    whole = mulaw_encode(wave)
    found = 0
    for row, c in zip(codes, cond, strict=True):
        for frame in range(0, (400 - 64) // 32 + 1):
            if torch.equal(row, whole[frame * 32 : frame * 32 + 64]):
                found += 1
                torch.testing.assert_close(c, features[:, frame : frame + 3])
    assert found


def test_rows_lose_their_features_by_seed_step_and_row():
    source = ConditioningDropout(crops(), 0.3, seed=5)
    plain = crops()
    lost = []
    for step in range(40):
        codes, cond = source.batch(step, 16)
        expected_codes, features = plain.batch(step, 16)
        gone = (cond == 0).all(2).all(1)
        assert torch.equal(codes, expected_codes)
        assert torch.equal(cond[~gone, :-1], features[~gone])
        assert (cond[~gone, -1] == 1).all()
        assert torch.equal(source.batch(step, 16)[1], cond)
        assert torch.equal(source.batch(step, 5)[1], cond[:5])
        lost += gone.tolist()
    assert 0.2 < sum(lost) / len(lost) < 0.4
    other = ConditioningDropout(crops(), 0.3, seed=6)
    assert any(not torch.equal(other.batch(s, 16)[1], source.batch(s, 16)[1]) for s in range(3))


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ends_of_the_probability(p, kept):
    _, cond = ConditioningDropout(crops(), p, seed=0).batch(0, 32)
    assert (cond[:, -1] == kept).all()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_out_of_range(p):
    with pytest.raises(ValueError, match="ConditioningDropout: p expected"):
        ConditioningDropout(crops(), p, seed=0)


def test_format_round_trip():
    form = format_of(wavenet(), audio())
    assert form.rate == 8000
    wave = waves()[0]
    assert torch.equal(form.conditioning(wave), conditioning()(wave))
    codes = form.encode(wave.clamp(-1, 1))
    assert torch.equal(codes, mulaw_encode(wave))
    assert torch.equal(form.encode(form.decode(codes)), codes)


def test_format_of_a_mixture_is_linear():
    net = WaveNet(2, 1, 4, 4, 4, classes=65536, mixtures=2)
    form = format_of(net, {"rate": 16000, "features": None, "mean": None, "std": None})
    assert form.conditioning is None
    codes = form.encode(torch.tensor([-1.0, 0.5, 1.0]))
    assert codes.tolist() == [0, 49151, 65535]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, None, "expected .*features.*, got None"),
        ({}, {"rate": 0}, "rate: expected Hz, got 0"),
        ({}, {"rate": 16000}, "rate: expected 16000, got 8000"),
        ({}, {"features": 3}, "features"),
        ({}, {"features": {"rate": 8000}}, "features"),
        ({}, {"features": {**MEL.config, "n_fft": 127}}, "n_fft"),
        ({}, {"mean": None}, "features"),
        ({}, {"mean": [0.0]}, "mean: expected 6 numbers"),
        ({}, {"mean": ["a"] * 6}, "features"),
        ({}, {"std": [0.0] * 6}, "std: expected above 0"),
        ({}, {"features": None}, "expected 7 channels, got 0"),
        ({"cond_channels": 9}, {}, "expected 9 channels, got 7"),
        ({"hop_length": 16}, {}, "hop_length: expected 16, got 32"),
    ],
)
def test_a_format_that_does_not_fit(config, changes, message):
    meta = None if changes is None else audio(**changes)
    with pytest.raises(ValueError, match=f"audio: .*{message}"):
        format_of(wavenet(**config), meta)
