"""The gated dilated causal convolution of WaveNet, with its residual and skip products.

    a[t] = bias + sum_k weight[:, :, k] x[t - (K - 1 - k) dilation] + cond(t)
    h[t] = tanh(a[:H, t]) * sigmoid(a[H:, t])
    out  = x + res_weight h + res_bias
    skip_out = skip + skip_weight h + skip_bias

Left of the sequence stand zeros. cond(t) interpolates linearly between the frames of `cond`,
frame f at t = f hop, the last one held. (van den Oord et al. 2016, equations 2 and 5, figure 4.)
"""

import torch
import torch.nn.functional as F


def upsample_ref(cond, hop, T):
    """Frames to samples, linearly: frame f at sample f * hop, the last one held.

    cond: (B, C, F)    returns: (B, C, T)
    """
    t = torch.arange(T, device=cond.device)
    last = cond.shape[-1] - 1
    left = (t // hop).clamp(max=last)
    right = (left + 1).clamp(max=last)
    a = ((t % hop).to(cond.dtype) / hop).to(cond.dtype)
    return cond[..., left] + a * (cond[..., right] - cond[..., left])


def wavenet_layer_ref(
    x,  # (B, R, T)
    skip,  # (B, S, T)
    weight,  # (2H, R, K)
    bias,  # (2H,)
    res_weight,  # (R, H) or None: the last layer has no residual
    res_bias,  # (R,) or None
    skip_weight,  # (S, H)
    skip_bias,  # (S,)
    cond=None,  # (B, 2H, F)
    hop=1,
    dilation=1,
):
    """`wavenet_layer` in plain torch. Returns out (B, R, T) or None, and skip_out (B, S, T)."""
    pad = (weight.shape[-1] - 1) * dilation
    a = F.conv1d(F.pad(x, (pad, 0)), weight, bias, dilation=dilation)
    if cond is not None:
        a = a + upsample_ref(cond, hop, x.shape[-1])
    f, g = a.chunk(2, dim=1)
    h = torch.tanh(f) * torch.sigmoid(g)
    out = None if res_weight is None else x + F.conv1d(h, res_weight[..., None], res_bias)
    return out, skip + F.conv1d(h, skip_weight[..., None], skip_bias)


wavenet_layer = wavenet_layer_ref
