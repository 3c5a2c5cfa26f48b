"""What all models share that see an image's pixels in raster order, and each but those before."""

import copy
import math
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import nn

from .. import kernels
from ..game import Player
from ..kernels._draw import check_drawing, not_finite
from ..kernels._op import may_wait, without_autocast

METHODS = ("cached", "naive", "jacobi")


class Raster(nn.Module):
    """An autoregressive model of images (C, H, W) of `levels` levels.

        p(x) = prod_t p(x[t] | x[0], ..., x[t-1], conditions)

    t goes through rows, pixels of a row, and colors of a pixel. A subclass has `config` with
    levels, colors, height and width, perhaps classes and cond_channels, the methods `logits` and
    `sample_cached`, and `rows_above`, how many rows above its own a prediction sees. Shifting an
    image by `stride` rows shifts what it says of it.
    """

    stride = 1

    def players(self):
        """Maximum likelihood: one player, who minimises nats a number of the image."""

        def loss(x, label=None, cond=None):
            return -self.log_prob(x, label, cond).mean() / x.shape[1:].numel()

        return [Player(type(self).__name__.lower(), self, loss)]

    def forward(self, x, label=None, cond=None):
        """What the network says of each number, given those before it.

        x: (B, C, H, W) int64    label: (B,) int64    cond: (B, cond_channels)
        returns: logits (B, levels, C, H, W)
        Raises ValueError for shapes that do not fit and values out of range, TypeError for dtypes.
        """
        scaled, cond = self.inputs(x, label, cond)
        (B, C, H, W), levels = x.shape, self.config["levels"]
        if not x.numel():  # convolutions take no empty image
            return scaled.new_zeros(B, levels, C, H, W)
        return self.logits(scaled, label, cond).view(B, C, levels, H, W).transpose(1, 2)

    def inputs(self, x, label, cond):
        """x in [-1, 1], and cond, in the parameters' dtype; raises what `forward` does."""
        check_images(self, x)
        check_conditions(self, len(x), label, cond)
        dtype = next(self.parameters()).dtype
        cond = None if cond is None else cond.to(dtype)
        return x.to(dtype) * (2 / (self.config["levels"] - 1)) - 1, cond

    def log_prob(self, x, label=None, cond=None):
        """Exact log-probability of images, in nats.

        x, label, cond: as in `forward`    returns: (B,)
        """
        logits = self(x, label, cond)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return -F.cross_entropy(logits, x, reduction="none").flatten(1).sum(1)

    def bits_per_dim(self, x, label=None, cond=None):
        """-log2 p(x) for each number of an image. (B,)"""
        return self.log_prob(x, label, cond) / (-math.log(2) * max(1, x.shape[1:].numel()))

    @torch.no_grad()
    @without_autocast
    def sample(
        self,
        n,
        *,
        seed=None,
        uniforms=None,
        size=None,
        temperature=1.0,
        label=None,
        cond=None,
        prefix=None,
        method="cached",
        dtype="float32",
        threads=None,
    ):
        """Draw n images; the same uniforms give the same images by every method.

        `uniforms` (n, C, H, W) in [0, 1), else drawn from `seed`; `size` (H, W), else the model's
        own; `temperature` a number, or a tensor that expands to (n, C, H, W), 0 taking the
        likeliest level; `label`, `cond`: as in `forward`. `prefix` (n, C, P <= H, W) int64 holds
        the upper P rows, -1 for each number that is to be drawn: so it gives any set of pixels.
        method "cached" is one op; "naive" is a forward pass for each number; "jacobi" draws all
        numbers in each pass until none changes. The two take dtype float32 or float64.
        returns: (n, C, H, W) int64
        Raises ValueError for shapes that do not fit and values out of range, TypeError for dtypes.
        """
        if method not in METHODS:
            raise ValueError(f"sample: method: expected one of {METHODS}, got {method!r}")
        H, W = (self.config["height"], self.config["width"]) if size is None else size
        if not all(isinstance(v, Integral) and v >= 0 for v in (n, H, W)):
            raise ValueError(f"sample: expected n, H, W >= 0, got {n}, {H}, {W}")
        C = self.config["colors"]
        if uniforms is None:
            uniforms = raster_uniforms(fresh(seed), n, C, H, W)
        if uniforms.shape != (n, C, H, W):
            want, got = (n, C, H, W), tuple(uniforms.shape)
            raise ValueError(f"sample: uniforms: expected {want}, got {got}")
        check_conditions(self, n, label, cond)
        device = next(self.parameters()).device
        given = given_levels(prefix, n, C, H, W).to(device)
        temperature = torch.as_tensor(temperature, dtype=torch.float64, device=device)
        uniforms = uniforms.to(device)
        check_drawing("sample", uniforms, given, temperature, C, self.config["levels"])
        inputs = (uniforms, given, temperature, label, cond, dtype)
        if method == "cached":
            return self.sample_cached(*inputs, threads)
        return (sample_naive if method == "naive" else sample_jacobi)(self, *inputs)[0]


