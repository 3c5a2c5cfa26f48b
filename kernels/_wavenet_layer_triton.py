"""`wavenet_layer` on Triton, forward and backward.

A program computes ROWS channels of COLUMNS samples. Weights' gradients are sums over spans of
samples, a program a span, then a sum of those: the same bits in every run.
"""

import torch
import triton
import triton.language as tl

from ._triton import INTERPRET, along, at, dot, down, rounded, share
from ._tuned import constants

CHUNK = tl.constexpr(1024)  # a span of samples is a multiple
SPANS = 512  # about how many there are at most
HALF = [
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "STAGES": 3, "num_warps": 8},
    {"ROWS": 64, "COLUMNS": 128, "DEPTH": 64, "STAGES": 3, "num_warps": 8},
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "STAGES": 4, "num_warps": 4},
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "STAGES": 2, "num_warps": 4},
]
CANDIDATES = {  # rows and columns of a program, terms of a product at once, loads on their way
    "float32": [
        {"ROWS": 32, "COLUMNS": 64, "DEPTH": 16, "STAGES": 3, "num_warps": 8},
        {"ROWS": 32, "COLUMNS": 128, "DEPTH": 16, "STAGES": 3, "num_warps": 8},
        {"ROWS": 64, "COLUMNS": 64, "DEPTH": 16, "STAGES": 3, "num_warps": 8},
        {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "STAGES": 2, "num_warps": 8},
        {"ROWS": 32, "COLUMNS": 64, "DEPTH": 16, "STAGES": 3, "num_warps": 4},
    ],
    "bfloat16": HALF,
    "float16": HALF,
}


@triton.jit
def multiple(n, UNIT: tl.constexpr):
    """n, which UNIT divides, so that the compiler knows it."""
    return n // UNIT * UNIT


@triton.jit
def read(x, row, rows, column, columns):
    """x[row, column] of (rows, columns), zero outside."""
    mask = (row < rows) & (column >= 0) & (column < columns)
    x = tl.load(x + at(row, columns, column), mask=mask, other=0)
    if INTERPRET:  # the interpreter would compute on the bits of bfloat16
        x = x.to(tl.float32)
    return x


@triton.jit
def write(x, value, row, rows, column, columns):
    """x[row, column] = value of (rows, columns), nothing outside."""
    mask = (row < rows) & (column < columns)
    tl.store(x + at(row, columns, column), rounded(value, x.dtype.element_ty), mask=mask)


