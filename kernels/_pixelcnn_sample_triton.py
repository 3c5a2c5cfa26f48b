"""`pixelcnn_sample` on Triton: a program takes 16 images through the whole raster.

What a program works in lies in global memory; every read of what another thread of the program
wrote follows a barrier. Matrices are cut into tiles (DEPTH, columns), padded with zeros like the
vectors: the image's channels to DEPTH, each color's Q and S / C to UNIT, its A to WIDE. The halves
of a gate alternate, tanh first, so that the two numbers of a channel meet in one thread. Sizes are
run-time values: one binary serves all models.
"""

import torch
import triton
import triton.language as tl

from ._triton import at, dot
from ._tuned import constants
from ._wavenet_sample_triton import M, blocks, pad, pick, tile, tiles

DEPTH = tl.constexpr(16)
UNIT = tl.constexpr(32)
WIDE = tl.constexpr(64)
SPAN = tl.constexpr(2)  # pixels of a row whose vertical stack is computed at once
CANDIDATES = {"float32": [{"num_warps": 8}]}


@triton.jit
def product(out, x, mask, w, steps, N: tl.constexpr):
    """out (rows, N) + x w, of vectors that begin at the pointers x (rows, 1), zero off the mask."""
    for i in tl.range(0, steps, num_stages=1, disable_licm=True):
        v = tl.load(x + i * DEPTH + tl.arange(0, DEPTH)[None, :], mask=mask, other=0)
        out = dot(v, tile(w, i, DEPTH, N), out)
    return out


@triton.jit
def gate(a, rows: tl.constexpr):
    """tanh times sigmoid of alternating numbers: (rows, WIDE) -> (rows, UNIT)."""
    f, g = tl.split(tl.reshape(a, (rows, UNIT, 2)))
    return (2 * tl.sigmoid(2 * f) - 1) * tl.sigmoid(g)


NUMBERS = ["H", "W", "C", "L", "P", "Q", "S", "AB", "A", "stride", "wanted", "slope"]


