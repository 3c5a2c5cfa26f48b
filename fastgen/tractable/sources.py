"""What flows map to: densities of one number each, of which all are independent."""

import math

import torch
import torch.nn.functional as F
from torch import nn

LEAST = 2.0**-54  # in place of uniform numbers of 0, whose quantile is not finite


class Sources(nn.Module):
    """Independent sources, all with the same density or, "mixture", each with its own.

    "normal"    exp(-z^2 / 2) / sqrt(2 pi)
    "logistic"  1 / (4 cosh^2(z / 2))
    "laplace"   exp(-|z|) / 2
    "mixture"   sum_m w_m logistic((z - mean_m) / scale_m) / scale_m, learned

    z: (B, D)    Raises ValueError for an unknown name.
    """

    def __init__(self, name, D, components=8):
        super().__init__()
        if name not in NAMES:
            raise ValueError(f"source: expected one of {NAMES}, got {name!r:.80}")
        self.name = name
        if name == "mixture":
            self.weight = nn.Parameter(torch.zeros(D, components))  # logits
            self.mean = nn.Parameter(torch.linspace(-1, 1, components).repeat(D, 1))
            self.log_scale = nn.Parameter(torch.full((D, components), -0.7))

    def log_prob(self, z):
        """Sum of the log-densities of each row, (B,), in float32 at least."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.name == "normal":
            return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        if self.name == "logistic":
            return -(F.softplus(z) + F.softplus(-z)).sum(1)
        if self.name == "laplace":
            return -(z.abs() + math.log(2)).sum(1)
        u = (z[..., None] - self.mean) * torch.exp(-self.log_scale)  # (B, D, M)
        each = -F.softplus(u) - F.softplus(-u) - self.log_scale + self.weight.log_softmax(1)
        return each.logsumexp(2).sum(1)

    def quantile(self, u, temperature=1.0):
        """Sources of uniform numbers, of which each is a monotone function but of a mixture.

        A temperature multiplies them, and of a mixture the deviations from a component's mean.
        u: (B, D) float64 in [0, 1)    returns: the same
        """
        if self.name == "mixture":
            return self.quantile_mixture(u, temperature)
        u = inside(u)
        if self.name == "normal":
            z = torch.special.ndtri(u)
        elif self.name == "logistic":
            z = torch.logit(u)
        else:
            z = torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 * (1 - u)))
        return temperature * z

    def quantile_mixture(self, u, temperature):
        """The number's place among the weights picks a component, what is left the place in it."""
        w = self.weight.to(u.dtype).softmax(1).expand(*u.shape, -1)  # (B, D, M)
        cdf = w.cumsum(2)
        m = (cdf <= u[..., None]).sum(2, keepdim=True).clamp(max=w.shape[2] - 1)
        left = ((u[..., None] - cdf.gather(2, m)) / w.gather(2, m) + 1)[..., 0]
        mean, log_scale = (
            p.to(u.dtype).expand(*u.shape, -1).gather(2, m)[..., 0]
            for p in (self.mean, self.log_scale)
        )
        return mean + temperature * torch.exp(log_scale) * torch.logit(inside(left))


NAMES = ("normal", "logistic", "laplace", "mixture")


def inside(u):
    return u.clamp(LEAST, 1 - 2 * LEAST)
