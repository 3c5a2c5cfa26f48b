"""The discretized mixture of logistics (Salimans et al. 2017, PixelCNN++, equation 2).

Codes 0 ... classes - 1 stand for `classes` equidistant values from -1 to 1. A code's probability
is what the mixture holds between the middles to its neighbours; the outermost reach to infinity.
"""

import torch
import torch.nn.functional as F


def value(codes, classes, dtype=torch.float32):
    """Codes to values in [-1, 1]."""
    return (codes.to(torch.float64) * (2 / (classes - 1)) - 1).to(dtype)


def log_prob(params, codes, classes):
    """Log-probability of codes, in nats.

    params: (B, 3M, T), logits, means and log-scales side by side    codes: (B, T)
    returns: (B, T)
    """
    logits, mean, log_scale = params.chunk(3, dim=1)  # (B, M, T)
    log_p = log_mass(mean, log_scale, codes[:, None], classes)
    return torch.logsumexp(F.log_softmax(logits, dim=1) + log_p, dim=1)


def log_mass(mean, log_scale, codes, classes):
    """Log-probability of codes by single logistics, in nats; of shapes that broadcast."""
    x = value(codes, classes, mean.dtype)
    # beyond, a rate overflows or vanishes in float32
    half, rate = 1 / (classes - 1), torch.exp(-log_scale.clamp(-60, 60))
    above, below = rate * (x - mean + half), rate * (x - mean - half)
    # log(sigmoid(above) - sigmoid(below)) in factors that neither overflow nor cancel
    inner = F.logsigmoid(above) + F.logsigmoid(-below) + log1m_exp(2 * half * rate)
    first, last = codes == 0, codes == classes - 1
    return torch.where(first, F.logsigmoid(above), torch.where(last, F.logsigmoid(-below), inner))


def log1m_exp(x):
    """log(1 - exp(-x)) for x > 0."""
    small = x < 0.6931
    # each branch sees only arguments whose gradient is finite
    near = torch.log(-torch.expm1(-torch.where(small, x, 1.0)))
    far = torch.log1p(-torch.exp(-torch.where(small, 1.0, x)))
    return torch.where(small, near, far)
