"""A GAN: its making, its pictures, and how many modes it finds."""

from typing import NamedTuple

import torch

from .data.images import Images
from .data.levels import Batches
from .data.png import grid, write_png
from .data.points import POINTS, Draws
from .film import SHOWN as FILMED
from .film import Film
from .flows import POINTS_SHOWN, Plane, coloured, fallen, plane_of
from .images import SHOWN
from .images import labels as labels_of
from .metrics.modes import modes

LEVELS = 256  # of a pixel
COUNTED = 10_000  # points whose modes are found


class Canvas(NamedTuple):
    """Images (C, H, W) in [-1, 1]."""

    shape: tuple

    def decode(self, x):
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


class Scaled:
    """The batches of a source of levels, as numbers in [-1, 1]."""

    def __init__(self, source):
        self.source = source

    def batch(self, step, size):
        x, *label = self.source.batch(step, size)
        return (x * (2 / (LEVELS - 1)) - 1, *label)


def format_of(model, meta):
    """The format of a GAN, of points or of images.

    Raises ValueError for a meta that does not fit the model.
    """
    if len(model.shape) == 3:
        return Canvas(model.shape)
    return plane_of(model, meta)


def prepare(sizes, data, *, labels, flips, seed):
    """A GAN, its source of batches, and the meta of its file.

    sizes: build(shape, classes) makes the model
    """
    if data in POINTS:
        if flips or labels:
            raise ValueError(f"labels, flips: expected none of points, which {data} are")
        return sizes.build((2,), 0), Draws(POINTS[data], seed), {"data": data}
    images = Images(data)
    if labels and not images.classes:
        raise ValueError(f"labels: expected images with labels, got none in {data}")
    net = sizes.build(images.shape, images.classes if labels else 0)
    source = Batches(images, LEVELS, seed=seed, labelled=labels, flips=flips)
    return net, Scaled(source), {"data": data}


class Validation:
    """Called with a GAN: writes samples.png into a folder; of points a `Film`, and counts modes."""

    def __init__(self, form, out):
        self.form, self.out = form, out
        self.film = Film(out, form.points) if isinstance(form, Plane) else None

    def __call__(self, model):
        write_png(self.out / "samples.png", picture(model, self.form, None, 0))
        if self.film is None:
            return {}
        self.film.add(model.sample(FILMED, seed=0))
        return numbers(model, self.form, COUNTED, 0)


def picture(model, form, n, seed, label=None):
    """Pixels of n samples; of points, beside where as many true ones are."""
    n = n or (SHOWN if isinstance(form, Canvas) else POINTS_SHOWN)
    made = model.sample(n, seed=seed, label=labels_of(model, n, label))
    if isinstance(form, Canvas):
        return grid(form.decode(made))
    made = made.double().cpu()
    pair = [
        brightness(fallen(x, form.points.box)) for x in (form.points.sample(n, seed=seed), made)
    ]
    return grid(coloured(torch.stack(pair)), 2, scale=1)


def brightness(n):
    """Of how many points are in each pixel, where most of them are about 1."""
    n = n.double()
    return n / n.quantile(0.999).clamp(min=1)


def numbers(model, form, number, seed):
    """By name, what is to be said of points: the modes of those that have such.

    number: of samples    Raises ValueError for none.
    """
    if number < 1:
        raise ValueError(f"files: expected at least 1 sample, got {number}")
    points = form.points
    if getattr(points, "nodes", 0) != 1:  # a curve has no modes
        return {}
    found = modes(model.sample(number, seed=seed).cpu(), points.rule[0], points.sd)
    return {"modes": found.covered, "share": found.share, "reverse KL": found.reverse_kl}
