"""The affine coupling of NICE, Real NVP and Glow: one half of x changes, as told by the other.

    l = weight f(s), held in [-80, 80]        y = x exp(l) + t        logdet = sum of l

with x, y the half that changes, s and t what a network makes of the half that is kept, and f(s)

    "tanh"      tanh(s)             (Real NVP, its weight learned)
    "sigmoid"   log sigmoid(s + 2)  (Glow; with weight -1 it divides)
    "atan"      atan(s)             (FrEIA, whose weight is 0.636 clamp)
    "softplus"  log softplus(s)
    "exp"       s
    "additive"  0                   (NICE: there is no s)

The inverse is x = (y - t) exp(-l), its logdet the negative. As |l| <= 80, no scale overflows or
vanishes, and its gradient beyond is zero. (Dinh et al. 2014, 2016; Kingma and Dhariwal 2018;
Ardizzone et al. 2018.)

The cost is bytes. Of x with E elements the kept half has to be copied where y is to be one tensor:
one pass over x, s and t, and y, 3 E elements, against 4 E for halves and a cat. Whoever goes on
with halves (the next coupling swaps them) gives what changes alone, split=None: 2 E. Gradients take
4 E and 3 E. s and t are read out of the network's output as they lie there, and their gradients are
written so.
"""

import math

import torch
import torch.nn.functional as F

from ._op import (
    gradient,
    launch,
    native,
    on_triton,
    op,
    ready,
    thread_count,
    transformed,
    warn_reference,
)

SCALES = ("tanh", "sigmoid", "atan", "softplus", "exp", "additive")
SPLITS = (None, "channel", "alternate", "checkerboard")
LAYOUTS = ("st", "ts", "stst", "tsts")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NATIVE = (torch.float32, torch.float64, torch.bfloat16)  # as csrc/ops.h numbers them
ON_GPU = (torch.float32, torch.bfloat16)
BOUND = 80.0
MANY = 1 << 19  # numbers of vectors, from which the kernel beats a fused formula: measured


def affine_coupling(
    x,  # (B, C, ...), of which a part changes; with split=None what changes, (B, K, ...)
    s,  # (B, K, ...), or without t (B, 2K, ...): s and t as `layout` says
    t=None,  # (B, K, ...)
    scale="tanh",
    weight=None,  # (K,) or (1,) or ()
    *,
    split=None,
    swap=False,
    layout="st",
    inverse=False,
):
    """x with one of its parts scaled and shifted, and the log-determinant of that.

    split: "channel"       the first (C + 1) // 2 channels and the rest (C is features of a vector)
           "alternate"     channels 0, 2, ... and 1, 3, ...
           "checkerboard"  pixels of even and of odd i + j of (B, C, H, W), W even; as a half they
                           lie compacted, (B, C, H, W / 2), K = C: see `kept_half`
    The first part is kept and the second changes, or with `swap` the other way round.
    layout: "st" side by side, s first, "ts" t first; "stst" and "tsts" alternating
    Without s, scale="additive", the second argument is t: (B, K, ...).
    Half precisions are computed in float32; under autocast the widest dtype given is taken.
    float16 runs on the reference, and float64 on a GPU.
    Gradients can be differentiated again.
    returns: y as x, or with `inverse` x as y; logdet (B,) in float32 or float64
    Raises ValueError for shapes, devices and options that do not fit, TypeError for dtypes.
    """
    inputs = prepare(x, s, t, scale, weight, split, swap, layout)
    if transformed(inputs) or left_to_compiler(x) or not has_kernel(*inputs[:2]):
        options = {"split": split, "swap": swap, "layout": layout, "inverse": inverse}
        y, logdet = affine_coupling_ref(*inputs[:3], scale, inputs[3], **options)
        return y.contiguous(), logdet
    return _affine_coupling(*inputs, scale, split, swap, layout, inverse)


def affine_coupling_grad(
    y,  # as `affine_coupling` returns it
    dy,
    dlogdet,  # (B,), or None
    s,
    t=None,
    scale="tanh",
    weight=None,
    *,
    split=None,
    swap=False,
    layout="st",
    inverse=False,
):
    """The input of `affine_coupling` and all gradients, from its output: for reversible training.

    returns: x, dx, ds, dt, dweight; dt and dweight are None where t and weight are
    No gradient flows through it.
    """
    with torch.no_grad():
        inputs = prepare(y, s, t, scale, weight, split, swap, layout)
        check_grads(inputs[0], dy, dlogdet)
        if scale == "additive":
            options = {"scale": scale, "split": split, "swap": swap, "inverse": not inverse}
            return affine_coupling(y, s, **options)[0], *additive_grads(dy, split, swap, inverse)
        run = _affine_coupling_backward if has_kernel(*inputs[:2]) else backward_ref
        x, dx, ds, dt, dweight = run(
            *(*inputs, dy, dlogdet, scale, split, swap, layout, inverse, True, True)
        )
    if weight is not None:
        dweight = dweight.sum_to_size(weight.shape).to(weight.dtype)
    return x, dx, ds, None if t is None else dt, None if weight is None else dweight


