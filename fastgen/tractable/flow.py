"""What models by change of variables share: densities, sampling and the levels of images."""

import math

import torch
from torch import nn

from .. import kernels
from ..game import Player
from ..kernels._op import may_wait, without_autocast
from ..nn import Chain, Logit, Rescale
from ..nn.evaluating import evaluating
from .sources import Sources


class Flow(nn.Module):
    """An invertible map f to independent sources z.

        log p(x) = log p_z(f(x)) + log |det df/dx|

    Of images of `levels` levels, x is the level plus uniform noise in [0, 1), so that the mean of
    log p over the noise is at most the log-probability of the levels. (Theis et al. 2016)

    shape: of x, (D,) or (C, H, W)    levels: of an image, or 0 where x is continuous
    steps: bijectors of x, or where `flat` of x (B, D)    alpha: of a logit before them, or None
    """

    def __init__(
        self, shape, levels, steps, *, source="normal", alpha=None, flat=False, reversible=False
    ):
        super().__init__()
        self.shape, self.levels, self.flat, self.alpha = tuple(shape), levels, flat, alpha
        before = [Rescale(levels)] if levels else []
        before += [] if alpha is None else [Logit(alpha)]
        self.chain = Chain(*before, *steps, reversible=reversible)
        self.sources = Sources(source, math.prod(shape))

    def players(self):
        """Maximum likelihood: one player, who minimises nats a dimension."""

        def loss(x):
            return -self.log_prob(x).mean() / self.dims

        return [Player(type(self).__name__.lower(), self, loss)]

    @property
    def dims(self):
        return math.prod(self.shape)

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def forward(self, x):
        """The sources of x and the log-determinant, for x of levels in [0, levels].

        x: (B, *shape), floating    returns: z as x, logdet (B,)
        Raises ValueError for another shape, TypeError for another dtype.
        """
        check_input(self, x, "x")
        z, logdet = self.chain(x.flatten(1) if self.flat else x)
        return z.view(x.shape), logdet

    def inverse(self, z):
        """x of sources, and the log-determinant of that map. z: as x    raises as `forward`"""
        check_input(self, z, "z")
        x, logdet = self.chain.inverse(z.flatten(1) if self.flat else z)
        return x.view(z.shape), logdet

    def log_prob(self, x, *, seed=None, uniforms=None):
        """Exact log-density in nats, (B,); of levels, that of the levels and noise.

        -inf where a logit has no value, and of what is so far away, or infinite, that nothing
        finite comes of it; NaN of NaN.
        x: (B, *shape), floating, or int64 levels, to which uniform numbers (B, *shape) are added:
        those given, or those of `seed`, else torch's own. Raises as `forward` and `dequantize`.
        """
        if not x.is_floating_point():
            x = self.dequantize(x, seed=seed, uniforms=uniforms)
        z, logdet = self(x)
        log_p = self.sources.log_prob(z.flatten(1)) + logdet
        low, high = x.flatten(1).aminmax(dim=1)
        least, most = self.reach(x.dtype)
        off = (low <= least) | (high >= most)
        return log_p.masked_fill(off & log_p.isnan(), -math.inf)

    def reach(self, dtype):
        """Between what numbers x has a finite square, and a logit where there is one."""
        if self.alpha is None:
            most = math.sqrt(torch.finfo(dtype).max)
            return -most, most
        width = (self.levels or 1) / (1 - 2 * self.alpha)
        return -self.alpha * width, (1 - self.alpha) * width

    def bits_per_dim(self, x, *, seed=None, uniforms=None):
        """-log2 p(x) for each dimension, (B,); of levels an upper bound in the mean over noise."""
        nats = self.log_prob(x, seed=seed, uniforms=uniforms)
        return nats / (-math.log(2) * self.dims)

    def dequantize(self, x, *, seed=None, uniforms=None):
        """Levels plus uniform noise; `uniforms` of 1/2 gives the middle, which is best inverted.

        x: (B, *shape) int64    returns: the same, floating
        Raises ValueError for shapes that do not fit and values out of range, TypeError for dtypes.
        """
        check_levels(self, x)
        if uniforms is None and seed is None:
            return x + torch.rand(x.shape, dtype=self.dtype, device=x.device)
        if uniforms is None:
            uniforms = kernels.uniforms(seed, len(x), self.dims, device=x.device).view(x.shape)
        if uniforms.shape != x.shape:
            want, got = tuple(x.shape), tuple(uniforms.shape)
            raise ValueError(f"dequantize: uniforms: expected {want}, got {got}")
        return x + uniforms.to(x.device, self.dtype)

    def quantize(self, x):
        """The levels of x, int64."""
        return x.floor().clamp(0, self.levels - 1).long()

    @torch.no_grad()
    @without_autocast
    def sample(self, n, *, seed=None, uniforms=None, z=None, temperature=1.0):
        """Draw n of x: the inverse of sources at a temperature; 0 takes the sources' middle.

        `z` (n, *shape), whose temperature is its own, else of `uniforms` (n, *shape) in [0, 1),
        else drawn from `seed`.
        returns: (n, *shape), int64 levels, or floating where x is continuous
        Raises ValueError for shapes that do not fit, values out of range, and what is not finite.
        """
        if n < 0:
            raise ValueError(f"sample: n: expected >= 0, got {n}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"sample: temperature: expected finite and >= 0, got {temperature:g}")
        if z is None:
            z = self.draw(n, seed, uniforms, temperature)
        if tuple(z.shape) != (n, *self.shape):
            want, got = (n, *self.shape), tuple(z.shape)
            raise ValueError(f"sample: z: expected {want}, got {got}")
        z = z.to(next(self.parameters()))
        with evaluating(self):
            x = self.inverse(z)[0]
        bad = (~x.isfinite().flatten(1).all(1)).nonzero()
        if len(bad):
            raise ValueError(f"sample: what is drawn at place {int(bad[0])} is not finite")
        return self.quantize(x) if self.levels else x

    def draw(self, n, seed, uniforms, temperature):
        """Sources of uniform numbers, which are drawn from a seed unless given."""
        if uniforms is None:
            seed = int(torch.randint(1 << 62, ())) if seed is None else seed
            uniforms = kernels.uniforms(seed, n, self.dims).view(n, *self.shape)
        check_uniforms(self, n, uniforms)
        device = next(self.parameters()).device
        u = uniforms.flatten(1).to(device, torch.float64)
        return self.sources.quantile(u, temperature).view(n, *self.shape)


def check_input(model, x, what):
    """Raise ValueError or TypeError for what is no batch of the model's shape."""
    name, shape = type(model).__name__, model.shape
    if not x.dim() or tuple(x.shape[1:]) != shape:
        want = ", ".join(map(str, shape))
        raise ValueError(f"{name}: {what}: expected (B, {want}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: {what}: expected a floating dtype, got {x.dtype}")


def check_levels(model, x):
    """Raise ValueError or TypeError for what are no levels of the model's images."""
    name, shape, levels = type(model).__name__, model.shape, model.levels
    if not levels:
        raise TypeError(f"{name}: x: expected a floating dtype, got {x.dtype}")
    if not x.dim() or tuple(x.shape[1:]) != shape:
        want = ", ".join(map(str, shape))
        raise ValueError(f"{name}: x: expected (B, {want}), got {tuple(x.shape)}")
    if x.dtype != torch.int64:
        raise TypeError(f"{name}: x: expected int64, got {x.dtype}")
    if x.numel() and may_wait(x) and not 0 <= int(x.min()) <= int(x.max()) < levels:
        raise ValueError(f"{name}: x: expected levels in [0, {levels})")


def check_uniforms(model, n, uniforms):
    """Raise ValueError for another shape and values outside [0, 1)."""
    if uniforms.shape != (n, *model.shape):
        want, got = (n, *model.shape), tuple(uniforms.shape)
        raise ValueError(f"sample: uniforms: expected {want}, got {got}")
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("sample: uniforms: expected values in [0, 1)")


def check_sizes(name, shape, levels, **sizes):
    """Raise ValueError for a size that no flow can have; the least is 1, of `layers` 0."""
    fits = isinstance(shape, (list, tuple)) and len(shape) in (1, 3)
    if not fits or not all(isinstance(v, int) and 1 <= v < MOST for v in shape):
        raise ValueError(f"{name}: shape: expected (C, H, W) or (D,), got {shape!r:.80}")
    if math.prod(shape) > MOST:
        raise ValueError(f"{name}: shape: expected at most {MOST} numbers, got {math.prod(shape)}")
    fits = isinstance(levels, int) and (levels == 0 or 2 <= levels <= 256)
    if not fits:
        raise ValueError(f"{name}: levels: expected 0 or in [2, 256], got {levels!r:.80}")
    for key, got in sizes.items():
        least = 0 if key == "layers" else 1
        if not isinstance(got, int) or isinstance(got, bool) or not least <= got < MOST:
            want = f"an int in [{least}, {MOST})"
            raise ValueError(f"{name}: {key}: expected {want}, got {got!r:.80}")


MOST = 1 << 24
