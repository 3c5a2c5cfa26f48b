import sys
import time
import warnings
from unittest import mock

import cases
import pytest
import torch
from check import changed, close, ends_on_ctrl_c, lets_others_run, meta, near, same
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.kernels import PixelLayer, PixelWeights, draw, pack_pixels, pixelcnn_sample
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.pixelcnn_sample"]
DTYPES = ("float32", "float64")
ISAS = native.isas()
NAN = float("nan")
# odd everywhere
ODD = {"L": 4, "P": 21, "S": 15, "A": 37, "C": 3, "given": 0.3, "cond": True, "temperature": None}


def reference(*args, **options):
    """`pixelcnn_sample` without the native kernel."""
    with mock.patch.object(module, "native", None), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return pixelcnn_sample(*args, **options)


def fixed(logits):
    """Weights of a network that says `logits` of every pixel."""
    zeros, A = torch.zeros, len(logits)
    layer = PixelLayer(
        *(zeros(2, 1, 2, 3), zeros(2), zeros(2, 1, 1, 2), zeros(2)),
        *(zeros(2, 2), zeros(1, 1), zeros(1)),
    )
    return PixelWeights([layer], zeros(1, 1), zeros(1), zeros(A, 1), logits)


@pytest.mark.parametrize("sizes", cases.PIXELCNN_SAMPLE.values(), ids=cases.PIXELCNN_SAMPLE)
def test_equals_the_reference_in_float64(sizes):
    weights, u, options = cases.pixelcnn_sample(**sizes)
    options |= {"dtype": "float64", "logits": True}
    codes, logits = reference(weights, u, **options)
    if options["given"] is not None:
        assert torch.equal(codes[options["given"] >= 0], options["given"][options["given"] >= 0])
    for isa in ISAS:
        native.set_isa(isa)
        got = pixelcnn_sample(weights, u, **options)
        assert torch.equal(got[0], codes), isa
        close(got[1], logits, torch.float64, isa)
        # without logits it leaves out what it does not need
        assert torch.equal(pixelcnn_sample(weights, u, **{**options, "logits": False}), codes)


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_the_reference_in_float64_whatever_the_sizes(data):
    C = data.draw(st.sampled_from([1, 1, 2, 3]), "C")
    sizes = {
        "C": C,
        "L": data.draw(st.integers(1, 4), "L"),
        "P": C * data.draw(st.integers(1, 19), "P / C"),
        "S": C * data.draw(st.integers(1, 19), "S / C"),
        "A": data.draw(st.integers(2, 70), "A"),
        "n": data.draw(st.integers(0, 10), "n"),
        "H": data.draw(st.integers(0, 5), "H"),
        "W": data.draw(st.integers(0, 6), "W"),
        "first": data.draw(st.sampled_from([3, 5, 7]), "first"),
        "k": data.draw(st.sampled_from([1, 3, 5]), "k"),
        "given": data.draw(st.sampled_from([0.0, 0.4]), "given"),
        "cond": data.draw(st.booleans(), "cond"),
        "temperature": data.draw(st.sampled_from([0.0, 0.7, 1.0, None]), "temperature"),
    }
    weights, u, options = cases.pixelcnn_sample(**sizes)
    native.set_isa(data.draw(st.sampled_from(ISAS), "isa"))
    options |= {"dtype": "float64", "logits": True}
    got, want = pixelcnn_sample(weights, u, **options), reference(weights, u, **options)
    assert torch.equal(got[0], want[0])
    close(got[1], want[1], torch.float64, sizes)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", cases.PIXELCNN_SAMPLE.values(), ids=cases.PIXELCNN_SAMPLE)
def test_float32_along_the_same_history(sizes, isa):
    weights, u, options = cases.pixelcnn_sample(**sizes)
    native.set_isa(isa)
    codes, logits = pixelcnn_sample(weights, u, **options, logits=True)
    drawn = torch.ones_like(codes) > 0 if options["given"] is None else options["given"] < 0
    along = {**options, "given": codes, "dtype": "float64", "logits": True}
    _, want = pixelcnn_sample(weights, u, **along)
    if codes.numel():
        assert (logits - want).abs().max() < 1e-4
        assert near(codes, want, u, options["temperature"])[drawn].all()


