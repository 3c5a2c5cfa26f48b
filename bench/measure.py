"""Measuring: alternated runs, medians, and the machine's own limits in the same process."""

import ctypes
import statistics
import sys
import time

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.allow_tf32 = False  # float32 is what ours and all rivals compute in
FLUSH = 256 << 20  # bytes, more than a GPU's last cache has


def compare(runs, rounds=7, cold=False, device="cpu"):
    """Median seconds of each call, the calls alternating so that all meet the same machine.

    On a GPU by its own clock, from when the call's work begins to when it ends. `cold`: with
    nothing of the call's in the caches.
    runs: name -> callable    returns: name -> seconds
    """
    keep_memory()
    seconds = {name: [] for name in runs}
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device).zero_ if cold else None
    for call in runs.values():
        for _ in range(1 if device == "cpu" else 3):
            call()
    for _ in range(rounds):
        for name, call in runs.items():
            seconds[name].append(timed(call, device, flush))
    return {name: statistics.median(s) for name, s in seconds.items()}


def keep_memory():
    """Have glibc's malloc keep what is freed, as other allocators do.

    With its defaults it gives large tensors back to the system and has their pages brought again,
    of one call and not of another as its heap happens to lie: that can take longer than the call.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim, top, mmap = -1, -2, -3
        for option, value in ((trim, 2**31 - 1), (top, 64 << 20), (mmap, 32 << 20)):
            libc.mallopt(option, value)


def timed(call, device="cpu", before=None):
    """Seconds of a call, after another call that is not timed."""
    if before:
        before()
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def reader(size, times=1):
    """A call that reads `size` bytes `times` times, as fast as torch.sum does."""
    x = torch.ones(size // 4)

    def read():
        for _ in range(times):
            x.sum()

    return read


def copier(size, device="cpu"):
    """A call that copies `size` bytes: twice as many are moved."""
    x, y = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    return lambda: y.copy_(x)


def multiplier(side=384, dtype=torch.float32, device="cpu"):
    """A call of 2 side^3 operations; matrices of float32 stay in a CPU's second cache."""
    a, b, c = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)
