"""The networks that tell couplings what to do."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


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
