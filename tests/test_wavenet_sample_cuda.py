"""The CUDA kernel of `wavenet_sample` without a GPU, its threads as fibers, and with one.

`cuda_on_host.h` runs them in an order drawn by FASTGEN_SEED. What only a GPU can show: that the
instructions of csrc/device.h do what its functions on the host do.
"""

import ctypes
import importlib
import os
import re
import shutil
import subprocess
import types
import warnings
from pathlib import Path

import cases
import pytest
import torch
from test_wavenet_sample import in_chunks, near, rows, same
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen import kernels
from fastgen.kernels import _op

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc" / "wavenet_sample.cu"
NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
cuda = importlib.import_module("fastgen.kernels._wavenet_sample_cuda")
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of capability 9")

ODD = {"L": 6, "stacks": 2, "K": 3, "R": 13, "H": 9, "S": 21, "A": 37, "C": 2, "hop": 5}
CASES = {
    "plain": {},
    "ones": {"L": 1, "stacks": 1, "R": 1, "H": 1, "S": 1, "A": 2, "n": 1, "T": 3},
    "no streams": {"n": 0, "C": 2},
    "no steps": {"T": 0, "C": 2, "hop": 4},
    "one layer": {"L": 1, "stacks": 1, "C": 2, "hop": 3, "T": 7},
    "dilations of 1": {"stacks": 4, "K": 3, "T": 9},
    "everything": {**ODD, "speakers": True, "P": 3, "n": 5},
    "layers in a row": {"L": 20, "stacks": 5, "T": 6, "n": 2, "C": 3},
    "five taps": {"K": 5, "L": 3, "stacks": 1, "T": 30},
    "a group": {"n": 8, "L": 9, "stacks": 3, "T": 9},
    "more rows than warps": {"S": 150, "A": 256, "R": 64, "H": 64, "T": 3},
    "a frame a step": {"C": 3, "T": 9},
    "nothing to draw": {"P": 6, "T": 6},
    "the likeliest": {"temperature": 0.0, "T": 9},
    "hot": {"temperature": 2.0, "T": 9},
    "mixture": {"M": 3, "A": 65536, "temperature": 0.5, "C": 2, "hop": 7, "T": 9},
    "heaviest components": {"M": 17, "A": 31, "temperature": 0.0, "T": 9},
    "the shipped voice": {
        **{"L": 18, "stacks": 2, "R": 32, "H": 32, "S": 96, "A": 256, "n": 1, "T": 4},
        **{"C": 48, "hop": 80},
    },
    "REF": {"L": 20, "stacks": 2, "R": 64, "H": 64, "S": 256, "A": 256, "n": 1, "T": 3},
    "16 blocks": {"L": 30, "stacks": 3, "R": 64, "H": 60, "S": 128, "A": 256, "n": 2, "T": 2},
}


