"""What a GAN of points made while it learned: as an animation, and mode by mode."""

import colorsys
import json
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import torch

from .data.gif import write_gif
from .data.png import write_png
from .files import atomic

FRAMES, SHOWN = 48, 1000  # of an animation; samples of a frame
CELLS, SCALE = 112, 2  # of a frame's side; pixels of a cell's
SIZE = 256, 512  # of the picture of the modes
DARK, TRUE, PLAIN, FIRST = range(4)  # places in the palette: from the last on two of each mode
GREYS = ((12, 12, 24), (60, 60, 84), (200, 200, 200))


class Film:
    """Samples (SHOWN, 2) of some steps of a run, in its folder's film.npz.

    samples.gif shows them before true ones, in the colour of the nearest mode, bright within 3
    standard deviations; modes.png each colour's share, from the first step, left, to the last.
    A run that goes on from a step drops what came after it.
    """

    def __init__(self, out, points):
        self.out, self.points = out, points
        self.centres = points.rule[0] if getattr(points, "nodes", 0) == 1 else None
        self.steps, self.samples = [], []
        # a broken film is begun anew
        broken = OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
        with suppress(*broken), np.load(out / "film.npz") as file:
            steps, samples = file["steps"].tolist(), [*torch.from_numpy(file["samples"])]
            if len(steps) == len(samples):
                self.steps, self.samples = steps, samples

    def add(self, x):
        """Show samples of the step that the run's log ends with, (SHOWN, 2)."""
        step = json.loads((self.out / "log.jsonl").read_text().splitlines()[-1])["step"]
        keep = sum(s < step for s in self.steps)
        self.steps = [*self.steps[:keep], step]
        self.samples = [*self.samples[:keep], x.float().cpu()]
        with atomic(self.out / "film.npz") as file:
            np.savez(file, steps=np.array(self.steps), samples=torch.stack(self.samples).numpy())
        some = torch.linspace(0, keep, min(keep + 1, FRAMES)).round().long()
        frames = torch.stack([self.frame(i) for i in some])
        write_gif(self.out / "samples.gif", frames, PALETTE)
        if self.centres is not None:
            pixels = PALETTE[self.history()]  # (H, W, 3)
            write_png(self.out / "modes.png", pixels.movedim(2, 0).contiguous())

    def frame(self, i):
        """Places in PALETTE, (H, W) uint8; below, how far the run is."""
        cells = torch.zeros(CELLS, CELLS, dtype=torch.uint8)
        x = self.samples[i]
        self.draw(cells, self.points.sample(SHOWN, seed=0), TRUE)
        self.draw(cells, x, PLAIN if self.centres is None else self.mode(x))
        pixels = cells.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
        pixels[-SCALE:, : round(pixels.shape[1] * self.steps[i] / self.steps[-1])] = PLAIN
        return pixels

    def draw(self, cells, x, place):
        low, high = self.points.box
        margin = (high - low) / 16
        at = ((x.double() - low + margin) / (high - low + 2 * margin) * CELLS).floor().long()
        on = ((at >= 0) & (at < CELLS)).all(1)
        place = torch.as_tensor(place).expand(len(x))[on].to(torch.uint8)
        cells[CELLS - 1 - at[on, 1], at[on, 0]] = place

    def mode(self, x):
        """Places in PALETTE, (n,): of the nearest mode the first if it is close, or the second."""
        distance, nearest = torch.cdist(x.double(), self.centres).min(1)
        return FIRST + 2 * nearest + (distance > 3 * self.points.sd)

    def history(self):
        """Places in PALETTE, (H, W): in a step's column its samples, one over the other."""
        H, W = SIZE
        ordered = torch.stack([self.mode(x) for x in self.samples]).sort(1).values  # (n, SHOWN)
        at = (torch.arange(W) + 0.5) / W * self.steps[-1]
        column = torch.bucketize(at, torch.tensor(self.steps, dtype=at.dtype))
        row = ((1 - (torch.arange(H) + 0.5) / H) * SHOWN).long()
        return ordered[column[None], row[:, None]]


def hues(K=8):
    """Bright and dim in turn."""
    places = [(k / K, 0.7, value) for k in range(K) for value in (1.0, 0.45)]
    return [[round(255 * v) for v in colorsys.hsv_to_rgb(*place)] for place in places]


PALETTE = torch.tensor([*GREYS, *hues()], dtype=torch.uint8)
