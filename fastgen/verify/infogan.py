"""What is known exactly about the information on an InfoGAN's codes, and what ours does."""

import math

import torch
from torch import nn

from ..game import Game
from ..implicit.infogan import Codes, InfoGAN
from . import Check, run
from .games import close

KINDS = 5  # categories
LOSS = 0.2  # share of a category's images that show another


def verify_infogan(each=None):
    """The bound against exact information, whom its gradient reaches, and that Q finds it."""
    return run([tight, below, even, reaches, spares, rises], each)


def small(**options):
    sizes = {"latent": 3, "categories": KINDS, "channels": 2, "units": 64}
    return InfoGAN((1, 8, 8), **sizes | options)


def joint():
    """p(c, x) of even categories and 7 images, the bound of a Q (7, K), and the information."""
    p = torch.randn(KINDS, 7, dtype=torch.float64).softmax(1) / KINDS
    model = small(continuous=0)
    category = torch.arange(KINDS).repeat_interleave(7)

    def bound(q):
        codes = Codes(q.log_softmax(1).repeat(KINDS, 1), q.new_zeros(len(category), 0))
        return (p.flatten() * model.nats(codes, category, codes.continuous)[:, 0]).sum().item()

    exact = (p * (p / p.sum(0) / p.sum(1, keepdim=True)).log()).sum().item()
    return p, bound, exact


def tight():
    p, bound, exact = joint()
    return close("35 pairs, Q exact: bound = information", exact, bound(p.log().T), 1e-12)


def below():
    """Of any other Q the bound is less by the mean of KL(p(c|x) || Q)."""
    p, bound, exact = joint()
    posterior, worst = (p / p.sum(0)).T, 0.0
    for size in (0.01, 0.1, 1, 10):
        q = posterior.log() + size * torch.randn_like(posterior)
        kl = (posterior * (posterior.log() - q.log_softmax(1))).sum(1)
        gap = (p.sum(0) * kl).sum().item()
        worst = max(worst, abs(exact - bound(q) - gap), -gap)
    return close("35 pairs, other Q: below by the mean KL", 0.0, worst, 1e-12)


def even():
    """The bound's integral over a code even on [-1, 1], of Q = N(mean, sd^2) whatever the image."""
    sd, mean = 0.7, 0.3
    model = small(continuous=1, sd=sd)
    c, weight = nodes()
    one = torch.zeros(len(c), dtype=torch.int64)
    codes = Codes(c.new_zeros(len(c), KINDS), torch.full_like(c, mean)[:, None])
    got = (weight * model.nats(codes, one, c[:, None])[:, 1]).sum().item()
    entropy, own = math.log(2), math.log(2 * math.pi * sd**2) / 2
    want = entropy - own - (1 / 3 + mean**2) / (2 * sd**2)
    return close("N(0.3, 0.7^2) of an even code: bound", want, got, 1e-12)


def nodes():
    c = torch.linspace(-1, 1, 3, dtype=torch.float64)  # Simpson's rule, exact of a parabola
    return c, torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64) / 6


def slopes(weight):
    """By the name of a part, the gradient of each player's loss."""
    torch.manual_seed(1)
    model = small(weight=weight).double()
    D, x = model.discriminator, torch.rand(16, 1, 8, 8, dtype=torch.float64)
    parts = {"trunk": D.trunk, "logit": D.last, "Q": D.q, "G": model.generator}
    found = []
    for player in model.players():
        torch.manual_seed(2)
        loss = player.loss(x)
        own = [name for name, part in parts.items() if owns(player, part)]
        found.append({name: slope(loss, parts[name]) for name in own})
    return found


def owns(player, part):
    return {*part.parameters()} <= {*player.module.parameters()}


def slope(loss, part):
    grads = torch.autograd.grad(loss, [*part.parameters()], retain_graph=True)
    return torch.cat([g.flatten() for g in grads])


def reaches():
    """Parts whose player's loss changes its slope with the information's weight."""
    pairs = [*zip(slopes(1.0), slopes(3.0), strict=True)]
    found = [name for a, b in pairs for name in a if (a[name] - b[name]).norm() > 1e-6]
    want = ["trunk", "Q", "G"]
    return Check("the bound moves", ", ".join(want), ", ".join(found), found == want)


def spares():
    """Q's slope is proportional to the weight: the adversarial term has no part in it."""
    one, three = (slopes(weight)[0]["Q"] for weight in (1.0, 3.0))
    error = ((three - 3 * one).norm() / one.norm()).item()
    return close("the adversarial term moves Q by", 0.0, error, 1e-9)


class Channel(nn.Module):
    """A generator that shows the category's image, or with probability LOSS another's.

    ln K + (1 - e) ln(1 - e) + e ln(e / (K - 1)) nats of information, e = LOSS
    """

    def __init__(self):
        super().__init__()
        self.images = nn.Parameter(torch.rand(KINDS, 1, 8, 8) * 2 - 1, requires_grad=False)

    def forward(self, z):
        u = torch.special.ndtr(z[:, 0])  # even, of noise
        other = 1 + (u / LOSS * (KINDS - 1)).long()
        shift = torch.where(u < LOSS, other, 0)
        return self.images[(z[:, -KINDS:].argmax(1) + shift) % KINDS]


def rises():
    """Q learns alone from what a fixed generator makes, of known information."""
    model = small(continuous=0)
    model.generator = Channel()
    tells, _ = model.players()
    model.players = lambda: [tells]
    game = Game(model, "adam", (0.5, 0.999))
    rules = {"clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}
    first = read(model)
    for step in range(150):
        x = model.generator(model.noise(128, next(model.parameters())))
        game.turn([(x,)], lr=1e-2 * (1 - step / 150), **rules)
    exact = math.log(KINDS) + (1 - LOSS) * math.log(1 - LOSS)
    exact += LOSS * math.log(LOSS / (KINDS - 1))
    last = read(model)
    ok = first < exact / 2 and abs(last - exact) < 0.05
    got = f"{first:.3f} -> {last:.3f}"
    return Check("Q learns a channel of known information", f"-> {exact:.3f}", got, ok)


@torch.no_grad()
def read(model):
    """The bound, exact over a grid of noise."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    z = torch.special.ndtri(u).float().repeat(KINDS)[:, None].expand(-1, 3)
    category = torch.arange(KINDS).repeat_interleave(1000)
    x = model.sample(len(z), z=z, category=category, continuous=z[:, :0])
    nats = model.eval().bound(x, category, z[:, :0]).mean().item()
    model.train()
    return nats
