"""One table at the end of a run: what was measured, beside its rivals and its limits.

`--rows FILE` appends each row to a file as soon as it is known, a line of JSON each;
`--small` takes sizes that show no more than that a benchmark works.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch
from table import markdown

import fastgen

ROWS = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--rows", type=Path, help="append each row to this file")
    parser.addoption("--small", action="store_true", help="sizes that are for trying alone")


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture
def small(request):
    return request.config.getoption("small")


@pytest.fixture
def report(request):
    """report(**columns) adds a row to the table that is printed at the end."""
    file = request.config.getoption("rows")

    def add(**columns):
        row = {"bench": request.module.__name__, "machine": machine(), "columns": columns}
        request.config.stash[ROWS].append(row)
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")

    return add


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    for bench in dict.fromkeys(row["bench"] for row in rows):
        terminalreporter.section(bench)
        terminalreporter.write_line(machine())
        terminalreporter.write_line(markdown([r["columns"] for r in rows if r["bench"] == bench]))


def machine():
    native = fastgen.kernels._op.native
    isa = native.isa() if native else "references only"
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, {isa}"
    return f"{gpu}{cpu}, torch {torch.__version__}"
