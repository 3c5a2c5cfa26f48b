"""Games: what each loss is at its optimum, and that players take the turns that they should."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.game import (
    DIVERGENCES,
    FGAN,
    GAMES,
    Game,
    HistoricalAverage,
    LeastSquares,
    Minimax,
    NonSaturating,
    Player,
    feature_matching,
    gradient_penalty,
    unroll,
)
from fastgen.train import train
from fastgen.verify.games import KNOWN

X = torch.linspace(-12, 13, 20_001, dtype=torch.float64)
STEP = float(X[1] - X[0])
LOG_RATIO = -(X**2) / 2 + (X - 1) ** 2 / 2  # of p = N(0, 1) and q = N(1, 1)
P, Q = (torch.exp(-((X - m) ** 2) / 2) / math.sqrt(2 * math.pi) * STEP for m in (0, 1))


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "total-variation"])
def test_other_logits_bound_it_from_below(name):
    f = DIVERGENCES[name]
    best = f.logit(LOG_RATIO.exp())
    for move in (0.1 * torch.sin(3 * X), torch.full_like(X, -0.05)):
        bound = (P * f.real(best + move) - Q * f.fake(best + move)).sum()
        assert bound < KNOWN[name] - 1e-5


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_are_finite_at_100(name, dtype):
    game = GAMES[name]
    logits = [torch.tensor([-100.0, -31.0, 0.0, 33.0, 100.0], dtype=dtype, requires_grad=True)]
    logits.append(logits[0].detach().flip(0).requires_grad_())
    for loss in (game.discriminator(*logits), game.generator(logits[0])):
        assert loss.isfinite()
        for grad in torch.autograd.grad(loss, logits, allow_unused=True):
            assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("name", GAMES)
def test_losses_have_the_gradients_of_their_values(name):
    torch.manual_seed(0)
    d, g = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(GAMES[name].discriminator, (d, g))
    assert torch.autograd.gradcheck(GAMES[name].generator, (g,))
    assert torch.autograd.gradgradcheck(GAMES[name].discriminator, (d, g))


def test_a_generator_that_loses_learns_from_the_nonsaturating_game_alone():
    g = torch.tensor([-10.0], requires_grad=True)  # D says: sigmoid(-10) of being data
    eps = torch.sigmoid(g).item()
    [saturated] = torch.autograd.grad(Minimax().generator(g), g)
    [steep] = torch.autograd.grad(NonSaturating().generator(g), g)
    assert saturated.item() == pytest.approx(-eps)
    assert steep.item() == pytest.approx(eps - 1)


def test_smoothing_is_one_sided():
    d, g = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    want = F.binary_cross_entropy_with_logits(d, torch.full_like(d, 0.9))
    want += F.binary_cross_entropy_with_logits(g, torch.zeros_like(g))
    torch.testing.assert_close(Minimax(smooth=0.1).discriminator(d, g), want)


def test_games_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match=r"smooth: expected in \[0, 1\), got 1"):
        NonSaturating(smooth=1)
    with pytest.raises(ValueError, match=r"expected one of total-variation, kl.*got 'kullback'"):
        FGAN("kullback")
    with pytest.raises(ValueError, match="one shape"):
        gradient_penalty(lambda x: x, torch.ones(2, 3), torch.ones(2, 4))


def test_a_divergence_of_ones_own():
    kl = FGAN(DIVERGENCES["kl"], saturating=False)
    g = torch.randn(5)
    torch.testing.assert_close(kl.generator(g), -g.mean())


def test_the_penalty_of_a_plane_is_its_slope():
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(2, 6, 2, dtype=torch.float64)
    penalty = gradient_penalty(lambda v: v @ slope, x, y)
    assert penalty.item() == pytest.approx(16)
    [grad] = torch.autograd.grad(penalty, slope)
    torch.testing.assert_close(grad, 8 * slope.detach() / 5)


def test_features_and_history():
    a, b = torch.ones(4, 3), torch.zeros(8, 3)
    assert feature_matching(a, b) == 3
    line = nn.Linear(1, 1)
    past = HistoricalAverage(line)
    seen = []
    for value in (1.0, 3.0, 8.0):
        nn.init.constant_(line.weight, value)
        nn.init.constant_(line.bias, 0)
        seen.append(past(line).item())
    assert seen == pytest.approx([0, 1, 16])
    past.eval()
    past(line).backward()
    assert line.weight.grad.item() == pytest.approx(8)
    assert past.state_dict()["mean"][0] == pytest.approx(4)


def test_history_of_short_numbers_is_counted_on():
    line = nn.Linear(1, 1).bfloat16()
    past = HistoricalAverage(line)
    for value in [1.0] * 300 + [4.0] * 300:
        nn.init.constant_(line.weight, value)
        assert past(line).dtype == torch.bfloat16
    assert past.count == 600
    assert past.mean[0] == pytest.approx(2.5)


class Saddle(nn.Module):
    """V(x, y) = x y; y may have steps and a rate of its own."""

    def __init__(self, **options):
        super().__init__()
        self.x, self.y = (nn.ParameterList([torch.ones((), dtype=torch.float64)]) for _ in range(2))
        self.options = options

    def players(self):
        return [
            Player("x", self.x, lambda: self.x[0] * self.y[0]),
            Player("y", self.y, lambda: -self.x[0] * self.y[0], **self.options),
        ]


def test_a_player_of_several_steps_and_of_another_rate():
    model = Saddle(steps=3, lr=2.0)
    game = Game(model, "sgd", (0.0, 0.0))
    assert game.batches == 3
    found = game.turn([()] * 3, lr=0.1, clip=math.inf, dtype=torch.float32, world=1, stop=False)
    x = 1 - 0.1 * 1.0
    y = 1 + 3 * 0.2 * x
    assert (model.x[0].item(), model.y[0].item()) == pytest.approx((x, y))
    assert found[:, 0].tolist() == pytest.approx([1.0, -x * (1 + 2 * 0.2 * x)])


def test_unrolling_keeps_the_module_as_it_is():
    torch.manual_seed(0)
    line = nn.Linear(2, 1)
    weight = line.weight.detach().clone()
    theta = unroll(line, lambda p: p["weight"].square().sum() + p["bias"].sum(), 2, lr=0.1)
    assert torch.equal(line.weight, weight)
    assert not torch.equal(theta["weight"], weight)
    assert unroll(line, lambda p: p["bias"], 0, lr=0.1)["weight"] is line.weight


def test_unrolling_refuses_what_it_cannot_do():
    line = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="steps: expected >= 0, got -1"):
        unroll(line, lambda p: p["bias"], -1, lr=0.1)
    with pytest.raises(ValueError, match="optimizer: expected 'adam' or 'sgd', got 'lion'"):
        unroll(line, lambda p: p["bias"], 1, lr=0.1, optimizer="lion")


def test_least_squares_at_its_targets():
    game = LeastSquares()
    assert game.discriminator(torch.ones(3), torch.zeros(3)) == 0
    assert game.generator(torch.ones(3)) == 0


@pytest.mark.parametrize("slope", [1.0, 1e-5, 1e-7, 0.0])
def test_unrolled_adam_takes_the_steps_of_adam(slope):
    w = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    holder = nn.ParameterDict({"w": w, "aside": nn.Parameter(torch.ones(2))})
    loss = lambda p: slope * p["w"].square().sum()  # noqa: E731
    theta = unroll(holder, loss, 4, lr=0.1, betas=(0.5, 0.99))
    [again] = torch.autograd.grad(theta["w"].sum(), w)
    assert again.isfinite().all()
    assert torch.equal(theta["aside"], holder["aside"])
    adam = torch.optim.Adam([w], lr=0.1, betas=(0.5, 0.99))
    for _ in range(4):
        adam.zero_grad()
        loss(holder).backward()
        adam.step()
    torch.testing.assert_close(theta["w"], w)


@pytest.mark.parametrize("name", ["minimax", "wasserstein", *(n for n in GAMES if n[:2] == "f-")])
def test_what_one_player_wins_the_other_loses(name):
    d, g = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    both = GAMES[name].discriminator(d, g) + GAMES[name].generator(g)
    [slope] = torch.autograd.grad(both, g, allow_unused=True)
    assert slope is None or slope.abs().max() < 1e-12


def test_each_step_of_a_turn_has_a_batch_of_its_own(tmp_path):
    seen = {"x": [], "y": []}

    class Recorded(Saddle):
        def players(self):
            def watch(player):
                def loss(i):
                    seen[player.name].append(i.tolist())
                    return player.loss()

                return dataclasses.replace(player, loss=loss)

            return [watch(player) for player in super().players()]

    source = type("Source", (), {"batch": lambda self, i, size: (torch.full((size,), i),)})()
    for steps in (1, 2):  # the second goes on where the first stopped
        options = {"steps": steps, "batch_size": 1, "progress": False}
        model = Recorded(steps=3)
        model.config = {}
        train(model, source, out=tmp_path, **options)
    assert seen == {"x": [[0], [3]], "y": [[i] for i in range(6)]}
