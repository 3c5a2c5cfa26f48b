"""What a flow is made of: bijections with their log-determinants, and a chain of them."""

import contextlib

import torch
from torch import nn


class Bijector(nn.Module):
    """A bijection of each row of a batch.

        forward(x)  -> y, logdet     inverse(y) -> x, logdet

    logdet (B,) is log |det| of the Jacobian of the map that was applied, so that of `inverse` is
    minus that of `forward`; in float32 at least.

    For a chain that is `reversible`, a subclass may also say `keep` and `back`.
    """

    def inverse(self, y):
        raise NotImplementedError(f"{type(self).__name__}: expected a method inverse")

    def keep(self, x):
        """`forward`, and what `back` needs of it besides y: little, whatever the size of x."""
        before = buffers(self)
        return *self(x), before

    def back(self, kept, y, dy, dlogdet):
        """From the output, the input and the gradients: x, dx, and those of `trainable`, in order.

        Runs without a graph. This one inverts, and differentiates another `forward`.
        """
        x = self.inverse(y)[0]
        with again(self, kept) as (module, parameters):
            x = x.detach().requires_grad_()
            outputs = module(x)
        return x.detach(), *slopes(outputs, (dy, dlogdet), x, parameters)


def zeros(x):
    """The logdet of a map that keeps volumes, (B,)."""
    return x.new_zeros(len(x), dtype=wide(x.dtype))


def check_channels(module, x, C):
    """Raise ValueError unless x is (B, C, ...): another C would be broadcast."""
    if x.ndim < 2 or x.shape[1] != C:
        name = type(module).__name__
        raise ValueError(f"{name}: x: expected (B, {C}, ...), got {tuple(x.shape)}")


def wide(dtype):
    """The dtype of a logdet."""
    return torch.promote_types(dtype, torch.float32)


def trainable(module):
    return [p for p in module.parameters() if p.requires_grad]


def buffers(module):
    """Copies of a module's buffers by name, which it may move when it runs."""
    return {name: b.clone() for name, b in module.named_buffers(remove_duplicate=False)}


@contextlib.contextmanager
def again(module, before):
    """To run a module once more for its gradients: a function, and the tensors that stand for its
    `trainable` parameters, whose hooks so do not run; from the buffers of then, which it leaves."""
    # of every name, so that functional_call need not look for those of one parameter
    named = [*module.named_parameters(remove_duplicate=False)]
    own = {p: p.detach().requires_grad_(p.requires_grad) for _, p in named}
    mine = {name: own[p] for name, p in named}
    mine |= {name: b.clone() for name, b in before.items()}  # as this may be asked for twice
    with torch.enable_grad():
        yield (
            lambda *args: torch.func.functional_call(module, mine, args, tie_weights=False),
            [p for p in own.values() if p.requires_grad],
        )


def slopes(outputs, grads, x, parameters):
    """The gradients of x and, a list, of parameters, zero where there is none."""
    pairs = [(y, dy) for y, dy in zip(outputs, grads, strict=True) if y.requires_grad]
    outputs, grads = zip(*pairs, strict=True)
    leaves = (x, *parameters)
    found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    dx, *rest = (
        torch.zeros_like(v) if g is None else g for v, g in zip(leaves, found, strict=True)
    )
    return dx, rest


class Chain(Bijector):
    """Bijections one after another, y = f_L(... f_2(f_1(x))).

    reversible: keep for the gradients the output alone, in memory constant in L: going back, each
    step's input is computed from its output. Exact up to rounding, for steps without dropout; the
    gradients cannot be differentiated again. (Gomez et al. 2017, The Reversible Residual Network)

    Raises RuntimeError for gradients of gradients through a reversible chain.
    """

    def __init__(self, *steps, reversible=False):
        super().__init__()
        self.steps, self.reversible = nn.ModuleList(steps), reversible

    def forward(self, x):
        if self.reversible and torch.is_grad_enabled():
            return Reversible.apply(self, x, *trainable(self))
        logdet = zeros(x)
        for step in self.steps:
            x, added = step(x)
            logdet = logdet + added
        return x, logdet

    def inverse(self, y):
        logdet = zeros(y)
        for step in reversed(self.steps):
            y, added = step.inverse(y)
            logdet = logdet + added
        return y, logdet

    def keep(self, x):
        kept, logdet = [], zeros(x)
        for step in self.steps:
            x, added, own = step.keep(x)
            logdet = logdet + added
            kept.append(own)
        return x, logdet, kept

    def back(self, kept, y, dy, dlogdet):
        total = {}
        for step, own in zip(reversed(self.steps), reversed(kept), strict=True):
            y, dy, grads = step.back(own, y, dy, dlogdet)
            for p, grad in zip(trainable(step), grads, strict=True):
                total[p] = total[p] + grad if p in total else grad
        return y, dy, [total[p] for p in trainable(self)]


class Half(Bijector):
    """A bijection of the first half of the channels; the others stay as they are.

    x: (B, C, ...)    Raises ValueError for an odd C. (Dinh et al. 2016, section 3.6)
    """

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        a, b = halves(x)
        a, logdet = self.inner(a)
        return torch.cat([a, b], 1), logdet

    def inverse(self, y):
        a, b = halves(y)
        a, logdet = self.inner.inverse(a)
        return torch.cat([a, b], 1), logdet

    def keep(self, x):
        a, b = halves(x)
        a, logdet, kept = self.inner.keep(a)
        return torch.cat([a, b], 1), logdet, kept

    def back(self, kept, y, dy, dlogdet):
        (a, b), (da, db) = halves(y), halves(dy)
        a, da, grads = self.inner.back(kept, a, da, dlogdet)
        return torch.cat([a, b], 1), torch.cat([da, db], 1), grads


def halves(x):
    if x.shape[1] % 2:
        raise ValueError(f"Half: x: expected an even number of channels, got {x.shape[1]}")
    return x.chunk(2, 1)


class Reversible(torch.autograd.Function):
    """A chain whose gradients are computed from its output."""

    @staticmethod
    def forward(ctx, chain, x, *parameters):
        y, logdet, ctx.kept = chain.keep(x)
        ctx.chain, ctx.cast = chain, autocast(x.device.type)
        # The parameters take no memory, but tell if one is changed before the gradient is taken.
        ctx.save_for_backward(y, *parameters)
        return y, logdet

    @staticmethod
    def backward(ctx, dy, dlogdet):
        if torch.is_grad_enabled():
            message = "gradients of gradients need a graph: expected reversible=False"
            raise RuntimeError(f"Chain: {message}")
        y = ctx.saved_tensors[0]
        with ctx.cast:
            _, dx, grads = ctx.chain.back(ctx.kept, y, dy, dlogdet)
        return None, dx, *grads


def autocast(kind):
    """A context in which autocast is as it is now, for a type of device."""
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype, enabled=on)
