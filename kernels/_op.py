"""Registration and memory safety of every kernel: `op` and `launch`."""

import functools
import importlib.util
import os
import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensor

try:
    from .. import _C as native
except ImportError as error:
    if error.name != "fastgen._C" and "_C" not in str(error):
        raise
    native = None

LIB = torch.library.Library("fastgen", "DEF")

if native is not None and "FASTGEN_ISA" in os.environ:
    native.set_isa(os.environ["FASTGEN_ISA"])


def op(fn):
    """Register `fn`, which checks, allocates and launches, as torch.ops.fastgen.<name>.

    `fn` is its own fake kernel. Tensors reach it contiguous.
    """
    name = fn.__name__.lstrip("_")

    @functools.wraps(fn)
    def call(*args, **kwargs):
        return fn(*map(contiguous, args), **{k: contiguous(v) for k, v in kwargs.items()})

    LIB.define(name + torch.library.infer_schema(fn, mutates_args=()))
    LIB.impl(name, call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastgen::{name}", fn, lib=LIB)
    return getattr(torch.ops.fastgen, name).default


def contiguous(x):
    """A tensor, or each tensor of a list, made contiguous; anything else as it is."""
    if isinstance(x, torch.Tensor):
        return x.contiguous()
    return [contiguous(v) for v in x] if isinstance(x, (list, tuple)) else x


def launch(kernel, *args):
    """Call a native kernel with the tensors' addresses; None becomes the null pointer.

    Returns at once on fake and meta tensors, which have no memory to point to.
    Raises ValueError for a tensor that is not contiguous.
    """
    if ready(args):
        args = (a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args)
        kernel(*(0 if a is None else a for a in args))


def ready(args):
    """Whether a kernel can run: False of fake and meta tensors, which have no memory.

    Raises ValueError for a tensor that is not contiguous.
    """
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if any(isinstance(t, FakeTensor) or t.is_meta for t in tensors):
        return False
    for t in tensors:
        if not t.is_contiguous():
            raise ValueError(f"launch: expected contiguous tensors, got strides {t.stride()}")
    return True


def on_triton(x, name):
    """Whether `name` runs on Triton: tensors of a GPU, or of the CPU under TRITON_INTERPRET=1.

    Says once where Triton is not installed.
    """
    interpret = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != "cuda" and not interpret:
        return False
    if importlib.util.find_spec("triton") is None:
        warn_reference(name, "Triton is not installed")
        return False
    return True


def thread_count(requested=None):
    """How many threads a kernel uses: `requested`, or torch's own setting.

    Raises ValueError for a number below 1.
    """
    if requested is not None and requested < 1:
        raise ValueError(f"threads: expected at least 1, got {requested}")
    return torch.get_num_threads() if requested is None else requested


@functools.cache
def warn_reference(name, why="fastgen was built without a C++ compiler"):
    """Say once that `name` runs on its reference; an error under FASTGEN_REQUIRE_NATIVE=1."""
    message = f"{name} runs on its slow reference: {why} (`fastgen doctor` says more)"
    if os.environ.get("FASTGEN_REQUIRE_NATIVE") == "1":
        raise RuntimeError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)
