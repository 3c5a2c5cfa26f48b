"""Sound and image files, codes, levels, features, and sources of batches."""

from .audio import LogMel, linear_decode, linear_encode, load_audio, mulaw_decode, mulaw_encode
from .gif import write_gif
from .idx import ImageError, read_idx
from .images import Images, find_images
from .levels import Batches, binarize, pixels, quantize
from .png import grid, write_png
from .points import POINTS, Draws
from .speech import Crops, Speech, find, normalize
from .wav import WavError, read_wav, write_wav

__all__ = [
    "POINTS",
    "Batches",
    "Crops",
    "Draws",
    "ImageError",
    "Images",
    "LogMel",
    "Speech",
    "WavError",
    "binarize",
    "find",
    "find_images",
    "grid",
    "linear_decode",
    "linear_encode",
    "load_audio",
    "mulaw_decode",
    "mulaw_encode",
    "normalize",
    "pixels",
    "quantize",
    "read_idx",
    "read_wav",
    "write_gif",
    "write_png",
    "write_wav",
]
