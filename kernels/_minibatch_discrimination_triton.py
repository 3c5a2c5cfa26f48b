"""`minibatch_discrimination` on Triton, forward and backward: tiles of pairs of rows.

Tensors are first turned to (P, C, rows) for the P kernels of all groups. A program has COLUMNS rows
of one batch, of one kernel, and goes over the rows of the other, ROWS at a time: it computes each
pair once for either row, so that no two programs write to one place, and sums within threads. A
pair takes 2 C operations and an exp, and the same again and C more for a gradient.
"""

import torch
import triton
import triton.language as tl

from ._triton import at, rounded
from ._tuned import constants

NARROW = [
    {"ROWS": 16, "COLUMNS": 128, "num_warps": 4},
    {"ROWS": 16, "COLUMNS": 256, "num_warps": 4},
    {"ROWS": 16, "COLUMNS": 128, "num_warps": 2},
    {"ROWS": 32, "COLUMNS": 128, "num_warps": 4},
]
CANDIDATES = {  # rows of the other batch at once, and of the program's
    "float32": NARROW,
    "bfloat16": NARROW,
    "float16": NARROW,
    "float64": [
        {"ROWS": 8, "COLUMNS": 128, "num_warps": 4},
        {"ROWS": 16, "COLUMNS": 128, "num_warps": 4},
    ],
}
FEWEST = 128  # of COLUMNS
SIZES = ["P", "C", "n", "m"]


@triton.jit
def read(x, offset, mask, WIDE: tl.constexpr):
    """x as float64 where WIDE, else as float32."""
    return tl.load(x + offset, mask=mask, other=0).to(tl.float64 if WIDE else tl.float32)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    return tl.zeros((ROWS, COLUMNS), tl.float64 if WIDE else tl.float32)


@triton.jit
def share(n, COLUMNS: tl.constexpr):
    """The kernel of this program, and its rows."""
    across = tl.cdiv(n, COLUMNS)
    i = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.program_id(0) // across, i


