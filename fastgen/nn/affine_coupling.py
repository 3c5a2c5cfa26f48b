"""The coupling of NICE, Real NVP and Glow (Dinh et al. 2014, 2016; Kingma and Dhariwal 2018)."""

import torch
from torch import nn

from .. import kernels
from ..kernels._op import transformed
from ..kernels.affine_coupling import LAYOUTS, SCALES, SPLITS, halves, whole
from .bijector import Bijector, again, buffers, slopes

FEW = 1 << 16  # numbers, below which the calls of `Parted` cost more than the moves that it saves


class AffineCoupling(Bijector):
    """A part of x scaled and shifted as a network tells of the rest: `kernels.affine_coupling`.

    net: from what is kept, `kernels.kept_half`, to s and t in one tensor, side by side or
         alternating as `layout` says; with scale="additive" to t
    weight: a Parameter where it is learned, a tensor or a number where not
    forward and inverse take x (B, C, ...), and what else net takes; both return such a tensor and
    the log-determinant of what they did, (B,), so that it stands in for a coupling of normflows,
    nflows or zuko. Where their scale is none of ours, as exp(l), net gives l, with scale="exp".
    Raises ValueError for an unknown split, scale or layout, and where net changes what it sees.
    """

    def __init__(self, net, *, split="channel", scale="tanh", weight=None, swap=False, layout="st"):
        super().__init__()
        for name, value, known in (
            ("split", split, SPLITS[1:]),
            ("scale", scale, SCALES),
            ("layout", layout, LAYOUTS),
        ):
            if value not in known:
                raise ValueError(f"AffineCoupling: {name}: expected one of {known}, got {value!r}")
        self.net, self.scale, self.split, self.swap, self.layout = net, scale, split, swap, layout
        if weight is None or isinstance(weight, nn.Parameter):
            self.register_parameter("weight", weight)
        else:
            self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.get_default_dtype()))

    def forward(self, x, *context):
        return self.couple(x, context, inverse=False)

    def inverse(self, y, *context):
        return self.couple(y, context, inverse=True)

    def couple(self, x, context, inverse):
        x, seen = self.parted(x)
        before = version(x)
        h = self.net(seen, *context)
        if version(x) != before:
            got = "one that changes it in place"
            raise ValueError(f"AffineCoupling: net: expected to leave what it sees, got {got}")
        return kernels.affine_coupling(x, h, inverse=inverse, **self.options())

    def parted(self, x):
        """x, and what the network sees of it."""
        if not x.requires_grad or x.numel() < FEW or transformed((x,)):
            return x, kernels.kept_half(x, self.split, self.swap)
        return Parted.apply(x, self.split, self.swap, self.scale != "additive")

    def options(self):
        """What `kernels.affine_coupling` is told besides tensors of the batch."""
        return {
            "scale": self.scale,
            "weight": self.weight,
            "split": self.split,
            "swap": self.swap,
            "layout": self.layout,
        }

    def keep(self, x):
        before = buffers(self.net)
        return *self(x), before

    def back(self, kept, y, dy, dlogdet):
        """The network runs once: what it sees is a part of y."""
        with again(self.net, kept) as (net, parameters):
            seen = kernels.kept_half(y, self.split, self.swap).detach().requires_grad_()
            h = net(seen)
        options = self.options()
        x, dx, dh, _, dweight = kernels.affine_coupling_grad(y, dy, dlogdet, h.detach(), **options)
        dseen, grads = slopes((h,), (dh,), seen, parameters)
        dx = joined(dx, dseen, self.split, self.swap, own=dx is not dy)
        learned = self.weight is not None and self.weight.requires_grad
        return x, dx, [dweight, *grads] if learned else grads

    def extra_repr(self):
        return f"split={self.split!r}, scale={self.scale!r}, swap={self.swap}"


class Parted(torch.autograd.Function):
    """x, and the part of it that is kept, whose gradient is added to that of x in place.

    Left to itself autograd makes of it a gradient of all of x and adds the two: 5 numbers moved for
    each of x, in place of 3 for each that is kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, split, swap, own):
        return x, kernels.kept_half(x, split, swap)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *ctx.options = inputs

    @staticmethod
    def backward(ctx, dx, dseen):
        return joined(dx, dseen, *ctx.options), None, None, None


def joined(dx, dseen, split, swap, own):
    """The gradient of x, with that of what is kept: in dx, where that is our own to change."""
    if not own or torch.is_grad_enabled():
        kept, changed = halves(dx, split, swap)
        return whole(kept + dseen, changed, split, swap)
    if split == "checkerboard":
        for row in (0, 1):
            dx[:, :, row::2, (row + swap) % 2 :: 2] += dseen[:, :, row::2]
    else:
        kernels.kept_half(dx, split, swap).add_(dseen)  # a view
    return dx


def version(x):
    """How often x was written to, where that is known."""
    known = not (torch.compiler.is_compiling() or x.is_inference() or transformed((x,)))
    return x._version if known else None
