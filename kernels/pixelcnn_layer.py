"""A layer of the gated PixelCNN: a vertical and a horizontal stack, each with its gate.

    a_v = v_bias + cond_v + conv(v, v_weight)           rows above, and the pixel's own row
    a_h = h_bias + cond_h + conv(h, h_weight) + link_weight a_v
                                                        pixels to the left, and the pixel itself
    v_out = tanh(a_v[:P]) * sigmoid(a_v[P:])
    h'    = tanh(a_h[:P]) * sigmoid(a_h[P:])
    h_out = res_weight h' + res_bias (+ h)

The last row of v_weight is the pixel's own row, the last column of h_weight the pixel itself;
zeros stand around the image. Mask "A", of a network's first layer, whose v and h are both the
image, shuts out the own row in v and the pixel in h, mask "B" nothing. With colors > 1 the channels
of h, of each half of a_h and of h_out are so many equal groups, one after the other, and a group
sees no later one: of the pixel itself, mask "A" leaves the earlier groups and mask "B" the own one
too; res_weight always does both. v sees earlier rows alone, whole. (van den Oord et al. 2016,
"Conditional Image Generation with PixelCNN Decoders", figure 2.)
"""

import torch
import torch.nn.functional as F

NAMES = (
    "v",
    "h",
    "v_weight",
    "v_bias",
    "h_weight",
    "h_bias",
    "link_weight",
    "res_weight",
    "res_bias",
    "cond_v",
    "cond_h",
)
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)


def pixelcnn_layer(
    v,  # (B, V, H, W)
    h,  # (B, C, H, W)
    v_weight,  # (2P, V, k // 2 + 1, k)
    v_bias,  # (2P,)
    h_weight,  # (2P, C, 1, k // 2 + 1)
    h_bias,  # (2P,)
    link_weight,  # (2P, 2P)
    res_weight,  # (O, P)
    res_bias,  # (O,)
    cond_v=None,  # (B, 2P)
    cond_h=None,  # (B, 2P)
    *,
    mask,
    colors=1,
    residual=True,
):
    """Both stacks of a gated PixelCNN's layer; with `residual`, h is added to h_out.

    What a mask shuts out has no influence whatever its weight is, and its gradient is zero.
    bfloat16 and float16 are summed in float32; autocast casts every input to its dtype.
    returns: v_out (B, P, H, W) and h_out (B, O, H, W)
    Raises ValueError for shapes, devices, masks and colors that do not fit, TypeError for dtypes.
    """
    inputs = (v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, res_bias)
    inputs = cast((*inputs, cond_v, cond_h))
    check(inputs, mask, colors, residual)
    return pixelcnn_layer_ref(*inputs, mask=mask, colors=colors, residual=residual)


