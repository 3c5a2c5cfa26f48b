"""The loop descends as plain torch does, and no way of stopping it changes where it arrives.

Run as a script, this file trains in processes of its own: test_train.py OUT '{"kills": 30}'.
"""

import importlib.machinery
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgen.checkpoint import CheckpointError, latest, load
from fastgen.game import Player
from fastgen.train import learning_rate, train


class Toy(nn.Module):
    """Least squares; noisy: with batch normalization and dropout, so with buffers and chance."""

    def __init__(self, width=8, noisy=True):
        super().__init__()
        self.config = {"width": width, "noisy": noisy}
        middle = [nn.BatchNorm1d(width), nn.Dropout(0.2)] if noisy else []
        self.layers = nn.Sequential(nn.Linear(4, width), *middle, nn.Tanh(), nn.Linear(width, 1))

    def loss(self, x, y):
        return (self.layers(x) - y).square().mean()

    def players(self):
        return [Player("model", self, self.loss)]


class Source:
    """Rows whose y is the sum of x; `at` calls functions before some steps' batches."""

    def __init__(self, at=None, dtype=torch.float32):
        self.at, self.dtype = at or {}, dtype

    def batch(self, step, size):
        self.at.get(step, lambda: None)()
        x = torch.randn(size, 4, generator=torch.Generator().manual_seed(step), dtype=self.dtype)
        return x, x.sum(1, keepdim=True)


def toy(seed=0, **config):
    torch.manual_seed(seed)
    return Toy(**config)


def run(out, at=None, noisy=True, **options):
    defaults = {"steps": 12, "batch_size": 4, "lr": 0.01, "save_every": 4, "progress": False}
    defaults |= {"schedule": "cosine", "log_every": 2, "validate": spread, "validate_every": 3}
    model = toy(int(os.environ.get("RANK", "0")), noisy=noisy)
    source = Source(at)
    if not noisy:
        model, source.dtype = model.double(), torch.float64
    return train(model, source, out=out, **defaults | options)


def spread(model):
    """A validation, with randomness of its own."""
    return {"spread": model.layers(torch.randn(8, 4, dtype=model.layers[0].weight.dtype)).std()}


def press():
    os.kill(os.getpid(), signal.SIGINT)


def later(monkeypatch):
    now = time.monotonic() + 1
    monkeypatch.setattr(time, "monotonic", lambda: now)


def lines(out, drop=("seconds", "samples/s")):
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in drop} for row in rows]


def results(out):
    """All that a run leaves, apart from times."""
    return {p.name: p.read_bytes() for p in Path(out).glob("*.safetensors")}, lines(out)


def steps(out):
    return sorted(int(p.stem[5:]) for p in Path(out).glob("step-*.safetensors"))


def script(out, *launcher, timeout=300, **options):
    command = [sys.executable, *launcher, __file__, str(out), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, timeout=timeout, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the children: torch's sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    run(out)
    return out


def test_run_folder(straight):
    assert steps(straight) == [8, 12]
    assert len(list(straight.iterdir())) == 4
    tensors, meta = load(straight / "model.safetensors")
    assert meta == {"model": "Toy", "config": {"width": 8, "noisy": True}, "step": 12}
    assert tensors.keys() == toy().state_dict().keys()
    log = lines(straight, drop=())
    told = [2, 3, 4, 6, 8, 9, 10, 12]  # every other step, and those that are validated
    assert [row["step"] for row in log if "loss" in row] == told
    assert [row["step"] for row in log if "validate/spread" in row] == [3, 6, 9, 12]
    assert log[0].keys() == {"step", "loss", "lr", "grad_norm", "seconds", "samples/s"}
    assert log[0]["lr"] == learning_rate(
        2, steps=12, lr=0.01, warmup=0, schedule="cosine", final=0.01
    )


def test_returns_the_averaged_model(tmp_path):
    model = run(tmp_path, meta={"license": "CC0"}, save_every=100)
    tensors, meta = load(tmp_path / "model.safetensors")
    assert meta["license"] == "CC0"
    assert not model.training
    assert all(torch.equal(t, tensors[name]) for name, t in model.state_dict().items())
    state, _ = load(latest(tmp_path))
    for name, tensor in tensors.items():
        counts = name.endswith("num_batches_tracked")  # which is not averaged, as statistics are
        assert torch.equal(tensor, state[f"model.{name}"]) == counts, name
        assert torch.equal(tensor, state[f"averaged.{name}"])


class Fresh(nn.Module):
    """A normalisation that puts new tensors in the places of its buffers."""

    def __init__(self):
        super().__init__()
        self.config, self.net = {}, nn.Linear(2, 1)
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.zeros((), dtype=torch.int64))

    def players(self):
        return [Player("fresh", self, self.loss)]

    def loss(self, x):
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0)
            self.running_var = self.running_var + 1
        return self.net(x - self.running_mean).square().mean()


