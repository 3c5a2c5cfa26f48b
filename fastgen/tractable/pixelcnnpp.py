"""PixelCNN++, an autoregressive model of images in several resolutions (Salimans et al. 2017)."""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from .. import kernels
from ..kernels.logistic_mixture import FLOOR, log_mass
from ..nn.normalize import standardize
from .pixelcnn import check_sizes
from .raster import Raster, working_copy


def concat_elu(x):
    """(B, F, H, W) -> (B, 2F, H, W): both ways of a sign pass."""
    return F.elu(torch.cat([x, -x], 1))


class Shifted(nn.Module):
    """A convolution that sees no row below and, of kernel size (2, 2), no column to the right.

    `stride` 2 halves the size of an even image; `up` doubles it.
    """

    def __init__(self, inputs, outputs, kernel, stride=1, up=False):
        super().__init__()
        kind = nn.ConvTranspose2d if up else nn.Conv2d
        self.conv = kind(inputs, outputs, kernel, stride=2 if up else stride)
        self.kernel, self.up = kernel, up

    def forward(self, x):
        kh, kw = self.kernel
        right = kw // 2 if kw % 2 else 0
        if self.up:
            H, W = x.shape[2:]
            return self.conv(x)[:, :, : 2 * H, right : right + 2 * W]
        return self.conv(F.pad(x, (kw - 1 - right, right, kh - 1, 0)))

    def seen(self, source, mask, act="none"):
        """It as `kernels.masked_stack_sample` takes it; of mask "V" a row lower."""
        kw, weight = self.kernel[1], self.conv.weight
        if source == 0:  # the bias is a weight of the ones
            weight = weight.clone()
            weight[:, -1, -1, kw // 2] += self.conv.bias
        if not self.up:
            scale = "same" if self.conv.stride[0] == 1 else "down"
            weight = F.pad(weight, (0, 0, 0, 1)) if mask == "V" else weight
            return kernels.MaskedConv(weight, source, mask, act, left=kw // 2, scale=scale)
        w = weight.transpose(0, 1)  # (O, I, 2, kw)
        if kw == 3:  # an even column sees one, an odd one the same and the next
            even = torch.stack([w[..., 1], torch.zeros_like(w[..., 1])], -1)
            w = torch.stack([even, w[..., [2, 0]]], 3)  # (O, I, 2, 2, KW)
        weight = w.reshape(*w.shape[:2], 4, -1)
        return kernels.MaskedConv(weight, source, mask, act, left=0, scale="up")


class GatedResnet(nn.Module):
    """x + a sigmoid(b), with a, b = conv(concat_elu(y)) of y that both x and `side` make."""

    def __init__(self, channels, kernel, side, classes, cond_channels, dropout):
        super().__init__()
        self.first = Shifted(2 * channels, channels, kernel)
        self.nin = nn.Conv2d(2 * side, channels, 1) if side else None
        self.dropout = nn.Dropout(dropout)
        self.second = Shifted(2 * channels, 2 * channels, kernel)
        self.label = nn.Embedding(classes, 2 * channels) if classes else None
        self.cond = nn.Linear(cond_channels, 2 * channels, bias=False) if cond_channels else None
        if classes:
            nn.init.normal_(self.label.weight, std=0.1)

    def conditions(self, label, cond):
        """What the conditions add to the gate: (B, 2 channels)."""
        found = [] if label is None else [self.label(label)]
        return sum(found if cond is None else [*found, self.cond(cond)])

    def forward(self, x, side, label, cond):
        """x: (B, channels, H, W)    side: (B, side, H, W) or None    returns: as x"""
        y = self.first(concat_elu(x))
        if side is not None:
            y = y + self.nin(concat_elu(side))
        y = self.second(self.dropout(concat_elu(y)))
        if label is not None or cond is not None:
            y = y + self.conditions(label, cond)[..., None, None]
        a, b = y.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)


class Stage(nn.Module):
    """Gated resnets of both streams in one resolution, and what leads to the next."""

    def __init__(self, resnets, channels, sides, change, conditions):
        super().__init__()
        self.u = nn.ModuleList(
            GatedResnet(channels, (2, 3), sides[0], *conditions) for _ in range(resnets)
        )
        self.ul = nn.ModuleList(
            GatedResnet(channels, (2, 2), sides[1], *conditions) for _ in range(resnets)
        )
        sizes = {"down": {"stride": 2}, "up": {"up": True}}
        self.change = change and nn.ModuleList(
            Shifted(channels, channels, kernel, **sizes[change]) for kernel in ((2, 3), (2, 2))
        )


class PixelCNNpp(Raster):
    """Gated resnets in `stages` resolutions, skips between them, and a mixture of logistics.

        u sees the rows above, ul them and the pixels to the left too
        p(pixel | ...) = sum_m pi_m prod_c p(x_c | mean_mc + sum_(d < c) k_mcd x_d, scale_mc)

    with the discretized logistics of `kernels.logistic_mixture`; pi, means, scales and k are what
    the network says of the pixels before. `classes` and `cond_channels` add biases to each resnet.
    With `weight_norm` the weights of an output are g v / |v|, and `initialize` fits g to data
    (Salimans and Kingma 2016, "Weight Normalization"). (Salimans et al. 2017, "PixelCNN++:
    Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications".)

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        resnets=5,
        channels=160,
        stages=3,
        mixtures=10,
        dropout=0.5,
        levels=256,
        colors=3,
        classes=0,
        cond_channels=0,
        height=32,
        width=32,
        weight_norm=True,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        others = ("dropout", "colors", "weight_norm")
        sizes = {k: v for k, v in self.config.items() if k not in others}
        check_sizes("PixelCNNpp", colors, **sizes)
        if stages - 1 > (max(2, height, width) - 1).bit_length():
            shape = f"images of {height} x {width}"
            raise ValueError(f"PixelCNNpp: stages: {stages} would halve one pixel of {shape}")
        if not 0 <= dropout < 1:
            raise ValueError(f"PixelCNNpp: dropout: expected 0 <= dropout < 1, got {dropout}")
        conditions = (classes, cond_channels, dropout)
        inputs = colors + 1  # ones, that tell the image from the zeros around
        self.first_u = Shifted(inputs, channels, (2, 3))
        self.first_above = Shifted(inputs, channels, (1, 3))
        self.first_left = Shifted(inputs, channels, (2, 1))
        self.down = nn.ModuleList(
            Stage(resnets, channels, (0, channels), i < stages - 1 and "down", conditions)
            for i in range(stages)
        )
        self.up = nn.ModuleList(
            Stage(
                resnets + (i > 0),
                channels,
                (channels, 2 * channels),
                i < stages - 1 and "up",
                conditions,
            )
            for i in range(stages)
        )
        self.out = nn.Conv2d(channels, mixtures * (1 + 2 * colors + colors * (colors - 1) // 2), 1)
        for conv in convolutions(self) if weight_norm else ():
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(conv.bias)
            # of a weight (in, out, ...) where an image is doubled
            parametrizations.weight_norm(conv, dim=int(isinstance(conv, nn.ConvTranspose2d)))

    @property
    def stride(self):
        """How many rows an image can be shifted by, so that what is said of it is too."""
        return 2 ** (self.config["stages"] - 1)

    @property
    def rows_above(self):
        """At least as many rows as a prediction sees above its own."""
        resnets, stages = self.config["resnets"], self.config["stages"]
        # two convolutions in each resnet of both passes see a row more, at their resolution
        seen = sum(2**i * (2 * (2 * resnets + 1) + 2) for i in range(stages))
        return seen + 2 * self.stride

    @torch.no_grad()
    def initialize(self, x, label=None, cond=None):
        """Fit g and biases so that of a batch each convolution's outputs have mean 0, variance 1.

        The last convolutions of resnets get a standard deviation of 0.1 instead, as the paper's
        code has it. Once, before training, by a first batch of data.
        x, label, cond: as in `forward`
        Raises ValueError of a model without weight_norm, for no image, and as `forward`.
        """
        x, cond = self.inputs(x, label, cond)
        if not (self.config["weight_norm"] and x.numel()):
            raise ValueError("PixelCNNpp: initialize: expected weight_norm, and an image at least")
        last = {net.second.conv for net in self.modules() if isinstance(net, GatedResnet)}
        hooks = [
            conv.register_forward_hook(functools.partial(standardize, 0.1 if conv in last else 1.0))
            for conv in convolutions(self)
        ]
        try:
            self.outputs(x, label, cond)
        finally:
            for hook in hooks:
                hook.remove()

    def outputs(self, x, label, cond):
        """What the network says of the pixels of x (B, C, H, W), in [-1, 1].

        returns: (B, M (1 + 2C + C (C - 1) / 2), H, W), as `kernels.logistic_mixture` takes it
        """
        H, W = x.shape[2:]
        x = F.pad(x, (0, -W % self.stride, 0, -H % self.stride))  # seen from below, to the left
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        u = shift_down(self.first_u(x))
        ul = shift_down(self.first_above(x)) + F.pad(self.first_left(x), (1, 0))[..., :-1]
        seen = [(u, ul)]
        for stage in self.down:
            for to_u, to_ul in zip(stage.u, stage.ul, strict=True):
                u = to_u(u, None, label, cond)
                ul = to_ul(ul, u, label, cond)
                seen.append((u, ul))
            if stage.change:
                u, ul = (f(y) for f, y in zip(stage.change, (u, ul), strict=True))
                seen.append((u, ul))
        u, ul = seen.pop()
        for stage in self.up:
            for to_u, to_ul in zip(stage.u, stage.ul, strict=True):
                side_u, side_ul = seen.pop()
                u = to_u(u, side_u, label, cond)
                ul = to_ul(ul, torch.cat([u, side_ul], 1), label, cond)
            if stage.change:
                u, ul = (f(y) for f, y in zip(stage.change, (u, ul), strict=True))
        return self.out(F.elu(ul))[:, :, :H, :W]

    def params(self, x, label, cond):
        """`outputs` in parts, of logistics.

        returns: weights' logits (B, M, H, W), means and log-scales (B, C, M, H, W),
        k (B, C (C - 1) / 2, M, H, W)
        """
        C, M = x.shape[1], self.config["mixtures"]
        out = self.outputs(x, label, cond).unflatten(1, (-1, M))
        logits, mean, log_scale, k = out.split([1, C, C, C * (C - 1) // 2], dim=1)
        return logits[:, 0], mean, log_scale.clamp(min=FLOOR), torch.tanh(k)

    def by_color(self, x, label, cond):
        """Of each color, given earlier ones: log-weights, means and log-scales.

        x: (B, C, H, W) in [-1, 1]    yields: three times (B, M, H, W)
        """
        logits, mean, log_scale, k = self.params(x, label, cond)
        log_weight, levels = F.log_softmax(logits, dim=1), self.config["levels"]
        codes = ((x + 1) * ((levels - 1) / 2)).round().long()
        for c in range(x.shape[1]):
            own = mean[:, c]
            for d in range(c):
                own = own + k[:, c * (c - 1) // 2 + d] * x[:, d, None]
            yield log_weight, own, log_scale[:, c]
            mass = log_mass(own, log_scale[:, c], codes[:, c, None], levels)
            log_weight = log_weight + mass

    def logits(self, x, label, cond):
        """x: (B, C, H, W) in [-1, 1]    returns: (B, C levels, H, W)"""
        levels, found = torch.arange(self.config["levels"], device=x.device), []
        for log_weight, mean, log_scale in self.by_color(x, label, cond):
            mean, log_scale = mean[:, :, None], log_scale[:, :, None]  # (B, M, 1, H, W)
            mass = log_mass(mean, log_scale, levels[:, None, None], len(levels))
            found.append(torch.logsumexp(log_weight[:, :, None] + mass, dim=1))
        return torch.cat(found, 1)

    def log_prob(self, x, label=None, cond=None):
        """`Raster.log_prob`, without the logits of levels that x does not have."""
        scaled, cond = self.inputs(x, label, cond)
        if not x.numel():
            return scaled.sum((1, 2, 3))
        out = self.outputs(scaled, label, cond)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        log_p = kernels.logistic_mixture(out, x, self.config["levels"], floor=FLOOR)
        return log_p.sum((1, 2))

    def weights(self):
        """The parameters as `kernels.masked_stack_sample` takes them."""
        return [layer for layer, _ in self.stack()]

    def stack(self):
        """Layers of `kernels.masked_stack_sample`, each with the resnet whose gate it is, or None.

        In the order of `params`: a number is of the map that a layer makes.
        """
        found = []

        def add(bias, *convs, resnet=None, skip=-1):
            layer = kernels.MaskedLayer([*convs], bias, resnet is not None, skip)
            found.append((layer, resnet))
            return len(found)

        def resnet(f, mask, x, *sides):
            convs = [f.first.seen(x, mask, "concat_elu")]
            if sides:  # concat_elu has the sides, then their negatives
                pairs = f.nin.weight.unflatten(1, (2, len(sides), -1)).unbind(2)
                weights = [w.flatten(1, 2) for w in pairs]
                masks = (None, "B")  # u, then ul
                convs += map(kernels.MaskedConv, weights, sides, masks, ["concat_elu"] * len(sides))
            bias = f.first.conv.bias + (f.nin.bias if sides else 0)
            y = add(bias, *convs)
            return add(f.second.conv.bias, f.second.seen(y, mask, "concat_elu"), resnet=f, skip=x)

        def change(stage, *maps):
            pairs = zip(stage.change, maps, (None, "B"), strict=True)
            return tuple(add(f.conv.bias, f.seen(y, mask)) for f, y, mask in pairs)

        # a row lower or a pixel to the right, where biases too come from within the image
        none = torch.zeros_like(self.first_u.conv.bias)
        above, left = self.first_above.seen(0, "V"), self.first_left.seen(0, "A")
        u = add(none, self.first_u.seen(0, "V"))
        ul = add(none, above, left._replace(left=1))
        seen = [(u, ul)]
        for stage in self.down:
            for to_u, to_ul in zip(stage.u, stage.ul, strict=True):
                u = resnet(to_u, None, u)
                ul = resnet(to_ul, "B", ul, u)
                seen.append((u, ul))
            if stage.change:
                u, ul = change(stage, u, ul)
                seen.append((u, ul))
        u, ul = seen.pop()
        for stage in self.up:
            for to_u, to_ul in zip(stage.u, stage.ul, strict=True):
                side_u, side_ul = seen.pop()
                u = resnet(to_u, None, u, side_u)
                ul = resnet(to_ul, "B", ul, u, side_ul)
            if stage.change:
                u, ul = change(stage, u, ul)
        # of concat_elu, elu is the first half
        weight = torch.cat([self.out.weight, torch.zeros_like(self.out.weight)], 1)
        add(self.out.bias, kernels.MaskedConv(weight, ul, "B", "concat_elu"))
        return found

    def sample_cached(self, uniforms, given, temperature, label, cond, dtype, threads):
        """`sample` by `kernels.masked_stack_sample`."""
        model, added = working_copy(self, dtype), None  # so that sums of biases are in dtype
        stack = model.stack()
        if label is not None or cond is not None:
            cond = None if cond is None else cond.to(model.out.weight.dtype)
            zeros = model.out.weight.new_zeros(len(uniforms), 1)
            added = [
                zeros.expand(-1, len(y.bias)) if f is None else f.conditions(label, cond)
                for y, f in stack
            ]
        return kernels.masked_stack_sample(
            [layer for layer, _ in stack],
            uniforms,
            colors=self.config["colors"],
            levels=self.config["levels"],
            given=given,
            cond=added and torch.cat(added, 1),
            temperature=temperature,
            dtype=dtype,
            threads=threads,
        )


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


def shift_down(x):
    """x a row lower, zeros above."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]
