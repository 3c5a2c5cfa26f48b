"""Each check of a model of images fails where the model is broken in its way."""

from functools import partial

import pytest
import torch

from fastgen.tractable import nade
from fastgen.tractable.binary import Binary
from fastgen.tractable.fvbn import FVSBN
from fastgen.tractable.made import MADE
from fastgen.tractable.nade import NADE
from fastgen.tractable.pixelcnn import GatedPixelCNN, PixelCNN
from fastgen.tractable.pixelcnnpp import PixelCNNpp
from fastgen.verify import images as verify


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def failing(name):
    found = verify.verify(name)
    assert len(found) == 3 + len(verify.MODELS[name][1]) - 1
    return [i for i, check in enumerate(found) if not check.ok]


SUM, PAST, FREQUENCIES, SAME = range(4)


@pytest.mark.parametrize("name", verify.MODELS)
def test_all_hold_and_leave_the_generator_alone(name):
    before, told = torch.get_rng_state(), []
    found = verify.verify(name, told.append)
    assert [check for check in found if not check.ok] == []
    assert told == found
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [make for makers, _ in verify.MODELS.values() for make in makers])
def test_models_are_neither_flat_nor_sharp(make):
    with torch.no_grad():
        log_p = verify.small(make).log_prob(verify.images()).double()
    assert 4 < -(log_p.exp() * log_p).sum() < 6.1  # nats; of equal images 6.24


def test_a_leak_of_the_present_is_found(monkeypatch):
    monkeypatch.setattr(FVSBN, "logits", lambda self, x, s=0: x @ self.weight.tril(0).T + self.bias)
    assert {SUM, PAST} <= {*failing("fvbn")}


def test_a_leak_of_the_last_pixel_to_the_first_is_found(monkeypatch):
    logits = NADE.logits
    leak = lambda self, x, s=0: logits(self, x) + x[:, -1:] * (torch.arange(9) == 0)  # noqa: E731
    monkeypatch.setattr(NADE, "logits", leak)
    assert {SUM, PAST} <= {*failing("nade")}


def test_a_pixel_that_is_not_seen_is_found(monkeypatch):
    logits = NADE.logits
    blind = lambda self, x, s=0: logits(self, x * (torch.arange(9) != 4))  # noqa: E731
    monkeypatch.setattr(NADE, "logits", blind)
    assert PAST in failing("nade")


def test_wrong_masks_are_found(monkeypatch):
    masked = MADE.masked

    def lax(self, s):
        layers, (_, bias), direct = masked(self, s)
        return layers, (self.out.weight, bias), direct

    monkeypatch.setattr(MADE, "masked", lax)
    assert {SUM, PAST} <= {*failing("made")}


def test_a_mixture_that_forgets_an_order_is_found(monkeypatch):
    choose = Binary.choose
    monkeypatch.setattr(Binary, "choose", lambda *args: (choose(*args)[0] * 0, args[2]))
    assert FREQUENCIES in failing("made")


def test_a_cached_sampler_that_lags_is_found(monkeypatch):
    def stale(self, n, s=0):
        a = self.c.expand(n, -1)
        before = a
        for W, V, b in zip(self.W, self.V, self.b, strict=True):
            x = yield torch.sigmoid(before) @ V + b
            before, a = a, a + x[:, None] * W

    monkeypatch.setattr(NADE, "steps", stale)
    assert {FREQUENCIES, SAME} <= {*failing("nade")}


def test_a_strided_sampler_without_a_skip_is_found(monkeypatch):
    weights = PixelCNNpp.stack

    def cut(self):
        *found, (layer, resnet), head = weights(self)
        return [*found, (layer._replace(skip=-1), resnet), head]

    monkeypatch.setattr(PixelCNNpp, "stack", cut)
    found = verify.verify("pixelcnnpp")
    assert [i for i, check in enumerate(found) if not check.ok] == [FREQUENCIES, SAME]


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
def test_a_pixelcnn_that_sees_itself_is_found(monkeypatch, kind):
    forward = kind.logits
    leak = lambda self, x, *given: forward(self, x, *given) + torch.cat([x, -x], 1)  # noqa: E731
    monkeypatch.setattr(kind, "logits", leak)
    assert {SUM, PAST, FREQUENCIES, SAME} <= {*failing("pixelcnn")}


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
def test_a_pixelcnn_that_does_not_see_a_column_is_found(monkeypatch, kind):
    forward = kind.logits

    def blind(self, x, *given):
        return forward(self, x * (torch.arange(3) != 1), *given)

    monkeypatch.setattr(kind, "logits", blind)
    assert PAST in failing("pixelcnn")


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
def test_a_pixelcnn_whose_sampler_is_warm_is_found(monkeypatch, kind):
    cached = kind.sample_cached
    warm = lambda self, u, given, t, *rest: cached(self, u, given, t * 1.5, *rest)  # noqa: E731
    monkeypatch.setattr(kind, "sample_cached", warm)
    assert {FREQUENCIES, SAME} <= {*failing("pixelcnn")}


def test_the_bits_of_exact_models_do_not_depend_on_the_rows():
    for make in (partial(NADE, (1, 3, 3), 16), partial(MADE, (1, 3, 3), (50,))):
        model, x = verify.exact(make), verify.images()
        whole = model(x)
        for rows in (1, 2, 3, 7, 100):
            assert torch.equal(model(x[-rows:]), whole[-rows:])
    assert nade.CHUNK > 9
