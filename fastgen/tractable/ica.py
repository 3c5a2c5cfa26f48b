"""Independent components, linear and nonlinear, by change of variables (Hyvarinen 1999)."""

import math

from ..nn import ActNorm, AffineCoupling, InvertibleLinear
from .flow import Flow, check_sizes
from .networks import MLP


class ICA(Flow):
    """A learned invertible map from what is observed to independent sources that are not Gaussian.

        z = W_0 normalised(x),  then z <- W_l coupling_l(z)  `layers` times;  p(z) = prod_i p_i(z_i)

    Without layers the map is linear, and finds linearly mixed sources, of which at most one is
    Gaussian, up to order and scale; with layers it can be any smooth map, and what it finds is but
    one of many solutions. source: "mixture" learns the density of each, see `Sources`.

    Raises ValueError for sizes that do not fit. (Hyvarinen and Pajunen 1999, Nonlinear independent
    component analysis: existence and uniqueness results; Pham and Garat 1997, for the likelihood.)
    """

    def __init__(
        self, shape=(2,), levels=0, layers=0, hidden=64, source="mixture", reversible=False
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes("ICA", shape, levels, layers=layers, hidden=hidden)
        D = math.prod(shape)
        if D < 2:
            raise ValueError(f"ICA: shape: expected two numbers at least, got {shape}")
        steps = [ActNorm(D), InvertibleLinear(D)]
        for _ in range(layers):
            net = MLP(hidden, 2, D - D // 2, 2 * (D // 2))
            steps += [AffineCoupling(net), InvertibleLinear(D)]
        super().__init__(shape, levels, steps, source=source, flat=True, reversible=reversible)
        self.config = {**config, "shape": list(shape)}
