"""The whole sampling loop of a stack of masked convolutions in one op, on cached activations.

    y_0   = the image, scaled to [-1, 1]
    y_l+1 = conv_l(y_s or relu(y_s)) + y_k        s <= l of each layer, k <= l where it has a skip
    logits = y_L, of C colors and A levels
    x[t] = the number of entries of cdf(softmax(logits / temperature)) <= u[t]

conv_l is `masked_conv2d`'s, of mask A or B, of odd size, with a stride of 1: PixelCNN's layers (van
den Oord et al. 2016, "Pixel Recurrent Neural Networks"). t goes through rows, pixels of a row and
colors of a pixel. What a layer gets of the rows above a pixel is a product for a whole row, before
the row begins; what is left for each pixel is a product with the pixels to the left and itself.
"""

import functools
import itertools
import warnings
from typing import NamedTuple

import torch

from ._draw import check_drawing, draw, raise_failed
from ._op import launch, native, op, thread_count, warn_reference, without_autocast
from .pixelcnn_layer import later
from .wavenet_sample import LANES, panels

DTYPES = ("float32", "float64")


class MaskedLayer(NamedTuple):
    """A layer of a stack; what its mask shuts out is not read."""

    weight: torch.Tensor  # (O, I, KH, KW)
    bias: torch.Tensor  # (O,)
    mask: str  # "A" or "B"
    source: int  # of y
    relu: bool = True  # of the source
    skip: int = -1  # of y, or none


class PackedStack(NamedTuple):
    """A stack in the order and the layout that the kernel reads; see `pack_stack`."""

    layers: list[MaskedLayer]  # weights (O, I, KH // 2 + 1, KW), masked
    colors: int
    words: torch.Tensor  # every matrix in panels
    biases: torch.Tensor  # of each layer, and 16 zeros


@without_autocast
def pack_stack(layers, colors=1, dtype="float32"):
    """Mask and lay out MaskedLayers once, for any number of calls of `masked_stack_sample`.

    Raises ValueError for shapes that do not fit together and for values that are not finite.
    """
    expect(dtype in DTYPES, "dtype", f"one of {DTYPES}", repr(dtype))
    check_stack(layers, colors)
    if layers[0].weight.is_cuda:
        warn_cpu()
    kept, matrices = [], []
    for l, y in enumerate(layers):
        weight, bias = (v.detach().to("cpu", getattr(torch, dtype)) for v in (y.weight, y.bias))
        kept.append(y._replace(weight=live(weight, y.mask, colors), bias=bias.contiguous()))
        finite = kept[l].weight.isfinite().all() and bias.isfinite().all()
        expect(finite, f"layers[{l}]", "finite values", "NaN or Inf")
        *above, row = kept[l].weight.unbind(2)  # (O, I, KW)
        matrices += [m.transpose(1, 2).flatten(1) for m in above]
        for c, own in enumerate(row.chunk(colors)):
            seen = (c + (y.mask == "B")) * row.shape[1] // colors
            r = row.shape[2] // 2
            past = own[:, :, :r].transpose(1, 2).flatten(1)
            matrices.append(torch.cat([past, own[:, :seen, r]], 1))
    return PackedStack(
        layers=kept,
        colors=colors,
        words=torch.cat([panels(m)[0] for m in matrices]),
        biases=torch.cat([*(y.bias for y in kept), kept[0].bias.new_zeros(LANES)]),
    )


