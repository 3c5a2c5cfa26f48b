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

from ._op import (
    cast,
    expect,
    fit,
    gradient,
    graph,
    launch,
    native,
    on_triton,
    op,
    ready,
    thread_count,
    transformed,
    warn_reference,
)
from .masked_conv2d import memory_format

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
OF_V = ("v", "v_weight", "v_bias", "cond_v")  # what v_out is made of
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
    bfloat16 and float16 are summed in float32; autocast casts every input to its dtype. The memory
    format of the outputs is that of v.
    returns: v_out (B, P, H, W) and h_out (B, O, H, W)
    Raises ValueError for shapes, devices, masks and colors that do not fit, TypeError for dtypes.
    """
    inputs = (v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, res_bias)
    inputs = cast((*inputs, cond_v, cond_h))
    check(inputs, mask, colors, residual)
    inputs, k, dtype = live(inputs, mask, colors), v_weight.shape[3], inputs[0].dtype
    if v.shape[2] * v.shape[3] == 0 or transformed(inputs):
        return stacks(*inputs, k, residual)
    if dtype != torch.float64 and on_triton(v, "pixelcnn_layer"):
        from ._pixelcnn_layer_triton import check_sizes

        check_sizes(*inputs[:3], inputs[7])
        return run(inputs, k, residual)
    if v.device.type in ("cpu", "meta") and native is not None:
        if dtype in HALF:
            inputs = [None if x is None else x.float() for x in inputs]
        return tuple(y.to(dtype) for y in run(inputs, k, residual))
    if v.device.type == "cpu":
        warn_reference("pixelcnn_layer")
    return stacks(*inputs, k, residual)


def run(inputs, k, residual):
    """v_out and h_out by the kernels, in v's memory format."""
    v, h, *others = inputs
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    last = memory_format(v) == torch.channels_last
    if last:
        v, h = v.permute(0, 2, 3, 1), h.permute(0, 2, 3, 1)
    v_out, h_out, _ = _pixelcnn_layer(v, h, *others, k, residual, save, last)
    return (v_out.permute(0, 3, 1, 2), h_out.permute(0, 3, 1, 2)) if last else (v_out, h_out)


def sizes(v, h, v_weight, h_weight, res_weight, k, residual, last):
    """The sizes as the C++ kernels take them."""
    B, V, H, W = (v.shape[0], v.shape[3], *v.shape[1:3]) if last else v.shape
    (O, P), rows, cols = res_weight.shape, v_weight.shape[2], h_weight.shape[2]
    C = h.shape[3 if last else 1]
    return B, V, C, P, O, H, W, k, rows, cols, int(residual), int(last)


