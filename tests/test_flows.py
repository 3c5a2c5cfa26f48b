"""NICE, Real NVP, Glow and ICA: exact densities, exact inverses, and samples of their sources."""

import math

import pytest
import torch
from torch.distributions import Laplace, Normal

from fastgen import ICA, NICE, Glow, RealNVP, checkpoint, kernels, weights
from fastgen.nn import Unsqueeze
from fastgen.tractable.sources import NAMES, Sources
from fastgen.train import train

MODELS = {
    "nice": lambda **how: NICE((5,), 0, 3, 16, 2, **how),
    "nice of images": lambda **how: NICE((1, 3, 3), 4, 2, 16, 1, **how),
    "ica": lambda **how: ICA((3,), 0, 2, 16, **how),
    "linear ica of images": lambda **how: ICA((1, 2, 2), 256, 0, source="laplace", **how),
    "realnvp": lambda **how: RealNVP((3,), 0, 5, 16, 2, **how),
    "realnvp, actnorm": lambda **how: RealNVP((2,), 0, 4, 16, 1, norm="actnorm", **how),
    "realnvp of images": lambda **how: RealNVP((1, 4, 8), 256, 2, 8, 1, 2, **how),
    "realnvp of colors, one scale": lambda **how: RealNVP(
        (3, 3, 4), 8, 1, 8, 1, 1, norm="none", **how
    ),
    "glow": lambda **how: Glow((3,), 0, 3, 16, **how),
    "glow of images": lambda **how: Glow((1, 8, 4), 256, 2, 8, 2, **how),
}
IMAGES = [name for name in MODELS if "images" in name or "colors" in name]


def woken(make, seed=0):
    """A float64 model in evaluation, none of whose numbers is what it is at first."""
    torch.manual_seed(seed)
    model = make().double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
        for _ in range(3):
            model(some(model))
    return model.eval()


def some(model, n=20):
    x = torch.rand(n, *model.shape, dtype=torch.float64)
    return x * model.levels if model.levels else 3 * x


@pytest.fixture(params=MODELS)
def model(request):
    return woken(MODELS[request.param])


def test_log_prob_is_the_change_of_variables(model):
    x = some(model, 3)
    z, logdet = model(x)
    assert z.shape == x.shape
    D = model.dims
    for i in range(3):
        J = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x[i]).reshape(D, D)
        exact = torch.linalg.slogdet(J)[1]
        torch.testing.assert_close(logdet[i], exact)
        log_p = model.sources.log_prob(z[i].reshape(1, -1))[0] + exact
        torch.testing.assert_close(model.log_prob(x)[i], log_p)
        bits = -log_p / math.log(2) / D
        torch.testing.assert_close(model.bits_per_dim(x)[i], bits)
    back, minus = model.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(minus, -logdet)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_far_away_is_infinitely_unlikely(model, dtype):
    model = model.to(dtype)
    x = some(model, 7).to(dtype)
    want = model.log_prob(x)
    rows = x.view(7, -1)
    rows[1, 0], rows[2, -1], rows[3] = math.inf, -math.inf, math.inf
    rows[4] = 0.9 * torch.finfo(dtype).max
    rows[4, ::2] *= -1
    rows[5, 0], rows[5, -1] = math.inf, math.nan
    got = model.log_prob(x)
    assert (got[1:4] == -math.inf).all()
    assert got[4] < -1e30
    assert got[5].isnan()
    torch.testing.assert_close(got[[0, 6]], want[[0, 6]])
    next(model.parameters()).fill_(math.nan)
    assert model.log_prob(some(model, 2).to(dtype)).isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_where_a_logit_has_no_value_there_is_no_density(alpha):
    model = RealNVP((1, 4, 4), 8, 1, 4, 1, 1, alpha=alpha).eval()
    least, most = -8 * alpha / (1 - 2 * alpha), 8 * (1 - alpha) / (1 - 2 * alpha)
    rows = [4.0, least + 0.01, most - 0.01, least - 0.01, most + 0.01, 300.0, -50.0, math.nan]
    x = torch.full((8, 1, 4, 4), 4.0)
    x[:, 0, 0, 0] = torch.tensor(rows)
    found = model.log_prob(x)
    assert found[:3].isfinite().all()
    assert (found[3:7] == -math.inf).all()
    assert found[7].isnan()


