"""Swap our layers into somebody else's model, and back: `convert` and `restore`.

A layer is swapped in its place: the module, its parameters, buffers, hooks and methods stay what
they are, and only its class changes, to one that is both ours and its own. It is swapped only where
a probe agrees: values and gradients of random copies, in float64 and in the layer's dtype, on
several sizes, in training and in evaluation, and what its buffers hold thereafter.
"""

import functools
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..kernels.masked_conv2d import MASKS, live_mask
from .causal_conv1d import CausalConv1d
from .masked_conv2d import MaskedConv2d

CONVS = (nn.Conv1d, nn.Conv2d)
COLORS = (1, 3, 2, 4)
TOLERANCE = {  # of the largest value
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
ORIGINAL = "_fastgen_original"  # of a swapped module: its class, and its attributes we overwrote


class Passing(nn.Module):
    """A module that is its only child."""

    def forward(self, x):
        (conv,) = self.children()
        return conv(x)


@dataclass
class Report:
    """What `convert` did: name -> what a layer became, and name -> why it was left."""

    model: nn.Module
    swapped: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)

    def undo(self):
        """Give the model its own layers back."""
        restore(self.model)

    def __str__(self):
        rows = [f"swapped  {name or '(model)'}: {what}" for name, what in self.swapped.items()]
        rows += [f"left     {name or '(model)'}: {why}" for name, why in self.left.items()]
        return "\n".join(rows) or "no convolutions"


def convert(model):
    """Swap `MaskedConv2d` and `CausalConv1d` in for the layers of `model` that compute the same.

    Looked at are subclasses of Conv2d and Conv1d, such with parametrized weights, and modules whose
    only child is a convolution. Names, state_dict and parameters stay. Weights that a mask shuts
    out get zero gradients, and keep their values where the original overwrote them; the report
    says so.
    returns: a `Report`
    """
    report, done = Report(model), set()
    compiled = tuple(
        name for name, m in model.named_modules() if type(m).__name__ == "OptimizedModule"
    )
    for name, module in model.named_modules():
        conv = convolution(module)
        if conv is None or id(module) in done or isinstance(conv, (MaskedConv2d, CausalConv1d)):
            continue
        if any(name.startswith(prefix) for prefix in compiled):
            report.left[name] = "compiled: convert the model first"
            continue
        found = None if plain(module) else find(module, conv)
        if isinstance(found, tuple):
            ours, attributes, note = found
            swap(module, conv, ours, attributes)
            done.add(id(conv))
            report.swapped[name] = describe(ours, attributes) + note
        elif conv is module:
            report.left[name] = found or "a plain convolution"
    return report


def restore(model):
    """Undo `convert`, whatever was trained, moved or loaded since."""
    for module in model.modules():
        if ORIGINAL in module.__dict__:
            cls, attributes = module.__dict__.pop(ORIGINAL)
            for key in ("mask_type", "colors"):
                module.__dict__.pop(key, None)
            module.__dict__.update(attributes)
            if not parametrize.is_parametrized(module) and cls.__name__.startswith("Parametrized"):
                cls = cls.__bases__[0]  # its parametrizations were removed since
            module.__class__ = cls


def convolution(module):
    """The convolution that a module is or has as its only child, else None."""
    if isinstance(module, CONVS):
        return module
    children = list(module.children())
    own = type(module).__module__.partition(".")[0] != "torch" and not module._parameters
    return children[0] if own and len(children) == 1 and isinstance(children[0], CONVS) else None


def plain(module):
    """Whether torch's own forward is all that a convolution computes."""
    forward = getattr(type(module), "forward", None)
    own = forward in (nn.Conv1d.forward, nn.Conv2d.forward)
    return own and not parametrize.is_parametrized(module)


def find(module, conv):
    """Our class for a module, its attributes and a note, or why there is none."""
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if any(s != 1 for s in conv.stride) or conv.padding_mode != "zeros" or conv.transposed:
        return "strided, transposed, or not padded with zeros"
    why = "no masked or causal convolution has its outputs"
    for ours, attributes in candidates(conv):
        try:
            note = probe(module, conv, ours, attributes)
        except Exception as error:  # whatever somebody else's forward raises
            return f"it cannot be probed: {type(error).__name__}: {error}".splitlines()[0]
        if note is not None:
            return ours, attributes, note
    return why


def candidates(conv):
    if isinstance(conv, nn.Conv1d):
        yield CausalConv1d, {}
    elif all(k % 2 for k in conv.kernel_size):
        for colors in COLORS:
            for mask in MASKS if colors == 1 else MASKS[:2]:
                if conv.in_channels % colors == 0 and conv.out_channels % colors == 0:
                    yield MaskedConv2d, {"mask_type": mask, "colors": colors}


def describe(ours, attributes):
    colors = attributes.get("colors", 1)
    mask = f' "{attributes["mask_type"]}"' if attributes else ""
    return f"{ours.__name__}{mask}" + (f", {colors} colors" if colors > 1 else "")


