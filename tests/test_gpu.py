"""Every kernel that has cases, on a GPU's real memory, and where it can be in the interpreter.

In value and gradient against float64 on the CPU, in each dtype that the kernel has, from memory
that is full of NaN; replayed from CUDA graphs, on side streams, on a second device, and beyond
2^31 elements.
"""

import functools
import importlib
import inspect

import cases
import pytest
import torch
from check import TOLERANCE, cast, close, compare, evaluate
from interpret import DEVICE, INTERPRETED, Checks, interpret

from fastgen import kernels

pytest.importorskip("triton")
files = importlib.import_module("aot").triton_files()

check = CHECKS = Checks()
SMALL = 3000  # elements of inputs that the interpreter is patient enough for
WITH_GRADIENTS = [
    op for op in files if "uniforms" not in inspect.signature(vars(kernels)[op]).parameters
]
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def equal(op, dtype):
    """Hold an op on `DEVICE` to float64 on the CPU, in its cases."""
    for name, sizes in cases.table(op).items():
        sizes = cases.brief(op, sizes) if INTERPRETED else sizes
        args, options = cases.arguments(op, sizes, dtype)
        if INTERPRETED and sum(v.numel() for v in cases.tensors(args)) > SMALL:
            continue
        what = f"{op}, {name}, {dtype}"
        if hasattr(cases, f"{op}_holds"):
            getattr(cases, f"{op}_holds")(args, options, DEVICE)
        elif dtype == "float32":
            compare(on_device(op, options), on_cpu(op, options), args, what)
        elif max(v.numel() for v in cases.tensors(args)) > 2:  # not one number, which may cancel
            compare_half(on_device(op, options), on_cpu(op, options), args, what)


def compare_half(op, ref, args, what):
    """`compare`, but where the reference in the same dtype is off by more, twice as far is near."""
    dtype = args[0].dtype
    want, own, got = (
        evaluate(ref, cast(args, torch.float64)),
        evaluate(ref, args),
        evaluate(op, args),
    )
    for i, (a, b, c) in enumerate(zip(got, want, own, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, c.dtype), what
        if b.numel():
            bound = max(TOLERANCE[dtype] * b.abs().max(), 2 * (c.double() - b).abs().max())
            error = (a.double() - b).abs().max()
            assert error <= bound, f"{what}, result {i}: off by {error:.2e}, expected {bound:.2e}"


def on_device(op, options):
    """The op, on `DEVICE`, of and to tensors on the CPU."""
    return lambda *args: cases.moved(cases.call(op, cases.moved(args, DEVICE), options), "cpu")


def on_cpu(op, options):
    return functools.partial(vars(kernels)[f"{op}_ref"], **options)


for op, file in files.items():
    for dtype in file.CANDIDATES:
        CHECKS[f"{op} in {dtype}"] = functools.partial(equal, op, dtype)


def step(op, inputs, douts):
    """The outputs of an op in its first case and the gradients of its inputs."""
    outputs = first(op, inputs)
    leaves = [v for v in inputs if cases.is_float(v)]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs, leaves, douts))


def first(op, inputs):
    """The outputs of an op in its first case, of other inputs."""
    _, options = cases.arguments(op, next(iter(cases.table(op).values())), "float32")
    return cases.tensors(cases.call(op, inputs, options))


def prepare(op, dtype, device=DEVICE, seed=0):
    """Inputs of an op's first case that take gradients, and gradients of its outputs."""
    args, _ = cases.arguments(op, next(iter(cases.table(op).values())), dtype, device)
    generator = torch.Generator().manual_seed(seed)

    def drawn(v):
        return torch.randn(v.shape, generator=generator).to(v)

    inputs = [drawn(v).requires_grad_() if cases.is_float(v) else v for v in args]
    return inputs, [drawn(y) for y in first(op, inputs)]


def fill(tensors, values):
    with torch.no_grad():
        for v, value in zip(tensors, values, strict=True):
            if cases.is_float(v):
                v.copy_(value)


def recorded(run):
    """`run`'s results, and a function that runs it again into them: a graph on a GPU."""
    if DEVICE == "cpu":
        results = run()
        return results, lambda: fill(results, run())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # compiles, and brings what is made once
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return results, graph.replay


@check
def replays():
    for op in WITH_GRADIENTS:
        for dtype in files[op].CANDIDATES:
            inputs, douts = prepare(op, dtype)
            results, replay = recorded(lambda op=op, i=inputs, d=douts: step(op, i, d))
            others = prepare(op, dtype, seed=1)
            want = step(op, *others)
            fill(inputs, others[0])
            fill(douts, others[1])
            replay()
            for got, expected in zip(results, want, strict=True):
                assert torch.equal(got, expected), f"{op} in {dtype}"


@check
def memory_is_poisoned():
    assert torch.empty(99, device=DEVICE).isnan().all()
    assert torch.empty(99, dtype=torch.bfloat16, device=DEVICE).isnan().all()


