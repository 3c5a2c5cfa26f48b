"""Drawing codes from a network's outputs by inversion of uniform numbers."""

import math

import torch


def draw(outputs, u, temperature, classes, mixtures=0):
    """Codes from outputs: a softmax over classes, or a discretized mixture of logistics.

    At temperature 0 the likeliest class, or the mean of the heaviest component.
    outputs: (n, A) or (n, 3 M)    u: (n,) or (n, 2) in [0, 1)    returns: (n,) int64
    """
    if mixtures:
        return draw_mixture(outputs, u, temperature, classes)
    return invert_cdf(outputs, u, temperature)


def invert_cdf(logits, u, temperature):
    """The number of CDF entries <= u, at most the last class of positive probability.

    logits: (n, A)    u: (n,) in [0, 1)    temperature: a number, or (n,)    returns: (n,) int64
    """
    if isinstance(temperature, torch.Tensor):
        likeliest = temperature == 0
        # 1 where it is 0, so that all but those are drawn as they would be alone
        rows = torch.where(likeliest, 1, temperature).clamp(min=1e-30).to(logits)[:, None]
        return torch.where(likeliest, logits.argmax(1), invert_scaled(logits, u, rows))
    if temperature == 0:
        return logits.argmax(1)
    return invert_scaled(logits, u, max(temperature, 1e-30))


def invert_scaled(logits, u, temperature):
    """`invert_cdf` at temperatures above 0, a number or (n, 1)."""
    # from the top down, so that a temperature near 0 makes no inf - inf
    p = torch.softmax((logits - logits.amax(1, keepdim=True)) / temperature, dim=1)
    cdf = p.cumsum(1)
    last = logits.shape[1] - 1 - (p > 0).flip(1).to(torch.uint8).argmax(1)
    return torch.minimum((cdf <= (u.to(p.dtype) * cdf[:, -1])[:, None]).sum(1), last)


def draw_mixture(params, u, temperature, classes):
    """u[:, 0] picks the component, u[:, 1] the place within it; the nearest code is taken.

    params: (n, 3 M), logits, means, log-scales    u: (n, 2) in [0, 1)    returns: (n,) int64
    """
    logits, mean, log_scale = params.chunk(3, dim=1)
    component = invert_cdf(logits, u[:, 0], temperature)
    rows = torch.arange(len(component), device=params.device)
    x = mean[rows, component]
    if temperature > 0:
        # 0 * inf is not a sample: quantiles are finite, and at the median it is the mean
        quantile = torch.logit(u[:, 1].to(params.dtype)).clamp(-40, 40)
        deviation = temperature * torch.exp(log_scale[rows, component]) * quantile
        x = torch.where(quantile == 0, x, x + deviation)
    return ((x.clamp(-1, 1) + 1) * ((classes - 1) / 2)).round().long()


def check_drawing(name, uniforms, given, temperature, colors, levels):
    """Raise ValueError or TypeError unless these can draw images (n, colors, H, W) of `levels`.

    uniforms: (n, C, H, W)    given: likewise, int64    temperature: a shape that expands to it
    """

    def expect(ok, what, expected, got, error=ValueError):
        if not ok:
            raise error(f"{name}: {what}: expected {expected}, got {got}")

    tensors = {"uniforms": uniforms, "given": given, "temperature": temperature}
    shape = tuple(uniforms.shape)
    fits = len(shape) == 4 and shape[1] == colors
    expect(fits, "uniforms", f"(n, {colors}, H, W)", shape)
    for what, tensor in tensors.items():
        expect(not tensor.is_meta, what, "values", "a meta tensor")
    inside = ((uniforms >= 0) & (uniforms < 1)).all()
    expect(inside, "uniforms", "values in [0, 1)", "others")
    expect(given.shape == shape, "given", shape, tuple(given.shape))
    expect(given.dtype == torch.int64, "given", torch.int64, given.dtype, TypeError)
    inside = ((given >= -1) & (given < levels)).all()
    expect(inside, "given", f"levels in [-1, {levels})", "others")
    try:
        temperature.expand(shape)
    except RuntimeError:
        expect(False, "temperature", shape, tuple(temperature.shape))
    inside = ((temperature >= 0) & (temperature < math.inf)).all()
    expect(inside, "temperature", "finite values >= 0", "others")


def not_finite(name, image, t, shape):
    """What to say of logits that are not finite at place t of the raster of images `shape`."""
    _, C, _, W = shape
    where = f"image {image} at row {t // (W * C)}, column {t // C % W}, color {t % C}"
    return f"{name}: the logits of {where} are not finite"


def raise_failed(name, failed, shape):
    """Raise ValueError naming the first image with a place in `failed` (n,), -1 being none."""
    if (failed >= 0).any():
        image = int((failed >= 0).nonzero()[0])
        raise ValueError(not_finite(name, image, int(failed[image]), shape))
