"""How likely a WaveNet finds a sequence, by its network and by its sampler."""

import torch
import torch.nn.functional as F

from .. import kernels

WINDOW = 16384  # predictions made at once


@torch.no_grad()
def network_nats(model, codes, cond=None):
    """-log p(codes), in nats, by forward passes over windows that see all of their past.

    codes: (T,)    cond: (cond_channels, F), as in `WaveNet.forward`    returns: a number
    """
    hop, device = model.hop_length, next(model.parameters()).device
    total = 0.0
    for start in range(0, len(codes), WINDOW):
        # one more code than the receptive field: a window's first is there to be seen, not to see
        left = max(0, start - model.receptive_field) // hop * hop
        x = codes[None, left : start + WINDOW].to(device)
        frames = None if cond is None else cond[None, :, left // hop :].to(device)
        params = model(x, frames)[..., start - left :]
        total += nats(model, params, x[:, start - left :])
    return total


@torch.no_grad()
def sampler_nats(model, codes, cond=None, dtype="float32"):
    """-log p(codes), in nats, by what `kernels.wavenet_sample` draws from.

    codes, cond: as in `network_nats`    returns: a number
    """
    hop = model.hop_length
    window = -(-4096 // hop) * hop  # a window begins with a frame
    packed = kernels.pack(model.weights(), dtype)
    state = kernels.initial_state(packed, model.dilations, 1)
    device = state.rings.device
    pair = [2] if model.mixtures else []
    total = 0.0
    for start in range(0, len(codes), window):
        x = codes[None, start : start + window].to(device)
        _, state, params = kernels.wavenet_sample(
            packed,
            torch.zeros(1, x.shape[1], *pair, device=device),
            **model.sampling(1, None),
            state=state,
            prefix=x,
            cond=None if cond is None else cond[None, :, start // hop :].to(device),
            logits=True,
        )
        total += nats(model, params.transpose(1, 2), x)
    return total


def nats(model, params, codes):
    """-log p(codes) from what the network says of them, params (B, A or 3 M, T)."""
    params = params.double()
    if model.mixtures:
        return -kernels.logistic_mixture(params, codes[:, None], model.classes).sum().item()
    return F.cross_entropy(params, codes, reduction="sum").item()
