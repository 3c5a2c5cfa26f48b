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


def ops():
    """The names of the ops that have cases."""
    return [name for name in kernels.__all__ if name.upper() in globals()]


def table(op):
    """The sizes of an op's cases, by name."""
    return globals()[op.upper()]


# the most of a size that Triton's interpreter has patience for
PATIENCE = {"wavenet_sample": {"T": 2, "P": 2}}


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


T_TILE = 96  # samples that wavenet_layer's C++ kernel takes at once


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
