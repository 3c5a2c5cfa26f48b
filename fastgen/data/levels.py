"""From the pixels of images to the levels that a model takes, and batches of them."""

import copy

import numpy as np
import torch

from ..kernels import uniforms

SEED = 784  # of what makes images binary that a model is measured on
BINARIZE = ("dynamic", "fixed", "threshold")
BLOCK = 2048  # images made binary at once


def quantize(x, levels):
    """The nearest of the levels 0 ... levels - 1 of pixels 0 ... 255, int64; `pixels` goes back."""
    _check_levels(levels)
    return (2 * x.long() * (levels - 1) + 255) // 510  # round(x (levels - 1) / 255)


def binarize(x, seed, start=0):
    """Ones with probability x / 255: 1 where a uniform number, of (seed, pixel, image), is below.

    x: (N, ...) uint8, images start, start + 1 ... of the set    returns: the same, int64
    """
    parts = []
    for i in range(0, len(x), BLOCK):
        part = x[i : i + BLOCK]
        u = uniforms(seed, part[0].numel(), len(part), start + i).T
        parts.append((u * 255 < part.flatten(1)).long().view(part.shape))
    return torch.cat(parts) if parts else x.long()


def pixels(codes, levels):
    """The pixels of levels, uint8: round(255 code / (levels - 1))."""
    _check_levels(levels)
    return (codes.double() * (255 / (levels - 1))).round().to(torch.uint8)


def evaluated(x, levels, mode="dynamic"):
    """The levels of images (N, C, H, W) that a model is measured on; binary ones with `SEED`."""
    return binarize(x, SEED) if levels == 2 and mode != "threshold" else quantize(x, levels)


class Batches:
    """Batches of the images of a set, each once an epoch, in an order of the epoch's own.

    mode: how images become binary where levels is 2: "dynamic" draws them anew at each step,
    "fixed" once, "threshold" asks for 128 or more. labelled: with labels
    flips: at each step, every other image at random is mirrored, left for right

    Raises ValueError for options out of range, and for labels that there are not.
    """

    def __init__(self, images, levels, *, seed, mode="dynamic", labelled=False, flips=False):
        _check_levels(levels)
        if mode not in BINARIZE:
            raise ValueError(f"Batches: mode: expected one of {BINARIZE}, got {mode!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"Batches: seed: expected in [0, 2^64), got {seed}")
        if labelled and images.labels is None:
            raise ValueError(f"Batches: {images.path}: expected labels, got none")
        self.levels, self.seed, self.flips = levels, seed, flips
        self.labels = images.labels if labelled else None
        self.dynamic = levels == 2 and mode == "dynamic"
        self.x = images.x
        if levels < 256 and not self.dynamic:  # else the pixels are the levels
            fixed = levels == 2 and mode == "fixed"
            codes = binarize(images.x, seed) if fixed else quantize(images.x, levels)
            self.x = codes.to(torch.uint8)
        self.epoch, self.order = None, None

    def batch(self, step, size):
        """Levels (size, C, H, W) int64, and labels (size,) with them; a function of seed and step.

        Raises ValueError for a step or size out of range.
        """
        if not 0 <= step < 2**63 // max(1, size) or size < 1:
            raise ValueError(f"Batches: step >= 0, size >= 1 expected, got {step}, {size}")
        at = range(step * size, (step + 1) * size)
        rows = torch.tensor([self._row(i) for i in at])
        x = self.x[rows]
        if self.flips:
            # the second draw of the counters of whose first `binarize` makes use
            coin = uniforms(self.seed, 1, size, at[0], draws=2)[0, :, 1] < 0.5
            x = torch.where(coin[:, None, None, None], x.flip(3), x)
        x = binarize(x, self.seed, at[0]) if self.dynamic else x.long()
        return (x,) if self.labels is None else (x, self.labels[rows])

    def _row(self, i):
        epoch, place = divmod(i, len(self.x))
        if epoch != self.epoch:
            key = np.array([self.seed, epoch], np.uint64)
            self.order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self.x))
            self.epoch = epoch
        return int(self.order[place])


class PartlyLabelled:
    """Batches of images whose labels are known, their labels, and images that have none.

    Those with labels are as many of each class, of the seed's choice; those without are all. Each
    comes once in an epoch of its own.

    labels: number of images with labels
    Raises ValueError for a number that is no multiple of the classes, or more of one than there
    are; and as `Batches` does.
    """

    def __init__(self, images, labels, *, seed):
        self.unlabelled = Batches(images, 256, seed=seed)
        self.rows = balanced(images, labels, seed)
        known = copy.copy(images)
        known.x, known.labels = images.x[self.rows], images.labels[self.rows]
        self.labelled = Batches(known, 256, seed=seed, labelled=True)

    def batch(self, step, size):
        """Levels (size, C, H, W) int64, labels (size,), and levels as the first."""
        return *self.labelled.batch(step, size), *self.unlabelled.batch(step, size)


def balanced(images, number, seed):
    """Places of `number` images, as many of each class, that the seed chooses."""
    if images.labels is None:
        raise ValueError(f"labels: expected images with labels, got none in {images.path}")
    if number < 1 or number % images.classes:
        got = f"a multiple of the {images.classes} classes, got {number}"
        raise ValueError(f"labels: expected {got}")
    each, order = number // images.classes, np.random.default_rng(seed).permutation(len(images.x))
    of = images.labels.numpy()[order]
    chosen = [order[of == k][:each] for k in range(images.classes)]
    if fewest := [k for k, rows in enumerate(chosen) if len(rows) < each]:
        got = f"{len(chosen[fewest[0]])} of class {fewest[0]}"
        raise ValueError(f"labels: expected {each} images of each class, got {got}")
    return torch.from_numpy(np.concatenate(chosen))


def _check_levels(levels):
    if not 2 <= levels <= 256:
        raise ValueError(f"levels: expected in [2, 256], got {levels}")
