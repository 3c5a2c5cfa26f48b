"""What is known exactly about a discriminator of K logits, and what ours does."""

import math

import torch
from torch import nn

from ..implicit.semisupervised import SemiSupervisedGAN
from . import Check, run
from .games import close


def verify(each=None):
    """The losses in closed form, where their gradients are zero, and the paper's initial values."""
    return run(
        [
            one_more_class,
            known_loss,
            labels_tell_classes_alone,
            unlabelled_slope,
            nothing_to_tell,
            finite,
            matched,
            initial_values,
        ],
        each,
    )


class Told(SemiSupervisedGAN):
    """A model whose discriminator says what it is told, (B, K) of each batch."""

    def __init__(self, *told, **options):
        super().__init__((2,), told[0].shape[1], 1, (2,), (2,), **options)
        self.told = [t.clone().requires_grad_() for t in told]
        self.to(told[0].dtype).eval()

    def logits(self, *batches):
        return self.told[: len(batches)]

    def losses(self, label):
        """The discriminator's, and the generator's."""
        x = torch.rand(len(label), 2, dtype=self.dtype)
        return [player.loss(x, label, x) for player in self.players()]


def one_more_class():
    """D = Z / (Z + 1) is 1 - p of one more class, whose logit is 0."""
    l = 5 * torch.randn(1000, 10, dtype=torch.float64) - 8
    model = Told(l, l, l, matching=False)
    [_, loss] = model.losses(torch.zeros(1000, dtype=torch.long))
    p = torch.cat([l, torch.zeros(1000, 1)], 1).softmax(1)
    error = (loss + torch.log(1 - p[:, -1]).mean()).abs().item()
    return close("-log D is that of K + 1 classes: error", 0.0, error, 1e-12)


def known_loss():
    """Of one image each: p(label) = 5/8, and D = 4/5 and 1/4."""
    known, real, fake = torch.tensor([[[1, 2, 5.0]], [[1, 1, 2.0]], [[1 / 9] * 3]]).double().log()
    [loss, _] = Told(known, real, fake).losses(torch.tensor([2]))
    want = math.log(8 / 5) + (math.log(5 / 4) + math.log(4 / 3)) / 2
    return close("discriminator's loss at known logits", want, loss.item(), 1e-6)


def labels_tell_classes_alone():
    """Cross-entropy has no slope along (1, ..., 1), the direction in which D changes."""
    l = 5 * torch.randn(64, 10, dtype=torch.float64)
    model = Told(l, weight=0.0)
    [loss] = model.losses(torch.arange(64) % 10)
    [slope] = torch.autograd.grad(loss, model.told)
    return close("labels' slope towards data: largest", 0.0, slope.sum(1).abs().max().item(), 1e-12)


def unlabelled_slope():
    """-1/2 (1 - D(x)) p(k | x) of data and 1/2 D(x') p(k | x') of samples, by the batch."""
    told = [3 * torch.randn(32, 5, dtype=torch.float64) for _ in range(3)]
    model = Told(*told)
    [loss, _] = model.losses(torch.zeros(32, dtype=torch.long))
    slopes = torch.autograd.grad(loss, model.told)[1:]
    Z = [t.exp().sum(1, keepdim=True) for t in told[1:]]
    factors = -1 / (1 + Z[0]), Z[1] / (1 + Z[1])
    wanted = [f / 64 * t.softmax(1) for f, t in zip(factors, told[1:], strict=True)]
    pairs = zip(slopes, wanted, strict=True)
    worst = max((got - want).abs().max().item() for got, want in pairs)
    return close("unlabelled images' slope: error", 0.0, worst, 1e-12)


def nothing_to_tell():
    """Data and samples alike, of Z = 1: what pulls D up and what pulls it down cancel."""
    alike = torch.randn(16, 4, dtype=torch.float64).log_softmax(1)
    model = Told(alike, alike, alike)
    model.told[2] = model.told[1]
    [loss, _] = model.losses(torch.zeros(16, dtype=torch.long))
    [slope] = torch.autograd.grad(loss, model.told[1])
    return close("slope where data and samples are alike", 0.0, slope.abs().max().item(), 1e-12)


def finite():
    """Losses and slopes of float32 logits that are -100, 0 and 100 in all ways."""
    values = torch.tensor([-100.0, 0.0, 100.0])
    l = torch.cartesian_prod(values, values, values)
    ok = True
    for label in range(3):
        model = Told(l, l.flip(0), l.roll(1, 0), matching=False)
        for loss in model.losses(torch.full((27,), label)):
            slopes = torch.autograd.grad(loss, model.told, allow_unused=True)
            ok = ok and all(v.isfinite().all() for v in (loss, *slopes) if v is not None)
    return Check("losses and slopes at logits of +-100", "finite", "finite" if ok else "not", ok)


def matched():
    """Images that are already those of the data teach the generator nothing."""
    model = SemiSupervisedGAN((5,), 3, 4, (6,), (7, 8)).double().eval()
    x = []
    model.generator.register_forward_hook(lambda module, inputs, y: x.append(y))
    makes = model.players()[1].loss
    state = torch.get_rng_state()
    u = torch.rand(9, 5, dtype=torch.float64)
    torch.set_rng_state(state)
    makes(None, None, u)
    torch.set_rng_state(state)  # the same noise, and so the same images
    loss = makes(None, None, x[0].detach())
    slopes = torch.autograd.grad(loss, [*model.generator.parameters()])
    worst = max(loss.item(), *(slope.abs().max().item() for slope in slopes))
    return close("feature matching of equal batches", 0.0, worst, 1e-12)


def initial_values():
    """Each layer's outputs have mean 0 and variance 1 of the batch that they were fitted to."""
    model = SemiSupervisedGAN((20,), 4, 3, (5,), (30, 20)).double().eval()
    x, worst = torch.rand(50, 20, dtype=torch.float64) * torch.arange(20), 0.0
    model.initialize(x)
    for layer in (*model.discriminator.layers, *model.discriminator.last):
        x = layer(x)
        if isinstance(layer, nn.Linear):
            var, mean = torch.var_mean(x, 0, correction=0)
            worst = max(worst, mean.abs().max().item(), (var - 1).abs().max().item())
    return close("initial outputs: mean 0 and variance 1: error", 0.0, worst, 1e-6)
