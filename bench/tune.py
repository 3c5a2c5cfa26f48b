"""Choose the constants of every Triton kernel for the GPU that is here, in a budget of seconds.

    python bench/tune.py --seconds 60 --out tuned.json

Each op's candidates, by dtype, run the `workload` of its bench file: results first held to the
default's, then times of all in turn. What fails, spills or differs is skipped; what there was no
time for is told. OUT is kernels/tuned.json with this device's winners, to be copied over it; it is
written after each dtype of each op, so a run that is cut off keeps what it found.
"""

import argparse
import contextlib
import importlib
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import aot
import torch
from measure import DEVICE, timed
from table import markdown
from triton.runtime import JITFunction

from fastgen.kernels import _tuned

ROUNDS = 5
GAIN = 0.98  # of the default's time: what takes longer is not worth another choice
BOUND = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}


def select(candidates, prepare, clock, left):
    """The best of the candidates, the default first; it stays unless another beats it by GAIN.

    prepare(candidate) returns a call, or raises RuntimeError with why there is none; clock(call)
    returns seconds; left() what remains of the budget.
    returns: the place of the winner, and a dict of each place's seconds, or of why it has none
    """
    told, calls = {}, {}
    for i, candidate in enumerate(candidates):
        if left() <= 0:
            told[i] = "not tried: no time left"
            continue
        try:
            calls[i] = prepare(candidate)
        except RuntimeError as error:
            told[i] = str(error)
    times = {i: [] for i in calls}
    for round in range(ROUNDS):
        for i, call in calls.items():
            if round == 0 or left() > 0:
                times[i].append(clock(call))
    told |= {i: statistics.median(seconds) for i, seconds in times.items()}
    best = min(calls, key=told.get, default=0)
    if 0 in calls and told[best] > GAIN * told[0]:
        best = 0
    return best, told


class Tuner:
    """Prepares the calls of an op in a dtype with one candidate after another."""

    def __init__(self, op, dtype, device, small):
        self.op, self.dtype, self.device, self.small = op, dtype, device, small
        self.workload = importlib.import_module(f"bench_{op}").workload
        self.want = None

    @contextlib.contextmanager
    def choosing(self, candidate):
        name = _tuned.device_name(torch.device(self.device))
        winners = {name: {self.op: {self.dtype: candidate}}}
        with mock.patch.dict(_tuned.WINNERS, winners):
            yield

    def prepare(self, candidate):
        try:
            with self.choosing(candidate), spills() as found:
                work = self.workload(self.dtype, self.device, self.small)
                got = [v.float() for v in work()]
        except Exception as error:  # whatever it is: the next candidate may do
            raise RuntimeError(
                f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            ) from None
        if any(found):
            raise RuntimeError("spills registers")
        if self.want is None:
            self.want = got
        bound = BOUND[self.dtype]
        for a, b in zip(got, self.want, strict=True):
            if not self.close(a, b, bound):
                raise RuntimeError("differs from the default")

        def call():
            with self.choosing(candidate):
                work()

        return call

    @staticmethod
    def close(a, b, bound):
        return bool((a - b).norm() <= bound * b.norm())


@contextlib.contextmanager
def spills():
    """Within, lists how many bytes each kernel that is launched spills."""
    run, found = JITFunction.run, []

    def watched(*args, **options):
        binary = run(*args, **options)
        found.append(getattr(binary, "n_spills", 0) or 0)
        return binary

    with mock.patch.object(JITFunction, "run", watched):
        yield found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--small", action="store_true", help="sizes that are for trying alone")
    parser.add_argument("--out", type=Path, default="tuned.json")
    options = parser.parse_args()
    if DEVICE == "cpu":
        raise SystemExit("tune: no GPU: torch.cuda.is_available() is False")
    winners, end = dict(_tuned.WINNERS), time.monotonic() + options.seconds
    major, minor = torch.cuda.get_device_capability()
    mine = {"capability": 10 * major + minor}
    winners[torch.cuda.get_device_name()] = mine
    jobs = [
        (op, file, dtype) for op, file in aot.triton_files().items() for dtype in file.CANDIDATES
    ]
    for done, (op, file, dtype) in enumerate(jobs):
        stop = time.monotonic() + (end - time.monotonic()) / (len(jobs) - done)
        listed, tuner = file.CANDIDATES[dtype], Tuner(op, dtype, DEVICE, options.small)
        place, told = select(
            listed,
            tuner.prepare,
            lambda call: timed(call, DEVICE),
            lambda stop=stop: stop - time.monotonic(),
        )
        rows = [
            {"op": op, "dtype": dtype, **c, "ms or why not": tell(told[i]), "": "*" * (i == place)}
            for i, c in enumerate(listed)
        ]
        print(markdown(rows), flush=True)
        mine.setdefault(op, {})[dtype] = listed[place]
        options.out.write_text(json.dumps(winners, indent=1) + "\n")
        del tuner
        torch.cuda.empty_cache()


def tell(seconds):
    return seconds if isinstance(seconds, str) else f"{1000 * seconds:.3f}"


if __name__ == "__main__":
    main()
