"""What a discriminator may see of a whole batch, so that it can tell one that has collapsed."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from .. import kernels


class MinibatchDiscrimination(nn.Module):
    """How near each row is to the others, in B kernels of C numbers, beside the row itself.

        m = weight x
        o[i, b] = bias[b] + sum over j of exp(-sum over c of |m[i, b, c] - m[j, b, c]|)

    weight has rows of norm g (torch's weight_norm: original0 is g, 1 at first). j goes over the
    other rows of the batch, or over all rows of another one; keep_self and groups are those of
    `kernels.minibatch_discrimination`. (Salimans et al. 2016, section 3.2.)

    x: (N, ...) of in_features numbers a row    y: another batch, (M, ...)
    returns: (N, in_features + B), x and then o
    Raises ValueError for sizes below 1; ValueError and TypeError as the kernel does.
    """

    def __init__(
        self,
        in_features,
        num_kernels=100,
        kernel_dim=5,
        *,
        keep_self=False,
        groups=1,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if min(in_features, num_kernels, kernel_dim) < 1:
            got = f"{in_features}, {num_kernels} and {kernel_dim}"
            raise ValueError(f"MinibatchDiscrimination: expected sizes >= 1, got {got}")
        self.num_kernels, self.kernel_dim = num_kernels, kernel_dim
        self.keep_self, self.groups = keep_self, groups
        made = {"device": device, "dtype": dtype}
        rows = num_kernels * kernel_dim
        self.project = weight_norm(nn.Linear(in_features, rows, bias=False, **made))
        nn.init.ones_(self.project.parametrizations.weight.original0)
        self.bias = nn.Parameter(torch.full((num_kernels,), -1.0, **made))

    def forward(self, x, y=None):
        x = x.flatten(1)
        m, other = self.features(x), None if y is None else self.features(y.flatten(1))
        options = {"keep_self": self.keep_self, "groups": self.groups}
        o = kernels.minibatch_discrimination(m, other, **options) + self.bias
        return torch.cat([x, o], 1)

    def features(self, x):
        """m, (N, B, C)"""
        return self.project(x).unflatten(1, (self.num_kernels, self.kernel_dim))

    @torch.no_grad()
    def initialize(self, x):
        """Set g and bias by a batch: the mean of o is 0, of the distance to the nearest row 2.

        returns: what x then becomes, for the layer that comes next to be initialised by
        Raises ValueError for a kernel in which each row is equal to another one, or has no other,
        and for a batch that is not so many groups.
        """
        if not len(x) or len(x) % self.groups:
            want = f"a batch of {self.groups} equal groups"
            raise ValueError(f"MinibatchDiscrimination: expected {want}, got {len(x)} rows")
        m = self.features(x.flatten(1)).unflatten(0, (self.groups, -1))  # (groups, n, B, C)
        m = m.to(torch.promote_types(m.dtype, torch.float32))  # cdist has no shorter ones
        scale = self.project.parametrizations.weight.original0.view(self.num_kernels, -1)
        for b in range(self.num_kernels):
            distance = torch.cdist(m[:, :, b], m[:, :, b], p=1)
            distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
            nearest = distance.amin(2).mean()
            if not 0 < nearest < torch.inf:
                raise ValueError(
                    "MinibatchDiscrimination: expected a batch of rows that differ, got a mean "
                    f"distance of {nearest:g} to the nearest one in kernel {b}"
                )
            scale[b] *= 2 / nearest
        self.bias.zero_()
        self.bias -= self(x)[:, -self.num_kernels :].mean(0)
        return self(x)

    def extra_repr(self):
        return (
            f"num_kernels={self.num_kernels}, kernel_dim={self.kernel_dim}, "
            f"keep_self={self.keep_self}, groups={self.groups}"
        )


class MinibatchStd(nn.Module):
    """One more channel, which says how much a batch varies: the cheap cousin.

        s = mean over channels and places of sqrt(eps + the variance over the rows)

    groups: the batch is so many equal groups of rows, one after the other, each with its own s.
    (Karras et al. 2018, "Progressive Growing of GANs", section 3.)

    x: (N, C, ...)    returns: (N, C + 1, ...)
    Raises ValueError for a batch that is not so many groups.
    """

    def __init__(self, groups=1, eps=1e-8):
        super().__init__()
        self.groups, self.eps = groups, eps

    def forward(self, x):
        N = x.shape[0]
        if self.groups < 1 or N % self.groups:
            raise ValueError(f"MinibatchStd: groups: expected a divisor of {N}, got {self.groups}")
        rows = x.unflatten(0, (self.groups, N // self.groups))  # (groups, n, C, ...)
        std = (rows.var(1, correction=0) + self.eps).sqrt().flatten(1).mean(1)
        s = std.repeat_interleave(N // self.groups).view(N, *[1] * (x.ndim - 1))
        return torch.cat([x, s.expand(N, 1, *x.shape[2:])], 1)

    def extra_repr(self):
        return f"groups={self.groups}, eps={self.eps}"
