"""The kernels: each a function with a reference beside it, usable without the rest of fastgen."""

from ._draw import draw
from ._philox import uniforms
from .masked_conv2d import masked_conv2d, masked_conv2d_ref
from .pixelcnn_layer import pixelcnn_layer, pixelcnn_layer_ref
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
    "Packed",
    "State",
    "Weights",
    "draw",
    "initial_state",
    "masked_conv2d",
    "masked_conv2d_ref",
    "pack",
    "pixelcnn_layer",
    "pixelcnn_layer_ref",
    "uniforms",
    "wavenet_layer",
    "wavenet_layer_ref",
    "wavenet_sample",
    "wavenet_sample_ref",
]
