"""Normalisations of channels as bijections: actnorm and batch norm."""

import torch
import torch.distributed as dist
from torch import nn

from .bijector import Bijector, check_channels, wide


class ActNorm(Bijector):
    """A scale and a shift of each channel, set by the first batch of training to normalise it.

        y = (x - mean) exp(-log_std)

    Of a single number of each channel it takes the mean alone. Until then it is the identity.
    Whether it has been set is known from a tensor that is never waited for. In several processes
    the batch is that of all. x: (B, C, ...)
    Raises ValueError for another C. (Kingma and Dhariwal 2018, Glow, section 3.1.)
    """

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_std = nn.Parameter(torch.zeros(channels))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.seen = None, 0  # `ready` when it was set here, and how often it had been written

    def forward(self, x):
        check_channels(self, x, len(self.mean))
        if self.training and not self.known() and x.numel():
            self.set(x.detach())
        return normalized(x, self.mean, self.log_std)

    def inverse(self, y):
        check_channels(self, y, len(self.mean))
        return restored(y, self.mean, self.log_std)

    def back(self, kept, y, dy, dlogdet):
        x, dx, *grads = undone(y, dy, dlogdet, self.mean, self.log_std)
        pairs = zip((self.mean, self.log_std), grads, strict=True)
        return x, dx, [g for p, g in pairs if p.requires_grad]

    def known(self):
        """Whether `ready` was set here, and has not been written since; torch.compile sees what
        `load_state_dict` writes alone."""
        tensor, version = self.seen
        # a graph for each count of writes would soon be one too many
        compiling = torch.compiler.is_compiling()
        return tensor is self.ready and (compiling or version == tensor._version)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.seen = None, 0

    @torch.no_grad()
    def set(self, x):
        """Take what normalises x, unless `ready`."""
        mean, var = moments(x)
        if dist.is_available() and dist.is_initialized():
            both = torch.stack([mean, var + mean**2])
            dist.all_reduce(both)
            mean, square = both / dist.get_world_size()
            var = (square - mean**2).clamp(min=0)
        log_std = 0.5 * torch.log(var + self.eps) if x.numel() > len(mean) else 0 * mean
        self.mean.copy_(torch.where(self.ready, self.mean, mean))
        self.log_std.copy_(torch.where(self.ready, self.log_std, log_std))
        self.ready.fill_(True)
        self.seen = self.ready, None if torch.compiler.is_compiling() else self.ready._version


class Diagonal(Bijector):
    """y = x exp(log_scale), of each channel its own. x: (B, C, ...)

    Raises ValueError for another C. (Dinh et al. 2014, NICE)
    """

    def __init__(self, channels):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        check_channels(self, x, len(self.log_scale))
        return normalized(x, torch.zeros_like(self.log_scale), -self.log_scale)

    def inverse(self, y):
        check_channels(self, y, len(self.log_scale))
        return restored(y, torch.zeros_like(self.log_scale), -self.log_scale)


