"""Layers: those with the parameters and the state_dict of the torch layers that they replace, and
those of discriminators.

Spectral and weight normalisation are torch's own: torch.nn.utils.parametrizations.
"""

from .batch_norm import BatchNorm, Reference
from .causal_conv1d import CausalConv1d
from .convert import Report, convert, restore
from .gaussian_noise import GaussianNoise
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear, degree_mask
from .maxout import Maxout
from .minibatch_discrimination import MinibatchDiscrimination, MinibatchStd

__all__ = [
    "BatchNorm",
    "CausalConv1d",
    "GaussianNoise",
    "MaskedConv2d",
    "MaskedLinear",
    "Maxout",
    "MinibatchDiscrimination",
    "MinibatchStd",
    "Reference",
    "Report",
    "convert",
    "degree_mask",
    "restore",
]
