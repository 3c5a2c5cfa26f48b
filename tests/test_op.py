import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.kernels import _op, minibatch_discrimination
from fastgen.kernels._op import LIB, gradient, launch, native, op, thread_count, warn_reference


@op
def _strides_for_tests(
    x: torch.Tensor, y: torch.Tensor | None, others: list[torch.Tensor], scale: float = 2.0
) -> torch.Tensor:
    for tensor in (x, *others):
        assert tensor.is_contiguous()
    return x * scale


@op
def _power_for_tests(x: torch.Tensor, y: torch.Tensor | None, n: int) -> torch.Tensor:
    return x**n if y is None else x**n * y


@op
def _torch_power_for_tests(x: torch.Tensor, y: torch.Tensor | None, n: int) -> torch.Tensor:
    return x**n if y is None else x**n * y


def power_context(ctx, inputs, output):
    x, y, ctx.n = inputs
    ctx.save_for_backward(x, y)


def power_backward(ctx, dz):
    (x, y), needs = ctx.saved_tensors, ctx.needs_input_grad[:2]
    dx = ctx.n * x ** (ctx.n - 1) * dz
    return dx if y is None else dx * y, x**ctx.n * dz if needs[1] else None, None


gradient(_power_for_tests, power_backward, power_context)
torch.library.register_autograd(
    "fastgen::torch_power_for_tests", power_backward, setup_context=power_context, lib=LIB
)
POWERS = _power_for_tests, _torch_power_for_tests


def kernel(calls):
    return lambda *args: calls.append(args)


def run(script, **environment):
    """Run Python in a process of its own, and return what it printed and its errors."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout, done.stderr


def test_tensors_reach_an_op_contiguous():
    x = torch.arange(6.0).view(2, 3).T
    assert torch.equal(_strides_for_tests(x, x, [x, x]), x * 2)
    assert torch.equal(torch.ops.fastgen.strides_for_tests(x, None, [x[::2]], scale=3.0), x * 3)


def test_an_op_knows_shapes_alone():
    x = torch.ones(2, 3)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert _strides_for_tests(fake, None, []).shape == (2, 3)
    assert _strides_for_tests(x.to("meta"), None, []).shape == (2, 3)


def powers(x, y, twice=False):
    """Of both: the value, and gradients of it, or of its gradients."""
    for power in POWERS:
        leaves = [v.clone().requires_grad_(v.requires_grad) for v in (x, y) if v is not None]
        wanted = [v for v in leaves if v.requires_grad]
        z = power(*leaves, *[None] * (2 - len(leaves)), 3)
        grads = torch.autograd.grad(z.sum(), wanted, create_graph=twice)
        if twice:
            grads = torch.autograd.grad(sum(g.square().sum() for g in grads), wanted)
        yield [z.detach(), *grads]


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("needed", ["x", "y", "xy", "x alone"])
def test_gradients_are_those_of_register_autograd(needed, twice):
    x, y = torch.randn(2, 3, dtype=torch.float64)
    x.requires_grad_("x" in needed)
    y = None if needed == "x alone" else y.requires_grad_("y" in needed)
    ours, torchs = powers(x, y, twice and needed != "y")
    for a, b in zip(ours, torchs, strict=True):
        assert torch.equal(a, b)


def test_an_op_with_a_gradient_is_one_of_torch():
    x, y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(_power_for_tests.overload, (x, y, 3))
    torch.autograd.gradgradcheck(lambda x, y: _power_for_tests(x, y, 3), (x, y))
    assert _power_for_tests(x, y, 3).grad_fn.name() == "power_for_testsBackward"
    compiled = torch.compile(lambda x, y: _power_for_tests(x, y, 3) * 2, backend="aot_eager")
    grads = torch.autograd.grad(compiled(x, y).sum(), (x, y))
    torch.testing.assert_close(grads, (6 * x**2 * y, 2 * x**3))
    with torch.no_grad():
        assert not _power_for_tests(x, y, 3).requires_grad
    assert not _power_for_tests(x.detach(), None, 3).requires_grad
    with FakeTensorMode() as mode:
        assert _power_for_tests(mode.from_tensor(x), None, 3).requires_grad


class Log(TorchDispatchMode):
    """Remembers the names of what it sees."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


