"""The Triton kernels in Triton's interpreter, and on a GPU where there is one.

What is checked of every kernel is in test_gpu.py.
"""

import functools
import importlib
import subprocess
import sys

import cases
import numpy as np
import pytest
import torch
from check import close, compare, evaluate
from interpret import DEVICE, INTERPRETED, Checks, interpret
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen import kernels
from fastgen.kernels import _op
from fastgen.kernels.pixelcnn_sample import only_live

triton = pytest.importorskip("triton")
tl = triton.language
at = importlib.import_module("fastgen.kernels._triton").at
triton_coupling = importlib.import_module("fastgen.kernels._affine_coupling_triton")
triton_gated = importlib.import_module("fastgen.kernels._pixelcnn_layer_triton")
triton_layer = importlib.import_module("fastgen.kernels._wavenet_layer_triton")
triton_mixture = importlib.import_module("fastgen.kernels._logistic_mixture_triton")
triton_sampler = importlib.import_module("fastgen.kernels._wavenet_sample_triton")

check = CHECKS = Checks()  # each for the interpreter, and for a GPU


def network(L=3, R=5, H=7, S=9, A=11, K=2, C=0, mixtures=0):
    """Weights of a WaveNet, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    O = 3 * mixtures or A
    shapes = [(2 if mixtures else A, R), (L, 2 * H, R, K), (L, 2 * H), (L - 1, R, H), (L - 1, R)]
    shapes += [(L, S, H), (S,), (S, S), (S,), (O, S), (O,), *([(L, 2 * H, C)] if C else [])]
    drawn = (torch.randn(shape, generator=generator) for shape in shapes)
    return kernels.Weights(*(v * 1.5 * v.shape[1:].numel() ** -0.5 for v in drawn))


def sample(n=2, T=4, P=0, C=0, hop=1, base=False, temperature=1.0, dtype="float32", **sizes):
    """What `wavenet_sample` and its reference draw in the midst of random streams.

    returns: their results, the uniform numbers, and a function that calls `wavenet_sample` anew
    """
    w, generator = network(C=C, **sizes), torch.Generator().manual_seed(1)
    (L, G, _, K), mixtures = w.conv.shape, sizes.get("mixtures", 0)
    A, dilations = sizes.get("A", 11), [2**l for l in range(L)]
    state = kernels.initial_state(w, dilations, n)
    history = torch.randint(A, (n, K), generator=generator)
    state = kernels.State(torch.randn(state.rings.shape, generator=generator), history, 21)
    uniforms = kernels.uniforms(2, n, T, draws=2 if mixtures else 1)
    prefix = torch.randint(A, (n, P), generator=generator)
    base = torch.randn((n, L, G), generator=generator) if base else w.conv_bias[None]
    cond = torch.randn((n, C, T + 2 if C else 0), generator=generator)
    settings = (dilations, hop, A, mixtures, temperature, True)
    rounded = w
    if dtype == "bfloat16":
        matrices = ("res", "skip", "hidden", "out")
        rounded = w._replace(**{name: getattr(w, name).bfloat16().float() for name in matrices})
        rounded = rounded._replace(conv=torch.cat([w.conv[:1], w.conv[1:].bfloat16().float()]))
    want = kernels.wavenet_sample_ref(rounded, uniforms, *state, prefix, base, cond, *settings)

    def draw(streams=slice(None), start=0, stop=T, state=state):
        skipped = state.step // hop - 21 // hop
        codes, state, logits = kernels.wavenet_sample(
            *(moved(w), uniforms[streams, start:stop]),
            **{"dilations": dilations, "hop": hop, "classes": A, "mixtures": mixtures},
            **{"temperature": temperature, "dtype": dtype, "logits": True},
            state=state._replace(rings=state.rings[streams], history=state.history[streams]),
            prefix=prefix[streams, start:stop],
            base=base[streams] if len(base) == n else base,
            cond=cond[streams, :, skipped:] if C else None,
        )
        return codes.cpu(), moved(state, "cpu"), logits.cpu()

    return draw(), want, uniforms, draw


def moved(x, device=DEVICE):
    return cases.moved(x, device)


def layer(*inputs):
    """`wavenet_layer` on `DEVICE`, of and to tensors on the CPU."""
    return moved(kernels.wavenet_layer(*moved(inputs)), "cpu")


def hold(got, want, uniforms, tolerance=1e-5):
    """Hold logits, codes and state to the reference's; a code at a step of the CDF may differ."""
    codes, state, logits = got
    codes_want, rings, history, logits_want, _ = want
    scale = logits_want.abs().max()
    for i in range(len(codes)):
        other = (codes[i] != codes_want[i]).nonzero().flatten()
        same = int(other[0]) if len(other) else codes.shape[1]
        error = (logits[i, : same + 1] - logits_want[i, : same + 1]).abs().max()
        assert error <= tolerance * scale, f"logits are off by {error:.1e} of {scale:.1e}"
        if len(other):
            cdf = torch.softmax(logits_want[i, same], 0).cumsum(0)
            assert (cdf - uniforms[i, same]).abs().min() < 1e-5, f"code {same} of stream {i}"
        else:
            assert (state.rings[i] - rings[i]).abs().max() <= tolerance * rings.abs().max()
            assert torch.equal(state.history[i], history[i])


