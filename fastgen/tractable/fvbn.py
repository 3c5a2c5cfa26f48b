"""FVSBN, the fully visible sigmoid belief network: logistic autoregression (Frey et al. 1996)."""

import torch
import torch.nn.functional as F
from torch import nn

from .binary import Binary, check_config


class FVSBN(Binary):
    """A logistic regression of each pixel on those before it.

        p(x[o_i] = 1 | x[o_<i]) = sigmoid(bias_i + sum_{j<i} weight_ij x[o_j])

    shape: of an image, (C, H, W) or (D,)    order: of the pixels, the raster's unless given

    Raises ValueError for sizes that do not fit.
    Frey, Hinton and Dayan 1996, Does the wake-sleep algorithm produce good density estimators?
    """

    def __init__(self, shape=(1, 28, 28), order=None):
        check_config("FVSBN", shape, order)
        super().__init__(shape, order)
        D = self.pixels
        self.config = {"shape": list(shape), "order": order and list(order)}
        self.weight = nn.Parameter(torch.zeros(D, D))  # of it, what is below the diagonal
        self.bias = nn.Parameter(torch.zeros(D))

    def logits(self, x, s=0):
        return F.linear(x, self.weight.tril(-1), self.bias)

    def steps(self, n, s=0):
        x = self.weight.new_zeros(n, self.pixels)
        for i in range(self.pixels):
            x[:, i] = yield x[:, :i] @ self.weight[i, :i] + self.bias[i]
