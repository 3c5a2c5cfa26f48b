"""The whole sampling loop of a WaveNet in one op, on cached activations.

Step t feeds the code x[t-1] and carries one vector a layer (van den Oord et al. 2016):

    y_0   = embed[x[t-1]]                                    zeros at t = 0
    a_l   = base_l + cond_l c(t) + sum_k conv_l[:, :, k] y_l[t - (K - 1 - k) d_l]
    h_l   = tanh(a_l[:H]) * sigmoid(a_l[H:])
    y_l+1 = y_l + res_l h_l + res_bias_l
    logits = out relu(hidden relu(sum_l skip_l h_l + skip_bias) + hidden_bias) + out_bias
    x[t]  = the number of entries of cdf(softmax(logits / temperature)) <= u[t]

The past taps of a layer depend only on codes at least d_l steps old, so d_l steps of them are one
product; layer 0's taps of the embedding are a table; the L skip products are one of L H columns.
What is left to move for each step is each weight once: that is the floor of one stream.
"""

from typing import NamedTuple

import torch

from ._draw import draw
from ._op import launch, native, on_triton, op, thread_count, warn_reference, without_autocast
from ._wavenet_sample_cuda import Cluster, on_cluster, wavenet_sample_cuda
from ._wavenet_sample_cuda import pack as pack_cluster
from .wavenet_layer import upsample_ref

PANEL = 64  # rows of a matrix that lie together, column after column
LANES = 16  # rows are padded to a multiple of the widest vector
GROUPS = {"float32": 1, "float64": 1, "bfloat16": 2, "int8": 4}  # columns in one word


class Weights(NamedTuple):
    """The weights of a WaveNet, its layers stacked; H is half the gate channels.

    `embed` and `out` have a row for each of A classes; or, for M > 0 mixtures, `embed` holds slope
    and offset of the value in [-1, 1], and `out` has 3 M rows: logits, means, log-scales.
    """

    embed: torch.Tensor  # (A, R), or (2, R)
    conv: torch.Tensor  # (L, 2H, R, K)
    conv_bias: torch.Tensor  # (L, 2H)
    res: torch.Tensor  # (L - 1, R, H): the last layer's residual feeds nothing
    res_bias: torch.Tensor  # (L - 1, R)
    skip: torch.Tensor  # (L, S, H)
    skip_bias: torch.Tensor  # (S,)
    hidden: torch.Tensor  # (S, S)
    hidden_bias: torch.Tensor  # (S,)
    out: torch.Tensor  # (A, S), or (3 M, S)
    out_bias: torch.Tensor  # (A,), or (3 M,)
    cond: torch.Tensor | None = None  # (L, 2H, C)


class State(NamedTuple):
    """Where n streams stand: all that is needed to go on exactly."""

    rings: torch.Tensor  # (n, sum of (K - 1) d_l R over layers 1 ... L - 1), slot t mod (K - 1) d_l
    history: torch.Tensor  # (n, K) int64: the last codes, newest last; -1 before the first
    step: int


class Packed(NamedTuple):
    """Weights in the order and the layout that the kernel reads; see `pack`."""

    weights: Weights  # as given, in float32 or float64
    words: torch.Tensor  # every matrix in panels: float32, float64 or int32; a GPU's in tiles
    scales: torch.Tensor  # (rows,) what one int8 step of a row is worth; else empty
    offsets: torch.Tensor  # (rows,) int32, 128 times the sum of a row's int8; else empty
    table: torch.Tensor  # (K, A, 2H), or (K, 2, 2H): layer 0's taps of the embedding
    biases: torch.Tensor  # res_bias, skip_bias, hidden_bias, out_bias, 16 zeros end to end
    cond: torch.Tensor  # cond (L 2H, C) in panels of float32 or float64; or empty
    dtype: str
    cluster: Cluster | str | None = None  # the same for a cluster of Hopper, or why it is not


