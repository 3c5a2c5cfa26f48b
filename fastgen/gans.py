"""A GAN: its making, its pictures, and how many modes it finds."""

from typing import NamedTuple

import torch

from . import infogan
from .data.images import Images
from .data.levels import Batches
from .data.png import grid, write_png
from .data.points import POINTS, Draws
from .film import SHOWN as FILMED
from .film import Film
from .flows import BETWEEN, POINTS_SHOWN, Plane, coloured, fallen, plane_of
from .images import SHOWN
from .images import labels as labels_of
from .implicit.infogan import InfoGAN
from .latent import interpolate, traverse
from .metrics.modes import modes

LEVELS = 256  # of a pixel
COUNTED = 10_000  # points whose modes are found
TAIL = 0.02  # of the noise, that a traversal leaves out at either end
FIRST = 100  # examples that weights are fitted to before training
READ = 1_000  # samples whose codes are read while training


class Canvas(NamedTuple):
    """Images (C, H, W) in [low, 1]."""

    shape: tuple
    low: float = -1.0

    def encode(self, x):
        return x * ((1 - self.low) / (LEVELS - 1)) + self.low

    def decode(self, x):
        x = (x.clamp(self.low, 1) - self.low) * ((LEVELS - 1) / (1 - self.low))
        return x.round().to(torch.uint8).cpu()


class Encoded:
    """The batches of a source of levels and labels, the images as a format has them."""

    def __init__(self, source, form):
        self.source, self.form = source, form

    def batch(self, step, size):
        batch = self.source.batch(step, size)
        return tuple(self.form.encode(t) if t.dim() == 4 else t for t in batch)


def format_of(model, meta):
    """The format of a GAN, of points or of images.

    Raises ValueError for a meta that does not fit the model.
    """
    if len(model.shape) == 3:
        return Canvas(model.shape, model.low)
    return plane_of(model, meta)


def prepare(sizes, data, *, labels, flips, seed):
    """A GAN fitted to a batch, its source of batches, and the meta of its file.

    sizes: build(shape, classes) makes the model
    """
    if data in POINTS:
        if flips or labels:
            raise ValueError(f"labels, flips: expected none of points, which {data} are")
        net, source, first = sizes.build((2,), 0), Draws(POINTS[data], seed), FIRST
    else:
        images = Images(data)
        if labels and not images.classes:
            raise ValueError(f"labels: expected images with labels, got none in {data}")
        net = sizes.build(images.shape, images.classes if labels else 0)
        source = Batches(images, LEVELS, seed=seed, labelled=labels, flips=flips)
        source, first = Encoded(source, Canvas(net.shape, net.low)), min(FIRST, len(images.x))
    net.initialize(*source.batch(0, first))
    return net, source, {"data": data}


class Validation:
    """Called with a GAN: writes samples.png into a folder; of points a `Film`, and counts modes.

    Of an InfoGAN it writes traversal.png too, and finds the bounds of its codes.
    """

    def __init__(self, form, out):
        self.form, self.out = form, out
        self.film = Film(out, form.points) if isinstance(form, Plane) else None

    def __call__(self, model):
        write_png(self.out / "samples.png", picture(model, self.form, None, 0))
        if isinstance(model, InfoGAN):
            shown = picture(model, self.form, None, 0, show="traversal")
            write_png(self.out / "traversal.png", shown)
            bound = infogan.bounds(model, READ, 0)[:, 0]
            return {f"bound {m}": nats for m, nats in enumerate(bound.tolist())}
        if self.film is None:
            return {}
        self.film.add(model.sample(FILMED, seed=0))
        return numbers(model, self.form, COUNTED, 0)


def picture(model, form, n, seed, label=None, show="samples"):
    """Pixels of n samples; of points, beside where as many true ones are.

    show: one of PICTURES, of images alone
    """
    if isinstance(form, Canvas):
        made, columns = PICTURES[show](model, n or SHOWN, seed, label)
        return grid(form.decode(made), columns)
    if show != "samples":
        raise ValueError(f"show: expected samples of points, got {show!r}")
    n = n or POINTS_SHOWN
    made = samples(model, n, seed, label)[0].double().cpu()
    pair = [
        brightness(fallen(x, form.points.box)) for x in (form.points.sample(n, seed=seed), made)
    ]
    return grid(coloured(torch.stack(pair)), 2, scale=1)


def samples(model, n, seed, label):
    return model.sample(n, seed=seed, **given(labels_of(model, n, label))), None


def interpolations(model, n, seed, label):
    """In a row, images of noise on the way between two, all of the row's codes."""
    rows = max(1, n // BETWEEN)
    drawn = model.draw(2 * rows, seed)
    ways = model.ways if model.config["latent"] > 1 else "linear"  # a number has no direction
    z = interpolate(*drawn.pop("z").split(rows), BETWEEN, ways).flatten(0, 1)
    row = {name: t[:rows] for name, t in drawn.items()} | given(labels_of(model, rows, label))
    same = {name: t.repeat_interleave(BETWEEN, 0) for name, t in row.items()}
    return model.sample(len(z), z=z, **same), BETWEEN


def traversal(model, n, seed, label):
    """In a row, images of noise of which one number goes from tail to tail, or of a code."""
    if isinstance(model, InfoGAN):
        return infogan.traversal(model, seed)
    rows = min(max(1, n // BETWEEN), model.config["latent"])
    values = model.quantile(torch.linspace(TAIL, 1 - TAIL, BETWEEN, dtype=torch.float64))
    z = model.draw(1, seed)["z"]
    z = torch.cat([traverse(z, axis, values)[0] for axis in range(rows)])
    return model.sample(len(z), z=z, **given(labels_of(model, 1, label), len(z))), BETWEEN


def given(label, times=1):
    return {} if label is None else {"label": label.repeat(times)}


PICTURES = {"samples": samples, "interpolations": interpolations, "traversal": traversal}


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
