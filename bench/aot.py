"""Compile every Triton kernel for GPUs that need not be there: registers, spills, shared memory.

    python bench/aot.py

Each kernel is compiled as its launch would compile it, for every choice that the launch makes.
"""

import contextlib
import re
import subprocess
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from fastgen import kernels
from fastgen.kernels import _masked_conv2d_triton as conv
from fastgen.kernels import _wavenet_layer_triton as layer
from fastgen.kernels import _wavenet_sample_triton as sampler
from fastgen.kernels.wavenet_layer import GATES

SHARED = {80: 166_912, 90: 232_448}  # bytes that a program may have, by compute capability


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
def compiling(capability):
    """Within, launches compile for `capability` and do not run; yields a dict of what they did."""
    run, active, found = JITFunction.run, driver._active, {}

    def compile(kernel, *args, warmup, **options):
        binary = run(kernel, *args, warmup=True, **options)
        found[binary.hash] = binary
        return binary

    try:
        JITFunction.run = compile
        driver.set_active(Absent(capability))
        yield found
    finally:
        JITFunction.run = run
        driver.set_active(active)


def sample(dtype, layers=20, R=64, G=128, S=256, A=256, K=2):
    """Launch `wavenet_sample`."""
    L, H = layers, G // 2
    shapes = [(A, R), (L, G, R, K), (L, G), (L - 1, R, H), (L - 1, R), (L, S, H), (S,)]
    shapes += [(S, S), (S,), (A, S), (A,)]
    w = kernels.Weights(*(torch.zeros(shape) for shape in shapes))
    dilations = [1] * L
    state = kernels.initial_state(w, dilations, 1)
    none = (torch.zeros(1, 0, dtype=torch.int64), w.conv_bias[None], torch.zeros(1, 0, 0))
    options = (dilations, 1, A, 0, 1.0, False)
    packed = sampler.pack(w, dtype)
    sampler.wavenet_sample_triton(packed, torch.zeros(1, 1), *state, *none, *options)


def train(dtype, T, dilation, R=64, H=64, S=256, K=2):
    """Launch `wavenet_layer` and its gradient."""
    x, skip, cond = (torch.zeros(1, rows, T, dtype=dtype) for rows in (R, S, 2 * H))
    gates = cond.to(GATES.get(dtype, dtype))
    shapes = [(2 * H, R, K), (2 * H,), (R, H), (R,), (S, H), (S,)]
    weights = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    layer.forward(x, skip, *weights, cond, x, skip, gates, 1, dilation)
    weight, _, res_weight, _, skip_weight, _ = weights
    inputs = (x, skip, gates, x, weight, res_weight, skip_weight)
    layer.backward(*inputs, x, weights, cond, 1, dilation)


def convolve(dtype, last, C=64, O=64, live=24, k=(7, 7)):
    """Launch `masked_conv2d` and its gradient."""
    B, H, W = 2, 32, 32
    x, y = (torch.zeros((B, H, W, n) if last else (B, n, H, W), dtype=dtype) for n in (C, O))
    weight, bias = torch.zeros(O, C, live, dtype=dtype), torch.zeros(O, dtype=dtype)
    conv.forward(x, weight, bias, y, k, (1, 1), 1, last)
    conv.backward(y, x, weight, x, weight, k, (1, 1), 1, last)


def usage(binary):
    """Registers a thread and bytes of stack, which spills fill, of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return int(registers), int(stack)


def launches(dtypes=("float32", "bfloat16", "float16")):
    """What to launch, so that every choice is made: pairs of a name and a function."""
    for dtype in dtypes:
        if dtype in sampler.DTYPES:
            yield f"wavenet_sample {dtype}", lambda d=dtype: sample(d)
        for sizes in ((1024, 512), (1024, 1), (1001, 1)):
            name = f"wavenet_layer {dtype}, T = {sizes[0]}, dilation = {sizes[1]}"
            yield name, lambda d=dtype, s=sizes: train(getattr(torch, d), *s)
        for last in (False, True):
            for C in (1, 64):
                name = f"masked_conv2d {dtype}, {C} channels, {'last' if last else 'first'}"
                yield name, lambda d=dtype, f=last, c=C: convolve(getattr(torch, d), f, c)


def table(capability, **options):
    """Of each binary: launch, kernel, registers, bytes of stack, bytes of shared memory."""
    for name, launch in launches(**options):
        with compiling(capability) as found:
            launch()
        for binary in found.values():
            yield name, binary.metadata.name, *usage(binary), binary.metadata.shared


def main():
    print(f"triton {triton.__version__}")
    for capability in SHARED:
        for name, kernel, registers, stack, shared in table(capability):
            sizes = f"{registers:3} registers {stack:4} B stack {shared:6} B shared"
            print(f"sm_{capability}  {kernel:14} {sizes}  {name}", flush=True)


if __name__ == "__main__":
    main()
