"""Minibatch discrimination against its reference, and what it must be by its definition."""

import functools
import subprocess
import sys

import cases
import pytest
import torch
from check import cast, check, close, compare, ends_on_ctrl_c, evaluate, leaf, lets_others_run
from torch.autograd import gradcheck, gradgradcheck

from fastgen.kernels import minibatch_discrimination, minibatch_discrimination_ref
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.minibatch_discrimination"]


def case(**sizes):
    """The op and the reference with their options, and the inputs."""
    *inputs, options = cases.minibatch_discrimination(**sizes)
    return (
        functools.partial(minibatch_discrimination, **options),
        functools.partial(minibatch_discrimination_ref, **options),
        inputs,
    )


@pytest.mark.parametrize("name", cases.MINIBATCH_DISCRIMINATION)
def test_values_and_gradients(name):
    check(*case(**cases.MINIBATCH_DISCRIMINATION[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    # many are equal in so few bits
    compare(*case(N=40, M=33, C=3, dtype=dtype), str(dtype))
    compare(*case(N=40, groups=2, dtype=dtype), str(dtype))


def penalty(op, inputs):
    """An op's gradients, and those of a weighted sum of them."""
    inputs = [leaf(v) for v in inputs]
    leaves = [v for v in inputs if v is not None]
    o = op(*inputs)
    g = torch.linspace(-1, 2, o.numel()).to(o).view(o.shape).requires_grad_()
    grads = torch.autograd.grad(o, leaves, g, create_graph=True)
    loss = sum((v * torch.linspace(1, 3, v.numel()).to(v).view(v.shape).sin()).sum() for v in grads)
    return [*(v.detach() for v in grads), *torch.autograd.grad(loss, [*leaves, g])]


TWICE = ["plain", "a row", "groups", "another batch", "groups of two batches", "many components"]


@pytest.mark.parametrize("name", [*TWICE, "a tile and a row", "tiles", "another batch of no rows"])
def test_gradients_of_gradients(name):
    op, ref, inputs = case(**cases.MINIBATCH_DISCRIMINATION[name])
    want = penalty(ref, cast(inputs, torch.float64))
    for isa in native.isas():
        native.set_isa(isa)
        for dtype in (torch.float32, torch.float64):
            wanted = want if dtype == torch.float64 else penalty(ref, rounded(inputs))
            for got, expected in zip(penalty(op, cast(inputs, dtype)), wanted, strict=True):
                close(got, expected, dtype, f"{isa}, {name}")


def rounded(inputs):
    return cast(cast(inputs, torch.float32), torch.float64)


@pytest.mark.parametrize("name", ["plain", "groups of two batches"])
def test_gradgradcheck(name):
    op, _, inputs = case(**{**cases.MINIBATCH_DISCRIMINATION[name], "B": 2}, dtype=torch.float64)
    leaves = [leaf(v) for v in inputs]
    assert gradcheck(op, leaves)
    assert gradgradcheck(op, leaves)


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_of_two_batches_alone(wanted):
    op, ref, inputs = case(M=5, dtype=torch.float64)
    got, want = (evaluate(fn, inputs, wanted=[wanted]) for fn in (op, ref))
    for a, b in zip(got, want, strict=True):
        close(a, b, torch.float64, "alone")
    inputs = [leaf(v) if i == wanted else v for i, v in enumerate(inputs)]
    assert gradgradcheck(op, inputs)


def test_third_gradients():
    m, _, _ = cases.minibatch_discrimination(N=4, B=2, C=2, dtype=torch.float64)
    found = []
    for fn in (minibatch_discrimination, minibatch_discrimination_ref):
        grad = x = m.clone().requires_grad_()
        for _ in range(3):
            grad = fn(x) if grad is x else grad
            (grad,) = torch.autograd.grad(grad.square().sum(), x, create_graph=True)
        found.append(grad)
    torch.testing.assert_close(*found)


def test_equal_rows():
    m = torch.randn(3, 2, 4).repeat(30, 1, 1)
    assert torch.allclose(minibatch_discrimination(torch.ones(5, 2, 3)), torch.tensor(4.0))
    for got, want in zip(
        evaluate(minibatch_discrimination, [m]),
        evaluate(minibatch_discrimination_ref, [m.double()]),
        strict=True,
    ):
        close(got, want, torch.float32, "equal rows")
    m = torch.ones(9, 2, 3, requires_grad=True)
    assert not torch.autograd.grad(minibatch_discrimination(m).sum(), m)[0].any()


def test_far_rows():
    m = torch.tensor([0, 1, 80, 1e30, float("inf"), 3e38]).view(6, 1, 1)
    want = minibatch_discrimination_ref(m)
    for isa in native.isas():
        native.set_isa(isa)
        close(minibatch_discrimination(m), want.double(), torch.float32, isa)
        broken = minibatch_discrimination(torch.cat([m, torch.full((1, 1, 1), torch.nan)]))
        assert broken.isnan().all()


def test_what_a_row_sees():
    op, _, (m, _) = case(N=12, B=2, groups=3, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(op, m).abs().sum((1, 3, 4)) != 0
    group = torch.arange(12) // 4
    assert torch.equal(seen, group[:, None] == group)
    order = torch.randperm(12)
    whole = minibatch_discrimination(m)
    torch.testing.assert_close(minibatch_discrimination(m[order]), whole[order])
    torch.testing.assert_close(minibatch_discrimination(m, m), whole + 1)
    torch.testing.assert_close(minibatch_discrimination(m, keep_self=True), whole + 1)


def test_opcheck():
    ops = torch.ops.fastgen
    m, y, _ = cases.minibatch_discrimination(M=5, dtype=torch.float64)
    m, y, grad = leaf(m), leaf(y), torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(ops.minibatch_discrimination.default, (m, None, False, 1))
    arguments = (grad, m, y, 1, True, True)
    torch.library.opcheck(ops.minibatch_discrimination_backward.default, arguments)


def test_memory_is_that_of_m():
    """A process whose memory is bounded far below N^2 B C."""
    N, B, C = 3000, 4, 5
    script = f"""
import re, torch
from fastgen.kernels import minibatch_discrimination
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
def call(N):
    m = torch.randn(N, {B}, {C}, requires_grad=True)
    o = minibatch_discrimination(m)
    (g,) = torch.autograd.grad(o.sum(), m, create_graph=True)
    torch.autograd.grad(g.square().sum(), m)
call(3)
open("/proc/self/clear_refs", "w").write("5")  # the highest so far is forgotten
before = kilobytes("VmRSS")
call({N})
print(kilobytes("VmHWM") - before)"""
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < N * N * B * 4 / 10


def test_autocast():
    op, _, inputs = case(M=9, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = op(*inputs)
        assert o.dtype == torch.float32
        assert o.dtype == torch.cdist(*(v[:, 0] for v in inputs), p=1).dtype
        mixed = op(inputs[0].float(), inputs[1])
        assert op(*cast(inputs, torch.float64)).dtype == torch.float64
    assert torch.equal(o, op(*cast(inputs, torch.float32)))
    assert torch.equal(o, mixed)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    op, _, inputs = case(N=8, M=12, groups=2)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(evaluate(compiled, inputs), evaluate(op, inputs), strict=True):
        assert torch.equal(a, b)


def test_transforms_go_by_the_reference():
    m, _, _ = cases.minibatch_discrimination(dtype=torch.float64)

    def loss(m):
        return minibatch_discrimination(m).square().sum()

    x = leaf(m)
    (want,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(m), want)
    torch.testing.assert_close(torch.func.jvp(loss, (m,), (m,))[1], (want * m).sum())


def test_ctrl_c():
    m = torch.randn(20000, 40, 20)
    ends_on_ctrl_c(lambda: minibatch_discrimination(m))


def test_others_run_meanwhile():
    torch.set_num_threads(1)
    m = torch.randn(9000, 20, 10)
    lets_others_run(lambda: minibatch_discrimination(m))


WRONG = {
    "m: expected (N, B, C), got (7, 3)": {"m": torch.ones(7, 3)},
    "y: expected (M, 3, 4), got (7, 3, 5)": {"y": torch.ones(7, 3, 5)},
    "y: expected cpu, got meta": {"y": torch.ones(7, 3, 4, device="meta")},
    "keep_self: expected False": {"y": torch.ones(7, 3, 4), "keep_self": True},
    "groups: expected a divisor of 7 and 7, got 2": {"groups": 2},
    "groups: expected a divisor of 7 and 6, got 7": {"y": torch.ones(6, 3, 4), "groups": 7},
    "groups: expected a divisor of 7 and 7, got 0": {"groups": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    arguments = {"m": torch.ones(7, 3, 4), **WRONG[message]}
    with pytest.raises(ValueError, match=r"minibatch_discrimination: ") as error:
        minibatch_discrimination(**arguments)
    assert message in str(error.value)


def test_wrong_dtypes():
    m = torch.ones(7, 3, 4)
    with pytest.raises(TypeError, match=r"y: expected torch.float32, got torch.float64"):
        minibatch_discrimination(m, m.double())
    with pytest.raises(TypeError, match=r"expected a floating dtype, got torch.int64"):
        minibatch_discrimination(m.long())


def test_without_the_extension(monkeypatch):
    m, _, _ = cases.minibatch_discrimination()
    monkeypatch.setattr(module, "native", None)
    module.warn_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match="minibatch_discrimination runs on its slow reference"):
        got = minibatch_discrimination(m)
    assert torch.equal(got, minibatch_discrimination_ref(m))


def test_shapes_alone():
    m = torch.empty(6, 3, 4, device="meta", requires_grad=True)
    o = minibatch_discrimination(m, torch.empty(9, 3, 4, device="meta"))
    assert o.shape == (6, 3)
    assert torch.autograd.grad(o.sum(), m)[0].shape == m.shape
