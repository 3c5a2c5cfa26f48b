"""The scales of a flow of images: where half of the channels become sources early."""

import torch

from ..nn import Chain, Half, Squeeze, Unsqueeze

MOST = 16  # scales


def multiscale(shape, scales, steps):
    """Bijectors of images that keep the shape: after each scale but the last, half is done.

    steps: (C, scale) -> the two lists of bijectors of a scale, before its squeeze and after
    (Dinh et al. 2016, Real NVP, section 3.6.)
    """

    def build(C, scale):
        before, after = steps(C, scale)
        if not after:
            return before
        rest = Half(Chain(*build(2 * C, scale + 1))) if scale < scales - 1 else None
        return [*before, Squeeze(), *after, *([rest] if rest else []), Unsqueeze()]

    return build(shape[0], 0)


def scale_map(shape, scales):
    """Of each source the scale at which it is done, int64 of the shape; of vectors 0."""
    if len(shape) == 1:
        return torch.zeros(shape, dtype=torch.int64)

    def build(C, H, W, scale):
        if scale == scales - 1:
            return torch.full((1, C, H, W), scale)
        inner = build(2 * C, H // 2, W // 2, scale + 1)
        squeezed = torch.cat([inner, torch.full_like(inner, scale)], 1)
        return Unsqueeze()(squeezed)[0]

    return build(*shape, 0)[0]


def check_shape(name, shape, scales, even):
    """Raise ValueError unless images can be squeezed so often, or are a vector of two or more.

    even: the last scale has no squeeze, but W must be even
    """
    if len(shape) == 1:
        if shape[0] < 2:
            raise ValueError(f"{name}: shape: expected two numbers at least, got {shape}")
        return
    if scales > MOST:
        raise ValueError(f"{name}: scales: expected at most {MOST}, got {scales}")
    H, W = 2 ** (scales - 1 if even else scales), 2**scales
    if shape[1] % H or shape[2] % W:
        want = f"H a multiple of {H}, W of {W}, for {scales} scales"
        raise ValueError(f"{name}: shape: expected {want}, got {shape}")
