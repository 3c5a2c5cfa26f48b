import sys
import time
import warnings
from unittest import mock

import cases
import pytest
import torch
from check import close, ends_on_ctrl_c, lets_others_run
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.kernels import draw, masked_stack_sample, pack_stack
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.masked_stack_sample"]
DTYPES = ("float32", "float64")
ISAS = native.isas()
LAST = 1 - 2**-53  # the largest uniform number
NAN = float("nan")
EVERYTHING = cases.MASKED_STACK_SAMPLE["colors with everything"]


def reference(*args, **options):
    """`masked_stack_sample` without the native kernel."""
    with mock.patch.object(module, "native", None), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return masked_stack_sample(*args, **options)


def agree(layers, u, options, what):
    """Hold levels and logits in float64 to the reference's; returns them."""
    options = {**options, "dtype": "float64", "logits": True}
    got, want = masked_stack_sample(layers, u, **options), reference(layers, u, **options)
    assert torch.equal(got[0], want[0]), what
    close(got[1], want[1], torch.float64, what)
    return want


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", cases.MASKED_STACK_SAMPLE.values(), ids=cases.MASKED_STACK_SAMPLE)
def test_equals_the_reference(sizes, isa):
    layers, u, options = cases.masked_stack_sample(**sizes)
    native.set_isa(isa)
    agree(layers, u, options, isa)
    # and float32 along its own history, but where u lies within 1e-5 of a step of the CDF
    codes, logits = masked_stack_sample(layers, u, **options, logits=True)
    along = {**options, "given": codes, "dtype": "float64", "logits": True}
    _, want = masked_stack_sample(layers, u, **along)
    if not codes.numel():
        return
    assert (logits - want).abs().max() < 1e-4
    drawn = torch.ones_like(codes) > 0 if options["given"] is None else options["given"] < 0
    z = want.movedim(1, -1).flatten(0, 3)
    t = torch.as_tensor(options["temperature"], dtype=torch.float64).expand(u.shape).flatten()
    low, high = (
        draw(z, (u.flatten() + e).clamp(0, LAST), t, z.shape[1]).view(u.shape)
        for e in (-1e-5, 1e-5)
    )
    assert ((low <= codes) & (codes <= high))[drawn].all()


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_the_reference_whatever_the_stack(data):
    size, odd = st.integers(1, 19), st.sampled_from([1, 3, 5])
    L = data.draw(st.integers(1, 5), "L")
    stack, skips, own = [], [], [1]
    for l in range(L):
        source = data.draw(st.integers(0, l), "source")
        mask = "A" if source == 0 else data.draw(st.sampled_from("AB"), "mask")
        skip = data.draw(st.integers(0, l), "skip")
        channels = data.draw(size, "channels")
        if l == L - 1 or skip == 0 or data.draw(st.booleans(), "no skip"):
            skip = -1
        channels = 0 if l == L - 1 else own[skip] if skip > 0 else channels
        stack.append((mask, source, data.draw(odd, "KH"), data.draw(odd, "KW"), channels))
        skips.append(skip)
        own.append(channels)
    sizes = {
        "relu": [data.draw(st.booleans(), "relu") for _ in range(L)],
        "A": data.draw(st.integers(2, 70), "A"),
        "C": data.draw(st.sampled_from([1, 1, 2, 3]), "C"),
        "n": data.draw(st.integers(0, 10), "n"),
        "H": data.draw(st.integers(0, 5), "H"),
        "W": data.draw(st.integers(0, 6), "W"),
        "given": data.draw(st.sampled_from([0.0, 0.4]), "given"),
        "temperature": data.draw(st.sampled_from([0.0, 0.7, 1.0, None]), "temperature"),
    }
    layers, u, options = cases.masked_stack_sample(stack, skips, **sizes)
    native.set_isa(data.draw(st.sampled_from(ISAS), "isa"))
    agree(layers, u, options, sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_no_bit_depends_on_neighbours_or_threads(isa, dtype):
    layers, u, options = cases.masked_stack_sample(**{**EVERYTHING, "n": 17})
    native.set_isa(isa)
    packed = pack_stack(layers, 3, dtype)
    options["logits"] = True
    want = masked_stack_sample(packed, u, **options, threads=1)
    for m in range(1, 17):  # groups of every size
        got = masked_stack_sample(packed, u[-m:], **{**options, "given": options["given"][-m:]})
        assert torch.equal(got[0], want[0][-m:])
        assert torch.equal(got[1], want[1][-m:])
    for threads in (2, 3, 100, 1024):
        got = masked_stack_sample(packed, u, **options, threads=threads)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_logits_that_are_not_finite_are_an_error():
    layers, u, _ = cases.masked_stack_sample(n=3, C=3)
    layers[-1].bias[5 + 1] = 1e308  # of green
    layers[-1].weight[5 + 1].nan_to_num_().mul_(0)[0] = 1e308
    layers[-2].bias[0] = 100
    for call in (masked_stack_sample, reference):
        for isa in ISAS:
            native.set_isa(isa)
            with pytest.raises(ValueError, match="image 0 at row 0, column 0, color 1 are not"):
                call(layers, u, colors=3, dtype="float64")


def test_what_nothing_sees_may_overflow():
    layers, u, _ = cases.masked_stack_sample(
        **cases.MASKED_STACK_SAMPLE["a layer that nothing sees"]
    )
    want = masked_stack_sample(layers, u, logits=True)
    layers[1].bias[:] = 1e38
    layers[1].weight[:] = 1e38
    for isa in ISAS:
        native.set_isa(isa)
        got = masked_stack_sample(layers, u, logits=True)
        assert torch.equal(got[0], want[0])
        assert got[1].isfinite().all()


def changed(x, value):
    x = x.clone()
    x.view(-1)[0] = value
    return x


def meta(x):
    return x.to("meta")


BAD = [
    ({"colors": 4}, "colors: expected 1, 2 or 3, got 4"),
    ({"colors": 2}, r"layers\[0\].weight: expected \(O, 2, odd, odd\), got \(7, 1, 5, 5\)"),
    ({"mask": "C"}, r"layers\[1\].mask: expected \"A\" or \"B\", got 'C'"),
    ({"source": 2}, r"layers\[1\].source: expected 0 ... 1, got 2"),
    ({"source": -1}, r"layers\[1\].source: expected 0 ... 1, got -1"),
    ({"skip": 2}, r"layers\[1\].skip: expected -1 ... 1, got 2"),
    ({"skip": 1}, r"layers\[1\].skip: expected 4 channels, got 7"),
    ({"weight": torch.zeros(4, 7, 2, 3)}, r"layers\[1\].weight: expected \(O, 7, odd, odd\)"),
    ({"weight": torch.zeros(4, 6, 3, 3)}, r"layers\[1\].weight: expected"),
    ({"weight": torch.zeros(4, 7, 3)}, r"layers\[1\].weight: expected"),
    ({"weight": torch.zeros(0, 7, 3, 3)}, r"layers\[1\].weight: expected a multiple of 1 rows"),
    ({"bias": torch.zeros(3)}, r"layers\[1\].bias: expected \(4,\), got \(3,\)"),
    ({"bias": torch.full((4,), NAN)}, r"layers\[1\]: expected finite values"),
    ({"weight": torch.full((4, 7, 3, 3), NAN)}, r"layers\[1\]: expected finite values"),
    ({"bias": meta(torch.zeros(4))}, r"layers\[1\]: expected values, got a meta tensor"),
    ({"dtype": "bfloat16"}, "dtype: expected one of .*, got 'bfloat16'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_stacks_that_there_are_not(change, message):
    layers, _, _ = cases.masked_stack_sample()
    options = {k: v for k, v in change.items() if k in ("colors", "dtype")}
    layers[1] = layers[1]._replace(**{k: v for k, v in change.items() if k not in options})
    with pytest.raises(ValueError, match=f"masked_stack_sample: {message}"):
        pack_stack(layers, **options)


def test_no_layers():
    with pytest.raises(ValueError, match="layers: expected at least one, got none"):
        pack_stack([])


def test_the_image_is_seen_through_a_mask_alone():
    layers, _, _ = cases.masked_stack_sample(**cases.ONE)
    for bad in ({"mask": "B"}, {"skip": 0, "weight": layers[0].weight[:1], "bias": torch.zeros(1)}):
        with pytest.raises(ValueError, match='expected mask "A" of the image, and no skip of it'):
            pack_stack([layers[0]._replace(**bad)])


BAD_IMAGES = [
    ("uniforms", lambda x: x[0], ValueError, r"uniforms: expected \(n, 3, H, W\), got \(3, 4, 5\)"),
    ("uniforms", lambda x: changed(x, 1.0), ValueError, r"uniforms: expected values in \[0, 1\)"),
    ("uniforms", meta, ValueError, "uniforms: expected values, got a meta tensor"),
    ("given", lambda x: changed(x, 37), ValueError, r"given: expected levels in \[-1, 37\)"),
    ("given", lambda x: x.int(), TypeError, "given: expected torch.int64, got torch.int32"),
    ("given", lambda x: x[:2], ValueError, "given: expected"),
    ("temperature", lambda x: -0.1, ValueError, "temperature: expected finite values >= 0"),
    ("temperature", lambda x: x[1:], ValueError, "temperature: expected"),
    ("threads", lambda x: 0, ValueError, "threads: expected an int in"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_IMAGES)
def test_inputs_that_do_not_fit(name, change, error, message):
    layers, u, options = cases.masked_stack_sample(**EVERYTHING)
    arguments = {"uniforms": u, "threads": None, **options}
    masked_stack_sample(layers, **arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        masked_stack_sample(layers, **arguments)


@pytest.mark.parametrize("sizes", [EVERYTHING, {"n": 0}])
def test_the_registration(sizes):
    layers, u, options = cases.masked_stack_sample(**sizes)
    with mock.patch.object(module, "_masked_stack_sample", side_effect=InterruptedError) as op:
        with pytest.raises(InterruptedError):
            masked_stack_sample(layers, u, **options, logits=True)
    torch.library.opcheck(torch.ops.fastgen.masked_stack_sample.default, op.call_args.args)


def long_call(threads, seconds):
    """A call that would take so long on one core or more, and its first rows."""
    stack = [("A", 0, 7, 7, 64), *[("B", l, 3, 3, 64) for l in range(1, 7)], ("B", 7, 1, 1, 0)]
    layers, u, _ = cases.masked_stack_sample(stack, [-1] * 8, [True] * 8, A=256, H=8, W=28)
    packed = pack_stack(layers)
    start = time.perf_counter()
    want = masked_stack_sample(packed, u, threads=threads)
    rows = 8 * int(seconds / (time.perf_counter() - start))
    u = torch.cat([u, torch.zeros(2, 1, 1, 28).expand(2, 1, rows, 28)], 2)
    return (lambda: masked_stack_sample(packed, u, threads=threads)[:, :, :8]), want


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_call_within_a_second(threads):
    call, want = long_call(threads, 20)
    ends_on_ctrl_c(call)
    call, want = long_call(threads, 0)
    assert torch.equal(call(), want)


def test_other_python_threads_run_during_a_call():
    call, want = long_call(1, 0.5)
    assert torch.equal(lets_others_run(call), want)


def test_without_the_extension():
    layers, u, options = cases.masked_stack_sample()
    sys.modules["fastgen.kernels._op"].warn_reference.cache_clear()
    with mock.patch.object(module, "native", None):
        with pytest.warns(RuntimeWarning, match="masked_stack_sample runs on its slow reference"):
            masked_stack_sample(layers, u, **options)
