import sys
import threading

import cases
import pytest
import torch
from check import cast, check, compare, evaluate, leaf, present

from fastgen.kernels import wavenet_layer, wavenet_layer_ref
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.wavenet_layer"]
NAMES = (
    "x",
    "skip",
    "weight",
    "bias",
    "res_weight",
    "res_bias",
    "skip_weight",
    "skip_bias",
    "cond",
)
FRAMES = {"F": 2, "hop": 4, "dilation": 3}


def test_the_extension_is_loaded():
    assert native is not None
    assert native.isa() in native.isas()
    assert cases.T_TILE == native.WAVENET_LAYER_TILE


@pytest.mark.parametrize("sizes", cases.WAVENET_LAYER.values(), ids=cases.WAVENET_LAYER)
def test_equals_the_reference(sizes):
    check(wavenet_layer, wavenet_layer_ref, cases.wavenet_layer(**sizes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions(dtype):
    inputs = cases.wavenet_layer(R=16, S=24, H=16, T=100, F=3, hop=40, dtype=dtype)
    compare(wavenet_layer, wavenet_layer_ref, inputs, dtype)


@pytest.mark.parametrize("sizes", [FRAMES, {"res": False}])
def test_the_registration(sizes):
    inputs = [leaf(v) for v in cases.wavenet_layer(**sizes)]
    torch.library.opcheck(torch.ops.fastgen.wavenet_layer.default, (*inputs, True))


@pytest.mark.parametrize("sizes", [FRAMES, {"res": False}])
def test_gradients_of_gradients(sizes):
    inputs = cases.wavenet_layer(**{**sizes, "B": 1, "R": 2, "S": 2, "H": 2, "T": 5})
    leaves = [leaf(v) for v in cast(inputs, torch.float64)]
    assert torch.autograd.gradgradcheck(lambda *v: present(wavenet_layer(*v)), leaves)


@pytest.mark.parametrize("wanted", range(9), ids=NAMES)
def test_one_gradient_alone(wanted):
    inputs = cases.wavenet_layer(**FRAMES)
    alone = evaluate(wavenet_layer, inputs, wanted=[wanted])[-1]
    assert torch.equal(alone, evaluate(wavenet_layer, inputs)[2 + wanted])


@pytest.mark.parametrize("used", [0, 1], ids=["out", "skip_out"])
def test_one_output_alone(used):
    inputs = cases.wavenet_layer(**FRAMES, dtype=torch.float64)
    got, want = (
        torch.autograd.grad(fn(*leaves)[used].sum(), leaves[:9], materialize_grads=True)
        for fn in (wavenet_layer, wavenet_layer_ref)
        for leaves in [[leaf(v) for v in inputs]]
    )
    torch.testing.assert_close(got, want)


def test_no_gradient_of_what_an_unused_output_is_made_of():
    inputs = [leaf(v) for v in cases.wavenet_layer(**FRAMES)]
    for layer in (wavenet_layer, wavenet_layer_ref):
        for used, unused in ((1, {4, 5}), (0, {1, 6, 7})):
            leaves = inputs[:9]
            y = layer(*leaves, *inputs[9:])[used].sum()
            grads = torch.autograd.grad(y, leaves, allow_unused=True)
            assert {i for i, g in enumerate(grads) if g is None} == unused


def test_no_memory_is_kept_without_gradients():
    inputs = cases.wavenet_layer(**FRAMES)
    *_, gates = torch.ops.fastgen.wavenet_layer(*inputs, False)
    assert gates.numel() == 0
    with torch.no_grad():
        out, skip_out = wavenet_layer(*map(leaf, inputs))
    want = wavenet_layer(*inputs)
    assert torch.equal(out, want[0])
    assert torch.equal(skip_out, want[1])
    assert not skip_out.requires_grad


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic):
    compiled = torch.compile(
        lambda *v: wavenet_layer(*v), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for sizes in ({}, {"T": 20}):
        inputs = cases.wavenet_layer(**{**FRAMES, **sizes})
        got, want = evaluate(compiled, inputs), evaluate(wavenet_layer, inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast(compiled):
    inputs = cases.wavenet_layer(**FRAMES)
    op = torch.compile(wavenet_layer, fullgraph=True, backend="aot_eager") if compiled else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, skip_out, *grads = evaluate(op or wavenet_layer, inputs)
        double = wavenet_layer(*cast(inputs, torch.float64))
    want = wavenet_layer(*cast(inputs, torch.bfloat16))
    assert torch.equal(out, want[0])
    assert torch.equal(skip_out, want[1])
    assert {g.dtype for g in grads} == {torch.float32}
    assert {y.dtype for y in double} == {torch.float64}


def test_calls_at_once():
    inputs = cases.wavenet_layer(R=16, S=16, H=16, T=1000)
    want, got = evaluate(wavenet_layer, inputs), {}
    calls = [
        threading.Thread(target=lambda i=i: got.update({i: evaluate(wavenet_layer, inputs)}))
        for i in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    for i in range(4):
        assert all(torch.equal(a, b) for a, b in zip(got[i], want, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit(name):
    inputs = cases.wavenet_layer(**FRAMES)
    for wrong in (torch.ones(()), torch.ones(3, 3, 3, 3), inputs[NAMES.index(name)][..., :0]):
        args = [wrong if n == name else v for n, v in zip(NAMES, inputs, strict=False)]
        with pytest.raises(ValueError, match=r"wavenet_layer: \w+: expected .*, got \("):
            wavenet_layer(*args, *inputs[9:])


@pytest.mark.parametrize("name", NAMES[1:])
def test_dtypes_and_devices_that_do_not_fit(name):
    inputs = cases.wavenet_layer(**FRAMES)
    for error, wrong in ((TypeError, torch.float64), (ValueError, "meta")):
        args = [v.to(wrong) if n == name else v for n, v in zip(NAMES, inputs, strict=False)]
        with pytest.raises(error, match=f"wavenet_layer: {name}: expected .*, got"):
            wavenet_layer(*args, *inputs[9:])


def test_other_inputs_that_do_not_fit():
    inputs = cases.wavenet_layer()
    with pytest.raises(TypeError, match="expected a floating dtype, got"):
        wavenet_layer(*cast(inputs, torch.int64))
    with pytest.raises(ValueError, match="res_weight and res_bias"):
        wavenet_layer(*inputs[:5], None, *inputs[6:])
    with pytest.raises(ValueError, match="hop: expected at least 1, got 0"):
        wavenet_layer(*inputs[:9], 0, 1)
    with pytest.raises(ValueError, match="dilation: expected at least 1, got -1"):
        wavenet_layer(*inputs[:9], 1, -1)


def test_without_the_extension(monkeypatch):
    inputs = cases.wavenet_layer(**FRAMES)
    monkeypatch.setattr(module, "native", None)
    module.warn_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match="wavenet_layer runs on its slow reference"):
        got = wavenet_layer(*inputs)
    want = wavenet_layer_ref(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_shapes_alone():
    out, skip_out = wavenet_layer(
        *(v.to("meta") if isinstance(v, torch.Tensor) else v for v in cases.wavenet_layer())
    )
    assert (out.shape, skip_out.shape) == ((2, 5, 11), (2, 7, 11))