def fresh(seed):
    """`seed`, or one from torch's global generator."""
    return int(torch.randint(1 << 62, ())) if seed is None else seed


def raster_uniforms(seed, n, C, H, W):
    """Uniform numbers (n, C, H, W), a pure function of seed, image and place in the raster."""
    return kernels.uniforms(seed, n, H * W * C).view(n, H, W, C).permute(0, 3, 1, 2).contiguous()


def given_levels(prefix, n, C, H, W):
    """`prefix` with -1 in the rows that it has not, (n, C, H, W).

    Raises ValueError for a shape that does not fit, TypeError for another dtype.
    """
    if prefix is None:
        return torch.full((n, C, H, W), -1)
    fits = prefix.dim() == 4 and prefix.shape[2] <= H
    if not fits or prefix.shape != (n, C, prefix.shape[2], W):
        want = f"({n}, {C}, at most {H}, {W})"
        raise ValueError(f"sample: prefix: expected {want}, got {tuple(prefix.shape)}")
    if prefix.dtype != torch.int64:
        raise TypeError(f"sample: prefix: expected int64, got {prefix.dtype}")
    return F.pad(prefix, (0, 0, 0, H - prefix.shape[2]), value=-1)


def working_copy(model, dtype):
    """The model in `dtype`, apart from the original."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"sample: dtype: expected 'float32' or 'float64', got {dtype!r}")
    return copy.deepcopy(model).to(getattr(torch, dtype)).requires_grad_(False).eval()


def from_row(model, x, row, label, cond):
    """The model's logits (n, levels, C, H - row, W) of the rows from `row` on."""
    start = max(0, row - model.rows_above) // model.stride * model.stride
    return model(x[:, :, start:], label, cond)[:, :, :, row - start :]


@without_autocast
def sample_naive(model, uniforms, given, temperature, label, cond, dtype):
    """A forward pass for each number: what the other samplers must agree with.

    returns: images, and how many passes it took
    """
    model, passes = working_copy(model, dtype), 0
    temperature = temperature.expand(uniforms.shape)
    x, (n, C, H, W) = given.clamp(min=0), given.shape
    for t in range(H * W * C if n else 0):
        i, j, c = t // (W * C), t // C % W, t % C
        drawn = given[:, c, i, j] < 0
        if not drawn.any():
            continue
        logits = from_row(model, x[:, :, : i + 1], i, label, cond)[:, :, c, 0, j]
        passes += 1
        check_finite(logits.isfinite().all(1) | ~drawn, t, given.shape)
        codes = kernels.draw(
            *(logits, uniforms[:, c, i, j], temperature[:, c, i, j]), logits.shape[1]
        )
        x[:, c, i, j] = torch.where(drawn, codes, x[:, c, i, j])
    return x, passes


