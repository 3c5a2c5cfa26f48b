"""`pixelcnn_layer` on Triton, forward and backward: the products of masked_conv2d, and the gates.

A program computes ROWS channels of COLUMNS pixels. All images are in one memory format.
"""

import torch
import triton
import triton.language as tl

from ._masked_conv2d_triton import (
    SPANS,
    blocks,
    conv,
    convolve,
    dweight,
    launch,
    place,
    read,
)
from ._triton import along, at, down, rounded, share
from ._tuned import constants

HALF = [
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "STAGES": 3, "num_warps": 8},
    {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "STAGES": 3, "num_warps": 8},
    {"ROWS": 32, "COLUMNS": 64, "DEPTH": 32, "STAGES": 3, "num_warps": 4},
]
CANDIDATES = {  # rows and columns of a program, terms of a product at once, loads on their way
    "float32": [
        {"ROWS": 32, "COLUMNS": 64, "DEPTH": 16, "STAGES": 3, "num_warps": 8},
        {"ROWS": 32, "COLUMNS": 64, "DEPTH": 16, "STAGES": 2, "num_warps": 8},
    ],
    "bfloat16": HALF,
    "float16": HALF,
}
# a_h may pass its range, where all gates are shut
GATES = {torch.bfloat16: torch.float16}  # keeps three more bits of a_h


@triton.jit
def mix(sum, weight, row, rows, x, pixel, C, H, W, LAST, DEPTH: tl.constexpr, STAGES: tl.constexpr):
    """sum + weight (rows, C) times an image's pixels."""
    one = (1, 0, 0, 1, 1, 1)
    return convolve(sum, weight, row, rows, x, pixel, C, 0, C, H, W, *one, LAST, DEPTH, STAGES)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


