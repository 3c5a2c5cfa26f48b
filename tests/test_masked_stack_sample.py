import sys
import time
import warnings
from unittest import mock

import cases
import pytest
import torch
from check import changed, close, ends_on_ctrl_c, lets_others_run, meta, near, same
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fastgen.kernels import MaskedConv, MaskedLayer, masked_stack_sample, pack_stack
from fastgen.kernels._masked_stack import Shape, live
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.masked_stack_sample"]
DTYPES = ("float32", "float64")
ISAS = native.isas()
NAN = float("nan")
EVERYTHING = cases.MASKED_STACK_SAMPLE["colors with everything"]
CASES = {
    f"{kind}: {name}": (maker, sizes)
    for kind, maker, table in (
        ("masked", cases.masked_stack_sample, cases.MASKED_STACK_SAMPLE),
        ("strided", cases.strided_stack_sample, cases.STRIDED_STACK_SAMPLE),
    )
    for name, sizes in table.items()
}
BOTH = [
    (cases.masked_stack_sample, EVERYTHING),
    (cases.strided_stack_sample, cases.STRIDED_STACK_SAMPLE["everything"]),
]


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
@pytest.mark.parametrize(("maker", "sizes"), CASES.values(), ids=CASES)
def test_equals_the_reference(maker, sizes, isa):
    layers, u, options = maker(**sizes)
    native.set_isa(isa)
    codes, _ = agree(layers, u, options, isa)
    # without logits it leaves out what it does not need
    assert torch.equal(masked_stack_sample(layers, u, **options, dtype="float64"), codes)
    # and float32 along its own history, but where u lies within 1e-5 of a step of the CDF
    codes, logits = masked_stack_sample(layers, u, **options, logits=True)
    along = {**options, "given": codes, "dtype": "float64", "logits": True}
    _, want = masked_stack_sample(layers, u, **along)
    if not codes.numel():
        return
    assert ((logits - want).abs() < 1e-4 * want.abs().clamp(min=1)).all()
    drawn = torch.ones_like(codes) > 0 if options["given"] is None else options["given"] < 0
    assert near(codes, want, u, options["temperature"])[drawn].all()


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


@given(data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True, phases=[Phase.generate])
def test_equals_the_reference_whatever_the_graph(data):
    layers, options = graph(data)
    native.set_isa(data.draw(st.sampled_from(ISAS), "isa"))
    u = torch.rand(options.pop("shape"), dtype=torch.float64, generator=torch.Generator())
    _, before = agree(layers, u, options, options)
    # and what is said of a number changes with none but those before
    if not u.numel():
        return
    levels = options["levels"] or before.shape[1]
    codes = torch.randint(levels, u.shape, generator=torch.Generator())
    options |= {"dtype": "float64", "logits": True}
    _, before = masked_stack_sample(layers, u, **options, given=codes)
    _, C, H, W = u.shape
    t = data.draw(st.integers(0, C * H * W - 1), "place")
    c, i, j = t % C, t // (W * C), t // C % W
    codes[:, c, i, j] = (codes[:, c, i, j] + 1) % levels
    _, after = masked_stack_sample(layers, u, **options, given=codes)
    moved = (after != before).any(1).permute(0, 2, 3, 1).flatten(1)  # in raster order
    assert not moved[:, : t + 1].any()


