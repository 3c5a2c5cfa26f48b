"""The discretized mixture of logistics of a pixel (Salimans et al. 2017, PixelCNN++, equation 2).

    p(x) = sum_m pi_m prod_c p(x_c | mean_mc + sum_(d < c) tanh(k_mcd) x_d, scale_mc)

Codes 0 ... levels - 1 stand for `levels` equidistant values from -1 to 1. A code's probability is
what a logistic holds between the middles to its neighbours; the outermost reach to infinity.
"""

import torch
import torch.nn.functional as F


def value(codes, levels, dtype=torch.float32):
    """Codes to values in [-1, 1]."""
    return (codes.to(torch.float64) * (2 / (levels - 1)) - 1).to(dtype)


def log_mass(mean, log_scale, codes, levels):
    """Log-probability of codes by single logistics, in nats; of shapes that broadcast."""
    x = value(codes, levels, mean.dtype)
    # beyond, a rate overflows or vanishes in float32
    half, rate = 1 / (levels - 1), torch.exp(-log_scale.clamp(-60, 60))
    above, below = rate * (x - mean + half), rate * (x - mean - half)
    # log(sigmoid(above) - sigmoid(below)) in factors that neither overflow nor cancel
    inner = F.logsigmoid(above) + F.logsigmoid(-below) + log1m_exp(2 * half * rate)
    first, last = codes == 0, codes == levels - 1
    return torch.where(first, F.logsigmoid(above), torch.where(last, F.logsigmoid(-below), inner))


def log1m_exp(x):
    """log(1 - exp(-x)) for x > 0."""
    small = x < 0.6931
    # each branch sees only arguments whose gradient is finite
    near = torch.log(-torch.expm1(-torch.where(small, x, 1.0)))
    far = torch.log1p(-torch.exp(-torch.where(small, 1.0, x)))
    return torch.where(small, near, far)


def channels(mixtures, colors):
    """How many numbers say a pixel's distribution: logits, means, log-scales, k of each color."""
    return mixtures * (1 + 2 * colors + colors * (colors - 1) // 2)


def color_logits(params, codes, c, levels):
    """The log-probability of each level of color c together with the colors before.

    params: (n, channels)    codes: (n, C)    returns: (n, levels), NaN where params are not finite
    """
    C = codes.shape[1]
    params = params.unflatten(1, (channels(1, C), -1))  # (n, 1 + 2C + ..., M)
    logits, mean, log_scale, k = params.split([1, C, C, C * (C - 1) // 2], dim=1)
    x, every = value(codes, levels, params.dtype), torch.arange(levels)[:, None]
    joint = F.log_softmax(logits[:, 0], dim=1)[:, None]  # (n, 1, M), then (n, levels, M)
    for e in range(c + 1):
        seen = k[:, e * (e - 1) // 2 : e * (e + 1) // 2].tanh() * x[:, :e, None]
        own, scale = mean[:, e] + seen.sum(1), log_scale[:, e].clamp(min=-7)
        at = every if e == c else codes[:, e, None, None]
        joint = joint + log_mass(own[:, None], scale[:, None], at, levels)
    finite = params.isfinite().all(2).all(1)
    return torch.logsumexp(joint, dim=2).masked_fill(~finite[:, None], torch.nan)
