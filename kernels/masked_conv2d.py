"""PixelCNN's masked convolution: of the pixels around one, those that come before it.

    y[o, i, j] = bias[o] + sum over c and the live taps (p, q) of
                 weight[o, c, p, q] x[c, i + (p - kh // 2) dilation, j + (q - kw // 2) dilation]

Zeros stand around the image, and y is as large as x. Taps are live in raster order, up to

    "A"           the pixel before the centre       "vertical A"  the end of the row above
    "B"           the centre                        "vertical B"  the end of the centre's row

the latter two being those of a gated PixelCNN's vertical stack. With colors > 1, channels of x and
of y are so many equal groups, one after the other: channel c of C has colour c colors // C. At the
centre an output then sees the earlier colours under "A", and its own one too under "B".
(van den Oord et al. 2016, "Pixel Recurrent Neural Networks".)

On the CPU the taps below the centre's row are cut off, and oneDNN does the rest: among the ways to
do so in torch, a pad above the image alone measured fastest or within 5 % of it in both memory
formats. On a GPU a Triton kernel multiplies the live taps alone.
"""

import torch
import torch.nn.functional as F

from ._op import gradient, on_triton, op, ready, transformed

MASKS = ("A", "B", "vertical A", "vertical B")


def masked_conv2d(
    x,  # (B, C, H, W) or (C, H, W)
    weight,  # (O, C / groups, kh, kw), kh and kw odd
    bias=None,  # (O,)
    *,
    mask,
    colors=1,
    dilation=1,
    groups=1,
):
    """conv2d of the pixels before each, as large as x.

    What the mask shuts out has no influence whatever its weight is, and its gradient is zero.
    Memory formats, dtypes and autocast are those of conv2d.
    returns: (B, O, H, W) or (O, H, W)
    Raises ValueError for shapes, devices, masks and colors that do not fit, TypeError for dtypes.
    """
    dilation = pair(dilation)
    check(x, weight, bias, mask, colors, dilation, groups)
    live, k = live_taps(weight, mask, colors, groups), weight.shape[2:]
    half = torch.is_autocast_enabled(x.device.type) if x.device.type != "meta" else False
    fits = x.ndim == 4 and x.dtype != torch.float64 and live.shape[2]
    if fits and not transformed((x, weight, bias)) and on_triton(x, "masked_conv2d"):
        if half:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, live, bias = (None if v is None else v.to(dtype) for v in (x, live, bias))
        last = memory_format(x) == torch.channels_last
        x = x.permute(0, 2, 3, 1) if last else x
        y = _masked_conv2d(x, live, bias, list(k), list(dilation), groups, last)
        return y.permute(0, 3, 1, 2) if last else y
    return cropped(x, live, bias, k, dilation, groups, memory_format(weight))


