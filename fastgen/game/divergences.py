"""f-divergences and their variational bounds, on logits (Nowozin et al. 2016, tables 1 to 3, 6).

    D_f(P || Q) = E_q f(p/q) >= F(v) = E_p g_f(v(x)) - E_q f*(g_f(v(x))),  f*(t) = sup_u u t - f(u)

with equality where g_f(v(x)) = f'(p(x)/q(x)). g_f maps any real number v into f*'s domain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

STEEP = 32.0  # e^32 is 8e13: the norm of a gradient of such is still finite in float32


def exp(v):
    """e^v, and beyond v = 32 its tangent, so that it and its gradient are finite."""
    bounded = torch.exp(v.clamp(max=STEEP))
    return bounded + math.exp(STEEP) * F.relu(v - STEEP)


@dataclass(frozen=True)
class Divergence:
    """What is to be known of a divergence, in functions of tensors.

    f: u -> f(u), convex    real: v -> g_f(v)    fake: v -> f*(g_f(v))
    logit: u -> the v at which g_f(v) = f'(u), where the bound touches
    """

    f: Callable
    real: Callable
    fake: Callable
    logit: Callable


class LogLambert(torch.autograd.Function):
    """log W(e^v), which is the y with y + e^y = v; any number of times differentiable."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        # Newton's steps from the right of the root of a convex function come from there alone.
        y = torch.where(v > 1, v.clamp(min=1).log(), v)
        for _ in range(8):
            e = torch.exp(y)
            y = y - (y + e - v) / (1 + e)
        return y

    @staticmethod
    def backward(ctx, dy):
        [v] = ctx.saved_tensors
        return dy / (1 + torch.exp(LogLambert.apply(v)))


def jeffrey_fake(t):
    """W + 1/W + t - 2 with W = LambertW(e^(1 - t))."""
    y = LogLambert.apply(1 - t)
    return exp(y) + exp(-y) + t - 2


def sign_logit(u):
    return torch.where(u < 1, -math.inf, math.inf)


LOG2 = math.log(2)
DIVERGENCES = {
    "total-variation": Divergence(
        f=lambda u: (u - 1).abs() / 2,
        real=lambda v: torch.tanh(v) / 2,
        fake=lambda v: torch.tanh(v) / 2,
        logit=sign_logit,
    ),
    "kl": Divergence(
        f=lambda u: torch.xlogy(u, u),
        real=lambda v: v,
        fake=lambda v: exp(v - 1),
        logit=lambda u: 1 + u.log(),
    ),
    "reverse-kl": Divergence(
        f=lambda u: -u.log(),
        real=lambda v: -exp(v),
        fake=lambda v: -1 - v,
        logit=lambda u: -u.log(),
    ),
    "pearson": Divergence(
        f=lambda u: (u - 1).square(),
        real=lambda v: v,
        fake=lambda v: v.square() / 4 + v,
        logit=lambda u: 2 * (u - 1),
    ),
    "neyman": Divergence(
        f=lambda u: (1 - u).square() / u,
        real=lambda v: 1 - exp(v),
        fake=lambda v: 2 - 2 * exp(v / 2),
        logit=lambda u: -2 * u.log(),
    ),
    "hellinger": Divergence(
        f=lambda u: (u.sqrt() - 1).square(),
        real=lambda v: 1 - exp(v),
        fake=lambda v: exp(-v) - 1,
        logit=lambda u: -u.log() / 2,
    ),
    "jensen-shannon": Divergence(
        f=lambda u: torch.xlogy(u, u) - torch.xlogy(u + 1, (1 + u) / 2),
        real=lambda v: LOG2 - F.softplus(-v),
        fake=lambda v: F.softplus(v) - LOG2,
        logit=torch.log,
    ),
    "gan": Divergence(
        f=lambda u: torch.xlogy(u, u) - torch.xlogy(u + 1, u + 1),
        real=lambda v: -F.softplus(-v),
        fake=F.softplus,
        logit=torch.log,
    ),
    "jeffrey": Divergence(
        f=lambda u: (u - 1) * u.log(),
        real=lambda v: v,
        fake=jeffrey_fake,
        logit=lambda u: 1 + u.log() - 1 / u,
    ),
}
