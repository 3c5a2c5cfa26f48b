"""`wavenet_sample` on Triton: a program takes 16 streams through all steps.

The vectors of its streams lie in global memory, where products of any size can read them; every
read of what another thread of the program wrote follows a barrier. Matrices are cut into tiles
(DEPTH, columns), in the order in which a step reads them, padded with zeros like the vectors:
R and H to 64, S and O to 128. A gate's two halves alternate, tanh first, so that the two numbers
of a channel meet in one thread. Sizes are run-time values: one binary a dtype serves all models.
"""

import os

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

M = tl.constexpr(16)  # streams of a program: the fewest rows that tl.dot multiplies
UNIT = tl.constexpr(64)  # R and H are padded to a multiple
WIDE = tl.constexpr(128)  # 2H, S and O too
REAL_DEPTH = tl.constexpr(16)  # rows of a float32 tile
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
WARPS = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONSTANTS = {  # rows of a tile, and how many tiles are in flight
    "float32": {"DEPTH": REAL_DEPTH.value, "STAGES": 4},
    "bfloat16": {"DEPTH": 64, "STAGES": 4},
}


@triton.jit
def at(row, width, column):
    """Where an element lies in a matrix, in 64 bits."""
    return tl.cast(row, tl.int64) * width + column


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def dot(x, w, out):
    """out (M, N) + x (M, DEPTH) w (DEPTH, N), in the dtype of w, summed in float32."""
    x = x.to(w.dtype)
    if INTERPRET:  # the interpreter would multiply the bits of bfloat16
        x, w = x.to(tl.float32), w.to(tl.float32)
    return tl.dot(x, w, out, input_precision="ieee")


@triton.jit
def tile(w, i, DEPTH: tl.constexpr, N: tl.constexpr):
    """Tile i of a matrix: (DEPTH, N)."""
    rows, columns = tl.arange(0, DEPTH)[:, None], tl.arange(0, N)[None, :]
    return tl.load(w + i * (DEPTH * N) + rows * N + columns)


@triton.jit
def product(out, x, w, tiles, N: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr):
    """out (M, N) + x (M, tiles DEPTH) w (tiles DEPTH, N). x: pointers to rows (M, 1)"""
    for i in tl.range(0, tiles, num_stages=STAGES):
        columns = i * DEPTH + tl.arange(0, DEPTH)[None, :]
        out = dot(tl.load(x + columns), tile(w, i, DEPTH, N), out)
    return out


