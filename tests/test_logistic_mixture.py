import sys
import threading
from decimal import Decimal, localcontext

import cases
import pytest
import torch
from check import cast, check, close, compare, ends_on_ctrl_c, evaluate, leaf, lets_others_run
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen.kernels import logistic_mixture, logistic_mixture_ref
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.logistic_mixture"]


def case(**sizes):
    """The function and the reference with their options, and the inputs."""
    *inputs, options = cases.logistic_mixture(**sizes)
    return (
        lambda *v: logistic_mixture(*v, **options),
        lambda *v: logistic_mixture_ref(*v, **options),
        inputs,
    )


@pytest.mark.parametrize("sizes", cases.LOGISTIC_MIXTURE.values(), ids=cases.LOGISTIC_MIXTURE)
def test_equals_the_reference(sizes):
    check(*case(**sizes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions(dtype):
    op, ref, inputs = case(C=3, M=5, size=(9, 11), dtype=dtype)
    compare(op, ref, inputs, dtype)


def exactly(params, codes, classes, floor=-60):
    """log p by the definition and its slopes by differences, in 200 digits."""
    C, each = len(codes), [Decimal(p) for p in params]
    M = len(each) // module.rows(C)

    def sigmoid(x):
        return 1 / (1 + (-x).exp()) if x > 0 else x.exp() / (1 + x.exp())

    def tanh(x):
        return 2 * sigmoid(2 * x) - 1

    def log_p(p):
        rows = [p[k * M : (k + 1) * M] for k in range(module.rows(C))]
        values = [Decimal(2 * c) / (classes - 1) - 1 for c in codes]
        total = Decimal(0)
        for m in range(M):
            mass, k = rows[0][m].exp(), iter(rows[1 + 2 * C :])
            for c in range(C):
                mean = rows[1 + c][m] + sum(tanh(next(k)[m]) * values[d] for d in range(c))
                s = min(max(rows[1 + C + c][m], Decimal(floor)), Decimal(60))
                a, b = (
                    (values[c] - mean + side) / s.exp()
                    for side in (1 / Decimal(classes - 1), -1 / Decimal(classes - 1))
                )
                above = Decimal(1) if codes[c] == classes - 1 else sigmoid(a)
                below = Decimal(0) if codes[c] == 0 else sigmoid(b)
                mass *= above - below
            total += mass
        return (total / sum(l.exp() for l in rows[0])).ln()

    at, step = log_p(each), Decimal(10) ** -60
    slopes = []
    for i in range(len(each)):
        moved = [p + step * (i == j) for j, p in enumerate(each)]
        slopes.append((log_p(moved) - at) / step)
    return at, slopes


TAILS = {  # means, log-scales and codes of two components
    "in the middle": ([0.1, -0.3], [-2.0, -1.0], 140),
    "far out on the right": ([-3.0, -2.5], [-4.0, -4.5], 200),
    "far out on the left": ([3.0, 2.5], [-4.0, -4.5], 50),
    "narrow": ([0.0, 0.25], [-12.0, -9.0], 128),
    "wide": ([0.0, 0.5], [12.0, 20.0], 100),
    "wider than float32": ([0.0, 0.5], [40.0, 45.0], 100),
    "the first code": ([0.5, -0.9], [-3.0, -2.0], 0),
    "the first code, far": ([9.0, 8.0], [-3.0, -3.0], 0),
    "the last code": ([0.5, -0.9], [-3.0, -2.0], 255),
    "the last code, far": ([-9.0, -8.0], [-3.0, -3.0], 255),
    "one alone counts": ([0.0, 5.0], [-3.0, -3.0], 130),
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("isa", native.isas())
def test_the_tails_are_exact(isa, name):
    means, log_scales, code = TAILS[name]
    # every number is one of float32
    params = torch.tensor([0.5, -0.25, *means, *log_scales], dtype=torch.float32)
    with localcontext() as context:
        context.prec = 200
        context.Emin, context.Emax = -(10**9), 10**9
        want, slopes = exactly(params.tolist(), [code], 256)
        want, slopes = float(want), torch.tensor([float(s) for s in slopes], dtype=torch.float64)
    native.set_isa(isa)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        leaves = params.to(dtype)[None, :, None].requires_grad_()
        got = logistic_mixture(leaves, torch.tensor([[[code]]]), 256)
        (grad,) = torch.autograd.grad(got.sum(), leaves)
        # what a code's value in [-1, 1] and a mean lose by rounding, scales of e^-s magnify
        lost = bound * max(1, float(torch.exp(-params[4:].clamp(min=-7)).amax()))
        assert abs(got.item() - want) <= lost * max(1, abs(want)), (got.item(), want)
        error = (grad.flatten().double() - slopes).abs().max()
        assert error <= 10 * lost * slopes.abs().max().clamp(min=1), (grad.flatten(), slopes)


@pytest.mark.parametrize("isa", native.isas())
def test_what_all_logits_share_is_nothing(isa):
    native.set_isa(isa)
    params, codes = torch.randn(2, 9, 70), torch.randint(256, (2, 1, 70))
    params[:, :3] = torch.randint(-8, 8, (2, 3, 70)) / 4
    large = params.clone()
    large[:, :3] += 2.0**20  # no digit of theirs is lost
    (a, da), (b, db) = (
        evaluate(lambda p: logistic_mixture(p, codes, 256), [p]) for p in (params, large)
    )
    assert torch.equal(a, b)
    assert torch.equal(da, db)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 256, 65536, 2**31])
def test_extreme_parameters_are_finite(classes, dtype, isa):
    native.set_isa(isa)
    scales = torch.tensor([-1e30, -1000, -90, -60, -30, -3, 0, 10, 50, 60, 80, 1000, 1e30])
    # none on the edge between two codes, where a rounding decides
    means = torch.tensor([-1e6, -1e4, -1.0, 0.1, 1.0, 1e4, 1e6])
    mean, scale = (v.flatten() for v in torch.meshgrid(means, scales, indexing="ij"))
    ones = torch.ones_like(mean)
    params = torch.stack([0 * ones, -1e4 * ones, mean, 0.5 * ones, scale, 0 * ones])
    params = params.to(dtype)[None].repeat(3, 1, 1)
    codes = torch.tensor([0, classes // 2, classes - 1])[:, None, None].expand(3, 1, len(mean))
    got, grad = evaluate(lambda p: logistic_mixture(p, codes, classes), [params])
    want, want_grad = evaluate(lambda p: logistic_mixture_ref(p, codes, classes), [params.double()])
    assert got.isfinite().all()
    assert (got <= 0).all()
    assert grad.isfinite().all()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    # a slope of e^60 that cancels is as wrong as one of its halves is rounded
    rate = torch.exp(-params[:, 4:].double().clamp(-60, 60)).amax(1, keepdim=True)
    assert ((grad.double() - want_grad).abs() <= 1e-4 * (1 + want_grad.abs() + rate)).all()


@pytest.mark.parametrize("isa", native.isas())
def test_what_is_no_number_stays_none(isa):
    native.set_isa(isa)
    params, codes, classes, _ = cases.logistic_mixture(C=3, M=2, size=(5,), classes=4)
    codes[0, :, 0], codes[0, :, 1] = 0, 3
    want = logistic_mixture(params, codes, classes)
    for row in range(params.shape[1]):
        for place in range(5):
            spoiled = params.clone()
            spoiled[0, row, place] = float("nan")
            got, grad = evaluate(lambda p: logistic_mixture(p, codes, classes), [spoiled])
            assert got[0, place].isnan(), (row, place)
            assert grad[0, 0, place].isnan(), (row, place)
            got[0, place] = want[0, place]
            assert torch.equal(got, want)
    params[0, 2:4, 0] = float("inf")
    assert logistic_mixture(params, codes, classes)[0, 0] == -float("inf")


def test_the_registration():
    params, codes, classes, _ = cases.logistic_mixture(C=3)
    op = torch.ops.fastgen.logistic_mixture.default
    torch.library.opcheck(op, (leaf(params), codes, classes, -7.0))


@pytest.mark.parametrize("C", [1, 3])
def test_gradients_of_gradients(C):
    op, _, inputs = case(B=1, C=C, M=2, size=(3,), dtype=torch.float64, floor=-2.0)
    leaves = [leaf(v) for v in inputs]
    assert torch.autograd.gradgradcheck(op, leaves)


def test_a_place_alone_is_the_same():
    params, codes, classes, _ = cases.logistic_mixture(C=3, size=(150,))
    every, grads = evaluate(lambda p: logistic_mixture(p, codes, classes), [params], strided=True)
    for place in (0, 63, 64, 149):
        one = codes[..., place : place + 1]
        alone, grad = evaluate(
            lambda p, one=one: logistic_mixture(p, one, classes),
            [params[..., place : place + 1]],
            strided=True,
        )
        assert torch.equal(alone[..., 0], every[..., place])
        assert torch.equal(grad[..., 0], grads[..., place])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic):
    compiled = torch.compile(
        lambda *v: logistic_mixture(*v, floor=-7.0),
        **{"fullgraph": True, "backend": "aot_eager", "dynamic": dynamic},
    )
    for size in ((7,), (9,)):
        op, _, inputs = case(C=3, size=size, floor=-7.0)
        for a, b in zip(evaluate(compiled, inputs), evaluate(op, inputs), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_autocast_computes_and_returns_float32(dtype):
    op, _, inputs = case(C=3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grad = evaluate(op, inputs)
    wide = torch.promote_types(dtype, torch.float32)
    assert (got.dtype, grad.dtype) == (wide, dtype)
    want, want_grad = evaluate(op, cast(inputs, wide))
    assert torch.equal(got, want)
    assert torch.equal(grad, want_grad.to(dtype))


def test_transforms_see_through_it():
    op, ref, (params, codes, classes) = case(C=3, dtype=torch.float64)
    want = torch.func.vmap(lambda p, c: ref(p[None], c[None], classes))(params, codes)
    got = torch.func.vmap(lambda p, c: op(p[None], c[None], classes))(params, codes)
    assert torch.equal(got, want)
    tangent = torch.ones_like(params)
    _, got = torch.func.jvp(lambda p: op(p, codes, classes), (params,), (tangent,))
    close(got, evaluate_jvp(ref, params, codes, classes, tangent), torch.float64, "jvp")


def evaluate_jvp(ref, params, codes, classes, tangent):
    params = params.clone().requires_grad_()
    log_p = ref(params, codes, classes)
    (grad,) = torch.autograd.grad(log_p.sum(), params)
    return (grad * tangent).sum(1)


def test_calls_at_once():
    op, _, inputs = case(B=4, C=3, M=5, size=(31, 7))
    want, got = evaluate(op, inputs), {}
    calls = [
        threading.Thread(target=lambda i=i: got.update({i: evaluate(op, inputs)})) for i in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    for i in range(4):
        assert all(torch.equal(a, b) for a, b in zip(got[i], want, strict=True))


def test_others_run_meanwhile_and_ctrl_c_ends_it():
    native.set_isa("scalar")
    torch.set_num_threads(1)
    params, codes = torch.zeros(1, 10 * 300, 8000), torch.zeros(1, 3, 8000, dtype=torch.int64)
    lets_others_run(lambda: logistic_mixture(params, codes, 256))
    params, codes = params.expand(10, -1, -1).contiguous(), codes.expand(10, -1, -1)
    ends_on_ctrl_c(lambda: logistic_mixture(params, codes, 256))


WRONG = {
    "params: expected (B, K, ...), got (3,)": {"params": torch.ones(3)},
    "codes: expected (2, 'C <= 16', 7), got (2, 7)": {"codes": torch.zeros(2, 7).long()},
    "codes: expected (2, 'C <= 16', 7), got (2, 1, 6)": {"codes": torch.zeros(2, 1, 6).long()},
    "codes: expected (2, 'C <= 16', 7), got (2, 0, 7)": {"codes": torch.zeros(2, 0, 7).long()},
    "codes: expected (2, 'C <= 16', 7), got (2, 17, 7)": {"codes": torch.zeros(2, 17, 7).long()},
    "params: expected a multiple of 10 rows for 3 colors, got 9": {
        "codes": torch.zeros(2, 3, 7).long()
    },
    "params: expected a multiple of 3 rows for 1 colors, got 0": {"params": torch.ones(2, 0, 7)},
    "codes: expected cpu, got meta": {"codes": torch.zeros(2, 1, 7, device="meta").long()},
    "classes: expected 2 to 2147483648, got 1": {"classes": 1},
    "classes: expected 2 to 2147483648, got 2147483649": {"classes": 2**31 + 1},
    "floor: expected a log-scale in [-60, 60], got -61": {"floor": -61},
    "floor: expected a log-scale in [-60, 60], got nan": {"floor": float("nan")},
    "codes: expected values in [0, 16), got 0 to 16": {
        "codes": torch.arange(14).view(2, 1, 7).fmod(2) * 16
    },
    "codes: expected values in [0, 16), got -1 to -1": {"codes": torch.full((2, 1, 7), -1)},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit(message):
    params, codes, classes, _ = cases.logistic_mixture()
    arguments = {"params": params, "codes": codes, "classes": classes, **WRONG[message]}
    with pytest.raises(ValueError, match=r"logistic_mixture: ") as error:
        logistic_mixture(**arguments)
    assert str(error.value) == f"logistic_mixture: {message}"


def test_dtypes_that_do_not_fit():
    params, codes, classes, _ = cases.logistic_mixture()
    with pytest.raises(TypeError, match=r"params: expected a floating dtype, got torch\.int64"):
        logistic_mixture(params.long(), codes, classes)
    with pytest.raises(TypeError, match=r"codes: expected int64, got torch\.int32"):
        logistic_mixture(params, codes.int(), classes)


def test_without_the_extension(monkeypatch):
    op, ref, inputs = case(C=3)
    monkeypatch.setattr(module, "native", None)
    module.warn_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match="logistic_mixture runs on its slow reference"):
        got = op(*inputs)
    assert torch.equal(got, ref(*inputs))


def test_shapes_alone():
    params, codes, classes, _ = cases.logistic_mixture(C=3, size=(4, 5))
    assert logistic_mixture(params.to("meta"), codes.to("meta"), classes).shape == (2, 4, 5)
    with FakeTensorMode() as mode:
        fake = (mode.from_tensor(v) for v in (params, codes))
        assert logistic_mixture(*fake, classes).shape == (2, 4, 5)
