"""GAN, two perceptrons at play (Goodfellow et al. 2014)."""

import math
from itertools import pairwise

import torch
from torch import nn

from ..nn import MinibatchDiscrimination
from .adversarial import Adversarial

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2)}
OUTPUTS = {"linear": nn.Identity, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class GAN(Adversarial):
    """Perceptrons for vectors, and for images as vectors; see `Adversarial` for the game.

    shape: of an example    latent: size of the noise    hidden: sizes of the layers of both
    activation: "tanh", "relu" or "leaky"    output: of the generator, "linear", "tanh" or "sigmoid"
    classes: labels that both networks see (Mirza and Osindero 2014)

    Raises ValueError for sizes and names that there are not.
    Goodfellow et al. 2014, Generative Adversarial Nets.
    """

    def __init__(
        self,
        shape=(2,),
        latent=256,
        hidden=(128, 128),
        activation="tanh",
        output="linear",
        classes=0,
        game="nonsaturating",
        smooth=0.0,
        steps=1,
        generator_steps=1,
        discriminator_lr=1.0,
        unrolled=0,
        inner_lr=1e-4,
        penalty=0.0,
        minibatch=0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        sizes = [*shape, *hidden]
        if not shape or not all(isinstance(v, int) and v >= 1 for v in sizes):
            got = f"{shape!r:.80} and {hidden!r:.80}"
            raise ValueError(f"GAN: shape, hidden: expected ints >= 1, got {got}")
        for key, got, known in (
            ("activation", activation, ACTIVATIONS),
            ("output", output, OUTPUTS),
        ):
            if got not in known:
                raise ValueError(f"GAN: {key}: expected one of {[*known]}, got {got!r:.80}")
        super().__init__({**config, "shape": list(shape), "hidden": list(hidden)})
        self.shape, D = tuple(shape), math.prod(shape)
        make = ACTIVATIONS[activation]
        last = [OUTPUTS[output](), nn.Unflatten(1, self.shape)]
        self.generator = Perceptron([latent + classes, *hidden, D], make, last)
        self.discriminator = Perceptron([D + classes, *hidden, 1], make, [nn.Flatten(0)], minibatch)


class Perceptron(nn.Module):
    """Linear layers with an activation between each two, of x and the labels side by side.

    minibatch: kernels of minibatch discrimination, before the last layer
    """

    def __init__(self, sizes, activation, last, minibatch=0):
        super().__init__()
        *sizes, C, K = sizes
        layers = [m for D, E in pairwise([*sizes, C]) for m in (nn.Linear(D, E), activation())]
        layers += [MinibatchDiscrimination(C, minibatch)] if minibatch else []
        layers += [nn.Linear(C + minibatch, K)]
        self.layers = nn.Sequential(*layers, *last)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=1.4)
                nn.init.zeros_(layer.bias)

    def forward(self, x, label=None):
        """x: (B, ...)    label: (B, classes), or None    returns: what the last layers make"""
        parts = [x.flatten(1)] if label is None else [x.flatten(1), label]
        return self.layers(torch.cat(parts, dim=1))
