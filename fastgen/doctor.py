"""What fastgen finds on this machine, and whether its kernels agree with their references."""

import copy
import functools
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
from pathlib import Path

import torch

from . import __version__, kernels, weights
from .kernels import _op
from .kernels import _wavenet_sample_cuda as cluster
from .tractable.pixelcnn import GatedPixelCNN, PixelCNN
from .tractable.wavenet import WaveNet
from .verify import Check

PACKAGES = ("numpy", "safetensors", "tyro", "tqdm")
OPTIONAL = {  # package: what it is for, and the extra that brings it
    "soundfile": ("sound files but WAV and G.722", "audio"),
    "av": ("G.722 sound files", "audio"),
    "pystoi": ("intelligibility in fastgen eval", "metrics"),
    "tensorboard": ("fastgen train --tensorboard", "tensorboard"),
}
ON_CPU = ("masked_stack_sample",)  # kernels that bring a GPU's tensors there
# of the largest value of the reference in float64
TOLERANCE = {"float64": 1e-13, "float32": 5e-6, "bfloat16": 0.02, "int8": 0.05}


def report():
    """What there is: a list of (title, rows of text)."""
    shipped = weights.shipped()
    return [
        (f"fastgen {__version__}", versions()),
        ("machine", machine()),
        ("kernels", implementations()),
        ("optional packages", optional()),
        ("shipped models", [(name,) for name in shipped] if shipped else [("none",)]),
    ]


def versions():
    rows = [("python", f"{platform.python_version()}, {sys.executable}")]
    rows += [("torch", torch.__version__)]  # with what it was built for, unlike the package's
    rows += [(name, version(name) or "missing") for name in PACKAGES]
    missing = "missing: needed on a GPU alone: pip install triton"
    return [*rows, ("triton", version("triton") or missing)]


def version(package):
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("processor", processor()),
        ("cores", str(cores)),
        ("threads", f"{torch.get_num_threads()} (torch.set_num_threads, OMP_NUM_THREADS)"),
        ("C++ threads", threads()),
        ("gpu", gpu()),
        ("C++ kernels", instructions()),
        ("CUDA kernels", cuda()),
    ]


def processor():
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def gpu():
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}"
    built = torch.version.cuda is not None
    return "none" + ("" if built else ", and this torch is built without CUDA")


def threads():
    """Whose threads the C++ kernels run on."""
    if _op.native is None:
        return "none"
    return "torch's" if _op.native.pooled(torch.get_num_threads()) else "their own, for each call"


def instructions():
    """The instruction sets of the C++ kernels, or why there are none."""
    if _op.native is None:
        return "missing, so references run: install g++ >= 12 and python3-dev, then fastgen anew"
    others = [isa for isa in _op.native.isas() if isa != _op.native.isa()]
    return f"{_op.native.isa()}; FASTGEN_ISA can choose {', '.join(others) or 'no other'}"


def cuda():
    """Whether there are CUDA kernels and run here, or why not."""
    if why := cluster.missing():
        return f"none: {why}"
    if not torch.cuda.is_available():
        return "built"
    if torch.cuda.get_device_capability()[0] != 9:
        return "built, but for GPUs of capability 9"
    try:
        runs = cluster.granted(torch.cuda.current_device(), cluster.BLOCKS[0], cluster.SHARED)
    except RuntimeError as error:  # of a driver that is too old, for one
        return f"built, but they do not run: {error}"
    return "built, and they run" if runs else "built, but the GPU grants no cluster of blocks"


def implementations():
    """For each kernel, what runs it here."""
    return [(name, f"CPU: {on_cpu(name)}", f"GPU: {on_gpu(name)}") for name in SELF_TESTS]


def on_cpu(name):
    """What runs a kernel on the CPU."""
    if name == "masked_conv2d":
        return "torch, on the live taps"
    return "C++" if _op.native else "reference"


def on_gpu(name):
    """What runs a kernel on a GPU, and why it does not here."""
    if name in ON_CPU:
        return "runs on the CPU"
    if importlib.util.find_spec(f"fastgen.kernels._{name}_triton") is None:
        return "reference in torch"
    if not version("triton"):
        return "reference in torch, for want of triton"
    few = f"; CUDA for {cluster.STREAMS} streams or fewer in bfloat16 on sm_90"
    return "Triton" + (few if name == "wavenet_sample" and not cluster.missing() else "")


def optional():
    return [
        (name, version(name) or "missing", f"{use}: pip install 'fastgen[{extra}]'")
        if version(name) is None
        else (name, version(name), use)
        for name, (use, extra) in OPTIONAL.items()
    ]


