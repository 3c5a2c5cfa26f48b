"""The coupling of NICE, Real NVP and Glow (Dinh et al. 2014, 2016; Kingma and Dhariwal 2018)."""

import torch
from torch import nn

from .. import kernels
from ..kernels.affine_coupling import LAYOUTS, SCALES, SPLITS
from .bijector import Bijector, again, slopes


class AffineCoupling(Bijector):
    """A part of x scaled and shifted as a network tells of the rest: `kernels.affine_coupling`.

    net: from what is kept, `kernels.kept_half`, to s and t in one tensor, side by side or
         alternating as `layout` says; with scale="additive" to t
    weight: a Parameter where it is learned, a tensor or a number where not
    forward and inverse take x (B, C, ...), and what else net takes; both return such a tensor and
    the log-determinant of what they did, (B,), so that it stands in for a coupling of normflows or
    nflows.
    Raises ValueError for an unknown split, scale or layout.
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
        h = self.net(kernels.kept_half(x, self.split, self.swap), *context)
        return kernels.affine_coupling(x, h, inverse=inverse, **self.options())

    def options(self):
        """What `kernels.affine_coupling` is told besides tensors of the batch."""
        return {
            "scale": self.scale,
            "weight": self.weight,
            "split": self.split,
            "swap": self.swap,
            "layout": self.layout,
        }

    def back(self, kept, y, dy, dlogdet):
        """The network runs once: what it sees is a part of y."""
        with again(self.net) as (net, parameters):
            seen = kernels.kept_half(y, self.split, self.swap).detach().requires_grad_()
            h = net(seen)
        options = self.options()
        x, dx, dh, _, dweight = kernels.affine_coupling_grad(y, dy, dlogdet, h.detach(), **options)
        dseen, grads = slopes((h,), (dh,), seen, parameters)
        dx = self.add(dx.clone() if dx is dy else dx, dseen)
        learned = self.weight is not None and self.weight.requires_grad
        return x, dx, [dweight, *grads] if learned else grads

    def add(self, dx, dseen):
        """The gradient of all of x, with that of what the network sees added in place."""
        if self.split == "checkerboard":
            for row in (0, 1):
                dx[:, :, row::2, (row + self.swap) % 2 :: 2] += dseen[:, :, row::2]
        else:
            kernels.kept_half(dx, self.split, self.swap).add_(dseen)  # a view
        return dx

    def extra_repr(self):
        return f"split={self.split!r}, scale={self.scale!r}, swap={self.swap}"
