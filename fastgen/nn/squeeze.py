"""Bijections without parameters: squeeze, rescale and logit."""

import math

import torch
import torch.nn.functional as F

from .bijector import Bijector, wide, zeros


class Squeeze(Bijector):
    """Each square of 2 x 2 pixels into one of four times the channels.

    x: (B, C, H, W)    y: (B, 4C, H / 2, W / 2), of a channel the four pixels in raster order
    Raises ValueError for other shapes, and for odd H or W.
    (Dinh et al. 2016, Real NVP, section 3.6.)
    """

    def forward(self, x):
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            got = tuple(x.shape)
            raise ValueError(f"Squeeze: x: expected (B, C, H, W) with even H and W, got {got}")
        B, C, H, W = x.shape
        squares = x.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return squares.reshape(B, 4 * C, H // 2, W // 2), zeros(x)

    def inverse(self, y):
        if y.ndim != 4 or y.shape[1] % 4:
            got = tuple(y.shape)
            raise ValueError(f"Squeeze: y: expected (B, 4C, H, W), got {got}")
        B, C, H, W = y.shape
        squares = y.reshape(B, C // 4, 2, 2, H, W).permute(0, 1, 4, 2, 5, 3)
        return squares.reshape(B, C // 4, 2 * H, 2 * W), zeros(y)

    def back(self, kept, y, dy, dlogdet):
        return self.inverse(y)[0], self.inverse(dy)[0], []


class Unsqueeze(Squeeze):
    """The inverse of `Squeeze`, as a bijection. x: (B, 4C, H, W)    y: (B, C, 2H, 2W)"""

    def forward(self, x):
        return Squeeze.inverse(self, x)

    def inverse(self, y):
        return Squeeze.forward(self, y)


class Rescale(Bijector):
    """y = x / width: an image of levels in [0, width) becomes one in [0, 1)."""

    def __init__(self, width):
        super().__init__()
        if not 0 < width < math.inf:
            raise ValueError(f"Rescale: width: expected finite and above 0, got {width}")
        self.width = width

    def forward(self, x):
        return x / self.width, zeros(x) - math.log(self.width) * x[:1].numel()

    def inverse(self, y):
        return y * self.width, zeros(y) + math.log(self.width) * y[:1].numel()


class Logit(Bijector):
    """y = log p - log(1 - p),  p = alpha + (1 - 2 alpha) x, of x in [0, 1].

    log dy/dx = log(1 - 2 alpha) - log p - log(1 - p), which is summed over a row.
    Raises ValueError for an alpha outside [0, 1/2). (Dinh et al. 2016, Real NVP, section 4.1.)
    """

    def __init__(self, alpha=0.05):
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit: alpha: expected in [0, 0.5), got {alpha}")
        self.alpha = alpha

    def forward(self, x):
        y = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return y, self.logdet(y)

    def inverse(self, y):
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha), -self.logdet(y)

    def logdet(self, y):
        wider = y.to(wide(y.dtype))
        slopes = F.softplus(wider) + F.softplus(-wider) + math.log1p(-2 * self.alpha)
        return slopes.flatten(1).sum(1)
