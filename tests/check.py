"""What every op is held to: `check`."""

import os
import signal
import threading
import time

import pytest
import torch

from fastgen.kernels import draw
from fastgen.kernels._op import native

LAST = 1 - 2**-53  # the largest uniform number

# of the largest value of a tensor
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 4e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def check(op, ref, inputs, dtypes=(torch.float32, torch.float64)):
    """Hold values and gradients of `op` to those of `ref` in float64.

    On every instruction set and in each dtype, also for inputs with gaps and gradients of stride 0;
    the same bits from one thread and from three; and `gradcheck`.
    """
    for isa in native.isas():
        native.set_isa(isa)
        for dtype in dtypes:
            compare(op, ref, cast(inputs, dtype), f"{isa}, {dtype}")
            compare(op, ref, cast(inputs, dtype), f"{isa}, {dtype}, strided", strided=True)
    one, three = (on_threads(n, op, cast(inputs, dtypes[0])) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b), "the bits depend on the number of threads"
    leaves = [leaf(v) for v in cast(inputs, torch.float64)]
    torch.autograd.gradcheck(lambda *v: present(op(*v)), leaves, fast_mode=True)


def compare(op, ref, inputs, what, strided=False):
    """Hold values and gradients of `op` to those of `ref` in float64, from the same inputs."""
    dtype = inputs[0].dtype
    want = evaluate(ref, cast(inputs, torch.float64), strided=strided)
    got = evaluate(op, map(spread, inputs) if strided else inputs, strided=strided)
    assert len(got) == len(want), what
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        close(a, b, dtype, f"{what}, result {i}")


def close(got, want, dtype, what):
    """Hold `got` to shape and values of `want`, as near as `dtype` comes."""
    assert got.shape == want.shape, what
    assert got.dtype == dtype, what
    if want.numel() == 0:
        return
    error, scale = (got.double() - want).abs().max(), want.abs().max()
    assert error <= TOLERANCE[dtype] * scale, f"{what}: off by {error:.2e} of {scale:.2e}"


def evaluate(fn, inputs, strided=False, wanted=None):
    """The outputs of `fn`, then the gradients of a weighted sum of them.

    Of every input that holds floats, or of those whose places `wanted` names. `strided`: the
    weights are one number, expanded.
    """
    inputs = [leaf(v) if wanted is None or i in wanted else v for i, v in enumerate(inputs)]
    outputs = present(fn(*inputs))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    terms = [y if strided else y * w for y, w in zip(outputs, weights, strict=True)]
    leaves = [v for v in inputs if isinstance(v, torch.Tensor) and v.requires_grad]
    grads = torch.autograd.grad(sum(y.sum() for y in terms), leaves)
    return [y.detach() for y in outputs] + list(grads)


def on_threads(n, fn, inputs):
    torch.set_num_threads(n)
    return evaluate(fn, inputs)


def present(outputs):
    """Those of the outputs that are tensors."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(y for y in outputs if y is not None)


def cast(inputs, dtype):
    return [v.to(dtype) if is_float(v) else v for v in inputs]


def leaf(x):
    """x as a root of gradients, its strides kept."""
    return x.detach().requires_grad_() if is_float(x) else x


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def spread(x):
    """x with a gap after each element."""
    return torch.stack([x, x], -1)[..., 0] if isinstance(x, torch.Tensor) else x


def ends_on_ctrl_c(call):
    """Hold a call that would take much longer to end within a second of Ctrl-C."""
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(0.3, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        call()
    assert time.perf_counter() - sent[0] < 1


def lets_others_run(call):
    """Hold a call of about half a second to let other Python threads run; what it returns."""
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.005):
            ticks.append(time.perf_counter())

    other = threading.Thread(target=tick)
    other.start()
    start = time.perf_counter()
    result = call()
    end = time.perf_counter()
    done.set()
    other.join()
    quarter = (end - start) / 4
    assert len([t for t in ticks if start + quarter < t < end - quarter]) > 5
    return result


def near(codes, logits, u, temperature):
    """Where a code is what u draws from float64 logits, or u within 1e-5 would.

    codes, u: (n, C, H, W)    logits: (n, A, C, H, W)
    """
    z = logits.movedim(1, -1).flatten(0, 3)
    t = torch.as_tensor(temperature, dtype=torch.float64).expand(u.shape).flatten()
    low, high = (
        draw(z, (u.flatten() + e).clamp(0, LAST), t, z.shape[1]).view(u.shape)
        for e in (-1e-5, 1e-5)
    )
    return (low <= codes) & (codes <= high)


def same(got, want):
    """Hold levels and logits to be equal, bit for bit."""
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def changed(x, value):
    """x with another last number."""
    x = x.clone()
    x.view(-1)[-1] = value
    return x


def meta(x):
    return x.to("meta")
