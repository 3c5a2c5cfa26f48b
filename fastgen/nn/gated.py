"""Whole gated layers in somebody else's model, each computed by one kernel.

A layer is recognised by the shapes of its convolutions, which leave each a role or two. Which role
it has, what of its weight is live, and how the layer takes and returns tensors is tried: that plan
is kept under which a kernel computes the same.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import kernels
from .probe import copied, inner, near, parameters_of, placed, probe, tensors
from .swap import swap

PLAN = "_fastgen_plan"


class Pixel(NamedTuple):
    """How a module is a `kernels.pixelcnn_layer`, its parts by their names."""

    v: str
    h: str
    link: str
    res: str
    own_row: bool  # whether v sees the pixel's row
    own: bool  # whether h sees the pixel
    residual: bool
    conds: tuple  # what makes of the last argument what is added to the gates of both, or of each
    before: bool  # whether it is added before the link
    form: str  # "two" tensors, a "sequence" of two, or "one" with the channels of both
    names: tuple  # of the arguments
    listed: bool = False  # whether it returns a list


class Wave(NamedTuple):
    """How a module is a `kernels.wavenet_layer`, its parts by their names."""

    wide: tuple  # tanh's and sigmoid's, or both in one
    flipped: bool  # whether sigmoid's come first
    res: str
    skip: str
    conds: tuple  # 1x1 convolutions of the condition, as in wide or in one
    takes: tuple  # of "x", "skip" and "cond"
    skip_first: bool  # of what it returns
    names: tuple  # of the arguments
    listed: bool = False  # whether it returns a list


class Gated(nn.Module):
    """A layer that a kernel computes by its plan; its own forward does what the plan leaves.

    That is a call with other arguments than were probed, and autocast, under which sums stay in
    float32.
    """

    def forward(self, *args, **kwargs):
        plan, inputs = getattr(self, PLAN), None
        rest = plan.names[len(args) :]
        given = (*args, *(kwargs[name] for name in rest if name in kwargs))
        if len(given) == len(plan.names) == len(args) + len(kwargs):
            inputs = self.inputs(plan, given)
        if inputs is None or torch.is_autocast_enabled(inputs[0].device.type):
            return super().forward(*args, **kwargs)
        outputs = self.fused(plan, *inputs)
        return list(outputs) if plan.listed else outputs


class GatedPixels(Gated):
    """A layer of two stacks."""

    def inputs(self, plan, given):
        """v, h, and the condition or None; None for what was not probed."""
        both, cond = given[:2] if plan.form == "two" else given[0], None
        if plan.form == "one" and isinstance(both, torch.Tensor):
            both = both.chunk(2, dim=1)
        if plan.conds:
            cond = given[-1]
            if not isinstance(cond, torch.Tensor):
                return None
        fits = isinstance(both, (tuple, list)) and len(both) == 2
        fits = fits and all(isinstance(x, torch.Tensor) and x.dim() == 4 for x in both)
        return (*both, cond) if fits else None

    def fused(self, plan, v, h, cond):
        part = self.get_submodule
        v_conv, h_conv, link, res = map(part, (plan.v, plan.h, plan.link, plan.res))
        v_weight, h_weight, link_weight = *live(v_conv, h_conv, plan), link.weight[..., 0, 0]
        cond_v = cond_h = None
        if plan.conds:
            made = torch.cat([part(name)(cond) for name in plan.conds], 1).expand(len(v), -1)
            one = made.shape[1] == len(link_weight)
            cond_v, cond_h = (made, made) if one else made.chunk(2, dim=1)
            if not plan.before:
                cond_h = cond_h - F.linear(cond_v, link_weight)
        outputs = kernels.pixelcnn_layer(
            *(v, h, v_weight, bias(v_conv), h_weight, bias(h_conv) + bias(link), link_weight),
            *(res.weight[..., 0, 0], bias(res), cond_v, cond_h),
            mask="B",
            residual=plan.residual,
        )
        return torch.cat(outputs, 1) if plan.form == "one" else outputs


def live(v, h, plan):
    """v_weight (2P, V, r + 1, k) and h_weight (2P, C, 1, r + 1), zero in what they do not see."""
    r = v.kernel_size[1] // 2
    v_weight = v.weight[:, :, : r + plan.own_row]
    h_weight = h.weight[..., : r + plan.own]
    v_weight = F.pad(v_weight, (0, 0, 0, r + 1 - v_weight.shape[2]))
    return v_weight, F.pad(h_weight, (0, r + 1 - h_weight.shape[3]))


class GatedWave(Gated):
    """A gated dilated causal convolution with its residual and skip products."""

    def inputs(self, plan, given):
        """x, skip and the condition, or None for either; None for what was not probed."""
        if not all(isinstance(x, torch.Tensor) and x.dim() == 3 for x in given):
            return None
        named = dict(zip(plan.takes, given, strict=True))
        x, skip, cond = (named.get(name) for name in ("x", "skip", "cond"))
        S = self.get_submodule(plan.skip).out_channels
        fits = cond is None or cond.shape[::2] == x.shape[::2]
        fits = fits and (skip is None or skip.shape == (x.shape[0], S, x.shape[2]))
        return (x, skip, cond) if fits else None

    def fused(self, plan, x, skip, cond):
        part = self.get_submodule
        wide, res, to_skip = [part(name) for name in plan.wide], part(plan.res), part(plan.skip)
        weight, biases = torch.cat([w.weight for w in wide]), torch.cat([bias(w) for w in wide])
        if cond is not None:
            cond = torch.cat([part(name)(cond) for name in plan.conds], 1)
        if plan.flipped:
            weight, biases = flipped(weight, 0), flipped(biases, 0)
            cond = None if cond is None else flipped(cond, 1)
        if skip is None:
            skip = x.new_zeros(x.shape[0], to_skip.out_channels, x.shape[2])
        outputs = kernels.wavenet_layer(
            *(x, skip, weight, biases, res.weight[..., 0], bias(res)),
            *(to_skip.weight[..., 0], bias(to_skip), cond),
            dilation=wide[0].dilation[0],
        )
        return outputs[::-1] if plan.skip_first else outputs


def flipped(x, dim):
    """The halves of x, the second one first."""
    return torch.cat(x.chunk(2, dim)[::-1], dim)


NAMES = {GatedPixels: "kernels.pixelcnn_layer", GatedWave: "kernels.wavenet_layer"}


def bias(conv):
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def find(module):
    """What to `swap` in for a gated layer and a note, or why nothing, or None of all else."""
    if type(module).__module__.partition(".")[0] == "torch":
        return None
    for ours, plans in ((GatedPixels, pixels), (GatedWave, waves)):
        found = list(plans(module))
        if found:
            try:
                return unfit(module) or tried(module, ours, found)
            except Exception as error:  # whatever somebody else's forward raises
                return f"it cannot be probed: {type(error).__name__}: {error}".splitlines()[0]
    return None


def tried(module, ours, plans):
    """`find` among plans."""
    why = f"like a gated layer, but {NAMES[ours]} has other outputs"
    with inner():
        copy = copied(module, torch.float64, fresh=True)
        plan = first_to_agree(copy.eval(), ours, plans)
    if plan is None:
        return why
    note = probe(
        module,
        lambda m: swap(m, ours, {PLAN: plan}),
        lambda extent: arguments(module, plan, extent),
    )
    return why if note is None else (ours, {PLAN: plan}, note)


def first_to_agree(module, ours, plans):
    """The first plan under which a kernel has the outputs of a module, or None; else raises."""
    other, results, error = copied(module, torch.float64), {}, None
    swap(other, ours, {PLAN: plans[0]})
    for plan in plans:
        key = (plan.names, plan.conds, getattr(plan, "form", None), getattr(plan, "takes", None))
        if key not in results:
            inputs = placed(arguments(module, plan, 6), module, torch.float64)
            try:
                results[key] = inputs, module.forward(*inputs)
            except Exception as raised:
                results[key], error = None, raised
        if results[key] is None:
            continue
        inputs, y = results[key]
        other.__dict__[PLAN] = plan = plan._replace(listed=isinstance(y, list))
        want, got = tensors(y), tensors(other.forward(*inputs))
        if len(want) == len(got) and all(map(near, want, got)):
            return plan
    if error and not any(results.values()):
        raise error
    return None


def unfit(module):
    """Why no kernel can take a layer's place, or None."""
    for name, m in module.named_modules():
        if "forward" in m.__dict__:
            return f"like a gated layer, but the forward of {name or 'it'} was replaced"
        if name and any(
            v for k, v in m.__dict__.items() if k.endswith("_hooks") and "state" not in k
        ):
            return f"like a gated layer, but hooks of its {name} would not be called"
        if isinstance(m, nn.Conv2d) and m.dilation != (1, 1):
            return "like a gated layer, but dilated: kernels.pixelcnn_layer is not"
    return None


