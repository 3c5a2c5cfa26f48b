"""The invertible 1x1 convolution of Glow (Kingma and Dhariwal 2018)."""

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels._op import without_autocast
from .bijector import Bijector, check_channels, wide


class InvertibleConv1x1(Bijector):
    """A square matrix on the channels, held as its LU decomposition.

        y = P L (U + diag(sign exp(log_scale))) x,  log |det| = H W sum log_scale

    P is a permutation, L unit lower and U strictly upper triangular; P and the signs stay what they
    are at first, those of a random rotation. The inverse solves two triangular systems.
    Under autocast too it is computed as x is, or it would lose what no inverse finds.
    x: (B, C, ...)    Raises ValueError for another C.
    (Kingma and Dhariwal 2018, Glow, section 3.2.)
    """

    def __init__(self, channels):
        super().__init__()
        C = channels
        self.lower = nn.Parameter(torch.zeros(C, C))
        self.upper = nn.Parameter(torch.zeros(C, C))
        self.log_scale = nn.Parameter(torch.zeros(C))
        self.register_buffer("sign", torch.ones(C))
        self.register_buffer("order", torch.arange(C))  # y[order] = L U x
        if not self.sign.is_meta:  # else they come from a file
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """A random rotation."""
        C = len(self.sign)
        rotation = torch.linalg.qr(torch.randn(C, C, dtype=torch.float64))[0]
        P, L, U = torch.linalg.lu(rotation)
        self.lower.copy_(L.tril(-1))
        self.upper.copy_(U.triu(1))
        self.log_scale.copy_(U.diagonal().abs().log())
        self.sign.copy_(U.diagonal().sign())
        self.order.copy_(P.argmax(0))

    def own(self):
        return self.lower, self.upper, self.log_scale

    def factors(self, lower, upper, log_scale):
        """L and U, with their diagonals."""
        L = lower.tril(-1) + torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        return L, upper.triu(1) + torch.diag(self.sign * torch.exp(log_scale))

    def weight(self, *parameters):
        L, U = self.factors(*parameters)
        return (L @ U)[self.order.argsort()]

    @without_autocast
    def forward(self, x):
        check_channels(self, x, len(self.sign))
        weight = self.weight(*self.own()).to(x.dtype)
        if x.ndim == 2:
            return F.linear(x, weight), self.logdet(x)
        image = x if x.ndim == 4 else x.flatten(2)[..., None]
        return F.conv2d(image, weight[:, :, None, None]).view(x.shape), self.logdet(x)

    @without_autocast
    def inverse(self, y):
        check_channels(self, y, len(self.sign))
        L, U = (v.to(wide(v.dtype)) for v in self.factors(*self.own()))
        rows = y.movedim(1, 0).flatten(1)[self.order]  # (C, B ...)
        rows = torch.linalg.solve_triangular(L, rows.to(L.dtype), upper=False, unitriangular=True)
        rows = torch.linalg.solve_triangular(U, rows, upper=True)
        shape = (y.shape[1], y.shape[0], *y.shape[2:])
        return rows.to(y.dtype).view(shape).movedim(0, 1).contiguous(), -self.logdet(y)

    @without_autocast
    def back(self, kept, y, dy, dlogdet):
        own = [p.detach().requires_grad_(p.requires_grad) for p in self.own()]
        x, leaves = self.inverse(y)[0], [p for p in own if p.requires_grad]
        rows, drows = (v.reshape(*v.shape[:2], -1) for v in (x, dy))  # (B, C, ...)
        with torch.enable_grad():
            weight, logdet = self.weight(*own), self.log_scale_sum(own[2], y)
            dx = (weight.detach().to(dy.dtype).T @ drows).view(y.shape)
            if not leaves:
                return x, dx, []
            dweight = torch.einsum("bin,bjn->ij", drows, rows).to(weight)
            total = (weight * dweight).sum() + logdet * dlogdet.sum()
        return x, dx, [*torch.autograd.grad(total, leaves)]

    def logdet(self, x):
        return self.log_scale_sum(self.log_scale, x).expand(len(x))

    def log_scale_sum(self, log_scale, x):
        return log_scale.sum().to(wide(x.dtype)) * x.shape[2:].numel()
