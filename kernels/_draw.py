"""Drawing codes from a network's outputs by inversion of uniform numbers."""

import itertools
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


def draw_raster(say, see, levels, uniforms, given, temperature, logits, dtype):
    """Images in plain torch, a color after a color, of a network that is two functions.

    say(i, j, c, codes) gives logits (n, levels) of a color of a pixel, from codes (n, C, H, W) of
    those before; see(i, j, c, x) takes what it then is, in [-1, 1]
    returns: codes, logits (n, C, H, W, levels) or nothing, place of the first NaN or -1 (n,)
    """
    n, C, H, W = uniforms.shape
    codes = given.clamp(min=0)
    values = torch.empty((n, C, H, W, levels) if logits else (0,), dtype=dtype, device=given.device)
    failed = given.new_full((n,), -1)
    for i, j, c in itertools.product(range(H), range(W), range(C)):
        z, drawn = say(i, j, c, codes), given[:, c, i, j] < 0
        bad = ~z.isfinite().all(1) & (drawn | logits)
        if bad.any():
            failed[bad] = (i * W + j) * C + c
            break
        level = draw(z, uniforms[:, c, i, j], temperature[:, c, i, j], levels)
        codes[:, c, i, j] = torch.where(drawn, level, given[:, c, i, j])
        if logits:
            values[:, c, i, j] = z
        see(i, j, c, codes[:, c, i, j].to(dtype) * (2 / (levels - 1)) - 1)
    return codes, values, failed


def drawing(name, uniforms, given, temperature, colors, levels, device="cpu"):
    """Uniforms, given levels and temperatures as a kernel takes them; raises as `check_drawing`."""
    given = torch.full(uniforms.shape, -1) if given is None else given
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    check_drawing(name, uniforms, given, temperature, colors, levels)
    u, given, temperature = (v.to(device) for v in (uniforms, given, temperature))
    return u.double(), given, temperature.expand(u.shape)


def outputs(words, given, levels, logits):
    """What a kernel writes: codes, logits (n, C, H, W, levels) or nothing, failed (n,)."""
    values = words.new_empty((*given.shape, levels) if logits else (0,))
    return given.new_empty(given.shape), values, given.new_full((len(given),), -1)


def finished(name, codes, values, failed, device, logits):
    """Levels (n, C, H, W), and logits (n, levels, C, H, W) if wanted; raises as `raise_failed`."""
    raise_failed(name, failed, codes.shape)
    codes = codes.to(device)
    return (codes, values.to(device).movedim(-1, 1)) if logits else codes


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
