"""What autoregressive models of binary images share: an order, exact densities and sampling."""

import copy
import math
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import nn

from .. import kernels
from ..game import Player
from ..kernels._op import may_wait, without_autocast

MOST = 1 << 20  # pixels


class Binary(nn.Module):
    """Binary images, a pixel after another in an order.

        p(x) = prod_i p(x[o_i] | x[o_0], ..., x[o_{i-1}]),  o a permutation of the D pixels

    A model of several orders is their mixture: p(x) = 1/S sum_s p_s(x).

    A subclass says what is in the order s:
        logits(x, s): x (B, D) of zeros and ones, in the order -> log-odds (B, D)
        steps(n, s): a generator of the log-odds (n,) of a pixel, sent its value (n,) each time

    shape: of an image, (C, H, W) or (D,)
    """

    def __init__(self, shape, order=None, sets=1):
        super().__init__()
        self.shape, self.pixels = tuple(shape), math.prod(shape)
        order = torch.arange(self.pixels) if order is None else torch.tensor(order)
        self.register_buffer("order", order.repeat(sets, 1))  # (S, D)

    def players(self):
        """Maximum likelihood: one player, who minimises nats a pixel, of an order at a time."""

        def loss(x):
            s = int(torch.randint(len(self.order), ())) if len(self.order) > 1 else 0
            return -self.log_prob_of(x, s).mean() / self.pixels

        return [Player(type(self).__name__.lower(), self, loss)]

    def forward(self, x, s=0):
        """Log-odds that each pixel is 1, given those before it in the order s.

        x: (B, *shape) int64    returns: (B, *shape)
        Raises ValueError for another shape and other values than 0 and 1, TypeError for dtypes.
        """
        check_input(self, x)
        order = self.order[s]
        logits = self.logits(x.flatten(1)[:, order].to(self.dtype), s)  # (B, D), in the order
        return logits[:, order.argsort()].view(x.shape)

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def log_prob_of(self, x, s):
        """Exact log-probability in nats under the order s alone, (B,)."""
        logits = self(x, s)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.logsigmoid(logits * (2 * x - 1)).flatten(1).sum(1)

    def log_prob(self, x):
        """Exact log-probability of images, in nats.

        x: as in `forward`    returns: (B,)
        """
        sets = range(len(self.order))
        log_p = torch.stack([self.log_prob_of(x, s) for s in sets])  # (S, B)
        return log_p.logsumexp(0) - math.log(len(sets))

    def bits_per_dim(self, x):
        """-log2 p(x) for each pixel of an image, (B,)."""
        return self.log_prob(x) / (-math.log(2) * self.pixels)

    @torch.no_grad()
    @without_autocast
    def sample(
        self,
        n,
        *,
        seed=None,
        uniforms=None,
        temperature=1.0,
        prefix=None,
        method="cached",
        dtype="float32",
    ):
        """Draw n images; the same uniforms give the same images by either method.

        `uniforms` (n, *shape) in [0, 1), else drawn from `seed`; a mixture chooses its order by the
        first pixel's, and what is left of that number draws the pixel. temperature 0 takes the
        likelier value. `prefix` (n, C, P <= H, W), or (n, P <= D), int64 holds the upper rows, -1
        for each pixel that is to be drawn: so it gives any set of pixels. What is drawn is
        distributed as p says, given what comes before it in the order.
        method "cached" computes what a pixel adds, "naive" a forward pass for each; they agree up
        to rounding. dtype float32 or float64.
        returns: (n, *shape) int64
        Raises ValueError for shapes that do not fit and values out of range, TypeError for dtypes.
        """
        check_options(n, temperature, method, dtype)
        if uniforms is None:
            seed = int(torch.randint(1 << 62, ())) if seed is None else seed
            uniforms = kernels.uniforms(seed, n, self.pixels).view(n, *self.shape)
        check_uniforms(self, n, uniforms)
        x = given(self, n, prefix).to(self.order.device)  # (n, D), -1 where not given
        u = uniforms.flatten(1).to(x.device, torch.float64)
        model = copy.deepcopy(self).to(getattr(torch, dtype))
        chosen, u = model.choose(x, u)
        for s in chosen.unique().tolist():
            rows, order = (chosen == s).nonzero()[:, 0], self.order[s]
            steps = (model.steps if method == "cached" else model.naive)(len(rows), s)
            drawn = draw(steps, u[rows][:, order], x[rows][:, order], temperature)
            x[rows] = drawn[:, order.argsort()]
        return x.view(n, *self.shape)

    def choose(self, x, u):
        """Orders (n,), as likely as what is given leaves them, and the uniforms that are left.

        x: (n, D), -1 where not given    u: (n, D)
        """
        S, log_p = len(self.order), []
        if S == 1 or not len(x):
            return torch.zeros(len(x), dtype=torch.int64, device=x.device), u
        for s, order in enumerate(self.order):
            known = x[:, order]
            first = (known >= 0).cumprod(1)  # 1 for the pixels that an order begins with
            value = known.clamp(min=0)
            logits = self.logits(value.to(self.dtype), s) if first.any() else first.to(self.dtype)
            log_p.append((F.logsigmoid(logits * (2 * value - 1)) * first).double().sum(1))
        p = torch.stack(log_p, dim=1).softmax(1)  # (n, S)
        cdf, v = p.cumsum(1), u[:, :1]
        s = (cdf <= v).sum(1, keepdim=True).clamp(max=S - 1)
        left = (v - cdf.gather(1, s)) / p.gather(1, s) + 1
        return s[:, 0], torch.cat([left.clamp(0, 1 - 2**-53), u[:, 1:]], dim=1)

    def naive(self, n, s):
        """`steps` by a forward pass for each pixel: what the cached ones must agree with."""
        x = torch.zeros(n, self.pixels, dtype=self.dtype, device=self.order.device)
        for i in range(self.pixels):
            x[:, i] = yield self.logits(x, s)[:, i]


