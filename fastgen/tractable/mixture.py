"""The discretized mixture of logistics (Salimans et al. 2017, PixelCNN++, equation 2).

Codes 0 ... classes - 1 stand for `classes` equidistant values from -1 to 1. A code's probability
is what the mixture holds between the middles to its neighbours; the outermost reach to infinity.
"""

import torch
import torch.nn.functional as F

from ..kernels._mixture import log_mass, value

__all__ = ["log_mass", "log_prob", "value"]


def log_prob(params, codes, classes):
    """Log-probability of codes, in nats.

    params: (B, 3M, T), logits, means and log-scales side by side    codes: (B, T)
    returns: (B, T)
    """
    logits, mean, log_scale = params.chunk(3, dim=1)  # (B, M, T)
    log_p = log_mass(mean, log_scale, codes[:, None], classes)
    return torch.logsumexp(F.log_softmax(logits, dim=1) + log_p, dim=1)