@check
def samples_of_many_streams():
    got, want, uniforms, draw = sample(n=17, T=2, L=2)
    hold(got, want, uniforms)
    alone, _, logits = draw(streams=slice(16, 17))
    assert torch.equal(alone, got[0][16:])
    assert torch.equal(logits, got[2][16:]), "a stream's bits depend on its neighbours"


@check
def samples_with_everything():
    options = {"K": 3, "C": 3, "hop": 4, "base": True, "P": 2}
    (codes, state, logits), want, uniforms, draw = sample(T=5, **options)
    hold((codes, state, logits), want, uniforms)
    first, between, logits_first = draw(stop=3)
    second, end, logits_second = draw(start=3, state=between)
    pairs = (
        (codes, torch.cat([first, second], 1)),
        (logits, torch.cat([logits_first, logits_second], 1)),
        (state.rings, end.rings),
        (state.history, end.history),
    )
    assert all(torch.equal(a, b) for a, b in pairs), "the bits depend on how T is cut"
    assert state.step == end.step == 26


@check
def samples_of_a_mixture():
    for temperature in (0.0, 0.8):
        got, want, *_ = sample(T=2, L=2, mixtures=3, A=65536, temperature=temperature)
        assert (got[0] - want[0]).abs().max() <= 1
        assert (got[2] - want[3]).abs().max() <= 1e-4


@check
def samples_in_bfloat16():
    got, want, uniforms, _ = sample(P=4, K=3, R=24, H=20, S=30, dtype="bfloat16")
    hold(got, want, uniforms, tolerance=0.01)
    error = (got[2] - want[3]).abs().max() / want[3].abs().max()
    assert error > 1e-4, "bfloat16 was not rounded to"


@check
def steps_of_the_cdf():
    classes, far = 6, -1e30
    logits = torch.tensor([0.0, 0.0, far, 0.0, 0.0, far])  # p = 1/4, 1/4, 0, 1/4, 1/4, 0
    below_one = 1 - 2.0**-53
    u = torch.tensor([0, 0.1, 0.25, 0.4, 0.5, 0.7, 0.75, 0.9, below_one], dtype=torch.float64)
    want = torch.tensor([0, 0, 1, 1, 3, 3, 4, 4, 4])
    assert torch.equal(kernels.draw(logits.expand(len(u), -1), u, 1.0, classes), want)
    w = network(L=1, A=classes)
    w = w._replace(out=torch.zeros_like(w.out), out_bias=logits)
    for temperature in (1.0, 1e-38):
        codes, _ = kernels.wavenet_sample(
            moved(w), u[:, None], dilations=[1], temperature=temperature
        )
        assert torch.equal(codes[:, 0].cpu(), want)


@check
def logits_that_are_not_finite():
    w = network(L=1)
    w = w._replace(out=torch.full_like(w.out, 3e38), hidden_bias=torch.full_like(w.hidden_bias, 9))
    with pytest.raises(ValueError, match="logits of stream 0 at step 0 are not finite"):
        kernels.wavenet_sample(moved(w), torch.zeros(2, 2), dilations=[1])


