"""Compile every GPU kernel for GPUs that need not be there: registers, spills, shared memory.

    python bench/aot.py [--capability 90] [--candidates] [--json]

Kernels are found, not listed: the cases of every op that has a Triton file run forward and backward
on CPU tensors, and each launch compiles instead of running. So what is compiled is what dispatch
chooses; what it can choose beyond that is `missing`. Every csrc/*.cu is compiled by nvcc, where
there is one, with the flags of CMakeLists.txt.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
import cases  # noqa: E402

from fastgen.kernels import _tuned  # noqa: E402

SHARED = {80: 166_912, 90: 232_448}  # bytes that a program may have, by compute capability
RESERVED = 1024  # bytes of it that a program has besides; an SM has as much more than SHARED
REGISTERS, FILE, THREADS, PROGRAMS = 255, 65_536, 2048, 32  # a thread's; an SM's


class Absent:
    """A driver of a GPU that is not there, which compiles but cannot run."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compiling(capability, device=""):
    """Within, ops of CPU tensors dispatch as on a GPU of that name, and launches only compile.

    Yields a list of what they were: kernel, constants, binary.
    """
    run, active, found = JITFunction.run, driver._active, []

    def compile(kernel, *args, warmup, **options):
        binary = run(kernel, *args, warmup=True, **options)
        found.append((kernel, {k: v for k, v in options.items() if k != "grid"}, binary))
        return binary

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("fastgen.kernels.") and hasattr(module, "on_triton"):
                stack.enter_context(mock.patch.object(module, "on_triton", return_value=True))
        stack.enter_context(mock.patch.object(_tuned, "device_name", return_value=device))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile))
        driver.set_active(Absent(capability))
        try:
            yield found
        finally:
            driver.set_active(active)


def triton_files():
    """The Triton file of each op that has cases and one."""
    names = {op: f"fastgen.kernels._{op}_triton" for op in cases.ops()}
    found = {op: name for op, name in names.items() if importlib.util.find_spec(name)}
    return {op: importlib.import_module(name) for op, name in found.items()}


def launch(op, sizes, dtype):
    """A case of an op, forward, where it has gradients backward, and those of <op>_twice."""
    args, options = cases.arguments(op, sizes, dtype)
    leaves = [v.requires_grad_() for v in args if cases.is_float(v)]
    outputs = [y for y in cases.tensors(cases.call(op, args, options)) if y.requires_grad]
    if outputs:
        twice = hasattr(torch.ops.fastgen, f"{op}_twice")
        ones = [torch.ones_like(y) for y in outputs]
        grads = torch.autograd.grad(outputs, leaves, ones, create_graph=twice)
        if twice:
            torch.autograd.grad(grads, leaves, grads)


def compile_op(op, file, capability, device="", dtypes=None):
    """Of every launch of an op's cases, in every dtype or some: it, kernel, constants, binary."""
    for dtype in dtypes or file.CANDIDATES:
        with compiling(capability, device) as found:
            for sizes in cases.table(op).values():
                launch(op, sizes, dtype)
        yield from ((dtype, *launched) for launched in found)


def devices(capability):
    """The devices that dispatch knows: an unknown one, and those of `capability` with winners."""
    return ["", *(d for d, w in _tuned.WINNERS.items() if w["capability"] == capability)]


def missing(file, device, launched):
    """What dispatch can choose and no launch did: triples of a dtype, a kernel and constants."""
    ours = [v for name, v in vars(file).items() if name.endswith("_kernel")]
    made = {(dtype, kernel, taken(kernel, constants)) for dtype, kernel, constants, _ in launched}
    with mock.patch.object(_tuned, "device_name", return_value=device):
        wanted = {
            (dtype, kernel, taken(kernel, choice))
            for dtype in file.CANDIDATES
            for choice in file.choices(getattr(torch, dtype), torch.device("cpu"))
            for kernel in ours
        }
    return [(dtype, k.__name__, dict(constants)) for dtype, k, constants in wanted - made]


def taken(kernel, constants):
    """Those of the constants that a kernel takes, to be compared."""
    names = (*kernel.arg_names, "num_warps")
    return tuple(sorted((name, v) for name, v in constants.items() if name in names))


def usage(binary):
    """Registers a thread, and bytes of spill stores and loads, by ptxas on the binary's PTX."""
    ptx = binary.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = re.search(r"^\.target (\w+)", ptx, re.M)[1]
        ptxas = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", file.name]
        run = subprocess.run([*ptxas, "-o", os.devnull], check=True, capture_output=True, text=True)
    ((_, *numbers, _),) = resources(run.stderr + run.stdout)
    return numbers


