"""How many things are in images, and whether their halves belong together."""

import torch

BRIGHT = 128  # pixels from here on are in a blob
BLOCK = 256  # images counted at once


def count_blobs(x):
    """How many connected sets of bright pixels there are, of neighbours in 8 directions.

    x: (N, 1, H, W) uint8    returns: (N,) int64
    Raises ValueError for other shapes, TypeError for another dtype.
    """
    check("count_blobs", x)
    number = torch.ones(x.shape[1:], dtype=torch.int32, device=x.device)
    number = number.flatten().cumsum(0, dtype=torch.int32).view(x.shape[1:])
    counts = []
    for part in x.split(BLOCK):
        mask = part >= BRIGHT
        # each pixel takes the largest number in reach, until a set has its largest one alone
        label, last = mask * number, None
        while last is None or not torch.equal(label, last):
            label, last = grown(grown(label, 2), 3) * mask, label
        counts.append(((label == number) & mask).sum((1, 2, 3)))
    return torch.cat(counts)


def grown(x, dim):
    """The largest of each number and its two neighbours along a dimension."""
    n = x.shape[dim] - 1
    most = x.clone()
    for to, of in ((0, 1), (1, 0)):
        part = most.narrow(dim, to, n)
        torch.maximum(part, x.narrow(dim, of, n), out=part)
    return most


def total_variation(a, b):
    """Half of sum_n |p_a(n) - p_b(n)|, of the shares of each number among whole ones.

    a, b: (N,) and (M,) int64, >= 0    returns: 0 of the same shares ... 1 of no number in common
    Raises ValueError for none, and for numbers < 0.
    """
    if not len(a) or not len(b) or min(a.min(), b.min()) < 0:
        got = f"{a.tolist()!r:.80} and {b.tolist()!r:.80}"
        raise ValueError(f"total_variation: expected counts >= 0, got {got}")
    most = 1 + int(max(a.max(), b.max()))
    p, q = (torch.bincount(n, minlength=most).double() / len(n) for n in (a, b))
    return (p - q).abs().sum().item() / 2


def mirror_overlap(x):
    """Of the pixels bright in an image or its mirror image, left for right, the share in both.

    x: (N, 1, H, W) uint8    returns: (N,), 1 where an image is its mirror image
    Raises ValueError for other shapes, TypeError for another dtype.
    """
    check("mirror_overlap", x)
    a = x >= BRIGHT
    b = a.flip(3)
    both, either = (bright.sum((1, 2, 3)).double() for bright in (a & b, a | b))
    return torch.where(either > 0, both / either, 1.0)


def swapped(x):
    """The left half of each image with the right half of the one before, as by no plan."""
    W = x.shape[3] // 2
    return torch.cat([x[..., :W], x.roll(1, 0)[..., W:]], dim=3)


def check(name, x):
    if x.dim() != 4 or x.shape[1] != 1 or 0 in x.shape[2:]:
        raise ValueError(f"{name}: expected images (N, 1, H, W), got {tuple(x.shape)}")
    if x.dtype != torch.uint8:
        raise TypeError(f"{name}: expected uint8, got {x.dtype}")
