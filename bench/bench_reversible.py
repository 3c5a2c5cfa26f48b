"""A flow trained from its output alone, against its graph: `pytest bench/bench_reversible.py`.

Time and memory of a gradient of Real NVP's log-likelihood by its number of couplings, of 32 images
of 1 x 28 x 28, residual networks of 2 blocks of 32 channels, one thread. Memory is by how much the
peak of the process's resident set grows, in a process of its own, where what is freed is given back
at once: else holes in the heap come and go with the environment. The gradients are compared first.

    python bench/bench_reversible.py docs/memory.png

measures the memory alone and draws it, where matplotlib is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from measure import compare

from fastgen import RealNVP
from fastgen.data import write_png

B = 32
COUPLINGS = 4, 8, 16, 32


def model(couplings, reversible, norm="batch"):
    torch.manual_seed(0)
    found = RealNVP((1, 28, 28), 256, couplings - 1, 32, 2, 1, norm, reversible=reversible)
    with torch.no_grad():
        for p in found.parameters():
            p += 0.02 * torch.randn_like(p)
    return found


def step(model, x):
    loss = -model.log_prob(x).mean()
    return torch.autograd.grad(loss, [*model.parameters()])


def images():
    return 256 * torch.rand(B, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def memory(couplings, reversible):
    """MiB by which the peak grows, above that of a step with one image."""
    command = [sys.executable, __file__, str(couplings), str(int(reversible))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}  # bytes
    options = {"check": True, "capture_output": True, "text": True, "env": environment}
    return float(subprocess.run(command, **options).stdout)


def grown(couplings, reversible):
    torch.set_num_threads(1)
    flow, x = model(couplings, reversible), images()
    step(flow, x[:1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = peak()
    step(flow, x)
    return peak() - before


def peak():
    """MiB, of this process; Linux alone tells, and getrusage counts what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def draw(path):
    """A picture of the memory by the number of couplings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((6, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for reversible, name, marker, up in (
        (0, "graph of autograd", "s", 7),
        (1, "output alone", "o", -15),
    ):
        found = [memory(n, reversible) for n in COUPLINGS]
        print(name, *(f"{n}: {mib:.0f} MiB" for n, mib in zip(COUPLINGS, found, strict=True)))
        axes.plot(COUPLINGS, found, marker=marker, label=f"trained from the {name}")
        for n, mib in zip(COUPLINGS, found, strict=True):
            axes.annotate(f"{mib:.0f}", (n, mib), (0, up), textcoords="offset points", ha="center")
    axes.set(
        xlabel="couplings", ylabel="MiB", xticks=COUPLINGS, ylim=(-15, 1.15 * max(axes.get_ylim()))
    )
    axes.set_title("Memory of a training step, Real NVP, 32 images of 28 x 28", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    write_png(path, torch.from_numpy(np.array(canvas.buffer_rgba()))[..., :3].movedim(-1, 0))


@pytest.mark.parametrize("couplings", COUPLINGS)
def test_reversible(benchmark, report, couplings, small):
    torch.set_num_threads(1)
    couplings = 2 if small else couplings
    plain, own, x = model(couplings, False), model(couplings, True), images()
    pairs = [*zip(step(own, x), step(plain, x), strict=True)]
    scale = max(want.abs().max() for _, want in pairs)
    assert all((got - want).abs().max() <= 1e-4 * scale for got, want in pairs)
    runs = {"output alone": lambda: step(own, x), "graph": lambda: step(plain, x)}
    seconds = compare(runs, rounds=2 if small else 5)
    row = {"couplings": couplings, "ms": f"{1000 * seconds['output alone']:.0f}"}
    row["x graph"] = f"{seconds['output alone'] / seconds['graph']:.2f}"
    row["MiB"] = f"{memory(couplings, True):.0f}"
    row["MiB, graph"] = f"{memory(couplings, False):.0f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["output alone"], rounds=1 if small else 3)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        draw(Path(sys.argv[1]))
    else:
        print(grown(int(sys.argv[1]), bool(int(sys.argv[2]))))