def live(weight, mask, colors):
    """The rows of a weight down to the pixel's own, zero where the mask shuts them out."""
    O, I, KH, KW = weight.shape
    r = KW // 2
    weight = weight[:, :, : KH // 2 + 1].clone()
    weight[:, :, -1, r + 1 :] = 0
    shut = later(O, I, colors, mask == "B", weight.device)
    weight[:, :, -1, r] = weight[:, :, -1, r].masked_fill(shut, 0)
    return weight


@functools.cache
def warn_cpu():
    """Say once that there is no kernel for a GPU."""
    message = "masked_stack_sample runs on the CPU: it has no kernel for a GPU"
    warnings.warn(message, RuntimeWarning, stacklevel=4)


@without_autocast
def masked_stack_sample(
    layers,
    uniforms,  # (n, C, H, W) in [0, 1)
    *,
    colors=1,
    given=None,  # (n, C, H, W) int64: levels, -1 where one is to be drawn
    temperature=1.0,
    dtype="float32",
    threads=None,
    logits=False,
):
    """Draw n images from MaskedLayers, or faster from what `pack_stack` made of them.

    temperature is a number or a tensor that expands to (n, C, H, W); where it is 0 the likeliest
    level is taken. Images are independent: no bit of one depends on its neighbours or on threads.
    On a GPU it runs on the CPU, and says so once.
    returns: levels (n, C, H, W) int64; with `logits`, (n, A, C, H, W) too; on uniforms' device
    Raises ValueError for shapes that do not fit and for values out of range or not finite,
    TypeError for levels that are not int64.
    """
    packed = layers if isinstance(layers, PackedStack) else pack_stack(layers, colors, dtype)
    C, A = packed.colors, len(packed.layers[-1].bias) // packed.colors
    threads, device = thread_count(threads), uniforms.device
    given = torch.full(uniforms.shape, -1) if given is None else given
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    check_drawing("masked_stack_sample", uniforms, given, temperature, C, A)
    u, given, temperature = (v.cpu() for v in (uniforms, given, temperature))
    u, temperature = u.double(), temperature.expand(u.shape)
    if native is None:
        warn_reference("masked_stack_sample")
        inputs = (u, given, temperature, logits)
        codes, values, failed = masked_stack_sample_ref(packed.layers, C, *inputs)
    else:
        sizes = [
            (y.source, y.skip, y.relu, up - 1, side // 2, outputs, y.mask == "B")
            for y in packed.layers
            for outputs, _, up, side in [y.weight.shape]
        ]
        sizes = [int(v) for size in sizes for v in size]
        codes, values, failed = _masked_stack_sample(
            packed.words, packed.biases, sizes, A, u, given, temperature, logits, threads
        )
    raise_failed("masked_stack_sample", failed, u.shape)
    codes = codes.to(device)
    return (codes, values.to(device).movedim(-1, 1)) if logits else codes


@op
def _masked_stack_sample(
    words: torch.Tensor,
    biases: torch.Tensor,
    layers: list[int],
    A: int,
    uniforms: torch.Tensor,
    given: torch.Tensor,
    temperature: torch.Tensor,
    logits: bool,
    threads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """returns: codes, logits (n, C, H, W, A) or nothing, place of the first NaN or -1 (n,)."""
    n, C, H, W = given.shape
    codes = given.new_empty(given.shape)
    values = words.new_empty((n, C, H, W, A) if logits else (0,))
    failed = given.new_full((n,), -1)
    launch(
        native.masked_stack_sample,
        *(int(words.dtype == torch.float64), words, biases, torch.tensor(layers)),
        *(uniforms, temperature, given, codes, values if logits else None, failed),
        *(n, H, W, C, len(layers) // 7, A, threads),
    )
    return codes, values, failed


def masked_stack_sample_ref(layers, colors, uniforms, given, temperature, logits):
    """`masked_stack_sample` in plain torch, of layers that `live` cut, a color after a color.

    returns: as `_masked_stack_sample`
    """
    n, C, H, W = uniforms.shape
    up, side = (max(y.weight.shape[i] for y in layers) for i in (2, 3))
    A, dtype = len(layers[-1].bias) // colors, layers[0].weight.dtype
    widths = [colors, *(len(y.bias) for y in layers)]
    # y_0 ... y_L, with zeros around
    maps = [torch.zeros(n, c, up - 1 + H, W + side - 1, dtype=dtype) for c in widths]
    codes, values = given.clamp(min=0), maps[0].new_empty((n, C, H, W, A) if logits else (0,))
    failed = given.new_full((n,), -1)
    for i, j, c in itertools.product(range(H), range(W), range(C)):
        place = (slice(None), slice(None), up - 1 + i, side // 2 + j)
        for l, y in enumerate(layers):
            _, _, KH, KW = y.weight.shape
            rows = slice(up - KH + i, up + i)
            columns = slice(side // 2 + j - KW // 2, side // 2 + j + KW // 2 + 1)
            window = maps[y.source][:, :, rows, columns]
            window = torch.relu(window) if y.relu else window
            out = torch.einsum("oihw,nihw->no", y.weight, window) + y.bias
            maps[l + 1][place] = out + maps[y.skip][place] if y.skip >= 0 else out
        z = maps[-1][place][:, c * A : (c + 1) * A]
        drawn = given[:, c, i, j] < 0
        bad = ~z.isfinite().all(1) & (drawn | logits)
        if bad.any():
            failed[bad] = (i * W + j) * C + c
            break
        level = draw(z, uniforms[:, c, i, j], temperature[:, c, i, j], A)
        codes[:, c, i, j] = torch.where(drawn, level, given[:, c, i, j])
        if logits:
            values[:, c, i, j] = z
        maps[0][place][:, c] = codes[:, c, i, j].to(dtype) * (2 / (A - 1)) - 1
    return codes, values, failed


def expect(ok, name, expected, got, error=ValueError):
    """Raise `error` unless `ok`."""
    if not ok:
        raise error(f"masked_stack_sample: {name}: expected {expected}, got {got}")


def check_stack(layers, colors):
    """Raise ValueError for layers that do not fit together."""
    expect(len(layers) > 0, "layers", "at least one", "none")
    expect(isinstance(colors, int) and 1 <= colors <= 3, "colors", "1, 2 or 3", colors)
    widths = [colors]
    for l, y in enumerate(layers):
        name, shape = f"layers[{l}]", tuple(y.weight.shape)
        expect(y.mask in ("A", "B"), f"{name}.mask", '"A" or "B"', repr(y.mask))
        expect(0 <= y.source <= l, f"{name}.source", f"0 ... {l}", y.source)
        expect(-1 <= y.skip <= l, f"{name}.skip", f"-1 ... {l}", y.skip)
        fits = len(shape) == 4 and shape[1] == widths[y.source] and all(k % 2 for k in shape[2:])
        expect(fits, f"{name}.weight", f"(O, {widths[y.source]}, odd, odd)", shape)
        fits = shape[0] > 0 and shape[0] % colors == 0
        expect(fits, f"{name}.weight", f"a multiple of {colors} rows", shape[0])
        expect(y.bias.shape == shape[:1], f"{name}.bias", shape[:1], tuple(y.bias.shape))
        if y.skip >= 0:
            expect(
                widths[y.skip] == shape[0], f"{name}.skip", f"{shape[0]} channels", widths[y.skip]
            )
        for tensor in (y.weight, y.bias):
            expect(not tensor.is_meta, name, "values", "a meta tensor")
        # the image itself may be seen through a mask A alone
        seen = y.mask == "A" or y.source > 0
        expect(seen and y.skip != 0, name, 'mask "A" of the image, and no skip of it', y.mask)
        widths.append(shape[0])
    expect(widths[-1] >= 2 * colors, "layers", f"at least {2 * colors} outputs", widths[-1])
