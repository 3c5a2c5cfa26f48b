"""Fast kernels for generative models, and the models on top of them."""

from . import kernels
from .tractable.wavenet import WaveNet

__version__ = "0.1.0"
__all__ = ["WaveNet", "kernels"]
