"""A turn of the semi-supervised GAN of MNIST: `pytest bench/bench_semisupervised.py`.

Batches of 100 of 60,000 images in memory, the paper's networks, one thread. Ours is what
`fastgen train semisup` does in a step, averaged weights and checks among it; the plain loop is
the same networks, losses and Adam in torch, by themselves. Both are held to each other first.
"""

import copy
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from measure import compare

from fastgen import SemiSupervisedGAN
from fastgen.data.levels import PartlyLabelled
from fastgen.game import Game
from fastgen.gans import Canvas
from fastgen.nn import GaussianNoise
from fastgen.semisupervised import Encoded

B, LR, BETAS, EPS = 100, 3e-3, (0.5, 0.999), 1e-4
TURN = {"lr": LR, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}


def images(N):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (N, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(N) % 10
    return SimpleNamespace(x=x, labels=labels, classes=10, path="noise")


def ours(model, source):
    game, steps = Game(model, "adam", BETAS, eps=EPS), iter(range(1 << 30))

    def turn():
        numbers = game.turn([source.batch(next(steps), B)], **TURN)
        game.average(0.999)
        assert numbers.isfinite().all()

    return turn


def plain(model, source):
    """Three passes of D, as one would write it down."""
    G, D = model.generator, model.discriminator
    adams = [torch.optim.Adam(net.parameters(), lr=LR, betas=BETAS, eps=EPS) for net in (D, G)]
    pool, known, steps = source.unlabelled.x, source.labelled, iter(range(1 << 30))

    def descend(adam, loss):
        for a in adams:
            a.zero_grad()
        loss.backward()
        adam.step()

    def turn():
        i = next(steps)
        x, label = known.batch(i, B)
        [u] = source.unlabelled.batch(i, B) if i == 0 else [pool[torch.randint(len(pool), (B,))]]
        x, u = x / 255, u / 255
        with torch.no_grad():
            made = G(torch.rand(B, 100))
        real, fake = D(u).logsumexp(1), D(made).logsumexp(1)
        told = F.softplus(-real).mean() + F.softplus(fake).mean()
        descend(adams[0], F.cross_entropy(D(x), label) + told / 2)
        with torch.no_grad():
            want = D.layers(u).mean(0)
        descend(adams[1], (D.layers(G(torch.rand(B, 100))).mean(0) - want).square().mean())

    return turn


def agree(model, source):
    """One turn of each, from the same weights and noise, makes the same weights, in float64."""
    found, form = [], Canvas((1, 28, 28), 0.0)
    torch.set_default_dtype(torch.float64)
    try:
        for make, own in ((ours, Encoded(source, form)), (plain, source)):
            net = copy.deepcopy(model).double()
            for noise in (m for m in net.modules() if isinstance(m, GaussianNoise)):
                noise.std = 0.0  # the passes draw it in another order
            torch.manual_seed(1)
            make(net, own)()
            found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    finally:
        torch.set_default_dtype(torch.float32)
    return (found[0] - found[1]).abs().max().item()


def test_turn(benchmark, report, small):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = PartlyLabelled(images(600 if small else 60_000), 100, seed=0)
    encoded = Encoded(source, Canvas((1, 28, 28), 0.0))
    model = SemiSupervisedGAN(hidden=(20, 10)) if small else SemiSupervisedGAN()
    model.initialize(encoded.batch(0, B)[2])
    assert agree(model, source) < 1e-6 * LR
    runs = {
        "fastgen": ours(copy.deepcopy(model), encoded),
        "plain": plain(copy.deepcopy(model), source),
    }
    seconds = compare(runs, rounds=2 if small else 21)
    row = {"turns/s": f"{1 / seconds['fastgen']:.1f}"}
    row["x plain"] = f"{seconds['plain'] / seconds['fastgen']:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["fastgen"], rounds=1 if small else 5)