def test_an_op_goes_past_the_dispatcher_but_not_past_who_watches(monkeypatch):
    x, name = torch.ones(2, 3), "fastgen::power_for_tests"
    with Log() as log:
        _power_for_tests(x, None, 2)
    assert name in log.names
    with torch.profiler.profile() as profile:
        _power_for_tests(x, None, 2)
    assert name in {event.key for event in profile.key_averages()}
    traced = torch.jit.trace(lambda x: _power_for_tests(x, None, 2), x)
    assert name in str(traced.graph)
    functional = torch.func.functionalize(lambda x: _power_for_tests(x, None, 2))
    assert torch.equal(functional(3 * x), 9 * x)

    def refuse(*args):
        raise AssertionError("through the dispatcher")

    monkeypatch.setattr(_power_for_tests, "overload", refuse)
    for leaf in (x, torch.nn.Parameter(x)):
        assert torch.equal(_power_for_tests(leaf, None, 2), x)
    with pytest.raises(AssertionError, match="through the dispatcher"), Log():
        _power_for_tests(x, None, 2)


@op
def _number_for_tests(x: torch.Tensor, n: int) -> torch.Tensor:
    assert type(n) is int
    return x * n


def test_an_op_gets_what_its_schema_says():
    x = torch.randn(3)
    assert torch.equal(_number_for_tests(x, torch.tensor(2)), 2 * x)
    with pytest.raises(RuntimeError, match="Expected a value of type 'int'"):
        _number_for_tests(x, 1.5)


def odd(x):
    """Tensors that are of torch's own type, and whose memory does not hold them."""
    return {"negative": (torch._neg_view(x), -x), "zero": (torch._efficientzerotensor(3), 0 * x)}


@pytest.mark.parametrize("kind", ["negative", "zero"])
def test_tensors_that_are_a_flag(kind):
    given, same = odd(torch.randn(3))[kind]
    with pytest.raises(ValueError, match="launch: expected tensors in memory"):
        launch(lambda *args: None, given)
    assert torch.equal(_power_for_tests(given, None, 3), same**3)
    x = torch.randn(3, requires_grad=True)
    (dx,) = torch.autograd.grad(_power_for_tests(x, None, 2), x, given)
    assert torch.equal(dx, 2 * x * same)
    m = torch.randn(4, 3, 2)
    jacobian = torch.autograd.functional.jacobian(minibatch_discrimination, m, vectorize=True)
    want = torch.autograd.functional.jacobian(minibatch_discrimination, m)
    torch.testing.assert_close(jacobian, want)


def test_a_gradient_that_an_op_lacks_is_missed():
    x = torch.ones(2, requires_grad=True)
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        _strides_for_tests(x, None, []).sum().backward()


def test_launch_passes_addresses():
    calls, x = [], torch.ones(3)
    launch(kernel(calls), 5, x, None, 0.5, x[1:])
    assert calls == [(5, x.data_ptr(), 0, 0.5, x.data_ptr() + 4)]


@pytest.mark.parametrize(
    "gappy", [torch.ones(2, 3).T, torch.ones(4)[::2], torch.ones(1).expand(3)], ids=str
)
def test_launch_refuses_gaps(gappy):
    calls = []
    with pytest.raises(ValueError, match=r"launch: expected contiguous tensors, got strides \("):
        launch(kernel(calls), torch.ones(2), gappy)
    assert not calls


def test_launch_leaves_shapes_alone():
    calls, x = [], torch.ones(2, 3)
    launch(kernel(calls), x, x.to("meta").T)
    with FakeTensorMode() as mode:
        launch(kernel(calls), x, mode.from_tensor(x))
    assert not calls


def test_thread_count():
    torch.set_num_threads(3)
    assert thread_count() == 3
    assert thread_count(5) == 5
    for wrong in (0, -2, 1.5, 1 << 63):
        with pytest.raises(
            ValueError, match=rf"threads: expected an int in \[1, 1024\], got {wrong}"
        ):
            thread_count(wrong)


THREADS = """
import os
import signal
import torch
from fastgen.kernels import minibatch_discrimination

def tasks():
    return set(os.listdir("/proc/self/task"))

def features(threads):
    torch.set_num_threads(threads)
    return minibatch_discrimination(m)

m = torch.arange(1024.0).cos().view(16, 16, 4)
alone = features(1)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
needs_native = pytest.mark.skipif(native is None, reason="needs a C++ compiler")


@linux
@pytest.mark.skipif(native is None or not native.pooled(2), reason="torch is without OpenMP")
def test_kernels_run_on_the_threads_of_torch():
    script = f"""{THREADS}
assert len(tasks()) == 1
torch.set_num_threads(2)
torch.randn(1 << 20).exp()
there = tasks()
assert len(there) == 2
assert torch.equal(features(2), alone)
assert tasks() == there
"""
    assert run(script, OMP_NUM_THREADS="1") == ("", "")


@linux
@needs_native
def test_threads_past_the_cores_are_for_one_call():
    script = f"""{THREADS}
