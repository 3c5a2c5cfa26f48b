"""The inputs of each op, for tests and benchmarks: a maker and a table of sizes by name.

The maker has the op's name, the table that name in capitals; the maker returns the arguments of
`kernels.<op>`, and last a dict of its options if it has some. So every kernel is found by tests
that are of no kernel in particular: those on a GPU, and those that compile for one.
"""

import contextlib
import inspect
import os

import torch

from fastgen import kernels
from fastgen.kernels.affine_coupling import half_shape


def ops():
    """The names of the ops that have cases."""
    return [name for name in kernels.__all__ if name.upper() in globals()]


def table(op):
    """The sizes of an op's cases, by name."""
    return globals()[op.upper()]


# the most of a size that Triton's interpreter has patience for
PATIENCE = {
    "logistic_mixture": {"B": 2, "C": 3, "M": 2},
    "wavenet_sample": {"T": 2, "P": 2},
    "minibatch_discrimination": {"B": 2, "C": 2},
    "pixelcnn_sample": {"H": 2, "W": 3, "L": 2, "n": 17},
}


def brief(op, sizes):
    """`sizes`, cut for the interpreter."""
    defaults = inspect.signature(globals()[op]).parameters
    limits = PATIENCE.get(op, {}).items()
    return {**sizes, **{k: min(most, sizes.get(k, defaults[k].default)) for k, most in limits}}


def arguments(op, sizes, dtype, device="cpu"):
    """Arguments and options of `kernels.<op>`, in the dtype of that name: an option, or inputs'."""
    made = globals()[op](**sizes)
    args, options = (made[:-1], made[-1]) if isinstance(made[-1], dict) else (made, {})
    if "dtype" in inspect.signature(getattr(kernels, op)).parameters:
        return moved(args, device), {**moved(options, device), "dtype": dtype}
    to = getattr(torch, dtype)
    return tuple(v.to(device, to) if is_float(v) else moved(v, device) for v in args), options


def call(op, args, options):
    return getattr(kernels, op)(*args, **options)


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def moved(x, device):
    """A tensor, or those in a tuple, a list or a dict, on `device`; anything else as it is."""
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if isinstance(x, dict):
        return {name: moved(v, device) for name, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(moved(v, device) for v in x))
    return type(x)(moved(v, device) for v in x) if isinstance(x, (list, tuple)) else x


def tensors(x):
    """The tensors in what an op returns."""
    if isinstance(x, torch.Tensor):
        return [x]
    return [t for v in x for t in tensors(v)] if isinstance(x, (list, tuple)) else []


def logistic_mixture(B=2, C=1, M=3, size=(7,), classes=16, dtype=torch.float32, **options):
    """The arguments, and the options, of `logistic_mixture`; codes are near the means."""
    generator = torch.Generator().manual_seed(0)
    pairs = C * (C - 1) // 2
    params = torch.randn(B, 1 + 2 * C + pairs, M, *size, generator=generator, dtype=torch.float64)
    params[:, 1 + C : 1 + 2 * C] = 0.5 * params[:, 1 + C : 1 + 2 * C] - 2
    params[:, 1 + 2 * C :] *= 0.3
    noise = 0.1 * torch.randn(B, C, *size, generator=generator, dtype=torch.float64)
    near = (params[:, 1 : 1 + C].mean(2) + noise).clamp(-1, 1)
    codes = ((near + 1) * ((classes - 1) / 2)).round().long()
    return params.flatten(1, 2).to(dtype), codes, classes, options


P_TILE = 64  # places that logistic_mixture's C++ kernel takes at once
LOGISTIC_MIXTURE = {
    "plain": {},
    "ones": {"B": 1, "M": 1, "size": (1,)},
    "empty batch": {"B": 0, "C": 3, "size": (2, 2)},
    "no places": {"size": (0,)},
    "no dimensions": {"size": (), "C": 3},
    "images": {"C": 3, "M": 10, "size": (4, 5), "classes": 256, "floor": -7.0},
    "two levels": {"C": 3, "size": (3, 3), "classes": 2},
    "sound": {"M": 10, "size": (33,), "classes": 65536},
    "two colors": {"C": 2, "M": 5, "size": (3, 1, 2)},
    "five colors": {"C": 5, "M": 2, "size": (9,), "classes": 10},
    "a floor that is met": {"C": 3, "floor": -1.9, "size": (3, 7)},
    "a tile": {"size": (P_TILE,), "M": 2},
    "a tile less one": {"size": (P_TILE - 1,), "M": 2, "C": 3},
    "a tile and one": {"size": (P_TILE + 1,), "M": 2},
    "prime sizes": {"B": 3, "C": 3, "M": 7, "size": (13, 19), "classes": 101},
    "more than a run": {"B": 3, "size": (16 * P_TILE + 5,), "M": 1},
}


