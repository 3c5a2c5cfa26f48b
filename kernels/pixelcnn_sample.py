"""The whole sampling loop of a gated PixelCNN in one op, on cached activations.

The layers are those of `pixelcnn_layer`, the first of mask A and without a residual, both its
inputs the image scaled to [-1, 1]; the head makes logits of the last h (van den Oord et al. 2016):

    s = relu(hidden relu(h) + hidden_bias)
    logits = out s + out_bias
    x[t] = the number of entries of cdf(softmax(logits / temperature)) <= u[t]

t goes through rows, pixels of a row and colors of a pixel, and hidden and out of a color see no
later color. v depends only on rows above: a row of it is a product for each layer, and so is all
that h gets of it. What is left for each pixel is a product of h at it and k // 2 pixels to its
left, and the residual's: each weight of the horizontal stack once, which is the floor of one image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._draw import draw_raster, drawing, finished, outputs
from ._op import (
    launch,
    native,
    on_triton,
    op,
    thread_count,
    warn_reference,
    without_autocast,
)
from .pixelcnn_layer import gate, later
from .wavenet_sample import LANES, panels

DTYPES = ("float32", "float64")


class PixelLayer(NamedTuple):
    """The weights of a layer; it has `inputs` channels: colors in the first layer, then P."""

    v_weight: torch.Tensor  # (2P, inputs, k // 2 + 1, k)
    v_bias: torch.Tensor  # (2P,)
    h_weight: torch.Tensor  # (2P, inputs, 1, k // 2 + 1)
    h_bias: torch.Tensor  # (2P,)
    link_weight: torch.Tensor  # (2P, 2P)
    res_weight: torch.Tensor  # (P, P)
    res_bias: torch.Tensor  # (P,)


class PixelWeights(NamedTuple):
    """The weights of a gated PixelCNN of C colors and A levels; what a mask shuts out is not read.

    In the C equal groups of channels that `pixelcnn_layer` describes; S too is cut into C groups.
    """

    layers: list[PixelLayer]
    hidden: torch.Tensor  # (S, P)
    hidden_bias: torch.Tensor  # (S,)
    out: torch.Tensor  # (C A, S)
    out_bias: torch.Tensor  # (C A,)
    colors: int = 1


class PixelPacked(NamedTuple):
    """Weights in the order and the layout that the kernel reads; see `pack_pixels`."""

    weights: PixelWeights  # masked, in float32 or float64
    words: torch.Tensor  # every matrix in panels; a GPU's in tiles
    biases: torch.Tensor  # res_bias of each layer, hidden_bias, out_bias, 16 zeros end to end
    places: torch.Tensor | None = None  # (L, 7): a GPU's, see its kernel
    heads: torch.Tensor | None = None  # (5,): likewise


@without_autocast
def pack_pixels(weights, dtype="float32"):
    """Mask and lay out `weights` once, for any number of calls of `pixelcnn_sample`.

    Raises ValueError for shapes that do not fit together and for values that are not finite.
    """
    expect(dtype in DTYPES, "dtype", f"one of {DTYPES}", repr(dtype))
    check_weights(weights)
    w = only_live(weights, getattr(torch, dtype))
    check_finite(w)
    if on_triton(weights.hidden, "pixelcnn_sample"):
        from ._pixelcnn_sample_triton import pack

        expect(dtype == "float32", "dtype on a GPU", "float32", dtype)
        return pack(w, weights.hidden.device)
    matrices = []
    for l, y in enumerate(w.layers):
        rows = y.v_weight.shape[2] - (l == 0)
        matrices += [y.v_weight[:, :, i].transpose(1, 2).flatten(1) for i in range(rows)]
        matrices.append(by_color(y.link_weight, w.colors))
    for l, y in enumerate(w.layers):
        for c in range(w.colors):
            matrices += [of_color(y, c, w.colors, l == 0), corner(y.res_weight, c, w.colors)]
    for c in range(w.colors):
        matrices += [corner(w.hidden, c, w.colors), corner(w.out, c, w.colors)]
    biases = [*(y.res_bias for y in w.layers), w.hidden_bias, w.out_bias]
    return PixelPacked(
        weights=w,
        words=torch.cat([panels(m)[0] for m in matrices]),
        biases=torch.cat([*biases, w.out_bias.new_zeros(LANES)]),
    )


@torch.no_grad()
def only_live(weights, dtype):
    """Copies of the weights on the CPU, zero where a mask shuts them out."""

    def real(v):
        return v.detach().to("cpu", dtype).contiguous() if isinstance(v, torch.Tensor) else v

    def seen(matrix, strict=True):
        shut = later(*matrix.shape, weights.colors, strict, matrix.device)
        return matrix.masked_fill(shut, 0)

    layers = []
    for l, y in enumerate(weights.layers):
        v_weight, h_weight = y.v_weight.clone(), y.h_weight.clone()
        if l == 0:
            v_weight[:, :, -1] = 0
        for half in h_weight[:, :, 0, -1].chunk(2):  # (P, inputs)
            half.copy_(seen(half, strict=l > 0))
        y = y._replace(v_weight=v_weight, h_weight=h_weight, res_weight=seen(y.res_weight))
        layers.append(PixelLayer(*map(real, y)))
    head = {"hidden": seen(weights.hidden), "out": seen(weights.out)}
    return PixelWeights(*map(real, weights._replace(layers=layers, **head)))


def by_color(gates, colors):
    """Rows (2P, ...), tanh's then sigmoid's, in groups: a color's 2Q, and zeros up to 16 rows."""
    G = 2 * gates.shape[0] // (2 * colors)
    grouped = gates.unflatten(0, (2, colors, -1)).transpose(0, 1).flatten(1, 2)  # (C, 2Q, ...)
    return F.pad(grouped.movedim(1, -1), (0, -G % LANES)).movedim(-1, 1).flatten(0, 1)


