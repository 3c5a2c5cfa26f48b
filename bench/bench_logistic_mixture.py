"""logistic_mixture against its rivals: `pytest bench/bench_logistic_mixture.py`.

Images as PixelCNN++ has them (16 of 32 x 32, 3 colors, 10 components: 100 numbers a pixel) and
sound (4 x 4,096 samples, 10 components). Two floors: `copy` moves what must be moved, forward the
numbers in, backward in again and their gradients out; `exp` takes as many exponentials by torch.exp
as there are numbers, though the math needs more. Values and gradients of ours are within 1e-5 of
float64 before anything is timed, and each row says how far they and those of torch.compile are,
whose expm1 is 6e-5 off.
"""

import pytest
import torch
from measure import DEVICE, compare

from fastgen.kernels import logistic_mixture, logistic_mixture_ref

SIZES = {  # B, C, places, classes, floor
    "images": (16, 3, (32, 32), 256, -7.0),
    "sound": (4, 1, (4096,), 65536, -60.0),
}
M = 10
GPU = {"images": 256, "sound": 64}  # B


def build(name, B=None, dtype="float32", device="cpu"):
    """params, codes, classes and floor, and a gradient of log p; params take gradients."""
    torch.manual_seed(0)
    own, C, places, classes, floor = SIZES[name]
    B, to = B or own, {"dtype": getattr(torch, dtype), "device": device}
    params = torch.randn(B, 1 + 2 * C + C * (C - 1) // 2, M, *places)
    params[:, 1 + C : 1 + 2 * C] -= 2
    near = params[:, 1 : 1 + C].mean(2).clamp(-1, 1)
    codes = ((near + 1) * ((classes - 1) / 2)).round().long().to(device)
    params = params.flatten(1, 2).to(**to).requires_grad_()
    return params, codes, classes, floor, torch.randn(B, *places).to(**to)


def step(network, params, codes, classes, floor, dlog_p, backward=True):
    with torch.set_grad_enabled(backward):
        log_p = network(params, codes, classes, floor=floor)
    if not backward:
        return [log_p]
    return [log_p.detach(), *torch.autograd.grad(log_p, params, dlog_p)]


def error(got, want):
    """The largest of what is off, each by its norm."""
    pairs = zip(got, want, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def rivals():
    torch._dynamo.reset()
    compiled = torch.compile(logistic_mixture_ref, fullgraph=True, dynamic=False)
    return {"ours": logistic_mixture, "eager": logistic_mixture_ref, "torch.compile": compiled}


def floors(params, backward):
    """Calls that move, or take exponentials, as the docstring says."""
    x, y = params.detach().flatten(), torch.empty_like(params).flatten()

    def copy():
        x.sum()
        if backward:
            y.copy_(x)

    return {"copy": copy, "exp": lambda: [torch.exp(x, out=y) for _ in range(1 + backward)]}


def workload(dtype, device, small):
    """A call, forward and backward, for the tuner."""
    inputs = build("images", 1 if small else GPU["images"], dtype, device)
    return lambda: step(logistic_mixture, *inputs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_logistic_mixture(benchmark, report, backward, name, threads):
    torch.set_num_threads(threads)
    inputs, networks = build(name), rivals()
    wide = [v.detach().double() for v in (inputs[0], inputs[-1])]
    want = step(logistic_mixture_ref, wide[0].requires_grad_(), *inputs[1:4], wide[1], backward)
    errors = {n: error(step(f, *inputs, backward), want) for n, f in networks.items()}
    assert max(errors["ours"], errors["eager"]) <= 1e-5, errors
    assert errors["torch.compile"] <= 1e-3, errors
    runs = {n: lambda f=f: step(f, *inputs, backward) for n, f in networks.items()}
    seconds = compare({**runs, **floors(inputs[0], backward)}, rounds=15)
    row = {"of": name, "pass": "both" if backward else "forward", "threads": threads}
    row["ms"] = f"{1000 * seconds['ours']:.2f}"
    for other in list(seconds)[1:]:
        row[f"x {other}"] = f"{seconds[other] / seconds['ours']:.2f}"
    row |= {f"error, {n}": f"{v:.0e}" for n, v in errors.items() if n != "eager"}
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(runs["ours"], rounds=3)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SIZES)
def test_logistic_mixture_on_a_gpu(report, small, name, dtype):
    inputs, networks = build(name, 1 if small else GPU[name], dtype, DEVICE), rivals()
    wide = [v.detach().double() for v in (inputs[0], inputs[-1])]
    want = step(logistic_mixture_ref, wide[0].requires_grad_(), *inputs[1:4], wide[1])
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for got, expected in zip(step(logistic_mixture, *inputs), want, strict=True):
        assert (got - expected).norm() <= bound * expected.norm()
    runs = {n: lambda f=f: step(f, *inputs) for n, f in networks.items()}
    seconds = compare({**runs, "copy": floors(inputs[0], True)["copy"]}, device=DEVICE)
    row = {"of": name, "dtype": dtype, "ms": f"{1000 * seconds['ours']:.3f}"}
    report(**row, **{f"x {n}": f"{seconds[n] / seconds['ours']:.2f}" for n in list(seconds)[1:]})
