import itertools
import math

import pytest
import torch
from torch import nn

from fastgen import GatedPixelCNN, PixelCNN, PixelCNNpp, checkpoint, kernels, weights
from fastgen.tractable import raster

SMALL = {"layers": 3, "channels": 6, "head_channels": 9, "first_kernel": 3, "levels": 5}
SMALL |= {"height": 4, "width": 5}
COND = {"classes": 3, "cond_channels": 2}


def small(kind=GatedPixelCNN, seed=0, **config):
    """A model in float64 whose logits are far from even and whose units are not dead."""
    torch.manual_seed(seed)
    model = kind(**{**SMALL, **config}).double()
    for p in model.parameters():
        nn.init.normal_(p, std=1.2 * p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    nn.init.normal_(model.out.weight, std=3 * model.config["head_channels"] ** -0.5)
    return model


def conditions(model, n, seed=0):
    """Random label and cond, as keywords; those that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    classes, C = (model.config.get(name, 0) for name in ("classes", "cond_channels"))
    found = {}
    if classes:
        found["label"] = torch.randint(classes, (n,), generator=generator)
    if C:
        found["cond"] = torch.randn(n, C, generator=generator)
    return found


def images(model, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    shape = (n, config["colors"], config["height"], config["width"])
    return torch.randint(config["levels"], shape, generator=generator)


CONFIGS = {
    "gated": (GatedPixelCNN, {}),
    "gated, conditions": (GatedPixelCNN, COND),
    "gated, one layer": (GatedPixelCNN, {"layers": 1, "classes": 3}),
    "gated, large kernels": (GatedPixelCNN, {"first_kernel": 7, "kernel": 5, "cond_channels": 2}),
    "gated, colors": (GatedPixelCNN, {"colors": 3}),
    "gated, colors and conditions": (GatedPixelCNN, {"colors": 3, "channels": 21, **COND}),
    "plain": (PixelCNN, {}),
    "plain, colors": (PixelCNN, {"colors": 3}),
    "plain, large kernels": (PixelCNN, {"first_kernel": 5, "kernel": 5}),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    kind, config = request.param
    return small(kind, **config)


def dependencies(model, H, W):
    """Whether a number's logits (row) have a gradient by a number of the image, in raster order.

    ReLUs are made smooth for it, so that no gradient is zero by accident.
    """
    C, levels = model.config["colors"], model.config["levels"]
    x = torch.randn(1, C, H, W, dtype=torch.float64, requires_grad=True)
    label, cond = (conditions(model, 1).get(name) for name in ("label", "cond"))
    cond = None if cond is None else cond.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "relu", nn.functional.softplus)
        logits = model.logits(x, label, cond).view(C, levels, H, W)
    rows = []
    for i, j, c in itertools.product(range(H), range(W), range(C)):
        score = logits[c, :, i, j] @ torch.randn(levels, dtype=torch.float64)
        (grad,) = torch.autograd.grad(score, x, retain_graph=True)
        rows.append(grad[0].permute(1, 2, 0).flatten() != 0)
    return torch.stack(rows)


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize(("first_kernel", "kernel"), [(3, 3), (7, 3), (5, 5)])
def test_gated_sees_exactly_what_comes_before(colors, first_kernel, kernel):
    model = small(layers=7, colors=colors, first_kernel=first_kernel, kernel=kernel)
    seen = dependencies(model, 6, 7)
    assert torch.equal(seen, torch.ones_like(seen).tril(-1))


@pytest.mark.parametrize("k", [3, 5])
def test_plain_has_a_blind_spot(k):
    H, W = 5, 12
    seen = dependencies(small(PixelCNN, layers=14, first_kernel=k, kernel=k), H, W)
    i, j = torch.arange(H * W) // W, torch.arange(H * W) % W
    up, right = i[:, None] - i, j - j[:, None]
    before = torch.ones_like(seen).tril(-1)
    blind = before & (right > k // 2 * up)
    assert blind.any()
    assert torch.equal(seen, before & ~blind)
    assert not (dependencies(small(layers=14, first_kernel=k, kernel=k), H, W)[blind] == 0).any()


@torch.no_grad()
def test_no_number_sees_itself_or_a_later_one(model):
    x, more = images(model, 1), conditions(model, 1)
    before = model(x, **more)
    C, W, levels = model.config["colors"], model.config["width"], model.config["levels"]
    for t in range(x.numel()):
        i, j, c = t // (W * C), t // C % W, t % C
        y = x.clone()
        y[0, c, i, j] = (y[0, c, i, j] + 1) % levels
        changed = (model(y, **more) != before).any(1)[0].permute(1, 2, 0).flatten()
        assert not changed[: t + 1].any()
        assert changed.any() or t + C >= x.numel()


def test_rows_above_is_how_far_a_prediction_sees(model):
    H, C = model.rows_above + 2, model.config["colors"]
    row = torch.arange(H * C) // C
    seen = dependencies(model, H, 1)
    assert ((row[:, None] - row)[seen]).max() == model.rows_above


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
@torch.no_grad()
def test_sums_to_one(kind):
    model = small(kind, levels=2)
    x = torch.tensor([*itertools.product(range(2), repeat=9)]).view(-1, 1, 3, 3)
    assert abs(model.log_prob(x).exp().sum() - 1) < 1e-12
    model = small(kind, levels=2, colors=3)
    x = torch.tensor([*itertools.product(range(2), repeat=12)]).view(-1, 3, 2, 2)
    assert abs(model.log_prob(x).exp().sum() - 1) < 1e-12


@torch.no_grad()
def test_sums_to_one_whatever_the_condition():
    model = small(levels=3, **COND)
    x = torch.tensor([*itertools.product(range(3), repeat=6)]).view(-1, 1, 2, 3)
    found = []
    for seed in range(3):
        more = {k: v.expand(len(x), *v.shape[1:]) for k, v in conditions(model, 1, seed).items()}
        found.append(model.log_prob(x, **more))
        assert abs(found[-1].exp().sum() - 1) < 1e-12
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@torch.no_grad()
def test_samples_have_their_probabilities(dtype):
    model, n = small(levels=2, classes=2, height=3, width=3), 20000
    x = torch.tensor([*itertools.product(range(2), repeat=9)]).view(-1, 1, 3, 3)
    expected = n * model.log_prob(x, torch.ones(512, dtype=torch.int64)).exp()
    drawn = model.sample(n, seed=0, dtype=dtype, label=torch.ones(n, dtype=torch.int64))
    codes = drawn.flatten(1) @ 2 ** torch.arange(8, -1, -1)
    counts = torch.bincount(codes, minlength=512)
    many = expected > 5
    assert many.sum() > 20
    statistic = ((counts - expected)[many].square() / expected[many]).sum()
    rest, rest_expected = counts[~many].sum(), expected[~many].sum()
    statistic += (rest - rest_expected).square() / rest_expected
    df = int(many.sum())
    assert statistic < df + 4.5 * math.sqrt(2 * df)


OPTIONS = {
    "plain": {},
    "the likeliest": {"temperature": 0.0},
    "temperatures": {"temperature": torch.linspace(0, 2, 20).view(4, 5)},
    "upper half": {"prefix": (slice(None), slice(None), slice(0, 2))},
    "any pixels": {"prefix": 0.6},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cached_is_naive_is_jacobi(model, options):
    n = 3
    more = {"seed": 1, "dtype": "float64", **conditions(model, n), **options}
    if "prefix" in options:
        x = images(model, n)
        if options["prefix"] == 0.6:
            drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.6
            more["prefix"] = x.masked_fill(drawn, -1)
        else:
            more["prefix"] = x[options["prefix"]]
    naive = model.sample(n, method="naive", **more)
    if "prefix" in options:
        given = naive[:, :, : more["prefix"].shape[2]]
        assert torch.equal(given[more["prefix"] >= 0], more["prefix"][more["prefix"] >= 0])
    assert naive.min() >= 0
    assert naive.max() < 5
    assert torch.equal(model.sample(n, method="jacobi", **more), naive)
    assert torch.equal(model.sample(n, **more), naive)
    assert torch.equal(model.sample(n, threads=2, **more), naive)


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("size", [(0, 3), (3, 0), (1, 1), (7, 2)])
def test_methods_agree_for_few_and_for_other_sizes(n, size, kind):
    model = small(kind, **(COND if kind is GatedPixelCNN else {}))
    more = {"seed": 0, "dtype": "float64", "size": size, **conditions(model, n)}
    want = model.sample(n, method="naive", **more)
    assert want.shape == (n, 1, *size)
    assert torch.equal(model.sample(n, **more), want)
    assert torch.equal(model.sample(n, method="jacobi", **more), want)
    assert model.log_prob(want, **conditions(model, n)).shape == (n,)


def test_jacobi_takes_no_more_passes_than_naive(model):
    H, W, C = 4, 5, model.config["colors"]
    u = raster.raster_uniforms(0, 2, C, H, W)
    one = torch.ones((), dtype=torch.float64)
    more = conditions(model, 2)
    inputs = (model, u, torch.full(u.shape, -1), one, more.get("label"), more.get("cond"))
    naive, passes = raster.sample_naive(*inputs, "float64")
    assert passes == H * W * C
    jacobi, fewer = raster.sample_jacobi(*inputs, "float64")
    assert torch.equal(naive, jacobi)
    assert 1 < fewer < passes
    given = (*inputs[:2], naive, *inputs[3:])
    assert raster.sample_naive(*given, "float64")[1] == 0
    assert raster.sample_jacobi(*given, "float64")[1] == 0


def test_jacobi_takes_every_pass_where_each_number_is_the_last_one_s():
    class Count(raster.Raster):  # each number is the one before plus one
        rows_above = 3

        def __init__(self):
            super().__init__()
            self.config = {"levels": 256, "colors": 1, "height": 3, "width": 4}
            self.scale = nn.Parameter(torch.ones(()))

        def logits(self, x, label, cond):
            level = ((x + 1) * 127.5).round().long()
            before = torch.roll(level.flatten(1), 1, 1)
            before[:, 0] = 0
            one = nn.functional.one_hot(before + 1, 256).view(*x.shape[2:], 256)
            return self.scale * 100 * one.permute(2, 0, 1)[None]

    u = raster.raster_uniforms(0, 1, 1, 3, 4)
    inputs = (u, torch.full(u.shape, -1), torch.ones((), dtype=torch.float64), None, None)
    x, passes = raster.sample_jacobi(Count(), *inputs, "float64")
    assert torch.equal(x.flatten(), torch.arange(1, 13))
    assert passes == 12


def test_jacobi_ends_where_a_model_sees_itself(monkeypatch):
    model = small()
    away = torch.tensor([9.0, 0, 0, 0, -9]).view(5, 1, 1)  # from the level that a number has
    monkeypatch.setattr(type(model), "logits", lambda self, x, *given: x * away)
    given = raster.given_levels(None, 3, 1, 4, 5)
    one = torch.ones((), dtype=torch.float64)
    inputs = (raster.raster_uniforms(0, 3, 1, 4, 5), given, one, None, None, "float64")
    assert raster.sample_jacobi(model, *inputs)[1] <= 20


@pytest.mark.parametrize("Kind", [GatedPixelCNN, PixelCNNpp])
def test_autocast_does_not_touch_samples(Kind):
    torch.manual_seed(0)
    sizes = {"layers": 2} if Kind is GatedPixelCNN else {"resnets": 1, "stages": 2}
    model = Kind(**sizes, channels=8, cond_channels=3, height=5, width=6, colors=1)
    options = {"seed": 0, "cond": 8 * torch.randn(16, 3)}
    want = model.sample(16, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.sample(16, **options), want)


def test_equal_uniforms_give_equal_images():
    model = small(colors=3)
    u = raster.raster_uniforms(7, 4, 3, 4, 5)
    want = model.sample(4, seed=7)
    assert torch.equal(model.sample(4, uniforms=u), want)
    assert torch.equal(model.sample(2, uniforms=u[2:]), want[2:])
    # the seed's numbers go through the raster, so that a taller image begins with the same rows
    assert torch.equal(model.sample(4, seed=7, size=(9, 5))[:, :, :4], want)
    torch.manual_seed(0)
    first = model.sample(4)
    torch.manual_seed(0)
    assert torch.equal(model.sample(4), first)
    assert not torch.equal(model.sample(4), first)


@torch.no_grad()
def test_the_sampler_says_what_forward_says(model):
    x, more = images(model, 3), conditions(model, 3)
    if isinstance(model, PixelCNN):
        for dtype, error in (("float64", 1e-12), ("float32", 1e-4)):
            options = {"given": x, "dtype": dtype, "logits": True, "colors": x.shape[1]}
            zeros = torch.zeros(x.shape)
            _, logits = kernels.masked_stack_sample(model.weights(), zeros, **options)
            torch.testing.assert_close(logits.double(), model(x), rtol=0, atol=error)
        return
    label, cond = (more.get(name) for name in ("label", "cond"))
    cond = None if cond is None else cond.double()
    added = [layer.conditions(label, cond) for layer in model.layers]
    added = None if added[0] is None else torch.stack(added, 1)
    for dtype, error in (("float64", 1e-12), ("float32", 1e-4)):
        _, logits = kernels.pixelcnn_sample(
            model.weights(), torch.zeros(x.shape), given=x, cond=added, dtype=dtype, logits=True
        )
        torch.testing.assert_close(logits.double(), model(x, **more), rtol=0, atol=error)


@torch.no_grad()
def test_log_prob_is_that_of_the_logits(model):
    x, more = images(model, 4), conditions(model, 4)
    log_p = torch.log_softmax(model(x, **more), 1).gather(1, x[:, None])[:, 0].flatten(1)
    torch.testing.assert_close(model.log_prob(x, **more), log_p.sum(1))
    bits = -log_p.mean(1) / math.log(2)
    torch.testing.assert_close(model.bits_per_dim(x, **more), bits)
    assert model.bits_per_dim(x[:0], **conditions(model, 0)).shape == (0,)


def test_an_untrained_one_knows_nothing():
    for kind in (GatedPixelCNN, PixelCNN):
        torch.manual_seed(0)
        x = torch.randint(256, (1, 1, 28, 28))
        with torch.no_grad():
            assert abs(kind().bits_per_dim(x) - 8) < 0.1


def test_the_player_minimises_nats_a_number(model):
    [player] = model.players()
    x, more = images(model, 3), conditions(model, 3)
    assert player.module is model
    loss = player.loss(x, more.get("label"), more.get("cond"))
    torch.testing.assert_close(loss, -model.log_prob(x, **more).mean() / x[0].numel())
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_a_model_learns_and_its_samples_too():
    # stripes: the upper row is random, each other one is a copy of the row above
    torch.manual_seed(0)
    model = GatedPixelCNN(2, 16, 16, 3, 3, levels=2, height=4, width=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        x = torch.randint(2, (32, 1, 1, 6)).expand(-1, -1, 4, -1)
        loss = model.players()[0].loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.3 * math.log(2) / 4
    drawn = model.sample(50, seed=0)
    assert (drawn[:, :, 1:] == drawn[:, :, :-1]).double().mean() > 0.97
    prefix = torch.tensor([0, 1, 1, 0, 1, 0]).expand(5, 1, 1, 6)
    completed = model.sample(5, seed=0, prefix=prefix, temperature=0.0)
    assert torch.equal(completed, prefix.expand(-1, -1, 4, -1))


def test_the_config_makes_an_equal_model(model, tmp_path):
    path = tmp_path / "model.safetensors"
    kind = type(model).__name__
    checkpoint.save(path, model.float().state_dict(), {"model": kind, "config": model.config})
    twin, _ = weights.load(path)
    more = {"seed": 0, "method": "jacobi", **conditions(model, 2)}
    assert torch.equal(twin.sample(2, **more), model.sample(2, **more))


BAD_CONFIGS = [
    ({"layers": 0}, "layers: expected an int >= 1, got 0"),
    ({"channels": 2.0}, "channels: expected an int >= 1, got 2.0"),
    ({"levels": 1}, "levels: expected an int >= 2"),
    ({"levels": 257}, "levels: expected at most 256, got 257"),
    ({"colors": 2}, "colors: expected 1 or 3, got 2"),
    ({"colors": 3, "channels": 64}, "channels: expected a multiple of 3, got 64"),
    ({"colors": 3, "channels": 6, "head_channels": 7}, "head_channels: expected a multiple of 3"),
    ({"kernel": 4}, "kernel: expected an odd number, got 4"),
    ({"first_kernel": 1}, "first_kernel: expected an int >= 3, got 1"),
    ({"classes": -1}, "classes: expected an int >= 0, got -1"),
    ({"height": 0}, "height: expected an int >= 1, got 0"),
]


@pytest.mark.parametrize(("config", "message"), BAD_CONFIGS)
def test_sizes_that_do_not_fit(config, message):
    with pytest.raises(ValueError, match=f"GatedPixelCNN: {message}"):
        GatedPixelCNN(**config)
    if "classes" not in config:
        with pytest.raises(ValueError, match=f"PixelCNN: {message}"):
            PixelCNN(**config)


def test_halved_channels_must_come_in_colors():
    with pytest.raises(ValueError, match="PixelCNN: channels: expected a multiple of 6, got 9"):
        PixelCNN(channels=9, colors=3, head_channels=9)


LABEL = torch.tensor([0, 2])
VECTOR = torch.zeros(2, 2)
BAD = [
    ({"x": torch.zeros(2, 4, 5).long()}, ValueError, r"x: expected \(B, 1, H, W\)"),
    ({"x": torch.zeros(2, 3, 4, 5).long()}, ValueError, r"x: expected \(B, 1, H, W\)"),
    ({"x": torch.zeros(2, 1, 4, 5)}, TypeError, "x: expected int64, got torch.float32"),
    ({"x": torch.full((2, 1, 4, 5), 5)}, ValueError, r"x: expected levels in \[0, 5\)"),
    ({"x": torch.full((2, 1, 4, 5), -1)}, ValueError, r"x: expected levels in \[0, 5\)"),
    ({"label": None}, ValueError, r"label: expected \(2,\), got None"),
    ({"label": 2}, ValueError, r"label: expected \(2,\), got 2"),
    ({"label": [0, 2]}, ValueError, r"label: expected \(2,\), got \[0, 2\]"),
    ({"label": LABEL[:1]}, ValueError, r"label: expected \(2,\), got \(1,\)"),
    ({"label": LABEL.int()}, TypeError, "label: expected int64, got torch.int32"),
    ({"label": LABEL + 1}, ValueError, r"label: expected values in \[0, 3\)"),
    ({"label": LABEL - 1}, ValueError, r"label: expected values in \[0, 3\)"),
    ({"cond": None}, ValueError, r"cond: expected \(2, 2\), got None"),
    ({"cond": VECTOR[:, :1]}, ValueError, r"cond: expected \(2, 2\), got \(2, 1\)"),
    ({"cond": VECTOR.long()}, TypeError, "cond: expected a floating dtype, got torch.int64"),
    ({"cond": VECTOR / 0}, ValueError, "cond: expected finite values"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_inputs_that_do_not_fit(change, error, message):
    model = small(**COND)
    good = {"x": torch.zeros(2, 1, 4, 5).long(), "label": LABEL, "cond": VECTOR}
    model(**good)
    with pytest.raises(error, match=f"GatedPixelCNN: {message}"):
        model(**{**good, **change})
    if "x" not in change:
        good = {"label": LABEL, "cond": VECTOR, **change}
        for method in raster.METHODS:
            with pytest.raises(error, match=f"GatedPixelCNN: {message}"):
                model.sample(2, method=method, **good)


@pytest.mark.parametrize("kind", [GatedPixelCNN, PixelCNN])
def test_shapes_alone(kind):
    model = small(kind, **(COND if kind is GatedPixelCNN else {})).to("meta")
    given = {"label": LABEL.to("meta"), "cond": VECTOR.to("meta")} if kind is GatedPixelCNN else {}
    x = torch.zeros(2, 1, 4, 5, dtype=torch.int64, device="meta")
    assert model(x, **given).shape == (2, 5, 1, 4, 5)
    assert model.log_prob(x, **given).shape == (2,)


def test_conditions_of_a_model_without():
    for kind in (GatedPixelCNN, PixelCNN):
        for more in ({"label": LABEL}, {"cond": VECTOR}):
            with pytest.raises(ValueError, match="expected None of a model without such"):
                small(kind).sample(2, method="naive", **more)


PIXELS = torch.zeros(2, 1, 4, 5, dtype=torch.int64)
BAD_SAMPLES = [
    ({"n": -1}, ValueError, "expected n, H, W >= 0, got -1, 4, 5"),
    ({"n": 2.5}, ValueError, "expected n, H, W >= 0, got 2.5, 4, 5"),
    ({"size": (4, -1)}, ValueError, "expected n, H, W >= 0, got 2, 4, -1"),
    ({"method": "fast"}, ValueError, "method: expected one of .*, got 'fast'"),
    ({"uniforms": torch.zeros(2, 1, 4, 4)}, ValueError, r"uniforms: expected \(2, 1, 4, 5\)"),
    ({"uniforms": torch.ones(2, 1, 4, 5)}, ValueError, r"uniforms: expected values in \[0, 1\)"),
    ({"prefix": PIXELS[:1]}, ValueError, r"prefix: expected \(2, 1, at most 4, 5\), got \(1,"),
    ({"prefix": PIXELS[..., :3]}, ValueError, "prefix: expected"),
    ({"prefix": PIXELS.repeat(1, 1, 2, 1)}, ValueError, "prefix: expected"),
    ({"prefix": PIXELS[0]}, ValueError, "prefix: expected"),
    ({"prefix": PIXELS.float()}, TypeError, "prefix: expected int64, got torch.float32"),
    ({"prefix": PIXELS + 5}, ValueError, r"given: expected levels in \[-1, 5\)"),
    ({"prefix": PIXELS - 2}, ValueError, r"given: expected levels in \[-1, 5\)"),
    ({"temperature": -1.0}, ValueError, "temperature: expected finite values >= 0"),
    ({"temperature": torch.ones(3, 5)}, ValueError, r"temperature: expected \(2, 1, 4, 5\)"),
    ({"dtype": "float16"}, ValueError, "dtype: expected .*, got 'float16'"),
]


@pytest.mark.parametrize("method", raster.METHODS)
@pytest.mark.parametrize(("change", "error", "message"), BAD_SAMPLES)
def test_samples_that_there_are_not(method, change, error, message):
    model = small()
    with pytest.raises(error, match=message):
        model.sample(**{"n": 2, "method": method, **change})


@pytest.mark.parametrize("method", raster.METHODS)
def test_logits_that_are_not_finite_are_an_error(method):
    model = small(colors=3)
    with torch.no_grad():
        model.out.bias[7] = 1e308  # green's third level
        model.out.weight[7] = 1e308
        model.hidden.bias[:] = 100
    with pytest.raises(ValueError, match="logits of image 0 at row 0, column 0, color 1 are not"):
        model.sample(2, method=method, dtype="float64", seed=0)