@without_autocast
def pack(weights, dtype="float32"):
    """Fold, quantize and lay out `weights` once, for any number of calls.

    Raises ValueError for shapes that do not fit together and for values that are not finite.
    """
    if dtype not in GROUPS:
        raise ValueError(f"wavenet_sample: dtype expected one of {list(GROUPS)}, got {dtype!r}")
    check_weights(weights)
    if on_triton(weights.conv, "wavenet_sample"):
        from ._wavenet_sample_triton import pack as pack_tiles

        packed = pack_tiles(weights, dtype)
        return packed._replace(cluster=pack_cluster(weights)) if dtype == "bfloat16" else packed
    real = torch.float64 if dtype == "float64" else torch.float32
    device = weights.conv.device if weights.conv.is_cuda else "cpu"
    w = Weights(*(v if v is None else v.detach().to(device, real).contiguous() for v in weights))
    L, G, R, K = w.conv.shape
    matrices = []  # in the order in which a step reads them
    for l in range(L):
        if l > 0:
            past = w.conv[l, :, :, : K - 1].transpose(1, 2).reshape(G, (K - 1) * R)
            matrices += [past, w.conv[l, :, :, K - 1]]
        if l < L - 1:
            matrices.append(w.res[l])
    matrices += [w.skip.transpose(0, 1).flatten(1), w.hidden, w.out]
    vectors = (w.res_bias, w.skip_bias, w.hidden_bias, w.out_bias, w.embed.new_zeros(LANES))
    parts = [panels(m, dtype) for m in matrices]
    words, scales, offsets = (torch.cat(v) for v in zip(*parts, strict=True))
    return Packed(
        weights=w,
        words=words,
        scales=scales,
        offsets=offsets,
        table=torch.einsum("grk,ar->kag", w.conv[0], w.embed).contiguous(),
        biases=torch.cat([v.flatten() for v in vectors]),
        cond=w.embed.new_empty(0) if w.cond is None else panels(w.cond.flatten(0, 1))[0],
        dtype=dtype,
    )