def arguments(module, plan, extent):
    """Random ones for a call of a layer."""
    part = module.get_submodule
    if isinstance(plan, Pixel):
        size = (extent, extent + 1)
        both = tuple(torch.randn(2, part(name).weight.shape[1], *size) for name in (plan.v, plan.h))
        if plan.form == "sequence":
            both = (both,)
        elif plan.form == "one":
            both = (torch.cat(both, 1),)
        if not plan.conds:
            return both
        maker = part(plan.conds[0])
        if isinstance(maker, nn.Embedding):
            return *both, torch.randint(maker.num_embeddings, (2,))
        return *both, torch.randn(2, maker.in_features)
    channels = {"x": part(plan.wide[0]).in_channels, "skip": part(plan.skip).out_channels}
    if plan.conds:
        channels["cond"] = part(plan.conds[0]).in_channels
    return tuple(torch.randn(2, channels[name], extent) for name in plan.takes)


def pixels(module):
    """Plans under which a module may be a layer of two stacks."""
    convs, thin, wide = parts(module, nn.Conv2d)
    if len(thin) != 2 or len(wide) != 2:
        return
    names, least = parameters_of(module.forward)
    makers = {k: m for k, m in module.named_modules() if isinstance(m, (nn.Embedding, nn.Linear))}
    for (v, h), (link, res) in itertools.product(*map(itertools.permutations, (wide, thin))):
        shapes = of_shapes(*(convs[name] for name in (v, h, link, res)))
        conds = conditions(makers, convs[link].out_channels)
        forms = ("two", "sequence", "one")
        for made, form, seen in itertools.product(conds, forms, list(shapes)):
            count = (form == "two") + 1 + bool(made)
            for before in (False, True)[: 1 + bool(made)]:
                if least <= count <= len(names):
                    roles = (v, h, link, res, *seen, made, before, form)
                    yield Pixel(*roles, tuple(names[:count]))


