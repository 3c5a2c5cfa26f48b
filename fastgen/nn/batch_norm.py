"""Batch normalisation that says whose statistics it takes."""

import torch
from torch import nn

STATS = ("batch", "running", "reference", "virtual")


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of

        "batch"      the batch itself, in training and in evaluation
        "running"    the batch in training, and averages over batches in evaluation, as in torch
        "reference"  a reference batch that stays the same
        "virtual"    the reference batch and the row itself (Salimans et al. 2016, section 3.4)

    Under the first, and under the second in training, what a row becomes depends on the rows beside
    it, and samples of one batch are alike; under the others it does not. Where there is a reference
    batch, the layer stands in a network that `Reference` wraps.

    Parameters, buffers and their names are those of torch's BatchNorm; without running averages
    but for "running". x: (N, C, ...)    returns: the same shape
    Raises ValueError for other stats and shapes, and where a reference batch is missing.
    """

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        device=None,
        dtype=None,
        *,
        stats="running",
    ):
        if stats not in STATS:
            raise ValueError(f"BatchNorm: stats: expected one of {STATS}, got {stats!r}")
        super().__init__(num_features, eps, momentum, affine, stats == "running", device, dtype)
        self.stats, self.reference = stats, 0  # rows of the reference batch, which come first

    def _check_input_dim(self, x):
        if x.ndim < 2 or x.shape[1] != self.num_features:
            got = tuple(x.shape)
            raise ValueError(f"BatchNorm: x: expected (N, {self.num_features}, ...), got {got}")

    def forward(self, x):
        if self.stats in ("batch", "running"):
            return super().forward(x)
        self._check_input_dim(x)
        if not 0 < self.reference <= x.shape[0]:
            raise ValueError(
                f'BatchNorm: stats="{self.stats}": expected a network in fastgen.nn.Reference, got '
                f"{x.shape[0]} rows, {self.reference} of a reference batch"
            )
        mean, var = self.statistics(x.float() if x.dtype.itemsize < 4 else x)
        y = (x - mean) * (var + self.eps).rsqrt()
        if self.affine:
            shape = (1, -1, *[1] * (x.ndim - 2))
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def statistics(self, x):
        """Mean and variance for all rows, or for each."""
        R, places = self.reference, tuple(range(2, x.ndim))
        var, mean = torch.var_mean(x[:R], (0, *places), correction=0, keepdim=True)
        if self.stats == "reference":
            return mean, var
        own, spread = x[R:], torch.zeros_like(x[R:])
        if places:
            spread, own = torch.var_mean(own, places, correction=0, keepdim=True)
        shift, share = own - mean, 1 / (R + 1)
        both = (1 - share) * (var + share * shift.square()) + share * spread
        rows = (R, *[-1] * (x.ndim - 1))
        mean = torch.cat([mean.expand(rows), mean + share * shift])
        return mean, torch.cat([var.expand(rows), both])

    def extra_repr(self):
        return f"{super().extra_repr()}, stats={self.stats!r}"


class Reference(nn.Module):
    """A network that sees a reference batch before each batch.

        y = net([reference, x]) without the reference's rows

    The reference batch is drawn once, is never replaced and is in the state_dict; what its
    statistics are follows from it and from the network's parameters, and has gradients. The
    network's `BatchNorm`s of "reference" and "virtual" statistics are told how many rows it has.

    net: a module of one or several batches    batch: as many reference batches, (R, ...)
    Raises ValueError for a network without such layers, for reference batches that differ in rows,
    and for another number of batches.
    """

    def __init__(self, net, *batch):
        super().__init__()
        rows = sorted({len(v) for v in batch})
        if len(rows) != 1 or rows[0] < 2:
            raise ValueError(f"Reference: batch: expected 2 rows or more, of each, got {rows}")
        layers = [m for m in net.modules() if isinstance(m, BatchNorm) and m.stats in STATS[2:]]
        if not layers:
            raise ValueError(f"Reference: net: expected a BatchNorm with stats in {STATS[2:]}")
        for layer in layers:
            layer.reference = rows[0]
        self.net, self.rows, self.batches = net, rows[0], len(batch)
        for i, v in enumerate(batch):
            self.register_buffer(f"reference{i}", v.detach().clone())

    def forward(self, *x):
        if len(x) != self.batches:
            raise ValueError(f"Reference: expected {self.batches} batches, got {len(x)}")
        joined = [torch.cat([getattr(self, f"reference{i}"), v]) for i, v in enumerate(x)]
        return self.net(*joined)[self.rows :]
