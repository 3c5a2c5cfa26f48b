"""Which GANs find all the modes: 8 Gaussians on a ring, over seeds.

    python bench/ring.py OUT [--seeds 10] [--steps 1500] [--only NAME ...]

The networks are `fastgen.GAN`'s; those of SIDE seeds train side by side, which costs less. Each
seed's row is added to OUT/rows.jsonl, and what is there is not done again; OUT/ring.md is the
table. Samples within 3 standard deviations of a mode are of high quality, and cover it.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from table import markdown, read
from torch import nn

from fastgen import GAN, kernels
from fastgen.data import POINTS, Draws
from fastgen.game import DIVERGENCES
from fastgen.implicit.adversarial import BETAS
from fastgen.metrics.modes import Modes, modes
from fastgen.train import train

RING, SIDE, COUNTED = POINTS["ring"], 10, 10_000
BATCH, RATE, INNER, KERNELS = 64, 2e-3, 1e-4, 20
EXPERIMENTS = {
    "GAN": {},
    "unrolled, K = 1": {"unrolled": 1},
    "unrolled, K = 5": {"unrolled": 5},
    "unrolled, K = 10": {"unrolled": 10},
    "minibatch discrimination": {"minibatch": KERNELS},
    **{f"f-GAN, {name}": {"game": f"f-{name}"} for name in DIVERGENCES},
    "D in the inner loop": {"steps": 10, "discriminator_lr": 0.1},
    "G in the inner loop": {"generator_steps": 10},
    "G in the inner loop, K = 5": {"generator_steps": 10, "unrolled": 5, "inner_lr": RATE},
}


class Beside(nn.Module):
    """S perceptrons of one shape: of the rows of x each has its S-th part to itself."""

    def __init__(self, nets):
        super().__init__()
        layers = [[m for m in net.layers if isinstance(m, nn.Linear)] for net in nets]
        self.weights, self.biases = (
            nn.ParameterList(stacked(ps) for ps in zip(*parts, strict=True))
            for parts in (
                [[m.weight.T for m in own] for own in layers],
                [[m.bias[None] for m in own] for own in layers],
            )
        )
        self.activation, self.S = nets[0].layers[1], len(nets)
        self.last = nets[0].layers[-1]
        aware = [m for net in nets for m in net.layers if hasattr(m, "num_kernels")]
        self.B = aware[0].num_kernels if aware else 0
        if aware:
            norms = [m.project.parametrizations.weight for m in aware]
            self.g = stacked([p.original0.T for p in norms])
            self.v = stacked([p.original1.T for p in norms])
            self.bias = stacked([m.bias[None] for m in aware])

    def forward(self, x, label=None):
        x = x.unflatten(0, (self.S, -1))  # (S, n, C)
        *inner, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in inner:
            x = self.activation(torch.baddbmm(bias, x, weight))
        if self.B:
            m = (x @ (self.g * self.v / self.v.norm(dim=1, keepdim=True))).flatten(0, 1)
            o = kernels.minibatch_discrimination(m.unflatten(1, (self.B, -1)), groups=self.S)
            x = torch.cat([x, o.view(self.S, -1, self.B) + self.bias], dim=2)
        return self.last(torch.baddbmm(last[1], x, last[0]).flatten(0, 1))


class GANs(GAN):
    """GANs that train at once, each as if it were alone: their losses' sum is descended."""

    def __init__(self, models):
        super().__init__(**models[0].config)
        self.S = len(models)
        self.generator = Beside([model.generator for model in models])
        self.discriminator = Beside([model.discriminator for model in models])
        self.game = Sum(self.game, self.S)


class Sum:
    """A game of S pairs of players whose logits are one after another."""

    def __init__(self, game, S):
        self.game, self.S = game, S

    def discriminator(self, d, g):
        return self.S * self.game.discriminator(d, g)

    def generator(self, g):
        return self.S * self.game.generator(g)


def stacked(parameters):
    return nn.Parameter(torch.stack([p.detach() for p in parameters]))


def found_by(options, seeds, steps):
    """`trained`, in halves where a loss is not finite; no modes of a seed whose own is not."""
    try:
        return trained(options, seeds, steps)
    except ValueError as error:
        print(f"seeds {seeds}: {error}", flush=True)
    if len(seeds) == 1:
        return [Modes(0, 0.0, math.inf)]
    half = len(seeds) // 2
    return [row for part in (seeds[:half], seeds[half:]) for row in found_by(options, part, steps)]


def trained(options, seeds, steps):
    """Of each seed the modes that its GAN covers."""
    models, source = [], Draws(RING, seeds[0])
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(GAN((2,), **{"inner_lr": INNER} | options))
        models[-1].initialize(*Draws(RING, seed).batch(0, BATCH))
    model = GANs(models)
    descent = {"steps": steps, "lr": RATE, "betas": BETAS, "ema": 0.0, "seed": seeds[0]}
    quiet = {"log_every": steps, "save_every": steps, "progress": False}
    with tempfile.TemporaryDirectory() as out:
        train(model, source, out=out, batch_size=len(seeds) * BATCH, **descent, **quiet)
    x = model.sample(len(seeds) * COUNTED, seed=seeds[0]).chunk(len(seeds))
    return [modes(part, RING.rule[0], RING.sd) for part in x]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="*", default=[*EXPERIMENTS], choices=EXPERIMENTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.jsonl"
    torch.set_num_threads(1)
    for first in range(0, options.seeds, SIDE):
        for name in options.only:
            own = {"experiment": name, "steps": options.steps}
            known = {row["seed"] for row in read(file) if own.items() <= row.items()}
            seeds = [s for s in range(first, min(first + SIDE, options.seeds)) if s not in known]
            if not seeds:
                continue
            began = time.process_time()
            found = found_by(EXPERIMENTS[name], seeds, options.steps)
            seconds = (time.process_time() - began) / len(seeds)
            with file.open("a") as lines:
                for seed, row in zip(seeds, found, strict=True):
                    line = {**own, "seed": seed, **row._asdict(), "seconds": seconds}
                    lines.write(json.dumps(line) + "\n")
            (options.out / "ring.md").write_text(table(read(file)) + "\n")
            print(name, seeds, f"{seconds:.0f} s a seed", *found, flush=True)


def table(rows):
    """Means and standard deviations over the seeds."""
    lines = []
    for name, steps in dict.fromkeys((row["experiment"], row["steps"]) for row in rows):
        own = [row for row in rows if (row["experiment"], row["steps"]) == (name, steps)]
        line = {"ring": name, "turns": steps, "seeds": len(own)}
        for key, head in (("covered", "modes"), ("share", "share"), ("reverse_kl", "reverse KL")):
            line[head] = spread([row[key] for row in own])
        lines.append(line)
    return markdown(lines)


def spread(values):
    if max(values) == math.inf:  # no sample of a seed is close to any mode
        return "∞"
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {sd:.2f}"


if __name__ == "__main__":
    main()
