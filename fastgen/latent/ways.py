"""Codes between codes, along an axis, and of concepts added up."""

import torch


def arithmetic(a, b, c):
    """mean(a) - mean(b) + mean(c) of N codes of each of three concepts.

    Of man with glasses - man + woman it is a woman's with glasses, where both are directions. Of
    N = 3 independent standard normal codes each, the result is as far from 0 as one of them.

    a, b, c: (..., N, D)    returns: (..., D)
    Raises ValueError for no codes, and codes of different sizes.
    Radford, Metz and Chintala 2015, Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks, section 6.3.2.
    """
    for codes in (a, b, c):
        if codes.dim() < 2 or not codes.shape[-2] or codes.shape[-1] != a.shape[-1]:
            got = ", ".join(str(tuple(codes.shape)) for codes in (a, b, c))
            raise ValueError(f"arithmetic: expected codes (..., N, D), N >= 1, got {got}")
    return a.mean(-2) - b.mean(-2) + c.mean(-2)


def interpolate(a, b, steps, kind="spherical"):
    """Codes on the way from a to b, both ends among them.

        "linear"     (1 - t) a + t b
        "spherical"  (sin((1 - t) w) a + sin(t w) b) / sin w,  w the angle between a and b

    Normal codes of many dimensions are about equally far from 0, and so are those between them on
    the spherical way; halfway on the linear one they are nearer by sqrt 2.

    a, b: (N, ...)    t: 0, 1 / (steps - 1) ... 1    returns: (N, steps, ...)
    Raises ValueError for shapes that differ, steps < 2, an unknown kind, and of the spherical way
    codes of 0 and opposite ones, between which there are many.
    Shoemake 1985, Animating Rotation with Quaternion Curves; White 2016, Sampling Generative
    Networks.
    """
    if a.shape != b.shape or a.dim() < 2:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"interpolate: expected codes of one shape (N, ...), got {got}")
    if steps < 2:
        raise ValueError(f"interpolate: steps: expected >= 2, got {steps}")
    if kind not in ("linear", "spherical"):
        raise ValueError(f"interpolate: kind: expected linear or spherical, got {kind!r:.80}")
    one, other = (x[:, None].flatten(2).double() for x in (a, b))
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device)[:, None]
    if kind == "spherical":
        angle = between(one, other)
        shares = [torch.sinc(s * angle / torch.pi) * s for s in (1 - t, t)]
        shares = [share / torch.sinc(angle / torch.pi) for share in shares]
    else:
        shares = [1 - t, t]
    found = shares[0] * one + shares[1] * other
    found[:, 0], found[:, -1] = one[:, 0], other[:, 0]  # the sine of w - 0 w is not quite sin w
    return found.to(a.dtype).view(len(a), steps, *a.shape[1:])


def between(a, b):
    """The angle between codes (N, 1, D), (N, 1, 1), exact where it is small too."""
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (a, b))
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    bad = ~(angle < torch.pi - 1e-6)  # NaN of a code of 0 among them
    if bad.any():
        place = int(bad.flatten().nonzero()[0])
        raise ValueError(f"interpolate: expected one way at place {place}, got 0 or opposite codes")
    return angle


def traverse(z, axis, values):
    """Codes that differ in one coordinate, which takes each of the values.

    z: (N, D)    axis: of D    values: V numbers    returns: (N, V, D)
    Raises ValueError for other shapes and an axis that there is not.
    """
    if z.dim() != 2 or not 0 <= axis < z.shape[1]:
        got = f"{axis} of {tuple(z.shape)}"
        raise ValueError(f"traverse: expected an axis of codes (N, D), got {got}")
    values = torch.as_tensor(values, dtype=z.dtype, device=z.device)
    found = z[:, None].repeat(1, len(values), 1)
    found[:, :, axis] = values
    return found
