"""`wavenet_sample` on Triton: a program takes 16 streams through all steps.

The vectors of a program's streams lie in global memory, where products of any size find them;
every read of what another thread of the program wrote follows a barrier. Matrices are cut into
tiles (DEPTH, columns) in the order in which a step reads them, padded with zeros like the vectors:
R and H to 64, S and O to 128. The halves of a gate alternate, tanh first, so that the two numbers
of a channel meet in one thread. Sizes are run-time values: one binary a dtype serves all models.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ._triton import at, dot, rounded
from ._tuned import constants

M = tl.constexpr(16)  # streams of a program: the fewest rows that tl.dot multiplies
UNIT = tl.constexpr(64)  # R and H are padded to a multiple
WIDE = tl.constexpr(128)  # 2H, S and O too
REAL = tl.constexpr(16)  # rows of a float32 tile
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CANDIDATES = {  # rows of a tile, and how many tiles are on their way
    "float32": [
        {"DEPTH": 16, "STAGES": 4, "num_warps": 8},
        {"DEPTH": 16, "STAGES": 6, "num_warps": 8},
        {"DEPTH": 16, "STAGES": 3, "num_warps": 8},
    ],
    "bfloat16": [
        {"DEPTH": 64, "STAGES": 4, "num_warps": 8},
        {"DEPTH": 64, "STAGES": 6, "num_warps": 8},
        {"DEPTH": 64, "STAGES": 4, "num_warps": 4},
        {"DEPTH": 32, "STAGES": 6, "num_warps": 8},
    ],
}


@triton.jit
def block(N: tl.constexpr, DEPTH: tl.constexpr):
    """Where the elements (M, N) of a vector lie: (N / DEPTH, M, DEPTH), an operand in one piece."""
    m, i = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    return i // DEPTH * (M * DEPTH) + m * DEPTH + i % DEPTH


@triton.jit
def tile(w, i, DEPTH: tl.constexpr, N: tl.constexpr):
    """Tile i of a matrix: (DEPTH, N)."""
    rows, columns = tl.arange(0, DEPTH)[:, None], tl.arange(0, N)[None, :]
    return tl.load(w + i * (DEPTH * N) + rows * N + columns)


@triton.jit
def product(out, x, w, tiles, N: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr):
    """out (M, N) + x (M, tiles DEPTH) w (tiles DEPTH, N)."""
    for i in tl.range(0, tiles, num_stages=STAGES):
        v = tl.load(x + i * M * DEPTH + block(DEPTH, DEPTH))
        out = dot(rounded(v, w.dtype.element_ty), tile(w, i, DEPTH, N), out)
    return out


@triton.jit
def slot(step, tap, dilation, K):
    """Where a ring keeps the vector that lies (K - 1 - tap) dilation before `step`."""
    return (step + tap * dilation) % ((K - 1) * dilation)


@triton.jit
def convolve(
    out,  # (M, WIDE)
    y,  # (M, RB UNIT) of step t
    ring,  # (slots, R) of a stream, `width` from one stream to the next
    w,
    t,
    dilation,
    width,
    K,
    R,
    RB,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out + the convolution of a layer at step t."""
    tiles = RB * (UNIT // DEPTH)
    for i in tl.range(0, K * tiles, num_stages=STAGES):
        tap = i // tiles
        x = tl.where(tap < K - 1, ring + at(slot(t, tap, dilation, K), R, 0), y)
        stride = tl.where(tap < K - 1, width, RB * UNIT)
        r = i % tiles * DEPTH + tl.arange(0, DEPTH)[None, :]
        x = tl.load(x + at(tl.arange(0, M)[:, None], stride, r), mask=r < R, other=0)
        out = dot(rounded(x, w.dtype.element_ty), tile(w, i, DEPTH, WIDE), out)
    return out


@triton.jit
def lookup(out, table, width, code, columns, mixtures, slope):
    """out (M, N) + the code's row; of a mixture, its value times the first row plus the second."""
    mask = (columns < width) & (code >= 0)
    row = tl.where(mixtures > 0, 0, code)
    value = tl.where(mixtures > 0, code.to(tl.float32) * slope - 1, 1)
    out += value * tl.load(table + at(row, width, columns), mask=mask, other=0)
    return out + tl.load(table + width + columns, mask=mask & (mixtures > 0), other=0)


@triton.jit
def project(to, base, stride, features, C, w, CB, gates):
    """to (M, gates) = base + cond c, of features (M, C) in one frame."""
    m = tl.arange(0, M)[:, None]
    for j in tl.range(0, gates // WIDE, disable_licm=True):
        columns = j * WIDE + tl.arange(0, WIDE)[None, :]
        out = tl.load(base + m * stride + columns)
        for i in tl.range(0, CB, num_stages=1):
            c = i * REAL + tl.arange(0, REAL)[None, :]
            x = tl.load(features + m * C + c, mask=c < C, other=0)
            out = dot(x, tile(w, j * CB + i, REAL, WIDE), out)
        tl.store(to + m * gates + columns, out)


@triton.jit
def pick(z, A, u, rate, DEPTH: tl.constexpr):
    """The number of entries of cdf(softmax(rate z)) <= u, at most the last class of positive
    probability; at rate 0 the likeliest class. z: a vector    u: (M, 1)    returns: (M, 1)"""
    top = tl.full((M, 1), -float("inf"), tl.float32)
    total = tl.zeros((M, 1), tl.float32)
    for j in tl.range(0, A, WIDE, disable_licm=True):
        c = j + tl.arange(0, WIDE)[None, :]
        v = tl.load(z + j * M + block(WIDE, DEPTH), mask=c < A, other=-float("inf"))
        top = tl.maximum(top, tl.max(v, 1, keep_dims=True))
    for j in tl.range(0, A, WIDE, disable_licm=True):
        c = j + tl.arange(0, WIDE)[None, :]
        v = tl.load(z + j * M + block(WIDE, DEPTH), mask=c < A, other=-float("inf"))
        total += tl.sum(tl.exp((v - top) * rate), 1, keep_dims=True)
    sum = tl.zeros((M, 1), tl.float32)
    below = tl.zeros((M, 1), tl.int32)
    last = tl.zeros((M, 1), tl.int32)
    best = tl.zeros((M, 1), tl.int32) + (A - 1)
    for j in tl.range(0, A, WIDE, disable_licm=True):
        c = j + tl.arange(0, WIDE)[None, :]
        v = tl.load(z + j * M + block(WIDE, DEPTH), mask=c < A, other=-float("inf"))
        p = tl.exp((v - top) * rate)
        cdf = sum + tl.cumsum(p, 1)
        sum += tl.sum(p, 1, keep_dims=True)
        below += tl.sum(((cdf <= u * total) & (c < A)).to(tl.int32), 1, keep_dims=True)
        last = tl.maximum(last, tl.max(tl.where(p > 0, c, 0), 1, keep_dims=True))
        best = tl.minimum(best, tl.min(tl.where(v == top, c, A - 1), 1, keep_dims=True))
    return tl.where(rate == 0, best, tl.minimum(below, last))


@triton.jit
def place(z, i, mixtures, quantile, temperature, classes, DEPTH: tl.constexpr):
    """The code nearest to a quantile of component i (M, 1), held at the ends."""
    z += tl.arange(0, M)[:, None] * DEPTH
    mean, log_scale = mixtures + i, 2 * mixtures + i
    x = tl.load(z + mean // DEPTH * (M * DEPTH) + mean % DEPTH)
    scale = tl.exp(tl.load(z + log_scale // DEPTH * (M * DEPTH) + log_scale % DEPTH))
    x += tl.where(temperature > 0, temperature * scale * quantile, 0)
    x = (tl.minimum(tl.maximum(x, -1), 1) + 1) * ((classes - 1) / 2)
    code = tl.floor(x)
    beyond = x - code
    code = code.to(tl.int32)
    return code + ((beyond > 0.5) | ((beyond == 0.5) & (code % 2 == 1))).to(tl.int32)


NUMBERS = ["T", "P", "start", "phase", "stride", "C", "frames", "hop", "L", "K", "R", "RB", "HB"]
NUMBERS += ["SB", "OB", "CB", "O", "classes", "mixtures", "wanted", "slope", "temperature", "rate"]


@triton.jit(do_not_specialize=NUMBERS)
def sample_kernel(
    words,  # conv of layers 1 ... L - 1, res, skip, hidden, out, in tiles
    cond,  # float32, in tiles
    table,  # (K, A, 2H)
    embed,  # (A, R)
    biases,  # res (L - 1, R), skip, hidden, out
    dilations,  # (L,)
    base,  # (N, L 2H), or (1, L 2H)
    features,  # (frames, N, C)
    uniforms,  # (T, N)
    quantiles,  # (T, N) of a mixture
    codes,  # (K + T, N): the last K, P given ones, and room for the rest
    rings,  # (N, width)
    logits,  # (T, N, O) where wanted
    failed,  # (N,)
    scratch,
    T,
    P,
    start,  # the step at t = 0 modulo the deepest ring
    phase,  # the step at t = 0 modulo hop
    stride,  # from one stream's base to the next, or 0
    C,
    frames,
    hop,
    L,
    K,
    R,
    RB,  # RB, HB, SB, OB, CB: what R, H, S, O, C are padded to, in UNIT, UNIT, WIDE, WIDE, REAL
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
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    first = tl.program_id(0) * M
    N = tl.num_programs(0) * M
    m = tl.arange(0, M)[:, None]
    stream = first + m
    padded, H, S = RB * UNIT, HB * UNIT, SB * WIDE
    gates, states = L * 2 * H, L * H
    conv_size, res_size = at(2 * H, K * padded, 0), at(padded, H, 0)
    res = words + (L - 1) * conv_size
    skip = res + (L - 1) * res_size
    skip_bias = biases + (L - 1) * padded
    width = tl.zeros((), tl.int64)
    for l in range(1, L):
        width += at((K - 1) * tl.load(dilations + l), R, 0)
    # The vectors of this program: y twice, h of all layers, two sums and the outputs, and gates at
    # the frames around t.
    y = scratch + at(first, 2 * padded + states + 2 * S + OB * WIDE + 2 * gates, 0)
    h = y + 2 * M * padded
    sums = h + M * states
    between = sums + M * (2 * S + OB * WIDE)
    base += at(first, stride, 0)
    broken = tl.full((M, 1), -1, tl.int32)

    for t in tl.range(0, T, disable_licm=True):
        f = (phase + t) // hop
        fraction = ((phase + t) % hop).to(tl.float32) / hop
        if (C > 0) & ((t == 0) | ((phase + t) % hop == 0)):
            for i in tl.range(f + (t > 0), f + 2, disable_licm=True):
                c = features + at(at(tl.minimum(i, frames - 1), N, first), C, 0)
                project(between + i % 2 * M * gates, base, stride, c, C, cond, CB, gates)
        before = tl.where(C > 0, between + f % 2 * M * gates, base)
        after = tl.where(C > 0, between + (f + 1) % 2 * M * gates, base)
        rows = tl.where(C > 0, gates, stride)
        code = tl.load(codes + at(t + K - 1, N, stream))
        for j in tl.range(0, RB, disable_licm=True):
            r = j * UNIT + tl.arange(0, UNIT)[None, :]
            vector = lookup(tl.zeros((M, UNIT), tl.float32), embed, R, code, r, mixtures, slope)
            tl.store(y + m * padded + r, vector)
        tl.debug_barrier()

        ring = rings + at(first, 1, 0) * width
        for l in tl.range(0, L, disable_licm=True):
            dilation = tl.load(dilations + l)
            now, next = y + l % 2 * M * padded, y + (l + 1) % 2 * M * padded
            for j in tl.range(0, HB, disable_licm=True):
                c = j * WIDE + tl.arange(0, WIDE)[None, :]
                a = tl.load(before + l * 2 * H + m * rows + c)
                a += fraction * (tl.load(after + l * 2 * H + m * rows + c) - a)
                if l == 0:
                    for k in tl.range(0, K, disable_licm=True):
                        code = tl.load(codes + at(t + k, N, stream))
                        tap = table + at(k, tl.where(mixtures > 0, 2, classes), 0) * 2 * H
                        a = lookup(a, tap, 2 * H, code, c, mixtures, slope)
                else:
                    w = words + (l - 1) * conv_size + at(j, K * padded * WIDE, 0)
                    a = convolve(
                        a, now, ring, w, start + t, dilation, width, K, R, RB, DEPTH, STAGES
                    )
                a, g = tl.split(tl.reshape(a, (M, UNIT, 2)))
                a = (2 * tl.sigmoid(2 * a) - 1) * tl.sigmoid(g)
                tl.store(h + (l * H + j * UNIT) * M + block(UNIT, DEPTH), a)
            tl.debug_barrier()

            here = slot(start + t, 0, dilation, K)
            for j in tl.range(0, RB, disable_licm=True):
                r = j * UNIT + tl.arange(0, UNIT)[None, :]
                vector = tl.load(now + m * padded + r)
                tl.store(ring + at(m, width, at(here, R, r)), vector, mask=(r < R) & (l > 0))
                if l < L - 1:
                    vector += tl.load(biases + l * padded + r)
                    w = res + l * res_size + at(j, H * UNIT, 0)
                    tiles = HB * (UNIT // DEPTH)
                    vector = product(vector, h + l * H * M, w, tiles, UNIT, DEPTH, STAGES)
                    tl.store(next + m * padded + r, vector)
            ring += tl.where(l > 0, at((K - 1) * dilation, R, 0), 0)
            tl.debug_barrier()

        if (t >= P) | (wanted > 0):
            zero = tl.zeros((M, 1), tl.float32)
            w = skip
            for s in tl.range(0, 3, disable_licm=True):  # skip, hidden, out
                x = tl.where(s == 0, h, sums + (s - 1) * M * S)
                depth = tl.where(s == 0, states, S)
                for j in tl.range(0, tl.where(s < 2, SB, OB), disable_licm=True):
                    c = j * WIDE + tl.arange(0, WIDE)[None, :]
                    v = tl.zeros((M, WIDE), tl.float32) + tl.load(skip_bias + s * S + c)
                    v = product(v, x, w, depth // DEPTH, WIDE, DEPTH, STAGES)
                    v = tl.where((s < 2) & (v < 0), 0, v)  # a NaN stays one
                    tl.store(sums + (s * S + j * WIDE) * M + block(WIDE, DEPTH), v)
                    if s == 2:
                        zero += tl.sum(v - v, 1, keep_dims=True)
                        to = logits + at(at(t, N, stream), O, c)
                        tl.store(to, v, mask=(c < O) & (wanted > 0))
                    w += at(depth, WIDE, 0)
                tl.debug_barrier()
            broken = tl.where((broken < 0) & (zero != 0), t, broken)
        if t >= P:
            z = sums + 2 * M * S
            u = tl.load(uniforms + at(t, N, stream))
            code = pick(z, tl.where(mixtures > 0, mixtures, O), u, rate, DEPTH)
            if mixtures > 0:
                q = tl.load(quantiles + at(t, N, stream))
                code = place(z, code, mixtures, q, temperature, classes, DEPTH)
            tl.store(codes + at(t + K, N, stream), code)
        tl.debug_barrier()
    tl.store(failed + stream, broken)


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
    """`wavenet_sample_ref`, but of weights that `pack` laid out.

    Raises ValueError for sizes that 32 bits cannot count.
    """
    w = packed.weights
    n, T = uniforms.shape[:2]
    (L, G, R, K), S, O = w.conv.shape, w.hidden.shape[0], w.out.shape[0]
    RB, HB = blocks(R, UNIT), blocks(G // 2, UNIT)
    SB, OB = blocks(S, WIDE), blocks(O, WIDE)
    C, N = cond.shape[1], blocks(n, M) * M.value
    check_sizes(N, T, K, dilations, L, RB * UNIT.value, HB * UNIT.value, SB, OB, C, hop)
    codes = torch.cat([history, prefix], 1).t().int()  # (K + P, n)
    codes = F.pad(codes, (0, N - n, 0, T - prefix.shape[1]), value=-1)
    rings = pad(rings, 0, M).clone()
    u, quantiles = uniforms.float(), uniforms.new_empty(0, dtype=torch.float32)
    if mixtures:
        # logit(0) is held at a finite quantile: 0 * inf is not a sample
        u, quantiles = u[..., 0], torch.logit(uniforms[..., 1]).clamp(-40, 40).float().t()
    base = gates(base).flatten(1)
    stride = base.shape[1] if len(base) > 1 else 0
    values = base.new_empty((T, N, O) if logits else 0)
    failed = codes.new_full((N,), -1)
    floats = (2 * RB + 5 * L * HB) * UNIT.value + (2 * SB + OB) * WIDE.value
    if n and T:
        with torch.cuda.device_of(rings):
            sample_kernel[(N // M.value,)](
                *(packed.words, packed.cond, packed.table, w.embed, packed.biases),
                torch.tensor(dilations, dtype=torch.int32, device=rings.device),
                pad(base, 0, M) if stride else base,
                pad(cond.permute(2, 0, 1), 1, M).contiguous(),
                pad(u.t(), 1, M).contiguous(),
                pad(quantiles, 1, M).contiguous() if mixtures else quantiles,
                *(codes, rings, values, failed, base.new_empty(N * floats)),
                *(T, prefix.shape[1], step % ((K - 1) * max(dilations)), step % hop, stride),
                *(C, cond.shape[2], hop, L, K, R, RB, HB, SB, OB, blocks(C, REAL), O),
                *(classes, mixtures, int(logits), 2 / (classes - 1), temperature),
                1 / max(temperature, 1e-30) if temperature else 0.0,
                **choose(packed.dtype, rings.device),
                num_stages=1,
            )
    codes = codes.t()[:n].long()  # (n, K + T)
    failed = torch.where(failed[:n] < 0, -1, failed[:n].long() + step)
    if logits:
        values = values.transpose(0, 1)[:n].contiguous()
    return codes[:, K:].contiguous(), rings[:n], codes[:, -K:].contiguous(), values, failed


def choose(dtype, device):
    """The constants for a dtype and a device; `pack` lays tiles out by them."""
    return constants("wavenet_sample", CANDIDATES, dtype, device)


def choices(dtype, device):
    """All that `choose` may return."""
    return [choose(dtype, device)]


def check_sizes(N, T, K, dilations, L=1, R=1, H=1, SB=1, OB=1, C=0, hop=1):
    """Raise ValueError for what 32 bits cannot count. R and H are padded."""
    deepest, rows, wide = (K - 1) * max(dilations), M.value, WIDE.value
    most = {
        "streams": N,
        "steps": T + K + 2 * deepest,
        "steps and frames": T + 2 * hop,
        "numbers of a program": rows * (2 * R + 5 * L * H + (2 * SB + OB) * wide),
        "weights of a product": wide * max(K * R, L * H, SB * wide),
        "weights of features": (C + REAL.value) * L * 2 * H,
        "features of a program": rows * C,
    }
    for name, number in most.items():
        if number >= 2**31:
            raise ValueError(f"wavenet_sample: expected under 2^31 {name} on a GPU, got {number}")


def blocks(size, unit):
    return -(-size // unit.value)


def pad(x, dim, unit):
    """`x` with zeros up to a multiple of `unit`."""
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim % x.dim()) + (0, -x.shape[dim] % unit.value))


def gates(x):
    """(..., 2H) with its two halves padded and alternating."""
    return pad(x.unflatten(-1, (2, -1)), -1, UNIT).transpose(-1, -2).flatten(-2)


def tiles(matrix, depth, width):
    """A matrix (..., columns, rows) in tiles (depth, width), those of the same rows together."""
    return matrix.unflatten(-1, (-1, width)).unflatten(-3, (-1, depth)).movedim(-2, -4).flatten()


def pack(weights, dtype):
    """`wavenet_sample.pack` for a GPU: a Packed on the device of checked `weights`.

    Raises ValueError for a dtype that has no kernel.
    """
    from .wavenet_sample import Packed

    if dtype not in DTYPES:
        raise ValueError(f"wavenet_sample: dtype on a GPU: expected {list(DTYPES)}, got {dtype!r}")
    device = weights.conv.device
    w = type(weights)(*(v if v is None else v.detach().to("cpu", torch.float32) for v in weights))
    depth = choose(dtype, device)["DEPTH"]
    conv = gates(pad(w.conv[1:].permute(0, 3, 2, 1), -2, UNIT)).flatten(1, 2)  # (L - 1, K R, 2H)
    res = pad(pad(w.res.transpose(1, 2), -1, UNIT), -2, UNIT)
    skip = pad(pad(w.skip.transpose(1, 2), -1, WIDE), -2, UNIT).flatten(0, 1)  # (L H, S)
    hidden, out = (pad(pad(m.t(), -1, WIDE), -2, WIDE) for m in (w.hidden, w.out))
    words = [tiles(conv, depth, WIDE.value), tiles(res, depth, UNIT.value)]
    words += [tiles(m, depth, WIDE.value) for m in (skip, hidden, out)]
    cond = w.embed.new_empty(0)
    if w.cond is not None:
        cond = pad(gates(w.cond.permute(2, 0, 1)).flatten(1), 0, REAL)  # (C, L 2H)
        cond = tiles(cond, REAL.value, WIDE.value)
    biases = [pad(w.res_bias, -1, UNIT).flatten()]
    biases += [pad(b, -1, WIDE) for b in (w.skip_bias, w.hidden_bias, w.out_bias)]
    return Packed(
        weights=type(w)(*(v if v is None else v.to(device).contiguous() for v in w)),
        words=torch.cat(words).to(device, DTYPES[dtype]),
        scales=w.embed.new_empty(0, device=device),
        offsets=torch.empty(0, dtype=torch.int32, device=device),
        table=gates(torch.einsum("grk,ar->kag", w.conv[0], w.embed)).contiguous().to(device),
        biases=torch.cat(biases).to(device),
        cond=cond.to(device),
        dtype=dtype,
    )
