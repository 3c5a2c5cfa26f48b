"""Whether two modules compute the same: values and gradients of random copies of them."""

import contextlib
import inspect

import torch
from torch import nn

TOLERANCE = {  # of the largest value
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
EXTENTS = (6, 1, 9)


def probe(module, become, inputs):
    """A note, maybe empty, if a module that `become` has changed computes the same; else None.

    Both are copies without hooks, with random weights, in float64 and in the module's dtype, on
    several sizes, in training and in evaluation. inputs: of an extent, the arguments of a call
    """
    note, own = "", next(module.parameters()).dtype
    with inner():
        for dtype in dict.fromkeys((torch.float64, own)):
            for training in (False, True):
                for extent in EXTENTS:
                    first = copied(module, dtype, fresh=True)
                    second = copied(first, dtype)
                    become(second)
                    for m in (*first.modules(), *second.modules()):
                        m.training = training
                    remark = compare(first, second, placed(inputs(extent), first, dtype))
                    if remark is None:
                        return None
                    note = note or remark
    return note


@contextlib.contextmanager
def inner():
    """What a probe runs in: its own random numbers, gradients, and no autocast."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        torch.manual_seed(0)
        yield


def placed(inputs, module, dtype):
    """Random arguments on a module's device and in its dtype."""
    device = next(module.parameters()).device

    def place(x):
        if isinstance(x, tuple):
            return tuple(map(place, x))
        return x.to(device, dtype if x.is_floating_point() else None)

    return place(inputs)


def compare(theirs, ours, inputs):
    """A note if two modules agree on the same inputs, else None."""
    results = [outcome(module, inputs) for module in (theirs, ours)]
    (kind, outputs, grads), (other_kind, others, other_grads) = results
    same = kind is other_kind and len(outputs) == len(others)
    if not same or not all(map(near, outputs, others)):
        return None
    note = ""
    for name, a in grads.items():
        b = other_grads[name]
        if (a is None) != (b is None) and name.rpartition(".")[2] not in ("weight_g", "weight_v"):
            return None
        if a is None or b is None:
            continue
        if not near(a, b) and name != "input" and name.rpartition(".")[2] == "weight":
            # what our outputs do not depend on has no gradient
            a, note = a * (b != 0), "; its masked weights had gradients, and have none now"
        if not near(a, b):
            return None
    same = zip(theirs.buffers(), ours.buffers(), strict=True)
    return note if all(torch.equal(a, b) for a, b in same) else None


def outcome(module, inputs):
    """What kind of output a module has, the tensors in it, and gradients of a random loss."""
    inputs = with_grad(inputs)
    torch.manual_seed(0)
    y = module.forward(*inputs)
    outputs = tensors(y)
    leaves = {k: p for k, p in module.named_parameters() if p.requires_grad}
    for name, m in module.named_modules():
        # weight_norm's hook leaves its weight here
        if isinstance(m.__dict__.get("weight"), torch.Tensor):
            leaves[f"{name}.weight"] = m.__dict__["weight"]
    leaves |= {f"input.{i}": x for i, x in enumerate(tensors(inputs)) if x.requires_grad}
    torch.manual_seed(1)
    loss = sum((v * torch.randn_like(v)).sum() for v in outputs)
    found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
    return type(y), [v.detach() for v in outputs], dict(zip(leaves, found, strict=True))


def with_grad(x):
    if isinstance(x, tuple):
        return tuple(map(with_grad, x))
    return x.detach().requires_grad_(x.is_floating_point())


def tensors(x):
    """The tensors of a tensor, or of tuples and lists of them. Raises TypeError for all else."""
    if isinstance(x, torch.Tensor):
        return [x]
    if not isinstance(x, (tuple, list)):
        raise TypeError(f"expected tensors, got {type(x).__name__}")
    return [v for part in x for v in tensors(part)]


def near(a, b):
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = max(a.abs().max().item(), 1e-30) if a.numel() else 1
    return not ((a - b).abs() > TOLERANCE[a.dtype] * scale).any()


def copied(module, dtype, fresh=False):
    """A module without hooks whose floating tensors are copies in a dtype; `fresh`: random ones.

    Of frozen parameters those of convolutions are random alone: others may be masks.
    """

    def tensor(x, fresh):
        if not x.is_floating_point():
            return x.clone()
        y = x.detach().to(dtype, copy=True)
        return y.normal_().mul_(max(1, y[:1].numel()) ** -0.5) if fresh else y

    def value(x):
        if isinstance(x, torch.Tensor):
            return tensor(x, False)
        return type(x)(map(value, x)) if type(x) in (list, tuple) else x

    def parameter(name, p):
        own = name in ("weight", "bias") and isinstance(module, nn.modules.conv._ConvNd)
        learned = p.requires_grad or own
        return nn.Parameter(tensor(p, fresh and learned), requires_grad=learned)

    other = object.__new__(type(module))
    other.__dict__ = {key: value(x) for key, x in module.__dict__.items()}
    empty = {k: v for k, v in nn.Module().__dict__.items() if "hook" in k or k[:5] == "_back"}
    other.__dict__ |= empty
    if isinstance(other.__dict__.get("weight"), torch.Tensor):
        other.__dict__["weight"] = tensor(module.weight, fresh).requires_grad_()
    other._parameters = {
        k: p if p is None else parameter(k, p) for k, p in module._parameters.items()
    }
    other._buffers = {k: b if b is None else tensor(b, False) for k, b in module._buffers.items()}
    other._modules = {
        k: m if m is None else copied(m, dtype, fresh) for k, m in module._modules.items()
    }
    return other


def parameters_of(forward):
    """The names of what a forward pass takes, and how many of them it must be given."""
    taken = [p for p in inspect.signature(forward).parameters.values() if p.kind < p.VAR_POSITIONAL]
    return [p.name for p in taken], sum(p.default is p.empty for p in taken)
