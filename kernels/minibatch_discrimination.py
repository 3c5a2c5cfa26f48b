"""Minibatch discrimination: how near a row of a batch is to the others, kernel by kernel.

    o[i, b] = sum over j of exp(-d[i, j, b]),  d[i, j, b] = sum over c of |m[i, b, c] - y[j, b, c]|

y is another batch, or m itself without j = i. (Salimans et al. 2016, section 3.2.) For a batch and
itself, g being the gradient of o, and s = sign(m[j] - m[i]), which is 0 of equal numbers,

    dm[i] = sum over j of w s,  w = (g[i] + g[j]) exp(-d[i, j])

Its gradients are sums of the same kind. For v, the gradient of dm, and u = sum of s (v[i] - v[j]),
those of m have the weight w u, and those of g are the sums of exp(-d[i, j]) u over j. Distances are
computed anew in each pass: memory is that of m.

The floor is arithmetic. A pair of rows and a kernel take 3 C operations and an exp, which is about
20, and its gradients 5 C more; within one batch there are N (N - 1) / 2 of them.
"""

import torch

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

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)


def minibatch_discrimination(
    m,  # (N, B, C)
    y=None,  # (M, B, C): another batch, of which every row counts
    *,
    keep_self=False,
    groups=1,
):
    """How near each row is to the others: the sums of exp(-L1 distance), for each of B kernels.

    keep_self: whether a row counts itself, a distance of 0    groups: m, and y, are so many equal
    groups of rows, one after the other, and a row sees those of its own group alone
    Memory is that of m. bfloat16 and float16 are summed in float32; under autocast what is returned
    is float32, as of torch.cdist. Gradients can be differentiated again by a kernel of their own,
    and then, as torch.func and forward mode do, by the reference, in memory of N^2 B C.
    returns: (N, B)
    Raises ValueError for shapes, devices and groups that do not fit, TypeError for dtypes.
    """
    m, y = cast((m, y))
    check(m, y, keep_self, groups)
    if transformed((m, y)):
        return minibatch_discrimination_ref(m, y, keep_self=keep_self, groups=groups)
    if on_triton(m, "minibatch_discrimination"):
        from ._minibatch_discrimination_triton import check_sizes

        check_sizes(m, y, groups)
        return _minibatch_discrimination(m, y, keep_self, groups)
    if m.device.type in ("cpu", "meta") and native is not None:
        if m.dtype in HALF:
            wide = (None if v is None else v.float() for v in (m, y))
            return _minibatch_discrimination(*wide, keep_self, groups).to(m.dtype)
        return _minibatch_discrimination(m, y, keep_self, groups)
    if m.device.type == "cpu":
        warn_reference("minibatch_discrimination")
    return minibatch_discrimination_ref(m, y, keep_self=keep_self, groups=groups)


@op
def _minibatch_discrimination(
    m: torch.Tensor, y: torch.Tensor | None, keep_self: bool, groups: int
) -> torch.Tensor:
    o = m.new_empty(m.shape[:2])
    if on_triton(m, "minibatch_discrimination"):
        if ready((m, y)):
            from ._minibatch_discrimination_triton import forward

            forward(m, y, o, keep_self, groups)
        return o
    wide = int(m.dtype == torch.float64)
    launch(
        native.minibatch_discrimination,
        *(wide, m, y, o, *sizes(m, y), groups, int(keep_self), thread_count()),
    )
    return o


