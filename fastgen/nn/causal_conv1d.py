"""The convolution of WaveNet (van den Oord et al. 2016)."""

import torch.nn.functional as F
from torch import nn


class CausalConv1d(nn.Conv1d):
    """A Conv1d that sees no later sample, as long as its input: zeros stand left of it.

    Parameters, their names and their initialisation are Conv1d's. x: (B, C, T)
    returns: (B, O, T)
    Raises ValueError for another stride, padding or padding_mode.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
    ):
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            *(padding_mode, device, dtype),
        )
        if self.stride != (1,) or padding_mode != "zeros":
            got = f"{self.stride} and {padding_mode!r}"
            raise ValueError(f'CausalConv1d: expected a stride of 1 among "zeros", got {got}')
        if self.padding != (0,):
            raise ValueError(f"CausalConv1d: padding: expected 0, it pads by itself, got {padding}")

    def forward(self, x):
        pad = (self.kernel_size[0] - 1) * self.dilation[0]
        if pad:
            x = F.pad(x, (pad, 0))
        return F.conv1d(x, self.weight, self.bias, 1, 0, self.dilation, self.groups)