T_TILE = 96  # samples that wavenet_layer's C++ kernel takes at once
NAN = float("nan")


def affine_coupling(
    B=2,
    C=4,
    size=(4, 6),
    scale="tanh",
    split="channel",
    weight=None,
    apart=False,
    dtype=torch.float32,
    **options,
):
    """x, s, t, scale and weight, of a channel or of "one" for all, and options of the op."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(B, C, *size)
    _, K, *rest = half_shape(x, split, options.get("swap", False))
    joined = scale != "additive" and not apart
    return (
        x,
        normal(B, 2 * K if joined else K, *rest),
        normal(B, K, *rest) if apart else None,
        scale,
        None if weight is None else normal(*(() if weight == "one" else (K,))),
        {"split": split, **options},
    )


BOARD = {"split": "checkerboard"}
AFFINE_COUPLING = {
    "plain": {},
    "ones": {"B": 1, "C": 1, "size": (), "split": None},
    "empty batch": {"B": 0},
    "no pixels": {"size": (0, 2), "weight": "all"},
    "halves": {"split": None, "apart": True},
    "halves out of h": {"split": None, "layout": "ts", "swap": True},
    "halves, alternating": {"split": None, "layout": "stst", "weight": "all"},
    "swapped": {"swap": True, "C": 5, "weight": "one"},
    "t first": {"layout": "ts", "C": 5, "scale": "sigmoid"},
    "alternate": {"split": "alternate", "C": 7, "layout": "tsts", "scale": "softplus"},
    "alternate, swapped": {"split": "alternate", "C": 7, "swap": True, "weight": "all"},
    "checkerboard": {**BOARD, "scale": "exp"},
    "checkerboard, swapped": {**BOARD, "swap": True, "size": (5, 2), "layout": "stst"},
    "checkerboard with weights": {**BOARD, "weight": "all", "C": 3, "apart": True},
    "wide checkerboard": {**BOARD, "size": (3, 70), "scale": "atan", "C": 1},
    "checkerboard of vectors": {**BOARD, "size": (32, 32), "B": 3, "C": 1, "layout": "ts"},
    "atan with weights": {"scale": "atan", "weight": "all", "size": (19,)},
    "softplus": {"scale": "softplus", "weight": "one", "apart": True},
    "exp": {"scale": "exp", "layout": "tsts"},
    "sigmoid that divides": {"scale": "sigmoid", "weight": "one"},
    "additive": {"scale": "additive"},
    "additive, swapped": {"scale": "additive", "swap": True, "split": "alternate", "size": ()},
    "additive checkerboard": {**BOARD, "scale": "additive", "C": 1},
    "2": {"B": 67, "C": 2, "size": ()},
    "2, alternate": {"B": 67, "C": 2, "size": (), "split": "alternate", "swap": True},
    "3": {"B": 41, "C": 3, "size": (), "scale": "exp", "layout": "stst", "weight": "all"},
    "3, alternate": {"B": 41, "C": 3, "size": (), "split": "alternate", "swap": True},
    "4": {"B": 71, "C": 4, "size": (), "layout": "ts", "swap": True, "weight": "all"},
    "8": {"B": 37, "C": 8, "size": (), "layout": "tsts", "split": "alternate", "weight": "one"},
    "16": {"B": 33, "C": 16, "size": (), "scale": "sigmoid", "layout": "stst"},
    "64": {"B": 9, "C": 64, "size": (), "scale": "softplus", "swap": True},
    "6, alternate": {"B": 7, "C": 6, "size": (), "split": "alternate", "layout": "stst"},
    "10, alternate": {"B": 53, "C": 10, "size": (), "split": "alternate", "layout": "tsts"},
    "24, alternate": {"B": 5, "C": 24, "size": (1, 1), "split": "alternate", "layout": "stst"},
    "66, alternate": {"B": 9, "C": 66, "size": (), "split": "alternate", "layout": "tsts"},
    "64, alternate": {"B": 9, "C": 64, "size": (), "split": "alternate", "inverse": True},
    "96": {"B": 5, "C": 96, "size": (), "layout": "ts", "weight": "all", "inverse": True},
    "65, alternate": {"B": 9, "C": 65, "size": (), "split": "alternate", "weight": "all"},
    "vectors apart": {"B": 19, "C": 6, "size": (), "apart": True, "weight": "all"},
    "vector halves": {"B": 19, "C": 6, "size": (), "split": None, "layout": "stst"},
    "wider than a tile": {"B": 2, "C": 1031, "size": (), "split": "alternate"},
    "a tile": {"size": (16, 32)},
    "beyond a tile": {"size": (23, 23), "C": 3, "B": 1, "weight": "all"},
    "inverse": {"inverse": True, "weight": "all"},
    "inverse sigmoid": {"inverse": True, "scale": "sigmoid", "layout": "ts", "swap": True},
    "inverse checkerboard": {**BOARD, "inverse": True, "scale": "softplus"},
    "inverse of vectors": {"inverse": True, "B": 35, "C": 5, "size": (), "scale": "atan"},
    "inverse exp": {"inverse": True, "scale": "exp", "split": "alternate", "apart": True},
    "inverse additive": {"inverse": True, "scale": "additive", "C": 5},
}
for scale in ("tanh", "sigmoid", "atan", "softplus", "exp", "additive"):  # of samples of any length
    for C, size in ((3, ()), (50, ()), (3, (7, 11))):
        AFFINE_COUPLING[f"{scale} of {C}, {size}"] = {"scale": scale, "B": 3, "C": C, "size": size}


def masked_conv2d(
    B=2, C=4, O=6, H=5, W=7, k=(3, 3), bias=True, last=False, dtype=torch.float32, **options
):
    """x, weight and bias, and the options, of `masked_conv2d`; `last`: x is channels_last."""
    generator = torch.Generator().manual_seed(0)
    shapes = (B, C, H, W), (O, C // options.get("groups", 1), *k), (O,)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    if last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    return *inputs[:2], inputs[2] if bias else None, {"mask": "B", **options}


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
    B=2,
    C=4,
    P=6,
    H=5,
    W=7,
    k=3,
    V=None,
    O=None,
    cond=False,
    last=False,
    dtype=torch.float32,
    **options,
):
    """The tensors, and the options, of `pixelcnn_layer`; V and O are C where not given.

    `last`: v and h are channels_last.
    """
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
    if last:
        inputs[:2] = (v.contiguous(memory_format=torch.channels_last) for v in inputs[:2])
    return *inputs, {"mask": "B", **options}


FIRST = {"mask": "A", "residual": False}
PIXELCNN_LAYER = {
    "plain": {},
    "first": {**FIRST, "C": 1, "O": 6, "k": 7},
    "ones": {"B": 1, "C": 1, "P": 1, "H": 1, "W": 1, "k": 1},
    "nothing is seen": {**FIRST, "k": 1, "H": 3, "W": 3},
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
    "channels last": {"last": True, "C": 18, "P": 5, "H": 3, "W": 17, "cond": True},
    "first, channels last": {**FIRST, "last": True, "C": 3, "P": 16, "O": 33, "k": 5},
    "tiles, channels last": {"last": True, "H": 9, "W": 33, "V": 17, "C": 32, "P": 16, "k": 5},
    "prime sizes": {"B": 3, "C": 13, "P": 19, "V": 17, "H": 13, "W": 19, "cond": True},
}


def minibatch_discrimination(N=7, B=3, C=4, M=None, dtype=torch.float32, **options):
    """m and y, and the options, of `minibatch_discrimination`; without y for M = None."""
    generator = torch.Generator().manual_seed(0)
    shapes = (N, B, C), None if M is None else (M, B, C)
    # so that distances are about 1
    inputs = [
        s and (torch.randn(s, generator=generator, dtype=torch.float64) / max(C, 1)).to(dtype)
        for s in shapes
    ]
    return *inputs, options


MINIBATCH_DISCRIMINATION = {
    "plain": {},
    "ones": {"N": 2, "B": 1, "C": 1},
    "a row": {"N": 1},
    "no rows": {"N": 0},
    "no components": {"C": 0},
    "no kernels": {"B": 0},
    "with itself": {"keep_self": True},
    "groups": {"N": 34, "groups": 2},
    "a group a row": {"N": 5, "groups": 5, "keep_self": True},
    "another batch": {"M": 11},
    "another batch of no rows": {"M": 0},
    "no rows, another batch": {"N": 0, "M": 3},
    "groups of two batches": {"N": 6, "M": 51, "groups": 3},
    "many components": {"N": 19, "B": 2, "C": 50},
    "a tile": {"N": 64, "B": 2},
    "a tile and a row": {"N": 65, "B": 2, "C": 3},
    "tiles": {"N": 131, "B": 2, "C": 2},
    "tiles of two batches": {"N": 73, "M": 79, "B": 2, "C": 5},
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
    "units of loads": {"R": 8, "S": 16, "H": 8, "T": 16, "dilation": 8, "F": 2, "hop": 8},
    "units of loads, shifted": {"R": 8, "S": 16, "H": 8, "T": 24, "dilation": 3},
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


def wavenet_sample_holds(args, options, device):
    """Hold `wavenet_sample` on `device` to float64: its logits along the codes that it draws.

    The codes are those that its logits give, but where u is near a step of the CDF.
    """
    weights, uniforms = args
    dtype, A, M = options["dtype"], options["classes"], options["mixtures"]
    codes, state, logits = moved(
        kernels.wavenet_sample(*moved(args, device), **moved(options, device), logits=True), "cpu"
    )
    if dtype == "bfloat16":
        names = ("res", "skip", "hidden", "out")
        rounded = {name: getattr(weights, name).bfloat16().double() for name in names}
        conv = torch.cat([weights.conv[:1], weights.conv[1:].bfloat16().double()])
        weights = weights._replace(**rounded, conv=conv)
    given = {**options, "dtype": "float64", "prefix": codes, "logits": True}
    with reference():
        _, state_want, want = kernels.wavenet_sample(weights, uniforms, **given)
    assert torch.equal(state.history, state_want.history)
    assert logits.shape == want.shape
    if not logits.numel():
        return
    bound = {"float32": 1e-5, "bfloat16": 0.02}[dtype]
    assert (logits - want).abs().max() <= bound * want.abs().max()
    P = 0 if options["prefix"] is None else options["prefix"].shape[1]
    drawn, u = codes[:, P:].flatten(), uniforms[:, P:].flatten(0, 1)
    logits = logits[:, P:].flatten(0, 1).double()
    nearby = [
        kernels.draw(logits, (u + e).clamp(0, 1 - 2**-53), options["temperature"], A, M)
        for e in (-1e-5, 0, 1e-5)
    ]
    if M:  # and a mean may lie on either side of the middle between two codes
        assert ((torch.stack(nearby) - drawn).abs().amin(0) <= 1).all()
    else:
        assert ((nearby[0] <= drawn) & (drawn <= nearby[2])).all()


@contextlib.contextmanager
def reference():
    """Within, ops of CPU tensors run on the CPU's kernels, in a process that interprets too."""
    interpret = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if interpret is not None:
            os.environ["TRITON_INTERPRET"] = interpret


