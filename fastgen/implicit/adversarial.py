"""What all models share whose generator learns from a discriminator."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .. import kernels
from ..game import GAMES, Minimax, Player, gradient_penalty, unroll
from ..nn import MinibatchDiscrimination
from ..nn.evaluating import evaluating
from ..tractable.sources import inside

BETAS = (0.5, 0.999)  # of Adam, as Radford et al. have them


class Adversarial(nn.Module):
    """Two players: G makes x of noise, D tells it from data; the game says what each descends.

        discriminator's loss: game.discriminator(D(x), D(G(z))) + penalty * E (||grad D|| - 1)^2
        generator's loss:     game.generator(D(G(z))),  of D as it will be after `unrolled` steps

    A subclass has `shape` of an example, the networks `generator`, (B, latent) and one-hot labels
    (B, classes) or None -> (B, *shape), and `discriminator`, (B, *shape) and labels -> (B,), and
    `config`, whose keys these are, where it has a use for them. Images are in [low, 1].

    game: a name in `fastgen.game.GAMES`    smooth: of the label of data, see `Minimax`
    steps, generator_steps: the discriminator's and the generator's of a turn
    discriminator_lr: factor of the game's learning rate for the discriminator
    unrolled: steps of Adam, with BETAS and the rate inner_lr, that the generator looks ahead
    penalty: weight    minibatch: kernels of minibatch discrimination, by which the discriminator
    sees how near a batch's rows are to one another, of data and of samples each its own

    Raises ValueError for a game that there is not, and counts and weights out of range.
    Goodfellow et al. 2014, Generative Adversarial Nets; Metz et al. 2017, Unrolled Generative
    Adversarial Networks; Gulrajani et al. 2017, Improved Training of Wasserstein GANs.
    """

    low = -1.0
    ways = "spherical"  # between two codes, see `fastgen.latent.interpolate`

    def __init__(self, config):
        super().__init__()
        self.config = config
        name, game = type(self).__name__, config["game"]
        if game not in GAMES:
            names = ", ".join(GAMES)
            raise ValueError(f"{name}: game: expected one of {names}, got {game!r:.80}")
        least = {"latent": 1, "steps": 1, "generator_steps": 1}
        least |= {"unrolled": 0, "classes": 0, "minibatch": 0}
        for key, low in least.items():
            got = config.get(key, low)
            if not isinstance(got, int) or got < low:
                raise ValueError(f"{name}: {key}: expected an int >= {low}, got {got!r:.80}")
        for key in ("penalty", "inner_lr"):
            if not 0 <= config.get(key, 0) < float("inf"):
                raise ValueError(f"{name}: {key}: expected >= 0, got {config[key]!r:.80}")
        self.game = GAMES[game]
        if smooth := config.get("smooth"):
            if not isinstance(self.game, Minimax):
                raise ValueError(f"{name}: smooth: expected 0 of {game}, got {smooth!r:.80}")
            self.game = replace(self.game, smooth=smooth)

    def players(self):
        """The discriminator, which takes its steps first, and the generator."""

        def tells(x, label=None):
            label = self.one_hot(x, label)
            with torch.no_grad():
                fake = self.generator(self.noise(len(x), x), label)
            return self.loss(self.discriminator, x, fake, label)

        def makes(x, label=None):
            label = self.one_hot(x, label)
            fake = self.generator(self.noise(len(x), x), label)
            tell = self.discriminator
            if K := self.config["unrolled"]:
                # Of these the play ahead may move the running statistics.
                buffers = {name: b.clone() for name, b in tell.named_buffers()}

                def called(theta, *seen):
                    return functional_call(self.discriminator, buffers | theta, seen)

                def descended(theta):
                    return self.loss(partial(called, theta), x, fake, label)

                lr = self.config["inner_lr"]
                tell = partial(called, unroll(tell, descended, K, lr=lr, betas=BETAS))
            return self.game.generator(tell(fake, label).to(self.dtype))

        steps, lr = self.config["steps"], self.config["discriminator_lr"]
        return [
            Player("discriminator", self.discriminator, tells, steps=steps, lr=lr),
            Player("generator", self.generator, makes, steps=self.config["generator_steps"]),
        ]

    def loss(self, discriminator, x, fake, label):
        """What a discriminator descends, whose logits may be of autocast's dtype."""
        tell = lambda x: discriminator(x, label).to(self.dtype)  # noqa: E731
        loss = self.game.discriminator(tell(x), tell(fake))
        if weight := self.config.get("penalty"):
            loss = loss + weight * gradient_penalty(tell, x, fake.to(x))
        return loss

    def noise(self, n, like):
        return torch.randn(n, self.config["latent"], device=like.device, dtype=self.dtype)

    def quantile(self, u):
        """The noise that uniform numbers become."""
        return torch.special.ndtri(inside(u))

    @torch.no_grad()
    def initialize(self, x, label=None):
        """Fit minibatch discrimination's norms and biases to a batch of data, before training.

        Raises ValueError for another shape, and as `MinibatchDiscrimination.initialize`.
        """
        label, seen = self.one_hot(x, label), []
        own = [m for m in self.discriminator.modules() if isinstance(m, MinibatchDiscrimination)]
        for layer in own:
            hook = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs))
            try:
                self.discriminator(x, label)
            finally:
                hook.remove()
            layer.initialize(*seen.pop())

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def one_hot(self, x, label):
        """The labels that the networks see of a batch, or None.

        Raises ValueError for a batch of another shape than the model's.
        """
        self.check(x)
        if self.config.get("classes") and label is None:
            name = type(self).__name__
            raise ValueError(f"{name}: label: expected the batch to have labels, got none")
        return self.coded(label)

    def check(self, x):
        if x.shape[1:] != self.shape:
            name, got = type(self).__name__, tuple(x.shape[1:])
            raise ValueError(f"{name}: x: expected examples of {self.shape}, got {got}")

    def coded(self, label):
        if not self.config.get("classes"):
            return None
        return F.one_hot(label, self.config["classes"]).to(self.dtype)

    def draw(self, n, seed):
        """What `sample` makes of its seed, by name: z (n, latent)."""
        return {"z": self.quantile(numbers(seed, n, self.config["latent"]))}

    @torch.no_grad()
    def sample(self, n, *, seed=None, z=None, label=None):
        """Make n examples of noise.

        z: (n, latent), else drawn from `seed`    label: (n,) int64, of a model of classes
        returns: (n, *shape)
        Raises ValueError for shapes that do not fit and labels that there are not.
        """
        latent, classes = self.config["latent"], self.config.get("classes", 0)
        if n < 0:
            raise ValueError(f"sample: n: expected >= 0, got {n}")
        if z is not None and z.shape != (n, latent):
            raise ValueError(f"sample: z: expected {(n, latent)}, got {tuple(z.shape)}")
        if (label is None) == bool(classes):
            want = f"labels ({n},)" if classes else "none of a model without classes"
            raise ValueError(f"sample: label: expected {want}, got {label!r:.80}")
        if label is not None and label.shape != (n,):
            raise ValueError(f"sample: label: expected ({n},), got {tuple(label.shape)}")
        if label is not None and n and not 0 <= int(label.min()) <= int(label.max()) < classes:
            got = f"{int(label.min())} to {int(label.max())}"
            raise ValueError(f"sample: label: expected 0 to {classes - 1}, got {got}")
        z = self.draw(n, seed)["z"] if z is None else z
        device = next(self.parameters()).device
        return self.make(z, self.coded(None if label is None else label.to(device)))

    def make(self, z, *label):
        """What the generator makes, as it will when it is trained."""
        with evaluating(self):
            return self.generator(z.to(next(self.parameters())), *label)


def numbers(seed, n, length):
    """Uniform numbers (n, length) of a seed, or where that is None of torch's own."""
    seed = int(torch.randint(1 << 62, ())) if seed is None else seed
    return kernels.uniforms(seed, n, length)