def kept_half(x, split, swap=False):
    """The part of x that `affine_coupling` keeps, which the network sees.

    x: (B, C, ...)    returns: (B, C - K, ...), of "checkerboard" (B, C, H, W / 2)
    """
    check_split(x, split)
    return checkers(x, swap) if split == "checkerboard" else halves(x, split, swap)[0]


def left_to_compiler(x):
    """Whether torch.compile does better with the formula, which it fuses with what stands beside
    it: on a CPU all but many vectors, by a fifth of a coupling between two actnorms."""
    if not torch.compiler.is_compiling() or not x.is_cpu:
        return False
    # here, for it takes a third of a second
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return x.ndim > 2 or statically_known_true(x.numel() < MANY)  # no guard on a free batch


def has_kernel(x, s):
    """Whether there is a kernel for x; says so once where a CPU could have one."""
    if on_triton(x, "affine_coupling"):
        from ._affine_coupling_triton import check_sizes

        check_sizes(x, s)
        return x.dtype in ON_GPU
    if x.is_cpu and native is None:
        warn_reference("affine_coupling")
    return (x.is_cpu or x.is_meta) and native is not None and x.dtype in NATIVE


@op
def _affine_coupling(
    x: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor | None,
    weight: torch.Tensor | None,
    scale: str,
    split: str | None,
    swap: bool,
    layout: str,
    inverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y and logdet; weight is (K,) and of logdet's dtype."""
    y, logdet = torch.empty_like(x), x.new_empty(x.shape[0], dtype=wide_dtype(x))
    if on_triton(x, "affine_coupling"):
        if ready((x, s, t, weight)):
            from ._affine_coupling_triton import forward as forward_triton

            forward_triton(x, s, t, weight, y, logdet, scale, split, swap, layout, inverse)
        return y, logdet
    launch(
        native.affine_coupling,
        *(NATIVE.index(x.dtype), x, s, t, weight, y, logdet, *sizes(x, split, swap)),
        *codes(scale, split, swap, layout if t is None else None, inverse),
        thread_count(),
    )
    return y, logdet


@op
def _affine_coupling_backward(
    v: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor | None,
    weight: torch.Tensor | None,
    dy: torch.Tensor,
    dlogdet: torch.Tensor | None,
    scale: str,
    split: str | None,
    swap: bool,
    layout: str,
    inverse: bool,
    restore: bool,
    needs_x: bool,
) -> list[torch.Tensor]:
    """Returns what v is restored to, dx, ds, dt and dweight; empty where there is none.

    v: with `restore` the output, else x of the coupling: the input, or the inverse's output
    """
    K = half_shape(v, split, swap)[1]
    apart = s.shape[1] == K
    restored = v.new_empty(v.shape if restore else 0)
    dx = v.new_empty(v.shape if needs_x else 0)
    ds, dt = torch.empty_like(s), s.new_empty(s.shape if apart else 0)
    dweight = s.new_empty(0 if weight is None else K, dtype=wide_dtype(s))
    grads = [restored, dx, ds, dt, dweight]
    places = [g if g is ds or g.ndim > 1 else None for g in grads[:4]]
    places.append(None if weight is None else dweight)
    if on_triton(v, "affine_coupling"):
        if ready((v, s, t, weight, dy, dlogdet)):
            from ._affine_coupling_triton import backward as backward_triton

            options = scale, split, swap, layout, inverse
            backward_triton(v, s, t, weight, dy, dlogdet, *places, *options)
        return grads
    launch(
        native.affine_coupling_backward,
        *(NATIVE.index(v.dtype), v, dy, dlogdet, s, t, weight, *places, *sizes(v, split, swap)),
        *codes(scale, split, swap, None if apart else layout, inverse),
        thread_count(),
    )
    return grads


def setup_context(ctx, inputs, output):
    x, s, _, weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    if ctx.options[0] != "additive":
        ctx.save_for_backward(output[0] if ctx.options[-1] else x, s, weight)


def backward(ctx, dy, dlogdet):
    (scale, split, swap, _, inverse), needs = ctx.options, ctx.needs_input_grad[:4]
    if scale == "additive":
        grads = (None,) * 4 if dy is None else additive_grads(dy, split, swap, inverse)
        return *grads, *5 * [None]
    v, s, weight = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    run = backward_ref if torch.is_grad_enabled() else _affine_coupling_backward
    grads = run(v, s, None, weight, dy, dlogdet, *ctx.options, False, needs[0])
    return *(g if n else None for g, n in zip(grads[1:], needs, strict=True)), *5 * [None]


gradient(_affine_coupling, backward, setup_context)


def additive_grads(dy, split, swap, inverse):
    """dx, dt where it comes second, and nothing for t and weight."""
    dt = halves(dy, split, swap)[1]
    return dy, -dt if inverse else dt.contiguous(), None, None


def backward_ref(
    v, s, t, weight, dy, dlogdet, scale, split, swap, layout, inverse, restore, needs_x
):
    """`_affine_coupling_backward` in plain torch, to be differentiated again."""
    apart = s.shape[1] == half_shape(v, split, swap)[1]
    (kept, u), (dkept, d) = halves(v, split, swap), halves(dy, split, swap)
    u, d = wide(u), wide(d)
    raw_s, raw_t = (wide(s), s if t is None else t) if apart else raw(s, None, scale, layout)
    raw_s, weight = source(raw_s), source(weight)
    with torch.enable_grad():
        l = log_scale(raw_s, scale, weight)
    e = torch.exp(-l if inverse else l)
    scaled = -d * u if inverse else d * (u - raw_t if restore else u * e)
    dl = (
        scaled
        if dlogdet is None
        else scaled + (-dlogdet if inverse else dlogdet).view(-1, *[1] * (l.ndim - 1))
    )
    other = u / e + raw_t if inverse else (u - raw_t) / e
    wanted = [raw_s] if weight is None else [raw_s, weight]
    ds, *dweight = torch.autograd.grad(l, wanted, dl, create_graph=torch.is_grad_enabled())
    dx = whole(dkept, (d * e).to(v.dtype), split, swap)
    ds, dt = ds.to(s.dtype), (-d * e if inverse else d).to(s.dtype)
    if not apart:
        pair = (ds, dt) if layout[0] == "s" else (dt, ds)
        ds = torch.cat(pair, 1) if len(layout) == 2 else torch.stack(pair, 2).flatten(1, 2)
    restored = whole(kept, other.to(v.dtype), split, swap)
    return restored, dx, ds, dt, dweight[0] if dweight else None


def source(v):
    """v where gradients are followed through it, else the same as a root of its own."""
    if v is None or (torch.is_grad_enabled() and v.requires_grad):
        return v
    return v.detach().requires_grad_()


def sizes(x, split, swap):
    """B, C, K, S and W: see csrc/ops.h."""
    B, K, *rest = half_shape(x, split, swap)
    return B, x.shape[1], K, math.prod(rest), x.shape[3] if split == "checkerboard" else 0


def codes(scale, split, swap, layout, inverse):
    """The options as csrc/ops.h numbers them."""
    place = 0 if layout is None else 1 + LAYOUTS.index(layout)
    return SPLITS.index(split), int(swap), place, SCALES.index(scale), int(inverse)


def prepare(x, s, t, scale, weight, split, swap, layout):
    """The tensors in one dtype, once all is checked; weight (K,) in that of logdet."""
    check(x, s, t, scale, weight, split, swap, layout)
    kind = x.device.type
    given = [v for v in (x, s, t, weight) if v is not None]
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = x.dtype
        for v in given:
            dtype = torch.promote_types(dtype, v.dtype)
        x, s, t, weight = (None if v is None else v.to(dtype) for v in (x, s, t, weight))
    if weight is not None:
        weight = wide(weight).expand(half_shape(x, split, swap)[1])
    return x, s, t, weight


def check(x, s, t, scale, weight, split, swap, layout):
    """Raise ValueError or TypeError for what does not fit together."""
    # values are written out only where they are wrong: most calls are short
    expect(scale in SCALES, "scale", SCALES, repr(scale))
    expect(layout in LAYOUTS, "layout", LAYOUTS, repr(layout))
    check_split(x, split)
    additive = scale == "additive"
    expect(not additive or t is None, "t", "None, for t of additive comes second", "a tensor")
    expect(not additive or weight is None, "weight", "None, for additive has no scale", "a tensor")
    B, K, *rest = half_shape(x, split, swap)
    rows = K if t is not None or additive else 2 * K
    expect(s.shape == (B, rows, *rest), "s", (B, rows, *rest), s)
    if t is not None:
        expect(t.shape == (B, K, *rest), "t", (B, K, *rest), t)
    if weight is not None:
        expect(weight.shape in ((K,), (1,), ()), "weight", f"{(K,)} or one number", weight)
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    for name, v in (("x", x), ("s", s), ("t", t), ("weight", weight)):
        if v is None or (v.device == x.device and v.dtype == x.dtype and v.dtype in DTYPES):
            continue
        expect(v.device == x.device, name, x.device, v.device)
        expect(v.dtype in DTYPES, name, "a floating dtype", v.dtype, TypeError)
        expect(v.dtype == x.dtype or autocast, name, x.dtype, v.dtype, TypeError)


def check_grads(y, dy, dlogdet):
    expect(dy.shape == y.shape, "dy", tuple(y.shape), dy)
    if dlogdet is not None:
        expect(dlogdet.shape == y.shape[:1], "dlogdet", tuple(y.shape[:1]), dlogdet)
    for name, v, dtype in (("dy", dy, y.dtype), ("dlogdet", dlogdet, wide_dtype(y))):
        if v is not None:
            expect(v.device == y.device, name, y.device, v.device)
            expect(v.dtype == dtype, name, dtype, v.dtype, TypeError)


def check_split(x, split):
    expect(split in SPLITS, "split", SPLITS, repr(split))
    expect(x.ndim >= 2, "x", "(B, C, ...)", x)
    if split == "checkerboard":
        expect(x.ndim == 4 and x.shape[3] % 2 == 0, "x", "(B, C, H, W) with an even W", x)
    elif split:
        expect(x.shape[1] > 1, "x", "two channels at least", x)


def expect(ok, name, expected, got, error=ValueError):
    if not ok:
        got = tuple(got.shape) if isinstance(got, torch.Tensor) else got
        raise error(f"affine_coupling: {name}: expected {expected}, got {got}")


def half_shape(x, split, swap):
    """The shape of the part that changes, (B, K, ...)."""
    B, C, *rest = x.shape
    if split == "checkerboard":
        return B, C, rest[0], rest[1] // 2
    return B, (C + int(swap)) // 2 if split else C, *rest


def halves(x, split, swap):
    """What is kept of x, and what changes."""
    if split is None:
        return None, x
    if split == "checkerboard":
        parts = checkers(x, False), checkers(x, True)
    elif split == "channel":
        parts = x.tensor_split([(x.shape[1] + 1) // 2], 1)
    else:
        parts = x[:, ::2], x[:, 1::2]
    return parts[::-1] if swap else parts


def checkers(x, odd):
    """The pixels of even i + j, or of odd: (B, C, H, W / 2)."""
    other = torch.arange(x.shape[2], device=x.device)[:, None] % 2 == (not odd)  # rows
    return torch.where(other, x[..., 1::2], x[..., ::2])


def whole(kept, changed, split, swap):
    """What `halves` took apart."""
    if split is None:
        return changed
    a, b = (changed, kept) if swap else (kept, changed)
    if split == "channel":
        return torch.cat([a, b], 1)
    if split == "checkerboard":
        odd = torch.arange(a.shape[2], device=a.device)[:, None] % 2 == 1  # rows
        return torch.stack([torch.where(odd, b, a), torch.where(odd, a, b)], -1).flatten(3)
    more = a.shape[1] - b.shape[1]
    pairs = torch.stack([a[:, : b.shape[1]], b], 2).flatten(1, 2)
    return torch.cat([pairs, a[:, -1:]], 1) if more else pairs


def raw(s, t, scale, layout):
    """s, or None, and t, in float32 at least."""
    if scale == "additive":
        s, t = None, s
    elif t is None:
        parts = s.chunk(2, 1) if len(layout) == 2 else (s[:, ::2], s[:, 1::2])
        s, t = parts if layout[0] == "s" else parts[::-1]
    return None if s is None else wide(s), wide(t)


def wide(v):
    return v.to(wide_dtype(v))


def wide_dtype(v):
    return torch.promote_types(v.dtype, torch.float32)


def log_scale(s, scale, weight):
    """l, in the dtype of s."""
    f = {
        "tanh": torch.tanh,
        "sigmoid": lambda s: F.logsigmoid(s + 2),
        "atan": torch.atan,
        "softplus": log_softplus,
        "exp": lambda s: s,
    }[scale](s)
    if weight is not None:
        f = f * wide(weight).view(-1, *[1] * (s.ndim - 2))
    return f.clamp(-BOUND, BOUND)


def log_softplus(s):
    """log softplus(s), which is s where exp(s) vanishes."""
    low = -40.0 if s.dtype == torch.float64 else -20.0
    return torch.where(s < low, s, F.softplus(s.clamp(min=low), threshold=-low).log())


def affine_coupling_ref(
    x,
    s,
    t=None,
    scale="tanh",
    weight=None,
    *,
    split=None,
    swap=False,
    layout="st",
    inverse=False,
):
    """`affine_coupling` in plain torch."""
    (kept, v), (s, t) = halves(x, split, swap), raw(s, t, scale, layout)
    l = torch.zeros_like(t) if s is None else log_scale(s, scale, weight)
    v = (wide(v) - t) * torch.exp(-l) if inverse else wide(v) * torch.exp(l) + t
    return whole(kept, v.to(x.dtype), split, swap), (-l if inverse else l).flatten(1).sum(1)
