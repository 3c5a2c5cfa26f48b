"""Registration and memory safety of every kernel: `op` and `launch`."""

import functools
import importlib.util
import os
import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensor

ABSENT = "fastgen was built without a C++ compiler"  # or why the native module does not load
try:
    from .. import _C as native
except ImportError as error:
    native = None
    if importlib.util.find_spec(f"{__package__.rpartition('.')[0]}._C"):
        ABSENT = f"fastgen._C does not load: {error}"

LIB = torch.library.Library("fastgen", "DEF")
MOST_THREADS = 1024

ISA_ERROR = None  # what is wrong with FASTGEN_ISA, told by the first kernel that is called
if native is not None and "FASTGEN_ISA" in os.environ:
    try:
        native.set_isa(os.environ["FASTGEN_ISA"])
    except ValueError as error:
        ISA_ERROR = error


class Op:
    """torch.ops.fastgen.<name>, called past the dispatcher where that has nothing to do.

    Two ways through it and back to Python cost more than most small kernels. Arguments come by
    place, all of them.
    """

    def __init__(self, overload, run):
        self.overload, self.run = overload, run
        self.function = None  # the autograd.Function of its gradient
        self.types = [TYPES.get(str(a.type), ()) for a in overload._schema.arguments]

    def __call__(self, *args):
        if torch.compiler.is_compiling() or not self.plain(args):
            return self.overload(*args)
        if not needs_gradient(args):
            return self.run(*args)
        return self.function.apply(*args) if self.function else self.overload(*args)

    def plain(self, args):
        """Whether the arguments are what the schema says, tensors in a CPU's memory with nothing
        to them but a gradient, and there is no mode, transform, tracer or profiler."""
        if len(args) != len(self.types):
            return False
        for a, types in zip(args, self.types, strict=True):
            if type(a) not in types:
                return False
            if isinstance(a, torch.Tensor) and torch._C._dispatch_keys(a).raw_repr() not in KEYS:
                return False
        C = torch._C
        return not (
            C._len_torch_dispatch_stack()
            or C._len_torch_function_stack()
            or C._functorch.peek_interpreter_stack()
            or C._get_tracing_state()
            or torch.autograd._profiler_enabled()
        )


TENSORS, NONE = (torch.Tensor, torch.nn.Parameter), type(None)
TYPES = {  # of a schema: of arguments that need no conversion
    "Tensor": TENSORS,
    "Optional[Tensor]": (*TENSORS, NONE),
    "Optional[str]": (str, NONE),
    "str": (str,),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
}


def keys(inference):
    """The dispatch keys of a tensor, as a number."""
    with torch.inference_mode(inference):
        return torch._C._dispatch_keys(torch.empty(0, device="cpu")).raw_repr()


KEYS = {keys(False), keys(True)}


def needs_gradient(args):
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args)


def op(fn):
    """Register `fn`, which checks, allocates and launches, as torch.ops.fastgen.<name>.

    `fn` is its own fake kernel. Tensors reach it contiguous.
    """
    name = fn.__name__.lstrip("_")

    @functools.wraps(fn)
    def run(*args, **kwargs):
        return fn(*[contiguous(a) for a in args], **{k: contiguous(v) for k, v in kwargs.items()})

    LIB.define(name + torch.library.infer_schema(fn, mutates_args=()))
    LIB.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastgen::{name}", fn, lib=LIB)
    return Op(getattr(torch.ops.fastgen, name).default, run)


def gradient(op, backward, setup_context):
    """Give an op its gradient, as torch.library.register_autograd does, with less to do at a call.

    That one reads the schema each time, for the lists of tensors and the defaults that an op may
    have: one that comes here has none.
    """

    name = op.overload._schema.name.partition("::")[2]

    def below(*args):
        with torch._C._AutoDispatchBelowAutograd():
            return op.overload(*args)

    def function(run):
        def forward(ctx, *args):
            output = run(*args)
            setup_context(ctx, args, output)
            return output

        passes = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(name, (torch.autograd.Function,), passes)

    op.function, dispatched = function(op.run), function(below)

    def call(*args):
        return (dispatched.apply if needs_gradient(args) else below)(*args)

    LIB.impl(op.overload._opname, call, "Autograd")


def contiguous(x):
    """A tensor, or each tensor of a list, made contiguous; anything else as it is."""
    if isinstance(x, torch.Tensor):
        return x.contiguous()
    return [contiguous(v) for v in x] if isinstance(x, (list, tuple)) else x


def launch(kernel, *args):
    """Call a native kernel with the tensors' addresses; None becomes the null pointer.

    Returns at once on fake and meta tensors, which have no memory to point to.
    Raises ValueError as `in_memory` does, and for an unknown FASTGEN_ISA.
    """
    values = []  # `args` stays as it is: it may be all that keeps a tensor's memory
    for a in args:
        if isinstance(a, torch.Tensor):
            if not in_memory(a):
                return
            a = a.data_ptr()
        values.append(0 if a is None else a)
    if ISA_ERROR:
        raise ISA_ERROR
    kernel(*values)


