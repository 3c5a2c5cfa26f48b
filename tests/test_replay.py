"""A step of training that is replayed as a graph is the step that would have run."""

import contextlib
import warnings

import pytest
import torch
from test_train import Source, lines, run, toy

import fastgen
from fastgen import game, replay
from fastgen.kernels._op import may_wait
from fastgen.train import train

GPU = torch.cuda.is_available()


class Graphs:
    """In place of CUDA: a capture runs nothing, a replay runs the function on the same memory."""

    def __init__(self, monkeypatch, found=(), error=None, shape=(3,)):
        self.captured, self.replayed, self.error, self.shape = [], 0, error, shape
        self.found = list(found)
        monkeypatch.setattr(replay, "capture", self.capture)
        monkeypatch.setattr(replay, "waits", lambda: contextlib.nullcontext(self.found))

    def capture(self, fn, inputs):
        if self.error:
            raise self.error
        self.captured.append([tuple(t.shape) for t in inputs])
        output = inputs[0].new_full(self.shape, torch.nan)

        def run():
            self.replayed += 1
            output.copy_(fn(*inputs))

        return run, output


@pytest.fixture
def sums():
    """A replayed function, and how often it ran."""
    calls = []

    def fn(x, y):
        calls.append(x)
        return torch.stack([x.sum(), y.sum(), x.sum() + 1])

    return replay.Replay(fn), calls


def test_each_set_of_shapes_is_captured_once(sums, monkeypatch):
    graphs, (step, calls) = Graphs(monkeypatch), sums
    for n in (2, 3, 2, 3, 2, 3, 2, 3, 2):
        x, y = torch.randn(n), torch.randn(n + 1)
        assert torch.equal(step(x, y), torch.stack([x.sum(), y.sum(), x.sum() + 1]))
    assert graphs.captured == [[(2,), (3,)], [(3,), (4,)]]
    assert graphs.replayed == 3
    assert len(calls) == 9


def test_what_is_returned_is_not_written_again(sums, monkeypatch):
    Graphs(monkeypatch)
    outputs = [sums[0](torch.full((1,), float(i)), torch.ones(1)) for i in range(6)]
    assert [y[0].item() for y in outputs] == [0, 1, 2, 3, 4, 5]


def test_a_step_that_waits_is_not_captured(sums, monkeypatch):
    graphs = Graphs(monkeypatch, found=["called a synchronizing CUDA operation (model.py:3)"])
    step, calls = sums
    x = torch.ones(2)
    for _ in range(replay.WARM - 1):
        step(x, x)
    with pytest.warns(RuntimeWarning, match=r"without CUDA graphs: .*\(model.py:3\)"):
        step(x, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(x, x)
    assert len(calls) == replay.WARM + 1
    assert not graphs.captured


def test_a_capture_that_fails_is_not_tried_again(sums, monkeypatch):
    Graphs(monkeypatch, error=RuntimeError("no memory\nmore"))
    step, calls = sums
    x = torch.ones(2)
    for _ in range(replay.WARM):
        step(x, x)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: no memory$"):
        got = step(x, x)
    assert got[0] == 2
    step(x, x)
    assert len(calls) == replay.WARM + 2


def test_a_run_of_graphs_is_the_run_without(tmp_path, monkeypatch):
    graphs, init = Graphs(monkeypatch, shape=(1, 3)), game.Descent.__init__

    def with_graphs(self, *args):
        init(self, *args)
        self.lr = torch.zeros(())  # as on a GPU

    monkeypatch.setattr(game.Descent, "__init__", with_graphs)
    replayed = run(tmp_path / "graphs", clip=0.5, noisy=False)  # no numbers drawn on the CPU
    assert graphs.replayed == 12 - replay.WARM
    monkeypatch.setattr(replay, "WARM", 100)
    plain = run(tmp_path / "plain", clip=0.5, noisy=False)
    for a, b in zip(plain.state_dict().values(), replayed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert lines(tmp_path / "plain") == lines(tmp_path / "graphs")


def test_a_step_that_draws_on_the_cpu_is_not_captured(monkeypatch):
    graphs = Graphs(monkeypatch)
    step = replay.Replay(lambda x: x + torch.rand(()))
    for _ in range(replay.WARM - 1):
        step(torch.ones(1))
    with pytest.warns(RuntimeWarning, match="draws random numbers on the CPU"):
        step(torch.ones(1))
    step(torch.ones(1))
    assert not graphs.captured


def test_shapes_that_come_late_are_not_captured(sums, monkeypatch):
    graphs = Graphs(monkeypatch)
    for n in range(1, replay.MOST + 2):
        for _ in range(replay.WARM + 1):
            assert sums[0](torch.ones(n), torch.ones(1))[0] == n
    assert len(graphs.captured) == replay.MOST


def test_what_torch_tells_of_waits(monkeypatch):
    def told(mode):
        warnings.warn("Synchronization debug mode is a prototype", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(UserWarning), replay.waits() as found:
            warnings.warn("called a synchronizing CUDA operation (Triggered at x)", stacklevel=1)
    assert len(found) == 1
    assert found[0].startswith("called a synchronizing CUDA operation (")
    assert "test_replay.py" in found[0]


def test_values_may_be_looked_at_on_the_cpu():
    assert may_wait(torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wavenet_trains_by_graphs_on_a_gpu(tmp_path, monkeypatch, dtype):
    class Codes:
        def batch(self, step, size):
            return (torch.randint(64, (size, 300), generator=torch.manual_seed(step)),)

    def trained(name):
        torch.manual_seed(0)
        model = fastgen.WaveNet(6, 2, 32, 32, 32, 64).cuda()
        options = {"steps": 12, "batch_size": 4, "dtype": dtype, "clip": 1.0, "progress": False}
        return train(model, Codes(), out=tmp_path / name, **options).state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        graphs = trained("graphs")
    monkeypatch.setattr(replay, "WARM", 100)
    plain = trained("plain")
    for name, value in plain.items():
        assert torch.equal(graphs[name], value), name


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_random_numbers_of_graphs_on_a_gpu(tmp_path, monkeypatch):
    def trained(name):
        options = {"steps": 12, "batch_size": 4, "progress": False}
        return train(toy().cuda(), Source(), out=tmp_path / name, **options).state_dict()

    graphs = trained("graphs")
    monkeypatch.setattr(replay, "WARM", 100)
    for a, b in zip(graphs.values(), trained("plain").values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_waits_are_told_of_on_a_gpu():
    x = torch.ones(1, device="cuda")
    with replay.waits() as found:
        x.sum().item()
    assert "test_replay.py" in found[0]
    with replay.waits() as found:
        x.sum()
    assert not found
    assert may_wait(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert not may_wait(x)
