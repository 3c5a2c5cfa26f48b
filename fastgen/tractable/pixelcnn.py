"""PixelCNN and gated PixelCNN, autoregressive models of images (van den Oord et al. 2016)."""

import torch
from torch import nn

from .. import kernels
from ..nn import MaskedConv2d
from .raster import Raster


class GatedLayer(nn.Module):
    """A layer of `GatedPixelCNN`: see `kernels.pixelcnn_layer`."""

    def __init__(self, mask, inputs, P, k, colors, classes, cond_channels):
        super().__init__()
        self.mask, self.colors = mask, colors
        self.v = nn.Conv2d(inputs, 2 * P, (k // 2 + 1, k))
        self.h = nn.Conv2d(inputs, 2 * P, (1, k // 2 + 1))
        self.link = nn.Linear(2 * P, 2 * P, bias=False)
        self.res = nn.Linear(P, P)
        self.label = nn.Embedding(classes, 4 * P) if classes else None
        self.cond = nn.Linear(cond_channels, 4 * P, bias=False) if cond_channels else None
        if classes:
            nn.init.normal_(self.label.weight, std=0.1)

    def conditions(self, label, cond):
        """What the conditions add to the gates of both stacks: (B, 4P), or None."""
        found = [] if label is None else [self.label(label)]
        found += [] if cond is None else [self.cond(cond)]
        return sum(found) if found else None

    def forward(self, v, h, label, cond):
        """v, h: (B, inputs, H, W)    returns: the next two, (B, P, H, W)"""
        added = self.conditions(label, cond)
        return kernels.pixelcnn_layer(
            *(v, h, self.v.weight, self.v.bias, self.h.weight, self.h.bias),
            *(self.link.weight, self.res.weight, self.res.bias),
            *((None, None) if added is None else added.chunk(2, dim=1)),
            mask=self.mask,
            colors=self.colors,
            residual=self.mask == "B",
        )


class GatedPixelCNN(Raster):
    """A stack of gated masked convolutions over an image, without a blind spot.

        v, h <- gated layer(v, h), from the image in [-1, 1]: see `kernels.pixelcnn_layer`
        p(x[t] | ...) = softmax(out(relu(hidden(relu(h)))))

    v sees the rows above, h its own row up to the pixel. Of 3 colors, red is drawn before green
    before blue; `channels` and `head_channels` are then so many equal groups. `classes` adds a bias
    for each label and layer, `cond_channels` a linear map of a vector. `height` and `width` are of
    the images that are drawn if nothing else is said. (van den Oord et al. 2016, "Conditional Image
    Generation with PixelCNN Decoders".)

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        layers=8,
        channels=64,
        head_channels=64,
        first_kernel=7,
        kernel=3,
        levels=256,
        colors=1,
        classes=0,
        cond_channels=0,
        height=28,
        width=28,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_config("GatedPixelCNN", **self.config)
        conditions = (colors, classes, cond_channels)
        self.layers = nn.ModuleList(
            GatedLayer("B", channels, channels, kernel, *conditions)
            if i
            else GatedLayer("A", colors, channels, first_kernel, *conditions)
            for i in range(layers)
        )
        self.hidden = MaskedConv2d(channels, head_channels, 1, mask="B", colors=colors)
        self.out = MaskedConv2d(head_channels, colors * levels, 1, mask="B", colors=colors)

    @property
    def rows_above(self):
        """How many rows above its own a prediction sees."""
        first, k = self.config["first_kernel"], self.config["kernel"]
        return first // 2 + (self.config["layers"] - 1) * (k // 2)

    def logits(self, x, label, cond):
        """x: (B, C, H, W) in [-1, 1]    returns: (B, C levels, H, W)"""
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, label, cond)
        return self.out(torch.relu(self.hidden(torch.relu(h))))

    def weights(self):
        """The parameters as `kernels.pixelcnn_sample` takes them."""
        return kernels.PixelWeights(
            layers=[
                kernels.PixelLayer(
                    *(y.v.weight, y.v.bias, y.h.weight, y.h.bias),
                    *(y.link.weight, y.res.weight, y.res.bias),
                )
                for y in self.layers
            ],
            hidden=self.hidden.weight[..., 0, 0],
            hidden_bias=self.hidden.bias,
            out=self.out.weight[..., 0, 0],
            out_bias=self.out.bias,
            colors=self.config["colors"],
        )

    def sample_cached(self, uniforms, given, temperature, label, cond, dtype, threads):
        """`sample` by `kernels.pixelcnn_sample`."""
        cond = None if cond is None else cond.to(self.out.weight.dtype)
        added = [layer.conditions(label, cond) for layer in self.layers]
        return kernels.pixelcnn_sample(
            self.weights(),
            uniforms,
            given=given,
            cond=None if added[0] is None else torch.stack(added, 1),
            temperature=temperature,
            dtype=dtype,
            threads=threads,
        )


class PixelCNN(Raster):
    """A stack of masked convolutions over an image.

        h <- conv_A(image in [-1, 1])
        h <- h + up(relu(conv_B(relu(down(relu(h))))))          in each layer
        p(x[t] | ...) = softmax(out(relu(hidden(relu(h)))))

    `down` halves the channels. Whatever the depth, a prediction does not see all pixels before its
    own: those above are hidden that lie more than k // 2 columns to the right for each row up,
    where only pixels that a mask shuts out could pass them on. `GatedPixelCNN` has no such blind
    spot. Colors, height and width: as there. (van den Oord et al. 2016, "Pixel Recurrent
    Neural Networks", section 3.3.)

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        layers=8,
        channels=128,
        head_channels=128,
        first_kernel=7,
        kernel=3,
        levels=256,
        colors=1,
        height=28,
        width=28,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_config("PixelCNN", **self.config)
        if channels % (2 * colors):
            want = f"a multiple of {2 * colors}"
            raise ValueError(f"PixelCNN: channels: expected {want}, got {channels}")
        self.first = MaskedConv2d(colors, channels, first_kernel, mask="A", colors=colors)
        half = channels // 2
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "down": MaskedConv2d(channels, half, 1, mask="B", colors=colors),
                    "conv": MaskedConv2d(half, half, kernel, mask="B", colors=colors),
                    "up": MaskedConv2d(half, channels, 1, mask="B", colors=colors),
                }
            )
            for _ in range(layers)
        )
        self.hidden = MaskedConv2d(channels, head_channels, 1, mask="B", colors=colors)
        self.out = MaskedConv2d(head_channels, colors * levels, 1, mask="B", colors=colors)

    @property
    def rows_above(self):
        """How many rows above its own a prediction sees."""
        first, k = self.config["first_kernel"], self.config["kernel"]
        return first // 2 + self.config["layers"] * (k // 2)

    def logits(self, x, label, cond):
        """x: (B, C, H, W) in [-1, 1]    returns: (B, C levels, H, W)"""
        h = self.first(x)
        for layer in self.layers:
            y = layer["conv"](torch.relu(layer["down"](torch.relu(h))))
            h = h + layer["up"](torch.relu(y))
        return self.out(torch.relu(self.hidden(torch.relu(h))))

    def weights(self):
        """The parameters as `kernels.masked_stack_sample` takes them."""
        found, convs = [], [y[name] for y in self.layers for name in ("down", "conv", "up")]
        for source, y in enumerate((self.first, *convs, self.hidden, self.out)):
            live = y.weight[:, :, : y.weight.shape[2] // 2 + 1]
            mask, act = ("B", "relu") if source else ("A", "none")
            up = source % 3 == 0 and 0 < source <= len(convs)
            conv = kernels.MaskedConv(live, source, mask, act)
            found.append(kernels.MaskedLayer([conv], y.bias, skip=source - 2 if up else -1))
        return found

    def sample_cached(self, uniforms, given, temperature, label, cond, dtype, threads):
        """`sample` by `kernels.masked_stack_sample`."""
        return kernels.masked_stack_sample(
            self.weights(),
            uniforms,
            colors=self.config["colors"],
            given=given,
            temperature=temperature,
            dtype=dtype,
            threads=threads,
        )


def check_config(name, colors, **sizes):
    """Raise ValueError for a size that a stack of masked convolutions cannot have."""
    check_sizes(name, colors, **sizes)
    for key in ("channels", "head_channels"):
        if sizes[key] % colors:
            raise ValueError(f"{name}: {key}: expected a multiple of {colors}, got {sizes[key]}")
    for key in ("first_kernel", "kernel"):
        if sizes[key] % 2 == 0:
            raise ValueError(f"{name}: {key}: expected an odd number, got {sizes[key]}")


def check_sizes(name, colors, **sizes):
    """Raise ValueError for a size that no model of images can have."""
    least = {"classes": 0, "cond_channels": 0, "levels": 2, "first_kernel": 3}
    for key, got in sizes.items():
        if not isinstance(got, int) or got < least.get(key, 1):
            raise ValueError(f"{name}: {key}: expected an int >= {least.get(key, 1)}, got {got}")
    if colors not in (1, 3):
        raise ValueError(f"{name}: colors: expected 1 or 3, got {colors}")
    if sizes["levels"] > 256:
        raise ValueError(f"{name}: levels: expected at most 256, got {sizes['levels']}")