def image(B, C, H, W, last):
    """The shape of images in memory."""
    return (B, H, W, C) if last else (B, C, H, W)


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
    last: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns v_out, h_out and, with `save`, what the gradient needs.

    That is a_v and a_h, (2, images) on a GPU, else, in tiles, a_v and a_h's tanh and sigmoid.
    The weights are the live ones: v_weight (2P, V, rows, k) and h_weight (2P, C, cols). `last`:
    images are (B, H, W, C), and so are the outputs.
    """
    numbers = sizes(v, h, v_weight, h_weight, res_weight, k, residual, last)
    B, _, _, P, O, H, W, *_ = numbers
    v_out, h_out = (v.new_empty(image(B, n, H, W, last)) for n in (P, O))
    inputs = (v, h, v_weight, v_bias, h_weight, h_bias, link_weight, res_weight, res_bias)
    if on_triton(v, "pixelcnn_layer"):
        saved = v.new_empty((2, *image(B, 2 * P, H, W, last)) if save else 0)
        if ready((*inputs, cond_v, cond_h)):
            from ._pixelcnn_layer_triton import forward

            outputs = (v_out, h_out, saved if save else None)
            forward(*inputs, cond_v, cond_h, *outputs, k, residual, last)
        return v_out, h_out, saved
    rows = native.pixelcnn_layer_rows(H, W)
    saved = v.new_empty((B * -(-H // rows), 4 * P, rows * (-(-W // 16) * 16)) if save else 0)
    launch(
        native.pixelcnn_layer,
        *(int(v.dtype == torch.float64), *inputs, cond_v, cond_h, v_out, h_out),
        *(saved if save else None, *numbers, thread_count()),
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
    last: bool,
    needs_v: bool,
    needs_h: bool,
    needs_weights: bool,
) -> list[torch.Tensor]:
    """Returns dv, dh, those of the weights, dres_bias, dconds (B, 4P); empty where not needed."""
    weights = (v_weight, h_weight, link_weight, res_weight)
    numbers = sizes(v, h, v_weight, h_weight, res_weight, k, residual, last)
    B, _, _, P, O, H, W, *_ = numbers
    dv, dh = v.new_empty(v.shape if needs_v else 0), h.new_empty(h.shape if needs_h else 0)
    dweights = [w.new_empty(w.shape if needs_weights else 0) for w in weights]
    wide = torch.promote_types(v.dtype, torch.float32)
    dres_bias, dconds = v.new_empty(O), v.new_empty(B, 4 * P, dtype=wide)
    grads = [dv, dh, *dweights, dres_bias, dconds]
    wanted = (dv if needs_v else None, dh if needs_h else None)
    if on_triton(v, "pixelcnn_layer"):
        if dh_out is None:
            dh_out = v.new_zeros(image(B, O, H, W, last))
        if ready((dv_out, dh_out, saved, v, h, *weights)):
            from ._pixelcnn_layer_triton import backward as backward_triton

            wanted = (*wanted, dweights if needs_weights else None, dres_bias, dconds)
            backward_triton(dv_out, dh_out, saved, v, h, *weights, *wanted, k, residual, last)
        return grads
    launch(
        native.pixelcnn_layer_backward,
        *(int(v.dtype == torch.float64), dv_out, dh_out, saved, v, h, *weights),
        *(torch.empty_like(saved), *wanted, *(dweights if needs_weights else [None] * 4)),
        *(dres_bias, dconds, *numbers, thread_count()),
    )
    return grads


def setup_context(ctx, inputs, output):
    *tensors, ctx.k, ctx.residual, _, ctx.last = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def backward(ctx, dv_out, dh_out, _):
    *inputs, saved = ctx.saved_tensors
    needs, options = list(ctx.needs_input_grad[:11]), (ctx.k, ctx.residual, ctx.last)
    if dv_out is None and dh_out is None:
        return (None,) * 15
    if dh_out is None:  # as in torch, there is no gradient of what h_out alone is made of
        needs = [needed and NAMES[i] in OF_V for i, needed in enumerate(needs)]
    if torch.is_grad_enabled():
        grads = graph(in_memory(*inputs, *options), (dv_out, dh_out), inputs, needs)
    else:
        v, h, v_weight, _, h_weight, _, link_weight, res_weight, *_ = inputs
        dv, dh, dv_weight, dh_weight, dlink, dres, dres_bias, dconds = _pixelcnn_layer_backward(
            *(dv_out, dh_out, saved, v, h, v_weight, h_weight, link_weight, res_weight, *options),
            *(*needs[:2], any(needs[i] for i in (2, 4, 6, 7))),
        )
        (dcond_v, dcond_h), (dbias_v, dbias_h) = (
            sums.to(v.dtype).chunk(2, -1) for sums in (dconds, dconds.sum(0))
        )
        grads = [dv, dh, dv_weight, dbias_v, dh_weight, dbias_h, dlink, dres, dres_bias]
        grads += [dcond_v, dcond_h]
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), *4 * [None]


def in_memory(v, h, *others):
    """`stacks` of images as they are in memory, (B, H, W, C) where the last argument says so."""
    *others, last = others
    if not last:
        return stacks(v, h, *others)
    outputs = stacks(v.permute(0, 3, 1, 2), h.permute(0, 3, 1, 2), *others)
    return [y.permute(0, 2, 3, 1) for y in outputs]


gradient(_pixelcnn_layer, backward, setup_context)


def check(inputs, mask, colors, residual):
    """Raise ValueError or TypeError for what does not fit together."""
    v, h, v_weight, _, _, _, _, res_weight, *_ = inputs
    if mask not in ("A", "B"):
        raise ValueError(f'pixelcnn_layer: mask: expected "A" or "B", got {mask!r}')
    dims = {"v": "(B, V, H, W)", "h": "(B, C, H, W)", "v_weight": "(2P, V, k // 2 + 1, k)"}
    dims["res_weight"] = "(O, P)"
    for name, shape in dims.items():
        got = inputs[NAMES.index(name)].shape
        expect(len(got) == shape.count(",") + 1, f"pixelcnn_layer: {name}", shape, tuple(got))
    (B, V, H, W), C, k, (O, P) = v.shape, h.shape[1], v_weight.shape[3], res_weight.shape
    if k % 2 == 0:
        raise ValueError(f"pixelcnn_layer: v_weight: expected an odd width, got {k}")
    G, bias, cond = 2 * P, (2 * P,), (B, 2 * P)
    shapes = ((B, V, H, W), (B, C, H, W), (G, V, k // 2 + 1, k), bias, (G, C, 1, k // 2 + 1), bias)
    shapes += ((G, G), (O, P), (O,), cond, cond)
    fit("pixelcnn_layer", NAMES, inputs, shapes, DTYPES)
    if colors < 1 or C % colors or P % colors or O % colors:
        raise ValueError(f"pixelcnn_layer: colors: expected a divisor of {C, P, O}, got {colors}")
    if residual and mask == "A":
        raise ValueError('pixelcnn_layer: residual: mask "A" would see the pixel itself')
    if residual and C != O:
        raise ValueError(f"pixelcnn_layer: residual: h has {C} channels, res_weight {O} rows")


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