before = tasks()
assert torch.equal(features(os.cpu_count() + 1), alone)
assert tasks() == before
"""
    assert run(script, OMP_NUM_THREADS="1") == ("", "")


@needs_native
def test_all_threads_flush_denormals_as_the_caller_does():
    script = """
import torch
from fastgen.kernels import affine_coupling

torch.set_num_threads(2)
torch.randn(1 << 20).exp()  # the threads are there
torch.set_flush_denormal(True)
x, h = torch.randn(1 << 17, 8) * 1e-35, torch.zeros(1 << 17, 8)
h[:, :4] = -9
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    y, _ = affine_coupling(x, h, split="channel", scale="exp")
    print((y.view(torch.int32) & 0x7FFFFFFF == 0).sum().item())
"""
    printed, errors = run(script)
    assert [int(line) > 1 << 18 for line in printed.splitlines()] == [True] * 3, errors
    assert len(set(printed.splitlines())) == 1, printed


@linux
@needs_native
@pytest.mark.parametrize("threads", [1, 2, 65])
def test_want_of_memory_in_a_task_is_an_error(threads):
    script = f"""
import resource
import torch
from fastgen.kernels import affine_coupling, affine_coupling_ref

torch.set_num_threads({threads})
wide, h = torch.zeros(3, 20_000_000), torch.zeros(3, 20_000_000)
small = torch.randn(64, 8), torch.randn(64, 8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + wide.nbytes + (200 << 20), hard))
try:
    affine_coupling(wide, h, split="channel")
except MemoryError:
    print("no memory")
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
pairs = zip(affine_coupling(*small, split="channel"), affine_coupling_ref(*small, split="channel"))
print(all(torch.allclose(a, b, atol=1e-6) for a, b in pairs))
"""
    assert run(script)[0] == "no memory\nTrue\n"


@linux
@needs_native
def test_kernels_run_in_a_fork():
    script = f"""{THREADS}
features(2)
child = os.fork()
if not child:
    signal.alarm(60)  # else the child of a failure would spin for good
    os._exit(0 if torch.equal(features(2), alone) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    assert run(script, OMP_NUM_THREADS="1") == ("", "")


def test_a_reference_is_announced_once(monkeypatch):
    warn_reference.cache_clear()
    monkeypatch.delenv("FASTGEN_REQUIRE_NATIVE", raising=False)
    with pytest.warns(RuntimeWarning, match="some_op runs on its slow reference"):
        warn_reference("some_op")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_reference("some_op")
    monkeypatch.setenv("FASTGEN_REQUIRE_NATIVE", "1")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="other_op runs on its slow reference"):
            warn_reference("other_op")


def test_instruction_sets():
    assert native.isas()[0] == "scalar"
    for isa in native.isas():
        native.set_isa(isa)
        assert native.isa() == isa
    with pytest.raises(ValueError, match=r"FASTGEN_ISA: expected one of scalar .*got sse9"):
        native.set_isa("sse9")
    assert native.isa() == native.isas()[-1]


def test_the_environment_names_the_instruction_set():
    script = "from fastgen.kernels._op import native; print(native.isa())"
    assert run(script, FASTGEN_ISA="scalar")[0] == "scalar\n"
    script += "; import torch; from fastgen import WaveNet; WaveNet(2, 1).sample(1, 2)"
    last = run(script, FASTGEN_ISA="sse9")[1].splitlines()[-1]
    assert last == f"ValueError: FASTGEN_ISA: expected one of {' '.join(native.isas())}, got sse9"


WITHOUT_NATIVE = """
import os, sys, warnings
sys.modules["fastgen._C"] = None
import torch
from fastgen import WaveNet
from fastgen.kernels._op import native
assert native is None
model = WaveNet(2, 1, 4, 8, 4, 16)
os.environ["FASTGEN_REQUIRE_NATIVE"] = "1"
try:
    model.sample(1, 5)
except RuntimeError as error:
    print(error)
del os.environ["FASTGEN_REQUIRE_NATIVE"]
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    codes = [model.sample(2, 5, seed=i) for i in range(3)]
print(*[w.message for w in found if "wavenet_sample" in str(w.message)], sep="\\n")
assert codes[0].shape == (2, 5)
assert torch.equal(codes[0], model.sample(2, 5, seed=0, method="naive"))
try:
    model.sample(1, 5, threads=0)
except ValueError as error:
    print(error)
"""


def test_a_package_without_the_extension():
    printed, errors = run(WITHOUT_NATIVE)
    says = "wavenet_sample runs on its slow reference: fastgen was built without a C++ compiler"
    *lines, last = printed.splitlines()
    assert [line[: len(says)] for line in lines] == [says, says], errors
    assert last == "threads: expected an int in [1, 1024], got 0", errors


def test_the_extension_is_loaded():
    assert _op.native is not None
