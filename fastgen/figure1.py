"""Figure 1 of Goodfellow et al. 2014, Generative Adversarial Nets, played: a GAN on a line.

Data p are N(0, 1), noise is uniform, q is the generator's density. The four panels are (a) a
discriminator that is a little trained; (b) trained alone, when it comes to D* = p / (p + q); (c)
the generator after steps that follow its slope; (d) the end, where q = p and D = 1/2.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .game import Game
from .implicit.gan import GAN

BATCH, LR, MOMENTS = 256, 2e-3, (0.5, 0.999)
START = 1.5  # where the generator's samples are at first
ROUGH, ALONE, FEW, TURNS = 10, 250, 10, 1000  # up to each panel
EVERY = (2, 25, 1, 25)  # turns of a frame of the animation, on the way to each
GRID = 1024  # of z
LEFT, RIGHT = -4.0, 4.0  # of the line
H, W, TOP, FLOOR, X, Z = 240, 320, 12, 150, 172, 226  # rows: of 1, of 0, of the lines of x and z
BLUR, DENSE = 0.1, 2.0  # of the samples whose density is drawn; the height of a density
ARROWS, POINT = 21, 7  # from z to x; pixels of one's point
WHITE, BLACK, GREEN, BLUE, PALE, GREY = range(6)
COLOURS = (
    (255, 255, 255),
    (0, 0, 0),
    (0, 150, 60),
    (40, 70, 220),
    (170, 190, 255),
    (150, 150, 150),
)
PALETTE = torch.tensor(COLOURS, dtype=torch.uint8)


class Line(GAN):
    """A GAN of numbers, of uniform noise with variance 1; `playing` are who learn."""

    playing = ("discriminator", "generator")

    def __init__(self):
        super().__init__((1,), latent=1, hidden=(64, 64), activation="leaky", steps=2)
        nn.init.constant_(self.generator.layers[4].bias, START)

    def noise(self, n, like):
        return uniform(torch.rand(n, 1, device=like.device, dtype=self.dtype))

    def players(self):
        return [player for player in super().players() if player.name in self.playing]

    def places(self):
        """x of z evenly over (0, 1), (GRID,) float64."""
        z = (torch.arange(GRID) + 0.5) / GRID
        return self.sample(GRID, z=uniform(z[:, None]))[:, 0].double()


def uniform(u):
    return (2 * u - 1) * math.sqrt(3)


def play(model, turns, playing=Line.playing, fall=0.0, each=None):
    """Turns at a rate LR that falls by a share of it; `each` is called with each's number."""
    model.playing = playing
    game = Game(model, "adam", MOMENTS)
    options = {"clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}
    for turn in range(turns):
        batches = [(torch.randn(BATCH, 1),) for _ in range(game.batches)]
        game.turn(batches, lr=LR * (1 - fall * turn / turns), **options)
        if each:
            each(turn + 1)


def distance(model):
    """Kolmogorov and Smirnov's, of the generator's distribution from N(0, 1)."""
    x = model.places().sort().values
    rank = torch.arange(GRID + 1, dtype=torch.float64) / GRID
    p = torch.special.ndtr(x)
    return max((p - rank[:-1]).max().item(), (rank[1:] - p).max().item())


def draw():
    """Frames (N, H, W) and panels (4, H, W), places in PALETTE, and the `distance` at the end."""
    model, frames, panels = Line(), [], []
    stages = (
        (ROUGH, Line.playing[:1], 0.0),
        (ALONE, Line.playing[:1], 0.5),
        (FEW, Line.playing[1:], 0.0),
        (TURNS, Line.playing, 1.0),
    )
    for (turns, playing, fall), every in zip(stages, EVERY, strict=True):
        each = lambda turn, n=every: turn % n or frames.append(panel(model))  # noqa: E731
        play(model, turns, playing, fall, each)
        panels.append(panel(model))
    return torch.stack(frames), torch.stack(panels), distance(model)


@torch.no_grad()
def panel(model):
    """p in dots, q, D in dashes over a pale D*; below, where the generator takes z. (H, W) uint8"""
    canvas = torch.full((H, W), WHITE, dtype=torch.uint8)
    x, places = torch.linspace(LEFT, RIGHT, 2 * W, dtype=torch.float64), model.places()
    p, q = normal(x), normal((x[:, None] - places) / BLUR).mean(1) / BLUR
    D = torch.sigmoid(model.discriminator(x.float()[:, None])).double()
    for i in torch.linspace(0, GRID - 1, ARROWS).long().tolist():
        arrow(canvas, i / GRID * W, (places[i].item() - LEFT) / (RIGHT - LEFT) * W)
    for row in (X, Z):
        canvas[row] = BLACK
    curves = (
        (p / (p + q), PALE, 1, 0),
        (p * DENSE, BLACK, 2, 3),
        (q * DENSE, GREEN, 1, 0),
        (D, BLUE, 6, 4),
    )
    for height, colour, dash, gap in curves:
        curve(canvas, height, colour, dash, gap)
    return canvas


def normal(x):
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def curve(canvas, height, colour, dash, gap):
    """A line two pixels wide through heights, 1 at TOP, of dashes and gaps."""
    column = torch.linspace(0, W, len(height))
    row = FLOOR - height * (FLOOR - TOP)
    length = F.pad(torch.hypot(column.diff(), row.diff()).cumsum(0), (1, 0))
    at = torch.arange(0, float(length[-1]), 0.25)
    row, column = (torch.from_numpy(np.interp(at, length, v)) for v in (row, column))
    shown = (at % (dash + gap) < dash) & (row >= 0)
    plot(canvas, row[shown], column[shown], colour, 2)


def arrow(canvas, start, end):
    """From a column of the line of z to one of that of x."""
    t = torch.linspace(0, 1, 2 * H)
    plot(canvas, Z + (X - Z) * t, start + (end - start) * t, GREY)
    back = torch.tensor([Z - X, start - end]) / math.hypot(Z - X, start - end)
    for turn in (-0.5, 0.5):
        away = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        row, column = torch.tensor([X, end])[:, None] + POINT * (away @ back)[:, None] * t
        plot(canvas, row, column, GREY)


def plot(canvas, row, column, colour, wide=1):
    for down in range(wide):
        r, c = row.floor().long() + down, column.floor().long()
        on = (r >= 0) & (r < H) & (c >= 0) & (c < W)
        canvas[r[on], c[on]] = colour