class InvertibleBatchNorm(Bijector):
    """A normalisation of each channel by the batch's moments, or by their running averages.

        y = (x - mean) / sqrt(var + eps) exp(log_scale) + shift

    In training `forward` takes the batch's mean and variance, and logdet is that of the map which
    they make; `inverse`, and `forward` in evaluation, take the running ones. Without `affine`
    log_scale and shift are zero. x: (B, C, ...)
    Raises ValueError for another C, and in training for fewer than 2 numbers of a channel.
    (Dinh et al. 2016, Real NVP, section 3.7.)
    """

    def __init__(self, channels, momentum=0.1, eps=1e-4, affine=True):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.log_scale = nn.Parameter(torch.zeros(channels)) if affine else None
        self.shift = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return self.keep(x)[:2]

    def inverse(self, y):
        check_channels(self, y, len(self.running_mean))
        return restored(y, *self.center(self.running_mean, self.running_var))

    def keep(self, x):
        check_channels(self, x, len(self.running_mean))
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return *normalized(x, *self.center(mean, var)), (mean.clone(), var.clone(), False)
        if x.numel() < 2 * len(self.running_mean):
            got = tuple(x.shape)
            raise ValueError(f"InvertibleBatchNorm: x: expected 2 numbers a channel, got {got}")
        mean, var = moments(x)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(var.to(self.running_var), self.momentum)
        return *normalized(x, *self.center(mean, var)), (mean, var, True)

    def back(self, kept, y, dy, dlogdet):
        mean, var, training = kept
        own = [p.detach().requires_grad_(p.requires_grad) for p in self.parameters()]
        with torch.enable_grad():
            leaves = [mean.requires_grad_(), var.requires_grad_(), *own]
            centers = self.center(mean, var, *own)
        x, dx, *slopes = undone(y, dy, dlogdet, *(v.detach() for v in centers))
        leaves = [v for v in leaves if v.requires_grad]
        dmean, dvar, *grads = torch.autograd.grad(centers, leaves, slopes)
        if training:  # they are moments of x
            N = y.numel() // y.shape[1]
            shift = (dmean - 2 * dvar * mean.detach()) / N
            dx += torch.addcmul(shaped(shift, y), x, shaped(2 * dvar / N, y))
        return x, dx, grads

    def center(self, mean, var, log_scale=None, shift=None):
        """The mean and log_std that `normalized` takes, by default with the module's affine map."""
        log_std = 0.5 * torch.log(var + self.eps)
        if self.log_scale is None:
            return mean, log_std
        log_std = log_std - (self.log_scale if log_scale is None else log_scale)
        return mean - (self.shift if shift is None else shift) * torch.exp(log_std), log_std


def moments(x):
    """Mean and variance of each channel, (C,), of numbers of at least float32."""
    var, mean = torch.var_mean(x.to(wide(x.dtype)), channels(x), correction=0)
    return mean, var


def channels(x):
    """The dimensions but that of the channels."""
    return [0, *range(2, x.ndim)]


def normalized(x, mean, log_std):
    """(x - mean) exp(-log_std), and its logdet. mean, log_std: (C,)"""
    logdet = -log_std.sum().to(wide(x.dtype)) * x.shape[2:].numel()
    y = (x - shaped(mean, x)) * shaped(torch.exp(-log_std), x)
    return y.to(x.dtype), logdet.expand(len(x))


def restored(y, mean, log_std):
    """The inverse of `normalized`."""
    logdet = log_std.sum().to(wide(y.dtype)) * y.shape[2:].numel()
    x = y * shaped(torch.exp(log_std), y) + shaped(mean, y)
    return x.to(y.dtype), logdet.expand(len(y))


def undone(y, dy, dlogdet, mean, log_std):
    """From the output and the gradients of `normalized`: x, dx, dmean, dlog_std."""
    x, dx = restored(y, mean, log_std)[0], dy * shaped(torch.exp(-log_std), y)
    total = dlogdet.sum() * y.shape[2:].numel()
    dmean, dlog_std = -dx.sum(channels(y)), -(dy * y).sum(channels(y)) - total
    return x, dx, dmean.to(mean), dlog_std.to(mean)


def shaped(v, x):
    """(C,) to be broadcast against x (B, C, ...)."""
    return v.view(-1, *[1] * (x.ndim - 2))


def standardize(std, layer, inputs, y):
    """Give a layer of torch's weight_norm outputs of mean 0 and `std`, where they are y now.

    A forward hook, all but `std`. (Salimans and Kingma 2016, "Weight Normalization", section 3.)
    y: (B, C, ...)    returns: what they become
    """
    var, mean = torch.var_mean(y, channels(y), correction=0)
    scale = std / torch.sqrt(var + 1e-8)
    g = layer.parametrizations.weight.original0  # of outputs, with ones for the other dimensions
    g.mul_(scale.view_as(g))
    layer.bias.sub_(mean).mul_(scale)
    return (y - shaped(mean, y)) * shaped(scale, y)
