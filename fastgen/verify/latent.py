"""Sums of concepts in the latent space of a DCGAN, on images of two factors made here."""

import math

import torch

from ..game import Game
from ..implicit.adversarial import BETAS
from ..implicit.dcgan import DCGAN
from ..latent import arithmetic
from . import Check, run

SIDE, STEPS, TRIED = 8, 1800, 100
CLEAR = 0.2  # how far from the middle both factors of a concept's example are


def verify_dcgan(each=None):
    """The rule that names concepts, and that sums of codes make the fourth of three."""
    return run([named, added], each)


def discs(size, tint):
    """Discs from small to large, from blue to red; size, tint: (n,) in [0, 1] -> (n, 3, 8, 8)."""
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    distance = (at[:, None] ** 2 + at**2).sqrt()
    disc = (1.5 + 2.5 * size[:, None, None] - distance).clamp(0, 1)[:, None]
    rgb = torch.stack([tint, 0 * tint, 1 - tint], dim=1)[:, :, None, None]
    return 2 * disc * rgb - 1


def factors(x):
    """The size and tint of images, by their mass and their share of red."""
    red, green, blue = ((x + 1) / 2).sum((2, 3)).T
    steps = torch.linspace(0, 1, 1001)
    mass = ((discs(steps, steps) + 1) / 2).sum((1, 2, 3))
    size = torch.searchsorted(mass, red + green + blue) / 1000
    return size, red / (red + blue).clamp(min=1e-6)


def concepts(x, clear=0.0):
    """Of each image 2 (large) + (red), or -1 where a factor is not so far from the middle."""
    size, tint = factors(x)
    far = ((size - 0.5).abs() > clear) & ((tint - 0.5).abs() > clear)
    return torch.where(far, 2 * (size > 0.5) + (tint > 0.5), -1)


def named():
    size, tint = torch.rand(2, 1000)
    right = int((concepts(discs(size, tint)) == 2 * (size > 0.5) + (tint > 0.5)).sum())
    return Check("concepts of 1,000 images", "above 990", str(right), right > 990)


def trained():
    model = DCGAN((3, SIDE, SIDE), latent=8, channels=16)
    game = Game(model, "adam", BETAS)
    rules = {"clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}
    for step in range(STEPS):
        game.turn([(discs(*torch.rand(2, 64)),)], lr=1e-3 * (1 - step / STEPS), **rules)
    return model.eval()


def added():
    """From a concept to the one of its size or of its tint: a - b + c, of three codes each."""
    model = trained()
    z = model.draw(10_000, 0)["z"]
    found = concepts(model.sample(len(z), z=z), CLEAR)
    pools = [z[found == k] for k in range(4)]
    name = "a - b + c makes the fourth concept"
    if min(map(len, pools)) < 3:
        return Check(name, "above 80 of 100", "too few of a concept", False)
    a = torch.arange(TRIED) % 4
    kept = 1 + torch.arange(TRIED) // 4 % 2  # the bit that changes, which b shares with a
    chosen = [[some(pools[k]) for k in row] for row in torch.stack([a, a ^ (3 - kept), a ^ 3], 1)]
    codes = torch.stack([arithmetic(*three) for three in chosen])
    right = int((concepts(model.sample(TRIED, z=codes)) == a ^ kept).sum())
    return Check(name, "above 80 of 100", str(right), right > 80)


def some(pool):
    """Three codes of a pool, at random."""
    return pool[torch.randperm(len(pool))[:3]]
