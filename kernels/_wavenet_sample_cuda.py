"""`wavenet_sample` on one cluster of Hopper's thread blocks: bfloat16, up to 8 streams.

The weights stay in the blocks' registers and shared memory, ceil(L / blocks) layers to a block.
Matrices are cut into the fragments of mma.m16n8k16, so that a lane loads its part at once: tiles
(16, 16), those of the same rows one after another. Rows 2g and 2g + 1 of a tile are a lane's, a
pair of channels or the two halves of a gate, which alternate as in the Triton program; so are
columns 4q ... 4q + 3. R and H are padded to 64, S and O to 16.
"""

import warnings
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._op import launch, native

STREAMS = 8  # the columns of a product
WIDTH = 64  # the most of R and H
OUTPUTS = 256  # the most of O
DEEP = 3  # the most layers of a block
BLOCKS = (8, 16)  # of a cluster; 16 are not granted everywhere
THREADS = 256  # of a block
SHARED = 232_448  # bytes that a block may have
TILE = 16
FRAGMENT = 512  # bytes
FRAMES, STEPS = 256, 1 << 16  # the most of one launch


class Cluster(NamedTuple):
    """Weights as the kernel reads them, and the cluster that holds them."""

    words: torch.Tensor  # conv's last tap, res, conv's other taps, skip, hidden, out
    table: torch.Tensor  # (K, A, 64, 2)
    embed: torch.Tensor  # (A, 64)
    biases: torch.Tensor  # res, skip, hidden, out
    blocks: int
    bytes: int  # of shared memory, a block


