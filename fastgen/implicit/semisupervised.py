"""A discriminator that classifies, of few labels and many images without (Salimans et al. 2016)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ..game import Player, feature_matching
from ..nn import GaussianNoise, MinibatchDiscrimination
from ..nn.evaluating import evaluating
from ..nn.normalize import standardize
from .adversarial import Adversarial

OUTPUTS = {"softplus": nn.Softplus, "sigmoid": nn.Sigmoid}
NOISE = (0.3, 0.5)  # standard deviation on what the discriminator sees, and on each layer's units


class SemiSupervisedGAN(Adversarial):
    """Perceptrons at play, of which the discriminator has K logits l, one a class of the images.

        p(k | x) = softmax(l)_k,    D(x) = Z / (Z + 1),    Z = sum over k of exp(l_k)
        discriminator's loss: -log p(label | x) + weight / 2 * game.discriminator(log Z, log Z')
        generator's loss:     mean over F units of (E f(x) - E f(x'))^2,  or game.generator(log Z')

    where x' is made, log Z is D's logit and f the last hidden layer's units. Examples are in
    [0, 1], and a batch is labelled ones, their labels and ones without. With a weight of 0 the
    discriminator plays alone, a classifier of the labels. Its weights are normalised, and all but
    the last layer's keep the norms that `initialize` gives them.

    shape: of an example    logits: K    latent: size of the uniform noise    made, hidden: units of
    the generator's and the discriminator's layers    game, steps: as of `Adversarial`
    matching: whether the generator matches features    kernels: of minibatch discrimination on the
    last hidden layer, after which what is said of x depends on the rest of the batch
    pace: of the generator's learning rate to the discriminator's
    output: of the generator, "softplus" or "sigmoid", which is the paper's; but a discriminator
    that is ahead drives what goes into a sigmoid so far that no slope is left, and stays ahead

    Raises ValueError for sizes, weights and games that there are not.
    Salimans et al. 2016, Improved Techniques for Training GANs, sections 3.1, 3.2 and 5.
    """

    low = 0.0
    ways = "linear"  # which stay where there is noise

    def __init__(
        self,
        shape=(1, 28, 28),
        logits=10,
        latent=100,
        made=(500, 500),
        hidden=(1000, 500, 250, 250, 250),
        game="nonsaturating",
        steps=1,
        matching=True,
        kernels=0,
        weight=1.0,
        pace=1.0,
        output="softplus",
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        sizes = [*shape, logits, *made, *hidden]
        if not (shape and hidden and all(isinstance(v, int) and v >= 1 for v in sizes)):
            raise ValueError(
                "SemiSupervisedGAN: shape, logits, made, hidden: expected ints >= 1, "
                f"got {sizes!r:.80}"
            )
        if not isinstance(kernels, int) or kernels < 0 or not 0 <= weight < math.inf:
            got = f"{kernels!r:.80} and {weight!r:.80}"
            raise ValueError(f"SemiSupervisedGAN: kernels, weight: expected >= 0, got {got}")
        if not 0 < pace < math.inf:
            raise ValueError(f"SemiSupervisedGAN: pace: expected > 0, got {pace!r:.80}")
        if output not in OUTPUTS:
            got = f"expected one of {[*OUTPUTS]}, got {output!r:.80}"
            raise ValueError(f"SemiSupervisedGAN: output: {got}")
        super().__init__(
            {**config, "shape": list(shape), "made": list(made), "hidden": list(hidden)}
        )
        self.shape, D = tuple(shape), math.prod(shape)
        self.generator = Generator([latent, *made, D], OUTPUTS[output](), self.shape)
        self.discriminator = Discriminator([D, *hidden], logits, kernels)

    def players(self):
        """The discriminator, and where its weight is above 0 the generator."""
        weight, steps = self.config["weight"], self.config["steps"]

        def tells(x, label, unlabelled):
            if not weight:
                return F.cross_entropy(self.logits(x)[0], label)
            with torch.no_grad():
                made = self.generator(self.noise(len(unlabelled), unlabelled))
            known, real, fake = self.logits(x, unlabelled, made)
            told = self.game.discriminator(real.logsumexp(1), fake.logsumexp(1))
            return F.cross_entropy(known, label) + weight / 2 * told

        def makes(x, label, unlabelled):
            self.check(unlabelled)
            made = self.generator(self.noise(len(unlabelled), unlabelled))
            if not self.config["matching"]:
                return self.game.generator(self.logits(made)[0].logsumexp(1))
            with torch.no_grad():
                real = self.features(unlabelled)
            fake = self.features(made)
            return feature_matching(real, fake) / fake.shape[1]

        tells = Player("discriminator", self.discriminator, tells, steps=steps)
        makes = Player("generator", self.generator, makes, lr=self.config["pace"])
        return [tells, makes] if weight else [tells]

    def features(self, x):
        """The units of the last hidden layer, (B, F)."""
        return self.discriminator.layers(x).to(self.dtype)

    def logits(self, *batches):
        """l of each of the batches, (B, K); of float32 under autocast.

        Raises ValueError for a batch of another shape than the model's.
        """
        for x in batches:
            self.check(x)
        # All in one pass, as normalised weights and products of few rows are dear.
        f = self.features(torch.cat(batches)).split([len(x) for x in batches])
        return [self.discriminator.last(part).to(self.dtype) for part in f]

    def noise(self, n, like):
        return torch.rand(n, self.config["latent"], device=like.device, dtype=self.dtype)

    def quantile(self, u):
        return u

    def make(self, z, *label):
        if not self.config["weight"]:
            raise ValueError("sample: expected weight > 0, got 0: its generator does not play")
        return super().make(z, *label).clamp(max=1)

    @torch.no_grad()
    def classify(self, x):
        """log p(k | x) of examples (B, *shape), as in evaluation: (B, K).

        Raises ValueError for another shape.
        """
        with evaluating(self):
            [logits] = self.logits(x.to(next(self.parameters())))
        return logits.log_softmax(1)

    @torch.no_grad()
    def initialize(self, x):
        """Fit the discriminator's norms and biases: each layer's outputs have mean 0, variance 1.

        Once, before training, by a first batch. Minibatch discrimination does it in its own way.
        Raises ValueError for another shape or fewer than 2 examples, and as
        `MinibatchDiscrimination.initialize`.
        """
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"initialize: x: expected at least 2 examples, got {len(x)}")
        for layer in (*self.discriminator.layers, *self.discriminator.last):
            if isinstance(layer, MinibatchDiscrimination):
                x = layer.initialize(x)
            elif isinstance(layer, nn.Linear):
                x = standardize(1.0, layer, None, layer(x))
            else:
                x = layer(x)


class Generator(nn.Module):
    """Batch normalization and softplus at each hidden layer, then what keeps numbers above 0."""

    def __init__(self, sizes, last, shape):
        super().__init__()
        layers = []
        for C, K in pairwise(sizes[:-1]):
            # a normalization takes off any bias before it
            layers += [nn.Linear(C, K, bias=False), nn.BatchNorm1d(K), nn.Softplus()]
        layers += [nn.Linear(*sizes[-2:])]
        for layer in layers[::3]:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layers[-1].bias)
        unit(layers[-1])
        self.layers = nn.Sequential(*layers, last, nn.Unflatten(1, shape))

    def forward(self, z, label=None):
        """z: (B, latent)    returns: (B, *shape)"""
        return self.layers(z)


class Discriminator(nn.Module):
    """`layers`, (B, *shape) -> (B, F), and `last`, (B, F) -> (B, K)."""

    def __init__(self, sizes, logits, kernels):
        super().__init__()
        layers, outer, inner = [nn.Flatten()], *NOISE
        for i, (C, K) in enumerate(pairwise(sizes)):
            linear = dense(C, K)
            linear.parametrizations.weight.original0.requires_grad_(False)
            layers += [GaussianNoise(inner if i else outer), linear, nn.ReLU()]
        self.layers, F = nn.Sequential(*layers), sizes[-1]
        last = [MinibatchDiscrimination(F, kernels)] if kernels else []
        self.last = nn.Sequential(*last, GaussianNoise(inner), dense(F + kernels, logits))

    def forward(self, x):
        return self.last(self.layers(x))


def dense(C, K):
    """A normalised layer, whose weights are large beside the paper's steps of 0.003."""
    layer = nn.Linear(C, K)
    nn.init.normal_(layer.weight, std=0.1)
    nn.init.zeros_(layer.bias)
    return unit(layer)


def unit(layer):
    """The layer with weights g v / |v| of an output, g = 1."""
    nn.init.ones_(weight_norm(layer).parametrizations.weight.original0)
    return layer
