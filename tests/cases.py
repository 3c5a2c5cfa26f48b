"""The inputs of each op, for tests and benchmarks: a maker and a table of sizes by name."""

import torch

from fastgen import kernels

T_TILE = 96  # samples that wavenet_layer's C++ kernel takes at once


def masked_conv2d(
    B=2, C=4, O=6, H=5, W=7, k=(3, 3), bias=True, last=False, dtype=torch.float32, **options
):
    """x, weight and bias, and the options, of `masked_conv2d`; `last`: x is channels_last."""
    generator = torch.Generator().manual_seed(0)
    shapes = (B, C, H, W), (O, C // options.get("groups", 1), *k), (O,)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    if last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    return [*inputs[:2], inputs[2] if bias else None], {"mask": "B", **options}


MASKED_CONV2D = {
    "plain": {},
    "first layer": {"mask": "A", "C": 1, "k": (7, 7)},
    "ones": {"B": 1, "C": 1, "O": 1, "H": 1, "W": 1, "k": (1, 1)},
    "no live tap": {"mask": "A", "k": (1, 1)},
    "no row above": {"mask": "vertical A", "k": (1, 5)},
    "empty batch": {"B": 0},
    "no bias": {"bias": False, "mask": "A"},
    "larger than the image": {"mask": "A", "k": (9, 11), "H": 2, "W": 3},
    "dilated beyond the image": {"mask": "vertical A", "k": (5, 3), "dilation": (7, 9)},
    "wide": {"k": (3, 7), "W": 33},
    "tall": {"mask": "A", "k": (7, 3), "H": 33},
    "a row": {"k": (1, 5)},
    "a column": {"mask": "A", "k": (5, 1)},
    "dilated": {"dilation": 2, "k": (5, 5), "H": 13},
    "groups": {"groups": 2, "k": (5, 3)},
    "a group a channel": {"mask": "A", "groups": 4, "O": 8},
    "colors": {"mask": "A", "colors": 3, "C": 3, "O": 9, "k": (5, 5)},
    "colors at once": {"colors": 3, "C": 6, "O": 9, "k": (1, 1)},
    "colors before": {"mask": "A", "colors": 3, "C": 6, "O": 9, "k": (1, 1)},
    "colors and groups": {"colors": 3, "C": 12, "O": 6, "groups": 2},
    "colors across groups": {"mask": "A", "colors": 2, "C": 12, "O": 12, "groups": 3},
    "vertical": {"mask": "vertical B", "k": (5, 3)},
    "vertical, first layer": {"mask": "vertical A", "k": (5, 5), "H": 9},
    "channels last": {"last": True, "H": 17, "W": 18, "k": (5, 5)},
    "prime sizes": {"B": 3, "C": 13, "O": 19, "H": 11, "W": 23, "mask": "A", "dilation": (2, 1)},
}


def pixelcnn_layer(
    B=2, C=4, P=6, H=5, W=7, k=3, V=None, O=None, cond=False, dtype=torch.float32, **options
):
    """The tensors, and the options, of `pixelcnn_layer`; V and O are C where not given."""
    generator, r = torch.Generator().manual_seed(0), k // 2
    V, O = V or C, O or C

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = [
        normal(B, V, H, W),
        normal(B, C, H, W),
        normal(2 * P, V, r + 1, k, scale=(V * k * (r + 1)) ** -0.5),
        normal(2 * P),
        normal(2 * P, C, 1, r + 1, scale=(C * (r + 1)) ** -0.5),
        normal(2 * P),
        normal(2 * P, 2 * P, scale=(2 * P) ** -0.5),
        normal(O, P, scale=P**-0.5),
        normal(O),
        normal(B, 2 * P) if cond else None,
        normal(B, 2 * P) if cond else None,
    ]
    return inputs, {"mask": "B", **options}


FIRST = {"mask": "A", "residual": False}
PIXELCNN_LAYER = {
    "plain": {},
    "first": {**FIRST, "C": 1, "O": 6, "k": 7},
    "ones": {"B": 1, "C": 1, "P": 1, "H": 1, "W": 1, "k": 1},
    "nothing is seen": {**FIRST, "k": 1},
    "empty batch": {"B": 0, "cond": True},
    "no pixels": {"H": 0},
    "condition": {"cond": True, "k": 5},
    "colors": {"C": 6, "P": 9, "colors": 3, "k": 5},
    "first of colors": {**FIRST, "C": 3, "P": 9, "O": 6, "colors": 3, "cond": True},
    "no residual": {"residual": False, "O": 9, "V": 3},
    "a column": {"W": 1, "H": 9},
    "a row": {"H": 1, "W": 37, "k": 5},
    "a tile": {"H": 8, "W": 16, "C": 8, "P": 8},
    "a tile and a row": {"H": 9, "W": 16, "C": 3, "P": 3},
    "tiles": {"B": 3, "H": 11, "W": 33, "C": 8, "P": 16, "k": 5},
    "wider than a tile": {"B": 1, "H": 3, "W": 131, "k": 7, "C": 2, "P": 3},
    "prime sizes": {"B": 3, "C": 13, "P": 19, "V": 17, "H": 13, "W": 19, "cond": True},
}


def wavenet_layer(
    B=2, R=5, S=7, H=3, K=2, T=11, F=0, hop=1, dilation=1, res=True, dtype=torch.float32
):
    """The arguments of `wavenet_layer`; without conditioning for F = 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        normal(B, R, T),
        normal(B, S, T),
        normal(2 * H, R, K, scale=(R * K) ** -0.5),
        normal(2 * H),
        normal(R, H, scale=H**-0.5) if res else None,
        normal(R) if res else None,
        normal(S, H, scale=H**-0.5),
        normal(S),
        normal(B, 2 * H, F) if F else None,
        hop,
        dilation,
    )


WAVENET_LAYER = {
    "plain": {},
    "ones": {"B": 1, "R": 1, "S": 1, "H": 1, "K": 1, "T": 1},
    "empty batch": {"B": 0, "F": 3},
    "no samples": {"T": 0, "F": 1},
    "one sample": {"T": 1, "F": 2, "dilation": 3},
    "shorter than the dilation": {"T": 13, "dilation": 64, "K": 3},
    "as long as the dilation": {"T": 32, "dilation": 32},
    "prime sizes": {"B": 3, "R": 13, "S": 19, "H": 17, "T": 101, "dilation": 7},
    "a tile": {"T": T_TILE, "dilation": 8},
    "a tile less one": {"T": T_TILE - 1, "dilation": 16},
    "a tile and one": {"T": T_TILE + 1, "dilation": 2},
    "many tiles": {"B": 2, "R": 8, "S": 16, "H": 8, "T": 7 * T_TILE + 5, "dilation": 100},
    "three taps": {"R": 16, "S": 24, "H": 16, "K": 3, "T": 130, "dilation": 33},
    "wide": {"B": 1, "R": 40, "S": 150, "H": 20, "T": 30},
    "last layer": {"T": 40, "res": False, "dilation": 4},
    "frames": {"T": 100, "F": 3, "hop": 40, "dilation": 2},
    "frames beyond the end": {"T": 50, "F": 9, "hop": 10},
    "held frame": {"T": 50, "F": 2, "hop": 7, "res": False},
    "one frame": {"T": 20, "F": 1, "hop": 5},
    "a frame a sample": {"T": 20, "F": 20, "hop": 1},
}


def wavenet_sample(
    L=4,
    stacks=2,
    K=2,
    R=7,
    H=5,
    S=6,
    A=12,
    M=0,
    n=3,
    T=20,
    C=0,
    hop=1,
    speakers=False,
    P=0,
    temperature=1.0,
):
    """Weights, uniforms and options of `wavenet_sample`, float64; its logits are far from even."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    O = 3 * M or A
    out, out_bias = normal(O, S, scale=3 * S**-0.5), normal(O)
    if M:
        out[M:], out_bias[2 * M :] = out[M:] / 6, out_bias[2 * M :] - 3
    weights = kernels.Weights(
        embed=normal(2 if M else A, R),
        conv=normal(L, 2 * H, R, K, scale=1.5 * (R * K) ** -0.5),
        conv_bias=normal(L, 2 * H, scale=0.5),
        res=normal(L - 1, R, H, scale=H**-0.5),
        res_bias=normal(L - 1, R, scale=0.1),
        skip=normal(L, S, H, scale=3 * (L * H) ** -0.5),
        skip_bias=normal(S),
        hidden=normal(S, S, scale=1.5 * S**-0.5),
        hidden_bias=normal(S),
        out=out,
        out_bias=out_bias,
        cond=normal(L, 2 * H, C, scale=C**-0.5) if C else None,
    )
    shape = (n, T, 2) if M else (n, T)
    options = {
        "dilations": [2 ** (l % (L // stacks)) for l in range(L)],
        "prefix": torch.randint(A, (n, P), generator=generator) if P else None,
        "base": normal(n, L, 2 * H) if speakers else None,
        "cond": normal(n, C, -(-T // hop) + 1) if C else None,
        "hop": hop,
        "classes": A,
        "mixtures": M,
        "temperature": temperature,
    }
    return weights, torch.rand(shape, generator=generator, dtype=torch.float64), options


WAVENET_SAMPLE = {
    "plain": {},
    "ones": {"L": 1, "stacks": 1, "R": 1, "H": 1, "S": 1, "A": 2, "n": 1, "T": 1},
    "no streams": {"n": 0, "C": 2},
    "no steps": {"T": 0, "C": 2, "hop": 4},
    "one layer": {"L": 1, "stacks": 1, "C": 2, "hop": 3},
    "dilations of 1": {"stacks": 4, "K": 3},
    "shorter than the receptive field": {"L": 6, "stacks": 1, "T": 30},
    "longer than it": {"L": 6, "stacks": 2, "T": 70},
    "three taps": {"K": 3, "L": 5, "stacks": 1, "R": 13, "T": 70},
    "five taps": {"K": 5, "L": 3, "stacks": 1, "T": 40},
    "a group": {"n": 8, "L": 5, "stacks": 1, "T": 40},
    "a group and one": {"n": 9, "L": 5, "stacks": 1, "T": 40},
    "three groups": {"n": 17, "K": 3},
    "a panel and one": {"R": 65, "H": 33, "S": 65, "A": 65},
    "whole panels": {"R": 64, "H": 64, "S": 128, "A": 256, "T": 8},
    "a frame a step": {"C": 3, "n": 5},
    "frames": {"C": 3, "hop": 4, "n": 9, "T": 41},
    "long frames": {"C": 70, "hop": 80, "T": 170},
    "speakers": {"speakers": True, "n": 10},
    "speakers and frames": {"speakers": True, "C": 1, "hop": 5},
    "prefix": {"P": 9, "n": 9},
    "nothing to draw": {"P": 20},
    "the likeliest": {"temperature": 0.0},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "mixture": {"M": 3, "A": 256, "n": 9},
    "mixture of one": {"M": 1, "A": 2, "K": 3},
    "cold mixture": {"M": 3, "A": 65536, "temperature": 0.5, "C": 2, "hop": 7},
    "heaviest components": {"M": 17, "A": 31, "temperature": 0.0},
}