def test_a_sample_is_the_inverse_of_its_sources(model):
    n, D = 4, model.dims
    u = kernels.uniforms(5, n, D).view(n, *model.shape)
    drawn = model.sample(n, uniforms=u, temperature=0.7)
    assert torch.equal(drawn, model.sample(n, seed=5, temperature=0.7))
    z = model.sources.quantile(u.flatten(1), 0.7).view(u.shape)
    x = model.inverse(z)[0]
    if model.levels:
        assert drawn.dtype == torch.int64
        x = x.floor().clamp(0, model.levels - 1).long()
    assert torch.equal(drawn, x)
    torch.testing.assert_close(model.sample(2, seed=5), model.sample(4, seed=5)[:2])
    assert model.sample(0, seed=5).shape == (0, *model.shape)
    middle = model.sample(2, seed=1, temperature=0)
    if model.sources.name != "mixture":
        assert torch.equal(middle[0], middle[1])


def test_sampling_leaves_training_alone():
    model = RealNVP((1, 4, 4), 8, 1, 4, 1, 1).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    model.sample(3, seed=0)
    assert model.training
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    frozen = model.chain.steps[2].eval()
    model.sample(3, seed=0)
    assert (frozen.training, model.chain.training) == (False, True)
    with pytest.raises(ValueError, match="is not finite"):
        model.sample(3, z=torch.full((3, 1, 4, 4), math.nan))
    assert (frozen.training, model.chain.training) == (False, True)


def test_a_checkpoint_gives_the_same_model(model, tmp_path):
    model = model.float()
    path = tmp_path / "model.safetensors"
    meta = {"model": type(model).__name__, "config": model.config}
    checkpoint.save(path, model.state_dict(), meta)
    loaded, _ = weights.load(path)
    x = some(model).float()
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))


def test_training_goes_down_and_is_repeatable(tmp_path):
    class Batches:
        def batch(self, step, size):
            u = kernels.uniforms(0, size, 16, start=16 * step)
            return ((u * 8).long().cummax(1)[0].view(size, 1, 4, 4),)

    def run(name, **how):
        torch.manual_seed(0)
        model = RealNVP((1, 4, 4), 8, 1, 8, 1, 1, **how)
        options = {"batch_size": 16, "progress": False, "save_every": 30}
        return train(model, Batches(), out=tmp_path / name, steps=40, lr=5e-3, **options)

    x = Batches().batch(1000, 200)[0]
    first, second, own = run("a"), run("b"), run("c", reversible=True)
    assert all(
        torch.equal(a, b) for a, b in zip(*(m.parameters() for m in (first, second)), strict=True)
    )
    torch.manual_seed(0)
    bits = [
        model.eval().bits_per_dim(x, seed=0).mean().item()
        for model in (RealNVP((1, 4, 4), 8, 1, 8, 1, 1), first, own)
    ]
    assert bits[1] < bits[0] - 0.4
    assert bits[2] == pytest.approx(bits[1], abs=0.02)


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 8), (2,)])
def test_a_penalty_on_the_scales(shape, reversible):
    """Gradients of the loss are moved by those of the squares alone; 0 leaves all as it is."""

    def make(**how):
        return RealNVP(shape, 256 if len(shape) == 3 else 0, 1, 4, 1, **how, reversible=reversible)

    models = [woken(lambda how=how: make(**how)) for how in ({}, {"scale_l2": 0}, {"scale_l2": 3})]
    x = some(models[0], 4)
    losses = [model.players()[0].loss(x) for model in models]
    grads = [
        torch.autograd.grad(loss, [*model.parameters()])
        for loss, model in zip(losses, models, strict=True)
    ]
    assert models[0].config == models[1].config
    assert models[2].config == {**models[0].config, "scale_l2": 3}
    assert torch.equal(losses[0], losses[1])
    assert all(torch.equal(a, b) for a, b in zip(*grads[:2], strict=True))
    scales = {n for n, _ in models[2].named_parameters() if n.endswith((".weight", "original0"))}
    scales -= {n for n in scales if ".net." in n and n.endswith("weight")}
    total, c = 0, 3 / math.prod(shape)
    for (name, p), plain, more in zip(models[2].named_parameters(), *grads[::2], strict=True):
        moved = 2 * c * p if name in scales else torch.zeros_like(p)
        torch.testing.assert_close(more - plain, moved, atol=1e-12, rtol=1e-9)
        total += p.square().sum() if name in scales else 0
    torch.testing.assert_close(losses[2] - losses[0], c * total)
    couplings = 1 if len(shape) == 1 else 4
    assert len(scales) == couplings + (0 if len(shape) == 1 else 4 * couplings)


@pytest.mark.parametrize("name", IMAGES)
def test_images_come_back_exactly(name):
    model = woken(MODELS[name]).float()
    x = torch.randint(model.levels, (50, *model.shape))
    x[0], x[1] = 0, model.levels - 1
    z, _ = model(model.dequantize(x, uniforms=torch.full(x.shape, 0.5)))
    assert torch.equal(model.quantize(model.inverse(z)[0]), x)


