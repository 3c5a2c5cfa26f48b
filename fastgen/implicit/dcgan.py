"""DCGAN, convolutions at play (Radford et al. 2015)."""

import torch
from torch import nn

from ..nn import MinibatchDiscrimination
from .adversarial import Adversarial


class DCGAN(Adversarial):
    """Strided convolutions both ways, batch normalization everywhere but at the images' ends.

    Images are in [-1, 1]. The generator starts from a picture of side 4 to 7 and doubles it until
    it is `shape`; channels halve as pictures double. See `Adversarial` for the game.

    shape: of an image, (C, S, S), with S = 4 ... 7 times a power of 2, at least 2    latent: size
    of the noise    channels: of the largest pictures    classes: labels that both networks see

    Raises ValueError for other shapes and sizes.
    Radford, Metz and Chintala 2015, Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        latent=100,
        channels=64,
        classes=0,
        game="nonsaturating",
        smooth=0.0,
        steps=1,
        generator_steps=1,
        discriminator_lr=1.0,
        unrolled=0,
        inner_lr=2e-4,
        penalty=0.0,
        minibatch=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        side, doublings = sides(shape)
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"DCGAN: channels: expected an int >= 1, got {channels!r:.80}")
        super().__init__({**config, "shape": list(shape)})
        self.shape = tuple(shape)
        widths = [channels << i for i in range(doublings)]  # from the largest pictures on
        self.generator = Generator(latent + classes, widths[::-1], side, shape[0])
        self.discriminator = Discriminator(shape[0] + classes, widths, side, minibatch)
        self.apply(start)


class Generator(nn.Module):
    """Noise -> images in [-1, 1]."""

    def __init__(self, inputs, widths, side, colors):
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(inputs, widths[0] * side * side, bias=False),
            nn.Unflatten(1, (widths[0], side, side)),
        )
        layers, last = [], len(widths) - 1
        for i, (C, K) in enumerate(zip(widths, [*widths[1:], colors], strict=True)):
            layers += [nn.BatchNorm2d(C), nn.ReLU()]
            # a normalization takes off any bias before it
            layers += [nn.ConvTranspose2d(C, K, 4, stride=2, padding=1, bias=i == last)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z, label=None):
        """z: (B, latent)    label: (B, classes), or None    returns: (B, C, S, S)"""
        z = z if label is None else torch.cat([z, label], dim=1)
        return self.layers(self.first(z))


class Discriminator(nn.Module):
    """Images -> logits."""

    def __init__(self, inputs, widths, side, minibatch=0):
        super().__init__()
        layers, features = [], widths[-1] * side * side
        for i, (C, K) in enumerate(zip([inputs, *widths], widths, strict=False)):
            layers += [nn.Conv2d(C, K, 4, stride=2, padding=1, bias=not i)]
            layers += [nn.BatchNorm2d(K)] if i else []
            layers += [nn.LeakyReLU(0.2)]
        layers += [nn.Flatten()]
        layers += [MinibatchDiscrimination(features, minibatch)] if minibatch else []
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(features + minibatch, 1)

    def forward(self, x, label=None):
        """x: (B, C, S, S)    label: (B, classes), or None, planes of ones    returns: (B,)"""
        if label is not None:
            planes = label[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], dim=1)
        return self.last(self.layers(x))[:, 0]


def sides(shape, name="DCGAN"):
    """The side that pictures start from, and how often it doubles.

    Raises ValueError for a shape that there is no such side for.
    """
    fits = isinstance(shape, (list, tuple)) and len(shape) == 3 and shape[1] == shape[2]
    if not fits or not all(isinstance(v, int) and v >= 1 for v in shape):
        raise ValueError(f"{name}: shape: expected (C, S, S), got {shape!r:.80}")
    side, doublings = shape[1], 0
    while side > 7 and side % 2 == 0:
        side, doublings = side // 2, doublings + 1
    if not 4 <= side <= 7 or not doublings:
        raise ValueError(
            f"{name}: shape: expected a side of 4 to 7 times 2, 4, 8 ..., got {shape[1]}"
        )
    return side, doublings


def start(module):
    """The paper's initial values: weights N(0, 0.02^2), around 1 of a normalization."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