@check
def arguments_of_no_use():
    with pytest.raises(ValueError, match="dtype on a GPU: expected"):
        kernels.pack(moved(network()), "int8")
    w = moved(network())
    codes, _ = kernels.wavenet_sample(w, torch.zeros(0, 3), dilations=[1, 2, 4])
    assert codes.shape == (0, 3)
    codes, after = kernels.wavenet_sample(w, torch.zeros(2, 0), dilations=[1, 2, 4])
    assert codes.shape == (2, 0)
    assert torch.equal(after.rings.cpu(), torch.zeros(2, 30))


def pack_images(weights):
    """Weights of a PixelCNN on `DEVICE`, packed."""
    head = {k: getattr(weights, k).to(DEVICE) for k in ("hidden", "hidden_bias", "out", "out_bias")}
    return kernels.pack_pixels(weights._replace(layers=[*map(moved, weights.layers)], **head))


def images(**sizes):
    """Hold what `pixelcnn_sample` draws to float64's logits along it.

    returns: packed weights, uniforms, options, levels and logits
    """
    weights, u, options = cases.pixelcnn_sample(**sizes)
    there = {k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in options.items()}
    there["logits"], packed = True, pack_images(weights)
    codes, logits = (v.cpu() for v in kernels.pixelcnn_sample(packed, u.to(DEVICE), **there))
    w = only_live(weights, torch.float64)
    cond = options["cond"]
    cond = torch.zeros(1, len(w.layers), 4 * w.hidden.shape[1]) if cond is None else cond
    temperature = torch.as_tensor(options["temperature"]).double().expand(u.shape)
    _, want, _ = kernels.pixelcnn_sample_ref(w, u, codes, cond.double(), temperature, True)
    want = want.movedim(-1, 1)
    assert (logits - want).abs().max() <= 1e-5 * want.abs().max()
    z = want.movedim(1, -1).flatten(0, 3)
    low, high = (
        kernels.draw(z, (u.flatten() + e).clamp(0, 1 - 2**-53), temperature.flatten(), z.shape[1])
        for e in (-1e-5, 1e-5)
    )
    good = ((low <= codes.flatten()) & (codes.flatten() <= high)).view(codes.shape)
    if options["given"] is not None:
        assert torch.equal(codes[options["given"] >= 0], options["given"][options["given"] >= 0])
        good |= options["given"] >= 0
    assert good.all()
    return packed, u.to(DEVICE), there, codes, logits


@check
def images_of_one_color():
    images(H=3, W=3, L=2)
    images(H=2, W=2, L=1, temperature=0.0)


@check
def images_of_three_colors():
    sizes = {"C": 3, "H": 2, "W": 2, "L": 2, "P": 9, "S": 6, "cond": True, "given": 0.4}
    images(**sizes, temperature=None)


@check
def images_of_more_than_a_tile():
    images(P=66, S=70, A=130, H=2, W=6, L=2, first=3)


@check
def many_images():
    packed, u, options, codes, logits = images(n=17, H=2, W=2, L=2, k=1, cond=True)
    options["cond"] = options["cond"][16:]
    alone, own = kernels.pixelcnn_sample(packed, u[16:], **options)
    assert torch.equal(alone.cpu(), codes[16:])
    assert torch.equal(own.cpu(), logits[16:]), "an image's bits depend on its neighbours"
    assert kernels.pixelcnn_sample(packed, u[:0]).shape == (0, 1, 2, 2)
    assert kernels.pixelcnn_sample(packed, u[:, :, :0]).shape == (17, 1, 0, 2)


@check
def images_of_no_use():
    weights, u, _ = cases.pixelcnn_sample(L=1, H=2, W=2)
    bad = weights._replace(out=weights.out * 1e38, hidden_bias=weights.hidden_bias + 99)
    with pytest.raises(ValueError, match="logits of image 0 at row 0, column 0, color 0 are not"):
        kernels.pixelcnn_sample(pack_images(bad), u)
    with pytest.raises(ValueError, match="dtype on a GPU: expected float32, got float64"):
        kernels.pack_pixels(pack_images(weights).weights, "float64")


