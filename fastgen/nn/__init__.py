"""Layers that take the place of torch's, bijections for flows, and layers of discriminators.

Spectral and weight normalization are torch's own: torch.nn.utils.parametrizations.
"""

from .affine_coupling import AffineCoupling
from .batch_norm import BatchNorm, Reference
from .bijector import Bijector, Chain, Half
from .causal_conv1d import CausalConv1d
from .convert import Report, convert, restore
from .gaussian_noise import GaussianNoise
from .invertible_conv import InvertibleConv1x1
from .invertible_linear import InvertibleLinear
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear, degree_mask
from .maxout import Maxout
from .minibatch_discrimination import MinibatchDiscrimination, MinibatchStd
from .normalize import ActNorm, Diagonal, InvertibleBatchNorm
from .squeeze import Logit, Rescale, Squeeze, Unsqueeze

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "CausalConv1d",
    "Chain",
    "Diagonal",
    "GaussianNoise",
    "Half",
    "InvertibleBatchNorm",
    "InvertibleConv1x1",
    "InvertibleLinear",
    "Logit",
    "MaskedConv2d",
    "MaskedLinear",
    "Maxout",
    "MinibatchDiscrimination",
    "MinibatchStd",
    "Reference",
    "Report",
    "Rescale",
    "Squeeze",
    "Unsqueeze",
    "convert",
    "degree_mask",
    "restore",
]
