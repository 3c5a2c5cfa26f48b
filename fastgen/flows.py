"""A flow: its making, its pictures, and how well it does on what it has not seen."""

import math
from typing import NamedTuple

import torch

from . import kernels
from .data.images import Images
from .data.levels import Batches
from .data.png import grid, write_png
from .data.points import POINTS, Draws
from .images import BATCH, SHOWN, Unseen, bits, pictures_of, spread

HELD_OUT = 1 << 63  # added to the seed of points to measure on
NUMBER = 10_000  # of such points
LEVELS = 256
POINTS_SHOWN = 40_000
WIDE = 256  # pixels of a picture of the plane
BETWEEN = 8  # images of an interpolation, both ends among them
REDRAWN = 3  # of an image, from each scale on
COLOURS = ((4, 4, 20), (70, 20, 110), (180, 50, 90), (245, 145, 45), (255, 252, 200))


class Plane(NamedTuple):
    """A set of points with a known density: what a model of them is shown beside."""

    name: str

    @property
    def points(self):
        return POINTS[self.name]


def format_of(model, meta):
    """The format of a flow, of points or of images.

    Raises ValueError for a meta that does not fit the model.
    """
    if len(model.shape) == 3 and model.levels:
        return pictures_of(model, meta.get("images"))
    return plane_of(model, meta)


def plane_of(model, meta):
    """The format of a model of points. Raises ValueError for a meta that does not fit it."""
    name = meta.get("data")
    if not isinstance(name, str) or name not in POINTS or model.shape != (2,):
        got = f"{name!r:.80} of {model.shape}"
        raise ValueError(f"data: expected images, or one of {[*POINTS]} of (2,), got {got}")
    return Plane(name)


def prepare(sizes, data, *, levels, flips, seed):
    """A flow, its source of batches, and the meta of its file.

    sizes: build(shape, levels) makes the flow, of levels 0 for points    levels: None for LEVELS
    Raises ValueError for points with options of images.
    """
    if data in POINTS:
        if seed >= HELD_OUT:
            raise ValueError(f"seed: expected below 2^63 of points, got {seed}")
        for name, value in (("flips", flips or None), ("levels", levels)):
            if value is not None:
                raise ValueError(f"{name}: expected none of points, which {data} are")
        return sizes.build((2,), 0), Draws(POINTS[data], seed), {"data": data}
    images, levels = Images(data), LEVELS if levels is None else levels
    net = sizes.build(images.shape, levels)
    source = Batches(images, levels, seed=seed, mode="threshold", flips=flips)
    own = {"shape": [*images.shape], "binarize": "threshold"}
    return net, source, {"data": data, "images": own}


class PointValidation:
    """Called with a flow: its nats on held-out points; draws its density into a folder.

    Raises ValueError for a number < 2.
    """

    def __init__(self, form, out, number):
        self.form, self.out, self.number = form, out, counted(number)

    def __call__(self, model):
        write_png(self.out / "density.png", plane(model, self.form.points, POINTS_SHOWN, 0))
        nats, gap, _ = point_nats(model, self.form.points, self.number, 0)
        return {"nats": nats, "entropy": self.form.points.entropy, "gap": gap}


class ImageValidation:
    """Called with a flow: its nats on held-out images; writes PICTURES of it into a folder."""

    def __init__(self, form, data, out, number):
        self.form, self.out = form, out
        self.unseen = Unseen(data, form, False, number, split="held out")

    def __call__(self, model):
        codes = self.unseen.codes
        for name, made in PICTURES.items():
            if name != "redrawn" or scales_of(model).any():
                drawn, columns = made(model, codes, SHOWN, 0, 1.0)
                write_png(self.out / f"{name}.png", grid(self.form.decode(drawn), columns))
        missed, _ = missed_levels(model, codes[spread(len(codes), SHOWN)])
        nats = image_nats(model, codes, 0)
        return {"nats": nats, "bits/dim": bits(nats, self.form.shape), "missed levels": missed}


