"""A game is what a model's `players()` lists: who descends which loss with which parameters.

Maximum likelihood is a game of one player: the model descends its mean negative log-likelihood.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .replay import Replay


@dataclass(frozen=True)
class Player:
    """Parameters and the loss that they descend.

    module: owns the parameters    loss(*batch): (), the mean over the batch's rows
    """

    name: str
    module: nn.Module
    loss: Callable[..., Tensor]


class Descent:
    """A player's move: a step of Adam down its loss, summed over the processes.

    On a GPU, and in one process, a step is replayed as a CUDA graph where it can be.

    gradient: (N + 2,), the N gradients, the loss and the wish to stop, for one all_reduce to carry
    tensors: Adam's moments by name    lr: (), where a GPU's Adam reads it

    Raises ValueError, TypeError: no parameters, several dtypes or devices, gaps in memory.
    """

    def __init__(self, player, betas):
        named = {n: p for n, p in player.module.named_parameters() if p.requires_grad}
        _check(player.name, named)
        self.player, parameters = player, list(named.values())
        device = parameters[0].device
        capturable = device.type == "cuda"
        self.adam = torch.optim.Adam(parameters, betas=betas, fused=True, capturable=capturable)
        self.lr = torch.zeros((), device=device) if capturable else None
        self.graphs = {}  # clip and dtype: Replay
        sizes = [p.numel() for p in parameters]
        self.gradient = parameters[0].detach().new_zeros(sum(sizes) + 2)
        self.tensors = {}
        for (name, p), part in zip(named.items(), self.gradient.split([*sizes, 2]), strict=False):
            # The fused kernel walks over addresses, so all have the parameter's strides.
            p.grad = part.as_strided(p.shape, p.stride())
            # Adam makes its state at the first step, too late for a checkpoint to be read into.
            self.adam.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for key, tensor in self.adam.state[p].items():
                self.tensors[f"{player.name}.{key}.{name}"] = tensor

    def step(self, batch, *, lr, clip, dtype, world, stop):
        """Returns (3,): the loss, the gradient's norm before clipping, whether any wants to stop.

        batch: this process's rows    dtype: of autocast    world: number of processes
        """
        batch = [rows.to(self.gradient.device, non_blocking=True) for rows in batch]
        if self.lr is None:
            self.adam.param_groups[0]["lr"] = lr
        else:
            self.lr.fill_(lr)
            self.adam.param_groups[0]["lr"] = self.lr
        self.gradient[-1] = stop
        move = partial(self.move, clip=clip, dtype=dtype, world=world)
        if self.lr is None or world > 1:
            return move(*batch)
        return self.graphs.setdefault((clip, dtype), Replay(move))(*batch)

    def move(self, *batch, clip, dtype, world):
        """`step`, of a batch on the device."""
        with torch.autocast(self.gradient.device.type, dtype, enabled=dtype != torch.float32):
            loss = self.player.loss(*batch) / world
        if loss.dim():
            name, shape = self.player.name, tuple(loss.shape)
            raise ValueError(f"game: {name}'s loss expected to be a scalar, got shape {shape}")
        self.gradient[:-1].zero_()
        loss.backward()
        self.gradient[-2] = loss.detach()
        if world > 1:
            dist.all_reduce(self.gradient)
        slope = self.gradient[:-2]
        norm = torch.linalg.vector_norm(slope)
        if clip < math.inf:
            slope.mul_(clip / norm.clamp(min=clip))
        self.adam.step()
        return torch.stack([self.gradient[-2], norm, self.gradient[-1]])


class Game:
    """What is played: a model, its averaged copy and the descent of its player.

    Raises ValueError, TypeError: a game that is not of one player, parameters that cannot descend.
    """

    def __init__(self, model, betas):
        if len(players := model.players()) != 1:
            raise ValueError(f"game: expected a game of one player, got {len(players)}")
        self.model, self.averaged = model.train(), copy.deepcopy(model)
        self.weights, self.averages = (
            [p for p in module.parameters() if p.requires_grad] for module in (model, self.averaged)
        )
        self.descent = Descent(players[0], betas)
        self.device = self.descent.gradient.device

    def tensors(self, step):
        """The state by name; all but "step" is live."""
        parts = {
            "model": self.model.state_dict(),
            "averaged": self.mean().state_dict(),
            "adam": self.descent.tensors,
        }
        named = {
            f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()
        }
        return {"step": torch.tensor(step, device=self.device), **named}

    @torch.no_grad()
    def average(self, decay):
        """averaged ← decay·averaged + (1 - decay)·model"""
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    @torch.no_grad()
    def mean(self):
        """The averaged model, with the model's buffers as they are."""
        for average, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)
        return self.averaged.eval()


def _check(player, parameters):
    if not parameters:
        raise ValueError(f"game: {player} expected to have parameters to train, got none")
    kinds = {(str(p.dtype), str(p.device)) for p in parameters.values()}
    if len(kinds) > 1:
        raise TypeError(f"game: expected parameters of one dtype and device, got {sorted(kinds)}")
    for name, p in parameters.items():
        if p.stride() != torch.empty_like(p).stride():
            raise ValueError(f"game: {name} expected to have no gaps, got strides {p.stride()}")
