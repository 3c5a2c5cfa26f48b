"""The layers of `masked_stack_sample`: what they are, that they fit together, and their layout."""

import functools
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._op import without_autocast
from .logistic_mixture import rows
from .pixelcnn_layer import later
from .wavenet_sample import panels

DTYPES = ("float32", "float64")
ACTS = {  # of (n, I, ...)
    "none": lambda x: x,
    "relu": torch.relu,
    "concat_elu": lambda x: F.elu(torch.cat([x, -x], 1)),
}
STEPS = {"up": 0, "same": 1, "down": 2}
COARSEST = 2**20  # pixels of the image, down and across, for one: sizes are 64-bit


class MaskedConv(NamedTuple):
    """What a layer sees of a map: rows of columns, the last row the pixel's own.

    Mask "A" shuts out pixels to the right, and of the pixel itself its own color and later ones;
    "B" later colors alone; "V" the pixel's own row. None shuts out nothing, of a map that sees rows
    above alone itself. What a mask shuts out is not read.
    """

    weight: torch.Tensor  # (O, I, KH, KW); of scale "up" (O, I, 4, KW): of even, odd rows, columns
    source: int  # of y; I is twice its channels for concat_elu
    mask: str | None = "B"
    act: str = "relu"  # "none", "relu" or "concat_elu"
    left: int | None = None  # columns of the window to the pixel's left; by default KW // 2
    scale: str = "same"  # "down" from twice the resolution, "up" from half


class MaskedLayer(NamedTuple):
    """A layer of a stack."""

    convs: list[MaskedConv]
    bias: torch.Tensor  # (O,)
    gate: bool = False  # then the layer has O / 2 channels
    skip: int = -1  # of y, or none


class Shape(NamedTuple):
    """What follows for y_l from the layers before."""

    channels: int
    scale: int  # pixels of the image, down and across, for one
    row: bool  # whether it sees rows above alone


class PackedStack(NamedTuple):
    """A stack in the order and the layout that the kernel reads; see `pack_stack`."""

    layers: list[MaskedLayer]  # masked
    shapes: list[Shape]  # of y_0 ... y_L
    colors: int
    levels: int
    mixtures: int  # of logistics, or 0
    words: torch.Tensor  # every matrix in panels
    biases: torch.Tensor  # of all layers
    sizes: list[int]  # of layers, six each, then of convs: see csrc/ops.h


@without_autocast
def pack_stack(layers, colors=1, dtype="float32", levels=None):
    """Mask and lay out MaskedLayers once, for any number of calls of `masked_stack_sample`.

    With `levels` the last layer says a mixture of logistics: then no mask parts the colors, and y_0
    has one more channel, of ones in the image and to its right, up to whole pixels of any layer.
    Raises ValueError for shapes that do not fit together and for values that are not finite.
    """
    expect(dtype in DTYPES, "dtype", f"one of {DTYPES}", repr(dtype))
    shapes = check_stack(layers, colors, levels)
    O, groups = shapes[-1].channels, 1 if levels else colors
    if layers[0].bias.is_cuda:
        warn_cpu()
    kept, matrices, sizes, tables = [], [], [], []
    for l, y in enumerate(layers):
        convs = [live(f, groups, getattr(torch, dtype)) for f in y.convs]
        bias = y.bias.detach().to("cpu", getattr(torch, dtype))
        finite = all(v.isfinite().all() for v in (*(f.weight for f in convs), bias))
        expect(finite, f"layers[{l}]", "finite values", "NaN or Inf")
        kept.append(y._replace(convs=convs, bias=bias))
        sizes += [len(y.bias), y.gate, y.skip, shapes[l + 1].row, shapes[l + 1].scale, len(convs)]
        for f in convs:
            matrices += matrices_of(f, groups)
            tables += table_of(f, groups)
    return PackedStack(
        layers=kept,
        shapes=shapes,
        colors=colors,
        levels=levels or O // colors,
        mixtures=O // rows(colors) if levels else 0,
        words=torch.cat([panels(m)[0] for m in matrices]),
        biases=torch.cat([y.bias for y in kept]),
        sizes=[int(v) for v in sizes + tables],
    )


def left_of(f):
    return f.weight.shape[3] // 2 if f.left is None else f.left


def live(f, groups, dtype):
    """A conv with a copy of its weight on the CPU, zero where the mask shuts out."""
    weight, left = f.weight.detach().to("cpu", dtype, copy=True), left_of(f)
    own = weight if f.scale == "up" else weight[:, :, -1:]  # (O, I, rows, KW)
    if f.mask == "V":
        own.zero_()
    elif f.mask is not None:
        own[..., left + 1 :] = 0
        if left < own.shape[3]:
            shut = later(*own.shape[:2], groups, f.mask == "B", own.device)
            own[..., left].masked_fill_(shut[..., None], 0)
    return f._replace(weight=weight, left=left)


