"""`masked_conv2d` on Triton: a product over the live taps alone, forward and backward.

The product's inner index counts channels of the first tap, then of the next. A program computes
ROWS channels of COLUMNS pixels, or of COLUMNS weights. Weights' gradients are sums over spans of
pixels, a program a span, then a sum of those: the same bits in every run.
"""

import torch
import triton
import triton.language as tl

from ._triton import INTERPRET, along, at, dot, down, rounded, share
from ._tuned import constants

SPAN = 4096  # pixels, at least
SPANS = 64  # about how many there are at most
HALF = [
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "STAGES": 3, "num_warps": 8},
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "STAGES": 3, "num_warps": 8},
]
CANDIDATES = {  # rows and columns of a program, terms of a product at once, loads on their way
    "float32": [
        {"ROWS": 32, "COLUMNS": 64, "DEPTH": 16, "STAGES": 3, "num_warps": 8},
        {"ROWS": 64, "COLUMNS": 64, "DEPTH": 16, "STAGES": 2, "num_warps": 8},
    ],
    "bfloat16": HALF,
    "float16": HALF,
}


@triton.jit
def read(x, offset, mask):
    x = tl.load(x + offset, mask=mask, other=0)
    if INTERPRET:  # the interpreter would compute on the bits of bfloat16
        x = x.to(tl.float32)
    return x


@triton.jit
def place(channel, pixel, C, H, W, LAST: tl.constexpr):
    """Where a channel of a pixel of an image lies, in 64 bits."""
    return at(pixel, C, channel) if LAST else at(channel, H * W, pixel)


@triton.jit
def moved(pixel, tap, H, W, above, left, KW, dh, dw):
    """The pixel that a tap sees from another, and whether it is in the image."""
    i = pixel // W + (tap // KW - above) * dh
    j = pixel % W + (tap % KW - left) * dw
    return i * W + j, (i >= 0) & (i < H) & (j >= 0) & (j < W)