def self_tests():
    """Each kernel against its reference, on each instruction set and on a GPU: a list of `Check`.

    Where there are references alone there is nothing to compare, and the list is empty.
    """
    isa = _op.native.isa() if _op.native else None
    try:
        with torch.random.fork_rng(devices=[]):
            return [
                self_test(name, dtype, places)
                for name, (_, dtypes) in SELF_TESTS.items()
                for dtype in dtypes
                if (places := where(name, dtype))
            ]
    finally:
        if isa:
            _op.native.set_isa(isa)


def where(name, dtype):
    """Where a kernel can be tested: pairs of a device and an instruction set or None."""
    places = [("cpu", isa) for isa in (_op.native.isas() if _op.native else [])]
    on_cuda = torch.cuda.is_available() and on_gpu(name).startswith("Triton")
    return places + [("cuda", None)] * (on_cuda and dtype in ("float32", "bfloat16"))


def self_test(name, dtype, places):
    bound, errors = TOLERANCE[dtype], []
    for device, isa in places:
        if isa:
            _op.native.set_isa(isa)
        try:
            errors.append((SELF_TESTS[name][0](dtype, device), isa or device))
        except Exception as error:  # whatever it is, it is what the doctor is asked to tell
            message = " ".join(str(error).split())[:200]
            got = f"{type(error).__name__} on {isa or device}: {message}"
            return Check(f"{name} {dtype}", f"{bound:.0e}", got, False)
    worst, at = max(errors, key=lambda error: (math.isnan(error[0]), error))
    return Check(f"{name} {dtype}", f"{bound:.0e}", f"{worst:.0e} on {at}", worst <= bound)


@functools.cache
@torch.no_grad()
def sample_case():
    """A model, codes and features, and the logits that the reference computes from them."""
    torch.manual_seed(0)
    model = WaveNet(4, 2, 24, 40, 36, 50, cond_channels=3, hop_length=8).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    n, T = 3, 40
    codes, cond = torch.randint(50, (n, T)), torch.randn(n, 3, 6, dtype=torch.float64)
    w = model.weights()
    state = kernels.initial_state(w, model.dilations, n)
    inputs = (w, torch.zeros(n, T), *state, codes, w.conv_bias[None], cond, model.dilations)
    *_, logits, _ = kernels.wavenet_sample_ref(*inputs, model.hop_length, 50, 0, 1.0, True)
    return model, codes, cond, logits


@torch.no_grad()
def sample_error(dtype, device):
    """How far the logits of `kernels.wavenet_sample` are off, of the largest of them."""
    model, codes, cond, want = sample_case()
    w = kernels.Weights(*(v if v is None else v.to(device) for v in model.weights()))
    _, _, got = kernels.wavenet_sample(
        w,
        torch.zeros(codes.shape, device=device),
        **model.sampling(len(codes), None),
        prefix=codes.to(device),
        cond=cond.to(device),
        dtype=dtype,
        logits=True,
    )
    return relative(got, want)


@functools.cache
@torch.no_grad()
def image_case(kind):
    """A model of images of 3 colors, images, and its logits in float64."""
    torch.manual_seed(0)
    model = kind(3, 18, 21, levels=20, colors=3).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    levels = torch.randint(20, (3, 3, 5, 6))
    return model, levels, model(levels)


def image_error(sampler, kind, dtype, device):
    """How far the logits of a sampler are off those of its model, of the largest of them."""
    model, levels, want = image_case(kind)
    zeros, more = torch.zeros(levels.shape), {"given": levels, "dtype": dtype, "logits": True}
    _, got = sampler(copy.deepcopy(model).to(device).weights(), zeros, **more)
    return relative(got, want)


def images_error(dtype, device):
    return image_error(kernels.pixelcnn_sample, GatedPixelCNN, dtype, device)


def stack_error(dtype, device):
    sampler = functools.partial(kernels.masked_stack_sample, colors=3)
    return image_error(sampler, PixelCNN, dtype, device)


def layer_error(dtype, device):
    """How far the values and gradients of `kernels.wavenet_layer` are off, of the largest."""
    torch.manual_seed(0)
    B, R, S, H, T = 2, 24, 40, 20, 200
    shapes = ((B, R, T), (B, S, T), (2 * H, R, 2), (2 * H,), (R, H), (R,), (S, H), (S,))
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in (*shapes, (B, 2 * H, 26))]
    return gradients_error(
        lambda *v: kernels.wavenet_layer_ref(*v, hop=8, dilation=4),
        lambda *v: kernels.wavenet_layer(*v, hop=8, dilation=4),
        inputs,
        {"dtype": getattr(torch, dtype), "device": device},
    )


