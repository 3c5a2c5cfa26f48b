"""The convolution of PixelCNN (van den Oord et al. 2016)."""

from torch import nn

from .. import kernels
from ..kernels.masked_conv2d import MASKS


class MaskedConv2d(nn.Conv2d):
    """A Conv2d that sees the pixels before each one alone: `kernels.masked_conv2d`.

    Parameters, their names and their initialisation are Conv2d's. Weights that the mask shuts out
    keep their values and have zero gradient. x: (B, C, H, W)    returns: (B, O, H, W)
    Raises ValueError for another stride, padding or padding_mode than one that keeps the size of
    an image among zeros, for even kernels, and for masks and colors that do not fit.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding="same",
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        mask,
        colors=1,
    ):
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            *(padding_mode, device, dtype),
        )
        self.mask_type, self.colors = mask, colors
        if mask not in MASKS:
            raise ValueError(f"MaskedConv2d: mask: expected one of {MASKS}, got {mask!r}")
        if colors < 1 or in_channels % colors or out_channels % colors:
            sizes = f"{in_channels} and {out_channels}"
            raise ValueError(f"MaskedConv2d: colors: expected a divisor of {sizes}, got {colors}")
        if colors > 1 and mask not in ("A", "B"):
            raise ValueError(f'MaskedConv2d: colors: expected 1 for mask "{mask}", got {colors}')
        if not all(k % 2 for k in self.kernel_size):
            raise ValueError(f"MaskedConv2d: kernel_size: expected odd, got {self.kernel_size}")
        if self.stride != (1, 1) or padding_mode != "zeros":
            got = f"{self.stride} and {padding_mode!r}"
            raise ValueError(f'MaskedConv2d: expected a stride of 1 among "zeros", got {got}')
        same = tuple(k // 2 * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
        if self.padding not in ("same", same):
            raise ValueError(f'MaskedConv2d: padding: expected "same" or {same}, got {padding}')

    def forward(self, x):
        return kernels.masked_conv2d(
            *(x, self.weight, self.bias),
            **{"mask": self.mask_type, "colors": self.colors},
            **{"dilation": self.dilation, "groups": self.groups},
        )

    def extra_repr(self):
        colors = f", colors={self.colors}" if self.colors > 1 else ""
        return f"{super().extra_repr()}, mask={self.mask_type!r}{colors}"
