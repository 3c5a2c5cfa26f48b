"""Layers with the parameters and the state_dict of the torch layers that they replace."""

from .affine_coupling import AffineCoupling
from .causal_conv1d import CausalConv1d
from .convert import Report, convert, restore
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear, degree_mask

__all__ = [
    "AffineCoupling",
    "CausalConv1d",
    "MaskedConv2d",
    "MaskedLinear",
    "Report",
    "convert",
    "degree_mask",
    "restore",
]
