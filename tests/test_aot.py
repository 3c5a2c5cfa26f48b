"""The GPU kernels compiled for GPUs that are not there: nothing spills, nothing is left out."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import cases
import pytest
import torch

pytest.importorskip("triton")
aot = importlib.import_module("aot")
sampler = importlib.import_module("fastgen.kernels._wavenet_sample_triton")
layer = importlib.import_module("fastgen.kernels._wavenet_layer_triton")

from fastgen.kernels import _tuned  # noqa: E402

nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
KERNEL = """
__global__ void scale(float* x, int n) {
  __shared__ float y[256];
  y[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = y[n - threadIdx.x];
}
"""
SPILLS = """
__global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {
  float v[99];
#pragma unroll
  for (int i = 0; i < 99; ++i) v[i] = x[i * n];
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int i = 0; i < 99; ++i) v[i] = v[i] * v[(i + 1) % 99] + j;
#pragma unroll
  for (int i = 0; i < 99; ++i) x[i * n] = v[i];
}
"""


@pytest.fixture(scope="module")
def tables():
    """What bench/aot.py finds for each capability, a process each."""
    command = [sys.executable, aot.__file__, "--json", "--capability"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = {
        capability: subprocess.Popen(
            [*command, str(capability)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for capability in aot.SHARED
    }
    printed = {
        capability: process.communicate(timeout=500) for capability, process in started.items()
    }
    assert not any(process.returncode for process in started.values())
    return {capability: json.loads(text) for capability, (text, _) in printed.items()}


@pytest.mark.parametrize("capability", aot.SHARED)
def test_every_kernel_fits(tables, capability):
    rows = tables[capability]["rows"]
    assert {"wavenet_layer", "wavenet_sample"} <= {row["op"] for row in rows}
    for row in rows:
        assert row["registers"] <= aot.REGISTERS, row
        assert row["stores"] == row["loads"] == 0, f"spills: {row}"
        assert row["shared"] <= aot.SHARED[capability], row
        assert row["programs"] != 0, f"not one program fits an SM: {row}"


@pytest.mark.parametrize("capability", aot.SHARED)
def test_all_that_dispatch_can_choose_is_compiled(tables, capability):
    assert tables[capability]["missing"] == []


def test_a_choice_that_no_case_makes_is_missing(monkeypatch):
    launched = list(aot.compile_op("wavenet_sample", sampler, 90))
    assert aot.missing(sampler, "", launched) == []
    alone = [found for found in launched if found[0] == "float32"]
    ((dtype, kernel, constants),) = aot.missing(sampler, "", alone)
    assert (dtype, kernel) == ("bfloat16", "sample_kernel")
    assert constants == sampler.CANDIDATES["bfloat16"][0]
    monkeypatch.setattr(sampler, "choices", lambda *_: [{"DEPTH": 128}])
    found = aot.missing(sampler, "", launched)
    assert [constants for *_, constants in found] == [{"DEPTH": 128}] * 2


def test_winners_are_compiled(monkeypatch):
    winner = sampler.CANDIDATES["float32"][1]
    winners = {"A GPU": {"capability": 90, "wavenet_sample": {"float32": winner}}}
    monkeypatch.setattr(_tuned, "WINNERS", winners)
    assert aot.devices(90) == ["", "A GPU"]
    assert aot.devices(80) == [""]
    launched = list(aot.compile_op("wavenet_sample", sampler, 90, "A GPU"))
    assert aot.missing(sampler, "A GPU", launched) == []
    assert len(aot.missing(sampler, "", launched)) == 1


def test_one_binary_samples_from_every_model():
    with aot.compiling(90) as found:
        for dtype in sampler.CANDIDATES:
            aot.launch("wavenet_sample", {}, dtype)
            sizes = {"L": 30, "stacks": 3, "K": 3, "R": 128, "H": 128, "S": 128, "A": 256, "T": 1}
            aot.launch("wavenet_sample", sizes, dtype)
            aot.launch("wavenet_sample", cases.WAVENET_SAMPLE["ones"], dtype)
    binaries = {binary.hash: binary for *_, binary in found}
    assert len(binaries) == 2
    for binary in binaries.values():
        # loads that may come from a cache that stores do not reach
        assert "ld.global.nc" not in binary.asm["ptx"]


def test_one_binary_draws_images_of_every_model():
    with aot.compiling(90) as found:
        for sizes in ({"L": 16, "P": 128, "S": 256, "k": 5, "H": 1}, cases.PIXELCNN_SAMPLE["ones"]):
            aot.launch("pixelcnn_sample", sizes, "float32")
        aot.launch("pixelcnn_sample", {"C": 3, "A": 256, "n": 17}, "float32")
    ((binary),) = {binary.hash: binary for *_, binary in found}.values()
    # loads that may come from a cache that stores do not reach
    assert "ld.global.nc" not in binary.asm["ptx"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_choices_are_all_that_can_be_chosen(monkeypatch, dtype):
    x = torch.zeros(0, dtype=dtype)
    name, seen = str(dtype).removeprefix("torch."), []
    winners = {"": {"capability": 90, "wavenet_layer": {name: layer.CANDIDATES[name][1]}}}
    monkeypatch.setattr(_tuned, "WINNERS", winners)
    for size in range(1, 65):
        for dilation in (1, 2, 4, 8, 512):
            chosen = layer.choose(x, size, 64, 64, 256, dilation)
            assert size % chosen["UNIT"] == 0
            assert size % chosen["STEP"] == dilation % chosen["STEP"] == 0
            tuned = layer.CANDIDATES[name][int(chosen["UNIT"] > 1)]
            assert tuned.items() <= chosen.items()
            seen += [chosen] if chosen not in seen else []
    assert sorted(seen, key=str) == sorted(layer.choices(dtype, x.device), key=str)


@nvcc
def test_the_table_of_a_cuda_file(tmp_path):
    (tmp_path / "kernel.cu").write_text(KERNEL)
    ((row),) = aot.cuda_rows(90, [tmp_path / "kernel.cu"])
    assert (row["op"], row["kernel"]) == ("kernel.cu", "_Z5scalePfi")
    assert 0 < row["registers"] < 30
    assert row["shared"] == 1024
    assert row["stores"] == row["loads"] == 0
    (tmp_path / "kernel.cu").write_text(SPILLS)
    ((row),) = aot.cuda_rows(80, [tmp_path / "kernel.cu"])
    assert row["stores"] > 0
    assert f"spills {row['stores']}+{row['loads']} B" in aot.tell(row)
    (tmp_path / "kernel.cu").write_text("nonsense")
    with pytest.raises(SystemExit, match=r"kernel.cu does not compile:\n.*error"):
        list(aot.cuda_rows(90, [tmp_path / "kernel.cu"]))


def test_winners_are_candidates():
    files = aot.triton_files()
    for device, winners in _tuned.WINNERS.items():
        assert device
        assert winners["capability"] in aot.SHARED
        for op, by_dtype in winners.items():
            for dtype, constants in by_dtype.items() if op != "capability" else ():
                assert constants in files[op].CANDIDATES[dtype]


def test_an_unknown_device_gets_the_default(monkeypatch):
    winner = layer.CANDIDATES["float32"][2]
    winners = {"A GPU": {"capability": 90, "wavenet_layer": {"float32": winner}}}
    monkeypatch.setattr(_tuned, "WINNERS", winners)
    for device, want in (("", 0), ("Another", 0), ("A GPU", 2)):
        monkeypatch.setattr(_tuned, "device_name", lambda _, device=device: device)
        for dtype in ("float32", torch.float32):
            got = _tuned.constants("wavenet_layer", layer.CANDIDATES, dtype, None)
            assert got == layer.CANDIDATES["float32"][want]
        got = _tuned.constants("wavenet_layer", layer.CANDIDATES, torch.bfloat16, None)
        assert got == layer.CANDIDATES["bfloat16"][0]
    assert _tuned.WINNERS is winners
