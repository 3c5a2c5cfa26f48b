"""The affine coupling against plain torch, as a bijection, and from its output alone."""

import itertools
import sys

import cases
import pytest
import torch
from check import cast, check, close, compare, ends_on_ctrl_c, leaf
from torch.autograd import gradgradcheck

from fastgen.kernels import (
    affine_coupling,
    affine_coupling_grad,
    affine_coupling_ref,
    kept_half,
)
from fastgen.kernels._op import launch, native
from fastgen.kernels.affine_coupling import LAYOUTS, MANY, SCALES, SPLITS, halves, whole

needs_native = pytest.mark.skipif(native is None, reason="needs a C++ compiler")


def case(**sizes):
    """The function and the reference with their options, and the inputs."""
    *inputs, options = cases.affine_coupling(**sizes)
    return (
        lambda *v: affine_coupling(*v, **options),
        lambda *v: affine_coupling_ref(*v, **options),
        inputs,
    )


@needs_native
@pytest.mark.parametrize("name", cases.AFFINE_COUPLING)
def test_values_and_gradients(name):
    check(*case(**cases.AFFINE_COUPLING[name]))


@needs_native
@pytest.mark.parametrize("name", cases.AFFINE_COUPLING)
def test_bfloat16(name):
    op, ref, inputs = case(**cases.AFFINE_COUPLING[name], dtype=torch.bfloat16)
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    douts = dy, torch.arange(1.0, 1 + len(dy))
    want = results(ref, cast(inputs, torch.float64), cast(douts, torch.float64))
    for isa in native.isas():
        native.set_isa(isa)
        for i, (a, b) in enumerate(zip(results(op, inputs, douts), want, strict=True)):
            dtype = torch.float32 if i == 1 else torch.bfloat16
            close(a, b, dtype, f"{isa}, result {i}")


def results(fn, inputs, douts):
    """What fn returns of the inputs, then its gradients."""
    inputs = [leaf(v) for v in inputs]
    outputs = list(zip(fn(*inputs), douts, strict=True))
    leaves = [v for v in inputs if isinstance(v, torch.Tensor)]
    pairs = [pair for pair in outputs if pair[0].requires_grad]
    grads = torch.autograd.grad([y for y, _ in pairs], leaves, [dy for _, dy in pairs])
    return [y.detach() for y, _ in outputs] + list(grads)


@needs_native
def test_samples_in_parts():
    sizes = {"B": 2, "C": 5, "size": (120, 140), "swap": True, "weight": "all", "scale": "atan"}
    check(*case(**sizes), dtypes=(torch.float32,))
    check(*case(**{**sizes, "split": "checkerboard"}), dtypes=(torch.float32,))


@needs_native
@pytest.mark.parametrize(
    "sizes",
    [
        {"B": 17_001, "C": 64, "size": ()},
        {"B": 140_007, "C": 8, "size": (), "split": "alternate"},
        {"B": 33, "C": 8, "size": (64, 64)},
        {"B": 33, "C": 8, "size": (64, 64), "split": "checkerboard"},
    ],
    ids=str,
)
def test_what_is_written_past_the_caches(sizes):
    op, ref, inputs = case(**sizes)
    assert inputs[0].nbytes >= 1 << 22
    for isa in native.isas():
        native.set_isa(isa)
        compare(op, ref, inputs, isa)


