import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from fastgen import PixelCNNpp, checkpoint, kernels, weights
from fastgen.images import prepare
from fastgen.kernels.logistic_mixture import log_mass
from fastgen.train import train

SMALL = {"resnets": 1, "channels": 6, "stages": 2, "mixtures": 3, "dropout": 0.0, "levels": 5}
SMALL |= {"colors": 1, "height": 4, "width": 5}


def small(seed=0, **config):
    """A model in float64 whose distributions are far from even."""
    torch.manual_seed(seed)
    model = PixelCNNpp(**{**SMALL, **config}).double()
    for p in model.parameters():
        nn.init.normal_(p, std=1.5 * p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    with torch.no_grad():
        M, C = model.config["mixtures"], model.config["colors"]
        normalized = model.config["weight_norm"]
        out = model.out.parametrizations.weight.original0 if normalized else model.out.weight
        out[: M * (1 + C)] *= 2
        model.out.bias[M * (1 + C) : M * (1 + 2 * C)] -= 1.5  # sharp logistics
    return model


CONFIGS = {
    "grey": {},
    "colors": {"colors": 3},
    "plain weights": {"colors": 3, "weight_norm": False},
    "one stage": {"stages": 1, "resnets": 2},
    "three stages": {"stages": 3, "height": 5, "width": 6},
    "conditions": {"classes": 3, "cond_channels": 2, "colors": 3},
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    return small(**request.param)


def conditions(model, n):
    generator = torch.Generator().manual_seed(0)
    if not model.config["classes"]:
        return {}
    label = torch.randint(3, (n,), generator=generator)
    return {"label": label, "cond": torch.randn(n, 2, generator=generator)}


def images(model, n, H=None, W=None):
    c = model.config
    shape = (n, c["colors"], H or c["height"], W or c["width"])
    return torch.randint(c["levels"], shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(4, 5), (7, 3), (1, 1), (8, 8)])
@torch.no_grad()
def test_no_number_sees_itself_or_a_later_one(model, size):
    x, more = images(model, 1, *size), conditions(model, 1)
    before = model(x, **more)
    C, W, levels = model.config["colors"], size[1], model.config["levels"]
    for t in range(x.numel()):
        i, j, c = t // (W * C), t // C % W, t % C
        y = x.clone()
        y[0, c, i, j] = (y[0, c, i, j] + 1) % levels
        changed = (model(y, **more) != before).any(1)[0].permute(1, 2, 0).flatten()
        assert not changed[: t + 1].any()
        if t + 1 < x.numel():
            assert changed.any()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_network_sees_exactly_the_pixels_before(stages):
    H, W = 6, 7
    model = small(stages=stages, resnets=2 if stages > 1 else 4)
    x = torch.randn(1, 1, H, W, dtype=torch.float64, requires_grad=True)
    out = model.params(x, None, None)[0][0]  # (M, H, W)
    rows = []
    for i, j in itertools.product(range(H), range(W)):
        (grad,) = torch.autograd.grad(out[:, i, j].sum(), x, retain_graph=True)
        rows.append(grad[0, 0].flatten() != 0)
    seen = torch.stack(rows)
    assert torch.equal(seen, torch.ones_like(seen).tril(-1))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_rows_above_is_no_less_than_what_a_prediction_sees(stages):
    model = small(stages=stages)
    H = model.rows_above + 2 * model.stride
    x = torch.randn(1, 1, H, 2, dtype=torch.float64, requires_grad=True)
    out = model.params(x, None, None)[0]
    for i in range(H - model.stride, H):
        (grad,) = torch.autograd.grad(out[0, :, i].sum(), x, retain_graph=True)
        assert i - grad[0, 0].any(1).nonzero()[0] <= model.rows_above
        assert i - grad[0, 0].any(1).nonzero()[0] > model.rows_above / 4


@torch.no_grad()
def test_sums_to_one():
    model = small(levels=2)
    x = torch.tensor([*itertools.product(range(2), repeat=9)]).view(-1, 1, 3, 3)
    assert abs(model.log_prob(x).exp().sum() - 1) < 1e-12
    model = small(levels=2, colors=3)
    x = torch.tensor([*itertools.product(range(2), repeat=12)]).view(-1, 3, 2, 2)
    assert abs(model.log_prob(x).exp().sum() - 1) < 1e-12


@torch.no_grad()
def test_log_prob_is_that_of_the_logits(model):
    x, more = images(model, 4), conditions(model, 4)
    logits = model(x, **more)
    log_p = torch.log_softmax(logits, 1).gather(1, x[:, None])[:, 0].flatten(1).sum(1)
    torch.testing.assert_close(model.log_prob(x, **more), log_p)
    empty = x[:, :, :0]
    assert torch.equal(model.log_prob(empty, **more), torch.zeros(4, dtype=torch.float64))


@torch.no_grad()
def test_a_pixel_by_the_paper_s_equations():
    model = small(colors=3, levels=256)
    x = images(model, 1, 3, 3)
    value = x.double() / 127.5 - 1
    logits, mean, log_scale, k = model.params(value, None, None)
    r, g, _ = value[0, :, 2, 1]
    codes = x[0, :, 2, 1]
    means = mean[0, :, :, 2, 1]
    k = k[0, :, :, 2, 1]
    means = torch.stack([means[0], means[1] + k[0] * r, means[2] + k[1] * r + k[2] * g])
    mass = [log_mass(means[c], log_scale[0, c, :, 2, 1], codes[c], 256) for c in range(3)]
    want = (torch.softmax(logits[0, :, 2, 1], 0) * sum(mass).exp()).sum().log()
    log_p = torch.log_softmax(model(x)[0], 0).gather(0, x)[0, :, 2, 1].sum()
    torch.testing.assert_close(log_p, want)


@torch.no_grad()
def test_samples_have_their_probabilities():
    model, n = small(levels=2, height=2, width=3), 5000
    x = torch.tensor([*itertools.product(range(2), repeat=6)]).view(-1, 1, 2, 3)
    expected = n * model.log_prob(x).exp()
    drawn = model.sample(n, seed=0, method="jacobi")
    counts = torch.bincount(drawn.flatten(1) @ 2 ** torch.arange(5, -1, -1), minlength=64)
    many = expected > 5
    statistic = ((counts - expected)[many].square() / expected[many]).sum()
    df = int(many.sum())
    assert df > 5
    assert statistic < df + 4.5 * math.sqrt(2 * df)


@pytest.mark.parametrize("size", [None, (40, 2), (3, 3), (8, 8), (1, 1)])
def test_cached_is_jacobi_is_naive(model, size):
    n, model = 2, model.float()
    more = {"seed": 1, "dtype": "float64", "size": size, **conditions(model, n)}
    more["temperature"] = torch.linspace(0, 2, (size or (4, 5))[1]) if size else 1.0
    prefix = images(model, n, *((1, size[1]) if size else (2, None)))
    more["prefix"] = prefix.masked_fill(prefix == 3, -1)
    naive = model.sample(n, method="naive", **more)
    for method in ("cached", "jacobi"):
        assert torch.equal(model.sample(n, method=method, **more), naive)


@pytest.mark.parametrize("size", [(4, 5), (7, 3), (8, 8), (1, 1)])
@torch.no_grad()
def test_the_sampler_says_what_forward_says(model, size):
    x, more = images(model, 3, *size), conditions(model, 3)
    given = {"uniforms": torch.zeros(x.shape), "prefix": x, "size": size, **more}
    want, sampler = model(x, **more), kernels.masked_stack_sample
    for dtype, error in (("float64", 1e-12), ("float32", 1e-4)):
        with mock.patch.object(kernels, "masked_stack_sample", side_effect=InterruptedError) as op:
            with pytest.raises(InterruptedError):
                model.sample(3, **given, dtype=dtype)
        _, logits = sampler(*op.call_args.args, **op.call_args.kwargs, logits=True)
        assert (logits - want).abs().max() < error * want.abs().max()


def test_dropout_does_not_touch_samples():
    model = small(dropout=0.5).train()
    x = images(model, 3)
    assert not torch.equal(model.log_prob(x), model.log_prob(x))
    for method in ("cached", "jacobi"):
        more = {"seed": 0, "method": method, "dtype": "float64"}
        assert torch.equal(model.sample(3, **more), model.eval().sample(3, **more))
        assert torch.equal(model.train().sample(3, **more), model.sample(3, **more))
    assert model.training


@pytest.mark.parametrize("weight_norm", [True, False])
def test_it_learns(weight_norm):
    torch.manual_seed(0)
    sizes = {"levels": 16, "colors": 3, "height": 4, "width": 4}
    model = PixelCNNpp(1, 12, 2, 2, 0.0, **sizes, weight_norm=weight_norm)
    if weight_norm:
        red = torch.randint(16, (16, 1, 4, 4))
        model.initialize(torch.cat([red, red, 15 - red], 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        # green is red's, and blue the opposite: what is left to know is red
        red = torch.randint(16, (16, 1, 4, 4))
        loss = model.players()[0].loss(torch.cat([red, red, 15 - red], 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert loss < 0.65 * math.log(16)


def convolutions(model):
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def weights_of(conv):
    """The weights of each output in a row."""
    dim = int(isinstance(conv, nn.ConvTranspose2d))
    return conv.weight.detach().movedim(dim, 0).flatten(1)


def test_weights_are_normalized():
    model = small(colors=3, stages=2)
    for name, conv in convolutions(model).items():
        g, v = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
        assert g.numel() == len(weights_of(conv)) == conv.out_channels, name
        torch.testing.assert_close(weights_of(conv).norm(dim=1), g.flatten().abs(), msg=name)
        before = weights_of(conv)
        with torch.no_grad():
            v.mul_(3)
        torch.testing.assert_close(weights_of(conv), before, msg=name)
    plain = PixelCNNpp(**SMALL, weight_norm=False)
    assert not any("parametrizations" in name for name in plain.state_dict())


@pytest.mark.parametrize("config", [{}, {"classes": 3, "cond_channels": 2, "colors": 3}])
def test_the_first_batch_comes_out_with_mean_0_and_variance_1(config):
    torch.manual_seed(0)
    model = PixelCNNpp(**{**SMALL, "dropout": 0.5, **config}).double()
    x, more = images(model, 32, 8, 8), conditions(model, 32)
    before = {name: weights_of(conv) for name, conv in convolutions(model).items()}
    torch.manual_seed(0)
    model.initialize(x, **more)
    seen = {}
    for name, conv in convolutions(model).items():
        conv.register_forward_hook(lambda _, inputs, y, name=name: seen.update({name: y}))
    torch.manual_seed(0)  # the same dropout
    with torch.no_grad():
        model.log_prob(x, **more)
    assert seen.keys() == before.keys()
    for name, conv in convolutions(model).items():
        var, mean = torch.var_mean(seen[name], (0, 2, 3), correction=0)
        want = 0.1 if name.endswith("second.conv") else 1.0  # as the paper's code has it
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9, msg=name)
        torch.testing.assert_close(var.sqrt(), want * torch.ones_like(var), rtol=1e-5, atol=0)
        cosine = torch.cosine_similarity(weights_of(conv), before[name])
        torch.testing.assert_close(cosine, torch.ones_like(cosine), msg=f"{name} turned")
    assert sum(name.endswith("second.conv") for name in seen) == 2 * (2 * 2 + 1)


def test_what_cannot_be_initialized():
    message = "initialize: expected weight_norm, and an image at least"
    with pytest.raises(ValueError, match=message):
        small(weight_norm=False).initialize(torch.zeros(1, 1, 4, 5, dtype=torch.int64))
    model = small()
    with pytest.raises(ValueError, match=message):
        model.initialize(torch.zeros(0, 1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected levels"):
        model.initialize(torch.full((1, 1, 4, 5), 5))
    assert not any(conv._forward_hooks for conv in convolutions(model).values())


class Sizes:
    """What `images.prepare` takes of a model of images."""

    def build(self, images, levels, seed):
        C, H, W = images.shape
        return PixelCNNpp(1, 6, 1, 2, 0.0, levels, C, height=H, width=W)


def test_training_begins_with_it(tmp_path):
    pixels = torch.randint(256, (40, 6, 6), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "images.npz", images=pixels.numpy().astype(np.uint8))
    options = {"levels": 256, "binarize": "dynamic", "seed": 0}
    torch.manual_seed(0)
    model, source, _ = prepare(Sizes(), str(tmp_path / "images.npz"), **options)
    y = []
    model.out.register_forward_hook(lambda _, inputs, out: y.append(out.detach()))
    model.log_prob(*source.batch(0, 16))
    var, mean = torch.var_mean(y[0], (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=0)
    more = {"batch_size": 4, "progress": False, "validate_every": 9, "save_every": 1}
    train(model, source, out=tmp_path / "run", steps=2, **more)
    torch.manual_seed(1)
    other, source, _ = prepare(Sizes(), str(tmp_path / "images.npz"), **options)
    averaged = train(other, source, out=tmp_path / "run", steps=3, **more)
    torch.manual_seed(0)
    whole, source, _ = prepare(Sizes(), str(tmp_path / "images.npz"), **options)
    want = train(whole, source, out=tmp_path / "whole", steps=3, **more)
    for name, tensor in want.state_dict().items():  # as if it had not been stopped
        assert torch.equal(averaged.state_dict()[name], tensor), name


def test_the_config_makes_an_equal_model(model, tmp_path):
    path = tmp_path / "model.safetensors"
    meta = {"model": "PixelCNNpp", "config": model.config}
    checkpoint.save(path, model.float().state_dict(), meta)
    twin, _ = weights.load(path)
    x, more = images(model, 2), conditions(model, 2)
    with torch.no_grad():
        assert torch.equal(twin.log_prob(x, **more), model.eval().log_prob(x, **more))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resnets": 0}, "resnets: expected an int >= 1, got 0"),
        ({"stages": 1.0}, "stages: expected an int >= 1, got 1.0"),
        ({"stages": 7}, "stages: 7 would halve one pixel of images of 32 x 32"),
        ({"stages": 10**9}, "stages: 1000000000 would halve one pixel"),
        ({"levels": 300}, "levels: expected at most 256, got 300"),
        ({"colors": 2}, "colors: expected 1 or 3, got 2"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1, got 1.0"),
    ],
)
def test_sizes_that_do_not_fit(config, message):
    with pytest.raises(ValueError, match=f"PixelCNNpp: {message}"):
        PixelCNNpp(**config)