def ready(args):
    """Whether a kernel can run: all tensors are `in_memory`."""
    return all(in_memory(a) for a in args if isinstance(a, torch.Tensor))


def in_memory(x):
    """Whether x has memory: False of fake and meta tensors.

    Raises ValueError for a tensor that is not contiguous, or whose memory does not hold it: that is
    negative or zero by a flag.
    """
    if x.is_meta or isinstance(x, FakeTensor):
        return False
    if not x.is_contiguous():
        raise ValueError(f"launch: expected contiguous tensors, got strides {x.stride()}")
    if x.is_neg() or (x.numel() and not x.data_ptr()):
        raise ValueError("launch: expected tensors in memory, got one negated or zero by a flag")
    return True


def on_triton(x, name):
    """Whether `name` runs on Triton: tensors of a GPU, or of the CPU under TRITON_INTERPRET=1.

    Says once where Triton is not installed.
    """
    interpret = x.is_cpu and os.environ.get("TRITON_INTERPRET") == "1"
    if not x.is_cuda and not interpret:
        return False
    if importlib.util.find_spec("triton") is None:
        warn_reference(name, "Triton is not installed")
        return False
    return True


def thread_count(requested=None):
    """How many threads a kernel uses: `requested`, or torch's own setting.

    Raises ValueError for what is no such number.
    """
    if requested is None:
        return torch.get_num_threads()
    if not isinstance(requested, int) or not 1 <= requested <= MOST_THREADS:
        raise ValueError(f"threads: expected an int in [1, {MOST_THREADS}], got {requested}")
    return requested


def may_wait(x):
    """Whether values of x may be looked at: on a GPU that waits for them, which a graph that is
    captured cannot, and of which torch.cuda.set_sync_debug_mode warns; a meta tensor has none."""
    if not x.is_cuda:
        return not x.is_meta
    return not (torch.cuda.is_current_stream_capturing() or torch.cuda.get_sync_debug_mode())


def cast(inputs):
    """The inputs as autocast, where it is on, would have them."""
    kind = inputs[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return inputs
    dtype = torch.get_autocast_dtype(kind)
    wide = (None, torch.float64)
    return [v if getattr(v, "dtype", None) in wide else v.to(dtype) for v in inputs]


def fit(op, names, inputs, shapes, dtypes):
    """Raise ValueError or TypeError unless each input has its shape, the first one's device and
    dtype, and that is one of `dtypes`. What is None is left out."""
    first = inputs[0]
    for name, v, shape in zip(names, inputs, shapes, strict=True):
        if v is not None:
            expect(v.shape == shape, f"{op}: {name}", shape, tuple(v.shape))
            expect(v.device == first.device, f"{op}: {name}", first.device, v.device)
            expect(v.dtype == first.dtype, f"{op}: {name}", first.dtype, v.dtype, TypeError)
    expect(first.dtype in dtypes, op, "a floating dtype", first.dtype, TypeError)


def expect(ok, what, expected, got, error=ValueError):
    if not ok:
        raise error(f"{what}: expected {expected}, got {got}")


def graph(outputs, douts, inputs, needs):
    """The gradients of the inputs that need one, else None, as a graph to be differentiated."""
    pairs = zip(outputs, douts, strict=True)
    pairs = [(y, dy) for y, dy in pairs if dy is not None and y is not None and y.requires_grad]
    wanted = [v for v, needed in zip(inputs, needs, strict=True) if needed]
    if not pairs or not wanted:
        return [None] * len(needs)
    (ys, dys), options = zip(*pairs, strict=True), {"create_graph": True, "allow_unused": True}
    found = iter(torch.autograd.grad(ys, wanted, dys, **options))
    return [next(found) if needed else None for needed in needs]


def without_autocast(fn):
    """`fn` in the dtypes of its arguments, under autocast too."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return fn(*args, **kwargs)

    return call


def transformed(tensors):
    """Whether torch.func or forward-mode differentiation looks through any of the tensors."""
    if torch.compiler.is_compiling():
        return False
    forward = torch.autograd.forward_ad._current_level >= 0
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return forward or any(v is not None and wrapped(v) for v in tensors)


@functools.cache
def warn_reference(name, why=ABSENT):
    """Say once that `name` runs on its reference; an error under FASTGEN_REQUIRE_NATIVE=1."""
    message = f"{name} runs on its slow reference: {why} (`fastgen doctor` says more)"
    if os.environ.get("FASTGEN_REQUIRE_NATIVE") == "1":
        raise RuntimeError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)