def draw(steps, uniforms, x, temperature):
    """Values (n, D) in the order, those of x where they are not -1; see `Binary` for `steps`.

    By inversion: 1 where the probability of 0 is at most the uniform number.
    """
    logits, values, value = [], [], None
    for u, known in zip(uniforms.unbind(1), x.unbind(1), strict=True):
        logit = steps.send(value)
        one = torch.sigmoid(-logit / temperature) <= u if temperature else logit > 0
        value = torch.where(known < 0, one, known)
        logits.append(logit)
        values.append(value)
    bad = (~torch.stack(logits, dim=1).isfinite()).nonzero()
    if len(bad):
        image, i = bad[bad[:, 1].argmin()].tolist()
        raise ValueError(f"sample: the logit of image {image} at place {i} is not finite")
    return torch.stack(values, dim=1)


def given(model, n, prefix):
    """Pixels (n, D) of a prefix, -1 where it gives none.

    Raises ValueError for another shape and values out of range, TypeError for another dtype.
    """
    shape, rows = (n, *model.shape), 1 if len(model.shape) == 1 else 2  # the dimension cut short
    if prefix is None:
        return torch.full((n, model.pixels), -1)
    most = [*shape[:rows], f"at most {shape[rows]}", *shape[rows + 1 :]]
    fits = prefix.dim() == len(shape) and prefix.shape[rows] <= shape[rows]
    if not fits or any(prefix.shape[i] != shape[i] for i in range(len(shape)) if i != rows):
        want, got = ", ".join(map(str, most)), tuple(prefix.shape)
        raise ValueError(f"sample: prefix: expected ({want}), got {got}")
    if prefix.dtype != torch.int64:
        raise TypeError(f"sample: prefix: expected int64, got {prefix.dtype}")
    if prefix.numel() and not -1 <= int(prefix.min()) <= int(prefix.max()) < 2:
        raise ValueError("sample: prefix: expected 0, 1, or -1 for what is to be drawn")
    missing = (0, 0) * (len(shape) - rows - 1) + (0, shape[rows] - prefix.shape[rows])
    return F.pad(prefix, missing, value=-1).flatten(1)


def check_config(name, shape, order, **sizes):
    """Raise ValueError for a size or order that the model cannot have."""
    for key, got in sizes.items():
        if not isinstance(got, int) or isinstance(got, bool) or got < 1:
            raise ValueError(f"{name}: {key}: expected an int >= 1, got {got!r:.80}")
    fits = isinstance(shape, (list, tuple)) and len(shape) in (1, 3)
    if not fits or not all(isinstance(v, int) and v >= 1 for v in shape):
        raise ValueError(f"{name}: shape: expected (C, H, W) or (D,), got {shape!r:.80}")
    if math.prod(shape) > MOST:
        raise ValueError(f"{name}: shape: expected at most {MOST} pixels, got {math.prod(shape)}")
    D = math.prod(shape)
    fits = isinstance(order, (list, tuple)) and all(isinstance(v, int) for v in order)
    if order is not None and (not fits or sorted(order) != list(range(D))):
        raise ValueError(f"{name}: order: expected a permutation of 0 ... {D - 1}")


def check_input(model, x):
    """Raise ValueError or TypeError for what `forward` cannot take."""
    name, shape = type(model).__name__, model.shape
    if tuple(x.shape[1:]) != shape or not x.dim():
        want = ", ".join(map(str, shape))
        raise ValueError(f"{name}: x: expected (B, {want}), got {tuple(x.shape)}")
    if x.dtype != torch.int64:
        raise TypeError(f"{name}: x: expected int64, got {x.dtype}")
    if x.numel() and may_wait(x) and not 0 <= int(x.min()) <= int(x.max()) < 2:
        got = f"{int(x.min())} to {int(x.max())}"
        raise ValueError(f"{name}: x: expected values 0 and 1, got {got}")


def check_options(n, temperature, method, dtype):
    """Raise ValueError for options of `sample` that there are not."""
    if not isinstance(n, Integral) or n < 0:
        raise ValueError(f"sample: n: expected an int >= 0, got {n!r:.80}")
    try:
        finite = 0 <= float(temperature) < math.inf
    except (TypeError, ValueError, RuntimeError):
        finite = False
    if not finite:
        got = f"{temperature!r:.80}"
        raise ValueError(f"sample: temperature: expected finite and >= 0, got {got}")
    if method not in ("cached", "naive"):
        raise ValueError(f"sample: method: expected 'cached' or 'naive', got {method!r}")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"sample: dtype: expected 'float32' or 'float64', got {dtype!r}")


def check_uniforms(model, n, uniforms):
    """Raise ValueError for another shape and values outside [0, 1)."""
    if uniforms.shape != (n, *model.shape):
        want, got = (n, *model.shape), tuple(uniforms.shape)
        raise ValueError(f"sample: uniforms: expected {want}, got {got}")
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("sample: uniforms: expected values in [0, 1)")
