"""Noise on what a discriminator sees."""

import torch
from torch import nn


class GaussianNoise(nn.Module):
    """x + std n, n ~ N(0, 1) for each number, in training; x in evaluation.

    (Salimans et al. 2016 put it before each layer of a discriminator.) x: any shape
    Raises ValueError for a std below 0.
    """

    def __init__(self, std):
        super().__init__()
        if not std >= 0:
            raise ValueError(f"GaussianNoise: std: expected 0 or more, got {std}")
        self.std = std

    def forward(self, x):
        return x + self.std * torch.randn_like(x) if self.training and self.std else x

    def extra_repr(self):
        return f"std={self.std}"
