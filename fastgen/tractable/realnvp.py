"""Real NVP: affine couplings at several scales (Dinh, Sohl-Dickstein and Bengio 2016)."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ..nn import ActNorm, AffineCoupling, InvertibleBatchNorm
from .flow import Flow, check_sizes
from .multiscale import check_shape, multiscale, scale_map
from .networks import MLP, ResNet

NORMS = {"batch": InvertibleBatchNorm, "actnorm": ActNorm, "none": None}


class RealNVP(Flow):
    """Affine couplings, each followed by a normalisation.

        y_changed = x_changed exp(weight tanh(s(x_kept))) + t(x_kept)

    Of images: `layers` couplings that keep the pixels of a checkerboard, a squeeze, `layers` that
    keep half of the channels, and on with half of the channels; at the last scale layers + 1 of the
    checkerboard alone. s and t are what a residual network of `blocks` blocks says, of `hidden`
    channels, twice as many at each scale. Of vectors: `layers` couplings in all, of networks with
    `blocks` hidden layers.
    norm: "batch", "actnorm" or "none"    alpha: of the logit of images
    scale_l2: of the squares of the couplings' weights and of weight-normalised lengths, which times
              it are added to the nats that training descends (the paper's is 5e-5)

    Raises ValueError for sizes that do not fit, and another scale_l2 than finite and >= 0.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        levels=256,
        layers=3,
        hidden=32,
        blocks=2,
        scales=2,
        norm="batch",
        alpha=0.05,
        reversible=False,
        scale_l2=0.0,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        sizes = {"layers": layers, "hidden": hidden, "blocks": blocks, "scales": scales}
        check_sizes("RealNVP", shape, levels, **sizes)
        check_shape("RealNVP", shape, scales, even=True)
        if norm not in NORMS:
            raise ValueError(f"RealNVP: norm: expected one of {tuple(NORMS)}, got {norm!r:.80}")
        if not isinstance(scale_l2, (int, float)) or not 0 <= scale_l2 < math.inf:
            raise ValueError(f"RealNVP: scale_l2: expected finite and >= 0, got {scale_l2!r:.80}")

        def couplings(split, C, count, net):
            return alternating(split, C, count, net, NORMS[norm])

        def steps(C, scale):
            last, H = scale == scales - 1, hidden * 2**scale
            before = couplings("checkerboard", C, layers + last, partial(ResNet, H, blocks))
            if last:
                return before, []
            return before, couplings("channel", 4 * C, layers, partial(ResNet, 2 * H, blocks))

        if len(shape) == 1:
            chain = couplings("channel", shape[0], layers, partial(MLP, hidden, blocks))
        else:
            chain = multiscale(shape, scales, steps)
        alpha = alpha if levels else None
        super().__init__(shape, levels, chain, alpha=alpha, reversible=reversible)
        self.config = {**config, "shape": list(shape)}
        if not scale_l2:  # as in the files of models that knew of none
            del self.config["scale_l2"]

    def players(self):
        """Maximum likelihood, with the penalty on the scales where there is one."""
        [player] = super().players()
        if "scale_l2" not in self.config:
            return [player]

        def loss(x):
            penalty = sum(p.square().sum() for p in self.scale_parameters())
            return player.loss(x) + self.config["scale_l2"] / self.dims * penalty

        return [replace(player, loss=loss)]

    def scale_parameters(self):
        """The couplings' weights and the lengths of the weight-normalised filters."""
        weights = [m.weight for m in self.modules() if isinstance(m, AffineCoupling)]
        lengths = "parametrizations.weight.original0"
        return weights + [p for name, p in self.named_parameters() if name.endswith(lengths)]

    def scale_map(self):
        """Of each source the scale at which it is done, int64 of the shape; of vectors 0."""
        return scale_map(self.shape, self.config["scales"])


def alternating(split, C, count, net, norm):
    """Couplings of which one keeps what the next changes, each followed by a norm of C channels.

    net: (inputs, outputs) -> module
    """
    steps = []
    for i in range(count):
        swap = i % 2 == 1
        changed = C if split == "checkerboard" else (C + swap) // 2
        kept = C if split == "checkerboard" else C - changed
        weight = nn.Parameter(torch.ones(changed))
        options = {"split": split, "swap": swap, "weight": weight}
        steps.append(AffineCoupling(net(kept, 2 * changed), **options))
        steps += [norm(C)] if norm else []
    return steps
