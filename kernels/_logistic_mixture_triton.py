"""`logistic_mixture` on Triton, forward and backward.

A program computes BLOCK places, component by component; what the sum over components needs before
gradients can be told is computed twice, which costs less than to keep it.
"""

import torch
import triton
import triton.language as tl

from ._triton import at, rounded
from ._tuned import constants

LISTED = [{"BLOCK": block, "num_warps": warps} for block, warps in ((128, 4), (256, 8), (64, 2))]
CANDIDATES = {"float32": LISTED, "bfloat16": LISTED, "float16": LISTED}  # places of a program
MOST = tl.constexpr(60.0)  # of a log-scale
LEAST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def read(x, row, T, place):
    """x[row, place] of (rows, T) in float32."""
    x = tl.load(x + at(row, T, place), mask=place < T, other=0)
    return x.to(tl.float32)


@triton.jit
def read_code(codes, c, T, place):
    return tl.load(codes + at(c, T, place), mask=place < T, other=0)


@triton.jit
def value(code, last, half):
    """A code's value in [-1, 1]."""
    return (2 * code - last).to(tl.float32) * half


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def center(p, codes, c, m, T, C, M, place, last, half):
    """The mean of color c, given the colors before."""
    mean = read(p, (1 + c) * M + m, T, place)
    for d in range(c):
        k = read(p, (1 + 2 * C + c * (c - 1) // 2 + d) * M + m, T, place)
        mean += tanh(k) * value(read_code(codes, d, T, place), last, half)
    return mean


@triton.jit
def one_less_exp(x):
    """1 - exp(-x), for x > 0."""
    series = 1 - x / 8
    for n in tl.static_range(7, 1, -1):
        series = 1 - x / n * series
    return tl.where(x < 0.5, x * series, 1 - tl.exp(-x))


@triton.jit
def mass(p, codes, c, m, T, C, M, place, last, half, floor):
    """The logarithm of color c's mass, and its slopes at the mean and at the log-scale."""
    mean = center(p, codes, c, m, T, C, M, place, last, half)
    s = read(p, (1 + C + c) * M + m, T, place)
    inside = (s >= floor) & (s <= MOST)
    rate = tl.exp(-tl.where(s < floor, floor, tl.where(s > MOST, MOST, s)))  # a NaN stays one
    code = read_code(codes, c, T, place)
    x = value(code, last, half)
    first, final = code == 0, code == last
    end = first | final
    a, b, width = rate * (x - mean + half), rate * (x - mean - half), 2 * half * rate
    ea, eb = tl.exp(-tl.abs(a)), tl.exp(-tl.abs(b))
    inner = tl.where(end, 1.0, one_less_exp(width))
    outer = tl.where(final, 1.0, 1 + ea) * tl.where(first, 1.0, 1 + eb)
    linear = tl.where(final | (a > 0), 0.0, a) - tl.where(first | (b < 0), 0.0, b)
    pa = tl.where(final, 0.0, tl.where(a > 0, ea, 1.0) / (1 + ea))  # sigmoid(-a)
    pb = tl.where(first, 0.0, tl.where(b > 0, 1.0, eb) / (1 + eb))  # sigmoid(b)
    left = tl.where(end, 0.0, width * tl.exp(-width) / inner)
    ds = tl.where(inside, b * pb - a * pa - left, 0.0)
    return linear + tl.log(inner / outer), rate * (pb - pa), ds


@triton.jit
def joint(p, codes, m, T, C, M, place, last, half, floor, most):
    """A component's logit below the largest, and with it the logarithm of all colors' masses."""
    logit = read(p, m, T, place) - most
    t = logit
    for c in range(C):
        t += mass(p, codes, c, m, T, C, M, place, last, half, floor)[0]
    return logit, t


@triton.jit
def add(x, top, sum):
    """The largest of the numbers so far and x, and the sum of exp(number - largest)."""
    larger = tl.where(x > top, x, top)
    return larger, sum * tl.exp(top - larger) + tl.exp(x - larger)


@triton.jit
def sums(p, codes, T, C, M, place, last, half, floor):
    """`add` of all components' joint probabilities; the largest logit, and the sum of weights."""
    top, most = tl.full(place.shape, LEAST, tl.float32), tl.full(place.shape, LEAST, tl.float32)
    sum, all = tl.zeros(place.shape, tl.float32), tl.zeros(place.shape, tl.float32)
    for m in range(M):
        logit = read(p, m, T, place)
        most = tl.where(logit > most, logit, most)
    for m in range(M):
        logit, t = joint(p, codes, m, T, C, M, place, last, half, floor, most)
        top, sum = add(t, top, sum)
        all += tl.exp(logit)
    return top, sum, most, all


NUMBERS = ["T", "C", "M", "last"]


@triton.jit(do_not_specialize=NUMBERS)
def forward_kernel(
    p,  # (B, K, T): params, a name that triton 3.7 takes for its own
    codes,  # (B, C, T)
    log_p,  # (B, T)
    T,
    C,
    M,
    last,  # code
    half,  # the distance of values
    floor,
    BLOCK: tl.constexpr,
):
    """log_p = the logarithm of the sum over components."""
    blocks = tl.cdiv(T, BLOCK)
    b, place = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    p += at(b, (1 + 2 * C + C * (C - 1) // 2) * M, 0) * T
    codes += at(b, C, 0) * T
    top, sum, _most, all = sums(p, codes, T, C, M, place, last, half, floor)
    y = top + (tl.log(sum) - tl.log(all))
    tl.store(log_p + at(b, T, place), rounded(y, log_p.dtype.element_ty), mask=place < T)


@triton.jit
def write(x, row, T, place, v):
    tl.store(x + at(row, T, place), rounded(v, x.dtype.element_ty), mask=place < T)


@triton.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    dlog_p,  # (B, T)
    p,  # (B, K, T)
    codes,  # (B, C, T)
    dp,  # (B, K, T)
    T,
    C,
    M,
    last,
    half,
    floor,
    BLOCK: tl.constexpr,
):
    """dp, the gradient: dlog_p times a component's share of p times the slopes of its logarithm."""
    blocks = tl.cdiv(T, BLOCK)
    b, place = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    rows = at(b, (1 + 2 * C + C * (C - 1) // 2) * M, 0)
    p, dp, codes = p + rows * T, dp + rows * T, codes + at(b, C, 0) * T
    top, sum, most, all = sums(p, codes, T, C, M, place, last, half, floor)
    g = read(dlog_p, b, T, place)
    for m in range(M):
        logit, t = joint(p, codes, m, T, C, M, place, last, half, floor, most)
        r = tl.exp(t - top) / sum * g
        write(dp, m, T, place, r - tl.exp(logit) / all * g)
        for c in range(C):
            _log_p, dmean, ds = mass(p, codes, c, m, T, C, M, place, last, half, floor)
            write(dp, (1 + c) * M + m, T, place, r * dmean)
            write(dp, (1 + C + c) * M + m, T, place, r * ds)
            for d in range(c):
                row = (1 + 2 * C + c * (c - 1) // 2 + d) * M + m
                x = value(read_code(codes, d, T, place), last, half)
                k = tanh(read(p, row, T, place))
                write(dp, row, T, place, r * dmean * x * (1 - k * k))


def forward(params, codes, log_p, classes, floor):
    """Write log_p of `_logistic_mixture`."""
    launch(forward_kernel, params, codes, (params, codes, log_p), classes, floor)


def backward(dlog_p, params, codes, dparams, classes, floor):
    """Write dparams of `_logistic_mixture_backward`."""
    launch(backward_kernel, params, codes, (dlog_p, params, codes, dparams), classes, floor)


def launch(kernel, params, codes, tensors, classes, floor):
    (B, C), K, T = codes.shape[:2], params.shape[1], params.shape[2:].numel()
    M, chosen = K // (1 + 2 * C + C * (C - 1) // 2), choose(params)
    if B * T:
        with torch.cuda.device_of(params):
            kernel[(B * -(-T // chosen["BLOCK"]),)](
                *tensors, T, C, M, classes - 1, 1 / (classes - 1), floor, **chosen
            )


def check_sizes(params):
    """Raise ValueError for what 32 bits cannot count: places, rows and programs."""
    (B, K), T, block = params.shape[:2], params.shape[2:].numel(), choose(params)["BLOCK"]
    most = {"places": T + block, "rows": K, "programs": B * -(-T // block)}
    for name, number in most.items():
        if number >= 2**31:
            raise ValueError(f"logistic_mixture: expected under 2^31 {name} on a GPU, got {number}")


def choose(params):
    """The constants for a dtype and a device."""
    return constants("logistic_mixture", CANDIDATES, params.dtype, params.device)


def choices(dtype, device):
    """All that a launch may have."""
    return [constants("logistic_mixture", CANDIDATES, dtype, device)]
