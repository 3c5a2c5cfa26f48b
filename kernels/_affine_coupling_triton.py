"""`affine_coupling` on Triton, forward and backward.

A program takes ROWS samples and COLUMNS numbers of what changes of each, and as many of what is
kept. A sample's logdet is a sum over its programs', in their order: the same bits in every run.
"""

import torch
import triton
import triton.language as tl

from ._triton import at, rounded
from ._tuned import constants

BOUND = tl.constexpr(80.0)
SHORT = (4, 64)  # numbers of samples that share a program
TRIED = [  # 4 numbers a thread: of 8, some maps spill
    {"SIZE": 1024, "num_warps": 8},
    {"SIZE": 512, "num_warps": 4},
    {"SIZE": 2048, "num_warps": 16},
]
CANDIDATES = {"float32": TRIED, "bfloat16": TRIED}  # numbers of a program
TANH, SIGMOID, ATAN, SOFTPLUS, EXP = (tl.constexpr(i) for i in range(5))
CODES = {"tanh": 0, "sigmoid": 1, "atan": 2, "softplus": 3, "exp": 4}


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def atan(x):
    a = tl.abs(x)
    large, middle = a > 2.4142135623730950, a > 0.41421356237309505
    # atan(a) = pi / 2 + atan(-1 / a) = pi / 4 + atan((a - 1) / (a + 1))
    above = tl.where(large, -1.0, tl.where(middle, a - 1, a))
    r = above / tl.where(large, a, tl.where(middle, a + 1, 1.0))
    base = tl.where(large, 1.5707963267948966, tl.where(middle, 0.78539816339744831, 0.0))
    q, sum = r * r, tl.zeros_like(r)
    for i in tl.static_range(9):
        sum = sum * q + (1 if i % 2 == 0 else -1) / (17 - 2 * i)
    y = base + sum * r
    return tl.where(x < 0, -y, y)


@triton.jit
def mapped(s, SCALE: tl.constexpr):
    """f(s) and its derivative."""
    if SCALE == TANH:
        f = tanh(s)
        slope = 1 - f * f
    elif SCALE == SIGMOID:
        z = s + 2
        e = tl.exp(-tl.abs(z))
        f = tl.minimum(z, 0.0) - tl.log(1 + e)
        slope = tl.where(z < 0, 1.0, e) / (1 + e)
    elif SCALE == ATAN:
        f = atan(s)
        slope = 1 / (1 + s * s)
    elif SCALE == SOFTPLUS:
        low = s < -10  # log softplus(s) = s - exp(s) / 2 + ...
        e = tl.exp(-tl.abs(s))
        y = tl.maximum(s, 0.0) + tl.log(1 + e)
        f = tl.where(low, s - e / 2, tl.log(tl.where(low, 1.0, y)))
        slope = tl.where(low, 1 - e / 2, tl.where(s > 0, 1.0, e) / ((1 + e) * y))
    else:
        f, slope = s, tl.full(s.shape, 1.0, tl.float32)
    return f, slope


@triton.jit
def read(x, place, mask):
    return tl.load(x + place, mask=mask, other=0).to(tl.float32)


@triton.jit
def write(x, value, place, mask):
    tl.store(x + place, rounded(value, x.dtype.element_ty), mask=mask)


