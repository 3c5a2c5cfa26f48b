"""InfoGAN, whose generator's codes can be read off its images (Chen et al. 2016)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..game import Player
from ..nn.evaluating import evaluating
from ..tractable.sources import inside
from . import dcgan
from .adversarial import Adversarial, numbers


class Codes(NamedTuple):
    """Q's posterior of the codes of images."""

    category: torch.Tensor  # (B, K), log-probabilities
    continuous: torch.Tensor  # (B, M), means


class InfoGAN(Adversarial):
    """A GAN of images whose generator sees codes c beside the noise, which Q reads off the images.

        c = (one of K categories, M numbers even on [-1, 1])
        L_I = E log Q(c | G(z, c)) + H(c) <= I(c; G(z, c))
        discriminator's loss: game.discriminator(D(x), D(G(z, c))) - weight * L_I
        generator's loss:     game.generator(D(G(z, c))) - weight * L_I

    Q is a head on D's trunk, which both descend: it belongs to the discriminator's player. Of the
    numbers Q says N(mean, sd^2). With sd = 1 their part of L_I is below 0 whatever Q is, and its
    gradient that of half the squared error.

    shape: of an image, as DCGAN's    latent: size of the noise    categories: K >= 2
    continuous: M    channels: of the largest pictures    units: of the dense layers; Q's own has an
    eighth    weight: lambda    game: a name in `fastgen.game.GAMES`    steps: of the discriminator
    for one of the generator's    generator_lr: factor of the generator's learning rate

    Raises ValueError for other shapes, sizes and weights.
    Chen et al. 2016, InfoGAN: Interpretable Representation Learning by Information Maximizing
    Generative Adversarial Nets, equation 6 and appendix C.1.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        latent=62,
        categories=10,
        continuous=2,
        channels=64,
        units=1024,
        weight=1.0,
        sd=1.0,
        game="nonsaturating",
        steps=1,
        generator_lr=5.0,
    ):
        side, doublings = dcgan.sides(shape, "InfoGAN")
        least = {"categories": 2, "continuous": 0, "channels": 1, "units": 8}
        sizes = {
            "categories": categories,
            "continuous": continuous,
            "channels": channels,
            "units": units,
        }
        for key, got in sizes.items():
            if not isinstance(got, int) or got < least[key]:
                want = f"an int >= {least[key]}"
                raise ValueError(f"InfoGAN: {key}: expected {want}, got {got!r:.80}")
        positive = {"weight": weight, "sd": sd, "generator_lr": generator_lr}
        for key, got in positive.items():
            if not 0 < got < math.inf:
                raise ValueError(f"InfoGAN: {key}: expected > 0, got {got!r:.80}")
        rules = {"latent": latent, "game": game, "steps": steps}
        super().__init__({"shape": list(shape), **sizes, **positive, **rules})
        self.shape, self.K, self.M = tuple(shape), categories, continuous
        widths = [channels << i for i in range(doublings)]  # from the largest pictures on
        self.generator = nn.Sequential(
            nn.Linear(latent + categories + continuous, units, bias=False),
            nn.BatchNorm1d(units),
            nn.ReLU(),
            dcgan.Generator(units, widths[::-1], side, shape[0]),
        )
        self.discriminator = Discriminator(shape[0], widths, side, units, categories + continuous)
        self.apply(dcgan.start)

    def players(self):
        """The discriminator with Q, which takes its steps first, and the generator."""

        def tells(x, label=None):
            self.one_hot(x, label)
            z = self.noise(len(x), x)
            with torch.no_grad():
                fake = self.generator(z)
            d, (g, q) = self.discriminator(x), self.discriminator.both(fake)
            d, g = d.to(self.dtype), g.to(self.dtype)
            return self.game.discriminator(d, g) - self.information(q, z)

        def makes(x, label=None):
            self.one_hot(x, label)
            z = self.noise(len(x), x)
            g, q = self.discriminator.both(self.generator(z))
            return self.game.generator(g.to(self.dtype)) - self.information(q, z)

        steps, lr = self.config["steps"], self.config["generator_lr"]
        return [
            Player("discriminator", self.discriminator, tells, steps=steps),
            Player("generator", self.generator, makes, lr=lr),
        ]

    def information(self, q, z):
        """weight * L_I of a batch, (), of what Q's head says and of what the generator saw."""
        codes = z[:, self.config["latent"] :]
        category, continuous = codes[:, : self.K].argmax(1), codes[:, self.K :]
        each = self.nats(self.posterior(q.to(self.dtype)), category, continuous)
        return self.config["weight"] * each.sum(1).mean()

    def posterior(self, q):
        return Codes(q[:, : self.K].log_softmax(1), q[:, self.K :])

    def nats(self, codes, category, continuous):
        """log Q(c) + H(c) of each code, (B, 1 + M)."""
        sd = self.config["sd"]
        off = (continuous - codes.continuous) / sd
        gaussian = -(off.square() + math.log(2 * math.pi)) / 2 - math.log(sd)
        said = torch.cat([codes.category.gather(1, category[:, None]), gaussian], dim=1)
        entropy = [math.log(self.K)] + [math.log(2)] * self.M
        return said + said.new_tensor(entropy)

    def codes(self, x):
        """Q's posterior of the codes of images (B, C, S, S), as in evaluation: `Codes`."""
        self.check(x)
        with evaluating(self):
            return self.posterior(self.discriminator.both(x)[1])

    def bound(self, x, category, continuous):
        """log Q(c|x) + H(c) in nats of each code that x was made of, (B, 1 + M).

        The mean over samples is a lower bound of the mutual information of the code and the image.

        x: (B, C, S, S)    category: (B,) int64    continuous: (B, M)
        Raises ValueError for shapes that do not fit.
        """
        check_codes(self, "bound", len(x), category, continuous)
        return self.nats(self.codes(x), category, continuous)

    def noise(self, n, like):
        """What the generator sees: noise, the category one-hot, the numbers, side by side."""
        options = {"device": like.device, "dtype": self.dtype}
        category = torch.randint(self.K, (n,), device=like.device)
        continuous = 2 * torch.rand(n, self.M, **options) - 1
        return self.joined(super().noise(n, like), category, continuous)

    def joined(self, z, category, continuous):
        parts = z, F.one_hot(category, self.K), continuous
        return torch.cat([part.to(z) for part in parts], dim=1)

    def draw(self, n, seed):
        """What `sample` makes of its seed, by name: z (n, latent), category, continuous."""
        latent = self.config["latent"]
        u = numbers(seed, n, latent + 1 + self.M)
        return {
            "z": torch.special.ndtri(inside(u[:, :latent])),
            "category": (u[:, latent] * self.K).long(),
            "continuous": 2 * u[:, latent + 1 :] - 1,
        }

    @torch.no_grad()
    def sample(self, n, *, seed=None, z=None, category=None, continuous=None):
        """Make n images; noise and codes that are not given are drawn from `seed`.

        z: (n, latent)    category: (n,) int64    continuous: (n, M)    returns: (n, C, S, S)
        Raises ValueError for shapes that do not fit and categories that there are not.
        """
        if n < 0:
            raise ValueError(f"sample: n: expected >= 0, got {n}")
        given = {"z": z, "category": category, "continuous": continuous}
        given = self.draw(n, seed) | {name: t for name, t in given.items() if t is not None}
        want = (n, self.config["latent"])
        if given["z"].shape != want:
            raise ValueError(f"sample: z: expected {want}, got {tuple(given['z'].shape)}")
        check_codes(self, "sample", n, given["category"], given["continuous"])
        device = next(self.parameters()).device
        return self.make(self.joined(**{name: t.to(device) for name, t in given.items()}))