@triton.jit
def convolve(
    out,  # (M, WIDE)
    y,  # pointers to rows (M, 1) of the vector of step t
    ring,  # pointers to rows (M, 1) of the layer's slots
    live,  # (M, 1)
    w,
    t,
    dilation,
    K,
    R,
    tiles,  # of a tap
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out + the convolution of one layer at step t."""
    for i in tl.range(0, K * tiles, num_stages=STAGES):
        tap = i // tiles
        columns = i % tiles * DEPTH + tl.arange(0, DEPTH)[None, :]
        slot = (t + tap * dilation) % ((K - 1) * dilation)  # t - (K - 1 - tap) dilation
        x = tl.where(tap < K - 1, ring + at(slot, R, 0), y)
        x = tl.load(x + columns, mask=live & (columns < R), other=0)
        out = dot(x, tile(w, i, DEPTH, WIDE), out)
    return out


@triton.jit
def lookup(out, table, width, code, columns, mask, mixtures, slope):
    """out (M, N) + the code's row; of a mixture, its value times the first row plus the second."""
    mask = mask & (code >= 0)
    row = tl.where(mixtures > 0, 0, code)
    value = tl.where(mixtures > 0, code.to(tl.float32) * slope - 1, 1)
    out += value * tl.load(table + at(row, width, columns), mask=mask, other=0)
    return out + tl.load(table + width + columns, mask=mask & (mixtures > 0), other=0)


@triton.jit
def earlier(codes, history, stream, live, t, T, K):
    """The codes (M, 1) of step t, which may lie before the first one of this call; -1: none."""
    place = tl.where(t >= 0, codes + at(stream, T, t), history + at(stream, K, K + t))
    return tl.load(place, mask=live, other=-1)


@triton.jit
def project(to, base, features, live, f, C, F, w, tiles, width, DEPTH: tl.constexpr):
    """to (M, width) = base + cond c at frame f. to, base, features: pointers to rows (M, 1)"""
    for j in range(0, width // WIDE):
        columns = j * WIDE + tl.arange(0, WIDE)[None, :]
        out = tl.load(base + columns)
        for i in tl.range(0, tiles, num_stages=1):
            c = i * DEPTH + tl.arange(0, DEPTH)[None, :]
            x = tl.load(features + at(c, F, f), mask=live & (c < C), other=0)
            out = dot(x, tile(w, j * tiles + i, DEPTH, WIDE), out)
        tl.store(to + columns, out)


@triton.jit
def choose(z, A, u, rate):
    """The number of entries of cdf(softmax(z rate)) <= u, at most the last class of positive
    probability; at rate 0 the likeliest class. z: pointers to rows (M, 1)    returns: (M, 1)"""
    top = tl.full((M, 1), -float("inf"), tl.float32)
    total = tl.zeros((M, 1), tl.float32)
    for j in range(0, A, WIDE):
        c = j + tl.arange(0, WIDE)[None, :]
        v = tl.load(z + c, mask=c < A, other=-float("inf"))
        top = tl.maximum(top, tl.max(v, 1, keep_dims=True))
    for j in range(0, A, WIDE):
        c = j + tl.arange(0, WIDE)[None, :]
        v = tl.load(z + c, mask=c < A, other=-float("inf"))
        total += tl.sum(tl.exp((v - top) * rate), 1, keep_dims=True)
    below = tl.zeros((M, 1), tl.int32)
    last = tl.zeros((M, 1), tl.int32)
    best = tl.zeros((M, 1), tl.int32) + (A - 1)
    sum = tl.zeros((M, 1), tl.float32)
    for j in range(0, A, WIDE):
        c = j + tl.arange(0, WIDE)[None, :]
        v = tl.load(z + c, mask=c < A, other=-float("inf"))
        p = tl.exp((v - top) * rate)
        cdf = sum + tl.cumsum(p, 1)
        sum += tl.sum(p, 1, keep_dims=True)
        below += tl.sum(((cdf <= u * total) & (c < A)).to(tl.int32), 1, keep_dims=True)
        last = tl.maximum(last, tl.max(tl.where((p > 0) & (c < A), c, 0), 1, keep_dims=True))
        best = tl.minimum(best, tl.min(tl.where(v == top, c, A - 1), 1, keep_dims=True))
    return tl.where(rate == 0, best, tl.minimum(below, last))


@triton.jit
def place(z, i, mixtures, quantile, temperature, classes):
    """The code nearest to a quantile of component i (M, 1), held at the ends."""
    x = tl.load(z + mixtures + i)
    scale = temperature * tl.exp(tl.load(z + 2 * mixtures + i))
    x += tl.where(temperature > 0, scale * quantile, 0)
    x = (tl.minimum(tl.maximum(x, -1), 1) + 1) * ((classes - 1) / 2)
    code = tl.floor(x)
    odd = code.to(tl.int64) % 2 == 1
    return code.to(tl.int64) + ((x - code > 0.5) | ((x - code == 0.5) & odd)).to(tl.int64)


SIZES = "n T start phase P bases C F hop L K R RB HB SB OB CB O classes mixtures wanted".split()


@triton.jit(do_not_specialize=[*SIZES, "slope", "temperature", "rate"])
def sample_kernel(
    words,  # conv of layers 1 ... L - 1, res, skip, hidden, out, in tiles
    cond,  # in float32 tiles
    table,  # (K, A, 2H)
    embed,  # (A, R), not padded
    biases,  # res (L - 1, R), skip, hidden, out
    dilations,  # (L,)
    base,  # (bases, L 2H)
    features,  # (n, C, F)
    uniforms,  # (n, T)
    quantiles,  # (n, T) of a mixture
    prefix,  # (n, P)
    history,  # (n, K) before this call
    rings,  # (n, sum of (K - 1) d_l R), not padded
    codes,  # (n, T)
    logits,  # (n, T, O) where wanted
    failed,  # (n,)
    scratch,
    n,
    T,
    start,  # the step at t = 0, modulo every ring's depth
    phase,  # the step at t = 0, modulo hop
    P,
    bases,
    C,
    F,
    hop,
    L,
    K,
    R,
    RB,  # RB, HB, SB, OB, CB: what R, H, S, O, C are padded to, in UNIT, WIDE, REAL_DEPTH
    HB,
    SB,
    OB,
    CB,
    O,
    classes,
    mixtures,
    wanted,
    slope,  # 2 / (classes - 1)
    temperature,
    rate,  # 1 / temperature, or 0
    REAL_DEPTH: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    m = tl.arange(0, M)[:, None]
    stream = tl.program_id(0).to(tl.int64) * M + m
    live = stream < n
    owner = tl.minimum(stream, n - 1)
    padded_R, H, S, outs = RB * UNIT, HB * UNIT, SB * WIDE, OB * WIDE
    gates, states = L * 2 * H, L * H
    # Where things lie: matrices, biases, and the vectors of this program.
    conv_size, res_size = at(2 * H, K * padded_R, 0), at(padded_R, H, 0)
    res = words + (L - 1) * conv_size
    skip = res + (L - 1) * res_size
    hidden = skip + at(S, states, 0)
    out = hidden + at(S, S, 0)
    skip_bias = biases + at(L - 1, padded_R, 0)
    hidden_bias, out_bias = skip_bias + S, skip_bias + 2 * S
    width = tl.zeros((), tl.int64)
    for l in range(1, L):
        width += at((K - 1) * tl.load(dilations + l), R, 0)
    memory = M * (2 * padded_R + states + 2 * S + outs + 2 * gates)
    y = scratch + at(tl.program_id(0), memory, 0)
    h = y + 2 * M * padded_R
    sums = h + M * states
    z = sums + 2 * M * S + m * outs
    frames = sums + 2 * M * S + M * outs + m * gates
    base += at(tl.where(bases > 1, owner, 0), gates, 0)
    features += at(owner, C, 0) * F
    broken = tl.full((M, 1), -1, tl.int64)

    for t in range(0, T):
        f = (phase + t) // hop
        fraction = ((phase + t) % hop).to(tl.float32) / hop
        if (C > 0) & ((t == 0) | ((phase + t) % hop == 0)):
            for i in range(f + (t > 0), f + 2):
                project(
                    frames + i % 2 * M * gates, base, features, live, tl.minimum(i, F - 1), C, F,
                    cond, CB, gates, REAL_DEPTH,
                )  # fmt: skip
        before = tl.where(C > 0, frames + f % 2 * M * gates, base)
        after = tl.where(C > 0, frames + (f + 1) % 2 * M * gates, base)
        code = earlier(codes, history, stream, live, t - 1, T, K)
        for j in range(0, RB):
            r = j * UNIT + tl.arange(0, UNIT)[None, :]
            vector = tl.zeros((M, UNIT), tl.float32)
            vector = lookup(vector, embed, R, code, r, r < R, mixtures, slope)
            tl.store(y + m * padded_R + r, vector)
        tl.debug_barrier()

        ring = rings + at(owner, 1, 0) * width
        for l in range(0, L):
            dilation = tl.load(dilations + l)
            now = y + l % 2 * M * padded_R + m * padded_R
            next = y + (l + 1) % 2 * M * padded_R + m * padded_R
            for j in range(0, HB):
                c = j * WIDE + tl.arange(0, WIDE)[None, :]
                a = tl.load(before + l * 2 * H + c)
                a += fraction * (tl.load(after + l * 2 * H + c) - a)
                if l == 0:
                    for k in range(0, K):
                        code = earlier(codes, history, stream, live, t - K + k, T, K)
                        rows = tl.where(mixtures > 0, 2, classes)
                        tap = table + at(k, rows, 0) * 2 * H
                        a = lookup(a, tap, 2 * H, code, c, c >= 0, mixtures, slope)
                else:
                    w = words + (l - 1) * conv_size + at(j, K * padded_R * WIDE, 0)
                    a = convolve(
                        a, now, ring, live, w, start + t, dilation, K, R,
                        RB * (UNIT // DEPTH), DEPTH, STAGES,
                    )  # fmt: skip
                a, g = tl.split(tl.reshape(a, (M, UNIT, 2)))
                i = l * H + j * UNIT + tl.arange(0, UNIT)[None, :]
                tl.store(h + m * states + i, tanh(a) * tl.sigmoid(g))
            tl.debug_barrier()

            slot = (start + t) % ((K - 1) * dilation)
            for j in range(0, RB):
                r = j * UNIT + tl.arange(0, UNIT)[None, :]
                vector = tl.load(now + r)
                tl.store(ring + at(slot, R, r), vector, mask=live & (r < R) & (l > 0))
                if l < L - 1:
                    vector += tl.load(biases + at(l, padded_R, r))
                    w = res + l * res_size + at(j, H * UNIT, 0)
                    x = h + m * states + l * H
                    vector = product(vector, x, w, HB * (UNIT // DEPTH), UNIT, DEPTH, STAGES)
                    tl.store(next + r, vector)
            ring += tl.where(l > 0, at((K - 1) * dilation, R, 0), 0)
            tl.debug_barrier()

        code = tl.load(prefix + at(stream, P, t), mask=live & (t < P), other=0)
        if (t >= P) | (wanted > 0):
            for j in range(0, SB):
                c = j * WIDE + tl.arange(0, WIDE)[None, :]
                s = tl.zeros((M, WIDE), tl.float32) + tl.load(skip_bias + c)
                w = skip + at(j, states * WIDE, 0)
                s = product(s, h + m * states, w, states // DEPTH, WIDE, DEPTH, STAGES)
                tl.store(sums + m * S + c, tl.where(s < 0, 0, s))
            tl.debug_barrier()
            for j in range(0, SB):
                c = j * WIDE + tl.arange(0, WIDE)[None, :]
                s = tl.zeros((M, WIDE), tl.float32) + tl.load(hidden_bias + c)
                w = hidden + at(j, S * WIDE, 0)
                s = product(s, sums + m * S, w, S // DEPTH, WIDE, DEPTH, STAGES)
                tl.store(sums + M * S + m * S + c, tl.where(s < 0, 0, s))
            tl.debug_barrier()
            zero = tl.zeros((M, 1), tl.float32)
            for j in range(0, OB):
                c = j * WIDE + tl.arange(0, WIDE)[None, :]
                s = tl.zeros((M, WIDE), tl.float32) + tl.load(out_bias + c)
                w = out + at(j, S * WIDE, 0)
                s = product(s, sums + M * S + m * S, w, S // DEPTH, WIDE, DEPTH, STAGES)
                zero += tl.sum(s - s, 1, keep_dims=True)
                tl.store(z + c, s)
                mask = live & (c < O) & (wanted > 0)
                tl.store(logits + at(at(stream, T, t), O, c), s, mask=mask)
            broken = tl.where((broken < 0) & (zero != 0), t, broken)
            tl.debug_barrier()
            if t >= P:
                u = tl.load(uniforms + at(stream, T, t), mask=live, other=0)
                code = choose(z, tl.where(mixtures > 0, mixtures, O), u, rate).to(tl.int64)
                if mixtures > 0:
                    q = tl.load(quantiles + at(stream, T, t), mask=live, other=0)
                    code = place(z, code, mixtures, q, temperature, classes)
        tl.store(codes + at(stream, T, t), code, mask=live)
        tl.debug_barrier()
    tl.store(failed + stream, broken, mask=live)


def wavenet_sample_triton(
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
    """`wavenet_sample_ref`, of weights that `pack` laid out."""
    w = packed.weights
    n, T = uniforms.shape[:2]
    (L, G, R, K), O = w.conv.shape, w.out.shape[0]
    RB, HB = -(-R // UNIT.value), -(-G // (2 * UNIT.value))
    SB, OB = (-(-size // WIDE.value) for size in (w.out.shape[1], O))
    C, frames = cond.shape[1:]
    CB = -(-C // REAL_DEPTH.value)
    u, quantiles = uniforms, uniforms[:, :0]
    if mixtures:
        # logit(0) is held at a finite quantile: 0 * inf is not a sample
        u, quantiles = uniforms[..., 0], torch.logit(uniforms[..., 1]).clamp(-40, 40)
    codes, rings, history = prefix.new_empty(n, T), rings.clone(), history.contiguous()
    values = w.embed.new_empty((n, T, O) if logits else (0,))
    failed = prefix.new_full((n,), -1)
    groups = -(-n // M.value)
    size = 2 * RB * UNIT.value + 5 * L * HB * UNIT.value + (2 * SB + OB) * WIDE.value
    scratch = w.embed.new_empty(groups * M.value * size)
    depth = (K - 1) * max(dilations)
    with torch.cuda.device_of(codes):
        if n and T:
            sample_kernel[(groups,)](
                packed.words,
                packed.cond,
                packed.table,
                w.embed,
                packed.biases,
                torch.tensor(dilations, dtype=torch.int32, device=codes.device),
                gates(base).contiguous(),
                cond.contiguous(),
                u.float().contiguous(),
                quantiles.float().contiguous(),
                prefix.contiguous(),
                history,
                rings,
                codes,
                values,
                failed,
                scratch,
                *(n, T, step % depth, step % hop, prefix.shape[1], base.shape[0], C, frames, hop),
                *(L, K, R, RB, HB, SB, OB, CB, O, classes, mixtures, int(logits)),
                *(2 / (classes - 1), temperature, 1 / max(temperature, 1e-30) * (temperature > 0)),
                REAL_DEPTH=REAL_DEPTH,
                **CONSTANTS[packed.dtype],
                num_warps=WARPS,
                num_stages=1,
            )
    failed = torch.where(failed < 0, -1, failed + step)
    return codes, rings, torch.cat([history, codes], 1)[:, -K:], values, failed


def pad(x, dim, unit):
    """Zeros after `x` up to a multiple of `unit`."""
    return F.pad(x, (0, 0) * (-1 - dim) + (0, -x.shape[dim] % unit))


def gates(x):
    """(..., 2H) with the two halves padded and alternating."""
    return pad(x.unflatten(-1, (2, -1)), -1, UNIT.value).transpose(-1, -2).flatten(-2)


def tiles(matrix, depth, width):
    """A matrix (..., columns, rows) in tiles, the columns of a product innermost."""
    x = matrix.unflatten(-1, (-1, width)).unflatten(-3, (-1, depth))  # D / depth, depth, N, width
    return x.movedim(-2, -4).flatten()


def pack(weights, dtype):
    """The twin of `wavenet_sample.pack`, but for checks: a Packed on the device of `weights`."""
    from .wavenet_sample import Packed

    if dtype not in DTYPES:
        raise ValueError(f"wavenet_sample: dtype expected one of {list(DTYPES)}, got {dtype!r}")
    device = weights.conv.device
    w = type(weights)(*(v if v is None else v.detach().to("cpu", torch.float32) for v in weights))
    unit, wide, depth = UNIT.value, WIDE.value, CONSTANTS[dtype]["DEPTH"]
    conv = gates(pad(w.conv[1:].permute(0, 3, 2, 1), -2, unit)).flatten(1, 2)  # (L - 1, K R, 2H)
    res = pad(pad(w.res.transpose(1, 2), -1, unit), -2, unit)
    skip = pad(pad(w.skip.transpose(1, 2), -1, wide), -2, unit).flatten(0, 1)  # (L H, S)
    hidden, out = (pad(pad(m.T, -1, wide), -2, wide) for m in (w.hidden, w.out))
    words = [tiles(conv, depth, wide), tiles(res, depth, unit)]
    words += [tiles(m, depth, wide) for m in (skip, hidden, out)]
    cond = w.embed.new_empty(0)
    if w.cond is not None:
        cond = pad(gates(w.cond.transpose(1, 2)).transpose(0, 1).flatten(1), -2, REAL_DEPTH.value)
        cond = tiles(cond, REAL_DEPTH.value, wide)
    biases = [pad(w.res_bias, -1, unit).flatten()]
    biases += [pad(b, -1, wide) for b in (w.skip_bias, w.hidden_bias, w.out_bias)]
    return Packed(
        weights=type(w)(*(v if v is None else v.to(device).contiguous() for v in w)),
        words=torch.cat(words).to(device, DTYPES[dtype]),
        scales=w.embed.new_empty(0, device=device),
        offsets=torch.empty(0, dtype=torch.int32, device=device),
        table=gates(torch.einsum("grk,ar->kag", w.conv[0], w.embed)).to(device).contiguous(),
        biases=torch.cat(biases).to(device),
        cond=cond.to(device),
        dtype=dtype,
    )