def pixelcnn_sample(
    L=3,
    P=6,
    S=9,
    A=5,
    C=1,
    n=2,
    H=4,
    W=5,
    first=5,
    k=3,
    given=0.0,
    cond=False,
    temperature=1.0,
):
    """Weights, uniforms and options of `pixelcnn_sample`, float64; its logits are far from even.

    `given` is the share of levels that is given. What a mask shuts out is NaN.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    def layer(mask):
        inputs, k_ = (C, first) if mask == "A" else (P, k)
        seen = inputs * (k_ // 2 + 1)
        v, h = normal(2 * P, inputs, k_ // 2 + 1, k_), normal(2 * P, inputs, 1, k_ // 2 + 1)
        v, h = v * 1.5 * (k_ * seen) ** -0.5, h * 1.5 * seen**-0.5
        link, res = normal(2 * P, 2 * P, scale=(2 * P) ** -0.5), normal(P, P, scale=P**-0.5)
        if mask == "A":
            v[:, :, -1] = NAN
        h[..., 0, -1][shut(P, inputs, mask == "B").repeat(2, 1)] = NAN
        res[shut(P, P, True)] = NAN
        biases = normal(2 * P, scale=0.3), normal(2 * P, scale=0.3)
        return kernels.PixelLayer(v, biases[0], h, biases[1], link, res, normal(P, scale=0.1))

    def shut(rows, columns, strict):
        row, column = (torch.arange(size) // (size // C) for size in (rows, columns))
        return column > row[:, None] if strict else column >= row[:, None]

    layers = [layer("B" if l else "A") for l in range(L)]
    hidden, out = normal(S, P, scale=2 * P**-0.5), normal(C * A, S, scale=3 * S**-0.5)
    hidden[shut(S, P, True)], out[shut(C * A, S, True)] = NAN, NAN
    weights = kernels.PixelWeights(layers, hidden, normal(S), out, normal(C * A), C)
    shape = (n, C, H, W)
    levels = torch.randint(A, shape, generator=generator)
    drawn = torch.rand(shape, generator=generator) >= given
    options = {
        "given": levels.masked_fill(drawn, -1) if given else None,
        "cond": normal(n, L, 4 * P) if cond else None,
        "temperature": 2 * torch.rand(H, W, generator=generator).round(decimals=1)
        if temperature is None
        else temperature,
    }
    return weights, torch.rand(shape, generator=generator, dtype=torch.float64), options


PIXELCNN_SAMPLE = {
    "plain": {},
    "ones": {"L": 1, "P": 1, "S": 1, "A": 2, "n": 1, "H": 1, "W": 1, "first": 3},
    "no images": {"n": 0, "cond": True},
    "no rows": {"H": 0},
    "no columns": {"W": 0},
    "one layer": {"L": 1, "k": 1},
    "kernels of 1": {"k": 1},
    "large kernels": {"first": 9, "k": 7, "H": 9, "W": 3},
    "deep": {"L": 9, "H": 12, "W": 3},
    "one row": {"H": 1, "W": 17},
    "one column": {"H": 17, "W": 1},
    "two levels": {"A": 2, "n": 3},
    "a group": {"n": 8, "cond": True},
    "a group and one": {"n": 9, "cond": True},
    "three groups": {"n": 17},
    "a panel and one": {"P": 65, "S": 65, "A": 65, "H": 3},
    "whole panels": {"P": 64, "S": 128, "A": 256, "H": 3},
    "conditions": {"cond": True, "n": 10},
    "given pixels": {"given": 0.5, "n": 9},
    "almost all given": {"given": 0.95, "n": 9},
    "nothing to draw": {"given": 1.1},
    "the likeliest": {"temperature": 0.0},
    "cold": {"temperature": 0.5},
    "pixels of all temperatures": {"temperature": None, "n": 4},
    "colors": {"C": 3},
    "colors of ones": {"C": 3, "P": 3, "S": 3, "A": 2, "L": 1, "n": 1, "H": 2, "W": 2},
    "colors with everything": {
        **{"C": 3, "P": 21, "S": 15, "A": 37, "n": 9, "k": 5, "given": 0.4, "cond": True},
        "temperature": None,
    },
    "colors in whole vectors": {"C": 3, "P": 48, "S": 96, "A": 256, "H": 3},
    "two colors": {"C": 2, "S": 10},
}


def masked_stack_sample(
    stack=(("A", 0, 5, 5, 7), ("B", 1, 3, 3, 4), ("B", 2, 1, 1, 7), ("B", 3, 1, 1, 0)),
    skips=(-1, -1, 1, -1),
    relu=(False, True, True, True),
    A=5,
    C=1,
    **sizes,
):
    """Layers, uniforms and options of `masked_stack_sample`, float64, of a conv each.

    `stack` has of each layer mask, source, KH, KW and channels of a color, 0 meaning A levels. What
    a mask shuts out is NaN.
    """
    generator = torch.Generator().manual_seed(0)
    layers, widths = [], [C]
    for (mask, source, KH, KW, own), skip, positive in zip(stack, skips, relu, strict=True):
        I, O = widths[source], C * (own or A)
        weight = torch.randn(O, I, KH // 2 + 1, KW, generator=generator, dtype=torch.float64)
        seen = I * (KW * (KH // 2) + KW // 2 + 1)
        weight *= (1.5 if own else 3) * seen**-0.5
        weight[:, :, KH // 2, KW // 2 + 1 :] = NAN
        row, column = (torch.arange(size) // (size // C) for size in (O, I))
        shut = column > row[:, None] if mask == "B" else column >= row[:, None]
        weight[:, :, KH // 2, KW // 2][shut] = NAN
        bias = 0.3 * torch.randn(O, generator=generator, dtype=torch.float64)
        conv = kernels.MaskedConv(weight, source, mask, "relu" if positive else "none")
        layers.append(kernels.MaskedLayer([conv], bias, skip=skip))
        widths.append(O)
    return layers, *images_to_draw(generator, A, C, **sizes)


def images_to_draw(generator, A, C, n=2, H=4, W=5, given=0.0, temperature=1.0):
    """Uniforms, and options of `masked_stack_sample`, `given` the share of levels that is given."""
    shape = (n, C, H, W)
    levels = torch.randint(A, shape, generator=generator)
    drawn = torch.rand(shape, generator=generator) >= given
    options = {
        "colors": C,
        "given": levels.masked_fill(drawn, -1) if given else None,
        "temperature": 2 * torch.rand(H, W, generator=generator).round(decimals=1)
        if temperature is None
        else temperature,
    }
    return torch.rand(shape, generator=generator, dtype=torch.float64), options


def strided_stack_sample(channels=6, stages=2, mixtures=3, A=5, C=1, cond=False, **sizes):
    """Layers, uniforms and options of `masked_stack_sample`, float64: two streams and a mixture.

    In each of `stages` resolutions a layer that sees rows above alone and one that sees the pixels
    to the left too, then back up with skips: a small PixelCNN++. What a mask shuts out is NaN.
    """
    generator, layers = torch.Generator().manual_seed(0), []

    def conv(O, I, KH, KW, source, mask, act="concat_elu", left=1, scale="same"):
        I = I if act == "none" else 2 * I
        weight = torch.randn(O, I, KH, KW, generator=generator, dtype=torch.float64)
        weight *= 1.5 * (I * KH * KW) ** -0.5
        if mask == "V":
            weight[:, :, -1] = NAN
        if mask in ("A", "B") and scale != "up":
            weight[:, :, -1, left + (mask == "B") :] = NAN
        return kernels.MaskedConv(weight, source, mask, act, left, scale)

    def add(*convs, gate=False, skip=-1):
        O = len(convs[0].weight)
        bias = 0.3 * torch.randn(O, generator=generator, dtype=torch.float64)
        layers.append(kernels.MaskedLayer([*convs], bias, gate, skip))
        return len(layers)

    F, image = channels, ("none", 1)
    u = add(conv(F, C + 1, 3, 3, 0, "V", *image))
    v = add(conv(F, C + 1, 2, 3, 0, "V", *image), conv(F, C + 1, 2, 1, 0, "A", *image))
    seen = []
    for stage in range(stages):
        if stage:
            u = add(conv(F, F, 2, 3, u, None, *image, "down"))
            v = add(conv(F, F, 2, 2, v, "B", *image, "down"))
        u = add(conv(2 * F, F, 2, 3, u, None), gate=True, skip=u)
        sees = conv(2 * F, F, 2, 2, v, "B"), conv(2 * F, F, 1, 1, u, None, "concat_elu", 0)
        v = add(*sees, gate=True, skip=v)
        seen.append((u, v))
    for side_u, side_v in seen[-2::-1]:
        u = add(conv(F, F, 4, 2, u, None, "none", 0, "up"), skip=side_u)
        v = add(conv(F, F, 4, 1, v, "B", "none", 0, "up"), conv(F, F, 1, 1, u, None, left=0))
        v = add(conv(F, F, 2, 2, v, "B"), skip=side_v)
    O = mixtures * (1 + 2 * C + C * (C - 1) // 2)
    add(conv(O, F, 1, 1, v, "B", left=0))
    layers[-1].convs[0].weight.mul_(0.2)  # else logistics are so sharp that float32 cannot say them
    u, options = images_to_draw(generator, A, C, **sizes)
    if cond:
        outputs = sum(len(y.bias) for y in layers)
        options["cond"] = torch.randn(len(u), outputs, generator=generator, dtype=torch.float64)
    return layers, u, {**options, "levels": A}


def pixelcnn_sample_holds(args, options, device):
    """Hold `pixelcnn_sample` on `device` to float64: its logits along the levels that it draws.

    The levels are those that its logits give, but where u is near a step of the CDF.
    """
    weights, u = args
    codes, logits = moved(
        kernels.pixelcnn_sample(*moved(args, device), **moved(options, device), logits=True), "cpu"
    )
    with reference():
        along = {**options, "dtype": "float64", "given": codes, "logits": True}
        _, want = kernels.pixelcnn_sample(weights, u, **along)
    assert logits.shape == want.shape
    if not logits.numel():
        return
    assert (logits - want).abs().max() <= 1e-5 * want.abs().max()
    given = options["given"]
    drawn = torch.ones_like(codes, dtype=torch.bool) if given is None else given < 0
    assert given is None or torch.equal(codes[~drawn], given[~drawn])
    temperature = torch.as_tensor(options["temperature"]).expand_as(u)[drawn]
    z = logits.double().movedim(1, -1)[drawn]
    nearby = [
        kernels.draw(z, (u[drawn] + e).clamp(0, 1 - 2**-53), temperature, z.shape[1])
        for e in (-1e-5, 1e-5)
    ]
    assert ((nearby[0] <= codes[drawn]) & (codes[drawn] <= nearby[1])).all()


ONE = {"stack": [("A", 0, 3, 3, 0)], "skips": [-1], "relu": [False]}
MASKED_STACK_SAMPLE = {
    "plain": {},
    "one layer": ONE,
    "ones": {**ONE, "A": 2, "n": 1, "H": 1, "W": 1},
    "a layer of 1 x 1": {"stack": [("A", 0, 1, 1, 0)], "skips": [-1], "relu": [False], "C": 3},
    "no images": {"n": 0},
    "no rows": {"H": 0},
    "no columns": {"W": 0},
    "a group and one": {"n": 9},
    "rows alone": {"stack": [("A", 0, 5, 1, 3), ("B", 1, 1, 5, 0)], "skips": [-1, -1]}
    | {"relu": [False, False]},
    "the image often": {
        "stack": [("A", 0, 3, 7, 2), ("A", 0, 7, 3, 2), ("B", 2, 3, 3, 2), ("B", 3, 3, 1, 0)],
        "skips": [-1, 1, 1, -1],
        "relu": [False, True, False, True],
    },
    "a layer that nothing sees": {
        "stack": [("A", 0, 3, 3, 2), ("B", 1, 3, 3, 4), ("B", 1, 1, 1, 0)],
        **{"skips": [-1, -1, -1], "relu": [False, True, True]},
    },
    "a panel and one": {
        "stack": [("A", 0, 3, 3, 65), ("B", 1, 3, 3, 65), ("B", 2, 1, 1, 0)],
        **{"skips": [-1, 1, -1], "relu": [False, True, True], "A": 65, "H": 3},
    },
    "whole panels": {
        "stack": [("A", 0, 3, 3, 64), ("B", 1, 3, 3, 128), ("B", 2, 1, 1, 0)],
        **{"skips": [-1, -1, -1], "relu": [False, True, True], "A": 256, "H": 3},
    },
    "given pixels": {"given": 0.5, "n": 9},
    "nothing to draw": {"given": 1.1},
    "the likeliest": {"temperature": 0.0},
    "colors": {"C": 3},
    "colors with everything": {"C": 3, "given": 0.4, "temperature": None, "n": 9, "A": 37},
    "two colors": {"C": 2},
}
STRIDED_STACK_SAMPLE = {
    "plain": {},
    "one stage": {"stages": 1},
    "no images": {"n": 0, "cond": True},
    "no rows": {"H": 0},
    "no columns": {"W": 0},
    "ones": {"channels": 1, "mixtures": 1, "A": 2, "n": 1, "H": 1, "W": 1},
    "one row": {"stages": 3, "H": 1, "W": 17},
    "one column": {"stages": 3, "H": 17, "W": 1},
    "an even size": {"stages": 3, "H": 8, "W": 8},
    "four stages, an odd size": {"stages": 4, "H": 11, "W": 9},
    "a group and one": {"n": 9, "cond": True},
    "a panel and one": {"channels": 65, "mixtures": 17, "A": 65, "C": 3, "H": 3},
    "whole panels": {"channels": 64, "mixtures": 16, "A": 256, "H": 3},
    "given pixels": {"given": 0.5, "n": 9, "C": 3},
    "nothing to draw": {"given": 1.1},
    "the likeliest": {"temperature": 0.0, "C": 3},
    "two colors": {"C": 2},
    "everything": {
        **{"C": 3, "given": 0.4, "temperature": None, "n": 9, "A": 37, "cond": True},
        **{"stages": 3, "H": 7, "W": 6},
    },
}
