"""Turns of a GAN's game against a plain loop: `pytest bench/bench_gan_training.py`.

DCGAN on 1 x 28 x 28 in batches of 128, of 16 channels at the largest pictures, and perceptrons on
points of the plane in batches of 512, where launches count. The loop is PyTorch as written with
care: fused Adam, gradients set to None, no graph of the generator in the discriminator's step, and
none of the discriminator's weights in the generator's. Both have the same nets and noise, and are
equal after three turns before they are timed. On a CPU one thread. Ours is what `fastgen.train`
plays, but for the averaged copy.
"""

import math

import pytest
import torch
from measure import DEVICE, compare

from fastgen import DCGAN, GAN
from fastgen.game import Game
from fastgen.implicit.adversarial import BETAS

LR = 2e-4
TURN = {"lr": LR, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}


def dcgan(small):
    torch.manual_seed(0)
    return DCGAN(channels=2 if small else 16), (16 if small else 128, 1, 28, 28)


def ring(small):
    torch.manual_seed(0)
    return GAN((2,), hidden=(128, 128), activation="relu"), (16 if small else 512, 2)


class Loop:
    """The non-saturating game in plain PyTorch."""

    def __init__(self, model):
        self.model, self.G, self.D = model.train(), model.generator, model.discriminator
        options = {"lr": LR, "betas": BETAS, "fused": True}
        self.G_adam = torch.optim.Adam(self.G.parameters(), **options)
        self.D_adam = torch.optim.Adam(self.D.parameters(), **options)
        self.latent = model.config["latent"]

    def turn(self, x):
        softplus = torch.nn.functional.softplus
        z = torch.randn(len(x), self.latent, device=x.device)
        with torch.no_grad():
            fake = self.G(z)
        loss = softplus(-self.D(x)).mean() + softplus(self.D(fake)).mean()
        self.D_adam.zero_grad(set_to_none=True)
        loss.backward()
        self.D_adam.step()

        z = torch.randn(len(x), self.latent, device=x.device)
        self.D.requires_grad_(False)
        loss = softplus(-self.D(self.G(z))).mean()
        self.G_adam.zero_grad(set_to_none=True)
        loss.backward()
        self.G_adam.step()
        self.D.requires_grad_(True)


def measured(make, small, device, turns):
    """Seconds of so many turns of ours and of the loop, whose weights are equal at first."""
    (model, shape), (other, _) = make(small), make(small)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).to(device)
    game, loop = Game(model.to(device), "adam", BETAS), Loop(other.to(device))
    calls = {"ours": lambda: game.turn([(x,)], **TURN), "loop": lambda: loop.turn(x)}
    for call in calls.values():
        torch.manual_seed(1)
        for _ in range(3):
            call()
    for (name, got), want in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5), name

    def repeated(call):
        def run():
            for _ in range(turns):
                call()

        return run

    runs = {name: repeated(call) for name, call in calls.items()}
    return compare(runs, rounds=2 if small else 15, device=device), runs["ours"]


def row(case, make, small, device, turns, report, benchmark):
    seconds, ours = measured(make, small, device, turns)
    found = {
        "case": case,
        "turns/s": f"{turns / seconds['ours']:.1f}",
        "plain loop": f"{turns / seconds['loop']:.1f}",
        "x loop": f"{seconds['loop'] / seconds['ours']:.2f}",
    }
    report(**found)
    benchmark.extra_info.update(found)
    benchmark.pedantic(ours, rounds=1)


CASES = {"DCGAN, 28 x 28, batch 128": (dcgan, 1), "perceptrons, ring, batch 512": (ring, 20)}


@pytest.mark.parametrize("case", CASES)
def test_gan_training(benchmark, report, case, small):
    torch.set_num_threads(1)
    make, turns = CASES[case]
    row(case, make, small, "cpu", turns, report, benchmark)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_gan_training_on_a_gpu(benchmark, report, case, small):
    make, _ = CASES[case]
    row(case, make, small, DEVICE, 2 if small else 20, report, benchmark)
