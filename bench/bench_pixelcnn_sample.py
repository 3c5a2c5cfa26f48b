"""pixelcnn_sample against its floor and its rivals: `pytest bench/bench_pixelcnn_sample.py`.

REF: 28 x 28 pixels of 256 levels, 8 gated layers of 64 channels, kernels 7 and then 3. A pixel uses
each weight of the horizontal stack and the head once, 0.73 MB in float32, and 0.55 million
multiply-adds of the vertical stack, whose weights a whole row shares. The floor of one image is the
time to read the former (torch.sum over as many bytes) and to do the latter at the peak that
torch.mm reaches; that of 16 images on one thread is all of the arithmetic at that peak.

Rivals: a careful loop in torch on caches, the vertical stack a row at a time, the horizontal one a
pixel at a time, in inference_mode; and naively a forward pass for each pixel. That equal uniforms
give equal images is checked before all timing. `test_cost` is the cost by size and depth.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from measure import DEVICE, compare, multiplier, reader

import fastgen
from fastgen import kernels

SIDE = 28


class TorchLoop:
    """The sampling loop that a careful user would write in torch, of one color."""

    def __init__(self, model):
        w = kernels.pack_pixels(model.weights()).weights
        self.w, self.k = w, [y.v_weight.shape[3] for y in w.layers]
        # the taps side by side, so that a convolution of a row or a pixel is one product
        self.v = [y.v_weight.permute(0, 2, 3, 1).flatten(1).contiguous() for y in w.layers]
        self.h = [y.h_weight[:, :, 0].transpose(1, 2).flatten(1).contiguous() for y in w.layers]

    def row(self, maps, i, W):
        """Row i of the vertical stack: what each layer's gates get of it, (n, W, 2P)."""
        bases = []
        for l, (y, k) in enumerate(zip(self.w.layers, self.k, strict=True)):
            rows = maps[l][:, i : i + k // 2 + 1]  # (n, k // 2 + 1, W + k - 1, inputs)
            taps = rows.unfold(2, k, 1).permute(0, 2, 1, 4, 3).flatten(2)
            a = F.linear(taps, self.v[l], y.v_bias)
            bases.append(F.linear(a, y.link_weight, y.h_bias))
            if l + 1 < len(maps):
                f, g = a.chunk(2, 2)
                r = self.k[l + 1] // 2
                torch.mul(torch.tanh(f), torch.sigmoid(g), out=maps[l + 1][:, r + i, r : r + W])
        return bases

    @torch.inference_mode()
    def sample(self, uniforms):
        """uniforms: (n, 1, H, W)    returns: (n, 1, H, W)"""
        w, (n, _, H, W) = self.w, uniforms.shape
        A, P = w.out.shape[0], w.hidden.shape[1]
        inputs = [1, *[P] * (len(w.layers) - 1)]
        both = [*zip(inputs, self.k, strict=True)]
        maps = [torch.zeros(n, k // 2 + H, W + k - 1, c) for c, k in both]
        lines = [torch.zeros(n, k // 2 + W, c) for c, k in both]
        codes, last = torch.empty(n, 1, H, W, dtype=torch.int64), len(w.layers) - 1
        for i in range(H):
            bases = self.row(maps, i, W)
            for j in range(W):
                for l, y in enumerate(w.layers):
                    k = self.k[l] // 2
                    taps = lines[l][:, j : j + k + 1].flatten(1)
                    a = torch.addmm(bases[l][:, j], taps, self.h[l].T)
                    f, g = a.chunk(2, 1)
                    h = F.linear(torch.tanh(f) * torch.sigmoid(g), y.res_weight, y.res_bias)
                    if l > 0:
                        h += lines[l][:, j + k]
                    if l < last:
                        lines[l + 1][:, self.k[l + 1] // 2 + j] = h
                s = torch.relu_(F.linear(torch.relu_(h), w.hidden, w.hidden_bias))
                cdf = torch.softmax(F.linear(s, w.out, w.out_bias), 1).cumsum(1)
                code = (cdf <= uniforms[:, 0, i, j, None]).sum(1).clamp(max=A - 1)
                codes[:, 0, i, j] = code
                x = code * (2 / (A - 1)) - 1
                maps[0][:, self.k[0] // 2 + i, self.k[0] // 2 + j, 0] = x
                lines[0][:, self.k[0] // 2 + j, 0] = x
        return codes


def build(layers=8, channels=64):
    torch.manual_seed(0)
    model = fastgen.GatedPixelCNN(layers, channels)
    with torch.no_grad():
        for layer in model.layers:
            layer.v.weight *= 2
            layer.h.weight *= 2
        model.out.weight *= 16  # away from uniform, so that equal levels mean something
    return model.requires_grad_(False)


def check_codes(weights, uniforms, codes):
    """Levels are float64's along them, but where u lies within 1e-5 of a step of its CDF."""
    _, logits = kernels.pixelcnn_sample(
        weights, uniforms, given=codes, dtype="float64", logits=True
    )
    steps = torch.softmax(logits, 1).cumsum(1) - uniforms[:, None]
    expected = (steps <= 0).sum(1).clamp(max=logits.shape[1] - 1)
    assert ((codes == expected) | (steps.abs().amin(1) < 1e-5)).all()


def weights_of(model):
    """How many weights a pixel uses once, and how many of the vertical stack."""
    w = model.weights()
    look_left = sum(y.h_weight.numel() + y.res_weight.numel() for y in w.layers)
    look_up = sum(y.v_weight.numel() + y.link_weight.numel() for y in w.layers)
    return look_left + w.hidden.numel() + w.out.numel(), look_up


def workload(dtype, device, small):
    """A call that goes through given images, for the tuner."""
    weights = build(*((2, 8) if small else ())).to(device).weights()
    n, side = (16, 2) if small else (132 * 16, SIDE)
    packed, u = kernels.pack_pixels(weights, dtype), kernels.uniforms(1, n, side * side)
    u = u.view(n, 1, side, side).to(device)
    # levels that are drawn would part where two sums round otherwise
    options = {"given": (256 * u).long(), "logits": True}
    return lambda: [kernels.pixelcnn_sample(packed, u, **options)[1]]


@pytest.mark.parametrize("n", [1, 16])
def test_pixelcnn_sample(benchmark, report, n):
    torch.set_num_threads(1)
    model = build()
    packed = kernels.pack_pixels(model.weights())
    uniforms = kernels.uniforms(1, n, SIDE * SIDE).view(n, 1, SIDE, SIDE)
    few = uniforms[:, :, :4]
    loop = TorchLoop(model)

    def ours():
        return kernels.pixelcnn_sample(packed, uniforms)

    check_codes(model.weights(), uniforms, ours())
    check_codes(model.weights(), few, loop.sample(few.float()))
    look_left, look_up = weights_of(model)
    image = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.int64)
    seconds = compare(
        {
            "ours": ours,
            "read": reader(4 * look_left, SIDE * SIDE),
            "mm": multiplier(),
            "eager-cached": lambda: loop.sample(few.float()),  # 4 rows, 1/7 of the image
            "naive": torch.inference_mode()(lambda: model(image)),  # for one pixel
        }
    )
    operation = seconds["mm"] / 384**3
    pixels = SIDE * SIDE
    floor = seconds["read"] + pixels * look_up * operation
    if n > 1:
        floor = n * pixels * (look_left + look_up) * operation
    row = {"images": n, "threads": 1, "seconds": f"{seconds['ours']:.4f}"}
    row["of floor"] = f"{floor / seconds['ours']:.2f}"
    row["x eager-cached"] = f"{seconds['eager-cached'] * SIDE / 4 / seconds['ours']:,.1f}"
    row["x naive"] = f"{seconds['naive'] * pixels / seconds['ours']:,.0f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(ours, rounds=5)


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("n", [1, 16, 132 * 16])
def test_pixelcnn_sample_on_a_gpu(report, small, n):
    n, side = (min(n, 2), 3) if small else (n, SIDE)
    host = build(2, 8) if small else build()
    model = copy.deepcopy(host).to(DEVICE)
    packed = kernels.pack_pixels(model.weights())
    uniforms = kernels.uniforms(1, n, side * side).view(n, 1, side, side)
    there, image = uniforms.to(DEVICE), torch.zeros(n, 1, side, side, dtype=torch.int64)
    image = image.to(DEVICE)
    check_codes(host.weights(), uniforms[:2], kernels.pixelcnn_sample(packed, there)[:2].cpu())
    runs = {
        "ours": lambda: kernels.pixelcnn_sample(packed, there),
        "naive": torch.inference_mode()(lambda: model(image)),  # for one pixel
    }
    seconds = compare(runs, device=DEVICE)
    row = {"images": n, "seconds": f"{seconds['ours']:.4f}"}
    row["images/s"] = f"{n / seconds['ours']:,.0f}"
    report(**row, **{"x naive": f"{seconds['naive'] * side**2 / seconds['ours']:,.0f}"})


@pytest.mark.parametrize(
    ("side", "layers"), [(16, 8), (28, 8), (32, 8), (64, 8), (28, 4), (28, 16), (28, 32)]
)
def test_cost(report, side, layers):
    torch.set_num_threads(1)
    model = build(layers)
    packed = kernels.pack_pixels(model.weights())
    uniforms = kernels.uniforms(1, 1, side * side).view(1, 1, side, side)
    seconds = compare({"ours": lambda: kernels.pixelcnn_sample(packed, uniforms)})["ours"]
    row = {"side": side, "layers": layers, "images": 1, "threads": 1}
    row |= {"seconds": f"{seconds:.4f}", "us a pixel": f"{seconds / side**2 * 1e6:.1f}"}
    report(**row)
