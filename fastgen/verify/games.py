"""What is known exactly about adversarial games, and what ours do."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .. import figure1
from ..data import POINTS
from ..game import DIVERGENCES, Game, Minimax, NonSaturating, Player, unroll
from ..nn import BatchNorm, Reference
from ..nn.batch_norm import STATS
from . import Check, run

KNOWN = {  # D_f(N(0, 1) || N(1, 1))
    "total-variation": math.erf(0.5 / math.sqrt(2)),
    "kl": 0.5,
    "reverse-kl": 0.5,
    "pearson": math.e - 1,
    "neyman": math.e - 1,
    "hellinger": 2 - 2 * math.exp(-1 / 8),
    "jensen-shannon": 0.222843,
    "gan": -1.163451,
    "jeffrey": 1.0,
}


FITS = (  # divergence, share at -2 of the mixture; the best mean, standard deviation and value
    ("kl", 0.7, -0.8, 1.9, 0.72422),
    ("reverse-kl", 0.7, -2.0, 0.5, 0.35661),
    ("jensen-shannon", 0.7, -2.0, 0.5, 0.11725),
    ("kl", 0.5, 0.0, 2.0616, 0.72355),
    ("reverse-kl", 0.5, -2.0, 0.5, 0.69305),
    ("jensen-shannon", 0.5, 0.0, 2.0424, 0.20096),
)


def verify_gan(each=None):
    """Values at the best discriminator, the saddle, statistics, and a GAN that learns a line."""
    saddle = (leaves_saddle, circles_saddle)
    rows = [partial(mates, stats) for stats in STATS]
    return run([best_value, equal_value, *saddle, learns_best, line_learned, ring, *rows], each)


def verify_fgan(each=None):
    """Every divergence's bound touches it, and at other logits is below it; Gaussians fitted."""
    bounds = [partial(f, name) for name in DIVERGENCES for f in (bound, below)]
    return run([*bounds, *(partial(fitted, *fit) for fit in FITS)], each)


def verify_unrolled(each=None):
    """Unrolled descent against its closed form and finite differences."""
    return run([closed_form, differences], each)


def line():
    """Points x (N,), the densities of N(0, 1) and N(1, 1) by the spacing, and their log-ratio."""
    x = torch.linspace(-12, 13, 20_001, dtype=torch.float64)
    p, q = (torch.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (0, 1))
    return x, p * (x[1] - x[0]), q * (x[1] - x[0]), 0.5 - x


def best_value():
    _, p, q, d = line()
    value = (p * F.logsigmoid(d) + q * F.logsigmoid(-d)).sum().item()
    return close("V at the best D, N(0, 1) and N(1, 1)", -1.163451, value, 1e-6)


def bound(name):
    _, p, q, d = line()
    f = DIVERGENCES[name]
    best = f.logit(d.exp())
    value = (p * f.real(best) - q * f.fake(best)).sum().item()
    return close(f"{name}: the bound at its best logits", KNOWN[name], value, 2e-6)


def below(name):
    """The bound at other logits than the best."""
    _, p, q, d = line()
    f = DIVERGENCES[name]
    best = f.logit(d.exp()).clamp(-3, 3)
    moved = (best + 0.1 * torch.sin(3 * d), best - 0.05, best / 2)
    value = max((p * f.real(v) - q * f.fake(v)).sum().item() for v in moved)
    known = KNOWN[name]
    return Check(f"{name}: at other logits", f"below {known:.6f}", f"{value:.6f}", value < known)


def fitted(name, share, mean, sd, value):
    """Mean, sd and value of the best Gaussian for a mixture of two, N(-2, 0.5^2) and N(2, 0.5^2).

    It is found by descent of the bound at its best logits.
    """
    x = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    step, scale = x[1] - x[0], 0.5 if name == "jensen-shannon" else 1.0
    mixture = share * normal(x, -2, 0.5) + (1 - share) * normal(x, 2, 0.5)
    p, f = mixture * step, DIVERGENCES[name]

    def bound(theta):
        q = normal(x, theta[0], theta[1].exp())
        best = f.logit((mixture / q).detach())  # whose own slope is 0
        return scale * (p * f.real(best) - q * step * f.fake(best)).sum()

    found = []
    for start in ((-2.0, 0.0), (0.5, 0.5)):
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        descent = torch.optim.LBFGS([theta], 0.2, max_iter=100, line_search_fn="strong_wolfe")

        def slope(theta=theta, descent=descent):
            descent.zero_grad()
            (loss := bound(theta)).backward()
            return loss

        descent.step(slope)
        m, log_sd = theta.tolist()
        found.append((bound(theta).item(), m, math.exp(log_sd)))
    least, m, s = min(found)
    m = -abs(m) if share == 0.5 else m  # either mode is as good
    ok = abs(m - mean) < 6e-4 and abs(s - sd) < 6e-4 and abs(least - value) < 6e-5
    text = [f"{a:.2f} {b:.2f} {c:.4f}" for a, b, c in ((mean, sd, value), (m, s, least))]
    return Check(f"{name}: a fit, {share} at -2", text[0], text[1].replace("-0.00", "0.00"), ok)


