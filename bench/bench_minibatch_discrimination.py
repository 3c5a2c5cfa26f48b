"""minibatch_discrimination against its rivals: `pytest bench/bench_minibatch_discrimination.py`.

N rows of B = 100 kernels of C = 5, as for CIFAR, and of 300 of 50, as for ImageNet (Salimans et al.
2016), one thread. Rivals are the formula in torch (naive), that under torch.compile, and
torch.cdist(p=1). A rival needs N^2 B C or N^2 B numbers several times over: where that is more than
ROOM, or takes longer than PATIENCE, it is left out, and the table says so. Values and gradients are
checked before anything is timed. On a GPU all pairs are computed for either row, and the limit is
as many operations as the peak of torch.mm in float32 has products.

The floor is arithmetic on vectors. A pair of rows takes in a kernel 3 C operations for the distance
(a difference, |.| and a sum), 13 for the exp and 2 sums; its gradients the distance and the exp
anew, 2 for the weight, and 4 C for signs of differences, times weights, in two sums. Within a batch
there are N (N - 1) / 2 pairs. The limit is as many operations a second as the peak of torch.mm has.
Peak memory is that of a process of its own, beyond what it had before the call.
"""

import functools
import subprocess
import sys

import pytest
import torch
from measure import DEVICE, compare, multiplier

from fastgen.kernels import minibatch_discrimination, minibatch_discrimination_ref

SIZES = {"CIFAR": (100, 5), "ImageNet": (300, 50)}
ROOM = 4e9  # bytes
PATIENCE = 20  # seconds of a call of a rival
RATE = 1e8  # numbers of N^2 B C a second, about the least that a rival makes
SIDE = 384


def cdist(m):
    x = m.transpose(0, 1)  # (B, N, C)
    itself = torch.eye(m.shape[0], dtype=torch.bool, device=m.device)
    return (-torch.cdist(x, x, p=1)).exp().masked_fill(itself, 0).sum(2).T


@functools.cache
def compiled():
    return torch.compile(minibatch_discrimination_ref, fullgraph=True, dynamic=False)


RIVALS = {
    "ours": lambda: minibatch_discrimination,
    "naive": lambda: minibatch_discrimination_ref,
    "cdist": lambda: cdist,
    "torch.compile": compiled,
}


def build(N, B, C, dtype="float32", device="cpu"):
    """m, so that distances are about 2, and a gradient of o."""
    torch.manual_seed(0)
    m, grad = 2 * torch.randn(N, B, C) / C, torch.randn(N, B)
    to = {"dtype": getattr(torch, dtype), "device": device}
    return m.to(**to).requires_grad_(), grad.to(**to)


def step(op, m, grad, backward=True):
    with torch.set_grad_enabled(backward):
        o = op(m)
    return [o.detach(), *torch.autograd.grad(o, m, grad)] if backward else [o]


def fits(name, N, B, C, room=ROOM, rate=RATE):
    """Whether there is room for about four of a rival's largest tensors, and time for it."""
    numbers = N * N * B * (C if name == "naive" else 1)
    return name == "ours" or (4 * 4 * numbers < room and N * N * B * C / rate < PATIENCE)


def operations(N, B, C, backward):
    pair = 3 * C + 13 + 2
    return N * (N - 1) // 2 * B * (pair + (pair + 4 * C if backward else 0))


def peak(name, N, B, C, backward):
    """Bytes that a call needs in a fresh process, beyond what there was before it."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import re, torch
import bench_minibatch_discrimination as bench
torch.set_num_threads(1)
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
op, (m, grad) = bench.RIVALS[{name!r}](), bench.build({N}, {B}, {C})
bench.step(op, *bench.build(4, {B}, {C}), {backward})
open("/proc/self/clear_refs", "w").write("5")  # the highest so far is forgotten
before = kilobytes("VmRSS")
bench.step(op, m, grad, {backward})
print(kilobytes("VmHWM") - before)"""
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.parametrize("N", [64, 256, 1024, 4096])
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_minibatch_discrimination(benchmark, report, kind, N, backward):
    torch.set_num_threads(1)
    torch._dynamo.reset()
    compiled.cache_clear()
    B, C = SIZES[kind]
    m, grad = build(N, B, C)
    ops = {name: make() for name, make in RIVALS.items() if fits(name, N, B, C)}
    want = step(minibatch_discrimination, m.double().detach().requires_grad_(), grad.double())
    for op in ops.values():
        for got, expected in zip(step(op, m, grad), want, strict=True):
            assert (got - expected).norm() <= 1e-5 * expected.norm()
    runs = {name: lambda f=op: step(f, m, grad, backward) for name, op in ops.items()}
    size = N * N * B * C
    rounds = 9 if size < 1e8 else 3 if size < 1e11 else 1
    seconds = compare({**runs, "mm": multiplier(SIDE)}, rounds)
    rate = 2 * SIDE**3 / seconds["mm"]
    row = {"B": B, "C": C, "N": N, "pass": "both" if backward else "forward"}
    row["ms"] = f"{1000 * seconds['ours']:.2f}"
    row["of the limit"] = f"{operations(N, B, C, backward) / rate / seconds['ours']:.2f}"
    row["MiB"] = f"{peak('ours', N, B, C, backward) / 2**20:.0f}"
    for name in list(RIVALS)[1:]:
        there = name in ops
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.1f}" if there else "no room or time"
        row[f"{name} MiB"] = f"{peak(name, N, B, C, backward) / 2**20:.0f}" if there else ""
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=1)


def workload(dtype, device, small):
    """A call forward and backward, for the tuner."""
    m, grad = build(16 if small else 1024, 4 if small else 100, 5, dtype, device)
    return lambda: step(minibatch_discrimination, m, grad)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "N"), [("CIFAR", 1024), ("CIFAR", 4096), ("ImageNet", 1024)])
def test_minibatch_discrimination_on_a_gpu(report, small, kind, N, dtype):
    (B, C), N = ((4, 5), N // 64) if small else (SIZES[kind], N)
    m, grad = build(N, B, C, dtype, DEVICE)
    room = ROOM if small else 0.9 * torch.cuda.mem_get_info()[0]
    names = list(RIVALS) if dtype == "float32" else ["ours"]  # some rivals have no other dtype
    ops = {name: RIVALS[name]() for name in names if fits(name, N, B, C, room, 1e11)}
    want = step(minibatch_discrimination, m.double().detach().requires_grad_(), grad.double())
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for op in ops.values():
        for got, expected in zip(step(op, m, grad), want, strict=True):
            assert (got - expected).norm() <= bound * expected.norm()
    runs = {name: lambda f=op: step(f, m, grad) for name, op in ops.items()}
    side = 256 if small else 4096
    runs["mm"] = multiplier(side, device=DEVICE)
    seconds = compare(runs, rounds=5, device=DEVICE)
    # of a pair, for each of its rows: 2 C and 2 forward, the same again and 3 C backward
    limit = N * N * B * (7 * C + 4) / (side**3 / seconds["mm"])
    row = {"dtype": dtype, "B": B, "C": C, "N": N, "ms": f"{1000 * seconds['ours']:.3f}"}
    row["of the limit"] = f"{limit / seconds['ours']:.2f}"
    for name in list(RIVALS)[1:]:
        row[f"x {name}"] = f"{seconds[name] / seconds['ours']:.1f}" if name in seconds else ""
    report(**row)
