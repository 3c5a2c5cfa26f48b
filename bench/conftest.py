"""One table at the end of a run: what was measured, beside its rivals and its limits."""

import os
import platform

import pytest
import torch

import fastgen

ROWS = pytest.StashKey()


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture
def report(request):
    """report(**columns) adds a row to the table that is printed at the end."""
    return lambda **columns: request.config.stash[ROWS].append((request.module.__name__, columns))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    for module in dict.fromkeys(name for name, _ in rows):
        table = [columns for name, columns in rows if name == module]
        heads = list(dict.fromkeys(head for columns in table for head in columns))
        cells = [heads, *([str(columns.get(head, "")) for head in heads] for columns in table)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        terminalreporter.section(module)
        terminalreporter.write_line(machine())
        for row in cells:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line(line.rstrip())


def machine():
    native = fastgen.kernels._op.native
    isa = native.isa() if native else "references only"
    return f"{platform.machine()}, {os.cpu_count()} cores, {isa}, torch {torch.__version__}"
