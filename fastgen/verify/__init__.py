"""Models held to what is known exactly about them: `fastgen verify MODEL`."""

from typing import NamedTuple

import torch


class Check(NamedTuple):
    """One thing that must hold, as text for a table."""

    name: str
    expected: str
    got: str
    ok: bool


def run(checks, each=None):
    """The `Check` that each of the functions returns, told to `each` in turn; from one seed."""
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # models this small lose by more
    try:
        with torch.random.fork_rng(devices=[]):
            for check in checks:
                torch.manual_seed(0)
                found.append(check())
                if each:
                    each(found[-1])
    finally:
        torch.set_num_threads(threads)
    return found