def compile_for_host(folder, source=None, sanitize=True):
    """The kernel's entry point, compiled by the C++ compiler; `source` in place of its file's."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    main, library = folder / "kernel.cpp", folder / "kernel.so"
    main.write_text(
        (source or SOURCE.read_text())
        + 'extern "C" { auto wavenet_sample = &fastgen::wavenet_sample_cuda; }'
    )
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover"] if sanitize else []
    command = [compiler, *flags, f"-I{ROOT}/csrc", f"-I{ROOT}/tests", main, "-o", library]
    subprocess.run(command, check=True, timeout=300)
    pointers, sizes = [ctypes.c_void_p] * 13, [ctypes.c_int64] * 13
    kernel = ctypes.CFUNCTYPE(
        ctypes.c_char_p, *pointers, *sizes, ctypes.c_double, *[ctypes.c_int64] * 4
    )
    kernel = kernel(ctypes.c_void_p.in_dll(ctypes.CDLL(library), "wavenet_sample").value)

    def call(*args):
        if wrong := kernel(*args):
            raise RuntimeError(wrong.decode())

    return types.SimpleNamespace(wavenet_sample_cuda=call, cuda="")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_for_host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def host(compiled, monkeypatch):
    """Within, the kernel runs on the host."""
    monkeypatch.setattr(cuda, "native", compiled)
    monkeypatch.delenv("FASTGEN_SEED", raising=False)


def on_a_cluster(weights, blocks=None):
    """Packed weights of the CPU with those of a cluster, by default the first that fits."""
    (L, G, R, K), S, O = weights.conv.shape, len(weights.hidden), len(weights.out)
    plan = cuda.plan(L, K, R, G // 2, S, O)[0]
    if blocks:
        plan = blocks, cuda.shared_bytes(blocks, L, K, S, O)
    cluster = cuda.lay_out(weights, *plan)
    return kernels.pack(weights, "bfloat16")._replace(cluster=cluster)


def hold(weights, u, options, got):
    """Hold codes, state and logits to those of the C++ kernel, which has the same definition."""
    (codes, state, logits), options = got, dict(options)
    given = 0 if options["prefix"] is None else options["prefix"].shape[1]
    if codes.numel():
        assert near(codes, logits.double(), u, options)[:, given:].all()
    options |= {"prefix": codes, "dtype": "bfloat16", "logits": True}
    _, end, want = kernels.wavenet_sample(weights, u, **options)
    assert torch.equal(state.history, end.history)
    assert state.step == end.step
    if not codes.numel():
        return
    error = (logits - want).abs().amax(-1) / want.abs().max()
    # where a sum's last bit decides how a vector's element is rounded, the two part
    assert (error < 2e-6).double().mean() > 0.9
    assert error.max() < 0.01
    if state.rings.numel():
        assert (state.rings - end.rings).abs().max() < 0.01 * end.rings.abs().max()


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_equals_the_kernel_of_the_cpu(host, sizes):
    weights, u, options = cases.wavenet_sample(**sizes)
    got = kernels.wavenet_sample(on_a_cluster(weights), u, **options, logits=True)
    hold(weights, u, options, got)


def test_no_bit_depends_on_the_order_of_threads(host, monkeypatch):
    weights, u, options = cases.wavenet_sample(**ODD, n=3, T=7)
    packed = on_a_cluster(weights)
    want = kernels.wavenet_sample(packed, u, **options, logits=True)
    for seed in range(1, 7):
        monkeypatch.setenv("FASTGEN_SEED", str(seed))
        same(kernels.wavenet_sample(packed, u, **options, logits=True), want)


def test_no_bit_depends_on_neighbours_or_chunks(host, monkeypatch):
    weights, u, options = cases.wavenet_sample(**ODD, n=8, T=11, speakers=True, P=3)
    packed = on_a_cluster(weights)
    want = kernels.wavenet_sample(packed, u, **options, logits=True)
    alone = kernels.wavenet_sample(packed, u[5:6], **rows(options, slice(5, 6)), logits=True)
    state = kernels.State(want[1].rings[5:6], want[1].history[5:6], 11)
    same(alone, (want[0][5:6], state, want[2][5:6]))
    same(in_chunks(packed, u, options, 4), want)
    monkeypatch.setattr(cuda, "FRAMES", 1)  # launches of 5 steps
    same(kernels.wavenet_sample(packed, u, **options, logits=True), want)
    monkeypatch.setattr(cuda, "STEPS", 1)
    same(kernels.wavenet_sample(packed, u, **options, logits=True), want)


def test_no_bit_of_many_features_depends_on_neighbours_or_chunks(host):
    weights, u, options = cases.wavenet_sample(**{**ODD, "C": 48}, n=8, T=25)
    packed = on_a_cluster(weights)
    want = kernels.wavenet_sample(packed, u, **options, logits=True)
    alone = kernels.wavenet_sample(packed, u[5:6], **rows(options, slice(5, 6)), logits=True)
    state = kernels.State(want[1].rings[5:6], want[1].history[5:6], 25)
    same(alone, (want[0][5:6], state, want[2][5:6]))
    same(in_chunks(packed, u, options, 7), want)


def test_goes_on_from_where_the_cpu_stopped(host):
    weights, u, options = cases.wavenet_sample(**ODD, n=2, T=40)
    options["dtype"] = "bfloat16"
    _, state = kernels.wavenet_sample(weights, u[:, :35], **options)
    options |= {"state": state, "cond": options["cond"][..., 7:]}
    got = kernels.wavenet_sample(on_a_cluster(weights), u[:, 35:], **options, logits=True)
    hold(weights, u[:, 35:], options, got)


def test_logits_that_are_not_finite(host):
    weights, u, options = cases.wavenet_sample(T=4, n=2)
    out = torch.full_like(weights.out, 1e38)
    weights = weights._replace(out=out, hidden_bias=torch.full_like(weights.hidden_bias, 99))
    with pytest.raises(ValueError, match="logits of stream 0 at step 0 are not finite"):
        kernels.wavenet_sample(on_a_cluster(weights), u, **options)


HANGS, DIFFERS = "deadlock: .* wait for ever", "other values"
BROKEN = {  # what is taken out of the kernel, what stays, what is found for want of it, and where
    "a barrier": ("    sync();\n    const float fr", "    const float fr", DIFFERS, {}),
    "a message": ("stream < a.n", "stream + 1 < a.n", HANGS, {"n": 3}),
    "the second box of y": ("t & 1) * VECTOR", "0) * VECTOR", DIFFERS, {}),
    "what lets no lane lag": ("    sync_warp();", "", HANGS, {"n": 3, "S": 128}),
    "that idle warps do not wait": (
        "if (tile < a.SB) {\n      receive(SKIPS, t);",
        "receive(SKIPS, t);\n    if (tile < a.SB) {",
        HANGS,
        {"L": 1, "stacks": 1},
    ),
}


@pytest.mark.parametrize("part", BROKEN)
def test_the_host_finds_the_want_of(part, host, tmp_path, monkeypatch):
    taken, left, found, sizes = BROKEN[part]
    source = SOURCE.read_text()
    assert taken in source
    weights, u, options = cases.wavenet_sample(**{**ODD, "n": 8, "T": 9, **sizes})
    packed = on_a_cluster(weights, blocks=2)
    want = kernels.wavenet_sample(packed, u, **options, logits=True)[2]
    broken = compile_for_host(tmp_path, source.replace(taken, left), sanitize=False)
    monkeypatch.setattr(cuda, "native", broken)
    for seed in range(60):
        monkeypatch.setenv("FASTGEN_SEED", str(seed))
        try:
            got = kernels.wavenet_sample(packed, u, **options, logits=True)[2]
            error = "" if torch.equal(got, want) else DIFFERS
        except (RuntimeError, ValueError) as raised:
            error = DIFFERS if "finite" in str(raised) else str(raised)
        if error:
            print("seed", seed, error)
            assert re.search(found, error)
            return
    raise AssertionError("nothing was found")


def test_the_plan():
    assert cuda.plan(20, 2, 64, 64, 256, 256) == [(8, 225920), (16, 154368)]  # REF
    assert [blocks for blocks, _ in cuda.plan(18, 2, 32, 32, 96, 256)] == [8, 16]
    assert [blocks for blocks, _ in cuda.plan(30, 2, 64, 64, 256, 256)] == [16]
    for sizes, why in (
        ((20, 2, 65, 64, 256, 256), "R may be 64 at most, and is 65"),
        ((20, 2, 64, 128, 256, 256), "H may be 64 at most, and is 128"),
        ((20, 2, 64, 64, 256, 257), "the outputs may be 256 at most, and is 257"),
        ((49, 2, 64, 64, 256, 256), "L may be 48 at most, and is 49"),
        ((24, 2, 64, 64, 512, 256), "each of 16 blocks may have 232448 bytes of shared memory"),
    ):
        assert cuda.plan(*sizes).startswith(why)


def test_where_a_cluster_cannot_run(monkeypatch):
    weights, *_ = cases.wavenet_sample()
    large, *_ = cases.wavenet_sample(R=65)
    assert cuda.pack(weights) is None
    with FakeTensorMode():
        weights, large = (
            kernels.Weights(*(v if v is None else torch.empty(v.shape, device="cuda") for v in w))
            for w in (weights, large)
        )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert cuda.pack(weights) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for native, why in (
        (None, "without C++ kernels there are none"),
        (types.SimpleNamespace(cuda="there is no nvcc"), "there is no nvcc"),
    ):
        monkeypatch.setattr(cuda, "native", native)
        assert cuda.pack(weights) == why
    old = "CUDA driver version is insufficient"

    def clusters(device, blocks, size, count):
        raise RuntimeError(old)

    driver = types.SimpleNamespace(cuda="", wavenet_sample_clusters=clusters)
    monkeypatch.setattr(cuda, "native", driver)
    assert cuda.pack(large) == "R may be 64 at most, and is 65"
    assert cuda.pack(weights) == old
    driver.wavenet_sample_clusters = lambda *args: None
    assert cuda.pack(weights) == "the GPU grants no cluster of 8 blocks"
    cuda.granted.cache_clear()


def test_a_model_that_does_not_fit_is_told_once():
    weights, u, options = cases.wavenet_sample(n=2)
    packed = kernels.pack(weights, "bfloat16")
    want = kernels.wavenet_sample(packed, u, **options, logits=True)
    packed = packed._replace(cluster="R is too large")
    with pytest.warns(UserWarning, match="8 streams or fewer runs .*: R is too large"):
        same(kernels.wavenet_sample(packed, u, **options, logits=True), want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.wavenet_sample(packed, u, **options)


@pytest.mark.skipif(_op.native is None or bool(cuda.missing()), reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error_and_no_crash():
    with pytest.raises(RuntimeError, match=r"wavenet_sample_clusters: .*(driver|device)"):
        _op.launch(_op.native.wavenet_sample_clusters, 0, 8, 1000, torch.zeros(1).long())


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_nothing_spills_on_hopper(tmp_path):
    command = [NVCC, "-std=c++17", "-arch=sm_90a", "-Xptxas", "-v", "-cubin", "--keep"]
    command += ["--keep-dir", tmp_path, SOURCE, "-o", tmp_path / "kernel.cubin"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stderr
    assert int(re.search(r"Used (\d+) registers", done.stderr)[1]) <= 255
    (ptx,) = (f.read_text() for f in tmp_path.glob("*.ptx"))
    # what other threads write must not come from a cache that stores do not reach
    assert "ld.global.nc" not in ptx


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_on_a_gpu(sizes):
    weights, u, options = cases.wavenet_sample(**sizes)
    weights, options = on_gpu(weights), dict(zip(options, on_gpu(options.values()), strict=True))
    packed = kernels.pack(weights, "bfloat16")
    assert isinstance(packed.cluster, cuda.Cluster), packed.cluster
    codes, state, logits = kernels.wavenet_sample(packed, u.cuda(), **options, logits=True)
    state = kernels.State(state.rings.cpu(), state.history.cpu(), state.step)
    hold(*cases.wavenet_sample(**sizes)[:3], (codes.cpu(), state, logits.cpu()))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("n", [1, 8])
def test_long_samples_on_a_gpu(n):
    sizes = {"L": 20, "stacks": 2, "R": 64, "H": 64, "S": 256, "A": 256, "n": n, "T": 3000}
    weights, u, options = cases.wavenet_sample(**sizes)
    packed = kernels.pack(on_gpu(weights), "bfloat16")
    want = kernels.wavenet_sample(packed, u, **options, logits=True)
    for _ in range(5):  # the same bits, whenever who comes
        same(kernels.wavenet_sample(packed, u, **options, logits=True), want)
    same(in_chunks(packed, u, options, 700), want)
    state = kernels.State(want[1].rings.cpu(), want[1].history.cpu(), want[1].step)
    hold(weights, u, options, (want[0].cpu(), state, want[2].cpu()))


@pytest.mark.gpu
@on_hopper
def test_in_a_graph_on_a_gpu():
    weights, u, options = cases.wavenet_sample(n=2, T=50)
    packed, dilations = kernels.pack(on_gpu(weights), "bfloat16"), options["dilations"]
    w, state = packed.weights, kernels.initial_state(packed, dilations, 2)
    inputs = [u.cuda(), *state, torch.zeros(2, 0, dtype=torch.int64).cuda(), w.conv_bias[None]]
    inputs += [w.embed.new_empty(2, 0, 0), dilations, 1, 12, 0, 1.0, True]
    want = cuda.wavenet_sample_cuda(packed, *inputs)  # and once before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = cuda.wavenet_sample_cuda(packed, *inputs)
    for _ in range(3):
        for tensor in got:
            tensor.zero_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def on_gpu(values):
    """The same tuple or list with its tensors on the GPU, in float32 where they are numbers."""
    moved = [v.cuda() if isinstance(v, torch.Tensor) else v for v in values]
    return type(values)(*moved) if isinstance(values, kernels.Weights) else moved
