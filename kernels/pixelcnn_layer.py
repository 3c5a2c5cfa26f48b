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

from ._op import LIB, launch, native, op, thread_count, transformed, warn_reference

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
    inputs, k = live(inputs, mask, colors), v_weight.shape[3]
    empty = v.shape[2] * v.shape[3] == 0
    if v.device.type not in ("cpu", "meta") or empty or transformed(inputs):
        return stacks(*inputs, k, residual)
    if native is None:
        warn_reference("pixelcnn_layer")
        return stacks(*inputs, k, residual)
    dtype = inputs[0].dtype
    if dtype in HALF:
        inputs = [None if x is None else x.float() for x in inputs]
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    v_out, h_out, _ = _pixelcnn_layer(*inputs, k, residual, save)
    return v_out.to(dtype), h_out.to(dtype)


def sizes(v, h, v_weight, h_weight, res_weight, k, residual):
    """The sizes as the kernels take them."""
    (B, V, H, W), C, (O, P) = v.shape, h.shape[1], res_weight.shape
    return B, V, C, P, O, H, W, k, v_weight.shape[2], h_weight.shape[2], int(residual)


@op
def _pixelcnn_layer(
    v: torch.Tensor,
    h: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    h_weight: torch.Tensor,
    h_bias: torch.Tensor,
    link_weight: torch.Tensor,
    res_weight: torch.Tensor,
    res_bias: torch.Tensor,
    cond_v: torch.Tensor | None,
    cond_h: torch.Tensor | None,
    k: int,
    residual: bool,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns v_out, h_out and, with `save`, what the gradient needs: a_v, and a_h's tanh, sigmoid.

    The weights are the live ones: v_weight (2P, V, rows, k) and h_weight (2P, C, cols).
    """
    (B, _, H, W), (O, P) = v.shape, res_weight.shape
    v_out, h_out = v.new_empty(B, P, H, W), v.new_empty(B, O, H, W)
    rows = native.pixelcnn_layer_rows(H, W)
    saved = v.new_empty((B * -(-H // rows), 4 * P, rows * (-(-W // 16) * 16)) if save else 0)
    inputs = (v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, res_bias)
    launch(
        native.pixelcnn_layer,
        *(int(v.dtype == torch.float64), *inputs, cond_v, cond_h, v_out, h_out),
        saved if save else None,
        *(*sizes(v, h, v_weight, h_weight, res_weight, k, residual), thread_count()),
    )
    return v_out, h_out, saved


@op
def _pixelcnn_layer_backward(
    dv_out: torch.Tensor | None,
    dh_out: torch.Tensor | None,
    saved: torch.Tensor,
    v: torch.Tensor,
    h: torch.Tensor,
    v_weight: torch.Tensor,
    h_weight: torch.Tensor,
    link_weight: torch.Tensor,
    res_weight: torch.Tensor,
    k: int,
    residual: bool,
    needs_v: bool,
    needs_h: bool,
    needs_weights: bool,
) -> list[torch.Tensor]:
    """Returns dv, dh, those of the weights, dres_bias, dconds (B, 4P); empty where not needed."""
    (O, P), weights = res_weight.shape, (v_weight, h_weight, link_weight, res_weight)
    dv, dh = v.new_empty(v.shape if needs_v else 0), h.new_empty(h.shape if needs_h else 0)
    dweights = [w.new_empty(w.shape if needs_weights else 0) for w in weights]
    dres_bias, dconds = v.new_empty(O), v.new_empty(v.shape[0], 4 * P)
    launch(
        native.pixelcnn_layer_backward,
        *(int(v.dtype == torch.float64), dv_out, dh_out, saved, v, h, *weights),
        *(torch.empty_like(saved), dv if needs_v else None, dh if needs_h else None),
        *(dweights if needs_weights else [None] * 4),
        *(dres_bias, dconds),
        *(*sizes(v, h, v_weight, h_weight, res_weight, k, residual), thread_count()),
    )
    return [dv, dh, *dweights, dres_bias, dconds]


def setup_context(ctx, inputs, output):
    *tensors, ctx.k, ctx.residual, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def backward(ctx, dv_out, dh_out, _):
    *inputs, saved = ctx.saved_tensors
    needs = ctx.needs_input_grad[:11]
    if dv_out is None and dh_out is None:
        return (None,) * 14
    if torch.is_grad_enabled():
        grads = backward_ref(dv_out, dh_out, inputs, ctx.k, ctx.residual, needs)
    else:
        v, h, v_weight, _, h_weight, _, link_weight, res_weight, *_ = inputs
        weights = any(needs[i] for i in (2, 4, 6, 7))
        dv, dh, dv_weight, dh_weight, dlink, dres, dres_bias, dconds = _pixelcnn_layer_backward(
            *(dv_out, dh_out, saved, v, h, v_weight, h_weight, link_weight, res_weight),
            *(ctx.k, ctx.residual, needs[0], needs[1], weights),
        )
        dcond_v, dcond_h = dconds.chunk(2, 1)
        dbias_v, dbias_h = dconds.sum(0).chunk(2)
        grads = [dv, dh, dv_weight, dbias_v, dh_weight, dbias_h, dlink, dres, dres_bias]
        grads += [dcond_v, dcond_h]
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), *3 * [None]


def backward_ref(dv_out, dh_out, inputs, k, residual, needs):
    """The gradients of `_pixelcnn_layer`'s tensors as a graph, to be differentiated again."""
    pairs = zip(stacks(*inputs, k, residual), (dv_out, dh_out), strict=True)
    loss = sum((y * dy).sum() for y, dy in pairs if dy is not None)
    wanted = [i for i, needed in enumerate(needs) if needed]
    found = torch.autograd.grad(
        loss, [inputs[i] for i in wanted], create_graph=True, allow_unused=True
    )
    grads = dict(zip(wanted, found, strict=True))
    return [grads.get(i) for i in range(len(inputs))]


torch.library.register_autograd(
    "fastgen::pixelcnn_layer", backward, setup_context=setup_context, lib=LIB
)


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


def live(inputs, mask, colors):
    """The inputs, with only those weights left that the mask leaves to some channel.

    v_weight becomes (2P, V, rows, k), h_weight (2P, C, cols). Where it leaves a weight to some
    channels alone, it is zero for the others.
    """
    v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, *others = inputs
    C, (O, P), device = h_weight.shape[1], res_weight.shape, v.device
    h_weight = h_weight[:, :, 0]
    if mask == "A":
        v_weight = v_weight[:, :, :-1]
    if mask == "A" and colors == 1:
        h_weight = h_weight[..., :-1]
    if colors > 1:
        shut = later(P, C, colors, mask == "B", device).repeat(2, 1)
        last = h_weight[..., -1].masked_fill(shut, 0)
        h_weight = torch.cat([h_weight[..., :-1], last[..., None]], 2)
        res_weight = res_weight.masked_fill(later(O, P, colors, True, device), 0)
    return v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, *others


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
    inputs = (v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, res_bias)
    inputs = live((*inputs, cond_v, cond_h), mask, colors)
    return stacks(*inputs, v_weight.shape[3], residual)


def stacks(
    v,
    h,
    v_weight,  # (2P, V, rows, k), the rows that are live
    v_bias,
    h_weight,  # (2P, C, cols), the columns that are live
    h_bias,
    link_weight,
    res_weight,
    res_bias,
    cond_v,
    cond_h,
    k,
    residual,
):
    """`pixelcnn_layer` of live weights in plain torch."""
    (H, W), r = v.shape[2:], k // 2
    if not H * W:  # conv2d takes no empty image
        v, h = F.pad(v, (0, 1, 0, 1)), F.pad(h, (0, 1, 0, 1))
    # a row or a column less sees one pixel less: as many zero weights are cheaper than two shapes
    v_weight = F.pad(v_weight, (0, 0, 0, r + 1 - v_weight.shape[2]))
    h_weight = F.pad(h_weight, (0, r + 1 - h_weight.shape[2]))
    a_v = F.conv2d(F.pad(v, (r, r, r, 0)), v_weight, v_bias)
    if cond_v is not None:
        a_v = a_v + cond_v[..., None, None]
    a_h = F.conv2d(F.pad(h, (r, 0)), h_weight[:, :, None], h_bias)
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