@pytest.mark.parametrize("name", IMAGES)
def test_levels_are_dequantized(name):
    model = woken(MODELS[name])
    x = torch.randint(model.levels, (4, *model.shape))
    u = kernels.uniforms(3, 4, model.dims).view(x.shape)
    assert torch.equal(model.dequantize(x, seed=3), x + u)
    torch.testing.assert_close(model.log_prob(x, seed=3), model.log_prob(x + u))
    torch.testing.assert_close(model.bits_per_dim(x, uniforms=u), model.bits_per_dim(x + u))
    torch.manual_seed(1)
    noise = model.dequantize(x) - x
    assert noise.min() >= 0
    assert noise.max() < 1
    assert noise.unique().numel() > noise.numel() / 2


def test_bits_of_a_density_that_is_known_by_hand():
    """An untrained map is the identity but for the levels' scale and logit, and its weights."""
    model = RealNVP((1, 2, 4), 256, 1, 4, 1, 1, norm="none", alpha=0.05).double().eval()
    x = torch.tensor([0, 1, 17, 100, 128, 200, 254, 255]).view(1, 1, 2, 4)
    bits = 0.0
    for level in x.flatten().tolist():
        p = 0.05 + 0.9 * (level + 0.25) / 256
        logit = math.log(p / (1 - p))
        nats = 0.5 * logit**2 + 0.5 * math.log(2 * math.pi)  # of the logit
        nats -= math.log(0.9 / 256) - math.log(p) - math.log(1 - p)  # its slope in the level
        bits += nats / math.log(2) / 8
    got = model.bits_per_dim(x, uniforms=torch.full(x.shape, 0.25)).item()
    assert got == pytest.approx(bits, rel=1e-12)


def test_the_noise_gives_a_lower_bound_on_the_levels():
    """Of one number: the mean of log p over the noise, and the log of its integral."""
    model = woken(lambda: NICE((2,), 4, 2, 8, 1, source="normal"))
    x = torch.tensor([[1, 2]])
    places = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    u = torch.cartesian_prod(places, places)
    log_p = model.log_prob(x.expand(len(u), -1), uniforms=u)
    bound, exact = log_p.mean().item(), log_p.logsumexp(0).item() - math.log(len(u))
    assert bound < exact < 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 8)])
