"""The discretized mixture of logistics, of sounds and of the colors of images.

    p(x) = sum_m softmax(logits)_m prod_c mass(x_c; mean_cm + sum_(d < c) tanh(k_cdm) v_d, s_cm)
    mass(x; mean, s) = sigmoid(a) - sigmoid(b),  a, b = e^-s (v - mean +- h)

Codes x of 0 ... classes - 1 stand for equidistant values v from -1 to 1, of which h is half the
distance; the first code's b is -infinity, the last one's a is infinity. Of the factors of

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)),  a - b = 2 h e^-s,

no logarithm overflows or cancels. Scales s are held in [floor, 60]: beyond, e^-s overflows or
vanishes in float32. (Salimans et al. 2017, "PixelCNN++: Improving the PixelCNN with Discretized
Logistic Mixture Likelihood and Other Modifications", equations 2 and 3.)
"""

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from ._op import (
    gradient,
    launch,
    may_wait,
    native,
    on_triton,
    op,
    ready,
    thread_count,
    transformed,
    warn_reference,
)

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)
MOST = 60.0  # of a log-scale
COLORS, CLASSES = 16, 2**31
FLOOR = -7.0  # of log-scales of images; csrc/mixture.h samples with it too


def logistic_mixture(
    params,  # (B, M (1 + 2C + C (C - 1) / 2), *): logits, means, log-scales, k
    codes,  # (B, C, *) int64
    classes,
    *,
    floor=-MOST,
):
    """Log-probability of codes, in nats, by a discretized mixture of M logistics of C colors.

    Rows of `params` are M logits, M means of each color, as many log-scales, and M numbers k of
    each pair of colors (1, 0), (2, 0), (2, 1) ... A log-scale below `floor` counts as it.
    bfloat16 and float16 are computed in float32; autocast has them returned so. On a GPU float64
    runs on the reference. Gradients can be differentiated again, and torch.func and forward mode
    go through it: all by the reference.
    returns: (B, *)
    Raises ValueError for shapes, devices, codes and numbers that do not fit, TypeError for dtypes.
    """
    check(params, codes, classes, floor)
    kind, dtype = params.device.type, params.dtype
    if dtype in HALF and kind != "meta" and torch.is_autocast_enabled(kind):
        params = params.float()
    args = (params, codes, classes, float(floor))
    if transformed((params, codes)):
        return logistic_mixture_ref(*args[:3], floor=floor)
    if params.dtype != torch.float64 and on_triton(params, "logistic_mixture"):
        from ._logistic_mixture_triton import check_sizes

        check_sizes(params)
        return _logistic_mixture(*args)
    if kind in ("cpu", "meta") and native is not None:
        if params.dtype in HALF:
            return _logistic_mixture(params.float(), *args[1:]).to(params.dtype)
        return _logistic_mixture(*args)
    if kind == "cpu":
        warn_reference("logistic_mixture")
    return logistic_mixture_ref(*args[:3], floor=floor)


@op
def _logistic_mixture(
    params: torch.Tensor, codes: torch.Tensor, classes: int, floor: float
) -> torch.Tensor:
    log_p = params.new_empty(params.shape[:1] + params.shape[2:])
    if on_triton(params, "logistic_mixture"):
        if ready((params, codes)):
            from ._logistic_mixture_triton import forward as forward_triton

            forward_triton(params, codes, log_p, classes, floor)
        return log_p
    launch(
        native.logistic_mixture,
        *(int(params.dtype == torch.float64), params, codes, log_p),
        *(*sizes(params, codes), classes, floor, thread_count()),
    )
    return log_p


@op
def _logistic_mixture_backward(
    dlog_p: torch.Tensor, params: torch.Tensor, codes: torch.Tensor, classes: int, floor: float
) -> torch.Tensor:
    dparams = torch.empty_like(params)
    if on_triton(params, "logistic_mixture"):
        if ready((dlog_p, params, codes)):
            from ._logistic_mixture_triton import backward as backward_triton

            backward_triton(dlog_p, params, codes, dparams, classes, floor)
        return dparams
    launch(
        native.logistic_mixture_backward,
        *(int(params.dtype == torch.float64), dlog_p, params, codes, dparams),
        *(*sizes(params, codes), classes, floor, thread_count()),
    )
    return dparams


def setup_context(ctx, inputs, output):
    params, codes, ctx.classes, ctx.floor = inputs
    ctx.save_for_backward(params, codes)


def backward(ctx, dlog_p):
    params, codes = ctx.saved_tensors
    if torch.is_grad_enabled():  # as a graph, to be differentiated again
        log_p = logistic_mixture_ref(params, codes, ctx.classes, floor=ctx.floor)
        (dparams,) = torch.autograd.grad(log_p, params, dlog_p, create_graph=True)
    else:
        dparams = _logistic_mixture_backward(dlog_p, params, codes, ctx.classes, ctx.floor)
    return dparams, None, None, None


gradient(_logistic_mixture, backward, setup_context)


def sizes(params, codes):
    """B, C, M, and the number T of places of params (B, M rows(C), T)."""
    (B, C), K = codes.shape[:2], params.shape[1]
    return B, C, K // rows(C), params.shape[2:].numel()