class Races:
    """Within, finds what is both read and written, or written twice, between two barriers."""

    def __init__(self, barriers=True):
        from triton.runtime.interpreter import InterpreterBuilder

        self.builder, self.barriers, self.found, self.intervals = InterpreterBuilder, barriers, 0, 0
        self.names = ("create_masked_load", "create_masked_store", "create_barrier")

    def __enter__(self):
        load, store, barrier = self.own = [getattr(self.builder, name) for name in self.names]
        self.read, self.written = [], []

        def watched_load(builder, pointers, mask, *args):
            self.read.append(pointers.data[mask.data.astype(bool)])
            return load(builder, pointers, mask, *args)

        def watched_store(builder, pointers, value, mask, *args):
            self.written.append(pointers.data[mask.data.astype(bool)])
            return store(builder, pointers, value, mask, *args)

        def watched_barrier(builder):
            if self.barriers:
                self.end()
            return barrier(builder)

        for name, fn in zip(
            self.names, (watched_load, watched_store, watched_barrier), strict=True
        ):
            setattr(self.builder, name, fn)
        return self

    def end(self):
        read, written = (np.concatenate([[], *v]) for v in (self.read, self.written))
        self.found += len(written) - len(np.unique(written)) + len(np.intersect1d(read, written))
        self.intervals += 1
        self.read, self.written = [], []

    def __exit__(self, *_):
        self.end()
        for name, fn in zip(self.names, self.own, strict=True):
            setattr(self.builder, name, fn)


@check
def races_between_threads():
    *_, draw = sample(n=2, T=3, K=3, C=2, hop=2, base=True)
    with Races() as races:
        draw()
    assert races.intervals == 3 * (2 * 3 + 5) + 1
    assert races.found == 0
    with Races(barriers=False) as races:
        draw(stop=1)
    assert races.found > 0, "races are not found"
    weights, u, _ = cases.pixelcnn_sample(n=2, H=2, W=5, L=2, C=2, S=10, first=3)
    with Races() as races:
        kernels.pixelcnn_sample(weights, u)
    assert races.intervals == 2 * (2 * 2 + 5 * 2 * (2 * 2 + 3)) + 1
    assert races.found == 0


@triton.jit
def tell_addresses(places, row, width, column):
    tl.store(places, at(row, width, column))
    tl.store(places + 1, at(at(row, row, row), width, column))


@check
def addresses_beyond_31_bits():
    places = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    for row, width, column in ((2**16, 2**15, 5), (2**20 + 1, 2**11, 2**30), (3, 2**31 - 1, 0)):
        tell_addresses[(1,)](places, row, width, column)
        want = [row * width + column, (row * row + row) * width + column]
        assert places.tolist() == want
        assert max(want) >= 2**31