def test_running_statistics_are_averaged_where_new_ones_take_their_places(tmp_path):
    torch.manual_seed(0)
    source = types.SimpleNamespace(batch=lambda step, size: (torch.full((size, 2), 5.0),))
    averaged = train(Fresh(), source, out=tmp_path, steps=5, batch_size=4, ema=0.5, progress=False)
    mean = average = 0.0
    for step in range(1, 6):
        mean, decay = 0.9 * mean + 0.5, min(0.5, step / (step + 9))
        average = decay * average + (1 - decay) * mean
    torch.testing.assert_close(averaged.running_mean, torch.full((2,), average))
    assert averaged.running_var == 5  # of whole numbers there is no average


def test_descends_as_plain_torch(tmp_path):
    options = {"steps": 20, "lr": 0.05, "warmup": 4, "schedule": "exponential", "final": 0.1}
    model, plain = toy(noisy=False).double(), toy(noisy=False).double()
    source, average = Source(dtype=torch.float64), toy(noisy=False).double().state_dict()
    # Between the smallest and the largest norm, so that some steps are clipped and some not.
    options |= {"clip": 1.0, "ema": 0.5, "betas": (0.8, 0.9), "eps": 0.01, "log_every": 1}
    mean = train(model, source, out=tmp_path, batch_size=4, progress=False, **options)
    adam = torch.optim.Adam(plain.parameters(), betas=(0.8, 0.9), eps=0.01, foreach=False)
    norms = []
    for step in range(1, 21):
        loss = plain.loss(*source.batch(step - 1, 4))
        adam.zero_grad()
        loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in plain.parameters()]).norm())
        for p in plain.parameters():
            p.grad *= min(1, 1 / norms[-1])
        p = max(0, (step - 4) / 16)
        adam.param_groups[0]["lr"] = 0.05 * (step / 4 if step < 4 else 0.1**p)
        adam.step()
        decay = min(0.5, step / (step + 9))
        for name, weight in plain.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * weight
    assert min(norms) < 1 < max(norms)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mean.state_dict()[name], average[name], rtol=1e-10, atol=1e-12)
    log = lines(tmp_path)
    torch.testing.assert_close([row["grad_norm"] for row in log], [float(n) for n in norms])
    assert log[-1]["loss"] < log[0]["loss"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1]),
        ("cosine", [0.5, 1, 0.75, 0.5]),
        ("exponential", [0.5, 1, 0.5**0.5, 0.5]),
    ],
)
def test_learning_rate(schedule, expected):
    options = {"steps": 4, "lr": 1.0, "warmup": 2, "schedule": schedule, "final": 0.5}
    if schedule == "constant":
        options["steps"] = 5
    rates = [learning_rate(step, **options) for step in range(1, len(expected) + 1)]
    torch.testing.assert_close(rates, [float(rate) for rate in expected])


class Odd(nn.Module):
    """Tied, frozen, unused and channels-last parameters."""

    def __init__(self, flat=False):
        super().__init__()
        self.config = {}
        self.conv = nn.Conv2d(2, 3, 3)
        if not flat:
            self.conv.to(memory_format=torch.channels_last)
        self.head = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.head.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))

    def loss(self, x):
        y = self.conv(x).mean((2, 3))
        return (self.tied(self.head(y)) * self.frozen).square().mean()

    def players(self):
        return [Player("odd", self, self.loss)]


class Images:
    def batch(self, step, size):
        return (torch.randn(size, 2, 5, 5, generator=torch.Generator().manual_seed(step)),)


def test_odd_parameters(tmp_path):
    torch.manual_seed(0)
    odd, plain = Odd(), Odd(flat=True)
    plain.load_state_dict(odd.state_dict())
    start = {name: t.clone() for name, t in odd.state_dict().items()}
    train(odd, Images(), out=tmp_path, steps=5, batch_size=2, lr=0.01, progress=False)
    adam = torch.optim.Adam(plain.parameters(), lr=0.01, foreach=False)
    for step in range(5):
        adam.zero_grad()
        plain.loss(*Images().batch(step, 2)).backward()
        adam.step()
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(odd.state_dict()[name].contiguous(), weight)
        assert torch.equal(start[name], weight) == (name in ("frozen", "unused"))
    train(odd, Images(), out=tmp_path, steps=6, batch_size=2, progress=False)
    assert odd.tied.weight is odd.head.weight


