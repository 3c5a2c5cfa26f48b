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
import sys
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


def on_a_cluster(weights):
    """Packed weights of the CPU with those of a cluster."""
    (L, G, R, K), S, O = weights.conv.shape, len(weights.hidden), len(weights.out)
    cluster = cuda.lay_out(weights, *cuda.plan(L, K, R, G // 2, S, O)[0])
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
    print("within", (error < 1e-6).double().mean(), (error < 1e-5).double().mean(), error.max())
    assert (error < 1e-5).double().mean() > 0.5
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


MUTANTS = {  # what is taken out of the kernel, and what is found for want of it
    "a barrier after h": ("v >> 16;\n      sync();", "v >> 16;\n", "the bits differ"),
    "a barrier after y": ("+ 1 < count) sync();", "+ 1 < count) (void)0;", "the bits differ"),
    "a barrier after a draw": ("    sync();\n  }\n\n  // Store y", "  }\n\n  // Store y", ""),
    "a barrier before the taps": ("    sync();\n    const float fr", "    const float fr", ""),
    "a message": ("stream < a.n", "stream + 1 < a.n", "deadlock: .* wait for ever"),
    "the number of its bytes": ("W * 6", "W * 4", ""),
    "that idle warps do not wait": ("if (tile < a.SB) {", "receive(SKIPS, t); if (tile < a.SB) {", ""),
    "the second box of y": ("t & 1) * VECTOR", "0) * VECTOR", "the bits differ"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_host_finds_the_want_of(mutant, host, tmp_path, monkeypatch):
    find, replacement, found = MUTANTS[mutant]
    source = SOURCE.read_text()
    assert find in source
    weights, u, options = cases.wavenet_sample(**{**ODD, 'L': 10}, n=3, T=7)
    packed = on_a_cluster(weights)
    want = kernels.wavenet_sample(packed, u, **options, logits=True)[2]
    broken = compile_for_host(tmp_path, source.replace(find, replacement), sanitize=False)
    monkeypatch.setattr(cuda, "native", broken)
    for seed in range(60):
        monkeypatch.setenv("FASTGEN_SEED", str(seed))
        try:
            got = kernels.wavenet_sample(packed, u, **options, logits=True)[2]
        except (RuntimeError, ValueError) as error:
            print(seed, error)
            return
        if not torch.equal(got, want):
            print(seed, "bits")
            return
    raise AssertionError("nothing found")
