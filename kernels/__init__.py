"""The kernels: each a function with a reference beside it, usable without the rest of fastgen."""

from ._draw import draw
from ._philox import uniforms
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
    "pack",
    "uniforms",
    "wavenet_layer",
    "wavenet_layer_ref",
    "wavenet_sample",
    "wavenet_sample_ref",
]