def shared_bytes(blocks, L, K, S, O):
    """Bytes of shared memory that a block needs, the most of any."""
    most, tiles = -(-L // blocks), WIDTH // TILE
    S, O = -(-S // TILE), -(-O // TILE)
    weights = most * (K - 1) * 2 * tiles * tiles + most * S * tiles
    weights += (-(-S // blocks) - (-O // blocks)) * S
    wide = (most + 1) * (WIDTH + 4) + TILE * S + 4 + TILE * O + 4
    narrow = most * (K + 1) * odd(WIDTH) + 2 * odd(TILE * S)
    return 64 + weights * FRAGMENT + STREAMS * (4 * wide + 2 * narrow + 4 * K)


def odd(length):
    """`length` in units of 16, at least as many, and odd: no two streams meet in a bank."""
    return TILE * (length // TILE | 1)


def plan(L, K, R, H, S, O):
    """The clusters that can hold a model, pairs of blocks and bytes a block; or why none can."""
    for name, size, most in (("R", R, WIDTH), ("H", H, WIDTH), ("the outputs", O, OUTPUTS)):
        if size > most:
            return f"{name} may be {most} at most, and is {size}"
    if DEEP * BLOCKS[-1] < L:
        return f"L may be {DEEP * BLOCKS[-1]} at most, and is {L}"
    sizes = [(b, shared_bytes(b, L, K, S, O)) for b in BLOCKS if DEEP * b >= L]
    fitting = [(b, size) for b, size in sizes if size <= SHARED]
    if fitting:
        return fitting
    blocks, size = sizes[-1]
    return f"each of {blocks} blocks may have {SHARED} bytes of shared memory, and needs {size}"


def missing():
    """Why this build of fastgen has no CUDA kernels, or nothing."""
    return getattr(native, "cuda", "without C++ kernels there are none")


@cache
def granted(device, blocks, size):
    """Whether the GPU can run a cluster; raises RuntimeError for what its driver says."""
    count = torch.zeros(1, dtype=torch.int64)
    launch(native.wavenet_sample_clusters, device, blocks, size, count)
    return int(count) > 0


def pack(weights):
    """A Cluster of checked weights on a GPU, or a text: why there can be none.

    None where none is to be expected: the GPU is not of capability 9.
    """
    device = weights.conv.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return None
    (L, G, R, K), S, O = weights.conv.shape, len(weights.hidden), len(weights.out)
    clusters = missing() or plan(L, K, R, G // 2, S, O)
    if isinstance(clusters, str):
        return clusters
    try:
        found = [c for c in clusters if granted(device.index or 0, *c)]
    except RuntimeError as error:
        return str(error)
    return (
        lay_out(weights, *found[0])
        if found
        else f"the GPU grants no cluster of {clusters[0][0]} blocks"
    )


def on_cluster(packed, n):
    """Whether n streams run on a cluster; where they are few enough and do not, says once why."""
    if packed.cluster is None or n > STREAMS:
        return False
    if isinstance(packed.cluster, str):
        warn_triton(packed.cluster)
        return False
    return True


@cache
def warn_triton(why):
    message = f"wavenet_sample of {STREAMS} streams or fewer runs on Triton, not on a cluster"
    warnings.warn(f"{message}: {why}", stacklevel=4)


def lay_out(weights, blocks, size):
    """The Cluster of checked weights that fit."""
    device = weights.conv.device
    w = type(weights)(*(v if v is None else v.detach().to("cpu", torch.float32) for v in weights))
    embed = pad(w.embed, -1, WIDTH)
    conv = alternate(pad(w.conv, 2, WIDTH).permute(0, 3, 2, 1)).transpose(-1, -2)  # (L, K, 2H, R)
    res = pad(pad(w.res, -1, WIDTH), -2, WIDTH)
    skip = pad(pad(w.skip, -1, WIDTH), -2, TILE)
    hidden, out = (pad(pad(m, -1, TILE), -2, TILE) for m in (w.hidden, w.out))
    words = (conv[1:, -1], res, conv[1:, :-1], skip, hidden, out)
    biases = [pad(b, -1, TILE) for b in (w.skip_bias, w.hidden_bias, w.out_bias)]
    return Cluster(
        words=torch.cat([fragments(m) for m in words]).to(device, torch.bfloat16),
        table=alternate(torch.einsum("grk,ar->kag", w.conv[0], w.embed)).contiguous().to(device),
        embed=embed.contiguous().to(device),
        biases=torch.cat([pad(w.res_bias, -1, WIDTH).flatten(), *biases]).to(device),
        blocks=blocks,
        bytes=size,
    )


def pad(x, dim, unit):
    """`x` with zeros up to a multiple of `unit`."""
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim % x.dim()) + (0, -x.shape[dim] % unit))


def alternate(x):
    """(..., 2H) with its two halves padded and alternating: (..., 128)."""
    return pad(x.unflatten(-1, (2, -1)), -1, WIDTH).transpose(-1, -2).flatten(-2)


def fragments(matrix):
    """A matrix (..., rows, columns) in tiles: of each the lanes' pairs of columns, of two rows."""
    x = matrix.unflatten(-1, (-1, 4, 2, 2)).unflatten(-5, (-1, 8, 2))
    return x.movedim((-4, -6, -3, -2, -5), (-6, -5, -4, -3, -2)).flatten()


def gates(w, base, frames):
    """bias + cond c of each frame as the sums of products: (F, L, 8, 32, 4).

    base: (n or 1, L, 2H)    frames: (n, C, F), F <= FRAMES + 2
    """
    n, C, many = frames.shape
    x = base[..., None].transpose(0, -1)  # (1, L, 2H, n)
    x = F.pad(x, (0, STREAMS - x.shape[-1])) if x.shape[-1] > 1 else x.expand(-1, -1, -1, STREAMS)
    if C:
        # always of the same shape: another may sum in another order
        frames = F.pad(frames, (0, FRAMES + 2 - many, 0, 0, 0, STREAMS - n))
        x = x + torch.einsum("lgc,ncf->flgn", w.cond, frames)[:many]
    x = alternate(x.transpose(-1, -2)).unflatten(-1, (-1, 8, 2)).unflatten(-4, (4, 2))
    return x.permute(0, 1, 4, 5, 2, 6, 3).flatten(3, 4).flatten(-2).contiguous()


def wavenet_sample_cuda(
    packed,
    uniforms,
    rings,
    history,
    step,
    prefix,
    base,
    cond,
    dilations,
    hop,
    classes,
    mixtures,
    temperature,
    logits,
):
    """`wavenet_sample_ref`, but of a Cluster's weights, and with no wait for the GPU."""
    w, cluster = packed.weights, packed.cluster
    (L, _, R, K), S, O = w.conv.shape, len(w.hidden), len(w.out)
    n, T = uniforms.shape[:2]
    device = rings.device.index or 0
    stream = torch.cuda.current_stream(device).cuda_stream if rings.is_cuda else 0
    rings = rings.clone(memory_format=torch.contiguous_format)
    history, failed = history.contiguous(), history.new_full((n,), -1)
    u, quantiles = uniforms.float(), None
    if mixtures:
        # logit(0) is held at a finite quantile: 0 * inf is not a sample
        u, quantiles = u[..., 0], torch.logit(uniforms[..., 1]).clamp(-40, 40).float()
    codes = F.pad(prefix, (0, T - prefix.shape[1]))
    values = [base.new_empty(n, 0, O)]
    length = min(STEPS, FRAMES * hop) if cond.shape[1] else STEPS
    for t in range(0, T if n else 0, length):
        part = slice(t, min(t + length, T))
        steps = part.stop - t
        first, last = ((step % hop + i) // hop for i in (t, part.stop - 1))
        frames = gates(w, base, cond[..., first : last + 2])
        drawn, broken = codes[:, part].contiguous(), torch.empty_like(failed)
        values += [base.new_empty(n, steps, O)] if logits else []
        launch(
            native.wavenet_sample_cuda,
            *(*cluster[:4], torch.tensor(dilations), frames, u[:, part].contiguous()),
            quantiles[:, part].contiguous() if mixtures else None,
            *(rings, history, drawn, values[-1] if logits else None, broken),
            *(n, steps, max(prefix.shape[1] - t, 0), step + t, len(frames), hop, L, K, R, S, O),
            *(classes, mixtures, temperature, cluster.blocks, cluster.bytes, device, stream),
        )
        codes[:, part] = drawn
        history = torch.cat([history, drawn], 1)[:, -K:].contiguous()
        failed = torch.where(failed < 0, broken, failed)
    values = torch.cat(values, 1) if logits else base.new_empty(0)
    return codes, rings, history, values, failed