def test_bfloat16(tmp_path):
    seen = []
    model = toy()
    model.layers[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    options = {"steps": 2, "batch_size": 4, "progress": False}
    train(model, Source(), out=tmp_path, dtype="bfloat16", **options)
    assert seen == [torch.bfloat16] * 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_validation_sees_the_averaged_model(tmp_path):
    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        model.train()
        seen.append(model.layers[0].weight.clone())
        return {"a": torch.tensor(1.5), "b": float("nan")}

    seen = []
    mean = run(tmp_path, validate=validate, validate_every=5)
    assert len(seen) == 3
    assert torch.equal(mean.layers[0].weight, seen[-1])
    row = next(row for row in lines(tmp_path) if "validate/a" in row)
    assert row == {"step": 5, "validate/a": 1.5, "validate/b": None}


def test_seed_decides(straight, tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    assert results(tmp_path / "a") == results(straight)
    assert results(tmp_path / "b") != results(straight)


@pytest.mark.parametrize("at", [1, 6, 11])
def test_resume_is_exact(straight, tmp_path, at):
    """Stopped before the first checkpoint, between two, and before the last."""
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, at={at: lambda: 1 / 0})
    assert steps(tmp_path) == {1: [], 6: [4], 11: [4, 8]}[at]
    run(tmp_path)
    assert results(tmp_path) == results(straight)


def test_kill_at_any_moment(tmp_path):
    """Thirty children save at each step and are killed; what is left always loads and goes on."""
    out = tmp_path / "run"
    child = script(out, kills=30)
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    assert told["steps"] == sorted(told["steps"])
    assert told["leftovers"] > 0, "no kill fell into a write"
    options = {"schedule": "constant", "steps": told["steps"][-1] + 3, "keep": 1, "validate": None}
    run(out, save_every=1, **options)
    run(tmp_path / "straight", save_every=10**6, **options)
    assert results(out) == results(tmp_path / "straight")
    assert not list(out.glob(".*"))


def kill_children(out, kills):
    """What latest checkpoint each killed child left, and how many were killed while writing."""
    random.seed(0)
    run(f"{out}-first", steps=1)  # what torch imports late, once for all children
    seen, leftovers = [], 0
    while len(seen) < kills:
        child = os.fork()
        if child == 0:
            run(out, steps=10**6, save_every=1, schedule="constant", keep=1, validate=None)
        time.sleep(random.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = latest(out)
        seen.append(0 if newest is None else load(newest)[1]["step"])
        leftovers += any(Path(out).glob(".*.tmp"))
        if newest is not None:
            assert load(Path(out) / "model.safetensors")[1]["step"] >= seen[-1]
    print(json.dumps({"steps": seen, "leftovers": leftovers}))


def test_full_disk(straight, tmp_path):
    """The limit on a file's size stands for the disk's; it is reached at the third checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="safetensors"):
            run(tmp_path, at={9: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == [4, 8]
    assert not list(tmp_path.glob(".*"))
    run(tmp_path)
    assert results(tmp_path) == results(straight)


def test_first_interrupt_finishes_the_step_and_saves(straight, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="step 6"):
        run(tmp_path, at={5: press})
    assert steps(tmp_path) == [4, 6]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(tmp_path, keep=3)
    (tmp_path / "step-00000006.safetensors").unlink()
    assert results(tmp_path) == results(straight)


def test_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    def twice():
        press()
        later(monkeypatch)
        press()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, at={5: twice})
    assert steps(tmp_path) == [4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_while_saving(straight, tmp_path, monkeypatch):
    """The first lets the save end, a second breaks it off and leaves nothing half-written."""
    fsync, pressed = os.fsync, []

    def slow(descriptor):
        if steps(tmp_path) == [4] and len(pressed) < 2:
            pressed.append(True)
            press()
            later(monkeypatch)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    assert len(pressed) == 2
    assert steps(tmp_path) == [4]
    assert not list(tmp_path.glob(".*"))
    run(tmp_path)
    assert results(tmp_path) == results(straight)


def test_interrupt_after_the_last_step_is_not_lost(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validate=lambda model: press() or {}, validate_every=100)
    assert steps(tmp_path) == [8, 12]


def test_other_handlers_and_threads_are_left_alone(tmp_path):
    got = []
    old = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        run(tmp_path / "a", at={5: press})
    finally:
        signal.signal(signal.SIGINT, old)
    assert got == [signal.SIGINT]
    thread = threading.Thread(target=run, args=(tmp_path / "b",))
    thread.start()
    thread.join()
    assert steps(tmp_path / "b") == [8, 12]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "step 7: loss .*nan"),
        (1e30, "step 7: loss .*inf"),
        (1e15, "step 7: gradient"),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run(tmp_path, value, message):
    class Bad(Source):
        def batch(self, step, size):
            x, y = super().batch(step, size)
            return x, y.fill_(value) if step == 6 else y

    class Steep(Toy):
        def loss(self, x, y):
            return super().loss(x, y) if y[0, 0] != 1e15 else (self.layers(x) * 1e25).mean()

    torch.manual_seed(0)
    options = {"steps": 12, "batch_size": 4, "save_every": 4, "progress": False}
    with pytest.raises(ValueError, match=message):
        train(Steep(), Bad(), out=tmp_path, **options)
    assert steps(tmp_path) == [4]
    load(latest(tmp_path))


def test_log_drops_what_will_be_written_again(straight, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, at={7: lambda: 1 / 0})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 0}\nnot JSON\n[1]\n{"step": 3}')
    run(tmp_path)
    assert results(tmp_path) == results(straight)


def test_log_is_on_disk_before_a_checkpoint(tmp_path, monkeypatch):
    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino == (tmp_path / "log.jsonl").stat().st_ino)

    synced = []
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, at={0: lambda: monkeypatch.setattr(os, "fsync", fsync), 5: lambda: 1 / 0})
    assert steps(tmp_path) == [4]
    assert synced[0]
    assert not any(synced[1:])


def test_a_finished_run_is_left_alone(straight, tmp_path):
    run(tmp_path)
    before = results(tmp_path)
    mean = run(tmp_path, at={step: lambda: 1 / 0 for step in range(20)})
    assert results(tmp_path) == before
    assert torch.equal(
        mean.layers[0].weight, load(tmp_path / "model.safetensors")[0]["layers.0.weight"]
    )


def test_another_run_in_the_folder(tmp_path):
    run(tmp_path)
    before = results(tmp_path)
    with pytest.raises(CheckpointError, match="noisy expected False, got True"):
        run(tmp_path, noisy=False)
    with pytest.raises(ValueError, match="at step 12 already, expected at most 11"):
        run(tmp_path, steps=11)
    with pytest.raises(CheckpointError, match="data expected 'mnist', got None"):
        run(tmp_path, meta={"data": "mnist"})
    assert results(tmp_path) == before
    run(tmp_path / "mnist", steps=2, meta={"data": "mnist"})
    for other in ({"data": "fashion"}, {"data": ["mnist"]}, {}):
        with pytest.raises(CheckpointError, match=r"data expected .*, got 'mnist'"):
            run(tmp_path / "mnist", steps=3, meta=other)
    run(tmp_path / "mnist", steps=3, meta={"data": "mnist", "license": "CC0"})
    assert load(tmp_path / "mnist" / "model.safetensors")[1]["license"] == "CC0"


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"keep": 0},
        {"log_every": 0},
        {"save_every": -1},
        {"validate_every": 0},
        {"warmup": -1},
        {"seed": -1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"clip": 0.0},
        {"final": 1.5},
        {"ema": 1.5},
        {"schedule": "linear"},
        {"dtype": "float16"},
        {"meta": {"a": float("nan")}},
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, option):
    name = "JSON" if "meta" in option else next(iter(option))
    with pytest.raises(ValueError, match=name):
        run(tmp_path / "run", **option)
    assert not (tmp_path / "run").exists()


def test_bad_games_and_batches_are_refused(tmp_path):
    options = {"out": tmp_path, "steps": 1, "batch_size": 4, "progress": False}
    model = toy()
    first, last = model.layers[0], model.layers[-1]
    for players, match in (
        ([], "different names"),
        ([Player("a", first, model.loss), Player("a", last, model.loss)], "different names"),
        ([Player("a", model, model.loss), Player("b", first, model.loss)], "one owner"),
        ([Player("a", model, model.loss, steps=0)], "steps >= 1"),
        ([Player("a", model, model.loss, lr=0.0)], "lr > 0"),
    ):
        model.players = lambda players=players: players
        with pytest.raises(ValueError, match=match):
            train(model, Source(), **options)
    model.players = lambda: [Player("a", model, model.loss, steps=2)]
    with pytest.raises(ValueError, match="one step a turn"):
        train(model, Source(), simultaneous=True, **options)
    with pytest.raises(ValueError, match="parameters to train, got none"):
        train(toy().requires_grad_(False), Source(), **options)
    model = toy()
    model.layers[0].double()
    with pytest.raises(TypeError, match="float64"):
        train(model, Source(), **options)
    model = toy()
    model.layers[0].weight = nn.Parameter(torch.randn(8, 8)[:, :4])
    with pytest.raises(ValueError, match=r"layers\.0\.weight expected to have no gaps"):
        train(model, Source(), **options)
    model = toy()
    model.loss = lambda x, y: model.layers(x)
    with pytest.raises(
        ValueError, match=r"model's loss expected to be a scalar, got shape \(4, 1\)"
    ):
        train(model, Source(), **options)
    source = Source()
    source.batch = lambda step, size: (torch.zeros(size, 4), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="expected to have 4 rows, got 3"):
        train(toy(), source, **options)
    assert steps(tmp_path) == []


def fake(monkeypatch, name, **members):
    """A module that stands for one that may not be installed; without members, its absence."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module if members else None)


def test_tensorboard(tmp_path, monkeypatch):
    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    written = []
    fake(monkeypatch, "tensorboard", present=True)
    fake(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    run(tmp_path / "run", tensorboard=True, steps=2)
    loss = lines(tmp_path / "run")[0]["loss"]
    assert written[0] == (tmp_path / "run" / "tensorboard", 1)
    assert ("loss", loss, 2) in written
    assert written[-1] == "closed"
    fake(monkeypatch, "tensorboard")
    with pytest.raises(ModuleNotFoundError, match=r"fastgen\[tensorboard\]"):
        run(tmp_path / "other", tensorboard=True)
    assert not (tmp_path / "other").exists()


def test_progress_off_a_terminal(tmp_path, capsys):
    run(tmp_path / "a", progress=True)
    told = capsys.readouterr()
    assert [line.partition(":")[0] for line in told.err.splitlines()] == [
        "step 1 of 12",
        "step 12 of 12",
    ]
    assert told.out == ""
    run(tmp_path / "b", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("installed", [True, False])
def test_progress_on_a_terminal(tmp_path, monkeypatch, installed):
    class Bar:
        def __init__(self, initial, total, unit):
            self.n, self.total = initial, total
            bars.append(self)

        def set_postfix_str(self, text, refresh):
            assert text.startswith("loss ")

        def update(self, n):
            self.n += n

        def close(self):
            self.closed = True

    bars, terminal = [], io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    fake(monkeypatch, "tqdm", **({"tqdm": Bar} if installed else {}))
    run(tmp_path, progress=True)
    if installed:
        [bar] = bars
        assert (bar.n, bar.total, bar.closed) == (12, 12, True)
    assert ("step 12 of 12" in terminal.getvalue()) != installed


def test_latest(straight, tmp_path):
    assert latest(straight) == straight / "step-00000012.safetensors"
    assert latest(tmp_path) is None


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def assert_close(out, other):
    tensors, expected = load(latest(out))[0], load(latest(other))[0]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def test_two_processes_equal_one_and_resume(tmp_path):
    """The second process has other weights, so must take the first's; it alone is interrupted."""
    run(tmp_path / "one", noisy=False, clip=1.0)
    two = script(tmp_path / "two", *TORCHRUN, noisy=False, clip=1.0, interrupt=5)
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout) == [6]
    assert_close(tmp_path / "two", tmp_path / "one")
    for row, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert row == pytest.approx(expected, rel=1e-9)


def interrupted_and_resumed(out, interrupt, **options):
    """Ctrl-C as a process of torchrun's gets it, from the terminal and again from torchrun."""
    rank = int(os.environ["RANK"])
    try:
        run(out, at={interrupt: lambda: [press() for _ in range(2 * rank)]}, **options)
    except KeyboardInterrupt:
        if rank == 0:
            print(steps(out)[-1:])
    run(out, **options)


def test_batch_must_divide(tmp_path, monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(ValueError, match="batch_size 3 does not divide by 2 processes"):
        run(tmp_path / "run", batch_size=3)
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if "kills" in given:
        kill_children(sys.argv[1], **given)
    else:
        interrupted_and_resumed(sys.argv[1], **given)
