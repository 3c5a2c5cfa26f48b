"""Sound files, codes, features, and sources of batches."""

from .audio import LogMel, linear_decode, linear_encode, load_audio, mulaw_decode, mulaw_encode
from .speech import Crops, Speech, find, normalize
from .wav import WavError, read_wav, write_wav

__all__ = [
    "Crops",
    "LogMel",
    "Speech",
    "WavError",
    "find",
    "linear_decode",
    "linear_encode",
    "load_audio",
    "mulaw_decode",
    "mulaw_encode",
    "normalize",
    "read_wav",
    "write_wav",
]