@triton.jit
def place_in_x(k, p, first, step, P, W, odd):
    """Where number p of channel k of a part of x lies in a sample; odd: of a checkerboard."""
    half = tl.maximum(W // 2, 1)
    board = 2 * p + (p // half + odd) % 2
    return (first + step * k) * P + tl.where(W > 0, board, p)


@triton.jit
def numbers(B, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Samples (ROWS, 1), numbers of them (1, COLUMNS), and which part of a sample they are."""
    program = tl.program_id(0)
    part = program % parts
    b = program // parts * ROWS + tl.arange(0, ROWS)[:, None]
    return b, part * COLUMNS + tl.arange(0, COLUMNS)[None, :], part


@triton.jit
def copy_kept(x, y, b, q, B, kept, kept_first, step, P, W, odd, S, X):
    """y = x in numbers q of what is kept."""
    mask = (b < B) & (q < kept)
    place = at(b, X, place_in_x(q // S, q % S, kept_first, step, P, W, 1 - odd))
    tl.store(y + place, tl.load(x + place, mask=mask, other=0), mask=mask)


@triton.jit(
    do_not_specialize=[
        *("B", "C", "K", "S", "P", "W", "first", "kept_first", "step", "odd", "kept"),
        *("rows", "s_first", "t_first", "h_step", "parts", "weighted", "inverse"),
    ]
)
def coupling_kernel(
    x,  # (B, C, P)
    s,  # (B, rows, S)
    t,  # (B, rows, S)
    weight,  # (K,) where it is weighted
    y,  # (B, C, P)
    logdet,  # (B, parts)
    B,
    C,
    K,
    S,
    P,
    W,  # of a checkerboard, else 0
    first,  # channel of what changes
    kept_first,
    step,  # from one channel of a part to the next
    odd,
    kept,  # numbers
    rows,
    s_first,
    t_first,
    h_step,
    parts,
    weighted,
    inverse,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y and each part's share of the logdet."""
    b, q, part = numbers(B, parts, ROWS, COLUMNS)
    copy_kept(x, y, b, q, B, kept, kept_first, step, P, W, odd, S, C * P)
    k, p = q // S, q % S
    mask = (b < B) & (q < K * S)
    place = at(b, C * P, place_in_x(k, p, first, step, P, W, odd))
    v = read(x, place, mask)
    shift = read(t, at(b, rows * S, (t_first + h_step * k) * S + p), mask)
    f, _ = mapped(read(s, at(b, rows * S, (s_first + h_step * k) * S + p), mask), SCALE)
    if weighted > 0:
        f *= read(weight, k, mask)
    l = tl.where(f < -BOUND, -BOUND, tl.where(f > BOUND, BOUND, f))
    l = tl.where(inverse > 0, -l, l)
    e = tl.exp(l)
    write(y, tl.where(inverse > 0, (v - shift) * e, v * e + shift), place, mask)
    total = tl.sum(tl.where(mask, l, 0.0), 1, keep_dims=True)
    tl.store(logdet + at(b, parts, part), total, mask=b < B)


@triton.jit(
    do_not_specialize=[
        *("B", "C", "K", "S", "P", "W", "first", "kept_first", "step", "odd", "kept"),
        *("parts", "inverse"),
    ]
)
def shift_kernel(
    x,  # (B, C, P)
    t,  # (B, K, S)
    y,  # (B, C, P)
    B,
    C,
    K,
    S,
    P,
    W,
    first,
    kept_first,
    step,
    odd,
    kept,
    parts,
    inverse,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y of an additive coupling."""
    b, q, _ = numbers(B, parts, ROWS, COLUMNS)
    copy_kept(x, y, b, q, B, kept, kept_first, step, P, W, odd, S, C * P)
    mask = (b < B) & (q < K * S)
    place = at(b, C * P, place_in_x(q // S, q % S, first, step, P, W, odd))
    v, shift = read(x, place, mask), read(t, at(b, K * S, q), mask)
    write(y, tl.where(inverse > 0, v - shift, v + shift), place, mask)


@triton.jit(
    do_not_specialize=[
        *("B", "C", "K", "S", "P", "W", "first", "kept_first", "step", "odd", "kept"),
        *("rows", "s_first", "t_first", "h_step", "parts", "inverse", "weighted"),
        *("restore", "needs_x", "graded"),
    ]
)
def gradient_kernel(
    v,  # (B, C, P)
    s,  # (B, rows, S)
    t,  # (B, rows, S), where v is restored
    weight,  # (K,) where it is weighted
    dy,  # (B, C, P)
    dlogdet,  # (B,) where it is graded
    restored,  # (B, C, P) where it is wanted
    dx,  # (B, C, P) where it is needed
    ds,  # as s
    dt,  # as s
    dl,  # (B, K, S) of the weight, where it is weighted
    B,
    C,
    K,
    S,
    P,
    W,
    first,
    kept_first,
    step,
    odd,
    kept,
    rows,
    s_first,
    t_first,
    h_step,
    parts,
    inverse,
    weighted,
    restore,
    needs_x,
    graded,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All gradients, and what v was before: `_affine_coupling_backward` names them."""
    b, q, _ = numbers(B, parts, ROWS, COLUMNS)
    if needs_x > 0:
        copy_kept(dy, dx, b, q, B, kept, kept_first, step, P, W, odd, S, C * P)
    if restore > 0:
        copy_kept(v, restored, b, q, B, kept, kept_first, step, P, W, odd, S, C * P)
    k, p = q // S, q % S
    mask = (b < B) & (q < K * S)
    place = at(b, C * P, place_in_x(k, p, first, step, P, W, odd))
    s_place = at(b, rows * S, (s_first + h_step * k) * S + p)
    t_place = at(b, rows * S, (t_first + h_step * k) * S + p)
    f, slope = mapped(read(s, s_place, mask), SCALE)
    w = tl.full(f.shape, 1.0, tl.float32)
    if weighted > 0:
        w = read(weight, k, mask) + tl.zeros_like(f)
    m = w * f
    l = tl.where(m < -BOUND, -BOUND, tl.where(m > BOUND, BOUND, m))
    e = tl.exp(tl.where(inverse > 0, -l, l))
    u, d = read(v, place, mask), read(dy, place, mask)
    scaled = u * e  # of the coupling; of its inverse, u is what came out
    if restore > 0:
        shift = read(t, t_place, mask)
        scaled = tl.where(inverse > 0, scaled, u - shift)
        write(restored, tl.where(inverse > 0, u / e + shift, scaled / e), place, mask)
    g = tl.zeros_like(f)
    if graded > 0:
        g += read(dlogdet, b, b < B)
    g = tl.where(inverse > 0, -g - d * u, g + d * scaled)
    g = tl.where((m < -BOUND) | (m > BOUND), 0.0, g)
    if needs_x > 0:
        write(dx, d * e, place, mask)
    write(ds, g * w * slope, s_place, mask)
    write(dt, tl.where(inverse > 0, -d * e, d), t_place, mask)
    if weighted > 0:
        tl.store(dl + at(b, K * S, q), g * f, mask=mask)


def forward(x, s, t, weight, y, logdet, scale, split, swap, layout, inverse):
    """Write y and logdet of `_affine_coupling`."""
    sizes, places, chosen = schedule(x, s, scale, split, swap, layout if t is None else None)
    parts = places[-1]
    programs = blocks(len(x), chosen["ROWS"]) * parts
    if scale == "additive":
        launch(shift_kernel, programs, x, s, y, *sizes, parts, int(inverse), **chosen)
    if scale == "additive" or not x.numel():
        logdet.zero_()
        return
    sums = logdet if parts == 1 else logdet.new_empty(len(x), parts)
    launch(
        coupling_kernel,
        programs,
        *(x, s, s if t is None else t, s if weight is None else weight, y, sums),
        *(*sizes, *places, int(weight is not None), int(inverse)),
        **chosen,
    )
    if sums is not logdet:
        torch.sum(sums, 1, out=logdet)


def backward(
    v,
    s,
    t,
    weight,
    dy,
    dlogdet,
    restored,  # or None
    dx,  # or None
    ds,
    dt,  # or None: with ds
    dweight,  # or None
    scale,
    split,
    swap,
    layout,
    inverse,
):
    """Write what `_affine_coupling_backward` returns."""
    sizes, places, chosen = schedule(v, s, scale, split, swap, layout if dt is None else None)
    B, _, K, S, *_ = sizes
    dl = None if weight is None else ds.new_zeros(B, K, S, dtype=torch.float32)
    wanted = weight, restored, dx, dlogdet
    launch(
        gradient_kernel,
        blocks(B, chosen["ROWS"]) * places[-1],
        *(v, s, s if t is None else t, s if weight is None else weight, dy),
        *(v if dlogdet is None else dlogdet, v if restored is None else restored),
        *(v if dx is None else dx, ds, ds if dt is None else dt, ds if dl is None else dl),
        *(*sizes, *places, int(inverse), *(int(g is not None) for g in wanted)),
        **chosen,
    )
    if dweight is not None:
        torch.sum(dl, (0, 2), out=dweight)


def schedule(x, s, scale, split, swap, layout):
    """Sizes, places in h and parts of a sample, and constants: what both kernels take.

    layout: None where s and t lie apart
    """
    B, C, *size = x.shape
    P = size_of(size)
    W = size[1] if split == "checkerboard" else 0
    K = (C + swap) // 2 if split in ("channel", "alternate") else C
    S = P // 2 if W else P
    second = {None: 0, "st": K, "ts": K, "stst": 1, "tsts": 1}[layout]
    s_first, t_first = (0, second) if layout is None or layout[0] == "s" else (second, 0)
    first = {"channel": 0 if swap else C - K, "alternate": int(not swap)}.get(split, 0)
    kept_first = {"channel": K if swap else 0, "alternate": int(swap)}.get(split, 0)
    step = 2 if split == "alternate" else 1
    h_step = 2 if layout in ("stst", "tsts") else 1
    kept = C * P - K * S
    chosen = choose(x.dtype, x.device, scale, max(K * S, kept))
    parts = max(1, blocks(max(K * S, kept), chosen["COLUMNS"]))
    sizes = (B, C, K, max(S, 1), P, W, first, kept_first, step, int(not swap), kept)
    return sizes, (s.shape[1], s_first, t_first, h_step, parts), chosen


def check_sizes(x, s):
    """Raise ValueError for what 32 bits cannot count: numbers of a sample, samples, programs."""
    numbers = max(size_of(x.shape[1:]), size_of(s.shape[1:]))
    most = {
        "numbers in a sample": 2 * numbers + 2**13,
        "samples": len(x) + 2**13,
        "programs": len(x) * blocks(numbers, 512),
    }
    for name, number in most.items():
        if number >= 2**31:
            raise ValueError(f"affine_coupling: expected under 2^31 {name} on a GPU, got {number}")


def size_of(shape):
    """Numbers of a shape."""
    size = 1
    for n in shape:
        size *= n
    return size


def launch(kernel, programs, *args, **constants):
    """Run `programs` programs with those constants that `kernel` takes."""
    if programs and args[0].numel():  # else there is nothing to divide by
        constants = {n: v for n, v in constants.items() if n in (*kernel.arg_names, "num_warps")}
        with torch.cuda.device_of(args[0]):
            kernel[(programs,)](*args, **constants, num_stages=1)


def choose(dtype, device, scale, numbers):
    """The constants for a tensor's dtype and device, a map, and numbers of a sample."""
    tuned = constants("affine_coupling", CANDIDATES, dtype, device)
    size = tuned["SIZE"]
    columns = next((n for n in SHORT if numbers <= n), size)
    shape = {"ROWS": size // columns, "COLUMNS": columns, "num_warps": tuned["num_warps"]}
    return {"SCALE": CODES.get(scale), **shape}


def choices(dtype, device):
    """All that `choose` may return."""
    lengths = (*SHORT, SHORT[-1] + 1)
    return [choose(dtype, device, scale, n) for scale in CODES for n in lengths]


def blocks(size, unit):
    return -(-size // unit)