def graph(data):
    """Layers of every kind that there is, and options with the shape of the images."""
    pick = lambda name, *values: data.draw(st.sampled_from(values), name)  # noqa: E731
    C, mixture = pick("C", 1, 2, 3), pick("mixture", True, True, False)
    groups = 1 if mixture else C
    shapes, layers = [Shape(C + mixture, 1, False)], []
    generator = torch.Generator().manual_seed(0)

    def conv(O, scale, last):
        near = [s for s, y in enumerate(shapes) if y.scale in (scale, scale // 2)]
        near += [s for s, y in enumerate(shapes) if y.scale == 2 * scale and groups == 1]
        source = pick("source", *near)
        y = shapes[source]
        up = y.scale == 2 * scale
        masks = ("A", "V") if source == 0 else ("A", "B", "V")
        masks = ("B",) * (not y.row) + (None,) * y.row if up else masks + (None,) * 3 * y.row
        act = pick("act", "none", "relu", *("concat_elu",) * (2 * (groups == 1)))
        mask, KW = pick("mask", *masks), pick("KW", 1, 2, 3, 4)
        KH = 4 if up else pick("KH", 1, 2, 3) + (mask == "V")
        I = y.channels * (2 if act == "concat_elu" else 1)
        weight = torch.randn(O, I, KH, KW, generator=generator, dtype=torch.float64)
        weight *= (3 if last else 1.5) * weight[0].numel() ** -0.5
        step = "up" if up else "same" if y.scale == scale else "down"
        left = pick("left", *range(KW + 1))
        made = MaskedConv(weight, source, mask, act, left, step)
        shut = live(made._replace(weight=weight / weight), groups, torch.float64).weight == 0
        return made._replace(weight=weight.masked_fill(shut, NAN))

    L = data.draw(st.integers(1, 7), "L")
    for l in range(L):
        scales = {1, *(y.scale for y in shapes), *(2 * y.scale for y in shapes)}
        scales |= {y.scale // 2 for y in shapes if y.scale > 1 and groups == 1}
        scale = 1 if l == L - 1 else pick("scale", *sorted(s for s in scales if s < 8))
        gate = groups == 1 and l < L - 1 and pick("gate", True, False)
        own = groups * (2 if gate else 1) * data.draw(st.integers(1, 5), "channels")
        if l == L - 1:
            own = 2 * (1 + 2 * C + C * (C - 1) // 2) if mixture else C * pick("A", 2, 7)
        convs = [conv(own, scale, l == L - 1) for _ in range(pick("convs", 1, 2, 3))]
        kept, bias = own // 2 if gate else own, torch.randn(own, generator=generator).double()
        like = [s for s, y in enumerate(shapes) if s and (y.channels, y.scale) == (kept, scale)]
        layers.append(MaskedLayer(convs, bias, gate, pick("skip", -1, *like)))
        row = all(f.mask in ("V", None) for f in convs)
        row = row and (layers[-1].skip < 0 or shapes[layers[-1].skip].row)
        shapes.append(Shape(kept, scale, row))
    size = [data.draw(st.integers(0, n), name) for n, name in ((3, "n"), (6, "H"), (7, "W"))]
    cond = torch.randn(1, sum(len(y.bias) for y in layers), generator=generator)
    options = {"colors": C, "levels": 5 if mixture else None, "shape": (size[0], C, *size[1:])}
    return layers, {**options, "cond": pick("cond", None, cond)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("maker", "sizes"), BOTH, ids=["masked", "strided"])
def test_no_bit_depends_on_neighbours_or_threads(maker, sizes, isa, dtype):
    layers, u, options = maker(**{**sizes, "n": 17})
    native.set_isa(isa)
    packed = pack_stack(layers, 3, dtype, options.get("levels"))
    options["logits"] = True
    want = masked_stack_sample(packed, u, **options, threads=1)
    for m in range(1, 17):  # groups of every size
        part = {k: options[k][-m:] for k in ("given", "cond") if k in options}
        same(
            masked_stack_sample(packed, u[-m:], **{**options, **part}), (want[0][-m:], want[1][-m:])
        )
    for threads in (2, 3, 100, 1024):
        same(masked_stack_sample(packed, u, **options, threads=threads), want)


def test_one_condition_for_all():
    layers, u, options = cases.strided_stack_sample(cond=True, n=5)
    one, options["logits"] = options.pop("cond")[:1], True
    every = masked_stack_sample(layers, u, **options, cond=one.expand(5, -1))
    same(masked_stack_sample(layers, u, **options, cond=one), every)
    assert not torch.equal(masked_stack_sample(layers, u, **options)[1], every[1])


def test_logits_that_are_not_finite_are_an_error():
    layers, u, _ = cases.masked_stack_sample(n=3, C=3)
    conv = layers[-1].convs[0]
    layers[-1].bias[5 + 1] = 1e308  # of green
    conv.weight[5 + 1].nan_to_num_().mul_(0)[0] = 1e308
    layers[-2].bias[0] = 100
    fails(layers, u, "image 0 at row 0, column 0, color 1 are not", colors=3)


@pytest.mark.parametrize(("number", "color"), [(0, 0), (2, 0), (8, 0), (13, 0), (20, 0)])
def test_a_mixture_that_is_not_finite_is_an_error(number, color):
    layers, u, options = cases.strided_stack_sample(n=3, C=3, mixtures=3)
    layers[-1].bias[number] = 1.7e308
    layers[-1].convs[0].weight[number] = 1e308
    fails(layers, u, f"image 0 at row 0, column 0, color {color} are not", **options)


def fails(layers, u, message, **options):
    for call in (masked_stack_sample, reference):
        for isa in ISAS:
            native.set_isa(isa)
            with pytest.raises(ValueError, match=message):
                call(layers, u, **options, dtype="float64")


def test_what_nothing_sees_may_overflow():
    layers, u, _ = cases.masked_stack_sample(
        **cases.MASKED_STACK_SAMPLE["a layer that nothing sees"]
    )
    want = masked_stack_sample(layers, u, logits=True)
    layers[1].bias[:] = 1e38
    layers[1].convs[0].weight[:] = 1e38
    for isa in ISAS:
        native.set_isa(isa)
        got = masked_stack_sample(layers, u, logits=True)
        assert torch.equal(got[0], want[0])
        assert got[1].isfinite().all()


CONV = r"layers\[1\].convs\[0\]"
BAD = [
    ({"colors": 4}, "colors: expected 1, 2 or 3, got 4"),
    ({"colors": 2}, r"layers\[0\].bias: expected a multiple of 2 values, got \(7,\)"),
    ({"levels": 1}, "levels: expected an int >= 2, got 1"),
    ({"levels": 4}, r"layers\[0\].convs\[0\].weight: expected \(7, 2, 'KH', 'KW'\), got \(7, 1"),
    ({"mask": "C"}, rf"{CONV}.mask: expected \"A\", \"B\", \"V\" or None, got 'C'"),
    ({"mask": None}, f"{CONV}.mask: expected one, of what sees more than rows above, got None"),
    ({"act": "elu"}, rf"{CONV}.act: expected \['none', 'relu', 'concat_elu'\], got 'elu'"),
    ({"scale": "half"}, rf"{CONV}.scale: expected \['up', 'same', 'down'\], got 'half'"),
    ({"scale": "up", "weight": torch.zeros(4, 7, 4, 1)}, f"{CONV}.scale: .*a coarse source"),
    ({"scale": "up"}, rf"{CONV}.weight: expected \(4, 7, 4, 'KW'\), got \(4, 7, 2, 3\)"),
    ({"scale": "down"}, r"layers\[3\].skip: expected|resolution"),
    ({"left": 4}, f"{CONV}.left: expected 0 ... 3, got 4"),
    ({"left": -1}, f"{CONV}.left: expected 0 ... 3, got -1"),
    ({"source": 2}, f"{CONV}.source: expected 0 ... 1, got 2"),
    ({"source": -1}, f"{CONV}.source: expected 0 ... 1, got -1"),
    ({"skip": 2}, r"layers\[1\].skip: expected -1, or 1 ... 1, got 2"),
    ({"skip": 0}, r"layers\[1\].skip: expected -1, or 1 ... 1, got 0"),
    ({"skip": 1}, r"layers\[1\].skip: expected 4 channels, got 7"),
    ({"gate": True, "bias": torch.zeros(3)}, r"layers\[1\].gate: expected an even number"),
    ({"convs": []}, r"layers\[1\].convs: expected at least one, got none"),
    ({"weight": torch.zeros(4, 6, 2, 3)}, rf"{CONV}.weight: expected \(4, 7, 'KH', 'KW'\)"),
    ({"weight": torch.zeros(4, 7, 3)}, f"{CONV}.weight: expected"),
    ({"weight": torch.zeros(4, 7, 0, 3)}, f"{CONV}.weight: expected"),
    (
        {"weight": torch.zeros(4, 7, 1, 3), "mask": "V"},
        f"{CONV}.weight: expected rows above the pixel's",
    ),
    ({"weight": torch.zeros(3, 7, 2, 3)}, f"{CONV}.weight: expected"),
    ({"weight": meta(torch.zeros(4, 7, 2, 3))}, f"{CONV}: expected values, got a meta tensor"),
    ({"bias": torch.zeros(0)}, r"layers\[1\].bias: expected a multiple of 1 values, got \(0,\)"),
    ({"bias": torch.zeros(4, 1)}, r"layers\[1\].bias: expected a multiple of 1 values"),
    ({"bias": torch.full((4,), NAN)}, r"layers\[1\]: expected finite values"),
    ({"weight": torch.full((4, 7, 2, 3), NAN)}, r"layers\[1\]: expected finite values"),
    ({"bias": meta(torch.zeros(4))}, r"layers\[1\]: expected values, got a meta tensor"),
    ({"dtype": "bfloat16"}, "dtype: expected one of .*, got 'bfloat16'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_stacks_that_there_are_not(change, message):
    layers, _, _ = cases.masked_stack_sample()
    options = {k: v for k, v in change.items() if k in ("colors", "dtype", "levels")}
    own = {k: v for k, v in change.items() if k in MaskedLayer._fields}
    convs = {k: v for k, v in change.items() if k in MaskedConv._fields}
    layers[1] = layers[1]._replace(convs=[layers[1].convs[0]._replace(**convs)])._replace(**own)
    with pytest.raises(ValueError, match=f"masked_stack_sample: {message}"):
        pack_stack(layers, **options)


def test_no_layers():
    with pytest.raises(ValueError, match="layers: expected at least one, got none"):
        pack_stack([])


def test_resolutions_that_no_image_has():
    one = torch.ones(1)
    first = MaskedLayer([MaskedConv(torch.ones(1, 1, 2, 3), 0, "V")], one)
    half = [MaskedConv(torch.ones(1, 1, 2, 2), i + 1, None, scale="down") for i in range(62)]
    layers = [first, *(MaskedLayer([f], one) for f in half)]
    with pytest.raises(ValueError, match=r"scale: expected at most \d+ pixels for one, got"):
        pack_stack(layers)


def test_heads_that_there_are_not():
    layers, _, _ = cases.strided_stack_sample(C=3)
    for bad, what in ((layers[:1], "a multiple of 10 outputs, got 6"), (layers[:5], "resolution")):
        with pytest.raises(ValueError, match=f"layers: expected .*{what}"):
            pack_stack(bad, 3, levels=5)


def test_colors_that_are_apart():
    layers, _, _ = cases.masked_stack_sample(C=3)
    for own in ({"gate": True}, {"convs": [layers[1].convs[0]._replace(act="concat_elu")]}):
        bad = [layers[0], layers[1]._replace(**own), *layers[2:]]
        with pytest.raises(ValueError, match=r"layers\[1\]\S*(gate|act): expected"):
            pack_stack(bad, 3)


def test_the_image_is_seen_through_a_mask_alone():
    layers, _, _ = cases.masked_stack_sample(**cases.ONE)
    bad = layers[0]._replace(convs=[layers[0].convs[0]._replace(mask="B")])
    with pytest.raises(ValueError, match='expected "A" or "V" of the image'):
        pack_stack([bad])


BAD_IMAGES = [
    ("uniforms", lambda x: x[0], ValueError, r"uniforms: expected \(n, 3, H, W\), got \(3, 7, 6\)"),
    ("uniforms", lambda x: changed(x, 1.0), ValueError, r"uniforms: expected values in \[0, 1\)"),
    ("uniforms", meta, ValueError, "uniforms: expected values, got a meta tensor"),
    ("given", lambda x: changed(x, 37), ValueError, r"given: expected levels in \[-1, 37\)"),
    ("given", lambda x: x.int(), TypeError, "given: expected torch.int64, got torch.int32"),
    ("given", lambda x: x[:2], ValueError, "given: expected"),
    ("temperature", lambda x: -0.1, ValueError, "temperature: expected finite values >= 0"),
    ("temperature", lambda x: x[1:], ValueError, "temperature: expected"),
    ("threads", lambda x: 0, ValueError, "threads: expected an int in"),
    ("cond", lambda x: x[:2], ValueError, r"cond: expected \(9, \d+\), got \(2, \d+\)"),
    ("cond", lambda x: x[:, 1:], ValueError, "cond: expected"),
    ("cond", lambda x: changed(x, NAN), ValueError, "cond: expected finite values"),
    ("cond", meta, ValueError, "cond: expected values, got a meta tensor"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_IMAGES)
def test_inputs_that_do_not_fit(name, change, error, message):
    layers, u, options = cases.strided_stack_sample(**cases.STRIDED_STACK_SAMPLE["everything"])
    arguments = {"uniforms": u, "threads": None, **options}
    masked_stack_sample(layers, **arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        masked_stack_sample(layers, **arguments)


@pytest.mark.parametrize(("maker", "sizes"), [*BOTH, (cases.strided_stack_sample, {"n": 0})])
def test_the_registration(maker, sizes):
    layers, u, options = maker(**sizes)
    with mock.patch.object(module, "_masked_stack_sample", side_effect=InterruptedError) as op:
        with pytest.raises(InterruptedError):
            masked_stack_sample(layers, u, **options, logits=True)
    torch.library.opcheck(torch.ops.fastgen.masked_stack_sample.default, op.call_args.args)


def long_call(threads, seconds):
    """A call that would take so long on one core or more, and its first rows."""
    layers, u, _ = cases.strided_stack_sample(64, 3, 10, 256, H=8, W=28)
    packed = pack_stack(layers, levels=256)
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
