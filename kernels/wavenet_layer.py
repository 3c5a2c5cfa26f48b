"""The gated dilated causal convolution of WaveNet, with its residual and skip products.

    a[t] = bias + sum_k weight[:, :, k] x[t - (K - 1 - k) dilation] + cond(t)
    h[t] = tanh(a[:H, t]) * sigmoid(a[H:, t])
    out  = x + res_weight h + res_bias
    skip_out = skip + skip_weight h + skip_bias

Left of the sequence stand zeros. cond(t) interpolates linearly between the frames of `cond`,
frame f at t = f hop, the last one held. (van den Oord et al. 2016, equations 2 and 5, figure 4.)
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

NAMES = (
    "x",
    "skip",
    "weight",
    "bias",
    "res_weight",
    "res_bias",
    "skip_weight",
    "skip_bias",
    "cond",
)
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)
GATES = {torch.bfloat16: torch.float16}  # on a GPU: of numbers in [-1, 1] it keeps three more bits


def wavenet_layer(
    x,  # (B, R, T)
    skip,  # (B, S, T)
    weight,  # (2H, R, K)
    bias,  # (2H,)
    res_weight,  # (R, H), or None: the last layer has no residual
    res_bias,  # (R,), or None
    skip_weight,  # (S, H)
    skip_bias,  # (S,)
    cond=None,  # (B, 2H, F)
    hop=1,
    dilation=1,
):
    """A gated dilated causal convolution, and its products added to x and to skip.

    bfloat16 and float16 are summed in float32; autocast casts every input to its dtype. On a GPU
    float64 runs on the reference.
    Gradients can be differentiated again, and torch.func and forward mode go through it: all by
    the reference.
    returns: out (B, R, T) or None, and skip_out (B, S, T)
    Raises ValueError for shapes, devices, hop and dilation that do not fit, TypeError for dtypes.
    """
    inputs = (x, skip, weight, bias, res_weight, res_bias, skip_weight, skip_bias, cond)
    inputs = cast(inputs)
    check(inputs, hop, dilation)
    if transformed(inputs):
        return wavenet_layer_ref(*inputs, hop, dilation)
    if inputs[0].dtype != torch.float64 and on_triton(inputs[0], "wavenet_layer"):
        from ._wavenet_layer_triton import check_sizes

        check_sizes(inputs, hop, dilation)
        return run(inputs, hop, dilation)
    if x.device.type in ("cpu", "meta") and native is not None:
        return wavenet_layer_cpu(inputs, hop, dilation)
    if x.device.type == "cpu":
        warn_reference("wavenet_layer")
    return wavenet_layer_ref(*inputs, hop, dilation)


def wavenet_layer_cpu(inputs, hop, dilation):
    """`wavenet_layer` by the C++ kernel, half precisions in float32."""
    dtype = inputs[0].dtype
    if dtype in HALF:
        inputs = [None if v is None else v.float() for v in inputs]
    out, skip_out = run(inputs, hop, dilation)
    return None if out is None else out.to(dtype), skip_out.to(dtype)


def run(inputs, hop, dilation):
    save = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs)
    out, skip_out, _ = _wavenet_layer(*inputs, hop, dilation, save)
    return None if inputs[4] is None else out, skip_out


@op
def _wavenet_layer(
    x: torch.Tensor,
    skip: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    res_weight: torch.Tensor | None,
    res_bias: torch.Tensor | None,
    skip_weight: torch.Tensor,
    skip_bias: torch.Tensor,
    cond: torch.Tensor | None,
    hop: int,
    dilation: int,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns out, skip_out and, with `save`, what the gradient needs: tanh, and sigmoid.

    They are (B, 2H, T) on a GPU, else in tiles, (B, tiles, 2H, samples of a tile).
    """
    (B, R, T), (G, _, K), S = x.shape, weight.shape, skip.shape[1]
    out = x.new_empty(0 if res_weight is None else x.shape)
    skip_out = x.new_empty(skip.shape)
    if on_triton(x, "wavenet_layer"):
        gates = x.new_empty((B, G, T) if save else 0, dtype=GATES.get(x.dtype))
        inputs = (x, skip, weight, bias, res_weight, res_bias, skip_weight, skip_bias, cond)
        if ready(inputs):
            from ._wavenet_layer_triton import forward as forward_triton

            forward_triton(*inputs, out, skip_out, gates if save else None, hop, dilation)
        return out, skip_out, gates
    tiles = -(-T // native.WAVENET_LAYER_TILE)
    gates = x.new_empty((B, tiles, G, native.WAVENET_LAYER_TILE) if save else 0)
    launch(
        native.wavenet_layer,
        *(int(x.dtype == torch.float64), x, skip, weight, bias, res_weight, res_bias),
        *(skip_weight, skip_bias, cond, out, skip_out, gates if save else None),
        *(B, R, S, G // 2, K, T, 0 if cond is None else cond.shape[2], hop, dilation),
        thread_count(),
    )
    return out, skip_out, gates


@op
def _wavenet_layer_backward(
    dout: torch.Tensor | None,
    dskip: torch.Tensor,
    gates: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    res_weight: torch.Tensor | None,
    skip_weight: torch.Tensor,
    frames: int,
    hop: int,
    dilation: int,
    needs_x: bool,
    needs_weights: bool,
    needs_cond: bool,
) -> list[torch.Tensor]:
    """Returns dx, the gradients of the weights and biases, and dcond; empty where not needed."""
    (B, R, T), (G, _, K), (S, H) = x.shape, weight.shape, skip_weight.shape
    res, res_bias = (0, 0) if res_weight is None else (res_weight.shape, (R,))
    shapes = [weight.shape, (G,), res, res_bias, skip_weight.shape, (S,)]
    dx = x.new_empty(x.shape if needs_x else 0)
    dweights = [x.new_empty(shape if needs_weights else 0) for shape in shapes]
    dcond = x.new_empty((B, G, frames) if needs_cond else 0)
    if on_triton(x, "wavenet_layer"):
        inputs = (dout, dskip, gates, x, weight, res_weight, skip_weight)
        if ready(inputs):
            from ._wavenet_layer_triton import backward as backward_triton

            grads = zip((dx, dweights, dcond), (needs_x, needs_weights, needs_cond), strict=True)
            backward_triton(*inputs, *(g if needed else None for g, needed in grads), hop, dilation)
        return [dx, *dweights, dcond]
    launch(
        native.wavenet_layer_backward,
        *(int(x.dtype == torch.float64), dout, dskip, gates, x, weight, res_weight, skip_weight),
        *(torch.empty_like(gates), dx if needs_x else None),
        *(dweights if needs_weights else [None] * len(dweights)),
        *(dcond if needs_cond else None, B, R, S, H, K, T, frames, hop, dilation, thread_count()),
    )
    return [dx, *dweights, dcond]


def setup_context(ctx, inputs, output):
    x, _, *weights, cond, ctx.hop, ctx.dilation, _ = inputs
    ctx.save_for_backward(x, *weights, cond, output[2])
    ctx.set_materialize_grads(False)


def backward(ctx, dout, dskip, _):
    x, *weights, cond, gates = ctx.saved_tensors
    weight, _, res_weight, _, skip_weight, _ = weights
    needs = list(ctx.needs_input_grad[:9])
    # as in torch, there is no gradient of what is made into an output that is not used
    if dout is None:
        needs[4] = needs[5] = False
    if dskip is None:
        needs[1] = needs[6] = needs[7] = False
    if res_weight is None:
        dout = None
    elif dout is None:
        dout = torch.zeros_like(x)
    if dskip is None:
        dskip = x.new_zeros(x.shape[0], skip_weight.shape[0], x.shape[2])
    if torch.is_grad_enabled():
        inputs = (x, torch.zeros_like(dskip), *weights, cond)
        outputs = wavenet_layer_ref(*inputs, ctx.hop, ctx.dilation)
        grads = graph(outputs, (dout, dskip), inputs, (needs[0], False, *needs[2:]))
        grads[1] = dskip
    else:
        dx, *dweights, dcond = _wavenet_layer_backward(
            *(dout, dskip, gates, x, weight, res_weight, skip_weight),
            *(0 if cond is None else cond.shape[2], ctx.hop, ctx.dilation),
            *(needs[0], any(needs[2:8]), needs[8]),
        )
        grads = (dx, dskip, *dweights, dcond)
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), *3 * [None]


gradient(_wavenet_layer, backward, setup_context)


def check(inputs, hop, dilation):
    """Raise ValueError or TypeError for what does not fit together."""
    x, _, weight, _, res_weight, res_bias, _, skip_bias, cond = inputs
    require(x.ndim == 3, "x", "(B, R, T)", x)
    require(weight.ndim == 3 and weight.shape[2] > 0, "weight", "(2H, R, K)", weight)
    require(weight.shape[0] % 2 == 0, "weight", "an even number of rows", weight)
    require(skip_bias.ndim == 1, "skip_bias", "(S,)", skip_bias)
    if cond is not None:
        require(cond.ndim == 3 and cond.shape[2] > 0, "cond", "(B, 2H, F)", cond)
    if (res_weight is None) != (res_bias is None):
        raise ValueError("wavenet_layer: expected res_weight and res_bias both, or neither")
    (B, R, T), (G, _, K), (S,) = x.shape, weight.shape, skip_bias.shape
    H, frames = G // 2, None if cond is None else (B, G, cond.shape[2])
    shapes = ((B, R, T), (B, S, T), (G, R, K), (G,), (R, H), (R,), (S, H), (S,), frames)
    fit("wavenet_layer", NAMES, inputs, shapes, DTYPES)
    for name, value in (("hop", hop), ("dilation", dilation)):
        expect(value >= 1, f"wavenet_layer: {name}", "at least 1", value)


def require(ok, name, shape, got):
    expect(ok, f"wavenet_layer: {name}", shape, tuple(got.shape))


def upsample_ref(cond, hop, T):
    """Frames to samples, linearly: frame f at sample f * hop, the last one held.

    cond: (B, C, F)    returns: (B, C, T)
    """
    t = torch.arange(T, device=cond.device)
    last = cond.shape[-1] - 1
    left = (t // hop).clamp(max=last)
    right = (left + 1).clamp(max=last)
    a = ((t % hop).to(cond.dtype) / hop).to(cond.dtype)
    return cond[..., left] + a * (cond[..., right] - cond[..., left])


def wavenet_layer_ref(
    x,  # (B, R, T)
    skip,  # (B, S, T)
    weight,  # (2H, R, K)
    bias,  # (2H,)
    res_weight,  # (R, H) or None: the last layer has no residual
    res_bias,  # (R,) or None
    skip_weight,  # (S, H)
    skip_bias,  # (S,)
    cond=None,  # (B, 2H, F)
    hop=1,
    dilation=1,
):
    """`wavenet_layer` in plain torch. Returns out (B, R, T) or None, and skip_out (B, S, T)."""
    T = x.shape[-1]
    if T == 0:  # conv1d takes no empty sequence
        x, skip = F.pad(x, (0, 1)), F.pad(skip, (0, 1))
    pad = (weight.shape[-1] - 1) * dilation
    a = F.conv1d(F.pad(x, (pad, 0)), weight, bias, dilation=dilation)
    if cond is not None:
        a = a + upsample_ref(cond, hop, x.shape[-1])
    f, g = a.chunk(2, dim=1)
    h = torch.tanh(f) * torch.sigmoid(g)
    skip_out = skip + F.conv1d(h, skip_weight[..., None], skip_bias)
    if res_weight is None:
        return None, skip_out[..., :T]
    return (x + F.conv1d(h, res_weight[..., None], res_bias))[..., :T], skip_out[..., :T]
