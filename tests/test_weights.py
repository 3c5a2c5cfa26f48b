"""A model loads from every place it can be in, or one error names the file and the fault."""

import pytest
import torch

from fastgen import WaveNet, weights
from fastgen.checkpoint import CheckpointError, save
from fastgen.train import train

META = {"model": "WaveNet", "audio": {"rate": 8000}}


def wavenet():
    torch.manual_seed(0)
    return WaveNet(2, 1, 4, 4, 4, classes=8)


class Source:
    def batch(self, step, size):
        return (torch.randint(8, (size, 10), generator=torch.Generator().manual_seed(step)),)


def write(path, tensors=None, **meta):
    model = wavenet()
    save(path, tensors or model.state_dict(), {"config": model.config, **META, **meta})
    return path


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_file(tmp_path):
    path = write(tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    model, meta = weights.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(model, wavenet())
    assert not model.training
    assert meta["audio"] == {"rate": 8000}
    assert model.log_prob(torch.zeros(1, 3, dtype=torch.int64)).requires_grad


def test_a_run(tmp_path):
    averaged = train(
        wavenet(), Source(), out=tmp_path, steps=3, batch_size=2, progress=False, meta=META
    )
    for path in (tmp_path, str(tmp_path), tmp_path / "step-00000003.safetensors"):
        model, meta = weights.load(path)
        assert equal(model, averaged)
        assert meta["step"] == 3
    (tmp_path / "model.safetensors").unlink()
    assert equal(weights.load(tmp_path)[0], averaged)


def test_a_shipped_name(tmp_path, monkeypatch):
    write(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(weights.resources, "files", lambda package: tmp_path)
    assert weights.shipped() == ["tiny"]
    assert equal(weights.load("tiny")[0], wavenet())
    with pytest.raises(FileNotFoundError, match="other: there is no such model: expected tiny, a"):
        weights.load("other")


def test_what_is_shipped_loads():
    for name in weights.shipped():
        weights.load(name)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model"):
        weights.load(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="found no checkpoint"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"model": "VAE"}, r"model: expected one of \[.*'WaveNet'\], got 'VAE'"),
        ({"model": ["WaveNet"]}, "model: expected one of"),
        ({"model": None}, "model: expected one of"),
        ({"model": "nn.Module"}, "model: expected one of"),
        ({"config": [1]}, "config: expected an object"),
        ({"config": {"layers": 2, "colour": 3}}, "config: .*colour"),
        ({"config": {"layers": 3, "stacks": 2}}, "config: .*multiple"),
        ({"config": {"layers": "2"}}, "config: .*layers"),
        ({"config": {"layers": 10**9, "stacks": 1}}, "config: 1000000000 layers"),
        ({"config": {"layers": 2, "stacks": 1, "residual_channels": 10**6}}, "shape"),
        ({"model": "MADE", "config": {"hidden": [1] * 10**6}}, "config: 1000000 layers"),
        ({"model": "RealNVP", "config": {"blocks": 10**7}}, "config: 10000000 layers"),
        ({"model": "NICE", "config": {"layers": 9, "depth": 9}}, "config: 81 layers"),
        (
            {"model": "Glow", "config": {"scales": 10**6}},
            "config: Glow: scales: expected at most 16",
        ),
        ({"model": "MADE", "config": {"shape": [10**9]}}, "config: .*at most 1048576 pixels"),
        ({"model": "MADE", "config": {"hidden": [10**30]}}, "config"),
        ({"model": "NADE", "config": {"shape": [1 << 20], "hidden": 1 << 40}}, "missing"),
        ({"model": "FVSBN", "config": {"order": "raster"}}, "config: .*permutation"),
        ({"config": {"layers": 2, "stacks": 1, "residual_channels": 10**30}}, "config"),
    ],
)
def test_a_file_of_a_model_that_cannot_be(tmp_path, meta, message):
    path = write(tmp_path / "a.safetensors", **meta)
    with pytest.raises(CheckpointError, match=f"a.safetensors: .*{message}"):
        weights.load(path)


def test_weights_that_do_not_fit(tmp_path):
    state = wavenet().state_dict()
    name = "layers.0.conv.weight"
    for broken, message in (
        ({k: v for k, v in state.items() if k != name}, "missing"),
        ({**state, "more": state[name]}, "unexpected"),
        ({**state, name: state[name] * float("nan")}, "finite"),
        ({**state, name: state[name][..., :1].contiguous()}, "shape"),
        ({**state, name: state[name].double()}, "dtype"),
    ):
        path = write(tmp_path / "a.safetensors", broken)
        with pytest.raises(CheckpointError, match=f"a.safetensors: .*{message}"):
            weights.load(path)


def test_a_truncated_file(tmp_path):
    path = write(tmp_path / "a.safetensors")
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            weights.load(path)
