"""How many modes of a known mixture samples reach, and how faithfully."""

import math
from typing import NamedTuple

import torch


class Modes(NamedTuple):
    """What `modes` finds."""

    covered: int  # centres that some sample is close to
    share: float  # of samples that are close to any
    reverse_kl: float  # nats, of the close samples' centres from the even distribution


def modes(x, centres, sd, within=3.0):
    """Count the modes that samples cover; one within 3 standard deviations of a centre is close.

    x: (N, D)    centres: (K, D)    sd: of the modes    returns: `Modes`
    Raises ValueError for shapes that do not fit, an sd <= 0 and centres that are not distinct.
    Metz et al. 2017, Unrolled Generative Adversarial Networks, section 3.3.1; Lin et al. 2018,
    PacGAN, section 4.1.
    """
    if x.dim() != 2 or centres.dim() != 2 or x.shape[1] != centres.shape[1]:
        got = f"{tuple(x.shape)} and {tuple(centres.shape)}"
        raise ValueError(f"modes: expected x (N, D) and centres (K, D), got {got}")
    if not sd > 0:
        raise ValueError(f"modes: sd: expected > 0, got {sd}")
    if len(centres.unique(dim=0)) < len(centres):
        raise ValueError("modes: expected centres that differ, got some twice")
    if not len(x):
        return Modes(0, 0.0, math.inf)
    distance, nearest = torch.cdist(x.double(), centres.double()).min(1)
    close = nearest[distance <= within * sd]
    count = torch.bincount(close, minlength=len(centres)).double()
    if not len(close):
        return Modes(0, 0.0, math.inf)
    p = count / count.sum()
    kl = torch.special.xlogy(p, p * len(centres)).sum().item()
    return Modes(int((count > 0).sum()), len(close) / len(x), kl)
