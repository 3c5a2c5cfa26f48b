import math
import os
import signal
import sys
import threading
import time
import warnings
from unittest import mock

import cases
import pytest
import torch
from check import close, ends_on_ctrl_c, lets_others_run
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.kernels import (
    State,
    Weights,
    draw,
    initial_state,
    pack,
    uniforms,
    wavenet_sample,
)
from fastgen.kernels._op import native

module = sys.modules["fastgen.kernels.wavenet_sample"]
DTYPES = ("float32", "float64", "bfloat16", "int8")
ISAS = native.isas()
LAST = 1 - 2**-53  # the largest uniform number
# odd everywhere, dilations beyond the 16 rows of a product of past taps
ODD = {"L": 6, "stacks": 1, "K": 3, "R": 13, "H": 9, "S": 21, "A": 37, "C": 2, "hop": 5}


def reference(*args, **options):
    """`wavenet_sample` without the native kernel."""
    with mock.patch.object(module, "native", None), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return wavenet_sample(*args, **options)


def near(codes, logits, u, options):
    """Where a code is what u draws from float64 logits, or u within 1e-5 would.

    Of a mixture, the mean too is taken within 1e-5.
    """
    classes, M, temperature = options["classes"], options["mixtures"], options["temperature"]
    found = torch.zeros_like(codes, dtype=torch.bool)
    logits, u, flat = logits.flatten(0, 1), u.flatten(0, 1), codes.flatten()
    for first in (-1e-5, 1e-5):
        bounds = []
        for e in (-1e-5, 1e-5):
            shifted, v = logits.clone(), u.clone()
            if M:
                shifted[:, M : 2 * M] += e
                v[:, 0], v[:, 1] = u[:, 0] + first, u[:, 1] + e
            else:
                v += e
            bounds.append(draw(shifted, v.clamp(0, LAST), temperature, classes, M))
        found |= ((bounds[0] <= flat) & (flat <= bounds[1])).view_as(codes)
    return found


def in_chunks(packed, u, options, size, **more):
    """The codes, last state and logits of `wavenet_sample`, `size` steps at a time."""
    options = {**options, **more}
    prefix, cond, hop = options.pop("prefix"), options.pop("cond"), options["hop"]
    state = initial_state(packed, options["dilations"], len(u))
    codes, values = [], []
    for part in u.split(size, dim=1):
        t = state.step
        rest = None if prefix is None else prefix[:, t : t + size]
        frames = None if cond is None else cond[..., t // hop :]
        found = wavenet_sample(
            packed, part, state=state, prefix=rest, cond=frames, logits=True, **options
        )
        codes.append(found[0])
        state = found[1]
        values.append(found[2])
    return torch.cat(codes, 1), state, torch.cat(values, 1)


def rows(options, chosen):
    """The options of some of the streams."""
    per_stream = ("prefix", "base", "cond")
    return {k: v[chosen] if k in per_stream and v is not None else v for k, v in options.items()}


def same(got, want):
    """Hold codes, states and logits to be equal, bit for bit."""
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1].rings, want[1].rings)
    assert torch.equal(got[1].history, want[1].history)
    assert got[1].step == want[1].step
    assert torch.equal(got[2], want[2])


def fixed(logits):
    """Weights of a network that says `logits` whatever it hears."""
    A, zeros = len(logits), torch.zeros
    return Weights(
        *(zeros(A, 1), zeros(1, 2, 1, 2), zeros(1, 2), zeros(0, 1, 1), zeros(0, 1)),
        *(zeros(1, 1, 1), zeros(1), zeros(1, 1), zeros(1), zeros(A, 1), logits),
    )


def from_network(dtype):
    """`draw`, but by the kernel: logits (A,), u (T,)."""

    def sampled(logits, u, temperature):
        options = {"dilations": [1], "temperature": temperature, "dtype": dtype}
        return wavenet_sample(fixed(logits), u[None], **options)[0][0]

    return sampled


def by_torch(dtype):
    def sampled(logits, u, temperature):
        return draw(logits.to(dtype).expand(len(u), -1), u, temperature, len(logits))

    return sampled


SAMPLERS = {f"kernel, {dtype}": from_network(dtype) for dtype in DTYPES}
SAMPLERS |= {f"draw, {dtype}": by_torch(dtype) for dtype in (torch.float32, torch.float64)}