NUMBERS = ["C", "P", "H", "W", "live", "above", "left", "KW", "linked", "conditioned", "save"]
IMAGES = ["x", "weight", "bias", "cond", "a_v", "link", "a", "y"]


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=IMAGES)
def gate_kernel(
    x,  # (B, C, H, W), or (B, H, W, C) where LAST
    weight,  # (2P, live C)
    bias,  # (2P,)
    cond,  # (B, 2P) where `conditioned`
    a_v,  # (B, 2P, H, W) where `linked`
    link,  # (2P, 2P)
    a,  # (B, 2P, H, W) where it is saved
    y,  # (B, P, H, W)
    C,
    P,
    H,
    W,
    live,
    above,
    left,
    KW,
    linked,
    conditioned,
    save,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """a = bias + cond + the convolution + link a_v, y = tanh(a[:P]) sigmoid(a[P:])."""
    b, i, pixel = share(tl.program_id(0), P, H * W, ROWS // 2, COLUMNS)
    # the tanh of ROWS / 2 channels, then their sigmoid
    j, pixel, G = down(0, ROWS), along(pixel, COLUMNS), 2 * P
    channel = i + j % (ROWS // 2)
    row = tl.where(channel < P, j // (ROWS // 2) * P + channel, G)
    sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    x += at(b, C, 0) * (H * W)
    taps = (live, above, left, KW, 1, 1)
    sum = convolve(sum, weight, row, G, x, pixel, C, 0, C, H, W, *taps, LAST, DEPTH, STAGES)
    if linked > 0:
        a_v += at(b, G, 0) * (H * W)
        sum = mix(sum, link, row, G, a_v, pixel, G, H, W, LAST, DEPTH, STAGES)
    sum += read(bias, row, row < G).to(tl.float32)
    if conditioned > 0:
        sum += read(cond, at(b, G, row), row < G).to(tl.float32)
    if save > 0:
        to = at(b, G, 0) * (H * W) + place(row, pixel, G, H, W, LAST)
        tl.store(a + to, rounded(sum, a.dtype.element_ty), mask=(row < G) & (pixel < H * W))
    sum = tl.where(j < ROWS // 2, tanh(sum), tl.sigmoid(sum))
    f, g = tl.split(tl.permute(tl.reshape(sum, (2, ROWS // 2, COLUMNS)), (1, 2, 0)))
    channel = down(i, ROWS // 2)
    to = at(b, P, 0) * (H * W) + place(channel, pixel, P, H, W, LAST)
    tl.store(y + to, rounded(f * g, y.dtype.element_ty), mask=(channel < P) & (pixel < H * W))


GRADIENTS = ["dout", "res_weight", "dy", "da_h", "link", "a", "da", "y", "totals"]


@triton.jit(
    do_not_specialize=["O", "P", "H", "W", "given", "linked"],
    do_not_specialize_on_alignment=GRADIENTS,
)
def dgate_kernel(
    dout,  # (B, O, H, W), or (B, H, W, O) where LAST: of what res_weight made of y
    res_weight,  # (P, O), transposed
    dy,  # (B, P, H, W) where `given`
    da_h,  # (B, 2P, H, W) where `linked`
    link,  # (2P, 2P), transposed
    a,  # (B, 2P, H, W)
    da,  # (B, 2P, H, W)
    y,  # (B, P, H, W), again
    totals,  # (B, blocks of pixels, 2P), sums of da
    O,
    P,
    H,
    W,
    given,
    linked,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """da, the gradient of what tanh and sigmoid are taken of, from those of y and, by link, a_h."""
    G, pixels = 2 * P, H * W
    b, i, pixel = share(tl.program_id(0), G, pixels, ROWS, COLUMNS)
    part = at(b, tl.cdiv(pixels, COLUMNS), pixel // COLUMNS)
    row, pixel = down(i, ROWS), along(pixel, COLUMNS)
    channel = tl.where(row < P, row, row - P)
    mask = (row < G) & (pixel < pixels)
    a, da, y = a + at(b, G, 0) * pixels, da + at(b, G, 0) * pixels, y + at(b, P, 0) * pixels
    d = tl.zeros((ROWS, COLUMNS), tl.float32)
    dout += at(b, O, 0) * pixels
    d = mix(d, res_weight, channel, P, dout, pixel, O, H, W, LAST, DEPTH, STAGES)
    if given > 0:
        at_y = at(b, P, 0) * pixels + place(channel, pixel, P, H, W, LAST)
        d += read(dy, at_y, mask).to(tl.float32)
    f = tanh(read(a, place(channel, pixel, G, H, W, LAST), mask).to(tl.float32))
    g = tl.sigmoid(read(a, place(P + channel, pixel, G, H, W, LAST), mask).to(tl.float32))
    product = f * g
    d *= tl.where(row < P, g * (1 - f * f), product * (1 - g))
    to = place(channel, pixel, P, H, W, LAST)
    tl.store(y + to, rounded(product, y.dtype.element_ty), mask=mask & (row < P))
    if linked > 0:
        da_h += at(b, G, 0) * pixels
        d = mix(d, link, row, G, da_h, pixel, G, H, W, LAST, DEPTH, STAGES)
    d = tl.where(mask, d, 0)
    to = place(row, pixel, G, H, W, LAST)
    tl.store(da + to, rounded(d, da.dtype.element_ty), mask=mask)
    tl.store(totals + at(part, G, row), tl.sum(d, 1, keep_dims=True), mask=row < G)


def forward(
    v,
    h,
    v_weight,
    v_bias,
    h_weight,
    h_bias,
    link,
    res_weight,
    res_bias,
    cond_v,
    cond_h,
    v_out,
    h_out,
    a,  # (2, *), of v and of h: the gates' arguments; or None
    k,
    residual,
    last,
):
    """Write v_out, h_out and a of `_pixelcnn_layer`."""
    chosen = choose(v)
    a_v = v.new_empty(2 * v_out.numel()) if a is None else a[0]
    gate(v, taps(v_weight), v_bias, cond_v, None, link, a_v, v_out, (k, k), last, chosen)
    y, a_h = torch.empty_like(v_out), None if a is None else narrow(a[1])
    gate(h, taps(h_weight), h_bias, cond_h, a_v, link, a_h, y, (1, k), last, chosen)
    more = h if residual else None
    conv(y, res_weight[:, None], res_bias, more, h_out, (1, 1), (1, 1), 1, last, chosen)


def gate(x, weight, bias, cond, a_v, link, a, y, k, last, chosen):
    """y = the gate of a = bias + cond + the taps of weight over x + link a_v; a may be None."""
    (B, C, H, W), P = sizes(x, last), weight.shape[0] // 2
    programs = B * blocks(P, chosen["ROWS"] // 2) * blocks(H * W, chosen["COLUMNS"])
    args = (x, weight, *(y if t is None else t for t in (bias, cond, a_v, link, a)), y)
    numbers = (C, P, H, W, weight.shape[1], k[0] // 2, k[1] // 2, k[1])
    flags = (int(t is not None) for t in (a_v, cond, a))
    launch(gate_kernel, programs, *args, *numbers, *flags, last, chosen)


def backward(
    dv_out,  # or None
    dh_out,
    a,
    v,
    h,
    v_weight,
    h_weight,
    link,
    res_weight,
    dv,  # or None
    dh,  # or None
    dweights,  # or None
    dres_bias,
    dconds,  # (B, 4P), of float32
    k,
    residual,
    last,
):
    """Write dv, dh, those of the weights, and dconds of `_pixelcnn_layer_backward`."""
    chosen, P, da, dconds = choose(v), res_weight.shape[1], torch.empty_like(a), dconds.chunk(2, 1)
    dres_bias.copy_(dh_out.sum((0, 1, 2) if last else (0, 2, 3)))
    y = v.new_empty(*dh_out.shape[:3], P) if last else v.new_empty(len(v), P, *v.shape[2:])
    dgate(dh_out, res_weight, None, None, link, narrow(a[1]), da[1], y, dconds[1], last, chosen)
    if dweights is not None:
        dweight(dh_out, y, dweights[3][..., None], (1, 1), (1, 1), 1, last, chosen)
    dgate(None, res_weight, dv_out, da[1], link, a[0], da[0], y, dconds[0], last, chosen)
    if dweights is not None:
        dv_weight, dh_weight, dlink, _ = dweights
        dweight(da[0], v, dv_weight.flatten(2), (k, k), (1, 1), 1, last, chosen)
        dweight(da[1], h, dh_weight, (1, k), (1, 1), 1, last, chosen)
        dweight(da[1], a[0], dlink[..., None], (1, 1), (1, 1), 1, last, chosen)
    if dv is not None:
        conv(da[0], turned(v_weight), None, None, dv, (k, k), (-1, -1), 1, last, chosen)
    if dh is not None:
        more = dh_out if residual else None
        conv(da[1], turned(h_weight), None, more, dh, (1, k), (-1, -1), 1, last, chosen)


def dgate(dout, res_weight, dy, da_h, link, a, da, y, dcond, last, chosen):
    """da and its sum over the pixels, dcond (B, 2P), and y again; dout, dy and da_h may be None."""
    (B, G, H, W), (O, P) = sizes(a, last), res_weight.shape
    parts = blocks(H * W, chosen["COLUMNS"])
    totals = dcond.new_empty(B, parts, G)
    args = (y if dout is None else dout, res_weight.t().contiguous(), y if dy is None else dy)
    args += (y if da_h is None else da_h, link.t().contiguous(), a, da, y, totals)
    numbers = (0 if dout is None else O, P, H, W, int(dy is not None), int(da_h is not None))
    programs = B * blocks(G, chosen["ROWS"]) * parts
    launch(dgate_kernel, programs, *args, *numbers, last, chosen)
    dcond.copy_(totals.sum(1))


def narrow(a):
    """The memory of a_h as what it is kept in."""
    return a.view(GATES.get(a.dtype, a.dtype))


def sizes(x, last):
    """B, C, H, W of images."""
    return (x.shape[0], x.shape[3], *x.shape[1:3]) if last else x.shape


def taps(weight):
    """(O, C, *taps) -> (O, taps, C)."""
    return weight.flatten(2).transpose(1, 2).contiguous()


def turned(weight):
    """(O, C, *taps) -> (C, taps, O)."""
    return weight.flatten(2).permute(1, 2, 0).contiguous()


def check_sizes(v, h, v_weight, res_weight):
    """Raise ValueError for what 32 bits cannot count: pixels, terms of a product, and programs."""
    (B, V, H, W), C, (G, _, _, k), O = v.shape, h.shape[1], v_weight.shape, res_weight.shape[0]
    chosen, most = choose(v), max(G, V, C, O)
    terms, edge = max(V, C, G) * (k // 2 + 1) * k, max(chosen["COLUMNS"], chosen["DEPTH"])
    parts = max(B * blocks(H * W, chosen["COLUMNS"]), 2 * SPANS * blocks(terms, chosen["COLUMNS"]))
    numbers = {
        "pixels": H * W + edge,
        "terms": terms + edge,
        "programs": parts * blocks(most, chosen["ROWS"] // 2),
    }
    for name, number in numbers.items():
        if number >= 2**31:
            raise ValueError(f"pixelcnn_layer: expected under 2^31 {name} on a GPU, got {number}")


def choose(x):
    """The constants for a dtype and a device."""
    return constants("pixelcnn_layer", CANDIDATES, x.dtype, x.device)


def choices(dtype, device):
    """All that a launch may have."""
    chosen = constants("pixelcnn_layer", CANDIDATES, dtype, device)
    return [{"LAST": last, **chosen} for last in (False, True)]
