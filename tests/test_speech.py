import math
import sys
import types
import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.data import Crops, LogMel, Speech, find, mulaw_decode, mulaw_encode, speech, write_wav
from fastgen.metrics import linear_predictor_nats, log_mel_distance, stoi, unigram_nats
from fastgen.metrics import speech as metrics


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fill(folder, names, rate=8000):
    """A clip of i + 1 samples, all i/32768, under the i-th name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, torch.full((i + 1,), i / 32768), rate)


def test_find_searches_a_folder(tmp_path):
    fill(tmp_path, ["b.wav", "a.wav", "c/d.WAV", ".hidden.wav"])
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.wav").mkdir()
    expected = [tmp_path / name for name in ("a.wav", "b.wav", "c/d.WAV")]
    assert find(tmp_path) == expected
    assert find(str(tmp_path)) == expected


def test_find_knows_the_named_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "PROMPTS", tmp_path)
    fill(tmp_path, ["one.wav", "digits/1.wav", "silence/1.wav", "one.g722"])
    assert find("speech8k") == [tmp_path / "digits/1.wav", tmp_path / "one.wav"]
    assert find("speech16k") == [tmp_path / "one.g722"]
    # only a set's own silence is known to be silent
    assert len(find(tmp_path)) == 3


def test_find_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "PROMPTS", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="package asterisk-core-sounds-en-wav"):
        find("speech8k")
    with pytest.raises(FileNotFoundError, match="package asterisk-core-sounds-en-g722"):
        find("speech16k")
    with pytest.raises(FileNotFoundError, match=r"expected \.wav files in .*, got none$"):
        find(tmp_path)


def test_every_20th_clip_is_held_out(tmp_path):
    names = [f"{i:02}.wav" for i in range(45)]
    fill(tmp_path, names)
    train, heldout = Speech(tmp_path), Speech(tmp_path, "held out")
    assert (train.split, heldout.split) == ("train", "held out")
    assert heldout.names == ["00.wav", "20.wav", "40.wav"]
    assert train.names == sorted(set(names) - set(heldout.names))
    assert train.rate == heldout.rate == 8000
    for clips in (train, heldout):
        for name, wave in zip(clips.names, clips.waves, strict=True):
            i = int(name[:2])
            assert torch.equal(wave, torch.full((i + 1,), i / 32768))


def test_speech_refuses(tmp_path):
    fill(tmp_path, ["a.wav"])
    with pytest.raises(ValueError, match="split expected 'train' or 'held out', got 'test'"):
        Speech(tmp_path, "test")
    with pytest.raises(ValueError, match="expected at least 2 clips to split, got 1"):
        Speech(tmp_path)
    fill(tmp_path, ["b.wav", "c.wav"])
    write_wav(tmp_path / "d.wav", torch.zeros(1), 16000)
    with pytest.raises(ValueError, match=r"8000 Hz in .*b\.wav and 16000 Hz in .*d\.wav"):
        Speech(tmp_path)
    write_wav(tmp_path / "d.wav", torch.zeros(0), 8000)
    with pytest.raises(ValueError, match=r"d\.wav: expected at least 1 sample"):
        Speech(tmp_path)


def numbered(*lengths):
    """Waves in which every sample is another one: sample t of wave i is 1000 i + t."""
    return [1000.0 * i + torch.arange(n) for i, n in enumerate(lengths)]


MEL = LogMel(rate=8000, n_fft=64, win_length=64, hop_length=10, mels=8)


def noises(*lengths):
    return [torch.randn(n, generator=generator(i)) / 8 for i, n in enumerate(lengths)]


def test_crops_start_anywhere_and_stay_in_a_wave():
    source = Crops(numbered(7, 4, 5), crop=4, encode=lambda x: x, seed=0)
    (crops,) = source.batch(0, 2000)
    assert torch.equal(crops - crops[:, :1], torch.arange(4.0).expand(2000, 4))
    counts = Counter(crops[:, 0].tolist())
    assert sorted(counts) == [0, 1, 2, 3, 1000, 2000, 2001]
    # 7 places, 2000 draws: mean 286, standard deviation 16
    assert all(abs(n - 2000 / 7) < 5 * 16 for n in counts.values())


def test_a_short_wave_is_followed_by_silence():
    (crops,) = Crops(numbered(2)[:1], crop=4, encode=lambda x: x, seed=0).batch(0, 3)
    assert crops.tolist() == [[0, 1, 0, 0]] * 3


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 1),
    size=st.integers(1, 9),
    more=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_a_row_is_a_function_of_seed_step_and_row(seed, step, size, more):
    waves = noises(95, 40)
    encode = partial(mulaw_encode, classes=256)
    source = Crops(waves, 30, encode, seed=seed, mel=MEL)
    codes, features = source.batch(step, size + more)
    source.batch(0, 1)
    again = Crops(waves, 30, encode, seed=seed, mel=MEL).batch(step, size)
    assert torch.equal(codes[:size], again[0])
    assert torch.equal(features[:size], again[1])


def test_seeds_and_steps_differ():
    def draw(seed, step):
        return Crops(numbered(100_000), 1, lambda x: x, seed=seed).batch(step, 8)[0].tolist()

    assert len({str(draw(seed, step)) for seed in range(5) for step in range(5)}) == 25


@pytest.mark.parametrize("crop", [30, 37, 60])
def test_features_belong_to_their_samples(crop):
    waves = noises(95, 40, 33)
    source = Crops(waves, crop, lambda x: x, seed=1, mel=MEL)
    crops, features = source.batch(0, 40)
    assert features.shape == (40, 8, crop // 10 + 1)
    assert features.dtype == torch.float32
    padded = [torch.cat([wave, torch.zeros(max(0, crop - len(wave)))]) for wave in waves]
    for x, got in zip(crops, features, strict=True):
        ((i, start),) = [
            (i, start)
            for i, wave in enumerate(padded)
            for start in range(0, len(wave) - crop + 1, 10)
            if torch.equal(wave[start : start + crop], x)
        ]
        whole = (MEL(padded[i]) - source.mean[:, None]) / source.std[:, None]
        assert torch.equal(got, whole[:, start // 10 : start // 10 + crop // 10 + 1])


def test_statistics_are_those_of_the_frames_of_the_waves():
    waves = noises(95, 40)
    frames = torch.cat([MEL(wave) for wave in waves], 1)
    for crop in (10, 80):  # padding a wave changes nothing
        source = Crops(waves, crop, lambda x: x, seed=0, mel=MEL)
        torch.testing.assert_close(source.mean, frames.mean(1))
        torch.testing.assert_close(source.std, frames.std(1, correction=0))
    given = Crops(noises(50), 10, lambda x: x, seed=0, mel=MEL, stats=([1.0] * 8, [2.0] * 8))
    expected = (MEL(noises(50)[0])[:, :6] - 1) / 2
    assert torch.equal(given.features[0], expected)


def test_bands_that_never_change_do_not_divide_by_zero():
    source = Crops([torch.zeros(100)], 50, lambda x: x, seed=0, mel=MEL)
    assert source.batch(0, 1)[1].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "got 0, 0"),
        ({"seed": -1}, "got 30, -1"),
        ({"seed": 2**64}, "got 30, 18446744073709551616"),
        ({"waves": []}, r"waves expected \(T,\), T >= 1, got none"),
        ({"waves": [torch.zeros(9), torch.zeros(2, 9)]}, r"T >= 1, got \[\(2, 9\)\]"),
        ({"waves": [torch.zeros(0)]}, r"T >= 1, got \[\(0,\)\]"),
        ({"stats": ([0.0] * 7, [1.0] * 8)}, r"stats expected two of \(8,\), std > 0, got \(7,\)"),
        ({"stats": ([0.0] * 8, [0.0] * 8)}, r"stats expected two of \(8,\), std > 0"),
    ],
)
def test_crops_refuse(change, message):
    arguments = {"waves": noises(95), "crop": 30, "encode": mulaw_encode, "seed": 0, "mel": MEL}
    with pytest.raises(ValueError, match=f"Crops: .*{message}"):
        Crops(**{**arguments, **change})


@pytest.mark.parametrize(("step", "size"), [(-1, 1), (2**64, 1), (0, 0)])
def test_batch_refuses(step, size):
    with pytest.raises(ValueError, match=f"Crops: .*got {step}, {size}"):
        Crops(noises(95), 30, mulaw_encode, seed=0).batch(step, size)


def test_log_mel_distance_of_a_gain_is_the_gain():
    x = noises(2000, 2000)
    x = torch.stack(x)
    assert torch.equal(log_mel_distance(x, x, MEL), torch.zeros(2))
    for gain in (6.0, -6.0):
        distance = log_mel_distance(x, x * 10 ** (gain / 20), MEL)
        torch.testing.assert_close(distance, torch.full((2,), 6.0))
    assert log_mel_distance(x[0], x[1], MEL) > 1
    with pytest.raises(ValueError, match=r"y expected \(2, 2000\), got \(2000,\)"):
        log_mel_distance(x, x[0], MEL)


def test_stoi_calls_pystoi(monkeypatch):
    def judge(clean, degraded, rate):
        assert clean.dtype == degraded.dtype == "float64"
        if rate == 16000:
            warnings.warn("Not enough STFT frames", RuntimeWarning, stacklevel=1)
        return clean.sum() - 10 * degraded.sum()

    monkeypatch.setitem(sys.modules, "pystoi", types.SimpleNamespace(stoi=judge))
    x, y = torch.full((8000,), 0.5), torch.full((8000,), 0.25)
    assert stoi(x, y, 8000) == 4000 - 20000
    with pytest.raises(ValueError, match=r"0\.4 s of speech: Not enough"):
        stoi(x, y, 16000)
    with pytest.raises(ValueError, match=r"two \(T,\), got \(8000,\) and \(7999,\)"):
        stoi(x, y[1:], 8000)
    with pytest.raises(ValueError, match="expected finite"):
        stoi(x, torch.full_like(y, math.nan), 8000)
    for short in (x[:3199], torch.zeros(8000)):
        with pytest.raises(ValueError, match=r"0\.4 s of speech, got .* s of sound"):
            stoi(short, short, 8000)
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(ImportError, match=r"pip install 'fastgen\[metrics\]'"):
        stoi(x, x, 8000)


def test_unigram_nats_adds_one():
    train, heldout = [torch.tensor([0, 0]), torch.tensor([1])], [torch.tensor([0, 2])]
    expected = -(math.log(3 / 6) + math.log(1 / 6)) / 2
    assert unigram_nats(train, heldout, 3) == pytest.approx(expected, rel=1e-12)
    assert unigram_nats([], heldout, 256) == pytest.approx(math.log(256), rel=1e-12)


def test_unigram_nats_refuses():
    codes = [torch.tensor([0])]
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=f"unigram_nats: codes expected 0 to 2, got {bad}"):
            unigram_nats([torch.tensor([0, bad])], codes, 3)
    with pytest.raises(TypeError, match="unigram_nats: codes expected integers"):
        unigram_nats(codes, [torch.zeros(3)], 3)
    with pytest.raises(ValueError, match="heldout expected at least 1 code"):
        unigram_nats(codes, [], 3)


def laplace(n, scale, seed):
    u = torch.rand(n, generator=generator(seed), dtype=torch.float64) - 0.5
    return -scale * u.sign() * torch.log1p(-2 * u.abs())


def test_white_noise_costs_its_entropy():
    scale, n = 0.05, 100_000
    train, heldout = [laplace(n, scale, 0)], [laplace(n, scale, 1)]
    edges = metrics.mulaw_edges(64)
    cdf = 0.5 + 0.5 * edges.sign() * -torch.expm1(-edges.abs() / scale)
    p = torch.cat([torch.zeros(1), cdf, torch.ones(1)]).diff()
    entropy = -(p * p.log()).sum().item()
    deviation = ((p * p.log() ** 2).sum().item() - entropy**2) ** 0.5 / n**0.5
    for order, scale_order in ((0, 0), (4, 0), (4, 4)):
        nats = linear_predictor_nats(train, heldout, order, scale_order, classes=64)
        assert nats == pytest.approx(entropy, abs=4 * deviation)


def autoregression(n, seed, loud=None):
    """x[t] = 1.6 x[t-1] - 0.8 x[t-2] + e[t], e Laplace of scale 0.01 `loud`[t]."""
    e = laplace(n, 0.01, seed)
    x = [0.0, 0.0]
    for value in (e if loud is None else e * loud).tolist():
        x.append(1.6 * x[-1] - 0.8 * x[-2] + value)
    return torch.tensor(x[2:], dtype=torch.float64)


def test_an_ar2_process_costs_its_entropy_rate():
    n, classes = 30_000, 4096
    train, heldout = [autoregression(n, 0)], [autoregression(n, 1)]
    # the entropy rate of e, less ln of the widths of the codes that x falls in
    codes = mulaw_encode(heldout[0], classes)
    widths = metrics.mulaw_edges(classes).diff()
    rate = 1 + math.log(2 * 0.01) - widths[codes - 1].log().mean().item()
    deviation = 1 / n**0.5  # ln p of a Laplace variable has deviation 1
    for order, scale_order in ((2, 0), (8, 0), (8, 8)):
        nats = linear_predictor_nats(train, heldout, order, scale_order, classes)
        assert nats == pytest.approx(rate, abs=4 * deviation)
    assert linear_predictor_nats(train, heldout, 1, 0, classes) > rate + 0.2


def test_the_scale_follows_the_loudness():
    loud = (torch.arange(30_000) // 3000 % 2) * 9.0 + 1  # 1, then 10, in turn
    waves = [autoregression(30_000, seed, loud) / 10 for seed in (0, 1)]
    fixed = linear_predictor_nats(waves[:1], waves[1:], 2, 0, 4096)
    assert linear_predictor_nats(waves[:1], waves[1:], 2, 16, 4096) < fixed - 0.2


def test_the_masses_of_the_codes_sum_to_one():
    levels = mulaw_decode(torch.arange(16), 16)
    train = [laplace(500, 0.1, 0)]
    for past in ([], [0.9], [-1.0, 1.0, 0.01]):
        past = torch.tensor(past)
        cost = len(past) * linear_predictor_nats(train, [past], 2, 2, 16) if len(past) else 0
        total = 0
        for level in levels:
            wave = torch.cat([past, level[None]])
            nats = len(wave) * linear_predictor_nats(train, [wave], 2, 2, 16)
            total += math.exp(cost - nats)
        assert total == pytest.approx(1, abs=1e-9)


def test_what_is_most_unlikely_has_a_finite_cost():
    quiet, loud = torch.zeros(1000), torch.tensor([0.0, 1.0, -1.0])
    for classes in (2, 3, 256, 65536):
        assert math.isfinite(linear_predictor_nats([quiet], [loud], classes=classes))


def test_blocks_make_no_difference(monkeypatch):
    waves = [laplace(n, 0.1, n) for n in (1, 9, 10, 11, 100)]
    expected = linear_predictor_nats(waves, waves, 3, 4)
    monkeypatch.setattr(metrics, "BLOCK", 10)
    assert linear_predictor_nats(waves, waves, 3, 4) == pytest.approx(expected, rel=1e-9)


def test_linear_predictor_refuses():
    wave = torch.zeros(3)
    with pytest.raises(ValueError, match="orders expected >= 0, got -1, 32"):
        linear_predictor_nats([wave], [wave], -1)
    for bad in ([], [wave[:0]], [wave[None]]):
        with pytest.raises(ValueError, match=r"train expected waves \(T,\) with samples, got \["):
            linear_predictor_nats(bad, [wave])
        with pytest.raises(ValueError, match=r"heldout expected waves \(T,\) with samples, got \["):
            linear_predictor_nats([wave], bad)