def of_shapes(v, h, link, res):
    """own_row, own and residual that the shapes of four convolutions allow."""
    (rows, k), (one, columns), G = v.kernel_size, h.kernel_size, link.out_channels
    r = k // 2
    fits = k % 2 and one == 1 and rows in (r, r + 1, k) and columns in (r, r + 1, k)
    if fits and link.in_channels == v.out_channels == h.out_channels == G == 2 * res.in_channels:
        residual = (True, False)[res.out_channels != h.in_channels :]
        yield from itertools.product(
            (True, False)[rows == r :], (True, False)[columns == r :], residual
        )


def conditions(makers, G):
    """Names of the modules that may make a condition: one for both stacks, or one for each."""
    sizes = {
        getattr(m, "embedding_dim", 0) or getattr(m, "out_features", 0) for m in makers.values()
    }
    if len(makers) == 2 and sizes == {G}:
        return [*itertools.permutations(makers)]
    return [(*makers,)] if not makers or (len(makers) == 1 and sizes <= {G, 2 * G}) else []


def waves(module):
    """Plans under which a module may be a gated causal convolution."""
    convs, thin, wide = parts(module, nn.Conv1d)
    if not 1 <= len(wide) <= 2 or not 1 <= len(thin) <= 4:
        return
    names, least = parameters_of(module.forward)
    shapes = {
        (c.in_channels, c.out_channels, c.kernel_size, c.dilation) for c in map(convs.get, wide)
    }
    R, rows = convs[wide[0]].in_channels, sum(convs[name].out_channels for name in wide)
    if len(shapes) > 1 or rows % 2:
        return
    orders = [order for all in itertools.permutations(thin) for order in (all, (all[0], *all))]
    for res, skip, *conds in (order for order in orders if len(order) > 1):
        first, second, *others = (convs[name] for name in (res, skip, *conds))
        sizes = [c.out_channels for c in others]
        fits = first.in_channels == second.in_channels == rows // 2 and first.out_channels == R
        if not fits or sizes not in ([], [rows], [rows // 2] * 2):
            continue
        takes = [("x", "skip", "cond"), ("x", "cond", "skip"), ("x", "cond")]
        for given in takes if conds else [("x",), ("x", "skip")]:
            if least <= len(given) <= len(names):
                for flip, skip_first in itertools.product((False, True), repeat=2):
                    roles = (tuple(wide), flip, res, skip, tuple(conds), given, skip_first)
                    yield Wave(*roles, tuple(names[: len(given)]))


def parts(module, kind):
    """The convolutions in a module, by name, and the names of those that are 1x1 and of others.

    Nothing where there are others than those with a stride of 1 and one group, or too many.
    """
    convs = {k: m for k, m in module.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    alike = all(
        isinstance(c, kind) and set(c.stride) == {1} and c.groups == 1 and not c.transposed
        for c in convs.values()
    )
    if not alike or len(convs) > 6:
        return {}, [], []
    thin = [k for k, c in convs.items() if set(c.kernel_size) == {1}]
    return convs, thin, [k for k in convs if k not in thin]
