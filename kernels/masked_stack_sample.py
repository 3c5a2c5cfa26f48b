"""The whole sampling loop of a stack of masked convolutions in one op, on cached activations.

    y_0   = the image, scaled to [-1, 1]
    y_l+1 = gate(bias_l + sum_f conv_f(act_f(y_s))) + y_k    s <= l of each conv, k <= l of a skip
    logits = y_L, of C colors and A levels; or y_L is what `logistic_mixture` takes
    x[t] = the number of entries of cdf(softmax(logits / temperature)) <= u[t]

act is relu, concat_elu or nothing, gate(a, b) = a sigmoid(b) or nothing. t goes through rows,
pixels of a row and colors of a pixel. A layer may have half or twice the resolution of what it
sees: its pixel i, j is at 2i, 2j of the other then, or at i // 2, j // 2. These are the layers of
PixelCNN and PixelCNN++ (van den Oord et al. 2016, "Pixel Recurrent Neural Networks"; Salimans et
al. 2017).

A layer that sees rows above alone is computed for a whole row, before the row begins; so is what
others get of rows above, and of such layers. What is left for each pixel is a product with those to
its left and itself, of a coarse layer at the first of the pixels that one of its own covers.
"""

import torch
import torch.nn.functional as F

from ._draw import draw_raster, drawing, finished, outputs
from ._masked_stack import ACTS, STEPS, PackedStack, expect, pack_stack
from ._op import launch, native, op, thread_count, warn_reference, without_autocast
from .logistic_mixture import color_logits
from .wavenet_sample import LANES


@without_autocast
def masked_stack_sample(
    layers,
    uniforms,  # (n, C, H, W) in [0, 1)
    *,
    colors=1,
    levels=None,
    given=None,  # (n, C, H, W) int64: levels, -1 where one is to be drawn
    cond=None,  # (n or 1, O of all layers side by side): added to the biases
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
    if not isinstance(layers, PackedStack):
        layers = pack_stack(layers, colors, dtype, levels)
    threads, device, name = thread_count(threads), uniforms.device, "masked_stack_sample"
    A, mixtures = layers.levels, layers.mixtures
    images = drawing(name, uniforms, given, temperature, layers.colors, A)
    biases = with_cond(layers.biases, cond, len(uniforms))
    if native is None:
        warn_reference(name)
        found = masked_stack_sample_ref(layers, biases, *images, logits)
    else:
        words, sizes, L = layers.words, layers.sizes, len(layers.layers)
        biases = F.pad(biases, (0, LANES))
        found = _masked_stack_sample(words, biases, sizes, L, A, mixtures, *images, logits, threads)
    return finished(name, *found, device, logits)


def with_cond(biases, cond, n):
    """Biases and conditions together, (n or 1, O of all layers); raises ValueError."""
    if cond is None:
        return biases[None]
    shapes = ((1, len(biases)), (n, len(biases)))
    expect(cond.shape in shapes, "cond", shapes[1], tuple(cond.shape))
    expect(not cond.is_meta, "cond", "values", "a meta tensor")
    expect(cond.isfinite().all(), "cond", "finite values", "NaN or Inf")
    return biases + cond.to(biases)


@op
def _masked_stack_sample(
    words: torch.Tensor,
    biases: torch.Tensor,
    sizes: list[int],
    L: int,
    A: int,
    mixtures: int,
    uniforms: torch.Tensor,
    given: torch.Tensor,
    temperature: torch.Tensor,
    logits: bool,
    threads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """returns: codes, logits (n, C, H, W, A) or nothing, place of the first NaN or -1 (n,)."""
    n, C, H, W = given.shape
    codes, values, failed = outputs(words, given, A, logits)
    layers, convs = torch.tensor(sizes[: 6 * L]), torch.tensor(sizes[6 * L :])
    launch(
        native.masked_stack_sample,
        *(int(words.dtype == torch.float64), words, biases, layers, convs),
        *(uniforms, temperature, given, codes, values if logits else None, failed),
        *(n, H, W, C, L, len(convs) // 8, len(biases), A, mixtures, threads),
    )
    return codes, values, failed


def masked_stack_sample_ref(packed, biases, uniforms, given, temperature, logits):
    """`masked_stack_sample` in plain torch, of what `pack_stack` made.

    biases: (n or 1, O of all layers)    returns: as `_masked_stack_sample`
    """
    n, C, H, W = uniforms.shape
    A, layers, shapes, dtype = packed.levels, packed.layers, packed.shapes, biases.dtype
    biases = biases.split([len(y.bias) for y in layers], dim=1)
    coarsest = max(s.scale for s in shapes)
    W_ = -(-W // coarsest) * coarsest
    R = max(max(f.weight.shape[2:]) for y in layers for f in y.convs)
    # y_0 ... y_L, with R zeros above and to both sides
    maps = [
        torch.zeros(n, s.channels, R + -(-H // s.scale), W_ // s.scale + 2 * R, dtype=dtype)
        for s in shapes
    ]

    def compute(l, i, columns):
        """Layer l in its row i, at its pixels in `columns`."""
        y, J = layers[l], torch.arange(columns.start, columns.stop)
        out = biases[l][..., None] + sum(seen_by(f, maps, R, i, J) for f in y.convs)  # (n, O, J)
        if y.gate:
            a, b = out.chunk(2, dim=1)
            out = a * torch.sigmoid(b)
        skip = maps[y.skip][:, :, R + i, R + J] if y.skip >= 0 else 0
        maps[l + 1][:, :, R + i, R + J] = out + skip

    def say(i, j, c, codes):
        for l, (_, scale, row) in enumerate(shapes[1:]):
            if i % scale == 0 and row and j == c == 0:
                compute(l, i // scale, range(W_ // scale))
            elif i % scale == 0 and j % scale == 0 and not row:
                compute(l, i // scale, range(j // scale, j // scale + 1))
        z = maps[-1][:, :, R + i, R + j]
        if packed.mixtures:
            return color_logits(z, codes[:, :, i, j], c, A)
        return z[:, c * A : (c + 1) * A]

    def see(i, j, c, x):
        maps[0][:, C:, R + i, R + j : R + W_ if j == W - 1 else R + j + 1] = 1
        maps[0][:, c, R + i, R + j] = x

    return draw_raster(say, see, A, uniforms, given, temperature, logits, dtype)


def seen_by(f, maps, R, i, J):
    """What a conv makes of its source for row i, pixels J of its layer: (n, O, J)."""
    _, _, KH, KW = f.weight.shape
    if f.scale == "up":
        columns = R + (J // 2)[:, None] - f.left + torch.arange(KW)
        window = ACTS[f.act](maps[f.source][:, :, R + i // 2][..., columns])  # (n, I, J, KW)
        return torch.einsum("oijw,nijw->noj", f.weight[:, :, 2 * (i % 2) + J % 2], window)
    row = R + STEPS[f.scale] * i
    columns = R + STEPS[f.scale] * J[:, None] - f.left + torch.arange(KW)
    window = ACTS[f.act](maps[f.source][:, :, row - KH + 1 : row + 1])[..., columns]
    return torch.einsum("oihw,nihjw->noj", f.weight, window)
