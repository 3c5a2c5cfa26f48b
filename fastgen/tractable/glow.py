"""Glow: actnorm, invertible 1x1 convolutions and affine couplings (Kingma and Dhariwal 2018)."""

from functools import partial

from ..nn import ActNorm, AffineCoupling, InvertibleConv1x1
from .flow import Flow, check_sizes
from .multiscale import check_shape, multiscale, scale_map
from .networks import MLP, convnet


class Glow(Flow):
    """At each scale a squeeze and `layers` steps; then half of the channels are done.

        actnorm;  invertible 1x1 convolution;  y_changed = x_changed sigmoid(s + 2) + t

    What is done at a scale is normalised as the channels that go on say: a Gaussian of their own
    mean and variance. s and t: of a network of three convolutions, `hidden` channels within; of
    vectors, which have one scale, of two hidden layers.

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        levels=256,
        layers=8,
        hidden=128,
        scales=2,
        reversible=False,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes("Glow", shape, levels, layers=layers, hidden=hidden, scales=scales)
        check_shape("Glow", shape, scales, even=False)
        net = partial(convnet, hidden) if len(shape) == 3 else partial(MLP, hidden, 2)

        def coupling(C, scale="sigmoid"):
            return AffineCoupling(net(C - C // 2, 2 * (C // 2)), scale=scale)

        def walk(C):
            each = [(ActNorm(C), InvertibleConv1x1(C), coupling(C)) for _ in range(layers)]
            return [step for steps in each for step in steps]

        def steps(C, scale):
            done = [coupling(4 * C, "tanh")] if scale < scales - 1 else []
            return [], [*walk(4 * C), *done]

        chain = walk(shape[0]) if len(shape) == 1 else multiscale(shape, scales, steps)
        super().__init__(shape, levels, chain, reversible=reversible)
        self.config = {**config, "shape": list(shape)}

    def scale_map(self):
        """Of each source the scale at which it is done, int64 of the shape; of vectors 0."""
        return scale_map(self.shape, self.config["scales"])
