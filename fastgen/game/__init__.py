"""A game is what a model's `players()` lists: who descends which loss with which parameters.

Maximum likelihood is a game of one player: the model descends its mean negative log-likelihood. A
GAN's is one of two (Goodfellow et al. 2014, Generative Adversarial Nets).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..replay import Replay
from .adversarial import (
    FGAN,
    GAMES,
    Hinge,
    HistoricalAverage,
    LeastSquares,
    MaximumLikelihood,
    Minimax,
    NonSaturating,
    Wasserstein,
    feature_matching,
    gradient_penalty,
)
from .divergences import DIVERGENCES, Divergence
from .unroll import unroll

__all__ = [
    "DIVERGENCES",
    "FGAN",
    "GAMES",
    "Divergence",
    "Game",
    "Hinge",
    "HistoricalAverage",
    "LeastSquares",
    "MaximumLikelihood",
    "Minimax",
    "NonSaturating",
    "Player",
    "Wasserstein",
    "feature_matching",
    "gradient_penalty",
    "unroll",
]

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}  # of an optimizer
STATISTICS = ("running_mean", "running_var")  # buffers of normalisations


@dataclass(frozen=True)
class Player:
    """Parameters and the loss that they descend.

    module: owns the parameters    loss(*batch): (), the mean over the batch's rows
    steps: of a turn, each on a batch of its own    lr: factor of the game's learning rate
    """

    name: str
    module: nn.Module
    loss: Callable[..., Tensor]
    steps: int = 1
    lr: float = 1.0


class Descent:
    """A player's moves: steps down its loss, summed over the processes.

    optimizer: "adam", or "sgd" with the momentum betas[0]    eps: that Adam adds to each root
    gradient: (N + 2,), the N gradients, the loss and the wish to stop, for one all_reduce to carry
    tensors: the optimizer's by name    lr: (), where a GPU's optimizer reads it

    Raises ValueError, TypeError: no parameters, several dtypes or devices, gaps in memory.
    """

    def __init__(self, player, optimizer, betas, eps):
        named = {n: p for n, p in player.module.named_parameters() if p.requires_grad}
        _check(player, named)
        self.player, self.parameters = player, list(named.values())
        device = self.parameters[0].device
        capturable = device.type == "cuda"
        if optimizer == "adam":
            options = {"betas": betas, "eps": eps, "fused": True, "capturable": capturable}
            self.optimizer = torch.optim.Adam(self.parameters, **options)
        else:
            self.optimizer = torch.optim.SGD(self.parameters, momentum=betas[0], fused=True)
        self.lr = torch.zeros((), device=device) if capturable else None
        sizes = [p.numel() for p in self.parameters]
        self.gradient = self.parameters[0].detach().new_zeros(sum(sizes) + 2)
        self.tensors = {}
        for (name, p), part in zip(named.items(), self.gradient.split([*sizes, 2]), strict=False):
            # The fused kernel walks over addresses, so all have the parameter's strides.
            p.grad = part.as_strided(p.shape, p.stride())
            # Optimizers make their state at the first step, too late to read a checkpoint into.
            state = {key: torch.zeros_like(p) for key in MOMENTS[optimizer]}
            if optimizer == "adam":
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            self.optimizer.state[p] = state
            for key, tensor in state.items():
                self.tensors[f"{player.name}.{key}.{name}"] = tensor

    def prepare(self, lr, stop):
        """Say what the next moves' learning rate is, and whether this process wants to stop."""
        rate = lr * self.player.lr
        self.optimizer.param_groups[0]["lr"] = rate if self.lr is None else self.lr.fill_(rate)
        self.gradient[-1] = stop

    def slope(self, batch, *, clip, dtype, world):
        """Set the gradient, of this process's rows; returns (3,), of what `Game.turn` does."""
        with torch.autocast(self.gradient.device.type, dtype, enabled=dtype != torch.float32):
            loss = self.player.loss(*batch)
        if loss.dim():
            name, shape = self.player.name, tuple(loss.shape)
            raise ValueError(f"game: {name}'s loss expected to be a scalar, got shape {shape}")
        # A loss may depend on the other players' parameters too, and on some of its own not at all.
        options = {"allow_unused": True, "materialize_grads": True}
        grads = torch.autograd.grad(loss, self.parameters, **options)
        torch._foreach_copy_([p.grad for p in self.parameters], grads)
        self.gradient[-2] = loss.detach()
        if world > 1:
            self.gradient[:-1] /= world
            dist.all_reduce(self.gradient)
        slope = self.gradient[:-2]
        norm = torch.linalg.vector_norm(slope)
        if clip < math.inf:
            slope.mul_(clip / norm.clamp(min=clip))
        return torch.stack([self.gradient[-2], norm, self.gradient[-1]])