@triton.jit(do_not_specialize=[*SIZES, "alone"])
def forward_kernel(
    x,  # (P, C, n)
    y,  # (P, C, m)
    o,  # (P, n)
    P,
    C,
    n,
    m,
    alone,  # 1: a row and itself are no pair
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """o = the sums of exp(-distance) over the rows of y."""
    p, i = share(n, COLUMNS)
    sum = zeros(1, COLUMNS, WIDE)
    for start in range(0, m, ROWS):
        j = start + tl.arange(0, ROWS)[:, None]
        a = zeros(ROWS, COLUMNS, WIDE)
        for c in range(C):
            xi = read(x, at(at(p, C, c), n, i), i < n, WIDE)
            yj = read(y, at(at(p, C, c), m, j), j < m, WIDE)
            a += tl.abs(yj - xi)
        pair = (j < m) & ((i != j) | (alone == 0))
        sum += tl.sum(tl.where(pair, tl.exp(-a), 0), 0)[None, :]
    tl.store(o + at(p, n, i), rounded(sum, o.dtype.element_ty), mask=i < n)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x,  # (P, C, n)
    y,  # (P, C, m)
    gx,  # (P, n): what the weight of a pair takes from either row
    gy,  # (P, m)
    vx,  # (P, C, n) and (P, C, m): gradients of dx and dy, where SECOND
    vy,
    dx,  # (P, C, n): sums, 0 at first
    dgx,  # (P, n), where SECOND
    P,
    C,
    n,
    m,
    WIDE: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx from the weights of all pairs, and with SECOND the gradients of gx and of what made dx."""
    p, i = share(n, COLUMNS)
    gi = read(gx, at(p, n, i), i < n, WIDE)
    sum = zeros(1, COLUMNS, WIDE)
    for start in range(0, m, ROWS):
        j = start + tl.arange(0, ROWS)[:, None]
        a = zeros(ROWS, COLUMNS, WIDE)
        u = zeros(ROWS, COLUMNS, WIDE)
        for c in range(C):
            xi = read(x, at(at(p, C, c), n, i), i < n, WIDE)
            yj = read(y, at(at(p, C, c), m, j), j < m, WIDE)
            a += tl.abs(yj - xi)
            if SECOND:
                vi = read(vx, at(at(p, C, c), n, i), i < n, WIDE)
                vj = read(vy, at(at(p, C, c), m, j), j < m, WIDE)
                u += along(yj - xi, vi - vj)
        w = tl.where(j < m, tl.exp(-a), 0)
        if SECOND:
            w *= u
            sum += tl.sum(w, 0)[None, :]
        w *= gi + read(gy, at(p, m, j), j < m, WIDE)
        tl.debug_barrier()  # dx is read as it was written
        for c in range(C):
            xi = read(x, at(at(p, C, c), n, i), i < n, WIDE)
            yj = read(y, at(at(p, C, c), m, j), j < m, WIDE)
            to = dx + at(at(p, C, c), n, i)
            down = tl.sum(along(yj - xi, w), 0)[None, :]
            tl.store(to, tl.load(to, mask=i < n) + down, mask=i < n)
    if SECOND:
        tl.store(dgx + at(p, n, i), sum, mask=i < n)


@triton.jit
def along(d, w):
    """w times the sign of d, 0 where d is 0."""
    return tl.where(d > 0, w, tl.where(d < 0, -w, 0))


def forward(m, y, o, keep_self, groups):
    """Write o of `_minibatch_discrimination`."""
    x = turned(m, groups)
    z = x if y is None else turned(y, groups)
    out = o.new_empty(x.shape[0], x.shape[2])
    launch(forward_kernel, x, (x, z, out), z, int(y is None and not keep_self))
    back(out, o, groups)


def backward(grad, m, y, vm, vy, dgrad, dm, dy, groups):
    """Write dm and dy where they are not None, and with dgrad those of the gradients."""
    first = tuple(v if v is None else turned(v, groups) for v in (m, grad, vm))
    if y is None:
        descend(first, first, dgrad, dm, groups)
        return
    # rows of y have no sums of their own
    other = (y, y.new_zeros(y.shape[:2]), vy)
    other = tuple(v if v is None else turned(v, groups) for v in other)
    if dm is not None or dgrad is not None:
        descend(first, other, dgrad, dm, groups)
    if dy is not None:
        second = None if dgrad is None else dgrad.new_empty(y.shape[:2])
        descend(other, first, second, dy, groups)


def descend(first, other, dgrad, dm, groups):
    """Gradients of the first batch by its pairs with the other, each of numbers, g and v."""
    (x, gx, vx), (y, gy, vy) = first, other
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dx, dgx = x.new_zeros(x.shape, dtype=wide), gx.new_zeros(gx.shape, dtype=wide)
    if dgrad is not None:
        vx, vy = (v.new_zeros(v.shape) if u is None else u for u, v in ((vx, x), (vy, y)))
    tensors = (x, y, gx, gy, x if vx is None else vx, y if vy is None else vy, dx, dgx)
    launch(backward_kernel, x, tensors, y, SECOND=dgrad is not None)
    if dm is not None:
        back(dx, dm, groups)
    if dgrad is not None:
        back(dgx, dgrad, groups)


def turned(x, groups):
    """(N, B, ...) as (groups B, ..., N / groups)."""
    return x.unflatten(0, (groups, x.shape[0] // groups)).movedim(1, -1).flatten(0, 1).contiguous()


def back(x, to, groups):
    """Write (groups B, ..., N / groups) to (N, B, ...)."""
    if to.numel():
        to.copy_(x.unflatten(0, (groups, -1)).movedim(-1, 1).flatten(0, 1))


def launch(kernel, x, tensors, y, *options, **constexprs):
    P, C, n = x.shape
    chosen = {**constants("minibatch_discrimination", CANDIDATES, x.dtype, x.device), **constexprs}
    wide = x.dtype == torch.float64
    programs = P * -(-n // chosen["COLUMNS"])
    if programs:
        with torch.cuda.device_of(x):
            kernel[(programs,)](*tensors, P, C, n, y.shape[2], *options, WIDE=wide, **chosen)


def choices(dtype, device):
    """All that a launch may have."""
    chosen = constants("minibatch_discrimination", CANDIDATES, dtype, device)
    wide = dtype == torch.float64
    return [{"WIDE": wide, "SECOND": second, **chosen} for second in (False, True)]


def check_sizes(m, y, groups):
    """Raise ValueError for what 32 bits cannot count."""
    N, B, _ = m.shape
    M = N if y is None else y.shape[0]
    programs = groups * B * -(-max(N, M) // groups // FEWEST)
    for what, got in (("rows", max(N, M) + 1024), ("programs", programs)):
        if got >= 2**31:
            raise ValueError(
                f"minibatch_discrimination: expected under 2^31 {what} on a GPU, got {got}"
            )
