import math

import numpy as np
import pytest
import torch

from fastgen.kernels import uniforms
from fastgen.kernels._philox import philox

# Random123's known answers for philox4x32-10: counter, key, random words
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"),
]
ANSWERS = [
    "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "d16cfe09 94fdcceb 5001e420 24126ea1",
]


def words(text):
    return [int(word, 16) for word in text.split()]


def scalar_philox(counter, key):
    """Philox4x32-10 in Python's own integers."""
    (a, b, c, d), (k, l) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q & 0xFFFFFFFF, p >> 32 ^ d ^ l, p & 0xFFFFFFFF
        k, l = k + 0x9E3779B9 & 0xFFFFFFFF, l + 0xBB67AE85 & 0xFFFFFFFF
    return a, b, c, d


@pytest.mark.parametrize(("inputs", "answer"), [*zip(KNOWN, ANSWERS, strict=True)])
def test_known_answers(inputs, answer):
    counter, key = map(words, inputs)
    got = philox([torch.tensor([c]) for c in counter], key)
    assert [int(c[0]) for c in got] == words(answer)
    assert list(scalar_philox(counter, key)) == words(answer)


def test_a_number_is_a_function_of_seed_stream_and_step():
    seed, start = 0xDEADBEEF00000007, 2**32 - 2
    u = uniforms(seed, 3, 5, start=start, draws=2)
    assert u.dtype == torch.float64
    for stream, step in np.ndindex(3, 5):
        t = start + step
        key = (seed & 0xFFFFFFFF, seed >> 32)
        a, b, c, d = scalar_philox((t & 0xFFFFFFFF, t >> 32, stream, 0), key)
        assert u[stream, step].tolist() == [
            ((a << 32) + b >> 11) / 2**53,
            ((c << 32) + d >> 11) / 2**53,
        ]
    assert torch.equal(uniforms(seed, 3, 5, start=start), u[..., 0])


def test_chunks_and_more_streams_change_nothing():
    whole = uniforms(1, 7, 50)
    for size in (1, 7, 49):
        parts = [uniforms(1, 7, min(size, 50 - t), start=t) for t in range(0, 50, size)]
        assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(uniforms(1, 3, 50), whole[:3])


def test_seeds_streams_and_steps_differ():
    u = torch.cat([uniforms(seed, 30, 40) for seed in (0, 1, 2**32, 2**64 - 1)])
    assert u.unique().numel() == u.numel()


@pytest.mark.parametrize("draw", [0, 1])
def test_even_and_independent(draw):
    n = 2**16
    u = uniforms(3, 1, n, draws=2)[0, :, draw]
    assert (u >= 0).all()
    assert (u < 1).all()
    expected = n / 64
    statistic = ((torch.bincount((u * 64).long(), minlength=64) - expected) ** 2 / expected).sum()
    assert statistic < 63 + 4.5 * math.sqrt(2 * 63)
    for bits in (1, 2**-10, 2**-45):  # high, middle and low ones
        v = (u / bits) % 1
        assert abs(v.mean() - 0.5) < 4.5 * (12 * n) ** -0.5
        assert abs(torch.corrcoef(torch.stack([v[1:], v[:-1]]))[0, 1]) < 4.5 * n**-0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    options = {"seed": 2**63 + 5, "n": 7, "length": 50, "start": 2**32 - 20, "draws": 2}
    assert torch.equal(uniforms(**options, device="cuda").cpu(), uniforms(**options))


def test_no_numbers():
    assert uniforms(0, 0, 5).shape == (0, 5)
    assert uniforms(0, 5, 0, draws=2).shape == (5, 0, 2)


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"seed: expected 0 <= seed < 2\^64, got {seed}"):
        uniforms(seed, 1, 1)


@pytest.mark.parametrize("wrong", [{"n": -1}, {"length": -1}, {"start": -1}, {"draws": 3}])
def test_sizes_out_of_range(wrong):
    with pytest.raises(ValueError, match="uniforms: expected n, length, start >= 0"):
        uniforms(**{"seed": 0, "n": 1, "length": 1, **wrong})