@triton.jit
def tell_share(places, p, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    b, row, column = triton_layer.share(p, rows, columns, ROWS, COLUMNS)
    tl.store(places, b)
    tl.store(places + 1, row)
    tl.store(places + 2, column)


@check
def shares_of_programs_up_to_31_bits():
    places = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    most = 2**31 - 1
    sizes = ((1, most - 63), (2**30, 1), (33, 2**26 - 1), (most - 31, 1), (1, 1))
    for rows, columns in sizes:
        down, across = -(-rows // 32), -(-columns // 64)
        last = most // (down * across) * down * across - 1
        for p in {0, 1, down, down * across - 1, last // 2, last}:
            tell_share[(1,)](places, p, rows, columns, ROWS=32, COLUMNS=64)
            b, rest = divmod(p, down * across)
            assert places.tolist() == [b, rest % down * 32, rest // down * 64]


@triton.jit
def tell_slot(places, step, tap, dilation, K):
    tl.store(places, triton_sampler.slot(step, tap, dilation, K))


@check
def slots_of_rings_up_to_31_bits():
    places = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for K, dilation, T in ((2, 2**29, 2**30 - 8), (3, 2**28, 2**29), (2, 1, 2**31 - 8), (5, 64, 9)):
        start = (K - 1) * dilation - 1
        triton_sampler.check_sizes(1, T, K, [dilation])
        for t in (0, 1, T // 2, T - 1):
            for tap in range(K):
                tell_slot[(1,)](places, start + t, tap, dilation, K)
                # of the step that lies (K - 1 - tap) dilation before
                want = (start + t - (K - 1 - tap) * dilation) % ((K - 1) * dilation)
                assert places.item() == want


@check
def layers_with_gaps():
    inputs = cases.wavenet_layer(T=16, F=2, hop=9)
    compare(layer, kernels.wavenet_layer_ref, inputs, "strided", strided=True)


@check
def gradients_of_more_than_a_span():
    inputs = cases.wavenet_layer(T=75, dilation=4)
    for spans in (512, 3):
        with pytest.MonkeyPatch.context() as patch:
            if INTERPRETED:  # else a constant of binaries
                patch.setattr(triton_layer, "CHUNK", tl.constexpr(16))
                patch.setattr(triton_layer, "SPANS", spans)
            compare(layer, kernels.wavenet_layer_ref, inputs, f"{spans} spans")
    if DEVICE == "cuda":
        inputs = cases.wavenet_layer(T=600_001, dilation=512)
        compare(layer, kernels.wavenet_layer_ref, inputs, "many spans")


@check
def gradients_alone():
    inputs = cases.wavenet_layer(T=9, F=2, hop=4)
    every = evaluate(layer, inputs)
    for wanted in (0, 2, 8):
        alone = evaluate(layer, inputs, wanted=[wanted])
        assert torch.equal(alone[-1], every[2 + wanted])
    with torch.no_grad():
        out, skip_out = layer(*inputs)
    assert torch.equal(out, every[0])
    assert torch.equal(skip_out, every[1])


@check
def tensors_off_their_alignment():
    inputs = list(cases.wavenet_layer(T=16, dilation=4))
    want = layer(*inputs)
    inputs[0] = torch.cat([torch.zeros(1), inputs[0].flatten()]).to(DEVICE)[1:].view(2, 5, 16)
    assert inputs[0].data_ptr() % 16
    for a, b in zip(layer(*inputs), want, strict=True):
        close(a, b.double(), torch.float32, "off alignment")


def conv(*inputs, **options):
    """`masked_conv2d` on `DEVICE`, of and to tensors on the CPU."""
    inputs = [None if v is None else v.to(DEVICE) for v in inputs]
    return kernels.masked_conv2d(*inputs, **options).cpu()


def hold_conv(name, **sizes):
    *inputs, options = cases.masked_conv2d(**sizes)
    ref = functools.partial(kernels.masked_conv2d_ref, **options)
    compare(functools.partial(conv, **options), ref, inputs, name)


def mixture(*inputs, **options):
    """`logistic_mixture` on `DEVICE`, of and to tensors on the CPU."""
    return moved(kernels.logistic_mixture(*moved(inputs), **options), "cpu")


@check
def mixtures_in_their_tails():
    means, scales = torch.tensor([-1e4, -1.0, 0.1, 1.0, 1e4]), torch.tensor([-1e3, -9, 9, 50, 1e3])
    mean, scale = (v.flatten() for v in torch.meshgrid(means, scales, indexing="ij"))
    ones = torch.ones_like(mean)
    params = torch.stack([0 * ones, -1e4 * ones, mean, 0.5 * ones, scale, 0 * ones])
    params = params[None].repeat(3, 1, 1)
    codes = torch.tensor([0, 128, 255])[:, None, None].expand(3, 1, len(mean))
    got, grad = evaluate(lambda p: mixture(p, codes, 256), [params])
    want, _ = evaluate(lambda p: kernels.logistic_mixture_ref(p, codes, 256), [params.double()])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert grad.isfinite().all()
    assert mixture(params * torch.nan, codes, 256).isnan().all()
    params[:, :2] += 2.0**20  # what all logits share is nothing
    assert torch.equal(mixture(params, codes, 256), got)


@check
def mixtures_launch_both_kernels():
    launched, launch = set(), triton_mixture.launch
    params, codes, classes, options = cases.logistic_mixture(C=3, size=(5,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_mixture, "launch", lambda k, *a: launched.add(k) or launch(k, *a))
        evaluate(lambda p: mixture(p, codes, classes, **options), [params])
    assert launched == {triton_mixture.forward_kernel, triton_mixture.backward_kernel}


@check
def mixtures_under_autocast():
    params, codes, classes, _ = cases.logistic_mixture(C=3, size=(5,), dtype=torch.bfloat16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = mixture(params, codes, classes)
    assert got.dtype == torch.float32
    want = kernels.logistic_mixture_ref(params.double(), codes, classes)
    close(got, want, torch.float32, "under autocast")


@check
def masked_convolutions():
    module, launched = importlib.import_module("fastgen.kernels._masked_conv2d_triton"), set()
    launch = module.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", lambda k, *a: launched.add(k) or launch(k, *a))
        for name in ("ones", "first layer", "larger than the image", "dilated", "channels last"):
            hold_conv(name, **cases.MASKED_CONV2D[name])
        for name in ("colors and groups", "vertical, first layer", "no bias", "a column"):
            hold_conv(name, **cases.MASKED_CONV2D[name])
    assert launched == {module.conv_kernel, module.dweight_kernel}
    hold_conv("tiles", B=1, C=5, O=70, H=9, W=11, mask="A")


@check
def masked_convolutions_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        for last in (False, True):
            hold_conv(str(dtype), C=9, O=17, last=last, dtype=dtype)


@check
def masked_weights_of_more_than_a_span():
    module = importlib.import_module("fastgen.kernels._masked_conv2d_triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPAN", 40)
        hold_conv("spans", B=3, H=7, W=9, k=(3, 5))


@check
def masked_convolutions_twice_differentiated():
    x, weight, bias, options = cases.masked_conv2d(last=True)
    for fn in (conv, kernels.masked_conv2d_ref):
        leaves = [v.detach().requires_grad_() for v in (x, weight, bias)]
        (dx,) = torch.autograd.grad(
            fn(*leaves, **options).square().sum(), leaves[0], create_graph=True
        )
        grads = torch.autograd.grad(dx.square().sum(), leaves[:2])
        if fn is conv:
            got = grads
    for a, b in zip(got, grads, strict=True):
        close(a, b.double(), torch.float32, "gradients of gradients")


def gated(*inputs, **options):
    """`pixelcnn_layer` on `DEVICE`, of and to tensors on the CPU."""
    return moved(kernels.pixelcnn_layer(*moved(inputs), **options), "cpu")


@check
def gated_layers_of_more_than_a_tile():
    for last in (False, True):
        sizes = {"B": 1, "C": 5, "P": 34, "O": 33, "H": 9, "W": 11, "residual": False}
        *inputs, options = cases.pixelcnn_layer(**sizes, last=last, cond=True)
        op, ref = (functools.partial(f, **options) for f in (gated, kernels.pixelcnn_layer_ref))
        compare(op, ref, inputs, "more than a tile")
        compare(op, ref, inputs, "strided", strided=True)


@check
def gated_layers_of_which_a_part_is_wanted():
    *inputs, options = cases.pixelcnn_layer(cond=True)
    every = evaluate(functools.partial(gated, **options), inputs)
    for wanted in (0, 1, 2, 9):
        alone = evaluate(functools.partial(gated, **options), inputs, wanted=[wanted])
        assert torch.equal(alone[-1], every[2 + wanted])
    for i in (0, 1):
        one, ref = (
            lambda *v, f=f, i=i: f(*v, **options)[i] for f in (gated, kernels.pixelcnn_layer_ref)
        )
        seen = [j for j in range(11) if i or j in (0, 2, 3, 9)]
        got, want = (evaluate(f, inputs, wanted=seen) for f in (one, ref))
        for a, b in zip(got, want, strict=True):
            close(a, b.double(), torch.float32, f"output {i}")
    with torch.no_grad():
        for a, b in zip(gated(*inputs, **options), every, strict=False):
            assert torch.equal(a, b)


@check
def gated_layers_twice_differentiated():
    *inputs, options = cases.pixelcnn_layer(last=True)
    for fn in (gated, kernels.pixelcnn_layer_ref):
        leaves = [v if v is None else v.detach().requires_grad_() for v in inputs]
        loss = sum(y.square().sum() for y in fn(*leaves, **options))
        (dv,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
        grads = torch.autograd.grad(dv.square().sum(), leaves[:3])
        if fn is gated:
            got = grads
    for a, b in zip(got, grads, strict=True):
        close(a, b.double(), torch.float32, "gradients of gradients")


def discriminate(*inputs, **options):
    """`minibatch_discrimination` on `DEVICE`, of and to tensors on the CPU."""
    return kernels.minibatch_discrimination(*moved(inputs), **options).cpu()


@check
def discrimination_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        m, y, options = cases.minibatch_discrimination(N=6, M=4, B=2, groups=2, dtype=dtype)
        ref = functools.partial(kernels.minibatch_discrimination_ref, **options)
        compare(functools.partial(discriminate, **options), ref, [m, y], str(dtype))


@check
def discrimination_twice_differentiated():
    for sizes in ({}, {"N": 4, "M": 6, "groups": 2}):
        *inputs, options = cases.minibatch_discrimination(**{"B": 2, "C": 3, **sizes})
        found = []
        for fn in (discriminate, kernels.minibatch_discrimination_ref):
            leaves = [v.double().float().requires_grad_() for v in inputs if v is not None]
            o = fn(*leaves, **options)
            grads = torch.autograd.grad(o.square().sum(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
        for a, b in zip(*found, strict=True):
            close(a, b.double(), torch.float32, "gradients of gradients")


@pytest.mark.parametrize(("sizes", "what"), [((2**31, 1, 1), "rows"), ((4, 2**31, 3), "programs")])
def test_batches_that_32_bits_cannot_count(sizes, what):
    file = importlib.import_module("fastgen.kernels._minibatch_discrimination_triton")
    m = torch.empty(sizes, device="meta")
    with pytest.raises(ValueError, match=f"expected under 2\\^31 {what} on a GPU, got"):
        file.check_sizes(m, None, 1)
    file.check_sizes(torch.empty(2**20, 2**17, 5, device="meta"), None, 1)


@pytest.fixture(scope="module")
def interpreted():
    return interpret(__file__)


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(interpreted, name):
    assert not interpreted[name], interpreted[name]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in CHECKS if name != "races_between_threads"])
def test_on_a_gpu(name):
    CHECKS[name]()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("K", [2, 3])
def test_long_samples_on_a_gpu(K):
    sizes = {"L": 10, "R": 64, "H": 64, "S": 256, "A": 256, "K": K, "C": 80, "hop": 50}
    hold(*sample(n=40, T=300, **sizes)[:3], tolerance=1e-4)


def test_a_launch_on_the_cpu_is_interpreted_or_none(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not _op.on_triton(x, "some_op")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _op.on_triton(x, "some_op")
    assert not _op.on_triton(x.to("meta"), "some_op")


def test_a_gpu_without_triton_is_told(monkeypatch):
    with FakeTensorMode():
        x = torch.empty(2, device="cuda")
    assert _op.on_triton(x, "some_op")
    monkeypatch.setattr(_op.importlib.util, "find_spec", lambda name: None)
    _op.warn_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert not _op.on_triton(x, "some_op")


def test_shapes_of_a_gpu():
    inputs = cases.wavenet_layer(T=13, F=2, hop=8)
    with FakeTensorMode():
        inputs = [torch.empty(v.shape, device="cuda") if torch.is_tensor(v) else v for v in inputs]
        out, skip_out, gates = torch.ops.fastgen.wavenet_layer(*inputs, True)
    assert (out.shape, skip_out.shape, gates.shape) == ((2, 5, 13), (2, 7, 13), (2, 6, 13))


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"T": 2**31 - 2000}, None),
        ({"T": 2**31 - 1000}, "samples"),
        ({"T": 2**30, "K": 2, "dilation": 2**40}, "samples"),
        ({"B": 2**31}, "rows"),
        ({"B": 2**29, "R": 64, "S": 64, "H": 64, "T": 64}, "programs"),
        ({"F": 3, "hop": 2**31}, "frames"),
        ({"B": 16, "R": 64, "S": 256, "H": 64, "T": 2**26, "K": 2, "dilation": 512}, None),
    ],
)
def test_layers_that_32_bits_cannot_count(sizes, what):
    sizes = {**dict.fromkeys("BRSHTK", 1), "F": 0, "hop": 1, "dilation": 1, **sizes}
    B, R, S, H, T, K, F, hop, dilation = sizes.values()
    shapes = ((B, R, T), (B, S, T), (2 * H, R, K), (2 * H,), (R, H), (R,), (S, H), (S,))
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    inputs.append(torch.empty(B, 2 * H, F, device="meta") if F else None)
    if what:
        with pytest.raises(ValueError, match=f"expected under 2\\^31 {what} on a GPU, got"):
            triton_layer.check_sizes(inputs, hop, dilation)
    else:
        triton_layer.check_sizes(inputs, hop, dilation)


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ((1, 2, 2**29 - 2**12 - 1), None),
        ((1, 2, 2**29), "numbers in a sample"),
        ((2**31 - 2**12, 2), "samples"),
        ((2**30, 2**12), "programs"),
    ],
)
def test_couplings_that_32_bits_cannot_count(shape, what):
    x = torch.empty(shape, device="meta")
    if what:
        with pytest.raises(ValueError, match=f"expected under 2\\^31 {what} on a GPU, got"):
            triton_coupling.check_sizes(x, x)
    else:
        triton_coupling.check_sizes(x, x)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"T": 2**31 - 8}, None),
        ({"T": 2**31 - 3}, "steps"),
        ({"dilations": [1, 2**30]}, "steps"),
        ({"N": 2**31}, "streams"),
        ({"hop": 2**30}, "steps and frames"),
        ({"L": 2**10, "H": 2**15}, "numbers of a program"),
        ({"K": 2, "R": 2**23}, "weights of a product"),
        ({"L": 30, "H": 128, "C": 2**19}, "weights of features"),
        ({"L": 30, "R": 512, "H": 512, "SB": 8, "OB": 8, "C": 256, "hop": 300}, None),
    ],
)
def test_samplers_that_32_bits_cannot_count(sizes, what):
    sizes = {"N": 16, "T": 1, "K": 2, "dilations": [1], **sizes}
    if what:
        with pytest.raises(ValueError, match=f"expected under 2\\^31 {what} on a GPU, got"):
            triton_sampler.check_sizes(**sizes)
    else:
        triton_sampler.check_sizes(**sizes)


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ((2, 30, 2**31 - 200), None),
        ((2, 30, 2**31 - 64), "places"),
        ((1, 2**31, 1), "rows"),
        ((2**31, 3, 1), "programs"),
        ((2**23, 30, 2**14), None),
        ((2**25, 30, 2**14), "programs"),
    ],
)
def test_mixtures_that_32_bits_cannot_count(shape, what):
    params = torch.empty(shape, device="meta")
    if what:
        with pytest.raises(ValueError, match=f"expected under 2\\^31 {what} on a GPU, got"):
            triton_mixture.check_sizes(params)
    else:
        triton_mixture.check_sizes(params)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"B": 2**28}, None),
        ({"H": 2**20, "W": 2**11}, "pixels"),
        ({"C": 2**31}, "terms"),
        ({"B": 2**31}, "programs"),
        ({"B": 256, "C": 512, "P": 512, "H": 512, "W": 512}, None),
    ],
)
def test_gated_layers_that_32_bits_cannot_count(sizes, what):
    B, C, P, H, W = {**dict.fromkeys("BCPHW", 1), **sizes}.values()
    shapes = ((B, 1, H, W), (B, C, H, W), (2 * P, 1, 1, 1), (C, P))
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    if what:
        with pytest.raises(ValueError, match=f"expected under 2\\^31 {what} on a GPU, got"):
            triton_gated.check_sizes(*inputs)
    else:
        triton_gated.check_sizes(*inputs)


def test_nothing_imports_triton():
    script = "import sys, fastgen, fastgen.tractable.wavenet; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=100)


if __name__ == "__main__":
    CHECKS.run()