def resources(text):
    """Of each kernel that `ptxas -v` tells of: name, registers, spill stores and loads, shared."""
    for part in text.split("Compiling entry function '")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)[1]
        shared = re.search(r"(\d+) bytes smem", part)
        sizes = (registers, *spills.groups(), shared[1] if shared else 0)
        yield part.partition("'")[0], *map(int, sizes)


def row(capability, op, dtype, kernel, constants, numbers, shared, threads=0):
    """A binary's line in the table, with how many programs an SM has room for."""
    registers, stores, loads = numbers
    row = {"capability": capability, "op": op, "dtype": dtype, "kernel": kernel}
    row |= {"constants": constants, "registers": registers, "stores": stores, "loads": loads}
    row |= {"shared": shared, "threads": threads, "programs": None}
    if threads:
        room = (FILE // (threads * -(-registers // 8) * 8), THREADS // threads, PROGRAMS)
        row["programs"] = min(*room, (SHARED[capability] + RESERVED) // (shared + RESERVED))
    return row


def triton_rows(capability, candidates=False):
    """A line for each binary of the Triton kernels, and what is missing."""
    rows, lacking = {}, []
    for op, file in triton_files().items():
        for device in devices(capability):
            launched = list(compile_op(op, file, capability, device))
            lacking += [(op, device, *what) for what in missing(file, device, launched)]
            if candidates:
                launched += try_candidates(op, file, capability)
            for dtype, kernel, constants, binary in launched:
                if binary.hash not in rows:
                    shared, threads = binary.metadata.shared, 32 * binary.metadata.num_warps
                    what = (capability, op, dtype, kernel.__name__, constants)
                    rows[binary.hash] = row(*what, usage(binary), shared, threads)
    return list(rows.values()), lacking


def try_candidates(op, file, capability):
    """`compile_op` with every candidate in turn."""
    for dtype, listed in file.CANDIDATES.items():
        for tried in listed[1:]:
            with mock.patch.dict(file.CANDIDATES, {dtype: [tried]}):
                yield from compile_op(op, file, capability, dtypes=[dtype])


def cuda_rows(capability, sources=None):
    """A line for each kernel of each csrc/*.cu."""
    flags = (ROOT / "CMakeLists.txt").read_text()
    (code,) = re.findall(rf"-gencode=(arch=\S+,code=sm_{capability}a?)\b", flags)
    nvcc = [os.environ.get("CUDACXX") or "nvcc", "-cubin", "-std=c++17", "-Xptxas", "-v"]
    nvcc += ["-gencode", code]
    for source in sorted(ROOT.glob("csrc/*.cu")) if sources is None else sources:
        command = [*nvcc, source, "-o", os.devnull]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode:
            raise SystemExit(f"aot: {source.name} does not compile:\n{run.stdout}")
        threads, dynamic = asked(source.stem) if capability == 90 else (0, 0)
        for kernel, *numbers, shared in resources(run.stdout):
            yield row(capability, source.name, "", kernel, {}, numbers, shared + dynamic, threads)


def asked(op):
    """Threads of a block, and the most shared memory that a launch of an op's CUDA kernel asks."""
    name = f"fastgen.kernels._{op}_cuda"
    module = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return (module.THREADS, module.SHARED) if module else (0, 0)


def tell(row):
    """A row as a line of text, with its share of each limit."""
    registers, shared, limit = row["registers"], row["shared"], SHARED[row["capability"]]
    file = registers * row["threads"] / FILE
    parts = [f"sm_{row['capability']}", f"{row['kernel']:14} {row['dtype']:8}"]
    parts += [f"{registers:3} registers ({registers / REGISTERS:4.0%}, file {file:4.0%})"]
    parts += [f"spills {row['stores']}+{row['loads']} B"]
    parts += [f"shared {shared:6} B ({shared / limit:4.0%})", f"{row['programs'] or '?'} an SM"]
    return "  ".join([*parts, " ".join(f"{k}={v}" for k, v in row["constants"].items())])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=SHARED, help="one alone")
    parser.add_argument("--candidates", action="store_true", help="the tuner's candidates too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    rows, lacking = [], []
    for capability in [options.capability] if options.capability else SHARED:
        found, lacks = triton_rows(capability, options.candidates)
        rows += [*found, *(cuda_rows(capability) if nvcc else ())]
        lacking += [(capability, *what) for what in lacks]
    if options.json:
        print(json.dumps({"rows": rows, "missing": lacking}))
        return
    print(f"triton {triton.__version__}, {nvcc or 'no nvcc: the CUDA files are not compiled'}")
    print(*map(tell, rows), sep="\n")
    print(*(f"not compiled: {what}" for what in lacking), sep="\n")


if __name__ == "__main__":
    main()
