"""The linear layer of MADE (Germain et al. 2015)."""

import torch
import torch.nn.functional as F
from torch import nn


class MaskedLinear(nn.Linear):
    """A Linear whose outputs see only some of the inputs.

        y = (weight where mask, else 0) x + bias

    mask: (out_features, in_features), true or not zero where an output sees an input. It is a
    buffer that the state_dict, Linear's, leaves out: whoever builds the layer knows it, and a layer
    may be given another one in `mask`. Weights that it shuts out keep their values and have zero
    gradient. x: (..., in_features)    returns: (..., out_features)
    Raises ValueError for a mask of another shape.
    """

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, mask):
        super().__init__(in_features, out_features, bias, device, dtype)
        mask = torch.as_tensor(mask, device=device)
        if mask.shape != self.weight.shape:
            expected, got = tuple(self.weight.shape), tuple(mask.shape)
            raise ValueError(f"MaskedLinear: mask: expected {expected}, got {got}")
        self.register_buffer("mask", mask != 0, persistent=False)

    def forward(self, x):
        return F.linear(x, self.weight.masked_fill(~self.mask, 0), self.bias)


def degree_mask(inputs, outputs, strict=False):
    """What each output sees: (outputs, inputs), true for inputs of no higher degree.

    Of lower degree, if `strict`, as the last layer of a MADE wants it. inputs, outputs: degrees
    """
    inputs, outputs = torch.as_tensor(inputs), torch.as_tensor(outputs)[:, None]
    return inputs < outputs if strict else inputs <= outputs
