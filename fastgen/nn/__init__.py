"""Layers that take the place of torch's, and bijections for flows."""

from .affine_coupling import AffineCoupling
from .bijector import Bijector, Chain, Half
from .causal_conv1d import CausalConv1d
from .convert import Report, convert, restore
from .invertible_conv import InvertibleConv1x1
from .invertible_linear import InvertibleLinear
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear, degree_mask
from .normalize import ActNorm, BatchNorm, Diagonal
from .squeeze import Logit, Rescale, Squeeze, Unsqueeze

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "BatchNorm",
    "Bijector",
    "CausalConv1d",
    "Chain",
    "Diagonal",
    "Half",
    "InvertibleConv1x1",
    "InvertibleLinear",
    "Logit",
    "MaskedConv2d",
    "MaskedLinear",
    "Report",
    "Rescale",
    "Squeeze",
    "Unsqueeze",
    "convert",
    "degree_mask",
    "restore",
]