@without_autocast
def sample_jacobi(model, uniforms, given, temperature, label, cond, dtype):
    """Passes that draw every number from the last pass's images, until none changes.

    In raster order each pass makes final at least the first number that is not yet so: of the rows
    before it nothing is computed any more. (Song et al. 2021, "Accelerating Feedforward Computation
    via Parallel Nonlinear Equation Solving")
    returns: images, and how many passes it took
    """
    model, passes = working_copy(model, dtype), 0
    x, (n, C, H, W) = given.clamp(min=0), given.shape
    free, temperature = given < 0, temperature.expand(uniforms.shape)

    def flat(v):  # (n, C, h, W) in raster order: (n, h W C)
        return v.permute(0, 2, 3, 1).flatten(1)

    wanted = flat(free).any(0).nonzero().flatten() if n else torch.empty(0)
    known = int(wanted[0]) if len(wanted) else H * W * C  # how many numbers are final
    while known < H * W * C:
        row = known // (W * C)
        logits = from_row(model, x, row, label, cond).movedim(1, -1)  # (n, C, h, W, A)
        passes += 1
        codes = kernels.draw(
            logits.flatten(0, 3),
            uniforms[:, :, row:].flatten(),
            temperature[:, :, row:].flatten(),
            logits.shape[-1],
        ).view(logits.shape[:-1])
        # what is final stays so, or a model that sees itself would never end
        later = raster_places(C, H, W)[:, row:].to(x.device) >= known
        codes = torch.where(free[:, :, row:] & later, codes, x[:, :, row:])
        changed = flat(codes != x[:, :, row:]).any(0).nonzero().flatten()
        before, known = known, row * W * C + int(changed[0]) + 1 if len(changed) else H * W * C
        good = flat(logits.isfinite().all(-1) | ~free[:, :, row:])
        for t in range(before, known):
            check_finite(good[:, t - row * W * C], t, given.shape)
        x = torch.cat([x[:, :, :row], codes], 2)
    return x, passes


def raster_places(C, H, W):
    """The place in the raster of each number of an image, (C, H, W)."""
    return torch.arange(H * W * C).view(H, W, C).permute(2, 0, 1)


def check_finite(good, t, shape):
    """Raise ValueError naming the first image that is not good (n,) at place t of the raster."""
    if not good.all():
        image = int((~good).nonzero()[0])
        raise ValueError(not_finite("sample", image, t, shape))


def check_images(model, x):
    """Raise ValueError or TypeError for what are no images of the model's levels."""
    name, C, levels = type(model).__name__, model.config["colors"], model.config["levels"]
    if x.dim() != 4 or x.shape[1] != C:
        raise ValueError(f"{name}: x: expected (B, {C}, H, W), got {tuple(x.shape)}")
    if x.dtype != torch.int64:
        raise TypeError(f"{name}: x: expected int64, got {x.dtype}")
    if x.numel() and may_wait(x) and not 0 <= int(x.min()) <= int(x.max()) < levels:
        raise ValueError(f"{name}: x: expected levels in [0, {levels})")


def check_conditions(model, B, label, cond):
    """Raise ValueError or TypeError for a label or cond that the model does not take."""
    name = type(model).__name__
    classes, channels = (model.config.get(k, 0) for k in ("classes", "cond_channels"))
    for what, got, size in (("label", label, (B,)), ("cond", cond, (B, channels))):
        if not (classes if what == "label" else channels):
            if got is not None:
                raise ValueError(f"{name}: {what}: expected None of a model without such")
        elif getattr(got, "shape", None) != size:
            got = tuple(got.shape) if isinstance(got, torch.Tensor) else got
            raise ValueError(f"{name}: {what}: expected {size}, got {got!r:.80}")
    if label is not None:
        if label.dtype != torch.int64:
            raise TypeError(f"{name}: label: expected int64, got {label.dtype}")
        if B and may_wait(label) and not 0 <= int(label.min()) <= int(label.max()) < classes:
            raise ValueError(f"{name}: label: expected values in [0, {classes})")
    if cond is not None:
        if not cond.is_floating_point():
            raise TypeError(f"{name}: cond: expected a floating dtype, got {cond.dtype}")
        if may_wait(cond) and not cond.isfinite().all():
            raise ValueError(f"{name}: cond: expected finite values")
