"""A square matrix as a bijection of vectors."""

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels._op import without_autocast
from .bijector import Bijector, wide


class InvertibleLinear(Bijector):
    """y = W x, W any matrix that is not singular, at first a random rotation.

    Its log-determinant and its inverse cost D^3 a call; `InvertibleConv1x1` has them for less, but
    what its decomposition begins with keeps some matrices out of its reach. Under autocast too it
    is computed as x is. x: (B, D)    Raises ValueError for another shape.
    """

    def __init__(self, D):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D, D))
        if not self.weight.is_meta:  # else it comes from a file
            nn.init.orthogonal_(self.weight)

    @without_autocast
    def forward(self, x):
        self.check(x)
        return F.linear(x, self.weight.to(x.dtype)), self.logdet(x)

    @without_autocast
    def inverse(self, y):
        self.check(y)
        weight = self.weight.to(wide(self.weight.dtype))
        # without waiting to know if it is singular
        x, _ = torch.linalg.solve_ex(weight, y.T.to(weight.dtype))
        return x.T.contiguous().to(y.dtype), -self.logdet(y)

    def logdet(self, x):
        weight = self.weight.to(wide(self.weight.dtype))
        return torch.linalg.slogdet(weight)[1].to(wide(x.dtype)).expand(len(x))

    def check(self, x):
        D = len(self.weight)
        if x.ndim != 2 or x.shape[1] != D:
            raise ValueError(f"InvertibleLinear: x: expected (B, {D}), got {tuple(x.shape)}")
