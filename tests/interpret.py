"""Checks of GPU kernels, for Triton's interpreter and for a GPU where there is one.

Whether a kernel is interpreted is settled when it is defined, so a child process runs the checks.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch

PATHS = [str(Path(__file__).parents[1] / name) for name in ("tests", "bench")]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


class Checks(dict):
    """Functions by name, each put there as a decorator puts it."""

    def __call__(self, fn):
        self[fn.__name__] = fn
        return fn

    def run(self):
        """Call each, and print a line of JSON: what went wrong in it, or nothing."""
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        failures = {}
        for name, fn in self.items():
            try:
                fn()
                failures[name] = ""
            except Exception:
                failures[name] = traceback.format_exc()
        print(json.dumps(failures))


def interpret(file):
    """What `Checks.run` printed in a child that interprets kernels and runs `file`."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # an empty part would be the folder to be in, whose ./fastgen may not be the package
    environment["PYTHONPATH"] = os.pathsep.join([*PATHS, *filter(None, given)])
    command = [sys.executable, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
