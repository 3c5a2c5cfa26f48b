"""Couplings and the networks that tell them what to do."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from .. import kernels
from ..nn.bijector import Bijector, again, slopes


class Coupling(Bijector):
    """One half of x scaled and shifted as a network says of the other: `kernels.affine_coupling`.

    net: of what is kept, returns s and t side by side, of "additive" t    weight: learned, of each
    channel that changes, where a number is given to begin with
    """

    def __init__(self, net, split, swap=False, scale="tanh", weight=None):
        super().__init__()
        self.net, self.weight = net, weight
        self.options = {"scale": scale, "split": split, "swap": swap}

    def forward(self, x):
        return self.couple(x)

    def inverse(self, y):
        return self.couple(y, inverse=True)

    def couple(self, x, inverse=False):
        h = self.net(self.kept(x))
        return kernels.affine_coupling(x, h, weight=self.weight, inverse=inverse, **self.options)

    def kept(self, x):
        return kernels.kept_half(x, self.options["split"], self.options["swap"])

    def back(self, kept, y, dy, dlogdet):
        """The network runs once: what it sees is a part of y."""
        with again(self.net) as (net, parameters):
            a = self.kept(y).detach().requires_grad_()
            h = net(a)
        x, dx, dh, _, dweight = kernels.affine_coupling_grad(
            y, dy, dlogdet, h.detach(), weight=self.weight, **self.options
        )
        da, grads = slopes((h,), (dh,), a, parameters)
        self.add(dx, da)
        own = [] if self.weight is None or not self.weight.requires_grad else [dweight]
        return x, dx, [*own, *grads]

    def add(self, dx, da):
        """Add the gradient of what is kept to that of all, in place."""
        split, swap = self.options["split"], self.options["swap"]
        if split == "checkerboard":
            for row in (0, 1):
                dx[:, :, row::2, (row + swap) % 2 :: 2] += da[:, :, row::2]
        else:
            self.kept(dx).add_(da)  # a view


class MLP(nn.Sequential):
    """Linear maps and rectifiers; the last map is zero at first. (B, C) -> (B, outputs)"""

    def __init__(self, hidden, depth, C, outputs):
        sizes = [C, *[hidden] * depth]
        layers = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers, zero(nn.Linear(sizes[-1], outputs)))


class ResNet(nn.Module):
    """A weight-normalised residual network; its output is zero at first.

        h <- first(x);  h <- h + conv(relu(conv(relu(h)))) in each block;  out(relu(h))

    x: (B, C, H, W)    returns: (B, outputs, H, W)    (Salimans and Kingma 2016, for the weights)
    """

    def __init__(self, hidden, blocks, C, outputs):
        super().__init__()
        self.first = weight_norm(nn.Conv2d(C, hidden, 3, padding=1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                weight_norm(nn.Conv2d(hidden, hidden, 3, padding=1)),
                nn.ReLU(inplace=True),
                weight_norm(nn.Conv2d(hidden, hidden, 3, padding=1)),
            )
            for _ in range(blocks)
        )
        self.out = weight_norm(nn.Conv2d(hidden, outputs, 1))
        nn.init.zeros_(self.out.parametrizations.weight.original0)  # the length: a zero has no way
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.out(torch.relu(h))


def convnet(hidden, C, outputs):
    """Glow's network; its last convolution is zero at first. (B, C, H, W) -> (B, outputs, H, W)"""
    return nn.Sequential(
        nn.Conv2d(C, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        zero(nn.Conv2d(hidden, outputs, 3, padding=1)),
    )


def zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
