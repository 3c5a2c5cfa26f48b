"""The coupling of NICE, Real NVP and Glow (Dinh et al. 2014, 2016; Kingma and Dhariwal 2018)."""

import torch
from torch import nn

from .. import kernels
from ..kernels.affine_coupling import LAYOUTS, SCALES, SPLITS


class AffineCoupling(nn.Module):
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
        options = {"split": self.split, "swap": self.swap, "layout": self.layout}
        return kernels.affine_coupling(
            x, h, scale=self.scale, weight=self.weight, inverse=inverse, **options
        )

    def extra_repr(self):
        return f"split={self.split!r}, scale={self.scale!r}, swap={self.swap}"