@torch.no_grad()
def image_nats(model, codes, seed):
    """Mean of -log p of levels and noise of a seed, in nats an image."""
    device, total = next(model.parameters()).device, 0.0
    for i in range(0, len(codes), BATCH):
        batch = codes[i : i + BATCH].to(device)
        total -= model.log_prob(batch, seed=(seed + i) % HELD_OUT).double().sum().item()
    return total / len(codes)


@torch.no_grad()
def point_nats(model, points, number, seed):
    """On held-out points: the mean of -log q, of log p - log q, and the latter's standard error.

    Raises ValueError for a number < 2.
    """
    number = counted(number)
    x = points.sample(number, seed=HELD_OUT + seed % HELD_OUT)
    log_q = log_density(model, x)
    gap = points.log_prob(x) - log_q
    return -log_q.mean().item(), gap.mean().item(), gap.std().item() / math.sqrt(number)


def counted(number):
    """How many points to measure on, so many that there is a standard error."""
    number = NUMBER if number is None else number
    if number < 2:
        raise ValueError(f"files: expected at least 2 points, got {number}")
    return number


@torch.no_grad()
def log_density(model, x):
    """Log-density of points (n, 2), float64 on the CPU."""
    like = next(model.parameters())
    return torch.cat([model.log_prob(part.to(like)).double().cpu() for part in x.split(1 << 14)])


def plane(model, points, n, seed, temperature=1.0):
    """Side by side the true density, the learned one, and how many of n samples fall where.

    returns: (3, H, W') uint8
    """
    left, high, side, rows = cells(points.box)
    x = left + (torch.arange(WIDE, dtype=torch.float64) + 0.5) * side
    y = high - (torch.arange(rows, dtype=torch.float64) + 0.5) * side
    at = torch.cartesian_prod(y, x).flip(1)
    drawn = model.sample(n, seed=seed, temperature=temperature).double().cpu()
    p = points.log_prob(at).exp()
    count = fallen(drawn, points.box).flatten() / (n * side**2)
    brightness = torch.stack([p, log_density(model, at).exp(), count]) / p.max()
    return grid(coloured(brightness.view(3, rows, WIDE)), 3, scale=1)


def cells(box):
    """Of a picture of a box: its left and upper edge, the side of a pixel, and how many rows."""
    (left, low), (right, high) = (corner.tolist() for corner in box)
    side = (right - left) / WIDE
    return left, high, side, round((high - low) / side)


def fallen(x, box):
    """How many of points (n, 2) float64 are in each pixel of a picture of a box, (rows, WIDE)."""
    left, high, side, rows = cells(box)
    column, row = ((x - torch.tensor([left, high])) * torch.tensor([1, -1]) / side).floor().T
    on = (column >= 0) & (column < WIDE) & (row >= 0) & (row < rows)
    at = (row * WIDE + column)[on].long()
    return torch.bincount(at, minlength=rows * WIDE).view(rows, WIDE)


def mass(model, points):
    """The integral of a flow's density over the box of a set of points."""
    lines = [
        torch.linspace(a, b, 513, dtype=torch.float64) for a, b in zip(*points.box, strict=True)
    ]
    area = math.prod((line[1] - line[0]).item() for line in lines)
    middles = [(line[1:] + line[:-1]) / 2 for line in lines]
    return log_density(model, torch.cartesian_prod(*middles)).exp().sum().item() * area


def coloured(x):
    """Numbers (N, H, W), 0 dark and 1 bright, as pixels (N, 3, H, W) uint8."""
    table = torch.tensor(COLOURS, dtype=torch.float64)
    place = x.clamp(0, 1).double() * (len(table) - 1)
    below = place.long().clamp(max=len(table) - 2)
    part = (place - below)[..., None]
    mixed = table[below] * (1 - part) + table[below + 1] * part
    return mixed.round().to(torch.uint8).movedim(-1, 1)


