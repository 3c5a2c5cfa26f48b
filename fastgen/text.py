"""Tables, numbers and progress in a terminal."""

import contextlib
import sys
from itertools import zip_longest


def table(rows):
    """Lines of rows of text, columns aligned, indented by two."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join("  " + line.rstrip() for line in lines)


def number(x):
    """Three significant digits: 31,200, 3.9, 0.0138."""
    return f"{float(f'{x:.3g}'):,.10g}"


def speed(per_second, rate):
    """Samples a second, and how that compares with real time at `rate` Hz, as two columns."""
    return f"{number(per_second)} samples/s", f"{number(per_second / rate)}x real time"


@contextlib.contextmanager
def progress():
    """A function that shows a line on stderr in place of the last, where that is a terminal."""

    def show(line):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")
