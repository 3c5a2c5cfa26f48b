"""Measuring: alternated runs, medians, and the machine's own limits in the same process."""

import statistics
import time

import torch


def compare(runs, rounds=7):
    """Median seconds of each call, the calls alternating so that all meet the same machine.

    runs: name -> callable    returns: name -> seconds
    """
    seconds = {name: [] for name in runs}
    for call in runs.values():
        call()
    for _ in range(rounds):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def reader(size, times=1):
    """A call that reads `size` bytes `times` times, as fast as torch.sum does."""
    x = torch.ones(size // 4)

    def read():
        for _ in range(times):
            x.sum()

    return read


def copier(size):
    """A call that copies `size` bytes: twice as many are moved."""
    x, y = torch.ones(size // 4), torch.empty(size // 4)
    return lambda: y.copy_(x)


def multiplier(side=384):
    """A call of 2 side^3 float32 operations on matrices that stay in the second cache."""
    a, b, c = (torch.ones(side, side) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)
