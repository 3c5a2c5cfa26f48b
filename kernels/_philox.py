"""Philox4x32-10, the counter-based generator behind every draw (Salmon et al. 2011)."""

import torch

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def philox(counter, key):
    """Ten rounds: four words of counter, two of key, four random words.

    counter: four int64 tensors in [0, 2^32)    key: two ints in [0, 2^32)
    """
    c0, c1, c2, c3 = counter
    for i in range(10):
        k0, k1 = ((k + i * w) & LOW for k, w in zip(key, WEYL, strict=True))
        # the products' 64 bits, whatever their sign
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> 32) & LOW ^ c1 ^ k0, p1 & LOW
        c2, c3 = (p0 >> 32) & LOW ^ c3 ^ k1, p0 & LOW
    return c0, c1, c2, c3


def uniforms(seed, n, length, start=0, draws=1, device="cpu"):
    """Uniform numbers in [0, 1), a pure function of (seed, stream, step).

    returns: (n, length) float64 with 53 random bits, or (n, length, 2) for two draws a step
    Raises ValueError for a seed outside [0, 2^64), and for sizes that there are not.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: expected 0 <= seed < 2^64, got {seed}")
    if min(n, length, start) < 0 or draws not in (1, 2):
        got = f"{n}, {length}, {start} and {draws}"
        raise ValueError(f"uniforms: expected n, length, start >= 0 and 1 or 2 draws, got {got}")
    step = torch.arange(start, start + length, device=device)[None, :]
    stream = torch.arange(n, device=device)[:, None]
    counter = torch.broadcast_tensors(step & LOW, step >> 32, stream & LOW, stream >> 32)
    c0, c1, c2, c3 = philox(counter, (seed & LOW, seed >> 32))
    pairs = [(c0, c1), (c2, c3)][:draws]
    u = [(a << 21 | b >> 11).double() * 2.0**-53 for a, b in pairs]
    return u[0] if draws == 1 else torch.stack(u, dim=-1)
