"""Images of a known number of blobs, which show what samples miss of a whole.

Blobs are discs of one size that do not touch. "blobs" are five, anywhere; "mirrored" are three in
the left half, and their mirror images.
"""

import functools

import torch

from ..kernels import uniforms

SIDE = 32  # of an image, in pixels, as the lengths below
RADIUS = 2.0
MARGIN = 3.5  # between a centre and the outermost pixels' at least
APART = 6.5  # two centres at least
SEEDS = {"train": 0, "test": 1 << 32}
NUMBER = {"train": 20_000, "test": 2000}


def blobs(n, seed):
    """The first n images of five blobs, (n, 1, 32, 32) uint8, a function of the seed."""
    return discs(centres(n, 5, seed, SIDE - 1 - 2 * MARGIN))


def mirrored(n, seed):
    """The first n images of three blobs and their mirror images, as in `blobs`."""
    left = centres(n, 3, seed, (SIDE - 1 - APART) / 2 - MARGIN)
    right = left * torch.tensor([-1, 1]) + torch.tensor([SIDE - 1, 0])
    return discs(torch.cat([left, right], dim=1))


BLOBS = {"blobs": blobs, "mirrored": mirrored}


@functools.cache
def read_blobs(name, part):
    """The images of a set of BLOBS to train or to test on, (N, 1, 32, 32) uint8."""
    return BLOBS[name](NUMBER[part], SEEDS[part]).numpy()


def centres(n, count, seed, width):
    """Points that are APART in a box of a width and nearly the image's height: (n, count, 2).

    Each is the first of random points that is far enough from those before; that of the sizes here
    the others never fill the box, so that it comes.
    """
    box = torch.tensor([width, SIDE - 1 - 2 * MARGIN], dtype=torch.float64)
    found = torch.full((n, count, 2), torch.inf, dtype=torch.float64)
    have, todo, tries = torch.zeros(n, dtype=torch.int64), torch.arange(n), 0
    while len(todo):
        # each try has a seed of its own
        point = MARGIN + box * uniforms(seed + tries, 1, n, draws=2)[0, todo]
        far = ((found[todo] - point[:, None]).square().sum(2) >= APART**2).all(1)
        fits = todo[far]
        found[fits, have[fits]] = point[far]
        have[fits] += 1
        todo, tries = todo[have[todo] < count], tries + 1
    return found


def discs(at):
    """Discs around points (n, count, 2) of (x, y), their edges a pixel wide: (n, 1, 32, 32)."""
    n, reach = len(at), torch.arange(-3, 4)
    # the pixels around each point, which are around no other
    x, y = (part.long()[..., None] + reach for part in at.unbind(2))  # (n, count, 7)
    near = ((x - at[..., :1]).square()[:, :, None], (y - at[..., 1:]).square()[..., None])
    bright = ((RADIUS + 0.5 - sum(near).sqrt()).clamp(0, 1) * 255).round().to(torch.uint8)
    image = torch.arange(n)[:, None, None, None]
    place = (image * SIDE + y[..., None]) * SIDE + x[:, :, None]  # (n, count, 7, 7)
    pixels = torch.zeros(n * SIDE * SIDE, dtype=torch.uint8)
    pixels.index_add_(0, place.flatten(), bright.flatten())
    return pixels.view(n, 1, SIDE, SIDE)
