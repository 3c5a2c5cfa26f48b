"""The games of two networks: what a discriminator and a generator descend, on logits.

    d = the discriminator's output (B,) for data, and g for what the generator made

A game is an object with `discriminator(d, g)` and `generator(g)`, each a loss (); its losses and
their gradients are finite wherever |logits| <= 100.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from .divergences import DIVERGENCES, Divergence, exp


@dataclass(frozen=True)
class Minimax:
    """D maximises V = E log sigmoid(d) + E log sigmoid(-g), and G minimises it.

    smooth: one-sided, d's target is 1 - smooth (Salimans et al. 2016, section 3.4)

    Raises ValueError for a smooth outside [0, 1).
    Goodfellow et al. 2014, Generative Adversarial Nets, equation 1.
    """

    smooth: float = 0.0

    def __post_init__(self):
        if not 0 <= self.smooth < 1:
            raise ValueError(f"game: smooth: expected in [0, 1), got {self.smooth}")

    def discriminator(self, d, g):
        return (F.softplus(-d) + self.smooth * d).mean() + F.softplus(g).mean()

    def generator(self, g):
        return -F.softplus(g).mean()


@dataclass(frozen=True)
class NonSaturating(Minimax):
    """G maximises E log sigmoid(g) instead, whose gradient is large where D is right.

    Goodfellow et al. 2014, section 3.
    """

    def generator(self, g):
        return F.softplus(-g).mean()


@dataclass(frozen=True)
class MaximumLikelihood(Minimax):
    """G minimises -E exp(g): at the best D the gradient of KL(data || model).

    Goodfellow 2014, On distinguishability criteria for estimating generative models.
    """

    def generator(self, g):
        return -exp(g).mean()


@dataclass(frozen=True)
class LeastSquares:
    """D's targets are b for data and a for samples, G's is c.

    Mao et al. 2017, Least Squares Generative Adversarial Networks, equation 2.
    """

    a: float = 0.0
    b: float = 1.0
    c: float = 1.0

    def discriminator(self, d, g):
        return ((d - self.b).square().mean() + (g - self.a).square().mean()) / 2

    def generator(self, g):
        return (g - self.c).square().mean() / 2


@dataclass(frozen=True)
class Hinge:
    """D wants margins of 1 on both sides, G wants g large.

    Lim and Ye 2017, Geometric GAN.
    """

    def discriminator(self, d, g):
        return F.relu(1 - d).mean() + F.relu(1 + g).mean()

    def generator(self, g):
        return -g.mean()


@dataclass(frozen=True)
class Wasserstein:
    """D maximises E d - E g, and G minimises it; see `gradient_penalty` for what bounds D's slope.

    Arjovsky, Chintala and Bottou 2017, Wasserstein GAN.
    """

    def discriminator(self, d, g):
        return g.mean() - d.mean()

    def generator(self, g):
        return -g.mean()


@dataclass(frozen=True)
class FGAN:
    """D maximises F = E g_f(d) - E f*(g_f(g)), a bound of D_f(data || model), and G minimises it.

    divergence: a `Divergence`, or the name of one    saturating: whether G minimises F itself, or
    else maximises E g_f(g)

    Raises ValueError for a name that there is not.
    Nowozin, Cseke and Tomioka 2016, f-GAN, equations 6 and 7 and section 3.2.
    """

    divergence: Divergence | str
    saturating: bool = True
    f: Divergence = field(init=False, repr=False)

    def __post_init__(self):
        f = self.divergence
        if not isinstance(f, Divergence) and f not in DIVERGENCES:
            names = ", ".join(DIVERGENCES)
            raise ValueError(f"game: divergence: expected one of {names}, got {f!r:.80}")
        object.__setattr__(self, "f", f if isinstance(f, Divergence) else DIVERGENCES[f])

    def discriminator(self, d, g):
        return self.f.fake(g).mean() - self.f.real(d).mean()

    def generator(self, g):
        return -(self.f.fake(g) if self.saturating else self.f.real(g)).mean()


GAMES = {
    "minimax": Minimax(),
    "nonsaturating": NonSaturating(),
    "maximum-likelihood": MaximumLikelihood(),
    "least-squares": LeastSquares(),
    "hinge": Hinge(),
    "wasserstein": Wasserstein(),
}
GAMES |= {f"f-{name}": FGAN(name) for name in DIVERGENCES}
GAMES |= {f"nonsaturating-{name}": FGAN(name, saturating=False) for name in DIVERGENCES}


def gradient_penalty(discriminator, real, fake, slope=1.0):
    """E (||grad D(x)|| - slope)^2 at uniformly random points x between the pairs of two batches.

    Each row is to depend on its own x alone, which batch normalization breaks.

    discriminator: (B, ...) -> (B,) or (B, 1)    real, fake: (B, ...)    returns: ()
    Raises ValueError for batches of different shapes.
    Gulrajani et al. 2017, Improved Training of Wasserstein GANs, equation 3.
    """
    if real.shape != fake.shape:
        got = f"{tuple(real.shape)} and {tuple(fake.shape)}"
        raise ValueError(f"gradient_penalty: expected batches of one shape, got {got}")
    share = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    x = torch.lerp(real, fake, share).requires_grad_()
    with torch.enable_grad():
        total = discriminator(x).sum()
        [grad] = torch.autograd.grad(total, x, create_graph=True)
    # The root's slope at 0 is infinite.
    norm = (grad.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - slope).square().mean()


def feature_matching(real, fake):
    """||E f(x) - E f(G(z))||^2 of features (B, F) of data and of samples.

    Salimans et al. 2016, Improved Techniques for Training GANs, section 3.1.
    """
    return (real.mean(0) - fake.mean(0)).square().sum()


class HistoricalAverage(nn.Module):
    """||theta - mean of the past thetas||^2 of a module, to be added to its player's loss.

    While it trains each call adds the parameters of now to the mean, which the state_dict holds.
    Salimans et al. 2016, Improved Techniques for Training GANs, section 3.3.
    """

    def __init__(self, module):
        super().__init__()
        theta = nn.utils.parameters_to_vector(module.parameters()).detach()
        dtype = torch.promote_types(theta.dtype, torch.float32)
        self.register_buffer("mean", torch.zeros_like(theta, dtype=dtype))
        self.register_buffer("count", torch.zeros_like(self.mean[0]))

    def forward(self, module):
        theta = nn.utils.parameters_to_vector(module.parameters())
        if self.training:
            with torch.no_grad():
                self.count += 1
                self.mean += (theta.detach() - self.mean) / self.count
        # A copy, as the mean moves on before the gradient is taken.
        return (theta - self.mean.clone()).square().sum().to(theta.dtype)