@torch.random.fork_rng()
def probe(module, conv, ours, attributes):
    """A note, maybe empty, if ours computes the same as a module; else None.

    Both are copies with random weights, and no hooks.
    """
    torch.manual_seed(0)
    note, own = "", next(p for p in conv.parameters()).dtype
    for dtype in dict.fromkeys((torch.float64, own)):
        for training in (False, True):
            for extent in (6, 1, 9):
                first = copied(module, dtype, fresh=True)
                second = copied(first, dtype)
                swap(second, convolution(second), ours, attributes)
                first.training = second.training = training
                remark = compare(first, second, shape_of(conv, extent), dtype, attributes)
                if remark is None:
                    return None
                note = note or remark
    return note


def shape_of(conv, extent):
    return (2, conv.in_channels, *(extent + i for i, _ in enumerate(conv.kernel_size)))


def compare(theirs, ours, shape, dtype, attributes):
    """A note if two modules agree on random numbers of a shape, else None."""
    x = torch.randn(shape, dtype=dtype, device=next(theirs.parameters()).device)
    results = []
    for module in (theirs, ours):
        x = x.detach().requires_grad_()
        y = module.forward(x)
        leaves = dict(module.named_parameters())
        # weight_norm's hook leaves its weight here
        weight = convolution(module).__dict__.get("weight")
        leaves |= {} if weight is None else {"weight": weight}
        torch.manual_seed(1)
        loss = (y * torch.randn_like(y)).sum()
        grads = torch.autograd.grad(loss, [x, *leaves.values()], allow_unused=True)
        results.append((y.detach(), dict(zip(["x", *leaves], grads, strict=True))))
        torch.manual_seed(0)
    (y, grads), (z, others) = results
    if y.shape != z.shape or y.dtype != z.dtype or not near(y, z, dtype):
        return None
    note = ""
    for name, a in grads.items():
        b = others[name]
        if a is not None and b is not None and name.endswith("weight") and attributes:
            live = live_of(convolution(ours), attributes)
            if not near(a * ~live, b * ~live, dtype):
                note = "; its masked weights had gradients, and have none now"
            a, b = a * live, b * live
        if (a is None) != (b is None) and name.rpartition(".")[2] not in ("weight_g", "weight_v"):
            return None
        if a is not None and b is not None and not near(a, b, dtype):
            return None
    same = zip(theirs.buffers(), ours.buffers(), strict=True)
    return note if all(torch.equal(a, b) for a, b in same) else None


def live_of(conv, attributes):
    mask, colors = attributes["mask_type"], attributes["colors"]
    return live_mask(conv.weight, mask, colors, conv.groups)


def near(a, b, dtype):
    scale = max(a.abs().max().item(), 1e-30) if a.numel() else 1
    return a.shape == b.shape and not ((a - b).abs() > TOLERANCE[dtype] * scale).any()


def copied(module, dtype, fresh=False):
    """A module without hooks whose floating tensors are copies in a dtype; `fresh`: random ones."""

    def tensor(x, fresh):
        if not x.is_floating_point():
            return x.clone()
        y = x.detach().to(dtype, copy=True)
        return y.normal_() if fresh else y

    def value(x):
        if isinstance(x, torch.Tensor):
            return tensor(x, False)
        return type(x)(map(value, x)) if type(x) in (list, tuple) else x

    other = object.__new__(type(module))
    other.__dict__ = {key: value(x) for key, x in module.__dict__.items()}
    empty = {k: v for k, v in nn.Module().__dict__.items() if "hook" in k or k[:5] == "_back"}
    other.__dict__ |= empty
    if isinstance(other.__dict__.get("weight"), torch.Tensor):
        other.__dict__["weight"] = tensor(module.weight, fresh).requires_grad_()
    other._parameters = {
        k: p
        if p is None
        else nn.Parameter(tensor(p, fresh and p.requires_grad), requires_grad=p.requires_grad)
        for k, p in module._parameters.items()
    }
    other._buffers = {k: b if b is None else tensor(b, False) for k, b in module._buffers.items()}
    other._modules = {
        k: m if m is None else copied(m, dtype, fresh) for k, m in module._modules.items()
    }
    return other


def swap(module, conv, ours, attributes):
    """Make a convolution ours in its place, and the module that has it, if any, pass it on."""
    for m, base, new in ((conv, ours, attributes), (module, Passing, {})):
        if ORIGINAL not in m.__dict__:
            old = {key: m.__dict__[key] for key in new if key in m.__dict__}
            m.__dict__[ORIGINAL] = (type(m), old)
            m.__dict__.update(new)
            m.__class__ = both(base, type(m))


@functools.cache
def both(ours, theirs):
    """A class that computes as ours and is theirs in all else."""

    def reduce(self, protocol):
        return rebuilt, (ours, theirs), self.__dict__

    return type(ours.__name__, (ours, theirs), {"__reduce_ex__": reduce})


def rebuilt(ours, theirs):
    return object.__new__(both(ours, theirs))