def corner(matrix, c, colors):
    """The rows of color c, and of the columns those that it sees."""
    rows, columns = (n // colors for n in matrix.shape)
    return matrix[c * rows : (c + 1) * rows, : (c + 1) * columns]


def of_color(layer, c, colors, first):
    """The rows of h_weight of color c: columns the pixels to the left, then what it sees here."""
    weight = layer.h_weight[:, :, 0].unflatten(0, (2, colors, -1))[:, c].flatten(0, 1)
    inputs = weight.shape[1]
    seen = c if first else (c + 1) * inputs // colors
    past = weight[..., :-1].transpose(1, 2).flatten(1)
    return torch.cat([past, weight[:, :seen, -1]], 1)


@without_autocast
def pixelcnn_sample(
    weights,
    uniforms,  # (n, C, H, W) in [0, 1)
    *,
    given=None,  # (n, C, H, W) int64: levels, -1 where one is to be drawn
    cond=None,  # (n, L, 4P) or (1, L, 4P): added to the gates of v, then of h
    temperature=1.0,
    dtype="float32",
    threads=None,
    logits=False,
):
    """Draw n images from PixelWeights, or faster from what `pack_pixels` made of them.

    temperature is a number or a tensor that expands to (n, C, H, W); where it is 0 the likeliest
    level is taken. Images are independent: no bit of one depends on its neighbours or on threads.
    returns: levels (n, C, H, W) int64; with `logits`, (n, A, C, H, W) too; on uniforms' device
    Raises ValueError for shapes that do not fit and for values out of range or not finite,
    TypeError for levels that are not int64.
    """
    packed = weights if isinstance(weights, PixelPacked) else pack_pixels(weights, dtype)
    w, threads, device = packed.weights, thread_count(threads), uniforms.device
    levels = w.out.shape[0] // w.colors
    u, given, temperature = drawing(
        "pixelcnn_sample", uniforms, given, temperature, w.colors, levels, w.out.device
    )
    cond = w.out.new_zeros(1, len(w.layers), 4 * w.hidden.shape[1]) if cond is None else cond
    check_cond(w, len(u), cond)
    cond = cond.to(w.out)
    if packed.places is not None:
        from ._pixelcnn_sample_triton import pixelcnn_sample_triton

        inputs = (u, given, cond, temperature, logits)
        found = pixelcnn_sample_triton(packed, *inputs)
    elif native is None:
        warn_reference("pixelcnn_sample")
        found = pixelcnn_sample_ref(w, u, given, cond, temperature, logits)
    else:
        kernels = [y.v_weight.shape[3] for y in w.layers]
        found = _pixelcnn_sample(
            *(packed.words, packed.biases, start_of_gates(w, cond), kernels),
            *(*w.hidden.shape, w.colors, u, given, temperature, logits, threads),
        )
    return finished("pixelcnn_sample", *found, device, logits)


def start_of_gates(w, cond):
    """Biases and conditions of both stacks in the kernel's order of rows: (n or 1, L, V + C G)."""
    v, h = cond.chunk(2, dim=2)  # (n, L, 2P)
    v = v + torch.stack([y.v_bias for y in w.layers])
    h = h + torch.stack([y.h_bias for y in w.layers])
    v = F.pad(v, (0, -v.shape[2] % LANES))
    return torch.cat([v, by_color(h.movedim(2, 0), w.colors).movedim(0, 2)], 2)


@op
def _pixelcnn_sample(
    words: torch.Tensor,
    biases: torch.Tensor,
    bases: torch.Tensor,
    kernels: list[int],
    S: int,
    P: int,
    C: int,
    uniforms: torch.Tensor,
    given: torch.Tensor,
    temperature: torch.Tensor,
    logits: bool,
    threads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """returns: codes, logits (n, C, H, W, A) or nothing, place of the first NaN or -1 (n,)."""
    n, _, H, W = given.shape
    L = len(kernels)
    A = (biases.shape[0] - LANES - L * P - S) // C
    codes, values, failed = outputs(words, given, A, logits)
    launch(
        native.pixelcnn_sample,
        *(int(words.dtype == torch.float64), words, biases, bases, torch.tensor(kernels)),
        *(uniforms, temperature, given, codes, values if logits else None, failed),
        *(n, H, W, C, L, P, S, A, bases.shape[0], threads),
    )
    return codes, values, failed


def pixelcnn_sample_ref(w, uniforms, given, cond, temperature, logits):
    """`pixelcnn_sample` in plain torch, in the dtype of the masked weights, a color after a color.

    returns: as `_pixelcnn_sample`
    """
    n, C, H, W = uniforms.shape
    A = w.out.shape[0] // C
    radii = [y.v_weight.shape[3] // 2 for y in w.layers]
    # what the layers of the vertical stack see, with zeros around; of layer 0 the image
    maps = [
        w.out.new_zeros(n, y.v_weight.shape[1], r + H, W + 2 * r)
        for y, r in zip(w.layers, radii, strict=True)
    ]
    bases, rows = [], []  # of the row: what gates start from; what layers see: zeros, then h

    def say(i, j, c, _):
        if j == c == 0:
            bases[:] = look_up_ref(w, maps, cond, i)
            both = zip(maps, radii, strict=True)
            rows[:] = [w.out.new_zeros(n, m.shape[1], r + W) for m, r in both]
        return look_left_ref(w, rows, [base[..., j] for base in bases], j)[:, c * A : (c + 1) * A]

    def see(i, j, c, x):
        rows[0][:, c, radii[0] + j] = maps[0][:, c, radii[0] + i, radii[0] + j] = x

    return draw_raster(say, see, A, uniforms, given, temperature, logits, w.out.dtype)


def look_up_ref(w, maps, cond, i):
    """Row i of the vertical stack, into `maps`, and what the gates of h get of it.

    maps: (n, inputs, r + H, W + 2 r) of each layer    returns: (n, 2P, W) of each layer
    """
    bases, (v, h) = [], cond.chunk(2, dim=2)
    for l, y in enumerate(w.layers):
        k = y.v_weight.shape[3]
        a = F.conv2d(maps[l][:, :, i : i + k // 2 + 1], y.v_weight, y.v_bias)[:, :, 0]
        a = a + v[:, l, :, None]  # (n, 2P, W)
        link = torch.einsum("gf,nfw->ngw", y.link_weight, a)
        bases.append(link + (y.h_bias + h[:, l])[..., None])
        if l + 1 < len(w.layers):
            r = w.layers[l + 1].v_weight.shape[3] // 2
            maps[l + 1][:, :, r + i, r : r + a.shape[2]] = gate(a)
    return bases


def look_left_ref(w, rows, bases, j):
    """Pixel j of the horizontal stack, into `rows`, and the logits of all colors, (n, C A).

    rows: (n, inputs, r + W) of each layer    bases: (n, 2P) of each layer
    """
    for l, y in enumerate(w.layers):
        taps = rows[l][:, :, j : j + y.h_weight.shape[3]]
        a = bases[l] + torch.einsum("gck,nck->ng", y.h_weight[:, :, 0], taps)
        h = F.linear(gate(a), y.res_weight, y.res_bias)
        if l > 0:
            h = h + taps[..., -1]
        if l + 1 < len(w.layers):
            rows[l + 1][:, :, w.layers[l + 1].h_weight.shape[3] - 1 + j] = h
    s = torch.relu(F.linear(torch.relu(h), w.hidden, w.hidden_bias))
    return F.linear(s, w.out, w.out_bias)


def expect(ok, name, expected, got, error=ValueError):
    """Raise `error` unless `ok`."""
    if not ok:
        raise error(f"pixelcnn_sample: {name}: expected {expected}, got {got}")


def check_weights(w):
    """Raise ValueError for shapes that do not fit together."""
    expect(len(w.layers) > 0, "layers", "at least one", "none")
    expect(w.hidden.dim() == 2, "hidden", "(S, P)", tuple(w.hidden.shape))
    (S, P), C = w.hidden.shape, w.colors
    expect(isinstance(C, int) and 1 <= C <= 3, "colors", "1, 2 or 3", C)
    expect(P > 0 and P % C == 0 and S > 0 and S % C == 0, "hidden", f"multiples of {C}", (S, P))
    A = w.out_bias.numel() // C
    expect(A >= 2, "out_bias", f"at least {2 * C} values", w.out_bias.numel())
    shapes = {"hidden": (S, P), "hidden_bias": (S,), "out": (C * A, S), "out_bias": (C * A,)}
    found = {name: getattr(w, name) for name in shapes}
    for l, y in enumerate(w.layers):
        shape = tuple(y.v_weight.shape)
        expect(len(shape) == 4, f"layers[{l}].v_weight", "(2P, inputs, k // 2 + 1, k)", shape)
        k, inputs = shape[3], P if l else C
        expect(k % 2 and k >= (1 if l else 3), f"layers[{l}]", "an odd kernel, the first > 1", k)
        expected = ((2 * P, inputs, k // 2 + 1, k), (2 * P,), (2 * P, inputs, 1, k // 2 + 1))
        expected += ((2 * P,), (2 * P, 2 * P), (P, P), (P,))
        names = [f"layers[{l}].{name}" for name in PixelLayer._fields]
        shapes |= dict(zip(names, expected, strict=True))
        found |= dict(zip(names, y, strict=True))
    for name, tensor in found.items():
        expect(tensor.shape == shapes[name], name, shapes[name], tuple(tensor.shape))
        expect(not tensor.is_meta, name, "values", "a meta tensor")


def check_finite(w):
    """Raise ValueError for masked weights that are not finite."""
    named = [
        (f"layers[{l}].{name}", v)
        for l, y in enumerate(w.layers)
        for name, v in zip(y._fields, y, strict=True)
    ]
    named += [(name, getattr(w, name)) for name in ("hidden", "hidden_bias", "out", "out_bias")]
    for name, tensor in named:
        expect(tensor.isfinite().all(), name, "finite values", "NaN or Inf")


def check_cond(w, n, cond):
    """Raise ValueError for conditions that do not fit `w` and n images."""
    L, P = len(w.layers), w.hidden.shape[1]
    shapes = ((1, L, 4 * P), (n, L, 4 * P))
    expect(cond.shape in shapes, "cond", shapes[1], tuple(cond.shape))
    expect(not cond.is_meta, "cond", "values", "a meta tensor")
    expect(cond.isfinite().all(), "cond", "finite values", "NaN or Inf")