@torch.no_grad()
def encode(model, codes):
    """Sources of the middle of levels, (B, C, H, W)."""
    codes = codes.to(next(model.parameters()).device)
    return model(model.dequantize(codes, uniforms=torch.full(codes.shape, 0.5)))[0]


@torch.no_grad()
def decode(model, z):
    """Levels of sources, on the CPU. Raises ValueError for what is not finite."""
    x = model.inverse(z)[0]
    if not x.isfinite().all():
        raise ValueError("flows: expected images of the sources, got NaN or Inf")
    return model.quantize(x).cpu()


def missed_levels(model, codes):
    """How many levels the inverse of the sources misses, and the largest error before rounding.

    The flow loses nothing: the levels are there again, and the middles of them to rounding.
    """
    x = model.inverse(encode(model, codes))[0].double().cpu()
    again = model.quantize(x)
    return int((again != codes).sum()), (x - codes - 0.5).abs().max().item()


def samples(model, codes, n, seed, temperature):
    return model.sample(n, seed=seed, temperature=temperature).cpu(), None


def reconstructions(model, codes, n, seed, temperature):
    """In pairs, images and what the inverse makes of their sources."""
    x = codes[spread(len(codes), -(-n // 2))]
    return torch.stack([x, decode(model, encode(model, x))], dim=1).flatten(0, 1), 8


def interpolations(model, codes, n, seed, temperature):
    """In a row, images of sources on the way from those of one image to those of another.

    z = cos(a) z_0 + sin(a) z_1 is as likely as the two, where sources are normal.
    """
    z = encode(model, codes[spread(len(codes), 2 * max(1, n // BETWEEN))])
    rows = -(-len(z) // 2)  # a set may be sorted by labels: pairs are half of it apart
    first, last = z[:rows, None], z[-rows:, None]
    angle = torch.linspace(0, math.pi / 2, BETWEEN, dtype=torch.float64).view(-1, 1, 1, 1).to(z)
    between = angle.cos() * first + angle.sin() * last
    between[:, -1:] = last  # the cosine of pi / 2 is not quite 0
    return decode(model, between.flatten(0, 1)), BETWEEN


def redrawn(model, codes, n, seed, temperature):
    """In a row, an image, and REDRAWN whose sources from scale 1, 2 ... on are the image's.

    The other sources, of finer detail, are drawn anew. (Dinh et al. 2016, appendix D.)
    Raises ValueError for a flow of one scale.
    """
    scale = scales_of(model)
    last = int(scale.max())
    if not last:
        raise ValueError("redrawn: expected a flow of two scales or more, got one")
    columns = 1 + last * REDRAWN
    x = codes[spread(len(codes), max(1, n // columns))]
    z = encode(model, x)
    u = kernels.uniforms(seed, (columns - 1) * len(x), z[0].numel())
    new = model.sources.quantile(u.to(z.device), temperature).to(z)
    new = new.view(len(x), last, REDRAWN, *z.shape[1:])
    keep = scale >= torch.arange(1, last + 1).view(-1, 1, 1, 1, 1)  # (last, 1, C, H, W)
    mixed = torch.where(keep.to(z.device), z[:, None, None], new).flatten(0, 2)
    made = decode(model, mixed).view(len(x), columns - 1, *x.shape[1:])
    return torch.cat([x[:, None], made], dim=1).flatten(0, 1), columns * max(1, 8 // columns)


def scales_of(model):
    """The scale of each source of images, zeros of a flow of one."""
    return model.scale_map() if hasattr(model, "scale_map") else torch.zeros(1)


# each: (model, held-out levels, about how many images, seed, temperature) -> images, columns
PICTURES = {
    "samples": samples,
    "reconstructions": reconstructions,
    "interpolations": interpolations,
    "redrawn": redrawn,
}