def large(B, R, S, H, T, K, dilation, dtype, device):
    """Hold `wavenet_layer` of a huge x to its reference, in windows around its corners.

    Gradients come in nowhere else, so that those of the weights are sums over the windows.
    """
    torch.manual_seed(0)
    options = {"dtype": dtype, "device": device}
    shapes = ((2 * H, R, K), (2 * H,), (R, H), (R,), (S, H), (S,))
    weights = [(torch.randn(shape, device=device) / 8).to(dtype) for shape in shapes]
    x = torch.empty(B, R, T, **options).normal_().requires_grad_()
    skip = torch.empty(B, S, T, **options).normal_()
    weights = [v.requires_grad_() for v in weights]
    outputs = kernels.wavenet_layer(x, skip, *weights, dilation=dilation)
    back, size = (K - 1) * dilation, 40
    starts = [back, T // 2 + 3, T - size]
    places = [(b, slice(t, t + size)) for b in {0, B - 1} for t in starts]
    douts = [torch.zeros_like(y) for y in outputs]
    for dout in douts:
        for b, window in places:
            dout[b, :, window] = torch.randn(dout.shape[1], size, **options)
    grads = torch.autograd.grad(outputs, [x, *weights], douts)
    sums = [torch.zeros(v.shape, dtype=torch.float64) for v in weights]
    for b, window in places:
        wider = slice(window.start - back, window.stop)
        leaves = [x[b : b + 1, :, wider], *weights]
        leaves = [v.detach().cpu().double().requires_grad_() for v in leaves]
        skips = skip[b : b + 1, :, wider].cpu().double()
        want = kernels.wavenet_layer_ref(leaves[0], skips, *leaves[1:], dilation=dilation)
        for y, expected in zip(outputs, want, strict=True):
            got = y[b : b + 1, :, window].detach().cpu()
            close(got, expected[..., back:].detach(), dtype, f"at {b}, {window}")
        into = [d[b : b + 1, :, window].cpu().double() for d in douts]
        dx, *dweights = torch.autograd.grad([y[..., back:] for y in want], leaves, into)
        close(grads[0][b : b + 1, :, wider].cpu(), dx, dtype, f"dx at {b}, {window}")
        for sum, dweight in zip(sums, dweights, strict=True):
            sum += dweight
    for got, want in zip(grads[1:], sums, strict=True):
        close(got.cpu(), want, dtype, "gradients of the weights")
    between = slice(places[0][1].stop, places[1][1].start - back)
    assert not grads[0][:, :, between].any()


@check
def windows_of_a_large_layer():
    sizes = {"R": 5, "S": 6, "H": 3, "T": 300, "K": 3, "dilation": 8}
    large(B=2, **sizes, dtype=torch.float32, device=DEVICE)
    large(B=1, **sizes, dtype=torch.bfloat16, device=DEVICE)


@pytest.fixture(scope="module")
def interpreted():
    return interpret(__file__)


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(interpreted, name):
    assert not interpreted[name], interpreted[name]


@gpu
@needs_gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    CHECKS[name]()


@gpu
@needs_gpu
@pytest.mark.parametrize("op", WITH_GRADIENTS)
def test_on_a_side_stream(op):
    """Work that takes long comes first on the stream: what does not wait for it reads zeros."""
    inputs, douts = prepare(op, "float32")
    want = step(op, inputs, douts)
    slots = [
        v.detach().clone().zero_().requires_grad_() if cases.is_float(v) else v for v in inputs
    ]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        fill(slots, inputs)
        got = step(op, slots, douts)
    side.synchronize()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_beyond_31_bits(dtype):
    sizes = {"B": 3, "R": 64, "S": 16, "H": 16, "T": 2**24 + 8, "K": 2, "dilation": 512}
    assert sizes["B"] * sizes["R"] * sizes["T"] > 2**31
    # x, out, dout, dx; skip, skip_out, dskip; gates (2H), their gradients (2H), h
    rows = 4 * sizes["R"] + 3 * sizes["S"] + 5 * sizes["H"]
    needed = sizes["B"] * rows * sizes["T"] * dtype.itemsize
    free, _ = torch.cuda.mem_get_info()
    if free < 1.02 * needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    torch.use_deterministic_algorithms(False)  # or filling memory would take as long again
    try:
        large(**sizes, dtype=dtype, device=DEVICE)
    finally:
        torch.use_deterministic_algorithms(True)
        torch.cuda.empty_cache()


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", WITH_GRADIENTS)
def test_on_the_device_of_its_inputs(op):
    want = step(op, *prepare(op, "float32", "cuda:0"))
    with torch.cuda.device(0):
        got = step(op, *prepare(op, "float32", "cuda:1"))
    for a, b in zip(got, want, strict=True):
        assert a.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())


@gpu
@needs_gpu
def test_sampling_is_not_for_graphs():
    args, options = cases.arguments("wavenet_sample", {}, "float32", DEVICE)
    want, _ = cases.call("wavenet_sample", args, options)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises(RuntimeError, match="no CUDA graph can capture it"):
            cases.call("wavenet_sample", args, options)
    assert torch.equal(cases.call("wavenet_sample", args, options)[0], want)


if __name__ == "__main__":
    CHECKS.run()