def cast(inputs):
    """The inputs as autocast, where it is on, would have them."""
    kind = inputs[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return inputs
    dtype = torch.get_autocast_dtype(kind)
    wide = (None, torch.float64)
    return [v if getattr(v, "dtype", None) in wide else v.to(dtype) for v in inputs]


def check(inputs, mask, colors, residual):
    """Raise ValueError or TypeError for what does not fit together."""
    v, h, v_weight, _, _, _, _, res_weight, *_ = inputs
    if mask not in ("A", "B"):
        raise ValueError(f'pixelcnn_layer: mask: expected "A" or "B", got {mask!r}')
    expect(v.ndim == 4, "v", "(B, V, H, W)", v)
    expect(h.ndim == 4, "h", "(B, C, H, W)", h)
    expect(v_weight.ndim == 4, "v_weight", "(2P, V, k // 2 + 1, k)", v_weight)
    expect(res_weight.ndim == 2, "res_weight", "(O, P)", res_weight)
    (B, V, H, W), C, k, (O, P) = v.shape, h.shape[1], v_weight.shape[3], res_weight.shape
    if k % 2 == 0:
        raise ValueError(f"pixelcnn_layer: v_weight: expected an odd width, got {k}")
    G, bias, cond = 2 * P, (2 * P,), (B, 2 * P)
    shapes = ((B, V, H, W), (B, C, H, W), (G, V, k // 2 + 1, k), bias, (G, C, 1, k // 2 + 1), bias)
    shapes += ((G, G), (O, P), (O,), cond, cond)
    for name, x, shape in zip(NAMES, inputs, shapes, strict=True):
        if x is None and name.startswith("cond"):
            continue
        expect(x.shape == shape, name, shape, x)
        if x.device != v.device:
            raise ValueError(f"pixelcnn_layer: {name}: expected {v.device}, got {x.device}")
        if x.dtype != v.dtype:
            raise TypeError(f"pixelcnn_layer: {name}: expected {v.dtype}, got {x.dtype}")
    if v.dtype not in DTYPES:
        raise TypeError(f"pixelcnn_layer: expected a floating dtype, got {v.dtype}")
    if colors < 1 or C % colors or P % colors or O % colors:
        raise ValueError(f"pixelcnn_layer: colors: expected a divisor of {C, P, O}, got {colors}")
    if residual and mask == "A":
        raise ValueError('pixelcnn_layer: residual: mask "A" would see the pixel itself')
    if residual and C != O:
        raise ValueError(f"pixelcnn_layer: residual: h has {C} channels, res_weight {O} rows")


def expect(ok, name, shape, got):
    if not ok:
        raise ValueError(f"pixelcnn_layer: {name}: expected {shape}, got {tuple(got.shape)}")


def later(rows, columns, colors, strict, device=None):
    """True where a column's group comes later than the row's, or, not `strict`, is the same.

    (rows, columns), each in `colors` equal groups.
    """
    row, column = (torch.arange(n, device=device) * colors // n for n in (rows, columns))
    return column > row[:, None] if strict else column >= row[:, None]


def masked(v_weight, h_weight, res_weight, mask, colors):
    """The weights, zero where the mask shuts them out."""
    C, (O, P), device = h_weight.shape[1], res_weight.shape, h_weight.device
    if mask == "A":
        v_weight = torch.cat([v_weight[:, :, :-1], torch.zeros_like(v_weight[:, :, -1:])], 2)
    shut = later(P, C, colors, mask == "B", device).repeat(2, 1)
    last = h_weight[..., -1].masked_fill(shut[..., None], 0)
    h_weight = torch.cat([h_weight[..., :-1], last[..., None]], 3)
    return v_weight, h_weight, res_weight.masked_fill(later(O, P, colors, True, device), 0)


def pixelcnn_layer_ref(
    v,  # (B, V, H, W)
    h,  # (B, C, H, W)
    v_weight,  # (2P, V, k // 2 + 1, k)
    v_bias,  # (2P,)
    h_weight,  # (2P, C, 1, k // 2 + 1)
    h_bias,  # (2P,)
    link_weight,  # (2P, 2P)
    res_weight,  # (O, P)
    res_bias,  # (O,)
    cond_v=None,  # (B, 2P)
    cond_h=None,  # (B, 2P)
    *,
    mask,
    colors=1,
    residual=True,
):
    """`pixelcnn_layer` in plain torch. Returns v_out (B, P, H, W) and h_out (B, O, H, W)."""
    weights = masked(v_weight, h_weight, res_weight, mask, colors)
    v_weight, h_weight, res_weight = weights
    H, W = v.shape[2:]
    if not H * W:  # conv2d takes no empty image
        v, h = F.pad(v, (0, 1, 0, 1)), F.pad(h, (0, 1, 0, 1))
    r = h_weight.shape[3] - 1
    a_v = F.conv2d(F.pad(v, (r, r, r, 0)), v_weight, v_bias)
    if cond_v is not None:
        a_v = a_v + cond_v[..., None, None]
    a_h = F.conv2d(F.pad(h, (r, 0)), h_weight, h_bias)
    a_h = a_h + F.conv2d(a_v, link_weight[..., None, None])
    if cond_h is not None:
        a_h = a_h + cond_h[..., None, None]
    v_out, h_out = gate(a_v), F.conv2d(gate(a_h), res_weight[..., None, None], res_bias)
    if residual:
        h_out = h_out + h
    return v_out[:, :, :H, :W], h_out[:, :, :H, :W]


def gate(a):
    """tanh of the first half of a's channels times sigmoid of the second."""
    f, g = a.chunk(2, dim=1)
    return torch.tanh(f) * torch.sigmoid(g)
