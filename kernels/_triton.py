"""What Triton kernels share. Imported only by them: Triton is not required."""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def at(row, width, column):
    """Where an element lies in a matrix, in 64 bits."""
    return tl.cast(row, tl.int64) * width + column


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x as `dtype`, to the nearest, ties to even."""
    if INTERPRET and dtype == tl.bfloat16:  # the interpreter would cut the bits off
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, out):
    """out + a b, summed in float32."""
    if INTERPRET:  # the interpreter would multiply the bits of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, out, input_precision="ieee")


@triton.jit
def down(start, N: tl.constexpr):
    return start + tl.arange(0, N)[:, None]


@triton.jit
def along(start, N: tl.constexpr):
    return start + tl.arange(0, N)[None, :]


@triton.jit
def share(p, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which example, from which row and which column on program p computes."""
    across = tl.cdiv(rows, ROWS)
    i = p // across
    column = i % tl.cdiv(columns, COLUMNS) * COLUMNS
    return i // tl.cdiv(columns, COLUMNS), p % across * ROWS, column
