"""A GAN whose generator draws an image a column a step (Metz et al. 2017)."""

import torch
from torch import nn

from .adversarial import Adversarial
from .dcgan import Discriminator, sides, start


class LSTMGAN(Adversarial):
    """An LSTM that sees the same noise at each step, against the discriminator of a DCGAN.

        h_t, c_t = LSTM(z, h_t-1, c_t-1),    column t of x = tanh(A h_t + b),    t = 1 ... W

    Long products of derivatives make it hard to train against a discriminator of the moment: the
    case for a generator that looks `unrolled` steps ahead. The widths are ours, as the paper's are
    not known. Images are in [-1, 1]; see `Adversarial` for the game.

    shape: of an image, (C, S, S), with S as of `DCGAN`    latent: size of the noise    units: of
    the LSTM    channels: of the discriminator's largest pictures    classes: labels that both see

    Raises ValueError for other shapes and sizes.
    Metz, Poole, Pfau and Sohl-Dickstein 2017, Unrolled Generative Adversarial Networks.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        latent=100,
        units=128,
        channels=16,
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
        side, doublings = sides(shape, "LSTMGAN")
        if not all(isinstance(v, int) and v >= 1 for v in (units, channels)):
            got = f"{units!r:.80} and {channels!r:.80}"
            raise ValueError(f"LSTMGAN: units, channels: expected ints >= 1, got {got}")
        super().__init__({**config, "shape": list(shape)})
        self.shape = tuple(shape)
        widths = [channels << i for i in range(doublings)]
        self.generator = Generator(latent + classes, units, self.shape)
        self.discriminator = Discriminator(shape[0] + classes, widths, side, minibatch)
        self.discriminator.apply(start)


class Generator(nn.Module):
    """Noise -> images in [-1, 1], the columns from left to right."""

    def __init__(self, inputs, units, shape):
        super().__init__()
        self.shape = shape
        self.lstm = nn.LSTM(inputs, units, batch_first=True)
        self.last = nn.Linear(units, shape[0] * shape[1])

    def forward(self, z, label=None):
        """z: (B, latent)    label: (B, classes), or None    returns: (B, C, S, S)"""
        z = z if label is None else torch.cat([z, label], dim=1)
        h, _ = self.lstm(z[:, None].expand(-1, self.shape[2], -1))  # (B, W, units)
        return torch.tanh(self.last(h)).unflatten(2, self.shape[:2]).permute(0, 2, 3, 1)