@pytest.mark.parametrize("sizes", cases.WAVENET_SAMPLE.values(), ids=cases.WAVENET_SAMPLE)
def test_equals_the_reference_in_float64(sizes):
    weights, u, options = cases.wavenet_sample(**sizes)
    options |= {"dtype": "float64", "logits": True}
    want = reference(weights, u, **options)
    for isa in ISAS:
        native.set_isa(isa)
        codes, state, logits = wavenet_sample(weights, u, **options)
        assert torch.equal(codes, want[0]), isa
        assert torch.equal(state.history, want[1].history), isa
        assert state.step == want[1].step
        close(state.rings, want[1].rings, torch.float64, isa)
        close(logits, want[2], torch.float64, isa)


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_the_reference_in_float64_whatever_the_sizes(data):
    size = st.integers(1, 19)
    stacks = data.draw(st.integers(1, 3), "stacks")
    sizes = {
        "stacks": stacks,
        "L": stacks * data.draw(st.integers(1, 4), "layers"),
        "K": data.draw(st.integers(2, 4), "K"),
        "M": data.draw(st.sampled_from([0, 0, 1, 3]), "M"),
        "A": data.draw(st.integers(2, 70), "A"),
        "n": data.draw(st.integers(0, 18), "n"),
        "T": data.draw(st.integers(0, 30), "T"),
        "C": data.draw(st.sampled_from([0, 1, 3]), "C"),
        "hop": data.draw(st.sampled_from([1, 2, 4, 7, 80]), "hop"),
        "speakers": data.draw(st.booleans(), "speakers"),
        "temperature": data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]), "temperature"),
    }
    sizes |= {name: data.draw(size, name) for name in "RHS"}
    sizes["P"] = data.draw(st.integers(0, sizes["T"]), "P")
    weights, u, options = cases.wavenet_sample(**sizes)
    native.set_isa(data.draw(st.sampled_from(ISAS), "isa"))
    codes, _, logits = wavenet_sample(weights, u, **options, dtype="float64", logits=True)
    want = reference(weights, u, **options, dtype="float64", logits=True)
    assert torch.equal(codes, want[0])
    close(logits, want[2], torch.float64, sizes)
    packed, chunk = pack(weights, "float64"), data.draw(st.integers(1, 9), "chunk")
    same(in_chunks(packed, u, options, chunk), wavenet_sample(packed, u, **options, logits=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", cases.WAVENET_SAMPLE.values(), ids=cases.WAVENET_SAMPLE)
def test_float32_along_the_same_history(sizes, isa):
    weights, u, options = cases.wavenet_sample(**sizes)
    native.set_isa(isa)
    codes, _, logits = wavenet_sample(weights, u, **options, logits=True)
    given = 0 if options["prefix"] is None else options["prefix"].shape[1]
    options["prefix"] = codes
    _, _, want = wavenet_sample(weights, u, **options, dtype="float64", logits=True)
    if codes.numel():
        assert (logits - want).abs().max() < 1e-4
    assert near(codes, want, u, options)[:, given:].all()


def test_the_rule_of_nearness_is_narrow():
    weights, u, options = cases.wavenet_sample(**ODD, n=9, T=100)
    codes, _, logits = wavenet_sample(weights, u, **options, dtype="float64", logits=True)
    assert near(codes, logits, u, options).all()
    others = torch.arange(36)[:, None, None] + codes + 1
    wrong = sum(near(code % 37, logits, u, options).sum().item() for code in others)
    assert wrong < 0.002 * codes.numel()
    # and the distributions are far from even: most of 37 classes would never be missed
    assert torch.softmax(logits, -1).amax(-1).median() > 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_no_bit_depends_on_neighbours_threads_or_chunks(isa, dtype):
    weights, u, options = cases.wavenet_sample(**ODD, n=17, T=70, speakers=True, P=3)
    native.set_isa(isa)
    packed = pack(weights, dtype)
    want = wavenet_sample(packed, u, **options, threads=1, logits=True)
    for m in range(1, 17):  # groups of every size
        part = rows(options, slice(17 - m, None))
        codes, state, logits = wavenet_sample(packed, u[-m:], **part, threads=1, logits=True)
        state = State(state.rings, state.history, state.step)
        tail = State(want[1].rings[-m:], want[1].history[-m:], want[1].step)
        same((codes, state, logits), (want[0][-m:], tail, want[2][-m:]))
    for threads in (2, 3, 100, 1024):
        same(wavenet_sample(packed, u, **options, threads=threads, logits=True), want)
    for chunk, threads in ((1, 1), (7, 2), (16, 3), (70, 1)):
        same(in_chunks(packed, u, options, chunk, threads=threads), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixtures_in_chunks_and_batches(dtype):
    weights, u, options = cases.wavenet_sample(M=3, A=256, n=9, T=40)
    packed = pack(weights, dtype)
    want = wavenet_sample(packed, u, **options, logits=True)
    same(in_chunks(packed, u, options, 7, threads=2), want)
    alone = wavenet_sample(packed, u[5:6], **options)[0]
    assert torch.equal(alone, want[0][5:6])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("K", [2, 3])
def test_narrow_dtypes_are_what_they_are_defined_to_be(dtype, isa, K):
    weights, u, options = cases.wavenet_sample(L=4, stacks=2, K=K, R=65, H=19, S=37, n=65, T=7)
    native.set_isa(isa)
    codes, _, logits = wavenet_sample(weights, u, **options, dtype=dtype, logits=True)
    want = narrow_logits(weights, codes, options["dilations"], dtype)
    scale = want.abs().max()
    error = (logits - want).abs().amax(-1) / scale
    # where a sum's last bit decides how a vector's element is rounded, the two part
    assert (error < 1e-6).double().mean() > 0.95
    assert error.max() < 0.02
    options["prefix"] = codes
    _, _, exact = wavenet_sample(weights, u, **options, dtype="float64", logits=True)
    assert ((exact - want).abs().amax(-1) / scale).median() > 1e-3


def narrow_logits(weights, codes, dilations, dtype):
    """The definition of bfloat16 and int8, in float64 but for what they round. (n, T, A)"""
    w = Weights(*(v if v is None else v.double() for v in weights))
    L, G, _, K = w.conv.shape

    def vectors(x):
        if dtype == "bfloat16":
            return x.bfloat16().double()
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (x / scale + 0.5).floor() * scale

    def matrix(x):
        if dtype == "bfloat16":
            return x.bfloat16().double()
        scale = x.float().abs().amax(1, keepdim=True) / 127
        return (x.float() / scale).round().double() * scale

    def product(x, m):
        return vectors(x) @ matrix(m).T

    def past(x, steps):
        return torch.nn.functional.pad(x, (0, 0, steps, 0))[:, : x.shape[1]]

    y, h = past(w.embed[codes], 1), []
    for l, d in enumerate(dilations):
        taps = [past(y, (K - 1 - k) * d) for k in range(K)]
        if l == 0:
            a = sum(tap @ w.conv[0, :, :, k].T for k, tap in enumerate(taps))
        else:
            side = w.conv[l, :, :, :-1].transpose(1, 2).reshape(G, -1)
            a = product(torch.cat(taps[:-1], -1), side) + product(y, w.conv[l, :, :, -1])
        f, g = (a + w.conv_bias[l]).chunk(2, -1)
        h.append(torch.tanh(f) * torch.sigmoid(g))
        if l < L - 1:
            y = y + product(h[-1], w.res[l]) + w.res_bias[l]
    s = product(torch.cat(h, -1), w.skip.transpose(0, 1).flatten(1)) + w.skip_bias
    s = product(torch.relu(s), w.hidden) + w.hidden_bias
    return product(torch.relu(s), w.out) + w.out_bias


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_rounds_ties_to_even(isa):
    native.set_isa(isa)
    for below in (1.0, 1 + 2**-7, 1.5, 64.0):
        step = 2.0 ** (math.frexp(below)[1] - 8)
        for x in (
            below + step / 2,
            below + step / 2 * (1 + 2**-10),
            below + step / 2 * (1 - 2**-10),
        ):
            one = torch.ones(1, 1)
            weights = fixed(torch.zeros(2))._replace(skip_bias=x * one[0], hidden=one)
            weights = weights._replace(out=torch.tensor([[1.0], [0.0]]))
            options = {"dilations": [1], "dtype": "bfloat16", "logits": True}
            _, _, logits = wavenet_sample(weights, torch.zeros(1, 1), **options)
            assert logits[0, 0, 0] == torch.tensor(x).bfloat16(), x


VERY_LOW = -1e4  # a logit of no probability in any dtype
LOGITS = {
    "even": torch.zeros(8),
    "two": torch.tensor([0.3, -0.2]),
    "none at either end": torch.tensor([VERY_LOW, VERY_LOW, 0.0, VERY_LOW, 1.0, 2.0, VERY_LOW]),
    "one": torch.tensor([VERY_LOW] * 40 + [3.0] + [VERY_LOW] * 40),
    "many": 3 * torch.randn(300, generator=torch.Generator().manual_seed(0)),
    "last of a block": torch.tensor([VERY_LOW] * 15 + [0.0, 0.0] + [VERY_LOW] * 15),
}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_draw_inverts_the_cdf(sampler, logits, temperature):
    p = torch.softmax(logits.double() / temperature, 0)
    cdf = p.cumsum(0)
    positive = p.nonzero()[:, 0]
    between = (cdf - p / 2)[p > 1e-5]
    u = torch.cat([between, torch.tensor([0.0, LAST], dtype=torch.float64)])
    want = torch.cat([(p > 1e-5).nonzero()[:, 0], positive[:1], positive[-1:]])
    for isa in ISAS:
        native.set_isa(isa)
        assert torch.equal(sampler(logits, u, temperature), want), isa


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_uniform_on_a_step_of_the_cdf_is_above_it(sampler):
    u = torch.arange(64, dtype=torch.float64) / 64
    for isa in ISAS:
        native.set_isa(isa)
        assert torch.equal(sampler(torch.zeros(64), u, 1.0), torch.arange(64)), isa


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_temperatures_at_the_ends(sampler):
    logits = torch.tensor([1.0, 5.0, 2.0, 5.0])
    u = torch.tensor([0.0, 0.4, 0.6, LAST], dtype=torch.float64)
    for isa in ISAS:
        native.set_isa(isa)
        assert sampler(logits, u, 0.0).tolist() == [1, 1, 1, 1]  # of equals the first
        assert sampler(logits * 1e30, u, 0.0).tolist() == [1, 1, 1, 1]
        for cold in (1e-10, 1e-39, 1e-300, 5e-324):
            assert sampler(logits, u, cold).tolist() == [1, 1, 3, 3], cold
        for hot in (1e10, 1e300):
            assert sampler(logits, u, hot).tolist() == [0, 1, 2, 3], hot


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_frequencies_are_the_softmax(sampler):
    logits, n = torch.tensor([0.5, -1.0, 2.0, -3.0, 0.0, 1.0, 1.0]), 20000
    codes = sampler(logits, uniforms(0, 1, n)[0], 1.0)
    expected = n * torch.softmax(logits.double(), 0)
    statistic = ((torch.bincount(codes, minlength=7) - expected).square() / expected).sum()
    assert statistic < 6 + 4.5 * math.sqrt(2 * 6)


@pytest.mark.parametrize("isa", ISAS)
def test_a_mixture_at_the_ends_of_its_uniforms(isa):
    native.set_isa(isa)
    A = 256
    for log_scale in (-300.0, 0.0, 300.0, 1000.0):
        # one component, its mean at code 51
        out_bias = torch.tensor([0.0, 51 / 255 * 2 - 1, log_scale], dtype=torch.float64)
        weights = fixed(out_bias)._replace(embed=torch.zeros(2, 1))
        options = {"dilations": [1], "classes": A, "mixtures": 1}
        options["dtype"] = "float64"
        u = torch.tensor([[[0.0, 0.0], [LAST, 0.5], [0.5, LAST]]], dtype=torch.float64)
        want = [51, 51, 51] if log_scale < 0 else [0, 51, 255]
        assert wavenet_sample(weights, u, **options)[0].tolist() == [want]
        assert reference(weights, u, **options)[0].tolist() == [want]


SIGNS = torch.tensor([1, -1, 1, -1, 1, -1, 1], dtype=torch.float64)
HUGE = {dtype: SIGNS * (1.6e308 if dtype == "float64" else 3e38) for dtype in DTYPES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_logits_that_are_not_finite_are_an_error(isa, dtype):
    # stream 1 says 2 at step 3, and hears itself at step 4
    weights, u, options = cases.wavenet_sample(n=3, T=9, A=3)
    weights.embed[2] = HUGE[dtype]
    weights.res_bias[0], weights.conv[1:] = HUGE[dtype], weights.conv[1:] / 1000
    options["prefix"] = torch.zeros(3, 9, dtype=torch.int64)
    options["prefix"][1, 3] = 2
    options |= {"dtype": dtype, "logits": True}
    native.set_isa(isa)
    with pytest.raises(ValueError, match=r"logits of stream 1 at step 4 are not finite"):
        wavenet_sample(weights, u, **options)
    with pytest.raises(ValueError, match=r"logits of stream 1 at step 4 are not finite"):
        reference(weights, u, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_a_residual_that_overflows_is_an_error(isa, dtype):
    weights, u, options = cases.wavenet_sample()
    weights.res_bias[:] = HUGE[dtype]
    weights.embed[:] = HUGE[dtype]
    native.set_isa(isa)
    with pytest.raises(ValueError, match=r"logits of stream 0 at step \d are not finite"):
        wavenet_sample(weights, u, **options, dtype=dtype)


def test_strides_and_gradients_of_inputs_change_nothing():
    weights, u, options = cases.wavenet_sample(C=3, hop=4, speakers=True, P=5)
    want = wavenet_sample(weights, u, **options, logits=True)
    middle = wavenet_sample(weights, u[:, :8], **{**options, "cond": options["cond"][..., :3]})[1]

    def spread(x):
        if not isinstance(x, torch.Tensor):
            return x
        x = torch.stack([x, x], -1)[..., 0]
        return x.requires_grad_() if x.is_floating_point() else x

    strided = {name: spread(v) for name, v in options.items()}
    same(wavenet_sample(Weights(*map(spread, weights)), spread(u), **strided, logits=True), want)
    strided["cond"], strided["prefix"] = strided["cond"][..., 2:], None
    state = State(*map(spread, middle[:2]), middle.step)
    codes, after, _ = wavenet_sample(weights, spread(u)[:, 8:], state=state, **strided, logits=True)
    same((codes, after, want[2]), (want[0][:, 8:], want[1], want[2]))
    # the given state is left as it was
    again = wavenet_sample(weights, u[:, 8:], state=state, **strided)
    assert torch.equal(again[0], codes)


def test_uniforms_of_other_dtypes():
    weights, u, options = cases.wavenet_sample()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        narrow = (u * 0.99).to(dtype)
        assert torch.equal(
            wavenet_sample(weights, narrow, **options)[0],
            wavenet_sample(weights, narrow.double(), **options)[0],
        )


def test_packed_weights_give_the_same_codes():
    weights, u, options = cases.wavenet_sample()
    for dtype in DTYPES:
        want = wavenet_sample(weights, u, **options, dtype=dtype)[0]
        assert torch.equal(wavenet_sample(pack(weights, dtype), u, **options)[0], want)


GOOD = {"n": 3, "T": 8, "C": 2, "hop": 4, "speakers": True, "P": 5}
NAN = float("nan")


def changed(x, value):
    x = x.clone()
    x.view(-1)[-1] = value
    return x


def double_rings(state):
    return state._replace(rings=state.rings.double())


def meta(x):
    return x.to("meta")


BAD = [
    ("uniforms", lambda x: x[0], ValueError, r"uniforms: expected \(n, T\), got \(8,\)"),
    ("uniforms", lambda x: x[..., None], ValueError, "uniforms: expected"),
    ("uniforms", lambda x: changed(x, NAN), ValueError, r"uniforms: expected values in \[0, 1\)"),
    ("uniforms", lambda x: changed(x, 1.0), ValueError, "uniforms: expected values in"),
    ("uniforms", lambda x: changed(x, -1e-9), ValueError, "uniforms: expected values in"),
    ("uniforms", meta, ValueError, "uniforms: expected cpu, got meta"),
    ("dilations", lambda x: x[:3], ValueError, "dilations: expected 4 of them, got 3"),
    ("dilations", lambda x: [1, 3, 1, 2], ValueError, "dilations: expected powers of two"),
    ("dilations", lambda x: [2, 2, 1, 2], ValueError, "dilations: expected powers of two"),
    ("dilations", lambda x: [1, 0, 1, 2], ValueError, "dilations: expected powers of two"),
    ("dilations", lambda x: [1, -8, 1, 2], ValueError, "dilations: expected powers of two"),
    ("prefix", lambda x: changed(x, 12), ValueError, r"prefix: expected codes in \[0, 12\)"),
    ("prefix", lambda x: changed(x, -1), ValueError, "prefix: expected codes in"),
    ("prefix", lambda x: x.int(), TypeError, "prefix: expected torch.int64, got torch.int32"),
    ("prefix", lambda x: x[0], ValueError, r"prefix: expected \(3, at most 8\), got \(5,\)"),
    ("prefix", lambda x: x[:2], ValueError, "prefix: expected"),
    ("prefix", lambda x: x.repeat(1, 2), ValueError, r"at most 8\), got \(3, 10\)"),
    ("prefix", meta, ValueError, "prefix: expected cpu, got meta"),
    ("base", lambda x: x[:2], ValueError, r"base: expected \(3, 4, 10\), got \(2, 4, 10\)"),
    ("base", lambda x: changed(x, NAN), ValueError, "base: expected finite values"),
    ("base", meta, ValueError, "base: expected cpu, got meta"),
    ("cond", lambda x: x[..., :1], ValueError, r"cond: expected \(3, 2, at least 2\), got"),
    ("cond", lambda x: x[:, :1], ValueError, "cond: expected"),
    ("cond", lambda x: x[:2], ValueError, "cond: expected"),
    ("cond", lambda x: x[..., 0], ValueError, "cond: expected"),
    ("cond", lambda x: changed(x, math.inf), ValueError, "cond: expected finite values"),
    ("cond", meta, ValueError, "cond: expected cpu, got meta"),
    ("hop", lambda x: 0, ValueError, "hop: expected an int, at least 1, got 0"),
    ("hop", lambda x: -4, ValueError, "hop: expected an int, at least 1, got -4"),
    ("classes", lambda x: 13, ValueError, "out: expected 13 rows, got 12"),
    ("classes", lambda x: 1, ValueError, "expected"),
    ("mixtures", lambda x: 4, ValueError, "embed: expected 2 rows, got 12"),
    ("mixtures", lambda x: -4, ValueError, "expected"),
    ("temperature", lambda x: -0.1, ValueError, "temperature: expected finite and >= 0, got -0.1"),
    ("temperature", lambda x: NAN, ValueError, "temperature: expected finite"),
    ("temperature", lambda x: math.inf, ValueError, "temperature: expected finite"),
    ("threads", lambda x: 0, ValueError, "threads: expected an int in"),
    ("threads", lambda x: -1, ValueError, "threads: expected an int in"),
    ("threads", lambda x: 1025, ValueError, r"threads: expected an int in \[1, 1024\], got 1025"),
    ("dtype", lambda x: "float16", ValueError, "dtype expected one of .*, got 'float16'"),
    ("dtype", lambda x: torch.float32, ValueError, "dtype expected one of"),
    ("state", lambda s: s._replace(step=-1), ValueError, "step: expected an int in"),
    ("state", lambda s: s._replace(step=1 << 62), ValueError, "step: expected an int in"),
    ("state", lambda s: s._replace(step=1.5), ValueError, "step: expected an int in"),
    ("state", lambda s: s._replace(rings=s.rings[:, 1:]), ValueError, "rings: expected"),
    ("state", lambda s: s._replace(rings=s.rings[1:]), ValueError, "rings: expected"),
    ("state", double_rings, TypeError, "rings: expected torch.float32, got torch.float64"),
    ("state", lambda s: s._replace(rings=meta(s.rings)), ValueError, "rings: expected cpu"),
    ("state", lambda s: s._replace(rings=s.rings + NAN), ValueError, "rings: expected finite"),
    ("state", lambda s: s._replace(history=s.history + 13), ValueError, "history: expected codes"),
    ("state", lambda s: s._replace(history=s.history - 1), ValueError, "history: expected codes"),
    ("state", lambda s: s._replace(history=s.history[:, 1:]), ValueError, "history: expected"),
    ("state", lambda s: s._replace(history=s.history.int()), TypeError, "history: expected"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD)
def test_inputs_that_do_not_fit(name, change, error, message):
    weights, u, options = cases.wavenet_sample(**GOOD)
    state = initial_state(pack(weights), options["dilations"], 3)
    state = state if name == "state" else None
    arguments = {"uniforms": u, "state": state, "threads": None, "dtype": "float32", **options}
    wavenet_sample(weights, **arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        wavenet_sample(weights, **arguments)


def test_a_float32_state_is_not_for_float64():
    weights, u, options = cases.wavenet_sample()
    state = initial_state(pack(weights), options["dilations"], 3)
    with pytest.raises(TypeError, match=r"rings: expected torch.float64, got torch.float32"):
        wavenet_sample(weights, u, state=state, **options, dtype="float64")


@pytest.mark.parametrize("name", Weights._fields)
def test_weights_that_do_not_fit(name):
    weights, _, _ = cases.wavenet_sample(C=2)
    tensor = getattr(weights, name)
    wrong = [tensor[..., :0], tensor[None], torch.ones(()), torch.ones(2, 3, 5, 7), tensor[..., 1:]]
    wrong += [changed(tensor, NAN), changed(tensor, -math.inf), meta(tensor)]
    for value in wrong:
        if value.shape == tensor[..., 1:].shape and name in ("skip_bias", "out_bias", "cond"):
            continue  # such a network is another one, or the error another's
        with pytest.raises(ValueError, match=r"wavenet_sample: \w+: expected .*, got "):
            pack(weights._replace(**{name: value}))


def test_conditioning_of_a_network_without():
    weights, u, options = cases.wavenet_sample()
    options["cond"] = torch.zeros(3, 2, 20)
    with pytest.raises(ValueError, match=r"cond: expected \(3, 0, at least 20\), got \(3, 2, 20\)"):
        wavenet_sample(weights, u, **options)


def test_a_mixture_needs_its_number_of_classes():
    weights, u, options = cases.wavenet_sample(M=3)
    options["classes"] = None
    with pytest.raises(ValueError, match="classes: expected at least 2, got 0"):
        wavenet_sample(weights, u, **options)


def arguments(dtype="float32", **sizes):
    """What the registered op is called with for a case."""
    weights, u, options = cases.wavenet_sample(**sizes)
    with mock.patch.object(module, "_wavenet_sample", side_effect=InterruptedError) as op:
        with pytest.raises(InterruptedError):
            wavenet_sample(weights, u, **options, dtype=dtype, logits=True)
    return op.call_args.args


@pytest.mark.parametrize(
    ("dtype", "sizes"), [("float32", GOOD), ("float64", {"n": 0}), ("int8", {"M": 3})]
)
def test_the_registration(dtype, sizes):
    torch.library.opcheck(torch.ops.fastgen.wavenet_sample.default, arguments(dtype, **sizes))


def long_call(threads, seconds):
    """A call that would take so long on one core or more, and what it draws at first."""
    weights, u, options = cases.wavenet_sample(L=8, R=64, H=64, S=128, n=2, T=200)
    packed = pack(weights)
    options |= {"threads": threads}
    start = time.perf_counter()
    want = wavenet_sample(packed, u, **options)[0]
    repeats = int(seconds / (time.perf_counter() - start)) + 1
    u = torch.cat([u, torch.zeros(2, 1).expand(2, 200 * repeats)], 1)
    return (lambda: wavenet_sample(packed, u, **options)[0][:, :200]), want


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_call_within_a_second(threads):
    call, want = long_call(threads, 20)
    ends_on_ctrl_c(call)
    call, want = long_call(threads, 0)
    assert torch.equal(call(), want)


def test_other_python_threads_run_during_a_call():
    call, want = long_call(1, 0.5)
    assert torch.equal(lets_others_run(call), want)


def test_calls_at_once():
    weights, u, options = cases.wavenet_sample(**ODD, n=5, T=300)
    want = wavenet_sample(weights, u, **options, logits=True)
    found = {}

    def call(i):
        found[i] = wavenet_sample(weights, u, **options, threads=1 + i % 3, logits=True)

    calls = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in calls:
        thread.start()
    for thread in calls:
        thread.join()
    for i in range(6):
        same(found[i], want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_samples_too():
    weights, u, options = cases.wavenet_sample()
    packed = pack(weights)
    want = wavenet_sample(packed, u, **options, threads=2)[0]
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        codes = wavenet_sample(packed, u, **options, threads=2)[0]
        os._exit(0 if torch.equal(codes, want) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_without_the_extension():
    weights, u, options = cases.wavenet_sample(**GOOD)
    want = wavenet_sample(weights, u, **options, dtype="float64", logits=True)
    sys.modules["fastgen.kernels._op"].warn_reference.cache_clear()
    with mock.patch.object(module, "native", None):
        with pytest.warns(RuntimeWarning, match="wavenet_sample runs on its slow reference"):
            got = wavenet_sample(weights, u, **options, dtype="float64", logits=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wavenet_sample(weights, u, **options)
    assert torch.equal(got[0], want[0])
    close(got[1].rings, want[1].rings, torch.float64, "rings")
    close(got[2], want[2], torch.float64, "logits")
