"""Philox4x32-10, the counter-based generator behind every draw (Salmon et al. 2011)."""

import numpy as np
import torch

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter, key):
    """Ten rounds: four words of counter, two of key, four random words.

    counter: four uint64 arrays below 2^32    key: two ints below 2^32
    """
    c0, c1, c2, c3 = counter
    for i in range(10):
        k0, k1 = (np.uint64((k + i * w) & 0xFFFFFFFF) for k, w in zip(key, WEYL, strict=True))
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & LOW, (p0 >> HALF) ^ c3 ^ k1, p0 & LOW
    return c0, c1, c2, c3


def uniforms(seed, n, length, start=0, draws=1):
    """Uniform numbers in [0, 1), a pure function of (seed, stream, step).

    returns: (n, length) float64 with 53 random bits, or (n, length, 2) for two draws a step
    Raises ValueError for a seed outside [0, 2^64), and for sizes that there are not.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: expected 0 <= seed < 2^64, got {seed}")
    if min(n, length, start) < 0 or draws not in (1, 2):
        got = f"{n}, {length}, {start} and {draws}"
        raise ValueError(f"uniforms: expected n, length, start >= 0 and 1 or 2 draws, got {got}")
    step = np.arange(start, start + length, dtype=np.uint64)[None, :]
    stream = np.arange(n, dtype=np.uint64)[:, None]
    counter = np.broadcast_arrays(step & LOW, step >> HALF, stream & LOW, stream >> HALF)
    c0, c1, c2, c3 = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = [(c0, c1), (c2, c3)][:draws]
    u = [((a << HALF | b) >> np.uint64(11)).astype(np.float64) * 2.0**-53 for a, b in pairs]
    return torch.from_numpy(u[0] if draws == 1 else np.stack(u, axis=-1))
