"""`minibatch_discrimination` on Triton, forward and backward: tiles of pairs of rows.

Tensors are first turned to (P, C, rows) for the P kernels of all groups. A program has COLUMNS rows
of one batch, of one kernel, and goes over the rows of the other, ROWS at a time: it computes each
pair once for either row, so that no two programs write to one place, and sums within threads. A
pair takes 2 C operations and an exp, and the same again and C more for a gradient.
"""

import torch
import triton
import triton.language as tl

from ._triton import at
from ._tuned import constants

CANDIDATES = {  # rows of the other batch at once, and of the program's
    "float32": [
        {"ROWS": 16, "COLUMNS": 128, "num_warps": 2},
        {"ROWS": 16, "COLUMNS": 256, "num_warps": 4},
        {"ROWS": 32, "COLUMNS": 128, "num_warps": 4},
    ],
    "float64": [
        {"ROWS": 8, "COLUMNS": 128, "num_warps": 4},
        {"ROWS": 4, "COLUMNS": 128, "num_warps": 2},
    ],
}
FEWEST = 128  # of COLUMNS
SIZES = ["C", "n", "m"]


@triton.jit
def read(x, row, width, start, lane):
    """x[row, start + lane] of (rows, width), zero outside."""
    return tl.load(x + at(row, width, start) + lane, mask=start + lane < width, other=0)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    return tl.zeros((ROWS, COLUMNS), tl.float64 if WIDE else tl.float32)


@triton.jit
def share(n, COLUMNS: tl.constexpr):
    """The kernel of this program, and from which row on it has COLUMNS."""
    across = tl.cdiv(n, COLUMNS)
    return tl.program_id(0) // across, tl.program_id(0) % across * COLUMNS


@triton.jit(do_not_specialize=[*SIZES, "alone"])
def forward_kernel(
    x,  # (P, C, n)
    y,  # (P, C, m)
    o,  # (P, n)
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
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    sum = zeros(1, COLUMNS, WIDE)
    for j in range(0, m, ROWS):
        a = zeros(ROWS, COLUMNS, WIDE)
        for c in range(C):
            xi = read(x, at(p, C, c), n, i, column)
            yj = read(y, at(p, C, c), m, j, row)
            a += tl.abs(yj - xi)
        pair = (j + row < m) & ((i + column != j + row) | (alone == 0))
        sum += tl.sum(tl.where(pair, tl.exp(-a), 0), 0)[None, :]
    to = o + at(p, n, i) + column
    tl.store(to, sum, mask=i + column < n)


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
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    gi = read(gx, p, n, i, column)
    sum = zeros(1, COLUMNS, WIDE)
    for j in range(0, m, ROWS):
        a = zeros(ROWS, COLUMNS, WIDE)
        u = zeros(ROWS, COLUMNS, WIDE)
        for c in range(C):
            xi = read(x, at(p, C, c), n, i, column)
            yj = read(y, at(p, C, c), m, j, row)
            a += tl.abs(yj - xi)
            if SECOND:
                vi = read(vx, at(p, C, c), n, i, column)
                vj = read(vy, at(p, C, c), m, j, row)
                u += along(yj - xi, vi - vj)
        w = tl.where(j + row < m, tl.exp(-a), 0)
        if SECOND:
            w *= u
            sum += tl.sum(w, 0)[None, :]
        w *= gi + read(gy, p, m, j, row)
        tl.debug_barrier()  # dx is read as it was written
        for c in range(C):
            xi = read(x, at(p, C, c), n, i, column)
            yj = read(y, at(p, C, c), m, j, row)
            to = dx + at(at(p, C, c), n, i) + column
            down = tl.sum(along(yj - xi, w), 0)[None, :]
            tl.store(to, tl.load(to, mask=i + column < n) + down, mask=i + column < n)
    if SECOND:
        tl.store(dgx + at(p, n, i) + column, sum, mask=i + column < n)


@triton.jit
def along(d, w):
    """w times the sign of d, 0 where d is 0."""
    return tl.where(d > 0, w, tl.where(d < 0, -w, 0))


def forward(m, y, o, keep_self, groups):
    """Write o of `_minibatch_discrimination`."""
    x = turned(m, groups)
    z = x if y is None else turned(y, groups)
    out = x.new_empty(x.shape[0], x.shape[2])
    launch(forward_kernel, (x, z, out), int(y is None and not keep_self))
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
    dx, dgx = x.new_zeros(x.shape), gx.new_zeros(gx.shape)
    if dgrad is not None:
        vx, vy = (v.new_zeros(v.shape) if u is None else u for u, v in ((vx, x), (vy, y)))
    tensors = (x, y, gx, gy, x if vx is None else vx, y if vy is None else vy, dx, dgx)
    launch(backward_kernel, tensors, SECOND=dgrad is not None)
    if dm is not None:
        back(dx, dm, groups)
    if dgrad is not None:
        back(dgx, dgrad, groups)


def turned(x, groups):
    """(N, B, ...) as (groups B, ..., N / groups), half precisions in float32."""
    x = x.unflatten(0, (groups, x.shape[0] // groups)).movedim(1, -1).flatten(0, 1)
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def back(x, to, groups):
    """Write (groups B, ..., N / groups) to (N, B, ...)."""
    if to.numel():
        to.copy_(x.unflatten(0, (groups, -1)).movedim(-1, 1).flatten(0, 1))


def launch(kernel, tensors, *options, **constexprs):
    x, y, *_ = tensors
    (P, C, n), m = x.shape, y.shape[2]
    chosen = constants("minibatch_discrimination", CANDIDATES, x.dtype, x.device)
    programs = P * -(-n // chosen["COLUMNS"])
    if programs:
        chosen = {"WIDE": x.dtype == torch.float64, **constexprs, **chosen}
        with torch.cuda.device_of(x):
            kernel[(programs,)](*tensors, C, n, m, *options, **chosen)


def choices(dtype, device):
    """All that a launch may have."""
    chosen = constants("minibatch_discrimination", CANDIDATES, dtype, device)
    return [
        {"WIDE": dtype == torch.float64, "SECOND": second, **chosen} for second in (False, True)
    ]


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