def test_the_rule_of_nearness_is_narrow():
    weights, u, options = cases.pixelcnn_sample(**{**ODD, "temperature": 1.0}, n=9, H=8)
    options |= {"given": None, "dtype": "float64", "logits": True}
    codes, logits = pixelcnn_sample(weights, u, **options)
    assert near(codes, logits, u, 1.0).all()
    others = [(codes + i) % 37 for i in range(1, 37)]
    assert sum(near(x, logits, u, 1.0).sum().item() for x in others) < 0.002 * codes.numel()
    # and the distributions are far from even: most of 37 levels would never be missed
    assert torch.softmax(logits, 1).amax(1).median() > 0.3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_no_bit_depends_on_neighbours_or_threads(isa, dtype):
    weights, u, options = cases.pixelcnn_sample(**ODD, n=17)
    native.set_isa(isa)
    packed = pack_pixels(weights, dtype)
    want = pixelcnn_sample(packed, u, **options, threads=1, logits=True)
    for m in range(1, 17):  # groups of every size
        part = {**options, "given": options["given"][-m:], "cond": options["cond"][-m:]}
        got = pixelcnn_sample(packed, u[-m:], **part, threads=1, logits=True)
        same(got, (want[0][-m:], want[1][-m:]))
    for threads in (2, 3, 100, 1024):
        same(pixelcnn_sample(packed, u, **options, threads=threads, logits=True), want)
    assert torch.equal(pixelcnn_sample(packed, u, **options), want[0])


def test_one_condition_for_all():
    weights, u, options = cases.pixelcnn_sample(cond=True, n=5)
    one = options["cond"][:1]
    every = pixelcnn_sample(weights, u, cond=one.expand(5, -1, -1), logits=True)
    same(pixelcnn_sample(weights, u, cond=one, logits=True), every)
    assert not torch.equal(pixelcnn_sample(weights, u, **options, logits=True)[1], every[1])