class Discriminator(nn.Module):
    """Images -> logits, and beside them what Q says of the codes."""

    def __init__(self, colors, widths, side, units, outputs):
        super().__init__()
        own = units // 8
        self.trunk = nn.Sequential(
            *dcgan.Discriminator(colors, widths, side).layers,
            nn.Linear(widths[-1] * side * side, units, bias=False),
            nn.BatchNorm1d(units),
            nn.LeakyReLU(0.2),
        )
        self.last = nn.Linear(units, 1)
        self.q = nn.Sequential(
            nn.Linear(units, own, bias=False),
            nn.BatchNorm1d(own),
            nn.LeakyReLU(0.2),
            nn.Linear(own, outputs),
        )

    def forward(self, x):
        """x: (B, C, S, S)    returns: (B,)"""
        return self.last(self.trunk(x))[:, 0]

    def both(self, x):
        """The logits, and what Q says of the codes, (B, K + M)."""
        h = self.trunk(x)
        return self.last(h)[:, 0], self.q(h)


def check_codes(model, name, n, category, continuous):
    """Raise ValueError for codes of another shape, and categories that the model has not."""
    wants = {"category": (n,), "continuous": (n, model.M)}
    for (key, want), got in zip(wants.items(), (category, continuous), strict=True):
        if tuple(got.shape) != want:
            raise ValueError(f"{name}: {key}: expected {want}, got {tuple(got.shape)}")
    if n and not 0 <= int(category.min()) <= int(category.max()) < model.K:
        got = f"{int(category.min())} to {int(category.max())}"
        raise ValueError(f"{name}: category: expected 0 to {model.K - 1}, got {got}")
