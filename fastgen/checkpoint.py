"""Checkpoints: tensors by name and a JSON object, in one safetensors file.

The JSON is the text of the header's metadata key "fastgen". A file is written whole or not at all,
and what `load` reads and allocates is bounded by the file's size.
"""

import json
import os
import warnings
from collections import Counter
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from .files import atomic

_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


class CheckpointError(ValueError):
    """A checkpoint that is broken or does not fit; the message names the file and byte or key."""


def save(path, tensors, meta):
    """Write tensors by name and a JSON object to a file, whole or not at all.

    Raises ValueError: a name or meta that the file cannot hold; TypeError: such a dtype; OSError.
    """
    if not isinstance(meta, dict):
        raise ValueError(f"save: {path}: meta expected to be a dict, got {meta!r:.80}")
    try:
        text = json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"save: {path}: meta expected to be JSON: {error}") from error
    if "__metadata__" in tensors:
        raise ValueError(f"save: {path}: the name '__metadata__' is the format's own")
    # Copies, because the library refuses tensors that share memory, as tied weights do.
    layout = {"copy": True, "memory_format": torch.contiguous_format}
    own = {name: tensor.detach().to("cpu", **layout) for name, tensor in tensors.items()}
    try:
        data = safetensors.torch.save(own, {"fastgen": text})
    except KeyError as error:
        raise TypeError(f"save: {path}: safetensors has no dtype {error}") from error
    with atomic(path) as file:
        file.write(data)


def load(path):
    """Read a checkpoint: its tensors by name, on the CPU, and its JSON object.

    Raises CheckpointError naming the file and what is wrong with it; OSError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"load: {path}: expected a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(file, size, path)
        file.seek(0)
        try:
            tensors = safetensors.torch.load(file.read())
        except OSError:
            raise
        except Exception as error:  # the library, torch and Python each have their own
            raise CheckpointError(
                f"load: {path}: expected a header that describes the {size} bytes: {error!s:.200}"
            ) from error
    return tensors, _meta(header, path)


def restore(target, tensors, path):
    """Copy tensors read from `path` into a module, or into a dict of tensors.

    Raises CheckpointError naming the key, before anything is copied: a key that is missing or not
    expected, another shape or dtype, a value that is not finite.
    """
    live = target.state_dict() if isinstance(target, nn.Module) else target
    for title, names in (
        ("missing", live.keys() - tensors.keys()),
        ("unexpected", tensors.keys() - live.keys()),
    ):
        if names:
            listed = ", ".join(f"{name!r:.80}" for name in sorted(names)[:5])
            raise CheckpointError(f"restore: {path}: {len(names)} {title} keys: {listed}")
    for name, tensor in live.items():
        _check(name, tensor, tensors[name], path)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])


class Folder:
    """A run's folder of checkpoints.

    model.safetensors            averaged weights, all that inference needs
    step-00001000.safetensors    a run's whole state, all that resume needs

    Each is replaced whole and stands for one step, so that a kill at any moment leaves complete
    ones. Both hold the same meta: the caller's, of which "model", "config", "data" and "labelled",
    which of it has labels, must not change, and "step".

    Raises ValueError, TypeError: meta that is not JSON.
    """

    def __init__(self, path, meta, keep):
        self.path, self.keep = Path(path), keep
        # Through JSON, to fail now if it cannot and to compare with what was read from JSON.
        self.meta = json.loads(json.dumps(meta, allow_nan=False))

    def resume(self, tensors):
        """Copy the newest checkpoint, if there is one, into a dict of tensors.

        Raises CheckpointError: all are broken, another model, config or data, and as `restore`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(".*.tmp"):  # of a killed `atomic`
            leftover.unlink()
        if (path := latest(self.path)) is None:
            return
        found, meta = load(path)
        ours, theirs = (
            {**{key: m.get(key) for key in ("model", "data", "labelled")}, **m.get("config", {})}
            for m in (self.meta, meta)
        )
        for key in sorted(ours.keys() | theirs.keys()):
            expected, got = ours.get(key, "nothing"), theirs.get(key, "nothing")
            if got != expected:
                raise CheckpointError(f"resume: {path}: {key} expected {expected!r}, got {got!r}")
        restore(tensors, found, path)

    def save(self, step, model, state):
        """Write both files of a step from tensors by name; only the newest `keep` states stay."""
        path = self.path / f"step-{step:08d}.safetensors"
        # The model first, so that it is never older than a checkpoint from which a run goes on.
        save(self.path / "model.safetensors", model, {**self.meta, "step": step})
        save(path, state, {**self.meta, "step": step})
        complete = [other for other in _checkpoints(self.path) if other <= path]
        for old in complete[: -self.keep]:
            old.unlink()


def latest(run):
    """Path of the newest complete checkpoint in a run's folder, None where there is none.

    Warns of a broken one that it skips. Raises CheckpointError where all are broken.
    """
    paths = _checkpoints(run)
    for path in reversed(paths):
        try:
            load(path)
            return path
        except CheckpointError as error:
            warnings.warn(f"skipped a broken checkpoint: {error}", stacklevel=2)
    if paths:
        raise CheckpointError(f"latest: {run}: each of the {len(paths)} checkpoints is broken")
    return None


def _checkpoints(run):
    return sorted(Path(run).glob("step-????????.safetensors"))


def _check(name, expected, got, path):
    for what, wanted, found in (
        ("shape", tuple(expected.shape), tuple(got.shape)),
        ("dtype", expected.dtype, got.dtype),
    ):
        if found != wanted:
            raise CheckpointError(
                f"restore: {path}: {name!r}: expected {what} {wanted}, got {found}"
            )
    if not torch.isfinite(got).all():
        raise CheckpointError(f"restore: {path}: {name!r}: expected finite values, got NaN or Inf")


def _header(file, size, path):
    """The JSON at the file's start, after its length (8 bytes, little endian)."""
    if size < 8:
        raise CheckpointError(f"load: {path}: expected at least 8 bytes, got {size}")
    length, limit = int.from_bytes(file.read(8), "little"), min(size - 8, _HEADER_LIMIT)
    if length > limit:
        raise CheckpointError(
            f"load: {path}: byte 0: expected a header of at most {limit} bytes, got {length}"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"load: {path}: byte 8: expected JSON: {error!s:.200}") from error
    except (AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(f"load: {path}: byte 8: not a safetensors header") from error
    if end != size:
        raise CheckpointError(f"load: {path}: expected {end} bytes, got {size}")
    return header


def _meta(header, path):
    text = (header.get("__metadata__") or {}).get("fastgen")
    if text is None:
        raise CheckpointError(f"load: {path}: the header's metadata has no key 'fastgen'")
    try:
        meta = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"load: {path}: metadata key 'fastgen': expected JSON: {error!s:.200}"
        ) from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"load: {path}: metadata key 'fastgen': expected a JSON object")
    return meta


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {name!r:.80} comes twice")
    return found


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")