@triton.jit
def upsample(cond, row, rows, t, F, hop):
    """cond (rows, F) between the frames around t, the last one held."""
    left = tl.minimum(t // hop, F - 1)
    a = read(cond, row, rows, left, F).to(tl.float32)
    b = read(cond, row, rows, tl.minimum(left + 1, F - 1), F).to(tl.float32)
    return a + (t % hop).to(tl.float32) / hop * (b - a)


@triton.jit(do_not_specialize=["T", "R", "H", "K", "F", "hop", "dilation", "save"])
def gate_kernel(
    x,  # (B, R, T)
    weight,  # (K, 2H, R)
    bias,  # (2H,)
    cond,  # (B, 2H, F)
    gates,  # (B, 2H, T) where they are saved
    h,  # (B, H, T)
    T,
    R,
    H,
    K,
    F,
    hop,
    dilation,
    save,
    UNIT: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """gates = tanh and sigmoid of the convolution, h their product."""
    T, R, H = multiple(T, UNIT), multiple(R, UNIT), multiple(H, UNIT)
    dilation = multiple(dilation, STEP)
    b, i, t = share(tl.program_id(0), H, T, ROWS // 2, COLUMNS)
    # the tanh of ROWS / 2 channels, then their sigmoid
    j, t = down(0, ROWS), along(t, COLUMNS)
    channel = i + j % (ROWS // 2)
    row = tl.where(channel < H, j // (ROWS // 2) * H + channel, 2 * H)
    a = tl.zeros((ROWS, COLUMNS), tl.float32)
    blocks = tl.cdiv(R, DEPTH)
    for n in tl.range(0, K * blocks, num_stages=STAGES):
        k, r = n // blocks, n % blocks * DEPTH
        w = read(weight + at(k, 2 * H, 0) * R, row, 2 * H, along(r, DEPTH), R)
        y = read(x + at(b, R, 0) * T, down(r, DEPTH), R, t - (K - 1 - k) * dilation, T)
        a = dot(w, y, a)
    a += read(bias, row, 2 * H, 0, 1).to(tl.float32)
    if F > 0:
        a += upsample(cond + at(b, 2 * H, 0) * F, row, 2 * H, t, F, hop)
    sigmoid = j >= ROWS // 2
    a = tl.sigmoid(tl.where(sigmoid, a, 2 * a))
    a = tl.where(sigmoid, a, 2 * a - 1)
    if save > 0:
        write(gates + at(b, 2 * H, 0) * T, a, row, 2 * H, t, T)
    f, g = tl.split(tl.permute(tl.reshape(a, (2, ROWS // 2, COLUMNS)), (1, 2, 0)))
    write(h + at(b, H, 0) * T, f * g, down(i, ROWS // 2), H, t, T)


@triton.jit(do_not_specialize=["T", "R", "H", "S"])
def add_kernel(
    h,  # (B, H, T)
    x,  # (B, R, T)
    skip,  # (B, S, T)
    res_weight,  # (R, H)
    res_bias,  # (R,)
    skip_weight,  # (S, H)
    skip_bias,  # (S,)
    out,  # (B, R, T)
    skip_out,  # (B, S, T)
    T,
    R,  # 0 without a residual
    H,
    S,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = x + res_weight h + res_bias, skip_out = skip + skip_weight h + skip_bias."""
    T, R, H, S = multiple(T, UNIT), multiple(R, UNIT), multiple(H, UNIT), multiple(S, UNIT)
    first = tl.cdiv(R, ROWS) * ROWS  # where the rows of skip begin
    b, i, t = share(tl.program_id(0), first + S, T, ROWS, COLUMNS)
    res = i < first
    rows, i = tl.where(res, R, S), tl.where(res, i, i - first)
    weight = tl.where(res, res_weight, skip_weight)
    bias = tl.where(res, res_bias, skip_bias)
    y, to = tl.where(res, x, skip), tl.where(res, out, skip_out)
    i, t = down(i, ROWS), along(t, COLUMNS)
    sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in tl.range(0, tl.cdiv(H, DEPTH), num_stages=STAGES):
        v = read(h + at(b, H, 0) * T, down(n * DEPTH, DEPTH), H, t, T)
        sum = dot(read(weight, i, rows, along(n * DEPTH, DEPTH), H), v, sum)
    sum += read(bias, i, rows, 0, 1).to(tl.float32)
    sum += read(y + at(b, rows, 0) * T, i, rows, t, T).to(tl.float32)
    write(to + at(b, rows, 0) * T, sum, i, rows, t, T)


@triton.jit(do_not_specialize=["T", "R", "H", "S"])
def dgate_kernel(
    dout,  # (B, R, T)
    dskip,  # (B, S, T)
    gates,  # (B, 2H, T)
    res_weight,  # (R, H)
    skip_weight,  # (S, H)
    da,  # (B, 2H, T)
    h,  # (B, H, T)
    T,
    R,  # 0 without a residual
    H,
    S,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """da, the gradient of what tanh and sigmoid are taken of; h again."""
    T, R, H, S = multiple(T, UNIT), multiple(R, UNIT), multiple(H, UNIT), multiple(S, UNIT)
    b, i, t = share(tl.program_id(0), H, T, ROWS, COLUMNS)
    dh = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.cdiv(R, DEPTH)
    for n in tl.range(0, first + tl.cdiv(S, DEPTH), num_stages=STAGES):
        res = n < first
        rows, r = tl.where(res, R, S), tl.where(res, n, n - first) * DEPTH
        weight, dy = tl.where(res, res_weight, skip_weight), tl.where(res, dout, dskip)
        dy = read(dy + at(b, rows, 0) * T, down(r, DEPTH), rows, along(t, COLUMNS), T)
        dh = dot(tl.trans(read(weight, down(r, DEPTH), rows, along(i, ROWS), H)), dy, dh)
    i, t = down(i, ROWS), along(t, COLUMNS)
    gates += at(2 * b, H, 0) * T
    f = read(gates, i, H, t, T).to(tl.float32)
    g = read(gates + at(H, T, 0), i, H, t, T).to(tl.float32)
    da += at(2 * b, H, 0) * T
    write(da, dh * g * (1 - f * f), i, H, t, T)
    write(da + at(H, T, 0), dh * f * g * (1 - g), i, H, t, T)
    write(h + at(b, H, 0) * T, f * g, i, H, t, T)


@triton.jit(do_not_specialize=["T", "R", "H", "K", "dilation", "res"])
def dx_kernel(
    da,  # (B, 2H, T)
    weight,  # (K, 2H, R)
    dout,  # (B, R, T)
    dx,  # (B, R, T)
    T,
    R,
    H,
    K,
    dilation,
    res,  # whether there is a residual
    UNIT: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dx[t] = dout[t] + sum_k weight[k]^T da[t + (K - 1 - k) dilation]."""
    T, R, G = multiple(T, UNIT), multiple(R, UNIT), 2 * multiple(H, UNIT)
    dilation = multiple(dilation, STEP)
    b, i, t = share(tl.program_id(0), R, T, ROWS, COLUMNS)
    sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    blocks = tl.cdiv(G, DEPTH)
    for n in tl.range(0, K * blocks, num_stages=STAGES):
        k, r = n // blocks, down(n % blocks * DEPTH, DEPTH)
        s = along(t + (K - 1 - k) * dilation, COLUMNS)
        w = read(weight + at(k, G, 0) * R, r, G, along(i, ROWS), R)
        sum = dot(tl.trans(w), read(da + at(b, G, 0) * T, r, G, s, T), sum)
    i, t = down(i, ROWS), along(t, COLUMNS)
    if res > 0:
        sum += read(dout + at(b, R, 0) * T, i, R, t, T).to(tl.float32)
    write(dx + at(b, R, 0) * T, sum, i, R, t, T)


@triton.jit(do_not_specialize=["T", "rows", "columns", "K", "dilation", "span"])
def dweight_kernel(
    dy,  # (B, rows, T)
    x,  # (B, columns, T)
    dweight,  # (B, spans, K, rows, columns)
    dbias,  # (B, spans, rows)
    T,
    rows,
    columns,
    K,
    dilation,
    span,  # in CHUNK
    UNIT: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dweight[k] = sum_t dy[t] x[t - (K - 1 - k) dilation]^T, dbias = sum_t dy[t], in a span."""
    T, dilation, span = multiple(T, UNIT), multiple(dilation, STEP), span * CHUNK
    part, i, j = share(tl.program_id(0), rows, K * tl.cdiv(columns, ROWS), ROWS, 1)
    k, j = j % K, j // K * ROWS
    b, t = part // tl.cdiv(T, span), part % tl.cdiv(T, span) * span
    i = down(i, ROWS)
    sum = tl.zeros((ROWS, ROWS), tl.float32)
    total = tl.zeros((ROWS, DEPTH), tl.float32)
    for n in tl.range(0, tl.cdiv(tl.minimum(span, T - t), DEPTH), num_stages=STAGES):
        s = t + n * DEPTH
        u = read(dy + at(b, rows, 0) * T, i, rows, along(s, DEPTH), T)
        s = along(s - (K - 1 - k) * dilation, DEPTH)
        v = read(x + at(b, columns, 0) * T, down(j, ROWS), columns, s, T)
        sum = dot(u, tl.trans(v), sum)
        total += u.to(tl.float32)
    write(dweight + at(at(part, K, k), rows, 0) * columns, sum, i, rows, along(j, ROWS), columns)
    if (k == 0) & (j == 0):
        write(dbias + at(part, rows, 0), tl.sum(total, 1, keep_dims=True), i, rows, 0, 1)


@triton.jit(do_not_specialize=["T", "G", "F", "hop"])
def dcond_kernel(
    da,  # (B, G, T)
    dcond,  # (B, G, F)
    T,
    G,
    F,
    hop,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dcond[f]: da summed with the weight that frame f has in the samples around it."""
    T = multiple(T, UNIT)
    b, i, f = share(tl.program_id(0), G, F, ROWS, 1)
    i = down(i, ROWS)
    start = at(tl.maximum(f - 1, 0), hop, 0)
    end = tl.where(f == F - 1, T, tl.minimum(at(f + 1, hop, 0), T))
    sum = tl.zeros((ROWS, 1), tl.float32)
    for s in tl.range(start, end, COLUMNS):
        t = along(tl.cast(s, tl.int32), COLUMNS)
        t = tl.where(t < end, t, T)
        left = tl.minimum(t // hop, F - 1)
        fraction = (t % hop).to(tl.float32) / hop
        weight = tl.where(left == f, 1 - fraction, 0)
        weight += tl.where(tl.minimum(left + 1, F - 1) == f, fraction, 0)
        sum += tl.sum(weight * read(da + at(b, G, 0) * T, i, G, t, T), 1, keep_dims=True)
    write(dcond + at(b, G, 0) * F, sum, i, G, f, F)


def forward(
    x,
    skip,
    weight,
    bias,
    res_weight,
    res_bias,
    skip_weight,
    skip_bias,
    cond,
    out,
    skip_out,
    gates,  # or None
    hop,
    dilation,
):
    """Write out, skip_out and gates of `_wavenet_layer`."""
    (B, R, T), (G, _, K), S, res = x.shape, weight.shape, skip.shape[1], res_weight is not None
    H, F, save = G // 2, 0 if cond is None else cond.shape[2], gates is not None
    dilation, h, chosen = min(dilation, T), x.new_empty(B, H, T), choose(x, T, R, H, S, dilation)
    rows, columns = chosen["ROWS"], chosen["COLUMNS"]
    launch(
        gate_kernel,
        B * blocks(H, rows // 2) * blocks(T, columns),
        *(x, weight.permute(2, 0, 1), bias, cond if F else bias, gates if save else h, h),
        *(T, R, H, K, F, hop, dilation, int(save)),
        **chosen,
    )
    launch(
        add_kernel,
        B * (blocks(R * res, rows) + blocks(S, rows)) * blocks(T, columns),
        *(h, x, skip, res_weight if res else skip_weight, res_bias if res else skip_bias),
        *(skip_weight, skip_bias, out if res else skip_out, skip_out, T, R * res, H, S),
        **chosen,
    )


def backward(
    dout,  # or None
    dskip,
    gates,
    x,
    weight,
    res_weight,
    skip_weight,
    dx,  # or None
    dweights,  # or None
    dcond,  # or None
    hop,
    dilation,
):
    """Write what `_wavenet_layer_backward` returns."""
    (B, R, T), (G, _, K), (S, H), res = x.shape, weight.shape, skip_weight.shape, dout is not None
    da, h, dilation = x.new_empty(B, G, T), x.new_empty(B, H, T), min(dilation, T)
    chosen = choose(x, T, R, H, S, dilation)
    rows, columns = chosen["ROWS"], chosen["COLUMNS"]
    launch(
        dgate_kernel,
        B * blocks(H, rows) * blocks(T, columns),
        *(dout if res else dskip, dskip, gates, res_weight if res else skip_weight, skip_weight),
        *(da, h, T, R * res, H, S),
        **chosen,
    )
    if dx is not None:
        launch(
            dx_kernel,
            B * blocks(R, rows) * blocks(T, columns),
            *(da, weight.permute(2, 0, 1), dout if res else x, dx, T, R, H, K, dilation, int(res)),
            **chosen,
        )
    if dweights is not None:
        products = ((da, x, K), (dout, h, 1), (dskip, h, 1))
        for i, (dy, y, taps) in enumerate(products):
            if dy is not None:
                dweight(dy, y, taps, dilation, chosen, *dweights[2 * i : 2 * i + 2])
    if dcond is not None:
        F = dcond.shape[2]
        launch(dcond_kernel, B * blocks(G, rows) * F, da, dcond, T, G, F, hop, **chosen)


def dweight(dy, x, K, dilation, chosen, dweight, dbias):
    """dweight (rows, columns) or (rows, columns, K) = sum_t dy x^T, dbias = sum_t dy."""
    (B, rows, T), columns = dy.shape, x.shape[1]
    span, unit = spans(B, T), chosen["ROWS"]
    parts = B * blocks(T, span * CHUNK.value)
    sums = x.new_empty(parts, K, rows, columns, dtype=torch.float32)
    totals = x.new_empty(parts, rows, dtype=torch.float32)
    launch(
        dweight_kernel,
        parts * K * blocks(rows, unit) * blocks(columns, unit),
        *(dy, x, sums, totals, T, rows, columns, K, dilation, span),
        **chosen,
    )
    dweight.copy_(sums.sum(0).permute(1, 2, 0).view(dweight.shape))
    dbias.copy_(totals.sum(0))


def spans(B, T):
    """How many CHUNKs a span has: as many as make about SPANS spans, but none beyond T."""
    return max(1, min(B * T // (SPANS * CHUNK.value), blocks(T, CHUNK.value)))


def check_sizes(inputs, hop, dilation):
    """Raise ValueError for what 32 bits cannot count: samples, rows, and programs."""
    x, skip, weight, *_, cond = inputs
    (B, R, T), (G, _, K), S = x.shape, weight.shape, skip.shape[1]
    chosen, F = choose(x, T, R, G // 2, S, min(dilation, T)), 0 if cond is None else cond.shape[2]
    rows, columns, edge = chosen["ROWS"], chosen["COLUMNS"], CHUNK.value
    tiles = blocks(T, columns), blocks(T, spans(B, T) * CHUNK.value) * K * blocks(max(R, G), rows)
    most = {
        "samples": T + (K - 1) * min(dilation, T) + edge,
        "rows": max(B, R + S, G, K * (max(R, G) + edge)) + edge,
        "frames": max(F, hop),
        "programs": B * max(blocks(R, rows) + 2 * blocks(max(G, S), rows), 1) * max(*tiles, F),
    }
    for name, number in most.items():
        if number >= 2**31:
            raise ValueError(f"wavenet_layer: expected under 2^31 {name} on a GPU, got {number}")


def launch(kernel, programs, *args, **constants):
    """Run `programs` programs with those constants that `kernel` takes."""
    if programs:
        args = [aligned(v) if isinstance(v, torch.Tensor) else v for v in args]
        taken = (*kernel.arg_names, "num_warps")
        constants = {name: v for name, v in constants.items() if name in taken}
        with torch.cuda.device_of(args[0]):
            kernel[(programs,)](*args, **constants, num_stages=1)


def aligned(x):
    """`x`, contiguous and where loads of 16 bytes may begin."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def choose(x, *sizes):
    """The constants for a tensor's dtype and device, and for sizes, the last of them the dilation.

    UNIT elements, 16 bytes if they fit, move in a load, and STEP where it is shifted; where they do
    not fit, the constants are the default, for the others spill.
    """
    unit = 16 // x.element_size()
    unit, step = (unit if all(n % unit == 0 for n in v) else 1 for v in (sizes[:-1], sizes))
    return {**tuned(x.dtype, x.device, unit), "UNIT": unit, "STEP": step}


def choices(dtype, device):
    """All that `choose` may return."""
    unit = 16 // dtype.itemsize
    pairs = ((unit, unit), (unit, 1), (1, 1))
    return [{**tuned(dtype, device, u), "UNIT": u, "STEP": step} for u, step in pairs]


def tuned(dtype, device, unit):
    whole = constants("wavenet_layer", CANDIDATES, dtype, device)
    return whole if unit > 1 else CANDIDATES[str(dtype).removeprefix("torch.")][0]


def blocks(size, unit):
    return -(-size // unit)
