"""Speech: the clips of a set, and batches of crops from them."""

import bisect
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .audio import load_audio

PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
SETS = {  # name: suffix of the prompts, Debian package
    "speech8k": (".wav", "asterisk-core-sounds-en-wav"),
    "speech16k": (".g722", "asterisk-core-sounds-en-g722"),
}
EVERY = 20  # clips, of which one is held out
LEAST_STD = 0.01  # nats; a band that never changes would divide by zero


def find(name):
    """Sorted paths of the clips of a set: "speech8k", "speech16k" or a folder of .wav files.

    The two named sets are 25 minutes of prompts by one speaker, at 8 and 16 kHz, from Debian's
    asterisk-core-sounds-en, without the prompts that are silence. A folder is searched with the
    folders in it; hidden files are left out.

    Raises FileNotFoundError if there is no such clip; for a named set it says what to install.
    """
    folder, suffix, package = _locate(name)
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() == suffix and not path.name.startswith(".") and path.is_file()
    )
    if package:
        paths = [path for path in paths if path.parent.name != "silence"]
    if not paths:
        hint = f": install the Debian package {package}" if package else ""
        raise FileNotFoundError(
            f"find: {name}: expected {suffix} files in {folder}, got none{hint}"
        )
    return paths


class Speech:
    """One split of a set of clips: every 20th clip, from the first, is held out.

    waves: list of (T,) float32; names: their paths in the set's folder; rate: Hz.

    Raises ValueError for a split other than "train" and "held out", a split without clips, and two
    rates in one split; and whatever `find` and `load_audio` raise.
    """

    def __init__(self, name, split="train"):
        if split not in ("train", "held out"):
            raise ValueError(f"Speech: split expected 'train' or 'held out', got {split!r}")
        paths = find(name)
        paths = [path for i, path in enumerate(paths) if (i % EVERY == 0) == (split == "held out")]
        if not paths:
            raise ValueError(f"Speech: {name}: expected at least 2 clips to split, got 1")
        self.split = split
        self.names = [path.relative_to(_locate(name)[0]).as_posix() for path in paths]
        waves, rates = zip(*map(load_audio, paths), strict=True)
        for path, rate in zip(paths, rates, strict=True):
            if rate != rates[0]:
                raise ValueError(
                    f"Speech: expected one rate, got {rates[0]} Hz in {paths[0]} and {rate} Hz in "
                    f"{path}"
                )
        self.waves, self.rate = list(waves), rates[0]


class Crops:
    """Batches of crops of `crop` samples, drawn evenly from all places of all waves.

    waves: sequence of (T,); one shorter than a crop is followed by silence. encode: (B, crop) ->
    codes. A crop starts at a multiple of mel.hop_length (of 1 without `mel`), so that its features
    are whole frames of its wave's features, normalised for each band:

        (mel(wave) - mean) / std

    stats: mean and std, (mels,) each; those of `waves` unless given, as the held-out set's must be.

    Raises ValueError for no waves, waves of other shapes, and numbers out of range.
    """

    def __init__(self, waves, crop, encode, *, seed, mel=None, stats=None):
        if crop < 1 or not 0 <= seed < 2**64:
            raise ValueError(f"Crops: crop >= 1, seed in [0, 2^64) expected, got {crop}, {seed}")
        shapes = [tuple(wave.shape) for wave in waves]
        bad = [shape for shape in shapes if len(shape) != 1 or shape[0] == 0]
        if not shapes or bad:
            raise ValueError(f"Crops: waves expected (T,), T >= 1, got {bad[:1] or 'none'}")
        self.crop, self.encode, self.seed = crop, encode, seed
        self.waves = [F.pad(wave, (0, max(0, crop - len(wave)))) for wave in waves]
        self.hop_length = mel.hop_length if mel else 1
        places = [(len(wave) - crop) // self.hop_length + 1 for wave in self.waves]
        self.ends = list(itertools.accumulate(places))
        self.features = None
        if mel:
            features = [mel(wave) for wave in self.waves]  # (mels, F) each
            own = [
                x[:, : len(w) // self.hop_length + 1] for x, w in zip(features, waves, strict=True)
            ]
            self.mean, self.std = _check_stats(stats, mel.mels) if stats else _stats(own)
            self.features = [normalize(x, self.mean, self.std) for x in features]

    def batch(self, step, size):
        """Codes (size, crop), and features (size, mels, crop // hop_length + 1) with `mel`.

        Row r is a function of (seed, step, r) alone. Raises ValueError for a step or size out of
        range.
        """
        if not 0 <= step < 2**64 or size < 1:
            raise ValueError(f"Crops: step in [0, 2^64), size >= 1 expected, got {step}, {size}")
        generator = np.random.Philox(key=np.array([self.seed, step], np.uint64))
        places = [int(u) * self.ends[-1] >> 64 for u in generator.random_raw(size)]
        rows = [self._row(place) for place in places]
        codes = self.encode(torch.stack([wave for wave, _ in rows]))
        if self.features is None:
            return (codes,)
        return codes, torch.stack([features for _, features in rows])

    def _row(self, place):
        i = bisect.bisect_right(self.ends, place)
        frame = place - (self.ends[i - 1] if i else 0)
        start = frame * self.hop_length
        wave = self.waves[i][start : start + self.crop]
        if self.features is None:
            return wave, None
        return wave, self.features[i][:, frame : frame + self.crop // self.hop_length + 1]


def normalize(features, mean, std):
    """(features - mean) / std for each band; features (..., mels, F), mean and std (mels,)."""
    return (features - mean[:, None]) / std[:, None]


def _stats(features):
    frames = torch.cat(features, dim=1).double()
    return frames.mean(1).float(), frames.std(1, correction=0).clamp_min(LEAST_STD).float()


def _check_stats(stats, mels):
    mean, std = (torch.as_tensor(x, dtype=torch.float32) for x in stats)
    if mean.shape != (mels,) or std.shape != (mels,) or not (std > 0).all():
        got = f"{tuple(mean.shape)} and {tuple(std.shape)}, least std {std.min()}"
        raise ValueError(f"Crops: stats expected two of ({mels},), std > 0, got {got}")
    return mean, std


def _locate(name):
    """The folder of a set, the suffix of its clips, and the package that would bring them."""
    if str(name) in SETS:
        return PROMPTS, *SETS[str(name)]
    return Path(name), ".wav", None