def panels(matrix, dtype="float32"):
    """A matrix (rows, columns) in panels of 64 rows, columns outermost within a panel.

    A word holds one float, two bfloat16 or four int8 of neighbouring columns; rows are padded
    to a multiple of 16, columns to whole words.
    returns: words; scales and offsets of the rows, empty but for int8
    """
    rows, columns = matrix.shape
    group = GROUPS[dtype]
    padded = matrix.new_zeros(-(-rows // LANES) * LANES, -(-columns // group) * group)
    padded[:rows, :columns] = matrix
    scales, offsets = matrix.new_empty(0), torch.empty(0, dtype=torch.int32)
    if dtype == "int8":
        scales = padded.abs().amax(1).clamp(min=1e-30) / 127
        padded = (padded / scales[:, None]).round().to(torch.int8)
        offsets = 128 * padded.sum(1, dtype=torch.int32)
    elif dtype == "bfloat16":
        padded = padded.to(torch.bfloat16)
    blocks = [b.view(len(b), -1, group).transpose(0, 1).reshape(-1) for b in padded.split(PANEL)]
    words = torch.cat(blocks)
    return words if group == 1 else words.view(torch.int32), scales, offsets


def initial_state(weights, dilations, n):
    """The state of n streams before their first step. weights: Weights or Packed.

    Raises ValueError for dilations that are not powers of two, one a layer, the first 1.
    """
    w = weights.weights if isinstance(weights, Packed) else weights
    check_dilations(w, dilations)
    _, _, R, K = w.conv.shape
    rings = w.embed.new_zeros(n, sum((K - 1) * d * R for d in dilations[1:]))
    return State(rings, torch.full((n, K), -1, dtype=torch.int64, device=rings.device), 0)


@without_autocast
def wavenet_sample(
    weights,
    uniforms,  # (n, T), or (n, T, 2) for a mixture, in [0, 1)
    *,
    dilations,
    state=None,
    prefix=None,  # (n, P) int64, P <= T: the first codes, given
    base=None,  # (n, L, 2H) or (1, L, 2H), in place of conv_bias
    cond=None,  # (n, C, F): frames, the first one that of step (state.step // hop) * hop
    hop=1,
    classes=None,
    mixtures=0,
    temperature=1.0,
    dtype="float32",
    threads=None,
    logits=False,
):
    """Sample T codes of n streams from Weights, or faster from what `pack` made of them.

    Frame f of the conditioning stands at step f * hop; between frames it is interpolated
    linearly, and the last one holds. Streams are independent: no bit of a stream depends on
    its neighbours, on threads, or on how T is cut into calls. At temperature 0 the likeliest
    code is taken. bfloat16 and int8 are the matrices and what they multiply; sums and the
    residual stream are float32. On Hopper bfloat16 has other bits for 8 streams or fewer, which
    another kernel draws. A CUDA graph cannot hold it, for it reads values to check them.
    returns: codes (n, T) int64 and the state after them; with `logits`, (n, T, A or 3 M) too
    Raises ValueError for shapes that do not fit and for values out of range or not finite,
    TypeError for codes that are not int64 and for a state of another dtype's weights, RuntimeError
    while a CUDA graph is captured.
    """
    given = weights.weights if isinstance(weights, Packed) else weights
    if given.conv.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("wavenet_sample: checks values, so no CUDA graph can capture it")
    packed = weights if isinstance(weights, Packed) else pack(weights, dtype)
    w = packed.weights
    n, threads = len(uniforms), thread_count(threads)
    classes = w.embed.shape[0] if classes is None and not mixtures else classes or 0
    state = initial_state(w, dilations, n) if state is None else state
    prefix = torch.empty(n, 0, dtype=torch.int64) if prefix is None else prefix
    base = w.conv_bias[None] if base is None else base.to(w.embed.dtype)
    cond = w.embed.new_empty(n, 0, 0) if cond is None else cond.to(w.embed.dtype)
    uniforms, prefix, base, cond, rings, history = (
        v if v.is_meta else v.to(w.embed.device)
        for v in (uniforms, prefix, base, cond, state.rings, state.history)
    )
    state = State(rings, history, state.step)
    check(w, uniforms, dilations, state, prefix, base, cond, hop, classes, mixtures, temperature)
    inputs = (uniforms.double(), *state, prefix, base, cond)
    options = (list(dilations), hop, classes, mixtures, float(temperature), logits)
    if on_cluster(packed, n):
        *run, failed = wavenet_sample_cuda(packed, *inputs, *options)
    elif on_triton(w.embed, "wavenet_sample"):
        from ._wavenet_sample_triton import wavenet_sample_triton

        *run, failed = wavenet_sample_triton(packed, *inputs, *options)
    elif native is None or w.embed.is_cuda:
        if native is None:
            warn_reference("wavenet_sample")
        *run, failed = wavenet_sample_ref(w, *inputs, *options)
    else:
        matrices = (packed.words, packed.scales, packed.offsets, packed.cond)
        vectors = (packed.table, w.embed, packed.biases, w.skip.shape[1])
        *run, failed = _wavenet_sample(
            packed.dtype, *matrices, *vectors, *inputs, *options, threads
        )
    if (failed >= 0).any():
        stream = int((failed >= 0).nonzero()[0])
        where = f"stream {stream} at step {int(failed[stream])}"
        raise ValueError(f"wavenet_sample: the logits of {where} are not finite")
    codes, rings, history, values = run
    state = State(rings, history, state.step + codes.shape[1])
    return (codes, state, values) if logits else (codes, state)


@op
def _wavenet_sample(
    dtype: str,
    words: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor,
    cond_words: torch.Tensor,
    table: torch.Tensor,
    embed: torch.Tensor,
    biases: torch.Tensor,
    S: int,
    uniforms: torch.Tensor,
    rings: torch.Tensor,
    history: torch.Tensor,
    step: int,
    prefix: torch.Tensor,
    base: torch.Tensor,
    cond: torch.Tensor,
    dilations: list[int],
    hop: int,
    classes: int,
    mixtures: int,
    temperature: float,
    logits: bool,
    threads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """returns: codes, rings, history, logits or nothing, step of the first NaN or -1 (n,)."""
    n, T = uniforms.shape[:2]
    K, _, G = table.shape
    L, R = len(dilations), embed.shape[1]
    O = biases.shape[0] - LANES - (L - 1) * R - 2 * S
    codes = prefix.new_empty(n, T)
    values = embed.new_empty((n, T, O) if logits else (0,))
    rings, history = rings.clone(), history.clone()
    failed = prefix.new_full((n,), -1)
    launch(
        native.wavenet_sample,
        list(GROUPS).index(dtype),
        *(words, scales, offsets, cond_words, table, embed, biases),
        *(uniforms, prefix, base, cond, torch.tensor(dilations)),
        *(rings, history, codes, values if logits else None, failed),
        *(n, T, step, prefix.shape[1], base.shape[0], cond.shape[1], cond.shape[2], hop),
        *(L, K, R, G // 2, S, O, classes, mixtures, temperature, threads),
    )
    return codes, rings, history, values, failed


def wavenet_sample_ref(
    weights,
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
    """`wavenet_sample` in plain torch, in the dtype of `weights`, a step after a step."""
    w = weights
    n, T = uniforms.shape[:2]
    L, G, R, K = w.conv.shape
    rings, codes, values = rings.clone(), [], []
    depths = [(K - 1) * d for d in dilations[1:]]
    parts = rings.split([d * R for d in depths], dim=1)
    caches = [r.view(n, d, R) for r, d in zip(parts, depths, strict=True)]
    frames = None if w.cond is None else upsample_ref(cond, hop, step % hop + T)[..., step % hop :]
    failed = prefix.new_full((n,), -1)
    for t in range(T):
        a = base.expand(n, L, G)
        if frames is not None and frames.shape[1]:
            a = a + torch.einsum("lgc,nc->nlg", w.cond, frames[..., t])
        taps = embed_ref(w.embed, history, classes, mixtures)  # (n, R, K)
        y, s = taps[..., -1], w.skip_bias
        for l in range(L):
            if l > 0:
                slots = [(step + t - k * dilations[l]) % depths[l - 1] for k in range(K - 1, 0, -1)]
                taps = torch.stack([*(caches[l - 1][:, i] for i in slots), y], dim=-1)
                caches[l - 1][:, (step + t) % depths[l - 1]] = y
            f, g = (a[:, l] + torch.einsum("grk,nrk->ng", w.conv[l], taps)).chunk(2, dim=1)
            h = torch.tanh(f) * torch.sigmoid(g)
            s = s + h @ w.skip[l].T
            if l < L - 1:
                y = y + h @ w.res[l].T + w.res_bias[l]
        z = torch.relu(torch.relu(s) @ w.hidden.T + w.hidden_bias) @ w.out.T + w.out_bias
        bad = ~z.isfinite().all(1)
        if bad.any():
            failed[bad] = step + t
            break
        given = t < prefix.shape[1]
        u = uniforms[:, t]
        drawn = prefix[:, t] if given else draw(z, u, temperature, classes, mixtures)
        history = torch.cat([history[:, 1:], drawn[:, None]], dim=1)
        codes.append(drawn)
        values.append(z)
    codes = torch.stack(codes, 1) if codes else prefix.new_empty(n, 0)
    values = torch.stack(values, 1) if values else w.out.new_empty(n, 0, w.out.shape[0])
    values = values if logits else w.out.new_empty(0)
    return codes, rings, history, values, failed


def embed_ref(embed, history, classes, mixtures):
    """Vectors of the codes in `history`; zeros where there is none (-1).

    history: (n, K)    returns: (n, R, K)
    """
    if mixtures:
        value = history.to(embed.dtype) * (2 / (classes - 1)) - 1
        vectors = value[..., None] * embed[0] + embed[1]
    else:
        vectors = embed[history.clamp(min=0)]
    return torch.where((history < 0)[..., None], 0, vectors).transpose(1, 2)


def expect(ok, name, expected, got, error=ValueError):
    """Raise `error` unless `ok`."""
    if not ok:
        raise error(f"wavenet_sample: {name}: expected {expected}, got {got}")


def check_weights(w):
    """Raise ValueError for shapes that do not fit together and for values not finite."""
    shape = tuple(w.conv.shape)
    fits = len(shape) == 4 and shape[1] % 2 == 0 and min(shape) > 0 and shape[3] > 1
    expect(fits, "conv", "(L, 2H, R, K), K > 1", shape)
    (L, G, R, _), H = shape, shape[1] // 2
    sizes = (w.embed.numel() // R, w.skip_bias.numel(), w.out_bias.numel())
    A, S, O = (max(1, size) for size in sizes)
    shapes = {"embed": (A, R), "conv_bias": (L, G), "res": (L - 1, R, H), "res_bias": (L - 1, R)}
    shapes |= {"skip": (L, S, H), "skip_bias": (S,), "hidden": (S, S), "hidden_bias": (S,)}
    shapes |= {"out": (O, S), "out_bias": (O,), "conv": shape}
    if w.cond is not None:
        shapes["cond"] = (L, G, max(1, w.cond.numel() // (L * G)))
    for name, tensor in w._asdict().items():
        if tensor is not None:
            expect(tensor.shape == shapes[name], name, shapes[name], tuple(tensor.shape))
            expect(tensor.device == w.conv.device, name, w.conv.device, tensor.device)
            expect(not tensor.is_meta, name, "values", "a meta tensor")
            expect(tensor.isfinite().all(), name, "finite values", "NaN or Inf")


def check(w, uniforms, dilations, state, prefix, base, cond, hop, classes, mixtures, temperature):
    """Raise ValueError or TypeError for arguments that do not fit `w` or each other."""
    device, dtype, rows = w.embed.device, w.embed.dtype, 2 if mixtures else classes
    check_dilations(w, dilations)
    outputs = 3 * mixtures if mixtures else classes
    expect(w.out.shape[0] == outputs, "out", f"{outputs} rows", w.out.shape[0])
    expect(w.embed.shape[0] == rows, "embed", f"{rows} rows", w.embed.shape[0])
    expect(classes >= 2, "classes", "at least 2", classes)
    expect(0 <= temperature < float("inf"), "temperature", "finite and >= 0", temperature)
    expect(isinstance(hop, int) and hop > 0, "hop", "an int, at least 1", hop)
    known = isinstance(state.step, int) and 0 <= state.step < 1 << 62
    expect(known, "step", "an int in [0, 2^62)", state.step)
    pair = (2,) if mixtures else ()
    fits = uniforms.dim() == 2 + len(pair) and uniforms.shape[2:] == pair
    expect(fits, "uniforms", "(n, T, 2)" if mixtures else "(n, T)", tuple(uniforms.shape))
    check_shapes(w, *uniforms.shape[:2], dilations, state, prefix, base, cond, hop)
    expect(uniforms.device == device, "uniforms", device, uniforms.device)
    inside = ((uniforms >= 0) & (uniforms < 1)).all()
    expect(inside, "uniforms", "values in [0, 1)", "others")
    for name, codes, lowest in (("prefix", prefix, 0), ("history", state.history, -1)):
        expect(codes.device == device, name, device, codes.device)
        expect(codes.dtype == torch.int64, name, torch.int64, codes.dtype, TypeError)
        inside = ((codes >= lowest) & (codes < classes)).all()
        expect(inside, name, f"codes in [{lowest}, {classes})", "others")
    for name, tensor in (("base", base), ("cond", cond), ("rings", state.rings)):
        expect(tensor.device == device, name, device, tensor.device)
        expect(tensor.dtype == dtype, name, dtype, tensor.dtype, TypeError)
        expect(tensor.isfinite().all(), name, "finite values", "NaN or Inf")


def check_dilations(w, dilations):
    """Raise ValueError unless there is a power of two for each layer, the first 1."""
    L = w.conv.shape[0]
    expect(len(dilations) == L, "dilations", f"{L} of them", len(dilations))
    powers = dilations[0] == 1 and all(d > 0 and d & (d - 1) == 0 for d in dilations)
    expect(powers, "dilations", "powers of two, the first 1", list(dilations))


def check_shapes(w, n, T, dilations, state, prefix, base, cond, hop):
    """Raise ValueError for shapes that do not fit."""
    L, G, R, K = w.conv.shape
    width = sum((K - 1) * d * R for d in dilations[1:])
    expect(state.rings.shape == (n, width), "rings", (n, width), tuple(state.rings.shape))
    expect(state.history.shape == (n, K), "history", (n, K), tuple(state.history.shape))
    fits = prefix.dim() == 2 and prefix.shape[0] == n and prefix.shape[1] <= T
    expect(fits, "prefix", f"({n}, at most {T})", tuple(prefix.shape))
    expect(base.shape in ((1, L, G), (n, L, G)), "base", (n, L, G), tuple(base.shape))
    if cond.shape[1:] != (0, 0):
        C = 0 if w.cond is None else w.cond.shape[-1]
        frames = -(-(state.step % hop + T) // hop)
        fits = C and cond.dim() == 3 and cond.shape[:2] == (n, C) and cond.shape[2] >= frames
        expect(fits, "cond", f"({n}, {C}, at least {frames})", tuple(cond.shape))
