"""The discretized mixture of logistics of sound, or of one color: `kernels.logistic_mixture`."""

from .. import kernels
from ..kernels.logistic_mixture import log_mass, value

__all__ = ["log_mass", "log_prob", "value"]


def log_prob(params, codes, classes):
    """Log-probability of codes, in nats.

    params: (B, 3M, T), logits, means and log-scales side by side    codes: (B, T)
    returns: (B, T)
    """
    return kernels.logistic_mixture(params, codes[:, None], classes)