class Game:
    """What is played: a model, its averaged copy and the descents of its players.

    In a turn each player in its order does its steps, each against what the others are by then; of
    a simultaneous game all gradients are taken before any step. On a GPU, and in one process, a
    turn is replayed as a CUDA graph where it can be.

    Raises ValueError, TypeError: players that cannot play, parameters that cannot descend.
    """

    def __init__(self, model, optimizer, betas, simultaneous=False, eps=1e-8):
        players = model.players()
        _check_players(players, simultaneous)
        self.model, self.averaged = model.train(), copy.deepcopy(model)
        self.weights, self.averages = (
            [p for p in module.parameters() if p.requires_grad] for module in (model, self.averaged)
        )
        pairs = zip(self.averaged.modules(), model.modules(), strict=True)
        self.modules = [(own._buffers, module) for own, module in pairs if module._buffers]
        self.descents = [Descent(player, optimizer, betas, eps) for player in players]
        self.optimizer = optimizer
        self.batches = max(player.steps for player in players)  # of a turn
        self.simultaneous = simultaneous
        self.graphs = {}  # clip and dtype: Replay
        self.device = self.descents[0].gradient.device

    @property
    def names(self):
        return [descent.player.name for descent in self.descents]

    def turn(self, batches, *, lr, clip, dtype, world, stop):
        """A turn on as many batches as the game's `batches`, tuples of this process's rows.

        lr: before the players' factors    dtype: of autocast    world: number of processes
        returns: (P, 3), of each player's last step the loss, the gradient's norm before clipping,
        and whether any process wants to stop
        """
        for descent in self.descents:
            descent.prepare(lr, stop)
        rows = [t.to(self.device, non_blocking=True) for batch in batches for t in batch]
        moves = partial(self.moves, clip=clip, dtype=dtype, world=world)
        if self.descents[0].lr is None or world > 1:
            return moves(*rows)
        return self.graphs.setdefault((clip, dtype), Replay(moves))(*rows)

    def moves(self, *rows, **options):
        """`turn`, of what its batches hold, one after another, on the device."""
        width = len(rows) // self.batches
        batches = [rows[i * width : (i + 1) * width] for i in range(self.batches)]
        found = []
        for descent in self.descents:
            for batch in batches[: descent.player.steps]:
                numbers = descent.slope(batch, **options)
                if not self.simultaneous:
                    descent.optimizer.step()
            found.append(numbers)
        for descent in self.descents if self.simultaneous else ():
            descent.optimizer.step()
        return torch.stack(found)

    def tensors(self, step):
        """The state by name; all but "step" is live."""
        parts = {
            "model": self.model.state_dict(),
            "averaged": self.mean().state_dict(),
            self.optimizer: {k: t for descent in self.descents for k, t in descent.tensors.items()},
        }
        named = {
            f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()
        }
        return {"step": torch.tensor(step, device=self.device), **named}

    @torch.no_grad()
    def average(self, decay):
        """averaged ← decay·averaged + (1 - decay)·model, of weights and of running statistics"""
        pairs = [(own, its) for own, its, averages in self.buffers() if averages]
        owns, its = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        torch._foreach_lerp_(self.averages + owns, self.weights + its, 1 - decay)

    @torch.no_grad()
    def mean(self):
        """The averaged model, with the model's buffers as they are where they are not averaged."""
        for own, its, averages in self.buffers():
            if not averages:
                own.copy_(its)
        return self.averaged.eval()

    def buffers(self):
        """The buffers of the averaged model and of the model, and whether they are averaged."""
        for own, module in self.modules:
            for name, buffer in module._buffers.items():  # a module may put another in its place
                if buffer is not None:
                    yield own[name], buffer, name in STATISTICS and buffer.is_floating_point()


def _check_players(players, simultaneous):
    names, owners = [player.name for player in players], {}
    if not players or len(set(names)) < len(names):
        raise ValueError(f"game: expected players of different names, got {names}")
    for player in players:
        if not isinstance(player.steps, int) or player.steps < 1 or not 0 < player.lr < math.inf:
            got = f"{player.steps!r} and {player.lr!r}"
            raise ValueError(f"game: {player.name}'s steps >= 1 and lr > 0 expected, got {got}")
        if simultaneous and player.steps > 1:
            got = f"{player.name}'s {player.steps}"
            raise ValueError(f"game: expected one step a turn of a simultaneous game, got {got}")
        for name, p in player.module.named_parameters():
            other = owners.setdefault(p, player.name)
            if p.requires_grad and other != player.name:
                raise ValueError(f"game: {name} expected one owner, got {other} and {player.name}")


def _check(player, parameters):
    if not parameters:
        raise ValueError(f"game: {player.name} expected to have parameters to train, got none")
    kinds = {(str(p.dtype), str(p.device)) for p in parameters.values()}
    if len(kinds) > 1:
        raise TypeError(f"game: expected parameters of one dtype and device, got {sorted(kinds)}")
    for name, p in parameters.items():
        if p.stride() != torch.empty_like(p).stride():
            raise ValueError(f"game: {name} expected to have no gaps, got strides {p.stride()}")