@triton.jit
def convolve(
    sum,  # (ROWS, COLUMNS)
    weight,  # (rows, live C)
    row,
    rows,
    x,
    pixel,
    C,
    first,  # of the C channels
    channels,  # of x in all
    H,
    W,
    live,
    above,
    left,
    KW,
    dh,
    dw,
    LAST: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """sum, and the sum over taps of weight times the pixels that they see."""
    for k in tl.range(0, tl.cdiv(live * C, DEPTH), num_stages=STAGES):
        a = k * DEPTH + tl.arange(0, DEPTH)[None, :]
        w = read(weight, at(row, live * C, a), (row < rows) & (a < live * C))
        c = k * DEPTH + tl.arange(0, DEPTH)[:, None]
        seen, inside = moved(pixel, c // C, H, W, above, left, KW, dh, dw)
        inside = inside & (c < live * C) & (pixel < H * W)
        v = read(x, place(first + c % C, seen, channels, H, W, LAST), inside)
        sum = dot(w, v, sum)
    return sum


SIZES = ["C", "O", "H", "W", "groups", "live", "above", "left", "KW", "dh", "dw"]
# one binary for every address: sizes leave no load that is known to be aligned
IMAGES = ["x", "weight", "bias", "more", "y"]


@triton.jit(do_not_specialize=[*SIZES, "biased", "added"], do_not_specialize_on_alignment=IMAGES)
def conv_kernel(
    x,  # (B, groups C, H, W), or (B, H, W, groups C) where LAST
    weight,  # (groups O, live C)
    bias,  # (groups O,) where `biased`
    more,  # as y, where `added`
    y,  # (B, groups O, H, W), or (B, H, W, groups O)
    C,  # of a group, as O is
    O,
    H,
    W,
    groups,
    live,
    above,
    left,
    KW,
    dh,  # less than 0: the transpose
    dw,
    biased,
    added,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y = more + bias + the sum over taps of weight times the pixels that they see."""
    n, i, pixel = share(tl.program_id(0), O, H * W, ROWS, COLUMNS)
    b, group, row, pixel = n // groups, n % groups, down(i, ROWS), along(pixel, COLUMNS)
    x += at(b, groups * C, 0) * (H * W)
    weight += at(group * O, live * C, 0)
    sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    taps = (live, above, left, KW, dh, dw)
    sum = convolve(
        sum, weight, row, O, x, pixel, C, group * C, groups * C, H, W, *taps, LAST, DEPTH, STAGES
    )
    if biased > 0:
        sum += read(bias, group * O + row, row < O).to(tl.float32)
    to = at(b, groups * O, 0) * (H * W) + place(group * O + row, pixel, groups * O, H, W, LAST)
    mask = (row < O) & (pixel < H * W)
    if added > 0:
        sum += read(more, to, mask).to(tl.float32)
    tl.store(y + to, rounded(sum, y.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=[*SIZES, "B", "span"],
    do_not_specialize_on_alignment=["dy", "x", "dweight"],
)
def dweight_kernel(
    dy,  # as y
    x,
    dweight,  # (spans, groups O, live C)
    B,
    C,
    O,
    H,
    W,
    groups,
    live,
    above,
    left,
    KW,
    dh,
    dw,
    span,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dweight = the sum over a span of the pixels of all images of dy times what taps see."""
    across, along = tl.cdiv(O, ROWS), tl.cdiv(live * C, COLUMNS)
    n, block = tl.program_id(0) // across, tl.program_id(0) % across
    row = block * ROWS + tl.arange(0, ROWS)[:, None]
    c = n % along * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    n = n // along
    part, group = n // groups, n % groups
    start, pixels = at(part, span, 0), H * W
    # counted from the beginning of the span's first image, in 32 bits
    first, offset = start // pixels, (start % pixels).to(tl.int32)
    end = offset + tl.minimum(span, at(B, pixels, 0) - start).to(tl.int32)
    sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.range(0, tl.cdiv(end - offset, DEPTH), num_stages=STAGES):
        p = offset + k * DEPTH + tl.arange(0, DEPTH)
        b, pixel = first + p // pixels, p % pixels
        image, q = b[None, :] * groups * O * pixels, pixel[None, :]
        mask = (row < O) & (p < end)[None, :]
        u = read(dy, image + place(group * O + row, q, groups * O, H, W, LAST), mask)
        seen, inside = moved(pixel[:, None], c // C, H, W, above, left, KW, dh, dw)
        inside = inside & (c < live * C) & (p < end)[:, None]
        image = b[:, None] * groups * C * pixels
        v = read(x, image + place(group * C + c % C, seen, groups * C, H, W, LAST), inside)
        sum = dot(u, v, sum)
    to = at(at(part, groups * O, group * O + row), live * C, c)
    tl.store(dweight + to, sum, mask=(row < O) & (c < live * C))


def forward(x, live, bias, y, k, dilation, groups, last):
    """Write y of `_masked_conv2d`."""
    weight = live.transpose(1, 2).contiguous()  # (O, live, C)
    conv(x, weight, bias, None, y, k, dilation, groups, last, choose(x))


def backward(dy, x, live, dx, dlive, k, dilation, groups, last):
    """Write dx and dlive, where they are not None, of `_masked_conv2d_backward`."""
    O, C, count = live.shape
    if dx is not None:
        weight = live.unflatten(0, (groups, O // groups)).permute(0, 2, 3, 1)  # (g, C, live, O)
        weight = weight.reshape(groups * C, count, O // groups).contiguous()
        conv(dy, weight, None, None, dx, k, [-d for d in dilation], groups, last, choose(x))
    if dlive is not None:
        dweight(dy, x, dlive, k, dilation, groups, last, choose(x))


def conv(x, weight, bias, more, y, k, dilation, groups, last, chosen):
    """y = bias + more + the taps of weight (groups O, live, C) over x; bias and more may be None.

    Transposed for dilations below 0.
    """
    B, (H, W), (O, live, C) = x.shape[0], x.shape[1:3] if last else x.shape[2:], weight.shape
    programs = blocks(O // groups, chosen["ROWS"]) * blocks(H * W, chosen["COLUMNS"])
    sizes = (C, O // groups, H, W, groups, live, k[0] // 2, k[1] // 2, k[1], *dilation)
    flags = (int(bias is not None), int(more is not None))
    args = (x, weight, weight if bias is None else bias, y if more is None else more, y)
    launch(conv_kernel, B * groups * programs, *args, *sizes, *flags, last, chosen)


def dweight(dy, x, dlive, k, dilation, groups, last, chosen):
    """dlive (O, C, live): the sum over all pixels of dy times what the taps see."""
    O, C, count = dlive.shape
    B, (H, W) = x.shape[0], x.shape[1:3] if last else x.shape[2:]
    span = max(SPAN, -(-B * H * W // SPANS))
    parts = -(-B * H * W // span)
    sums = x.new_zeros(parts, O, count, C, dtype=torch.float32)
    programs = blocks(O // groups, chosen["ROWS"]) * blocks(count * C, chosen["COLUMNS"])
    sizes = (C, O // groups, H, W, groups, count, k[0] // 2, k[1] // 2, k[1], *dilation)
    launch(dweight_kernel, parts * groups * programs, dy, x, sums, B, *sizes, span, last, chosen)
    dlive.copy_(sums.sum(0).transpose(1, 2))


def launch(kernel, programs, *args):
    *args, last, chosen = args
    if programs >= 2**31:
        raise ValueError(f"masked_conv2d: expected fewer than 2^31 programs, got {programs}")
    if programs:
        with torch.cuda.device_of(args[0]):
            kernel[(programs,)](*args, LAST=last, **chosen)


def choose(x):
    """The constants for a dtype and a device."""
    return constants("masked_conv2d", CANDIDATES, x.dtype, x.device)


def choices(dtype, device):
    """All that a launch may have."""
    chosen = constants("masked_conv2d", CANDIDATES, dtype, device)
    return [{"LAST": last, **chosen} for last in (False, True)]


def blocks(size, unit):
    return -(-size // unit)