def matrices_of(f, groups):
    """The matrices of a conv: of whole rows, then up to the pixel, of each color or phase."""
    rows = [m.transpose(1, 2).flatten(1) for m in f.weight.unbind(2)]
    if f.mask is None:
        return rows
    if f.mask == "V":
        return rows[:-1]
    last = f.weight.unbind(2)[0 if f.scale == "up" else -1 :]  # (O, I, KW) each
    left, before = min(f.left, last[0].shape[2]), seen(f, groups)
    found = [] if f.scale == "up" else rows[:-1]
    for m in last:
        for c, own in enumerate(m.chunk(groups)):
            past = own[:, :, :left].transpose(1, 2).flatten(1)
            own = own[:, : before + c * m.shape[1] // groups, left] if before >= 0 else past[:, :0]
            found.append(torch.cat([past, own], 1))
    return found


def seen(f, groups):
    """How many numbers of the pixel itself the first color sees; -1: none does."""
    if f.left >= f.weight.shape[3]:
        return -1
    return f.weight.shape[1] // groups if f.mask == "B" else 0


def table_of(f, groups):
    """A conv as the kernel reads it: see csrc/ops.h."""
    own = {"V": 0, None: 1}.get(f.mask, 2)
    up = 0 if f.scale == "up" else f.weight.shape[2] - 1
    form = [*ACTS].index(f.act)
    width = f.weight.shape[3]
    return [f.source, form, own, STEPS[f.scale], f.left, width, up, seen(f, groups)]


@functools.cache
def warn_cpu():
    """Say once that there is no kernel for a GPU."""
    message = "masked_stack_sample runs on the CPU: it has no kernel for a GPU"
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def expect(ok, name, expected, got, error=ValueError):
    """Raise `error` unless `ok`."""
    if not ok:
        raise error(f"masked_stack_sample: {name}: expected {expected}, got {got}")


def check_stack(layers, colors, levels):
    """The Shapes of y_0 ... y_L; raises ValueError for layers that do not fit together."""
    expect(len(layers) > 0, "layers", "at least one", "none")
    expect(isinstance(colors, int) and 1 <= colors <= 3, "colors", "1, 2 or 3", colors)
    fits = levels is None or (isinstance(levels, int) and levels >= 2)
    expect(fits, "levels", "an int >= 2", levels)
    groups, shapes = 1 if levels else colors, [Shape(colors + (levels is not None), 1, False)]
    for l, y in enumerate(layers):
        shapes.append(check_layer(y, f"layers[{l}]", shapes, groups))
    O, scale, _ = shapes[-1]
    expect(scale == 1, "layers", "the image's resolution at last", f"1 / {scale}")
    each = rows(colors)
    if levels:
        expect(O % each == 0, "layers", f"a multiple of {each} outputs", O)
    else:
        expect(2 * colors <= O, "layers", f"at least {2 * colors} outputs", O)
    return [*shapes[:-1], shapes[-1]._replace(row=False)]  # it is drawn from


def check_layer(y, name, shapes, groups):
    """The Shape of a layer's output, of `shapes` before it."""
    O, last = tuple(y.bias.shape), len(shapes) - 1
    fits = len(O) == 1 and O[0] > 0 and O[0] % groups == 0
    expect(fits, f"{name}.bias", f"a multiple of {groups} values", O)
    expect(not y.bias.is_meta, name, "values", "a meta tensor")
    fits = not y.gate or (groups == 1 and O[0] % 2 == 0)
    expect(fits, f"{name}.gate", "an even number of outputs, of no colors apart", O)
    expect(len(y.convs) > 0, f"{name}.convs", "at least one", "none")
    scales = [check_conv(f, f"{name}.convs[{k}]", O, shapes, groups) for k, f in enumerate(y.convs)]
    expect(len({*scales}) == 1, f"{name}.convs", "one resolution", scales)
    kept, row = O[0] // 2 if y.gate else O[0], all(f.mask in ("V", None) for f in y.convs)
    expect(-1 <= y.skip <= last and y.skip != 0, f"{name}.skip", f"-1, or 1 ... {last}", y.skip)
    if y.skip > 0:
        of, scale, like = shapes[y.skip]
        expect(of == kept, f"{name}.skip", f"{kept} channels", of)
        expect(scale == scales[0], f"{name}.skip", "the layer's resolution", f"1 / {scale}")
        row = row and like
    return Shape(kept, scales[0], row)


def check_conv(f, name, O, shapes, groups):
    """How many pixels of the image, down and across, make one of what a conv gives."""
    last, shape = len(shapes) - 1, tuple(f.weight.shape)
    expect(f.mask in ("A", "B", "V", None), f"{name}.mask", '"A", "B", "V" or None', repr(f.mask))
    expect(f.scale in STEPS, f"{name}.scale", [*STEPS], repr(f.scale))
    acts = [act for act in ACTS if groups == 1 or act != "concat_elu"]  # it mixes the colors
    expect(f.act in acts, f"{name}.act", acts, repr(f.act))
    expect(0 <= f.source <= last, f"{name}.source", f"0 ... {last}", f.source)
    source = shapes[f.source]
    I, up = source.channels * (2 if f.act == "concat_elu" else 1), f.scale == "up"
    want = (*O, I, 4 if up else "KH", "KW")
    fits = len(shape) == 4 and shape[:2] == (*O, I) and min(shape[2:]) > 0
    expect(fits and (not up or shape[2] == 4), f"{name}.weight", want, shape)
    expect(f.mask != "V" or shape[2] > 1, f"{name}.weight", "rows above the pixel's", shape)
    expect(not f.weight.is_meta, name, "values", "a meta tensor")
    expect(0 <= left_of(f) <= shape[3], f"{name}.left", f"0 ... {shape[3]}", f.left)
    # the image itself may be seen through a mask that shuts the pixel out
    fits = f.mask in ("A", "V") or f.source > 0
    expect(fits, f"{name}.mask", '"A" or "V" of the image', repr(f.mask))
    fits = f.mask is not None or source.row
    expect(fits, f"{name}.mask", "one, of what sees more than rows above", f.mask)
    fits = not up or (groups == 1 and f.mask in ("B", None) and source.scale > 1)
    expect(fits, f"{name}.scale", 'mask "B" or None, a coarse source, no colors apart', f.scale)
    scale = source.scale // 2 if up else source.scale * STEPS[f.scale]
    expect(scale <= COARSEST, f"{name}.scale", f"at most {COARSEST} pixels for one", scale)
    return scale
