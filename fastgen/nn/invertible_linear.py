"""A square matrix as a bijection of vectors."""

import torch
import torch.nn.functional as F
from torch import nn

from .bijector import Bijector, wide


class InvertibleLinear(Bijector):
    """y = W x, W any matrix that is not singular, at first a random rotation.

    Its log-determinant and its inverse cost D^3 a call; `InvertibleConv1x1` has them for less, but
    what its decomposition begins with keeps some matrices out of its reach. x: (B, D)
    """

    def __init__(self, D):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D, D))
        if not self.weight.is_meta:  # else it comes from a file
            nn.init.orthogonal_(self.weight)

    def forward(self, x):
        return F.linear(x, self.weight), self.logdet(x)

    def inverse(self, y):
        x, _ = torch.linalg.solve_ex(self.weight, y.T)  # without waiting to know if it is singular
        return x.T.contiguous(), -self.logdet(y)

    def logdet(self, x):
        return torch.linalg.slogdet(self.weight)[1].to(wide(x.dtype)).expand(len(x))
