"""The kernels: each a function with a reference beside it, usable without the rest of fastgen."""

from ._draw import draw
from ._masked_stack import MaskedConv, MaskedLayer, PackedStack, pack_stack
from ._philox import uniforms
from .affine_coupling import (
    affine_coupling,
    affine_coupling_grad,
    affine_coupling_ref,
    kept_half,
)
from .logistic_mixture import logistic_mixture, logistic_mixture_ref
from .masked_conv2d import masked_conv2d, masked_conv2d_ref
from .masked_stack_sample import masked_stack_sample, masked_stack_sample_ref
from .minibatch_discrimination import minibatch_discrimination, minibatch_discrimination_ref
from .pixelcnn_layer import pixelcnn_layer, pixelcnn_layer_ref
from .pixelcnn_sample import (
    PixelLayer,
    PixelPacked,
    PixelWeights,
    pack_pixels,
    pixelcnn_sample,
    pixelcnn_sample_ref,
)
from .wavenet_layer import wavenet_layer, wavenet_layer_ref
from .wavenet_sample import (
    Packed,
    State,
    Weights,
    initial_state,
    pack,
    wavenet_sample,
    wavenet_sample_ref,
)

__all__ = [
    "MaskedConv",
    "MaskedLayer",
    "Packed",
    "PackedStack",
    "PixelLayer",
    "PixelPacked",
    "PixelWeights",
    "State",
    "Weights",
    "affine_coupling",
    "affine_coupling_grad",
    "affine_coupling_ref",
    "draw",
    "initial_state",
    "kept_half",
    "logistic_mixture",
    "logistic_mixture_ref",
    "masked_conv2d",
    "masked_conv2d_ref",
    "masked_stack_sample",
    "masked_stack_sample_ref",
    "minibatch_discrimination",
    "minibatch_discrimination_ref",
    "pack",
    "pack_pixels",
    "pack_stack",
    "pixelcnn_layer",
    "pixelcnn_layer_ref",
    "pixelcnn_sample",
    "pixelcnn_sample_ref",
    "uniforms",
    "wavenet_layer",
    "wavenet_layer_ref",
    "wavenet_sample",
    "wavenet_sample_ref",
]