def pixelcnn_error(dtype, device):
    """How far the values and gradients of `kernels.pixelcnn_layer` are off, of the largest."""
    torch.manual_seed(0)
    B, C, P, H, W = 2, 12, 18, 11, 19
    shapes = ((B, C, H, W), (B, C, H, W), (2 * P, C, 3, 5), (2 * P,), (2 * P, C, 1, 3), (2 * P,))
    shapes += ((2 * P, 2 * P), (C, P), (C,), (B, 2 * P), (B, 2 * P))
    inputs = [torch.randn(s, dtype=torch.float64) / math.prod(s[1:]) ** 0.5 for s in shapes]
    return gradients_error(
        lambda *v: kernels.pixelcnn_layer_ref(*v, mask="B", colors=3),
        lambda *v: kernels.pixelcnn_layer(*v, mask="B", colors=3),
        inputs,
        {"dtype": getattr(torch, dtype), "device": device},
    )


def conv_error(dtype, device):
    """How far the values and gradients of `kernels.masked_conv2d` are off, of the largest."""
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.float64) for s in ((2, 9, 11, 19), (18, 9, 5, 3), (18,))]
    return gradients_error(
        lambda *v: kernels.masked_conv2d_ref(*v, mask="A", colors=3),
        lambda *v: kernels.masked_conv2d(*v, mask="A", colors=3),
        inputs,
        {"dtype": getattr(torch, dtype), "device": device},
    )


def mixture_error(dtype, device):
    """How far the values and gradients of `kernels.logistic_mixture` are off, of the largest."""
    torch.manual_seed(0)
    codes = torch.randint(9, (2, 3, 11, 19))
    params = torch.randn(2, 50, 11, 19, dtype=torch.float64)
    return gradients_error(
        lambda v: kernels.logistic_mixture_ref(v, codes, 9),
        lambda v: kernels.logistic_mixture(v, codes.to(device), 9),
        [params],
        {"dtype": getattr(torch, dtype), "device": device},
    )


def coupling_error(dtype, device):
    """How far the values and gradients of `kernels.affine_coupling` are off, of the largest."""
    shapes = {
        "checkerboard": ((3, 5, 7, 22), (3, 10, 7, 11), (5,)),
        "channel": ((37, 32), (37, 32), (16,)),
    }
    errors = []
    for split in shapes:
        torch.manual_seed(0)
        ref, fn = (
            lambda x, h, w, f=f, split=split: f(x, h, weight=w, split=split)
            for f in (kernels.affine_coupling_ref, kernels.affine_coupling)
        )
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes[split]]
        place = {"dtype": getattr(torch, dtype), "device": device}
        errors.append(gradients_error(ref, fn, inputs, place))
    return torch.tensor(errors).max().item()


def features_error(dtype, device):
    """How far those of `kernels.minibatch_discrimination` are off, of the largest."""
    torch.manual_seed(0)
    return gradients_error(
        kernels.minibatch_discrimination_ref,
        kernels.minibatch_discrimination,
        [torch.randn(37, 5, 3, dtype=torch.float64)],
        {"dtype": getattr(torch, dtype), "device": device},
    )


def gradients_error(ref, fn, inputs, place):
    """How far values and gradients of `fn` are off those of `ref` in float64, of the largest."""
    values = []
    for f, where in ((ref, {"dtype": torch.float64}), (fn, place)):
        leaves = [x.to(**where).detach().requires_grad_() for x in inputs]
        outputs = f(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(y.square().sum() for y in outputs)
        values.append([*outputs, *torch.autograd.grad(loss, leaves)])
    errors = [relative(got, want) for want, got in zip(*values, strict=True)]
    return torch.tensor(errors).max().item()  # NaN if one is, unlike Python's


def relative(got, want):
    return ((got.detach().cpu().double() - want).abs().max() / want.abs().max()).item()


SELF_TESTS = {  # kernel: its error, in which dtypes
    "wavenet_sample": (sample_error, ("float64", "float32", "bfloat16", "int8")),
    "wavenet_layer": (layer_error, ("float64", "float32")),
    "pixelcnn_sample": (images_error, ("float64", "float32")),
    "masked_stack_sample": (stack_error, ("float64", "float32")),
    "masked_conv2d": (conv_error, ("float64", "float32")),
    "pixelcnn_layer": (pixelcnn_error, ("float64", "float32")),
    "logistic_mixture": (mixture_error, ("float64", "float32")),
    "affine_coupling": (coupling_error, ("float64", "float32")),
    "minibatch_discrimination": (features_error, ("float64", "float32")),
}