def test_given_levels_flow_into_what_follows():
    weights, u, _ = cases.pixelcnn_sample(n=1, C=3)
    codes, before = pixelcnn_sample(weights, u, logits=True, dtype="float64")
    for place in ((0, 0, 0, 0), (0, 1, 1, 2), (0, 2, 2, 4)):
        other = codes.clone()
        other[place] = (other[place] + 1) % 5
        _, after = pixelcnn_sample(weights, u, given=other, logits=True, dtype="float64")
        changed = (after != before).any(1)[0].permute(1, 2, 0).flatten()  # in raster order
        t = (place[2] * 5 + place[3]) * 3 + place[1]
        assert not changed[: t + 1].any()
        assert changed[t + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_takes_a_temperature_for_each_row(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(60, 17, generator=generator).to(dtype)
    u = torch.rand(60, generator=generator, dtype=torch.float64)
    temperature = torch.tensor([0, 1e-300, 0.5, 1.0, 7.0], dtype=torch.float64).repeat(12)
    together = draw(logits, u, temperature, 17)
    for i, t in enumerate(temperature.tolist()):
        assert torch.equal(draw(logits[i : i + 1], u[i : i + 1], t, 17), together[i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_draw_inverts_the_cdf_at_each_temperature(isa, dtype):
    native.set_isa(isa)
    A, generator = 300, torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(A, generator=generator)
    u = torch.rand((1, 1, 8, 50), generator=generator, dtype=torch.float64)
    temperature = torch.tensor([0, 1e-300, 1e-10, 0.3, 0.7, 1.0, 2.0, 1e10]).double()[:, None]
    codes = pixelcnn_sample(fixed(logits), u, temperature=temperature, dtype=dtype)
    z = logits.double().view(1, A, 1, 1, 1).expand(1, A, 1, 8, 50)
    assert near(codes, z, u, temperature.clamp(min=1e-30)).all()
    assert (codes[0, 0, :3] == logits.argmax()).all()
    row = pixelcnn_sample(fixed(logits), u[:, :, 3:4], temperature=0.3, dtype=dtype)
    assert torch.equal(row[0, 0, 0], codes[0, 0, 3]), "a number is a tensor of one value"


def test_a_uniform_on_a_step_of_the_cdf_is_above_it():
    u = torch.arange(64, dtype=torch.float64).view(1, 1, 8, 8) / 64
    for isa in ISAS:
        native.set_isa(isa)
        codes = pixelcnn_sample(fixed(torch.zeros(64)), u)
        assert torch.equal(codes.flatten(), torch.arange(64)), isa


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_logits_that_are_not_finite_are_an_error(isa, dtype):
    # of the third image, from the pixel on that sees a level 4 at row 1, column 2, color 1
    weights, u, options = cases.pixelcnn_sample(n=3, C=3, L=2, P=3, S=3)
    huge = 1e308 if dtype == "float64" else 3e38
    for y in weights.layers:
        y.h_weight.zero_(), y.v_weight.zero_(), y.link_weight.zero_()
    first = weights.layers[0]
    first.h_weight[3 + 2, 1, 0, -1] = 50  # the gate of blue opens by green's level
    first.h_bias[2], first.res_weight[2, 2] = 50, huge
    first.res_bias.zero_()
    weights.hidden.zero_()[2, 2] = 2
    options["given"] = torch.zeros(u.shape, dtype=torch.int64)
    options["given"][2, 1, 1, 2], options["given"][2, 2, 1, 2] = 4, -1
    native.set_isa(isa)
    message = "logits of image 2 at row 1, column 2, color 2 are not finite"
    for call in (pixelcnn_sample, reference):
        with pytest.raises(ValueError, match=message):
            call(weights, u, **options, dtype=dtype)
    options["given"][2, 1, 1, 2] = 0
    assert pixelcnn_sample(weights, u, **options, dtype=dtype).shape == u.shape


def test_strides_and_gradients_of_inputs_change_nothing():
    weights, u, options = cases.pixelcnn_sample(**ODD)
    want = pixelcnn_sample(weights, u, **options, logits=True)

    def spread(x):
        if not isinstance(x, torch.Tensor):
            return x
        x = torch.stack([x, x], -1)[..., 0]
        return x.requires_grad_() if x.is_floating_point() else x

    weights = weights._replace(
        layers=[PixelLayer(*map(spread, y)) for y in weights.layers],
        **{name: spread(getattr(weights, name)) for name in ("hidden", "out", "out_bias")},
    )
    strided = {name: spread(v) for name, v in options.items()}
    same(pixelcnn_sample(weights, spread(u), **strided, logits=True), want)


def test_packed_weights_give_the_same_images():
    weights, u, options = cases.pixelcnn_sample(**ODD)
    for dtype in DTYPES:
        want = pixelcnn_sample(weights, u, **options, dtype=dtype)
        assert torch.equal(pixelcnn_sample(pack_pixels(weights, dtype), u, **options), want)


def test_uniforms_of_other_dtypes():
    weights, u, _ = cases.pixelcnn_sample()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        narrow = (u * 0.99).to(dtype)
        want = pixelcnn_sample(weights, narrow.double())
        assert torch.equal(pixelcnn_sample(weights, narrow), want)


GOOD = {"n": 3, "C": 3, "cond": True, "given": 0.5, "temperature": None}


BAD = [
    ("uniforms", lambda x: x[0], ValueError, r"uniforms: expected \(n, 3, H, W\), got \(3, 4, 5\)"),
    ("uniforms", lambda x: x[:, :1], ValueError, "uniforms: expected"),
    ("uniforms", lambda x: changed(x, NAN), ValueError, r"uniforms: expected values in \[0, 1\)"),
    ("uniforms", lambda x: changed(x, 1.0), ValueError, "uniforms: expected values in"),
    ("uniforms", lambda x: changed(x, -1e-9), ValueError, "uniforms: expected values in"),
    ("uniforms", meta, ValueError, "uniforms: expected values, got a meta tensor"),
    ("given", lambda x: changed(x, 5), ValueError, r"given: expected levels in \[-1, 5\)"),
    ("given", lambda x: changed(x, -2), ValueError, "given: expected levels in"),
    ("given", lambda x: x.int(), TypeError, "given: expected torch.int64, got torch.int32"),
    ("given", lambda x: x[:2], ValueError, r"given: expected \(3, 3, 4, 5\), got \(2, 3, 4, 5\)"),
    ("given", lambda x: x[:, :, :2], ValueError, "given: expected"),
    ("given", meta, ValueError, "given: expected values, got a meta tensor"),
    ("cond", lambda x: x[:2], ValueError, r"cond: expected \(3, 3, 24\), got \(2, 3, 24\)"),
    ("cond", lambda x: x[..., 1:], ValueError, "cond: expected"),
    ("cond", lambda x: x[:, 1:], ValueError, "cond: expected"),
    ("cond", lambda x: changed(x, NAN), ValueError, "cond: expected finite values"),
    ("cond", meta, ValueError, "cond: expected values, got a meta tensor"),
    ("temperature", lambda x: -0.1, ValueError, "temperature: expected finite values >= 0"),
    ("temperature", lambda x: NAN, ValueError, "temperature: expected finite values"),
    ("temperature", lambda x: float("inf"), ValueError, "temperature: expected finite values"),
    ("temperature", lambda x: x[1:], ValueError, r"temperature: expected \(3, 3, 4, 5\), got \(3"),
    ("temperature", lambda x: x.expand(2, 3, 3, 4, 5), ValueError, "temperature: expected"),
    ("temperature", meta, ValueError, "temperature: expected values, got a meta tensor"),
    ("threads", lambda x: 0, ValueError, "threads: expected an int in"),
    ("threads", lambda x: 1025, ValueError, r"threads: expected an int in \[1, 1024\], got 1025"),
    ("dtype", lambda x: "float16", ValueError, "dtype: expected one of .*, got 'float16'"),
    ("dtype", lambda x: torch.float32, ValueError, "dtype: expected one of"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD)
def test_inputs_that_do_not_fit(name, change, error, message):
    weights, u, options = cases.pixelcnn_sample(**GOOD)
    arguments = {"uniforms": u, "threads": None, "dtype": "float32", **options}
    pixelcnn_sample(weights, **arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        pixelcnn_sample(weights, **arguments)


@pytest.mark.parametrize("name", [*PixelLayer._fields, "hidden", "hidden_bias", "out", "out_bias"])
def test_weights_that_do_not_fit(name):
    weights, _, _ = cases.pixelcnn_sample(C=3, A=4)
    for l in range(2) if name in PixelLayer._fields else [None]:
        owner = weights if l is None else weights.layers[l]
        tensor = getattr(owner, name)
        live = tensor.nan_to_num()
        wrong = [tensor[..., :0], tensor[None], torch.ones(()), torch.ones(2, 3, 5, 7, 1)]
        wrong += [tensor[1:], live * NAN, live / 0, changed(live, -float("inf")), meta(tensor)]
        for i, value in enumerate(wrong):
            if i == 7 and (l, name) == (0, "v_weight"):
                continue  # it lies in a row that is shut out
            if i == 7 and (l, name) == (0, "h_weight"):
                continue  # it is blue's own place
            bad = owner._replace(**{name: value})
            if l is not None:
                bad = weights._replace(layers=[*weights.layers[:l], bad, *weights.layers[l + 1 :]])
            with pytest.raises(ValueError, match=r"pixelcnn_sample: [\w\[\].]+: expected .*, got "):
                pack_pixels(bad)


def test_networks_that_there_are_not():
    weights, _, _ = cases.pixelcnn_sample()
    for bad in ({"layers": []}, {"colors": 4}, {"colors": 0}, {"colors": 1.0}, {"colors": 2}):
        with pytest.raises(ValueError, match=r"pixelcnn_sample: [\w\[\].]+: expected .*, got "):
            pack_pixels(weights._replace(**bad))
    for k in (2, 4):
        layer = weights.layers[1]._replace(v_weight=torch.zeros(12, 6, k // 2 + 1, k))
        with pytest.raises(ValueError, match=r"layers\[1\].*: expected an odd kernel"):
            pack_pixels(weights._replace(layers=[weights.layers[0], layer]))


@pytest.mark.parametrize("sizes", [GOOD, {"n": 0}, {"dtype": "float64"}])
def test_the_registration(sizes):
    dtype = sizes.get("dtype", "float32")
    sizes = {name: v for name, v in sizes.items() if name != "dtype"}
    weights, u, options = cases.pixelcnn_sample(**sizes)
    with mock.patch.object(module, "_pixelcnn_sample", side_effect=InterruptedError) as op:
        with pytest.raises(InterruptedError):
            pixelcnn_sample(weights, u, **options, dtype=dtype, logits=True)
    torch.library.opcheck(torch.ops.fastgen.pixelcnn_sample.default, op.call_args.args)


def long_call(threads, seconds):
    """A call that would take so long on one core or more, and its first rows."""
    weights, u, _ = cases.pixelcnn_sample(L=8, P=64, S=64, A=256, n=2, H=8, W=28)
    packed = pack_pixels(weights)
    start = time.perf_counter()
    want = pixelcnn_sample(packed, u, threads=threads)
    rows = 8 * int(seconds / (time.perf_counter() - start))
    u = torch.cat([u, torch.zeros(2, 1, 1, 28).expand(2, 1, rows, 28)], 2)
    return (lambda: pixelcnn_sample(packed, u, threads=threads)[:, :, :8]), want


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
    weights, u, options = cases.pixelcnn_sample(**GOOD)
    options |= {"dtype": "float64", "logits": True}
    want = pixelcnn_sample(weights, u, **options)
    sys.modules["fastgen.kernels._op"].warn_reference.cache_clear()
    with mock.patch.object(module, "native", None):
        with pytest.warns(RuntimeWarning, match="pixelcnn_sample runs on its slow reference"):
            got = pixelcnn_sample(weights, u, **options)
    assert torch.equal(got[0], want[0])
    close(got[1], want[1], torch.float64, "logits")
