"""MADE, the masked autoencoder for distribution estimation (Germain et al. 2015)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .. import kernels
from .binary import Binary, check_config


class MADE(Binary):
    """An autoencoder whose masks leave to each pixel's output the pixels before it alone.

        h_l = relu(b_l + (W_l * M_l) h_{l-1}),  h_0 = x
        log-odds = b + (V * M) h_L + (A * M') x

    Each unit has a degree: a pixel its place 1 ... D in the order, a hidden unit a number from the
    least of the layer below to D - 1. A mask lets a hidden unit see degrees up to its own, and an
    output those below its own. A set of masks is an order and degrees; with several `sets`, a
    batch of training takes one of them, and p is their mixture.

    hidden: sizes of the layers    direct: whether there is A    order: of the pixels, the raster's
    unless given, or "random" for one of each set's own    seed: of the orders and degrees

    Raises ValueError for sizes that do not fit.
    Germain, Gregor, Murray and Larochelle 2015, MADE.
    """

    def __init__(self, shape=(1, 28, 28), hidden=(500,), sets=1, order=None, direct=False, seed=0):
        if not isinstance(hidden, (list, tuple)):
            raise ValueError(f"MADE: hidden: expected sizes of layers, got {hidden!r:.80}")
        random = order == "random"
        own = None if random else order
        sizes = {f"hidden {i}": H for i, H in enumerate(hidden)}
        check_config("MADE", shape, own, sets=sets, **sizes)
        super().__init__(shape, own, sets)
        self.config = {
            "shape": list(shape),
            "hidden": list(hidden),
            "sets": sets,
            "order": "random" if random else own and list(own),
            "direct": direct,
            "seed": seed,
        }
        sizes = [self.pixels, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(C, K) for C, K in pairwise(sizes))
        self.out = nn.Linear(sizes[-1], self.pixels)
        self.direct = nn.Linear(self.pixels, self.pixels, bias=False) if direct else None
        for i, H in enumerate(hidden):
            self.register_buffer(f"degree{i}", torch.ones(sets, H, dtype=torch.int64))
        if not self.order.is_meta:  # else they come from a file
            self.draw_masks(sets, random, seed)

    def draw_masks(self, sets, random, seed):
        D = self.pixels
        sizes = self.config["hidden"]
        u = kernels.uniforms(seed, sets, D + sum(sizes)).split([D, *sizes], dim=1)
        if random:
            self.order.copy_(u[0].argsort(1))
        least = torch.ones(sets, 1)
        for i in range(len(sizes)):
            spread = (max(1, D - 1) - least + 1) * u[i + 1]
            degree = self.degrees(i).copy_((least + spread).long())
            least = degree.amin(1, keepdim=True)

    def degrees(self, i):
        """Of the hidden layer i, (S, H)."""
        return getattr(self, f"degree{i}")

    def masked(self, s):
        """Weights and biases under the masks s: of the hidden layers, out and direct."""
        place = self.order[s].argsort() + 1  # of each pixel
        below, layers = place, []
        for i, layer in enumerate(self.hidden):
            degree = self.degrees(i)[s]
            layers.append((layer.weight * (degree[:, None] >= below), layer.bias))
            below = degree
        out = self.out.weight * (place[:, None] > below)
        direct = self.direct and self.direct.weight * (place[:, None] > place)
        return layers, (out, self.out.bias), direct

    def logits(self, x, s=0):
        layers, out, direct = self.masked(s)
        h = x = x[:, self.order[s].argsort()]
        for layer in layers:
            h = torch.relu(F.linear(h, *layer))
        logits = F.linear(h, *out)
        if direct is not None:
            logits = logits + F.linear(x, direct)
        return logits[:, self.order[s]]

    def steps(self, n, s=0):
        """Each hidden unit once, as soon as the pixels that it sees are known: one pass in all."""
        layers, (out, bias), direct = self.masked(s)
        h = [out.new_zeros(n, self.pixels)]
        h += [out.new_zeros(n, len(b)) for _, b in layers]
        degrees = [self.degrees(i)[s] for i in range(len(layers))]
        for i, pixel in enumerate(self.order[s].tolist()):
            for l, (weight, b) in enumerate(layers if i else ()):
                units = (degrees[l] == i).nonzero()[:, 0]
                h[l + 1][:, units] = torch.relu(F.linear(h[l], weight[units], b[units]))
            logit = h[-1] @ out[pixel] + bias[pixel]
            if direct is not None:
                logit = logit + h[0] @ direct[pixel]
            h[0][:, pixel] = yield logit
