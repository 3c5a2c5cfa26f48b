import gc
import itertools
import math
import os
import signal
import threading

import pytest
import torch
from torch import nn

from fastgen import WaveNet, checkpoint, kernels

SMALL = {"layers": 4, "stacks": 2, "residual_channels": 7, "gate_channels": 10}
SMALL |= {"skip_channels": 13, "classes": 12}
COND = {"cond_channels": 3, "hop_length": 4}


def small(dtype=torch.float64, seed=0, **config):
    """A WaveNet whose logits are far from even, unlike those of an untrained one."""
    torch.manual_seed(seed)
    model = WaveNet(**{**SMALL, **config})
    for name, p in model.named_parameters():
        if p.dim() > 1 and not name.startswith("embed"):
            nn.init.normal_(p, std=1.5 * p[0].numel() ** -0.5)
    nn.init.normal_(model.out.weight, std=3 * SMALL["skip_channels"] ** -0.5)
    if M := model.mixtures:
        with torch.no_grad():
            model.out.weight[M:] /= 6
            model.out.bias[2 * M :] -= 3
    return model.to(dtype)


def conditions(model, n, T, seed=0):
    """Random cond and speaker, as keywords; those that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    C, speakers, found = model.config["cond_channels"], model.config["speakers"], {}
    if C:
        frames = -(-T // model.hop_length) + 1
        found["cond"] = torch.randn(n, C, frames, generator=generator, dtype=torch.float64)
    if speakers:
        found["speaker"] = torch.randint(speakers, (n,), generator=generator)
    return found


def sequences(classes, T):
    """Every sequence there is, (classes^T, T)."""
    return torch.tensor([*itertools.product(range(classes), repeat=T)])


CONFIGS = {
    "plain": {},
    "three taps": {"kernel_size": 3},
    "odd": {"residual_channels": 13, "gate_channels": 14, "skip_channels": 7, "classes": 10},
    "one layer": {"layers": 1, "stacks": 1},
    "dilations of 1": {"stacks": 4, "kernel_size": 3},
    "one stack": {"layers": 5, "stacks": 1},
    "a frame a step": {"cond_channels": 2},
    "frames": COND,
    "long frames": {"cond_channels": 2, "hop_length": 80, "kernel_size": 3},
    "speakers": {"speakers": 3},
    "speakers and frames": {"speakers": 5, **COND},
    "mixture": {"mixtures": 3, "classes": 256},
    "mixture and frames": {"mixtures": 1, "classes": 65536, "kernel_size": 3, **COND},
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    return small(**request.param)


def logits_of_kernel(model, x, dtype="float64", **more):
    """What the sampler says of codes (B, T): (B, A, T)."""
    options = model.sampling(len(x), more.pop("speaker", None))
    u = torch.zeros((*x.shape, 2) if model.mixtures else x.shape)
    _, _, logits = kernels.wavenet_sample(
        model.weights(), u, prefix=x, logits=True, dtype=dtype, **options, **more
    )
    return logits.transpose(1, 2)


@torch.no_grad()
def test_the_sampler_says_what_forward_says(model):
    for T in (0, 1, 7, 90):
        x = torch.randint(model.classes, (3, T))
        more = conditions(model, 3, T)
        want = model(x, **more)
        torch.testing.assert_close(logits_of_kernel(model, x, **more), want, rtol=0, atol=1e-11)
        close = logits_of_kernel(model, x, "float32", **more)
        torch.testing.assert_close(close.double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 2.0])
def test_cached_is_naive(model, temperature):
    T = min(model.receptive_field + 12, 40)
    more = {**conditions(model, 5, T), "temperature": temperature, "dtype": "float64"}
    prefix = torch.randint(model.classes, (5, 3))
    naive = model.sample(5, T, seed=1, method="naive", prefix=prefix, **more)
    cached = model.sample(5, T, seed=1, prefix=prefix, **more)
    assert torch.equal(cached[:, :3], prefix)
    assert torch.equal(cached, naive)


@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("T", [0, 1, 2])
def test_cached_is_naive_for_few(n, T):
    model = small(speakers=2, **COND)
    more = {**conditions(model, n, T), "dtype": "float64", "seed": 0}
    cached = model.sample(n, T, **more)
    assert cached.shape == (n, T)
    assert torch.equal(cached, model.sample(n, T, method="naive", **more))
    assert model.log_prob(cached, *(more[k] for k in ("cond", "speaker"))).shape == (n,)


def test_naive_in_float32_is_nearly_cached():
    model = small(torch.float32)
    cached, naive = (model.sample(9, 60, seed=0, method=m) for m in ("cached", "naive"))
    assert (cached == naive).double().mean() > 0.99


def test_equal_uniforms_give_equal_codes():
    model = small()
    u = kernels.uniforms(7, 4, 30)
    want = model.sample(4, 30, seed=7)
    assert torch.equal(model.sample(4, 30, uniforms=u), want)
    assert torch.equal(model.sample(2, 30, uniforms=u[2:]), want[2:])
    assert torch.equal(model.sample(4, 30, uniforms=u, threads=2), want)
    torch.manual_seed(0)
    first = model.sample(4, 30)
    torch.manual_seed(0)
    assert torch.equal(model.sample(4, 30), first)
    assert not torch.equal(model.sample(4, 30), first)


@torch.no_grad()
def test_no_code_sees_itself_or_a_later_one(model):
    T = 40
    more = conditions(model, 1, T)
    x = torch.randint(model.classes, (1, T))
    before = model(x, **more)
    for t in range(T):
        y = x.clone()
        y[0, t] = (y[0, t] + 1 + torch.randint(model.classes - 1, ())) % model.classes
        after = model(y, **more)
        assert torch.equal(after[..., : t + 1], before[..., : t + 1])
        if t + 1 < T:
            assert not torch.equal(after[..., t + 1], before[..., t + 1])


def test_the_receptive_field_is_exact(model):
    T = model.receptive_field + 9
    seen = []

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    model.embed.register_forward_hook(keep)
    x = torch.randint(model.classes, (1, T))
    model(x, **conditions(model, 1, T))[..., -1].square().sum().backward()
    found = seen[0].grad[0].abs().amax(1).nonzero()[:, 0]
    assert found.tolist() == list(range(T - 1 - model.receptive_field, T - 1))


@pytest.mark.parametrize("config", [{}, {"mixtures": 2}, {"kernel_size": 3, "speakers": 2, **COND}])
@torch.no_grad()
def test_sums_to_one(config):
    model = small(classes=3, **config)
    x = sequences(3, 6)
    more = {k: v.expand(len(x), *v.shape[1:]) for k, v in conditions(model, 1, 6).items()}
    assert abs(model.log_prob(x, **more).exp().sum() - 1) < 1e-10


@torch.no_grad()
def test_samples_have_their_probabilities():
    model, n = small(classes=4), 20000
    expected = n * model.log_prob(sequences(4, 3)).exp()
    for dtype in ("float32", "float64"):
        codes = model.sample(n, 3, seed=0, dtype=dtype)
        counts = torch.bincount(codes @ torch.tensor([16, 4, 1]), minlength=64)
        many = expected > 5
        statistic = ((counts - expected)[many].square() / expected[many]).sum()
        df = int(many.sum())
        assert statistic < df + 4.5 * math.sqrt(2 * df)


@torch.no_grad()
def test_log_prob_is_the_sum_over_time(model):
    x = torch.randint(model.classes, (2, 20))
    more = conditions(model, 2, 20)
    parts = [model.log_prob(x[:, :T], **more) for T in range(21)]
    assert torch.equal(parts[0], torch.zeros(2, dtype=torch.float64))
    assert all((b <= a).all() for a, b in itertools.pairwise(parts))
    if not model.mixtures:
        log_p = torch.log_softmax(model(x, **more), 1).gather(1, x[:, None])[:, 0]
        torch.testing.assert_close(parts[-1], log_p.sum(1))


def test_an_untrained_one_knows_nothing():
    torch.manual_seed(0)
    model, x = WaveNet(), torch.randint(256, (1, 1024))
    with torch.no_grad():
        assert abs(-model.log_prob(x) / 1024 - math.log(256)) < 0.1
    assert model.receptive_field == 2 * 1023 + 1
    assert sum(p.numel() for p in model.layers[0].parameters()) == 16512 + 4160 + 16640


def test_the_player_minimises_nats_a_sample():
    model = small()
    [player] = model.players()
    x = torch.randint(12, (3, 20))
    assert player.module is model
    torch.testing.assert_close(player.loss(x), -model.log_prob(x).sum() / 60)
    player.loss(x).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_the_config_makes_an_equal_model():
    model = small(speakers=2, mixtures=2, **COND)
    twin = WaveNet(**model.config).double()
    twin.load_state_dict(model.state_dict())
    more = conditions(model, 2, 10)
    assert torch.equal(twin.sample(2, 10, seed=0, **more), model.sample(2, 10, seed=0, **more))


@torch.no_grad()
def test_features_and_speakers_matter():
    model = small(speakers=3, **COND)
    x, more = torch.randint(12, (1, 40)), conditions(model, 1, 40)
    cond, speaker = more["cond"], more["speaker"]
    before = model(x, cond, speaker)
    assert not torch.equal(model(x, cond, (speaker + 1) % 3), before)
    later = cond.clone()
    later[..., 5] += 1  # stands at step 20, and is mixed in from step 17 on
    after = model(x, later, speaker)
    assert torch.equal(after[..., :17], before[..., :17])
    assert not torch.equal(after[..., 17], before[..., 17])
    # without features, zeros stand for them
    torch.testing.assert_close(model(x, None, speaker), model(x, 0 * cond, speaker))
    without, zeros = (
        model.sample(1, 40, seed=0, cond=c, speaker=speaker) for c in (None, 0 * cond)
    )
    assert torch.equal(without, zeros)


@pytest.fixture(scope="module")
def trained():
    """A model that has learned a noisy sine, and codes that it has not seen."""
    torch.manual_seed(0)
    t = torch.arange(400) / 20 + 20 * torch.rand(40, 1)
    wave = torch.sin(t) + 0.1 * torch.randn(40, 400)
    codes = ((wave.clamp(-1.2, 1.2) / 1.2 + 1) * 31.5).round().long()
    model = WaveNet(8, 2, 24, 48, 32, classes=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(60):
        loss = -model.log_prob(codes[8 + step % 8 * 4 :][:4]).mean() / 400
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, codes[:8]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@torch.no_grad()
def test_narrow_dtypes_cost_less_than_a_hundredth_of_a_nat(trained, dtype):
    model, x = trained

    def nats(dtype):
        logits = logits_of_kernel(model, x, dtype).double()
        return torch.nn.functional.cross_entropy(logits, x).item()

    exact = nats("float32")
    assert exact < 3  # of ln 64 = 4.16
    assert abs(exact + model.log_prob(x).mean().item() / x.shape[1]) < 1e-4
    assert abs(nats(dtype) - exact) < 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
@pytest.mark.parametrize("config", [{}, {"mixtures": 2, "kernel_size": 3}])
def test_a_stream_is_a_sample_in_chunks(config, dtype):
    model = small(**config)
    want = model.sample(3, 50, seed=2**64 - 1, dtype=dtype, temperature=0.8)
    for chunk in (1, 7, 16, 50):
        stream = model.stream(3, seed=2**64 - 1, chunk=chunk, dtype=dtype, temperature=0.8)
        codes = torch.cat([*itertools.islice(stream, -(-50 // chunk))], 1)
        assert torch.equal(codes[:, :50], want), chunk


@pytest.mark.parametrize("sizes", [[1] * 13, [4, 9], [13], [5, 0, 1, 7], [0, 13, 0]])
def test_a_stream_with_features_in_pieces(sizes):
    model = small(speakers=2, **COND)
    cond = torch.randn(3, 3, 13, generator=torch.Generator().manual_seed(0))
    more = {"speaker": torch.tensor([0, 1, 1]), "seed": 5}
    want = model.sample(3, 13 * 4, cond=cond, **more)
    stream = model.stream(3, cond=cond.split(sizes, -1), **more)
    chunks = [*stream]
    assert torch.equal(torch.cat(chunks, 1), want)
    if sizes == [1] * 13:  # a frame is used up as soon as the next is known
        assert [c.shape[1] for c in chunks] == [4] * 13
    assert next(stream, None) is None


def test_a_stream_without_an_end_of_features_reads_one_frame_ahead():
    model, read = small(**COND), []

    def features():
        for i in itertools.count():
            read.append(i)
            yield torch.randn(2, 3, 1)

    stream = model.stream(2, cond=features(), seed=0)
    assert not read
    for i in range(5):
        assert next(stream).shape == (2, 4)
        assert len(read) == i + 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
def test_a_saved_stream_goes_on_as_if_never_paused(tmp_path, dtype):
    model = small()
    straight = torch.cat([*itertools.islice(model.stream(3, seed=1, chunk=11, dtype=dtype), 6)], 1)
    stream = model.stream(3, seed=1, chunk=11, dtype=dtype)
    parts = [*itertools.islice(stream, 2)]
    checkpoint.save(tmp_path / "stream", stream.state_dict(), {})
    state, _ = checkpoint.load(tmp_path / "stream")
    other = model.stream(3, seed=99, chunk=22, dtype=dtype, state=state)
    parts += itertools.islice(other, 2)
    assert torch.equal(torch.cat(parts, 1), straight)
    # and the first one can go back
    stream.load_state_dict(state)
    assert torch.equal(next(stream), parts[2][:, :11])


@pytest.mark.parametrize("pause", [0, 1, 4, 12, 13])
def test_a_saved_stream_with_features_goes_on(tmp_path, pause):
    model = small(**COND)
    cond = torch.randn(2, 3, 13, generator=torch.Generator().manual_seed(0))
    want = model.sample(2, 13 * 4, cond=cond, seed=5)
    frames = iter(cond.split(1, -1))
    stream = model.stream(2, cond=frames, seed=5)
    parts = [*itertools.islice(stream, pause)]
    checkpoint.save(tmp_path / "stream", stream.state_dict(), {})
    state, _ = checkpoint.load(tmp_path / "stream")
    del stream
    parts += model.stream(2, cond=frames, state=state)
    assert torch.equal(torch.cat(parts, 1), want)


def bytes_of_tensors():
    """What all tensors hold that Python knows of."""
    alive = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    return sum({x.data_ptr(): x.untyped_storage().nbytes() for x in alive}.values())


def test_the_memory_of_a_stream_is_constant():
    model = small(torch.float32, **COND)
    frames = (torch.randn(2, 3, 500) for _ in itertools.count())
    for stream in (model.stream(2, seed=0, chunk=2000), model.stream(2, seed=0, cond=frames)):
        sizes = set()
        for _ in range(4):
            for _ in itertools.islice(stream, 3):
                pass
            gc.collect()
            sizes.add(bytes_of_tensors())
        assert len(sizes) == 1


@pytest.mark.parametrize("config", [{}, {"cond_channels": 2, "hop_length": 10000}])
def test_an_interrupted_chunk_is_drawn_again(config):
    torch.manual_seed(0)
    model = WaveNet(10, 1, 32, 64, 64, **config)
    cond = torch.randn(1, 2, 7) if config else None
    want = model.sample(1, 70000, seed=0, cond=cond)
    pieces = cond.split([4, 3], -1) if config else None
    stream = model.stream(1, seed=0, chunk=35000, cond=pieces)
    parts = [next(stream)]
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    codes = torch.cat([*parts, next(stream)], 1)
    assert torch.equal(codes, want[:, : codes.shape[1]])


WRONG_STATES = {
    "a missing one": lambda s: s.pop("rings"),
    "one too many": lambda s: s.update(extra=torch.zeros(1)),
    "other streams": lambda s: s.update(rings=s["rings"][:1]),
    "another dtype": lambda s: s.update(rings=s["rings"].double()),
    "no numbers": lambda s: s["rings"].fill_(math.nan),
    "codes out of range": lambda s: s["history"].fill_(12),
    "codes of another dtype": lambda s: s.update(history=s["history"].int()),
    "a step before the first": lambda s: s["step"].fill_(-1),
    "frames of another width": lambda s: s.update(frames=torch.zeros(2, 4, 1)),
    "frames without a width": lambda s: s.update(frames=torch.zeros(2)),
    "frames that are not finite": lambda s: s.update(frames=torch.full((2, 3, 1), math.inf)),
}


@pytest.mark.parametrize("change", WRONG_STATES.values(), ids=WRONG_STATES)
def test_states_that_do_not_fit(change):
    model = small(**COND)
    stream = model.stream(2, seed=0, chunk=8)
    next(stream)
    state = {k: v.clone() for k, v in stream.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=r"expected|unexpected or missing"):
        model.stream(2, state=state)
    with pytest.raises(ValueError, match=r"expected|unexpected or missing"):
        stream.load_state_dict(state)
    # which leaves the stream as it was
    assert torch.equal(next(stream), model.sample(2, 16, seed=0)[:, 8:])


STREAM = {
    "n": -1,
    "chunk": 0,
    "seed": -1,
    "temperature": -1.0,
    "dtype": "float16",
    "threads": 0,
    "speaker": torch.zeros(2, dtype=torch.int64),
}


@pytest.mark.parametrize("name", STREAM)
def test_streams_that_cannot_be(name):
    with pytest.raises(ValueError, match="expected"):
        small().stream(**{"n": 2, name: STREAM[name]})


@pytest.mark.parametrize("piece", [(2, 4, 1), (1, 3, 1), (3, 1), (2, 3)])
def test_features_of_a_stream_that_do_not_fit(piece):
    for pieces in ([torch.zeros(piece)], [torch.zeros(2, 3, 2), torch.zeros(piece)]):
        stream = small(**COND).stream(2, cond=pieces, seed=0)
        with pytest.raises(ValueError, match=r"stream: cond: expected \(2, 3, F\), got"):
            list(stream)
    with pytest.raises(ValueError, match=r"expected \(2, 0, F\), got \(2, 3, 1\)"):
        next(small().stream(2, cond=[torch.zeros(2, 3, 1)]))


@pytest.mark.parametrize("method", ["cached", "naive"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"n": -1}, ValueError, "expected n >= 0"),
        ({"length": -1}, ValueError, "expected n >= 0 and length >= 0"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"seed": 2**64}, ValueError, "seed: expected"),
        ({"uniforms": torch.zeros(2, 7)}, ValueError, r"uniforms expected \(2, 8, ...\), got"),
        ({"uniforms": torch.zeros(2, 8, 2)}, ValueError, r"uniforms: expected \(n, T\), got"),
        ({"uniforms": torch.full((2, 8), math.nan)}, ValueError, "uniforms: expected values in"),
        ({"uniforms": torch.ones(2, 8)}, ValueError, "uniforms: expected values in"),
        ({"prefix": torch.zeros(2, 9).long()}, ValueError, r"prefix: expected \(2, at most 8\)"),
        ({"prefix": torch.full((2, 3), 12)}, ValueError, "prefix: expected codes in"),
        ({"prefix": torch.zeros(2, 3)}, TypeError, "prefix: expected torch.int64"),
        ({"cond": torch.zeros(2, 3, 1)}, ValueError, r"cond: expected \(2, 3, at least 2\)"),
        ({"cond": torch.zeros(2, 4, 2)}, ValueError, "cond: expected"),
        ({"cond": torch.zeros(2, 3)}, ValueError, "cond: expected"),
        ({"cond": torch.full((2, 3, 2), math.nan)}, ValueError, "cond: expected finite values"),
        ({"speaker": None}, ValueError, r"speaker: expected \(2,\), got None"),
        ({"speaker": torch.tensor([0])}, ValueError, r"speaker: expected \(2,\), got \(1,\)"),
        ({"speaker": torch.tensor([0, 2])}, ValueError, r"speaker: expected values in \[0, 2\)"),
        ({"speaker": torch.tensor([-1, 0])}, ValueError, r"speaker: expected values in \[0, 2\)"),
        ({"speaker": torch.zeros(2)}, TypeError, "speaker: expected torch.int64|int64"),
        ({"temperature": -1.0}, ValueError, "temperature: expected finite"),
        ({"temperature": math.nan}, ValueError, "temperature: expected finite"),
        ({"temperature": math.inf}, ValueError, "temperature: expected finite"),
        ({"dtype": "float16"}, ValueError, "dtype expected"),
        ({"method": "fast"}, ValueError, "method expected 'cached' or 'naive', got 'fast'"),
    ],
    ids=str,
)
def test_samples_that_cannot_be(method, wrong, error, message):
    model = small(speakers=2, **COND)
    options = {"n": 2, "length": 8, "speaker": torch.tensor([0, 1]), "method": method, **wrong}
    with pytest.raises(error, match=message):
        model.sample(**options)


def test_conditions_of_a_model_without():
    model, x = small(), torch.zeros(2, 8, dtype=torch.int64)
    for method in ("cached", "naive"):
        with pytest.raises(ValueError, match=r"cond: expected \(2, 0, at least 8\)"):
            model.sample(2, 8, cond=torch.zeros(2, 3, 8), method=method)
        with pytest.raises(ValueError, match="speaker expected None"):
            model.sample(2, 8, speaker=torch.tensor([0, 0]), method=method)
    with pytest.raises(ValueError, match=r"cond: expected \(2, 0, at least 8\)"):
        model(x, torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match="speaker: expected None"):
        model(x, None, torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.zeros(8).long()}, ValueError, r"x: expected \(B, T\), got \(8,\)"),
        ({"x": torch.zeros(2, 8)}, TypeError, "x: expected int64, got torch.float32"),
        ({"x": torch.full((2, 8), 12)}, ValueError, r"x: expected codes in \[0, 12\)"),
        ({"x": torch.full((2, 8), -1)}, ValueError, r"x: expected codes in \[0, 12\)"),
        ({"cond": torch.zeros(2, 3, 1)}, ValueError, r"cond: expected \(2, 3, at least 2\)"),
        ({"cond": torch.zeros(2, 3)}, ValueError, r"cond: expected .* got \(2, 3\)"),
        ({"cond": torch.zeros(1, 3, 2)}, ValueError, "cond: expected"),
        ({"speaker": None}, ValueError, r"speaker: expected \(2,\), got None"),
        ({"speaker": torch.tensor([0, 2])}, ValueError, "speaker: expected values in"),
        ({"speaker": torch.tensor([0.0, 1.0])}, TypeError, "speaker: expected int64"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit(wrong, error, message):
    model = small(torch.float32, speakers=2, **COND)
    good = {"x": torch.zeros(2, 8).long(), "cond": torch.zeros(2, 3, 2)}
    good["speaker"] = torch.tensor([0, 1])
    with pytest.raises(error, match=message):
        model(**{**good, **wrong})
    with pytest.raises(error, match=message):
        model.log_prob(**{**good, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("layers", "stacks", "residual_channels", "skip_channels")),
        *({name: -1} for name in ("cond_channels", "speakers", "mixtures")),
        *({"gate_channels": c} for c in (0, 1, 7)),
        *({"kernel_size": k} for k in (0, 1, 4, 2.0)),
        *({"classes": 1}, {"hop_length": 0}, {"layers": 5}, {"layers": "4"}),
    ],
    ids=str,
)
def test_models_that_cannot_be(wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=rf"WaveNet: {name}: expected .*, got {wrong[name]}$"):
        WaveNet(**{**SMALL, **wrong})


@torch.no_grad()
def test_weights_that_are_not_finite():
    model = small()
    model.hidden.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="hidden: expected finite values, got NaN or Inf"):
        model.sample(1, 4)


def test_autocast_changes_no_sample():
    model = small(torch.float32)
    for method in ("cached", "naive"):
        plain = model.sample(2, 30, seed=0, method=method)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.sample(2, 30, seed=0, method=method), plain)


def test_forward_mode_is_right():
    model, x = small(), torch.randint(12, (2, 20))
    names, values = zip(*model.named_parameters(), strict=True)
    tangents = [torch.randn_like(v) for v in values]

    def nats(*parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(model, named, (x,)).logsumexp(1).sum()

    _, slope = torch.func.jvp(nats, tuple(v.detach() for v in values), tuple(tangents))
    grads = torch.autograd.grad(nats(*values), values)
    expected = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_weights_and_logits_that_are_not_finite(method):
    model = small(torch.float32)
    with torch.no_grad():
        model.out.bias[3] = math.nan
    with pytest.raises(ValueError, match="out_bias: expected finite values"):
        model.sample(1, 6, seed=0, method=method)
    with torch.no_grad():
        model.out.bias[3] = 0
        model.hidden.weight.mul_(1e30)
        model.out.weight.mul_(1e30)
    with pytest.raises(ValueError, match="logits of stream 0 at step 0 are not finite"):
        model.sample(1, 6, seed=0, method=method)