@pytest.mark.parametrize("name", ["plain", "checkerboard with weights", "inverse", "additive", "3"])
def test_gradients_of_gradients(name):
    op, _, inputs = case(**cases.AFFINE_COUPLING[name], dtype=torch.float64)
    leaves = [leaf(v) for v in inputs]
    outputs = 1 if "additive" in name else 2
    assert gradgradcheck(lambda *v: op(*v)[:outputs], leaves, fast_mode=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_bijection(scale, split):
    for swap, layout, C in itertools.product((False, True), LAYOUTS, (2, 3)):
        sizes = {"scale": scale, "split": split, "swap": swap, "layout": layout, "C": C}
        *inputs, options = cases.affine_coupling(**sizes, size=(2, 4), dtype=torch.float64)
        x = inputs[0]
        y, logdet = affine_coupling(*inputs, **options)
        back, negative = affine_coupling(y, *inputs[1:], **options, inverse=True)
        assert torch.allclose(back, x, atol=1e-12)
        assert torch.allclose(negative, -logdet, atol=1e-12)
        if split:
            assert torch.equal(kept_half(y, split, swap), kept_half(x, split, swap))
            assert torch.equal(whole(*halves(x, split, swap), split, swap), x)
        for b, image in enumerate(x):
            rest = [v[b : b + 1] if isinstance(v, torch.Tensor) else v for v in inputs[1:]]
            J = torch.autograd.functional.jacobian(
                lambda v, a=rest, o=options: affine_coupling(v[None], *a, **o)[0][0], image
            )
            _, want = torch.linalg.slogdet(J.view(image.numel(), -1))
            assert abs(logdet[b] - want) < 1e-11


@pytest.mark.parametrize("name", cases.AFFINE_COUPLING)
def test_gradients_from_the_output(name):
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        *inputs, options = cases.affine_coupling(**cases.AFFINE_COUPLING[name], dtype=dtype)
        inputs = [leaf(v) for v in inputs]
        y, logdet = affine_coupling(*inputs, **options)
        dy, dlogdet = torch.randn_like(y), torch.randn_like(logdet)
        leaves = [v for v in inputs if isinstance(v, torch.Tensor)]
        for g in (dlogdet, None):
            pairs = ([y, logdet], [dy, g]) if g is not None else ([y], [dy])
            want = torch.autograd.grad(*pairs[:1], leaves, pairs[1], retain_graph=True)
            x, *grads = affine_coupling_grad(y, dy, g, *inputs[1:], **options)
            assert grads[2] is None or inputs[2] is not None
            got = [v for v in grads if v is not None]
            for a, b in zip([x, *got], [inputs[0], *want], strict=True):
                assert a.shape == b.shape
                assert torch.allclose(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("s", [-1e3, 1e3, -3e38, 3e38])
def test_finite(scale, s, dtype):
    x = torch.randn(3, 4, 5).to(dtype).requires_grad_()
    h = torch.full((3, 2, 5), s).to(dtype)
    h = (h if scale == "additive" else torch.cat([h, torch.zeros_like(h)], 1)).requires_grad_()
    if scale == "additive" and abs(s) > 1e3:
        return
    for inverse in (False, True):
        options = {"scale": scale, "split": "channel", "inverse": inverse}
        y, logdet = affine_coupling(x, h, **options)
        grads = torch.autograd.grad((y, logdet), (x, h), (torch.ones_like(y), logdet + 1))
        grads += affine_coupling_grad(y, torch.ones_like(y), None, h, **options)[:3]
        assert all(v.isfinite().all() for v in (y, logdet, *grads))
        want = affine_coupling_ref(x.double(), h.double(), **options)[1]
        assert torch.allclose(logdet.double(), want, rtol=1e-6)


def test_nan_stays_nan():
    for scale in SCALES:
        s = torch.full((1, 2), float("nan"))
        y, _ = affine_coupling(torch.ones(1, 2), s, None if scale == "additive" else s, scale)
        assert y.isnan().all()


@needs_native
def test_ctrl_c():
    x, h = torch.zeros(2**15, 1024), torch.zeros(2**15, 1024)
    ends_on_ctrl_c(lambda: [affine_coupling(x, h, split="channel") for _ in range(1000)])


def test_transforms():
    op, ref, inputs = case()
    x, s = inputs[:2]
    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        args = (x[:, None], s[:, None]) if transform is torch.func.vmap else (x, s)
        got, want = (transform(lambda x, s, f=f: f(x, s)[0])(*args) for f in (op, ref))
        assert torch.allclose(got, want, atol=1e-6)


def test_autocast():
    x, h, *_ = cases.affine_coupling()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, logdet = affine_coupling(x, h.bfloat16(), split="channel")
        want = affine_coupling(x, h.bfloat16().float(), split="channel")
    assert torch.equal(y, want[0])
    assert torch.equal(logdet, want[1])


@needs_native
@pytest.mark.parametrize(
    ("sizes", "kernel"),
    [
        ({"split": "checkerboard"}, False),
        ({"B": 64, "C": 8, "size": ()}, False),
        ({"B": MANY // 64, "C": 64, "size": ()}, True),
    ],
)
def test_compiled(sizes, kernel):
    op, _, inputs = case(**sizes)
    x, h = (v.requires_grad_() for v in inputs[:2])
    graphs = []

    def backend(graph, examples):
        graphs.append(str(graph.graph))
        return graph

    torch.compiler.reset()
    compiled = torch.compile(lambda x, h: op(x, h), fullgraph=True, backend=backend)
    pairs = [torch.cat([y.flatten(), d]) for y, d in (compiled(x, h), op(x, h))]
    grads = [torch.autograd.grad(v.square().sum(), (x, h)) for v in pairs]
    for a, b in zip(*([pair, *g] for pair, g in zip(pairs, grads, strict=True)), strict=True):
        assert torch.equal(a, b) if kernel else torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    assert ("fastgen.affine_coupling" in graphs[0]) == kernel


def test_exported_for_any_batch():
    class Coupling(torch.nn.Module):
        def forward(self, x, h):
            return affine_coupling(x, h, split="channel")

    rows = {0: torch.export.Dim("B")}
    x, h = torch.randn(2, 8, 64)
    program = torch.export.export(Coupling(), (x, h), dynamic_shapes=(rows, rows)).module()
    for B in (3, 10_000):
        x, h = torch.randn(2, B, 64)
        for got, want in zip(program(x, h), affine_coupling(x, h, split="channel"), strict=True):
            torch.testing.assert_close(got, want)


def fenced(kernel, *args):
    """`launch` on copies with a fence around each, that is held to stand."""
    PAD, MARK = 64, 7.0
    places = {}
    for i, a in enumerate(args):
        if isinstance(a, torch.Tensor):
            places[i] = torch.full((a.numel() + 2 * PAD,), MARK, dtype=a.dtype)
            places[i][PAD:-PAD] = a.flatten()
    launch(kernel, *(places[i][PAD:-PAD] if i in places else a for i, a in enumerate(args)))
    for i, place in places.items():
        assert (torch.cat([place[:PAD], place[-PAD:]]) == MARK).all()
        args[i].copy_(place[PAD:-PAD].view_as(args[i]))


@needs_native
@pytest.mark.parametrize("C", [3, 6, 8, 10, 24, 34, 64, 66])
@pytest.mark.parametrize("split", ["channel", "alternate"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_written_beside_vectors(monkeypatch, C, split, layout):
    monkeypatch.setattr(sys.modules[affine_coupling.__module__], "launch", fenced)
    options = {"split": split, "layout": layout}
    for isa, B, dtype in itertools.product(
        native.isas(), (1, 5, 67), (torch.float32, torch.float64)
    ):
        native.set_isa(isa)
        x, h, *_ = cases.affine_coupling(B=B, C=C, size=(), dtype=dtype, **options)
        y, logdet = affine_coupling(x, h, **options)
        for got, want in zip((y, logdet), affine_coupling_ref(x, h, **options), strict=True):
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)
        back, *_ = affine_coupling_grad(y, torch.ones_like(y), logdet, h, **options)
        assert torch.allclose(back, x, rtol=1e-4, atol=1e-4)


def test_opcheck():
    x, h, *_ = cases.affine_coupling(weight="all")
    weight = torch.rand(2, requires_grad=True)
    inputs = (x.requires_grad_(), h.requires_grad_(), None, weight)
    options = ("tanh", "channel", False, "st", False)
    torch.library.opcheck(torch.ops.fastgen.affine_coupling.default, (*inputs, *options))


WRONG = {
    "scale: expected (": {"scale": "cos"},
    "split: expected (": {"split": "diagonal"},
    "layout: expected (": {"layout": "sst"},
    "x: expected (B, C, ...), got (3,)": {"x": torch.ones(3)},
    "x: expected two channels at least, got (2, 1, 4, 6)": {"x": torch.ones(2, 1, 4, 6)},
    "x: expected (B, C, H, W) with an even W, got (2, 4, 4, 5)": {
        "x": torch.ones(2, 4, 4, 5),
        "split": "checkerboard",
    },
    "s: expected (2, 4, 4, 6), got (2, 2, 4, 6)": {"s": torch.ones(2, 2, 4, 6)},
    "s: expected (2, 8, 4, 3), got (2, 4, 4, 6)": {"split": "checkerboard"},
    "s: expected (2, 2, 4, 6), got (2, 4, 4, 6)": {"t": torch.ones(2, 2, 4, 6)},
    "t: expected (2, 2, 4, 6), got (2, 2, 4, 1)": {
        "s": torch.ones(2, 2, 4, 6),
        "t": torch.ones(2, 2, 4, 1),
    },
    "t: expected None": {"scale": "additive", "t": torch.ones(2, 2, 4, 6)},
    "weight: expected None": {"scale": "additive", "weight": torch.ones(2)},
    "weight: expected (2,) or one number, got (3,)": {"weight": torch.ones(3)},
    "s: expected cpu, got meta": {"s": torch.ones(2, 4, 4, 6, device="meta")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    *inputs, options = cases.affine_coupling()
    names = ("x", "s", "t", "scale", "weight")
    arguments = {**dict(zip(names, inputs, strict=True)), **options, **WRONG[message]}
    with pytest.raises(ValueError, match=r"affine_coupling: ") as error:
        affine_coupling(**arguments)
    assert message in str(error.value)


def test_wrong_gradients_and_dtypes():
    x, h, *_ = cases.affine_coupling()
    with pytest.raises(ValueError, match=r"dy: expected \(2, 4, 4, 6\), got \(2,\)"):
        affine_coupling_grad(x, torch.ones(2), None, h, split="channel")
    with pytest.raises(ValueError, match=r"dlogdet: expected \(2,\), got \(3,\)"):
        affine_coupling_grad(x, x, torch.ones(3), h, split="channel")
    with pytest.raises(TypeError, match=r"dy: expected torch.float32, got torch.float64"):
        affine_coupling_grad(x, x.double(), None, h, split="channel")
    with pytest.raises(TypeError, match=r"s: expected torch.float32, got torch.float64"):
        affine_coupling(x, h.double(), split="channel")
    with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch.int64"):
        affine_coupling(x.long(), h.long(), split="channel")
    with pytest.raises(ValueError, match=r"split: expected "):
        kept_half(x, "rows")
