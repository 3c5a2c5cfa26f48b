"""The constants of GPU kernels: bench/tune.py's winners on a device that it has seen, or defaults.

A Triton file lists what its op's constants may be: CANDIDATES, by dtype, the default first.
"""

import functools
import json
from pathlib import Path

import torch

# device: its compute capability, and op: dtype: constants
WINNERS = json.loads((Path(__file__).parent / "tuned.json").read_text())


def constants(op, candidates, dtype, device):
    """The constants of `op` on a device; `dtype` is one of torch's, or its name."""
    dtype = str(dtype).removeprefix("torch.")
    winner = WINNERS.get(device_name(device), {}).get(op, {}).get(dtype)
    return candidates[dtype][0] if winner is None else winner


@functools.cache
def device_name(device):
    """What a GPU calls itself; of the CPU, where kernels are interpreted, nothing."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""