@op
def _minibatch_discrimination_backward(
    grad: torch.Tensor,
    m: torch.Tensor,
    y: torch.Tensor | None,
    groups: int,
    needs_m: bool,
    needs_y: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns dm and dy; empty where not needed."""
    dm, dy = m.new_empty(m.shape if needs_m else 0), m.new_empty(y.shape if needs_y else 0)
    descend(grad, m, y, None, None, None, dm if needs_m else None, dy if needs_y else None, groups)
    return dm, dy


@op
def _minibatch_discrimination_twice(
    vm: torch.Tensor | None,
    vy: torch.Tensor | None,
    grad: torch.Tensor,
    m: torch.Tensor,
    y: torch.Tensor | None,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of grad, of m and, empty without one, of y, from those of dm and dy."""
    dgrad, dm = grad.new_empty(grad.shape), m.new_empty(m.shape)
    dy = m.new_empty(0 if y is None else y.shape)
    descend(grad, m, y, vm, vy, dgrad, dm, None if y is None else dy, groups)
    return dgrad, dm, dy


def descend(grad, m, y, vm, vy, dgrad, dm, dy, groups):
    """Write dm and dy where they are not None, and with dgrad those of the gradients."""
    if on_triton(m, "minibatch_discrimination"):
        if ready((grad, m, y, vm, vy)):
            from ._minibatch_discrimination_triton import backward as backward_triton

            backward_triton(grad, m, y, vm, vy, dgrad, dm, dy, groups)
        return
    wide = int(m.dtype == torch.float64)
    launch(
        native.minibatch_discrimination_backward,
        *(wide, grad, m, y, vm, vy, dgrad, dm, dy, *sizes(m, y), groups, thread_count()),
    )


def sizes(m, y):
    """N, M, B and C as the C++ kernels take them."""
    N, B, C = m.shape
    return N, -1 if y is None else y.shape[0], B, C


def setup_context(ctx, inputs, output):
    m, y, _, ctx.groups = inputs
    ctx.save_for_backward(m, y)


def backward(ctx, grad):
    m, y = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    dm, dy = _minibatch_discrimination_backward(grad, m, y, ctx.groups, *needs)
    return dm if needs[0] else None, dy if needs[1] else None, None, None


gradient(_minibatch_discrimination, backward, setup_context)


def setup_context_twice(ctx, inputs, output):
    *tensors, ctx.groups, ctx.needs_m, ctx.needs_y = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def backward_twice(ctx, vm, vy):
    grad, m, y = ctx.saved_tensors
    vm, vy = vm if ctx.needs_m else None, vy if ctx.needs_y else None
    needs = ctx.needs_input_grad[:3]
    if vm is None and vy is None:
        return (None,) * 6
    if torch.is_grad_enabled():  # as a graph, to be differentiated yet again
        grads = twice_ref(vm, vy, grad, m, y, ctx.groups)
    else:
        grads = _minibatch_discrimination_twice(vm, vy, grad, m, y, ctx.groups)
    return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), *3 * [None]


def twice_ref(vm, vy, grad, m, y, groups):
    """`_minibatch_discrimination_twice` as a graph."""
    # what they come from is not to be gone through here: grad may come from m
    grad, m, y = (None if v is None else v.view_as(v) for v in (grad, m, y))
    o = minibatch_discrimination_ref(m, y, groups=groups)
    firsts = [(leaf, v) for leaf, v in ((m, vm), (y, vy)) if v is not None]
    leaves, cotangents = zip(*firsts, strict=True)
    grads = torch.autograd.grad(o, leaves, grad, create_graph=True)
    loss = sum((g * v).sum() for g, v in zip(grads, cotangents, strict=True))
    wanted = [v for v in (grad, m, y) if v is not None]
    return [*torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True), None][:3]


gradient(_minibatch_discrimination_backward, backward_twice, setup_context_twice)


def cast(inputs):
    """The inputs as autocast, where it is on, would have them for torch.cdist."""
    kind = inputs[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return inputs
    return [v.float() if v is not None and v.dtype in HALF else v for v in inputs]


def check(m, y, keep_self, groups):
    """Raise ValueError or TypeError for what does not fit together."""
    expect(m.ndim == 3, "m: expected (N, B, C), got {}", m.shape)
    (N, B, C), M = m.shape, m.shape[0]
    if y is not None:
        fits = y.ndim == 3 and y.shape[1:] == (B, C)
        expect(fits, "y: expected (M, {}, {}), got {}", B, C, y.shape)
        expect(y.device == m.device, "y: expected {}, got {}", m.device, y.device)
        expect(not keep_self, "keep_self: expected False, for every row of y counts, got True")
        M = y.shape[0]
    fits = groups > 0 and N % groups == 0 and M % groups == 0
    expect(fits, "groups: expected a divisor of {} and {}, got {}", N, M, groups)
    if m.dtype not in DTYPES:
        raise TypeError(f"minibatch_discrimination: expected a floating dtype, got {m.dtype}")
    if y is not None and y.dtype != m.dtype:
        raise TypeError(f"minibatch_discrimination: y: expected {m.dtype}, got {y.dtype}")


def expect(ok, message, *values):
    if not ok:
        values = (tuple(v) if isinstance(v, torch.Size) else v for v in values)
        raise ValueError(f"minibatch_discrimination: {message.format(*values)}")


def minibatch_discrimination_ref(m, y=None, *, keep_self=False, groups=1):
    """`minibatch_discrimination` in plain torch, in memory of N^2 B C."""
    x = m.unflatten(0, (groups, m.shape[0] // groups))  # (groups, n, B, C)
    z = x if y is None else y.unflatten(0, (groups, y.shape[0] // groups))
    e = (-(x[:, :, None] - z[:, None]).abs().sum(-1)).exp()  # (groups, n, M / groups, B)
    if y is None and not keep_self:
        e = e.masked_fill(torch.eye(x.shape[1], dtype=torch.bool, device=m.device)[..., None], 0)
    return e.sum(2).flatten(0, 1)