def normal(x, mean, sd):
    return torch.exp(-(((x - mean) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))


class Saddle(nn.Module):
    """x descends V = x y, y climbs it."""

    def __init__(self):
        super().__init__()
        self.x, self.y = (nn.ParameterList([torch.ones((), dtype=torch.float64)]) for _ in range(2))

    def players(self):
        value = lambda: self.x[0] * self.y[0]  # noqa: E731
        return [Player("x", self.x, value), Player("y", self.y, lambda: -value())]

    def radii(self, turns, simultaneous):
        game, found = Game(self, "sgd", (0.0, 0.0), simultaneous), []
        options = {"lr": 0.1, "clip": math.inf, "dtype": torch.float32, "world": 1, "stop": False}
        for _ in range(turns):
            game.turn([()], **options)
            found.append(math.hypot(self.x[0].item(), self.y[0].item()))
        return found


def leaves_saddle():
    got = Saddle().radii(100, simultaneous=True)[-1]
    return close("x y, simultaneous: radius after 100", math.sqrt(2) * 1.01**50, got, 1e-9)


def circles_saddle():
    radii = Saddle().radii(2_000, simultaneous=False)
    got = f"{min(radii):.4f} to {max(radii):.4f}"
    ok = min(radii) > 1.344 and max(radii) < 1.416
    return Check("x y, alternating: radius in 2,000", "1.3450 to 1.4151", got, ok)


def learns_best():
    """D, trained alone on points of both, becomes p / (p + q) where 99 % of them are."""
    D = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    adam, game = torch.optim.Adam(D.parameters(), lr=1e-2), NonSaturating()
    steps = 800
    for step in range(steps):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        d, g = D(torch.randn(2048, 1)), D(torch.randn(2048, 1) + 1)
        adam.zero_grad()
        game.discriminator(d, g).backward()
        adam.step()
    x = torch.linspace(-2.5, 3.5, 200)[:, None]
    with torch.no_grad():
        worst = (torch.sigmoid(D(x)) - torch.sigmoid(0.5 - x)).abs().max().item()
    return Check("D learns p / (p + q): largest error", "below 0.02", f"{worst:.4f}", worst < 0.02)


def equal_value():
    """Logits of points, which are data and samples alike, climb V to where it is greatest."""
    v = torch.randn(64, dtype=torch.float64, requires_grad=True)
    descent, game = torch.optim.LBFGS([v], max_iter=100, tolerance_grad=1e-9), Minimax()

    def slope():
        descent.zero_grad()
        (loss := game.discriminator(v, v)).backward()
        return loss

    descent.step(slope)
    return close("V at the best D, of equals", -math.log(4), -slope().item(), 1e-6)


def line_learned():
    """A GAN of N(0, 1) from uniform noise."""
    model = figure1.Line()
    figure1.play(model, 500, fall=1.0)
    got = figure1.distance(model)
    return Check("a line learned: Kolmogorov-Smirnov", "below 0.05", f"{got:.4f}", got < 0.05)


def ring():
    centres = POINTS["ring"].rule[0]
    got = f"{len(centres)}, {torch.pdist(centres).min().item():.6f} apart"
    expected = f"8, {4 * math.sin(math.pi / 8):.6f} apart"
    return Check("the ring's modes", expected, got, got == expected)


def mates(stats):
    """What the first row becomes when the others of its batch are exchanged."""
    norms = [BatchNorm(8, stats=stats) for _ in range(2)]
    net = nn.Sequential(nn.Linear(4, 8), norms[0], nn.Tanh(), nn.Linear(8, 8), norms[1])
    if stats in ("reference", "virtual"):
        net = Reference(net, torch.randn(16, 4))
    x, other = torch.randn(2, 10, 4)
    other[0] = x[0]
    with torch.no_grad():
        net(x)
        net.train(stats != "running")  # whose averages are taken in evaluation
        moved = (net(x)[0] - net(other)[0]).abs().max().item()
    moves = stats == "batch"
    ok = moved > 0.1 if moves else moved == 0
    name = f"{stats} statistics: mates move a row by"
    return Check(name, "above 0.1" if moves else "0", f"{moved:.4g}", ok)


class Hill(nn.Module):
    """f(a, b) = a b - b^2 / 2, which b climbs."""

    def __init__(self, b):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, a):
        return a * self.b - self.b**2 / 2


def closed_form():
    hill, h, worst = Hill(0.3), 0.2, 0.0
    a = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    for K in (0, 1, 5, 10):
        after = unroll(hill, lambda p: -functional_call(hill, p, (a,)), K, lr=h, optimizer="sgd")
        keep = (1 - h) ** K
        b = keep * 0.3 + (1 - keep) * 1.7
        [da, db] = torch.autograd.grad(functional_call(hill, after, (a,)), [a, hill.b])
        pairs = ((after["b"], b), (da, b + (1.7 - b) * (1 - keep)), (db, (1.7 - b) * keep))
        worst = max(worst, *(abs(got.item() - want) for got, want in pairs))
    return close("a b - b^2/2, K steps and gradients: error", 0.0, worst, 1e-12)


def differences():
    D = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    real, made = torch.randn(2, 16, 2, dtype=torch.float64)
    game, worst = NonSaturating(), 0.0

    def loss(shift, optimizer):
        fake = made + shift

        def descended(p):
            return game.discriminator(*(functional_call(D, p, (x,)) for x in (real, fake)))

        after = unroll(D, descended, 3, lr=0.05, optimizer=optimizer)
        return game.generator(functional_call(D, after, (fake,)))

    for optimizer in ("sgd", "adam"):
        shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        [grad] = torch.autograd.grad(loss(shift, optimizer), shift)
        for i, e in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
            want = (loss(e, optimizer) - loss(-e, optimizer)).item() / 2e-5
            worst = max(worst, abs(grad[i].item() / want - 1))
    return close("3 steps, against differences: error", 0.0, worst, 1e-6)


def close(name, expected, got, within):
    text = f"{got:.6f}" if expected else f"{got:.1e}"
    wanted = f"{expected:.6f}" if expected else f"below {within:.0e}"
    return Check(name, wanted, text, abs(got - expected) < within)