def rows(C):
    """How many numbers a component of C colors has."""
    return 1 + 2 * C + C * (C - 1) // 2


def check(params, codes, classes, floor):
    """Raise ValueError or TypeError for what does not fit together."""
    if params.dtype not in DTYPES:
        raise TypeError(f"logistic_mixture: params: expected a floating dtype, got {params.dtype}")
    if codes.dtype != torch.int64:
        raise TypeError(f"logistic_mixture: codes: expected int64, got {codes.dtype}")
    expect(params.ndim >= 2, "params", "(B, K, ...)", tuple(params.shape))
    shape, (B, K, *places) = tuple(codes.shape), params.shape
    fits = codes.ndim == params.ndim and (codes.shape[0], *codes.shape[2:]) == (B, *places)
    expect(fits and 1 <= codes.shape[1] <= COLORS, "codes", (B, f"C <= {COLORS}", *places), shape)
    C = codes.shape[1]
    fits = K and K % rows(C) == 0
    expect(fits, "params", f"a multiple of {rows(C)} rows for {C} colors", K)
    expect(codes.device == params.device, "codes", params.device, codes.device)
    expect(2 <= classes <= CLASSES, "classes", f"2 to {CLASSES}", classes)
    expect(-MOST <= floor <= MOST, "floor", "a log-scale in [-60, 60]", floor)
    has_values = not (torch.compiler.is_compiling() or codes.is_meta or transformed((codes,)))
    if has_values and not isinstance(codes, FakeTensor) and codes.numel() and may_wait(codes):
        least, most = map(int, codes.aminmax())
        expect(
            least >= 0 and most < classes,
            "codes",
            f"values in [0, {classes})",
            f"{least} to {most}",
        )


def expect(ok, what, expected, got):
    if not ok:
        raise ValueError(f"logistic_mixture: {what}: expected {expected}, got {got}")


def logistic_mixture_ref(params, codes, classes, *, floor=-MOST):
    """`logistic_mixture` in plain torch."""
    C = codes.shape[1]
    parts = params.unflatten(1, (rows(C), -1)).split([1, C, C, C * (C - 1) // 2], dim=1)
    logits, mean, log_scale, k = parts  # (B, ..., M, *)
    log_p, k = F.log_softmax(logits[:, 0], dim=1), torch.tanh(k)
    v = value(codes, classes, params.dtype)
    for c in range(C):
        own = mean[:, c]
        for d in range(c):
            own = own + k[:, c * (c - 1) // 2 + d] * v[:, d, None]
        s = log_scale[:, c].clamp(min=floor)
        log_p = log_p + log_mass(own, s, codes[:, c, None], classes)
    return torch.logsumexp(log_p, dim=1)


def value(codes, classes, dtype=torch.float32):
    """Codes to values in [-1, 1]."""
    return (codes.to(torch.float64) * (2 / (classes - 1)) - 1).to(dtype)


def log_mass(mean, log_scale, codes, classes):
    """Log-probability of codes by single logistics, in nats; of shapes that broadcast."""
    x = value(codes, classes, mean.dtype)
    half, rate = 1 / (classes - 1), torch.exp(-log_scale.clamp(-MOST, MOST))
    above, below = rate * (x - mean + half), rate * (x - mean - half)
    inner = F.logsigmoid(above) + F.logsigmoid(-below) + log1m_exp(2 * half * rate)
    first, last = codes == 0, codes == classes - 1
    return torch.where(first, F.logsigmoid(above), torch.where(last, F.logsigmoid(-below), inner))


def log1m_exp(x):
    """log(1 - exp(-x)) for x > 0."""
    small = x < 0.6931
    # each branch sees only arguments whose gradient is finite
    near = torch.log(-torch.expm1(-torch.where(small, x, 1.0)))
    far = torch.log1p(-torch.exp(-torch.where(small, 1.0, x)))
    return torch.where(small, near, far)


def color_logits(params, codes, c, levels):
    """The log-probability of each level of color c together with the colors before.

    params: (n, channels)    codes: (n, C)    returns: (n, levels), NaN where params are not finite
    """
    C = codes.shape[1]
    params = params.unflatten(1, (rows(C), -1))  # (n, 1 + 2C + ..., M)
    logits, mean, log_scale, k = params.split([1, C, C, C * (C - 1) // 2], dim=1)
    x, every = value(codes, levels, params.dtype), torch.arange(levels)[:, None]
    joint = F.log_softmax(logits[:, 0], dim=1)[:, None]  # (n, 1, M), then (n, levels, M)
    for e in range(c + 1):
        seen = k[:, e * (e - 1) // 2 : e * (e + 1) // 2].tanh() * x[:, :e, None]
        own, scale = mean[:, e] + seen.sum(1), log_scale[:, e].clamp(min=FLOOR)
        at = every if e == c else codes[:, e, None, None]
        joint = joint + log_mass(own[:, None], scale[:, None], at, levels)
    finite = params.isfinite().all(2).all(1)
    return torch.logsumexp(joint, dim=2).masked_fill(~finite[:, None], torch.nan)
