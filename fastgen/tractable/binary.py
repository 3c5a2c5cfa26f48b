"""What autoregressive models of binary images share: an order, exact densities and sampling."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .. import kernels
from ..game import Player
from ..kernels._op import without_autocast

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

    levels = 2

    def __init__(self, shape, order=None, sets=1):
        super().__init__()
        self.shape, self.pixels = tuple(shape), math.prod(shape)
        order = torch.arange(self.pixels) if order is None else torch.tensor(order)
        self.register_buffer("order", order.repeat(sets, 1))  # (S, D)

    def players(self):
        """Maximum likelihood: one player, who minimises nats an image, of an order at a time."""

        def loss(x):
            return -self.log_prob_of(x, int(torch.randint(len(self.order), ()))).mean()

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

    @torch.no_grad()
    @without_autocast
    def sample(
        self, n, *, seed=None, uniforms=None, prefix=None, temperature=1.0, method="cached"
    ):
        """Draw n images; the same uniforms give the same images by either method.

        `uniforms` (n, D) in [0, 1), for each pixel in its turn, else drawn from `seed`; a mixture
        takes (n, D + 1), of which the last chooses the order. `prefix` (n, P) int64 are the first P
        pixels of the order, which a mixture must agree on. temperature 0 takes the likelier value.
        method "cached" computes what a pixel adds, "naive" a forward pass for each; they agree up
        to rounding.
        returns: (n, *shape) int64
        Raises ValueError for shapes that do not fit and values out of range, TypeError for dtypes.
        """
        S, D = self.order.shape
        if uniforms is None:
            check_size(n)
            seed = int(torch.randint(1 << 62, ())) if seed is None else seed
            uniforms = kernels.uniforms(seed, n, D + (S > 1))
        if prefix is None:
            prefix = torch.zeros(n, 0, dtype=torch.int64)
        check_sampling(self, n, uniforms, prefix, temperature, method)
        uniforms, prefix = uniforms.to(self.order.device), prefix.to(self.order.device)
        x = prefix.new_zeros(n, D)
        x[:, : prefix.shape[1]] = prefix
        chosen = self.choose(x, prefix.shape[1], uniforms[:, -1])
        for s in chosen.unique().tolist():
            rows = (chosen == s).nonzero()[:, 0]
            steps = self.steps(len(rows), s) if method == "cached" else self.naive(len(rows), s)
            own = draw(steps, uniforms[rows], x[rows], prefix.shape[1], temperature)
            x[rows] = own[:, self.order[s].argsort()]
        return x.view(n, *self.shape)

    def choose(self, x, P, u):
        """Orders (n,), drawn from what the first P pixels of x (n, D) leave likely."""
        S = len(self.order)
        if (self.order[:, :P] != self.order[0, :P]).any():
            raise ValueError("sample: prefix: expected None of a mixture of several orders")
        log_p = torch.zeros(len(x), S, dtype=self.dtype, device=x.device)
        if S > 1 and P:
            given = x.to(self.dtype)
            signs = 2 * given[:, :P] - 1
            for s in range(S):
                log_p[:, s] = F.logsigmoid(self.logits(given, s)[:, :P] * signs).sum(1)
        return kernels.draw(log_p, u, 1.0, S)

    def naive(self, n, s):
        """`steps` by a forward pass for each pixel: what the cached ones must agree with."""
        x = self.order.new_zeros(n, self.pixels).to(self.dtype)
        for i in range(self.pixels):
            x[:, i] = yield self.logits(x, s)[:, i]


def draw(steps, uniforms, x, P, temperature):
    """Values (n, D) in the order, of which x holds the first P; see `Binary` for `steps`."""
    values, value = [], None
    for i in range(x.shape[1]):
        logit = steps.send(value)
        bad = (~logit.isfinite()).nonzero()
        if len(bad):
            raise ValueError(f"sample: the logit of image {int(bad[0])} at {i} is not finite")
        logits = torch.stack([torch.zeros_like(logit), logit], dim=1)
        value = x[:, i] if i < P else kernels.draw(logits, uniforms[:, i], temperature, 2)
        values.append(value)
    return torch.stack(values, dim=1)


def check_config(name, shape, **sizes):
    """Raise ValueError for a size that the model cannot have."""
    for key, got in sizes.items():
        if not isinstance(got, int) or isinstance(got, bool) or got < 1:
            raise ValueError(f"{name}: {key}: expected an int >= 1, got {got!r:.80}")
    fits = isinstance(shape, (list, tuple)) and len(shape) in (1, 3)
    if not fits or not all(isinstance(v, int) and v >= 1 for v in shape):
        raise ValueError(f"{name}: shape: expected (C, H, W) or (D,), got {shape!r:.80}")
    if math.prod(shape) > MOST:
        raise ValueError(f"{name}: shape: expected at most {MOST} pixels, got {math.prod(shape)}")


def check_order(name, order, D):
    """Raise ValueError for what is no permutation of D pixels."""
    if order is None:
        return
    fits = isinstance(order, (list, tuple)) and all(isinstance(v, int) for v in order)
    if not fits or sorted(order) != list(range(D)):
        raise ValueError(f"{name}: order: expected a permutation of 0 ... {D - 1}")


def check_size(n):
    """Raise ValueError for a number below zero."""
    if n < 0:
        raise ValueError(f"sample: n: expected >= 0, got {n}")


def check_values(where, x):
    """Raise for what is not int64 and zeros and ones."""
    if x.dtype != torch.int64:
        raise TypeError(f"{where}: expected int64, got {x.dtype}")
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < 2:
        raise ValueError(f"{where}: expected values 0 and 1, got {int(x.min())} to {int(x.max())}")


def check_input(model, x):
    """Raise ValueError or TypeError for what `forward` cannot take."""
    name, shape = type(model).__name__, model.shape
    if tuple(x.shape[1:]) != shape or not x.dim():
        want = ", ".join(map(str, shape))
        raise ValueError(f"{name}: x: expected (B, {want}), got {tuple(x.shape)}")
    check_values(f"{name}: x", x)


def check_sampling(model, n, uniforms, prefix, temperature, method):
    """Raise ValueError or TypeError for what `sample` cannot take."""
    S, D = model.order.shape
    check_size(n)
    if method not in ("cached", "naive"):
        raise ValueError(f"sample: method expected 'cached' or 'naive', got {method!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"sample: temperature: expected finite and >= 0, got {temperature:g}")
    draws = D + (S > 1)
    if uniforms.shape != (n, draws):
        got = tuple(uniforms.shape)
        raise ValueError(f"sample: uniforms: expected ({n}, {draws}), got {got}")
    if not uniforms.is_floating_point():
        raise TypeError(f"sample: uniforms: expected floating point, got {uniforms.dtype}")
    if uniforms.numel() and not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("sample: uniforms: expected values in [0, 1)")
    if prefix.dim() != 2 or len(prefix) != n or prefix.shape[1] > D:
        got = tuple(prefix.shape)
        raise ValueError(f"sample: prefix: expected ({n}, at most {D}), got {got}")
    check_values("sample: prefix", prefix)