def test_the_scale_of_each_source(shape):
    """What is done at the first scale is not seen by what comes after."""
    model = RealNVP(shape, 256, 1, 4, 1, 2)
    places = model.scale_map()
    assert places.shape == shape
    assert places.unique(return_counts=True)[1].tolist() == [math.prod(shape) // 2] * 2
    model = woken(lambda: RealNVP(shape, 256, 1, 4, 1, 2))
    deeper = [m for m in model.modules() if type(m).__name__ == "Half"]
    z = torch.zeros(2, *shape, dtype=torch.float64)
    z[1, places == 0] = 1
    seen = []
    inverse = deeper[0].inner.inverse
    deeper[0].inner.inverse = lambda y: seen.append(y) or inverse(y)
    model.inverse(z)
    assert torch.equal(seen[0][0], seen[0][1])
    assert isinstance(model.chain.steps[-1], Unsqueeze)
    assert RealNVP((3,), 0, 1, 4, 1).scale_map().tolist() == [0, 0, 0]


@pytest.mark.parametrize(("name", "known"), [("normal", Normal), ("laplace", Laplace)])
def test_sources_have_the_densities_of_their_names(name, known):
    z = torch.linspace(-60, 60, 999, dtype=torch.float64).view(-1, 3)
    wanted = known(torch.zeros(3).double(), torch.ones(3).double()).log_prob(z).sum(1)
    torch.testing.assert_close(Sources(name, 3).log_prob(z), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_quantiles_have_the_density(name):
    """Of evenly spread uniform numbers, the share below a point is the integral up to it."""
    torch.manual_seed(0)
    sources = Sources(name, 1, components=4).double()
    for p in sources.parameters():
        torch.nn.init.normal_(p)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5)[:, None] / 100_000
    drawn = sources.quantile(u)[:, 0].detach()
    z = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    cdf = (sources.log_prob(z[:, None]).exp() * 0.0005).cumsum(0).detach()
    assert cdf[-1].item() == pytest.approx(1, abs=1e-5)
    for place in range(100_000, 140_001, 4_000):
        share = (drawn <= z[place]).double().mean().item()
        assert share == pytest.approx(cdf[place].item(), abs=1e-3)
    ends = sources.quantile(torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64))
    assert ends.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NICE((1,)), "NICE: shape: expected two numbers at least"),
        (lambda: NICE((2, 2)), r"NICE: shape: expected \(C, H, W\) or \(D,\)"),
        (lambda: NICE((4,), 1), r"NICE: levels: expected 0 or in \[2, 256\], got 1"),
        (lambda: NICE((4,), source="cauchy"), "source: expected one of"),
        (lambda: NICE((4,), depth=0), "NICE: depth: expected an int in .*, got 0"),
        (lambda: RealNVP((1, 6, 6), scales=2), "H a multiple of 2, W of 4, for 2 scales"),
        (lambda: RealNVP((2,), norm="layer"), "RealNVP: norm: expected one of"),
        (lambda: RealNVP((2,), hidden=1.5), "RealNVP: hidden: expected an int in .*, got 1.5"),
        (lambda: RealNVP(scale_l2=-1.0), "RealNVP: scale_l2: expected finite and >= 0, got -1.0"),
        (lambda: RealNVP(scale_l2=math.nan), "RealNVP: scale_l2: expected finite"),
        (lambda: RealNVP(scale_l2="5e-5"), "RealNVP: scale_l2: expected finite"),
        (lambda: Glow((1, 4, 6), scales=2), "Glow: shape: expected H a multiple of 4, W of 4"),
        (lambda: Glow((1,)), "Glow: shape: expected two numbers at least"),
        (lambda: ICA((1 << 20, 1 << 20, 1)), "ICA: shape: expected at most"),
    ],
)
def test_a_model_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, v: m.log_prob(torch.zeros(2, 4)), ValueError, r"x: expected \(B, 1, 2, 2\)"),
        (lambda m, v: m(torch.zeros(2, 1, 2, 2).long()), TypeError, "x: expected a floating dtype"),
        (lambda m, v: m.inverse(torch.zeros(2, 4)), ValueError, "z: expected"),
        (lambda m, v: v.log_prob(torch.zeros(2, 2).long()), TypeError, "expected a floating dtype"),
        (
            lambda m, v: m.log_prob(torch.zeros(2, 1, 2, 2).int()),
            TypeError,
            "x: expected int64, got torch.int32",
        ),
        (
            lambda m, v: m.log_prob(torch.full((2, 1, 2, 2), 8)),
            ValueError,
            r"x: expected levels in \[0, 8\)",
        ),
        (
            lambda m, v: m.dequantize(torch.zeros(2, 1, 2, 2).long(), uniforms=torch.zeros(2)),
            ValueError,
            r"dequantize: uniforms: expected \(2, 1, 2, 2\), got \(2,\)",
        ),
        (lambda m, v: m.sample(-1), ValueError, "n: expected >= 0, got -1"),
        (lambda m, v: m.sample(1, temperature=-1), ValueError, "temperature: expected finite"),
        (lambda m, v: m.sample(1, uniforms=torch.ones(1, 1, 2, 2)), ValueError, r"in \[0, 1\)"),
        (lambda m, v: m.sample(1, uniforms=torch.zeros(1, 4)), ValueError, "uniforms: expected"),
        (lambda m, v: m.sample(1, seed=-1), ValueError, "seed: expected 0 <= seed"),
    ],
)
def test_what_cannot_be_asked(call, error, message):
    with pytest.raises(error, match=message):
        call(NICE((1, 2, 2), 8, 1, 4, 1), NICE((2,), 0, 1, 4, 1))


def test_what_is_drawn_must_be_finite():
    model = NICE((2,), 0, 1, 4, 1)
    torch.nn.init.constant_(model.chain.steps[-1].log_scale, -200)
    with pytest.raises(ValueError, match="what is drawn at place 0 is not finite"):
        model.sample(2, seed=0)


@pytest.mark.parametrize("norm", ["none", "batch", "actnorm"])
def test_many_layers_train_at_a_high_rate_and_stay_finite(norm):
    """32 affine couplings at learning rate 1e-3, of which the first steps are the wildest."""
    torch.manual_seed(0)
    model = RealNVP((2,), 0, 32, 16, 1, norm=norm, reversible=True)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(15):
        u = 2 * math.pi * kernels.uniforms(0, 128, 1, start=step)
        x = torch.cat([3 * u.cos(), 3 * u.sin()], 1).float() + 0.1 * torch.randn(128, 2)
        adam.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        adam.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    far = torch.tensor([[-1e3, 1e3], [1e3, 1e3], [0.0, -1e3]])
    assert model.log_prob(far).isfinite().all()
