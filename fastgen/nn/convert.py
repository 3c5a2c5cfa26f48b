"""Swap our layers into somebody else's model, and back: `convert` and `restore`.

A layer is swapped in its place: the module, its parameters, buffers, hooks and methods stay what
they are, and only its class changes, to one that is both ours and its own. It is swapped only where
a probe agrees: values and gradients of random copies, in float64 and in the layer's dtype, on
several sizes, in training and in evaluation, and what its buffers hold thereafter.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from .. import kernels
from ..kernels.masked_conv2d import MASKS
from . import gated
from .causal_conv1d import CausalConv1d
from .masked_conv2d import MaskedConv2d
from .probe import parameters_of, probe
from .swap import swap, unswap

CONVS = (nn.Conv1d, nn.Conv2d)
OURS = (MaskedConv2d, CausalConv1d, gated.Gated)
COLORS = (1, 3, 2, 4)


class Passing(nn.Module):
    """A module that is its only convolution."""

    def forward(self, x):
        return convolution(self)(x)


class Cropped(nn.Conv2d):
    """A convolution by the weights alone that a mask leaves."""

    def forward(self, x):
        kernel = F.pad(self.weight, (0, self.cut[1], 0, self.cut[0]))
        return kernels.masked_conv2d(x, kernel, self.bias, mask=self.mask_type)


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
    """Swap our layers in for those of `model` that compute the same.

    Gated layers, of both stacks of a PixelCNN or of a WaveNet, become one kernel. `MaskedConv2d`
    and `CausalConv1d` are tried on subclasses of Conv2d and Conv1d, such with parametrized weights,
    and modules whose only part with parameters is a convolution. Names, state_dict and parameters
    stay. Weights that a mask shuts out get zero gradients, and keep their values where the original
    overwrote them; the report says so.
    returns: a `Report`
    Raises TypeError for what is no Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model: expected a Module, got {type(model).__name__}")
    report, done = Report(model), set()
    parents = Counter(id(child) for module in model.modules() for child in module.children())
    compiled = [name for name, m in model.named_modules() if is_compiled(m)]
    for name, module in model.named_modules():
        if id(module) in done:
            continue
        if isinstance(module, OURS):
            done |= {id(m) for m in module.modules()}
            continue
        if any(f"{name}.".startswith(f"{prefix}.") or not prefix for prefix in compiled):
            if isinstance(module, CONVS):
                report.left[name] = "compiled: convert the model first"
            continue
        conv, found = convolution(module), None
        if conv is None:
            found, parts = gated.find(module), module.modules()
        elif not plain(module) and not isinstance(conv, OURS):
            found = find(module, conv, parents[id(conv)])
            parts = (module, conv)
        if isinstance(found, tuple):
            ours, attributes, note = found
            become(module, conv, ours, attributes)
            done |= set(map(id, parts))
            report.swapped[name] = describe(ours, attributes) + note
        elif conv is module or (conv is None and found):
            report.left[name] = found or "a plain convolution"
        elif found and plain(conv):
            done.add(id(conv))
            path = next(k for k, m in module.named_children() if m is conv)
            report.left[f"{name}.{path}".lstrip(".")] = found
    return report


def restore(model):
    """Undo `convert`, whatever was trained, moved or loaded since."""
    for module in model.modules():
        unswap(module)


def is_compiled(module):
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def convolution(module):
    """The convolution that a module is, or has as its only part with parameters, else None."""
    if isinstance(module, CONVS):
        return module
    if type(module).__module__.partition(".")[0] == "torch" or module._parameters:
        return None
    parts = [m for m in module.children() if next(m.parameters(), None) is not None]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], CONVS) else None


def plain(module):
    """Whether torch's own forward is all that a convolution computes."""
    forward = getattr(type(module), "forward", None)
    own = forward in (nn.Conv1d.forward, nn.Conv2d.forward)
    return own and "forward" not in module.__dict__ and not parametrize.is_parametrized(module)


def find(module, conv, parents):
    """Our class for a module, its attributes and a note, or why there is none."""
    if "forward" in module.__dict__ or "forward" in conv.__dict__:
        return "its forward was replaced"
    if len(parameters_of(module.forward)[0]) > 1:
        return "its forward takes more than one argument"
    if any(s != 1 for s in conv.stride) or conv.padding_mode != "zeros" or conv.transposed:
        return "strided, transposed, or not padded with zeros"
    if module is not conv and parents > 1:
        return "another module has the convolution too"
    for ours, attributes in candidates(conv):
        try:
            note = probe(
                module,
                lambda m, new=(ours, attributes): become(m, convolution(m), *new),
                lambda extent: (torch.randn(shape_of(conv, extent)),),
            )
        except Exception as error:  # whatever somebody else's forward raises
            return f"it cannot be probed: {type(error).__name__}: {error}".splitlines()[0]
        if note is not None and ours is Cropped:
            return f'cropped to what mask "{attributes["mask_type"]}" leaves: nothing to gain'
        if note is not None:
            return ours, attributes, note
    return "no masked or causal convolution has its outputs"


def candidates(conv):
    if isinstance(conv, nn.Conv1d):
        yield CausalConv1d, {}
        return
    kh, kw = conv.kernel_size
    if kh % 2 and kw % 2:
        for colors in COLORS:
            for mask in MASKS if colors == 1 else MASKS[:2]:
                if conv.in_channels % colors == 0 and conv.out_channels % colors == 0:
                    yield MaskedConv2d, {"mask_type": mask, "colors": colors}
    if conv.dilation == (1, 1) and conv.groups == 1:
        if kw % 2:
            yield Cropped, {"mask_type": "vertical B", "cut": (kh - 1, 0)}
            yield Cropped, {"mask_type": "vertical A", "cut": (kh + 1, 0)}
        if kh == 1:
            yield Cropped, {"mask_type": "B", "cut": (0, kw - 1)}
            yield Cropped, {"mask_type": "A", "cut": (0, kw + 1)}


def become(module, conv, ours, attributes):
    """Make a module ours, or its convolution, which it then passes on."""
    if conv is not None and conv is not module:
        swap(module, Passing, {})
    swap(conv or module, ours, attributes)


def describe(ours, attributes):
    if ours in gated.NAMES:
        return gated.NAMES[ours]
    colors = attributes.get("colors", 1)
    mask = f' "{attributes["mask_type"]}"' if attributes else ""
    return f"{ours.__name__}{mask}" + (f", {colors} colors" if colors > 1 else "")


def shape_of(conv, extent):
    return (2, conv.in_channels, *(extent + i for i, _ in enumerate(conv.kernel_size)))
