"""NICE, additive couplings and a diagonal scaling (Dinh, Krueger and Bengio 2014)."""

import math

from ..nn import AffineCoupling, Diagonal
from .flow import Flow, check_sizes
from .networks import MLP


class NICE(Flow):
    """Additive couplings that keep volumes, then a scale for each source.

        y_changed = x_changed + m(x_kept)  `layers` times, of even and of odd places in turn
        z = exp(log_scale) y

    Each m has `depth` hidden layers of `hidden` rectifiers. source: as in `Sources`
    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        levels=256,
        layers=4,
        hidden=1000,
        depth=5,
        source="logistic",
        reversible=False,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes("NICE", shape, levels, layers=layers, hidden=hidden, depth=depth)
        D = math.prod(shape)
        if D < 2:
            raise ValueError(f"NICE: shape: expected two numbers at least, got {shape}")
        steps = []
        for i in range(layers):
            swap, changed = i % 2 == 1, (D + i % 2) // 2
            net = MLP(hidden, depth, D - changed, changed)
            steps.append(AffineCoupling(net, split="alternate", swap=swap, scale="additive"))
        steps.append(Diagonal(D))
        super().__init__(shape, levels, steps, source=source, flat=True, reversible=reversible)
        self.config = {**config, "shape": list(shape)}