def cropped(x, live, bias, k, dilation, groups, format=torch.contiguous_format):
    """conv2d by the live taps (O, C / groups, live), on the rows through the last of them."""
    (kh, kw), (dh, dw) = k, dilation
    rows = max(1, -(-live.shape[2] // kw))  # a row of zeros where no tap is live
    kernel = F.pad(live, (0, rows * kw - live.shape[2])).unflatten(2, (rows, kw))
    kernel = kernel.contiguous(memory_format=format)
    above = kh // 2 * dh
    if rows <= kh // 2:  # no tap in the centre's row: the last row of the image is not seen
        seen = max(x.shape[-2] - dh, 0)
        above, x = above + x.shape[-2] - dh - seen, x[..., :seen, :]
    if above:
        x = F.pad(x, (0, 0, above, 0))
    return F.conv2d(x, kernel, bias, 1, (0, kw // 2 * dw), dilation, groups)


@op
def _masked_conv2d(
    x: torch.Tensor,
    live: torch.Tensor,
    bias: torch.Tensor | None,
    k: list[int],
    dilation: list[int],
    groups: int,
    last: bool,
) -> torch.Tensor:
    """`masked_conv2d` on Triton of the live taps; `last`: images are (B, H, W, C)."""
    O = live.shape[0]
    y = x.new_empty(*x.shape[:3], O) if last else x.new_empty(x.shape[0], O, *x.shape[2:])
    if ready((x, live, bias)):
        from ._masked_conv2d_triton import forward

        forward(x, live, bias, y, k, dilation, groups, last)
    return y


@op
def _masked_conv2d_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    live: torch.Tensor,
    k: list[int],
    dilation: list[int],
    groups: int,
    last: bool,
    needs_x: bool,
    needs_live: bool,
) -> list[torch.Tensor]:
    """Returns dx and dlive; empty where not needed."""
    dx = x.new_empty(x.shape if needs_x else 0)
    dlive = live.new_empty(live.shape if needs_live else 0)
    if ready((dy, x, live)):
        from ._masked_conv2d_triton import backward as backward_triton

        grads = (dx if needs_x else None, dlive if needs_live else None)
        backward_triton(dy, x, live, *grads, k, dilation, groups, last)
    return [dx, dlive]


def setup_context(ctx, inputs, output):
    x, live, bias, *ctx.options = inputs
    ctx.save_for_backward(x, live, bias)


def backward(ctx, dy):
    (x, live, bias), needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
    k, dilation, groups, last = ctx.options
    if torch.is_grad_enabled():  # as a graph, to be differentiated again
        images = x.permute(0, 3, 1, 2) if last else x
        y = cropped(images, live, bias, k, dilation, groups)
        y = y.permute(0, 2, 3, 1) if last else y
        wanted = [v for v, needed in zip((x, live, bias), needs, strict=True) if needed]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
        grads = [next(found) if needed else None for needed in needs]
    else:
        dx, dlive = _masked_conv2d_backward(dy, x, live, k, dilation, groups, last, *needs[:2])
        dbias = dy.sum((0, 1, 2) if last else (0, 2, 3)) if needs[2] else None
        grads = [dx if needs[0] else None, dlive if needs[1] else None, dbias]
    return *grads, None, None, None, None


gradient(_masked_conv2d, backward, setup_context)


def live_taps(weight, mask, colors, groups):
    """The live taps in raster order, (O, C / groups, live): a centre shut to some is zero there."""
    taps, count = weight.flatten(2), live_count(mask, colors, *weight.shape[2:])
    if colors == 1:
        return taps[..., :count]
    O, I = weight.shape[:2]
    centre = taps[..., count - 1].masked_fill(shut(mask, colors, groups, O, I, weight.device), 0)
    return torch.cat([taps[..., : count - 1], centre[..., None]], 2)


def live_count(mask, colors, kh, kw):
    """How many taps are live for some channel."""
    above, centre = kh // 2 * kw, kw // 2
    ends = {"A": centre + (colors > 1), "B": centre + 1, "vertical A": 0, "vertical B": kw}
    return above + ends[mask]


def shut(mask, colors, groups, O, I, device=None):
    """Which inputs an output must not see at the centre: (O, I), true where it must not."""
    o, i = torch.arange(O, device=device)[:, None], torch.arange(I, device=device)
    row = o * colors // O
    column = (o * groups // O * I + i) * colors // (I * groups)
    return column >= row if mask == "A" else column > row


def memory_format(x):
    """The format that conv2d would see in a weight."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def pair(n):
    return (n, n) if isinstance(n, int) else tuple(n)


def check(x, weight, bias, mask, colors, dilation, groups):
    """Raise ValueError or TypeError for what does not fit together."""
    expect(mask in MASKS, f"mask: expected one of {MASKS}, got {mask!r}")
    expect(x.ndim in (3, 4), f"x: expected (B, C, H, W), got {tuple(x.shape)}")
    expect(weight.ndim == 4, f"weight: expected (O, C / groups, kh, kw), got {tuple(weight.shape)}")
    (O, I, kh, kw), C = weight.shape, x.shape[-3]
    expect(kh % 2 and kw % 2, f"weight: expected odd heights and widths, got {kh} x {kw}")
    expect(groups > 0 and O % groups == 0, f"groups: expected a divisor of {O}, got {groups}")
    expect(I * groups == C, f"weight has {I * groups} input channels, x has {C}")
    expect(len(dilation) == 2 and min(dilation) > 0, f"dilation: expected >= 1, got {dilation}")
    fits = colors > 0 and C % colors == 0 and O % colors == 0
    expect(fits, f"colors: expected a divisor of {C} and {O}, got {colors}")
    vertical = mask.startswith("vertical") and colors > 1
    expect(not vertical, f'colors: expected 1, for mask "{mask}" has no centre, got {colors}')
    expect(x.shape[-1] * x.shape[-2], f"x: expected a pixel at least, got {tuple(x.shape)}")
    if bias is not None:
        expect(bias.shape == (O,), f"bias: expected {(O,)}, got {tuple(bias.shape)}")
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    for name, v in (("weight", weight), ("bias", bias)):
        if v is not None:
            expect(v.device == x.device, f"{name}: expected {x.device}, got {v.device}")
            if v.dtype != x.dtype and not autocast:
                raise TypeError(f"masked_conv2d: {name}: expected {x.dtype}, got {v.dtype}")


def expect(ok, message):
    if not ok:
        raise ValueError(f"masked_conv2d: {message}")


def masked_conv2d_ref(x, weight, bias=None, *, mask, colors=1, dilation=1, groups=1):
    """`masked_conv2d` in plain torch: conv2d with zeros for the weights that are shut out."""
    live, dilation = live_mask(weight, mask, colors, groups), pair(dilation)
    padding = [k // 2 * d for k, d in zip(weight.shape[2:], dilation, strict=True)]
    return F.conv2d(x, weight.masked_fill(~live, 0), bias, 1, padding, dilation, groups)


def live_mask(weight, mask, colors=1, groups=1):
    """True where a weight has influence: as `weight`."""
    O, I, kh, kw = weight.shape
    live = torch.zeros(O, I, kh * kw, dtype=torch.bool, device=weight.device)
    live[..., : live_count(mask, colors, kh, kw)] = True
    if colors > 1:
        live[..., kh * kw // 2] = ~shut(mask, colors, groups, O, I, weight.device)
    return live.view(weight.shape)