@triton.jit(do_not_specialize=NUMBERS)
def sample_kernel(
    words,
    biases,  # res (L, P), hidden (C S,), out (C AB WIDE,)
    bases,  # (N, L 4P), or (1, L 4P): what the gates of v, then of h, start from
    places,  # (L, 7): of v, link, gates and res in words; of v's and h's lines; k // 2
    heads,  # places of hidden and out in words, of base and the rest in scratch; its size
    uniforms,  # (H W C, N)
    rates,  # (H W C, N): 1 / temperature, or 0
    given,  # (H W C, N)
    codes,  # (H W C, N)
    logits,  # (H W C, N, A) where wanted
    failed,  # (N,)
    scratch,
    H,
    W,
    C,
    L,
    P,  # C Q
    Q,
    S,  # of a color
    AB,
    A,
    stride,  # from one image's base to the next, or 0
    wanted,
    slope,  # 2 / (A - 1)
):
    first = tl.program_id(0) * M
    N = tl.num_programs(0) * M
    m = tl.arange(0, M)[:, None]
    ROWS: tl.constexpr = M * SPAN
    many, ahead = tl.arange(0, ROWS)[:, None] % M, tl.arange(0, ROWS)[:, None] // M
    narrow, wide = tl.arange(0, UNIT)[None, :], tl.arange(0, WIDE)[None, :]
    scratch += tl.program_id(0) * tl.load(heads + 4)
    base = scratch + tl.load(heads + 2)  # (L, W, M, 2P)
    vertical = base + at(L * W, M * 2 * P, 0)  # (W, M, 2P)
    gated = vertical + at(W, M * 2 * P, 0)  # (L, M, P)
    top = gated + at(L, M * P, 0)  # (M, P)
    hidden = top + M * P  # (M, C S)
    z = hidden + M * C * S  # (AB WIDE / DEPTH, M, DEPTH)
    broken = tl.full((M, 1), -1, tl.int32)

    for i in tl.range(0, H, disable_licm=True):
        for l in tl.range(0, L, disable_licm=True):
            place = places + l * 7
            r, inputs = tl.load(place + 6), tl.where(l > 0, P, DEPTH)
            line, depth = (W + 2 * r) * inputs, r + 1
            above, steps = tl.where(l > 0, r + 1, r), (2 * r + 1) * inputs // DEPTH
            start = bases + l * 4 * P
            for p in tl.range(0, W, SPAN, disable_licm=True):
                j = p + ahead
                for t in tl.range(0, P // UNIT, disable_licm=True):
                    column = t * WIDE + wide
                    a = tl.load(start + at(first + many, stride, column))
                    w = words + tl.load(place) + at(t * above, steps * DEPTH * WIDE, 0)
                    for y in tl.range(0, above, disable_licm=True):
                        row = many * depth + (i + 1 + y) % depth
                        x = scratch + tl.load(place + 4) + at(row, line, j * inputs)
                        a = product(a, x, j < W, w, steps, WIDE)
                        w += steps * DEPTH * WIDE
                    tl.store(vertical + at(j * M + many, 2 * P, column), a, mask=j < W)
            tl.debug_barrier()
            for p in tl.range(0, W, SPAN, disable_licm=True):
                j = p + ahead
                x = vertical + at(j * M + many, 2 * P, 0)
                for t in tl.range(0, P // UNIT, disable_licm=True):
                    column = t * WIDE + wide
                    a = tl.load(start + at(first + many, stride, 2 * P + column))
                    w = words + tl.load(place + 1) + at(t, 2 * P * WIDE, 0)
                    a = product(a, x, j < W, w, 2 * P // DEPTH, WIDE)
                    tl.store(base + at((l * W + j) * M + many, 2 * P, column), a, mask=j < W)
                    if l < L - 1:
                        v = gate(tl.load(x + column, mask=j < W, other=0), ROWS)
                        R = tl.load(place + 7 + 6)
                        row = many * (R + 1) + i % (R + 1)
                        to = scratch + tl.load(place + 7 + 4)
                        to += at(row, (W + 2 * R) * P, (R + j) * P + t * UNIT + narrow)
                        tl.store(to, v, mask=j < W)
            tl.debug_barrier()

        for j in tl.range(0, W, disable_licm=True):
            for c in tl.range(0, C, disable_licm=True):
                t0 = (i * W + j) * C + c  # the place in the raster
                for l in tl.range(0, L, disable_licm=True):
                    place = places + l * 7
                    r, inputs = tl.load(place + 6), tl.where(l > 0, P, DEPTH)
                    # of layer 0 the row of the image, with its ring and its zeros at the right
                    line = tl.where(l > 0, (W + r) * P, (r + 1) * (W + 2 * r) * DEPTH)
                    own = tl.where(l > 0, 0, i % (r + 1) * (W + 2 * r) * DEPTH)
                    x = scratch + tl.load(place + 5) + at(m, line, own + j * inputs)
                    taps = r * inputs // DEPTH
                    size = (taps + inputs // DEPTH) * DEPTH * WIDE
                    seen = tl.where(l > 0, (c + 1) * Q // DEPTH, 1)
                    for t in tl.range(0, Q // UNIT, disable_licm=True):
                        column = c * 2 * Q + t * WIDE + wide
                        a = tl.load(base + at((l * W + j) * M + m, 2 * P, column))
                        w = words + tl.load(place + 2) + at(c * (Q // UNIT) + t, size, 0)
                        a = gate(product(a, x, m < M, w, taps + seen, WIDE), M)
                        tl.store(gated + at(m + l * M, P, c * Q + t * UNIT + narrow), a)
                    tl.debug_barrier()
                    for t in tl.range(0, Q // UNIT, disable_licm=True):
                        channel = c * Q + t * UNIT + narrow
                        h = tl.load(biases + at(l, P, channel)) + tl.zeros((M, UNIT), tl.float32)
                        h += tl.load(x + r * inputs + channel, mask=(l > 0) & (m < M), other=0)
                        w = words + tl.load(place + 3)
                        w += at(c * (Q // UNIT) + t, P * UNIT, 0)
                        y = gated + at(m + l * M, P, 0)
                        h = product(h, y, m < M, w, (c + 1) * Q // DEPTH, UNIT)
                        if l < L - 1:
                            R = tl.load(place + 7 + 6)
                            to = scratch + tl.load(place + 7 + 5)
                            to += at(m, (W + R) * P, (R + j) * P + channel)
                            tl.store(to, h)
                        else:
                            tl.store(top + m * P + channel, tl.where(h < 0, 0, h))
                    tl.debug_barrier()
                bias = biases + L * P
                for t in tl.range(0, S // UNIT, disable_licm=True):
                    channel = c * S + t * UNIT + narrow
                    s = tl.load(bias + channel) + tl.zeros((M, UNIT), tl.float32)
                    w = words + tl.load(heads) + at(c * (S // UNIT) + t, P * UNIT, 0)
                    s = product(s, top + m * P, m < M, w, (c + 1) * Q // DEPTH, UNIT)
                    tl.store(hidden + m * C * S + channel, tl.where(s < 0, 0, s))
                tl.debug_barrier()
                zero = tl.zeros((M, 1), tl.float32)
                for t in tl.range(0, AB, disable_licm=True):
                    level = t * WIDE + wide
                    v = tl.load(bias + C * S + c * AB * WIDE + level)
                    v += tl.zeros((M, WIDE), tl.float32)
                    w = words + tl.load(heads + 1) + at(c * AB + t, C * S * WIDE, 0)
                    v = product(v, hidden + m * C * S, m < M, w, (c + 1) * S // DEPTH, WIDE)
                    tl.store(z + level // DEPTH * (M * DEPTH) + m * DEPTH + level % DEPTH, v)
                    zero += tl.sum(v - v, 1, keep_dims=True)
                    to = logits + at(at(t0, N, first + m), A, level)
                    tl.store(to, v, mask=(level < A) & (wanted > 0))
                tl.debug_barrier()
                image = at(t0, N, first + m)
                code = tl.load(given + image)
                bad = (broken < 0) & (zero != 0) & ((code < 0) | (wanted > 0))
                broken = tl.where(bad, t0, broken)
                drawn = pick(z, A, tl.load(uniforms + image), tl.load(rates + image), DEPTH)
                code = tl.where(code < 0, drawn, code)
                tl.store(codes + image, code)
                r = tl.load(places + 6)
                line = (W + 2 * r) * DEPTH
                row = m * (r + 1) + i % (r + 1)
                to = scratch + tl.load(places + 4) + at(row, line, (r + j) * DEPTH + c)
                tl.store(to, code.to(tl.float32) * slope - 1)
                tl.debug_barrier()
    tl.store(failed + first + m, broken)


def pixelcnn_sample_triton(packed, uniforms, given, cond, temperature, logits):
    """`pixelcnn_sample_ref`, but of weights that `pack` laid out."""
    w = packed.weights
    n, C, H, W = given.shape
    (S, P), L, A, N = w.hidden.shape, len(w.layers), w.out.shape[0] // C, blocks(n, M) * M.value
    Q, S, AB = (blocks(v // C, u) * u.value for v, u in ((P, UNIT), (S, UNIT), (A * C, WIDE)))
    AB //= WIDE.value
    P, device = C * Q, given.device
    v, h = cond.chunk(2, dim=2)
    v = v + torch.stack([y.v_bias for y in w.layers])
    h = h + torch.stack([y.h_bias for y in w.layers])
    bases = torch.cat([gates(v, C), gates(h, C)], 2).flatten(1)
    if len(bases) > 1:
        bases = pad(bases, 0, M)
    rates = torch.where(temperature == 0, 0, 1 / temperature.clamp(min=1e-30))
    u, rates, given = (raster(x, N) for x in (uniforms.float(), rates.float(), given.int()))
    places, heads = packed.places.clone(), packed.heads.clone()
    end = 0
    for l in range(L):
        r, inputs = int(places[l, 6]), P if l else DEPTH.value
        places[l, 4] = places[l, 5] = end
        end += M.value * (r + 1) * (W + 2 * r) * inputs
        if l:
            places[l, 5] = end
            end += M.value * (W + r) * P
    heads[2] = end
    end += M.value * (2 * P * W * (L + 1) + P * (L + 1) + C * S + AB * WIDE.value)
    heads[4] = end
    scratch = torch.zeros(N // M.value * end, device=device)
    codes, failed = torch.zeros_like(given), given.new_full((N,), -1)
    values = scratch.new_empty((H * W * C, N, A) if logits else 0)
    if n:
        with torch.cuda.device_of(codes):
            sample_kernel[(N // M.value,)](
                *(packed.words, packed.biases, bases, places.to(device), heads.to(device)),
                *(u, rates, given, codes, values, failed, scratch, H, W, C, L, P, Q, S, AB, A),
                *(bases.shape[1] if len(bases) > 1 else 0, int(logits), 2 / (A - 1)),
                **choices(torch.float32, device)[0],
                num_stages=1,
            )
    codes = codes[:, :n].t().unflatten(1, (H, W, C)).permute(0, 3, 1, 2).long()
    if logits:
        values = values[:, :n].transpose(0, 1).unflatten(1, (H, W, C)).permute(0, 3, 1, 2, 4)
    return codes.contiguous(), values, failed[:n].long()


def choices(dtype, device):
    """The constants that a launch may have: one choice for a device."""
    return [constants("pixelcnn_sample", CANDIDATES, dtype, device)]


def raster(x, N):
    """(n, C, H, W) as (H W C, N)."""
    return pad(x.permute(0, 2, 3, 1).flatten(1), 0, M).t().contiguous()


def channels(x, C):
    """(..., P), each color's channels padded."""
    return pad(x.unflatten(-1, (C, -1)), -1, UNIT).flatten(-2)


def gates(x, C):
    """(..., 2P), each color's channels padded, the halves alternating."""
    return pad(x.unflatten(-1, (2, C, -1)), -1, UNIT).movedim(-3, -1).flatten(-3)


def pack(w, device):
    """`pack_pixels` for a GPU: a PixelPacked on `device`, of checked and masked weights."""
    from .pixelcnn_sample import PixelLayer, PixelPacked

    C, words, places = w.colors, [], []

    def put(matrix, width):
        """Append a matrix (columns, rows) in tiles; returns where it begins."""
        words.append(tiles(matrix, DEPTH.value, width.value))
        return sum(len(part) for part in words[:-1])

    def inputs(x, l):  # (..., inputs, rows)
        x = x.transpose(-1, -2)
        x = channels(x, C) if l else pad(x, -1, DEPTH)
        return x.transpose(-1, -2)

    for l, y in enumerate(w.layers):
        r = y.v_weight.shape[3] // 2
        v = y.v_weight[:, :, : r + (l > 0)].permute(2, 3, 1, 0)  # (rows, k, inputs, 2P)
        h = y.h_weight[:, :, 0].permute(2, 1, 0)  # (r + 1, inputs, 2P)
        link = gates(gates(y.link_weight, C).t(), C)  # (2P inputs, 2P)
        res = channels(channels(y.res_weight, C).t(), C)  # (P inputs, P)
        matrices = (
            inputs(gates(v, C), l).flatten(0, 2),
            link,
            inputs(gates(h, C), l).flatten(0, 1),
        )
        places.append([*(put(matrix, WIDE) for matrix in matrices), put(res, UNIT), 0, 0, r])
    hidden = channels(channels(w.hidden, C).t(), C)  # (P inputs, S)
    out = pad(channels(w.out, C).t().unflatten(1, (C, -1)), -1, WIDE).flatten(1)  # (S inputs, C A)
    heads = [put(hidden, UNIT), put(out, WIDE), 0, 0, 0]
    biases = [channels(b, C) for b in (*(y.res_bias for y in w.layers), w.hidden_bias)]
    biases.append(pad(w.out_bias.unflatten(0, (C, -1)), -1, WIDE).flatten())
    layers = [PixelLayer(*(v.to(device) for v in y)) for y in w.layers]
    head = {
        name: getattr(w, name).to(device) for name in ("hidden", "hidden_bias", "out", "out_bias")
    }
    return PixelPacked(
        weights=w._replace(layers=layers, **head),
        words=torch.cat(words).to(device),
        biases=torch.cat(biases).to(device),
        places=torch.tensor(places),
        heads=torch.tensor(heads),
    )
