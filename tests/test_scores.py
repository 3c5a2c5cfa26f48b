"""Scores of samples that are the data, one image of it, and noise; the networks that find them."""

import numpy as np
import pytest
import torch

from fastgen import weights
from fastgen.checkpoint import CheckpointError, save
from fastgen.gans import Canvas
from fastgen.metrics.lenet import LeNet
from fastgen.scores import Scores, made, network, scores, shuffled
from fastgen.train import train

SHAPE = (1, 8, 8)
SIZES = {"shape": SHAPE, "classes": 2, "channels": (3, 4), "features": 5}


def pictures(n, seed):
    """Images bright on the left, or of label 1 on the right."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 160, (n, *SHAPE), generator=generator)
    label = torch.arange(n) * 2 // n  # sorted, as sets may be
    x[label == 0, ..., :4] += 95
    x[label == 1, ..., 4:] += 95
    return x.to(torch.uint8), label


class Source:
    def batch(self, step, size):
        return pictures(size, 100 + step)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("run")
    options = {"steps": 60, "batch_size": 32, "lr": 0.01, "ema": 0.9, "progress": False}
    return train(LeNet(**SIZES), Source(), out=out, **options), out


@pytest.fixture
def data(tmp_path):
    (x, y), (test, z) = pictures(400, 0), pictures(200, 1)
    path = tmp_path / "set.npz"
    arrays = {"x_train": x, "y_train": y, "x_test": test, "y_test": z}
    np.savez(path, **{name: a.numpy() for name, a in arrays.items()})
    return path


class Made(torch.nn.Module):
    """A model whose samples are what `drawn` says, of a number, a seed and labels."""

    def __init__(self, drawn, classes=0):
        super().__init__()
        self.shape, self.config = SHAPE, {"classes": classes}
        self.drawn, self.weight = drawn, torch.nn.Parameter(torch.zeros(1))

    def sample(self, n, *, seed, label=None):
        return Canvas(SHAPE).encode(self.drawn(n, seed, label))


def test_a_lenet_learns_and_its_features_are_normal(lenet):
    net, out = lenet
    x, label = pictures(300, 7)
    features, log_p = net.read(x)
    assert (log_p.argmax(1) == label).all()
    assert features.mean().abs() < 0.2
    assert 0.6 < features.std() < 1.4
    torch.testing.assert_close(net.read(x.double()), (features, log_p))
    torch.testing.assert_close(net(x).log_softmax(1), log_p)
    loaded, _ = weights.load(out)
    assert torch.equal(loaded.read(x)[0], features)
    torch.testing.assert_close(net.read(x[:3])[0], features[:3])


def test_samples_that_are_data_have_the_floor(lenet, data):
    score = Scores(lenet[0], data, Canvas(SHAPE))
    model = Made(lambda n, seed, label: pictures(200, 50)[0][shuffled(200, n)])
    found, floor = score(model, 0), score.floor()
    assert found.keys() == floor.keys()
    assert score.count == 200
    for name in ("fid", "kid", "Inception score", "recall", "density", "coverage"):
        assert found[name][0] == pytest.approx(floor[name][0], abs=0.2), name
    assert floor["fid"][0] < 0.3
    assert abs(floor["kid"][0]) < 4 * floor["kid"][1]
    # more than one only as the order is random: the sets are sorted
    assert 1.4 < floor["Inception score"][0] <= 2
    assert floor["confidence"][0] > 0.8


def test_collapse_and_noise_are_told_from_data(lenet, data):
    score = Scores(lenet[0], data, Canvas(SHAPE))
    one, noise = pictures(1, 9)[0], torch.randint(0, 256, (200, *SHAPE), dtype=torch.uint8)
    collapsed = score(Made(lambda n, seed, label: one.expand(n, *SHAPE)), 0)
    random = score(Made(lambda n, seed, label: noise[:n]), 0)
    floor = score.floor()
    for found in (collapsed, random):
        assert found["fid"][0] > 5 * floor["fid"][0]
        assert found["kid"][0] > 5 * found["kid"][1] > 0
    assert collapsed["Inception score"] == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert collapsed["recall"][0] < 0.05 < 0.5 < floor["recall"][0]
    assert random["precision"][0] < floor["precision"][0] - 0.2


def test_samples_get_the_labels_of_the_images_to_test_on(lenet, data):
    score = Scores(lenet[0], data, Canvas(SHAPE), labelled=True)

    def drawn(n, seed, label):
        x = pictures(400, seed + 200)[0]
        return torch.where((label == 0)[:, None, None, None], x[:n], x[-n:])

    assert score.labels.sum() == 100
    assert score(Made(drawn, classes=2), 0)["labels recognised"][0] == 1
    assert score.floor()["labels recognised"][0] == 1
    swapped = score(Made(lambda n, seed, label: drawn(n, seed, 1 - label), classes=2), 0)
    assert swapped["labels recognised"][0] == 0


def test_samples_are_made_in_parts_of_their_own_seeds(monkeypatch):
    monkeypatch.setattr("fastgen.scores.DRAWN", 4)
    seen = []

    def drawn(n, seed, label):
        seen.append((n, seed, label.tolist()))
        return torch.zeros(n, *SHAPE)

    assert made(Made(drawn, classes=3), Canvas(SHAPE), None, 10, 7).shape == (10, *SHAPE)
    assert seen == [(4, 7, [0, 1, 2, 0]), (4, 11, [1, 2, 0, 1]), (2, 15, [2, 0])]


def test_what_cannot_be_scored_is_refused(lenet, data, tmp_path):
    net, run = lenet
    with pytest.raises(ValueError, match="files: expected at least 10 images, got 0"):
        Scores(net, data, Canvas(SHAPE), number=-1)
    with pytest.raises(ValueError, match=r"expected images \(3, 8, 8\), got \(1, 8, 8\)"):
        Scores(net, data, Canvas((3, 8, 8)))
    with pytest.raises(ValueError, match=r"LeNet: x: expected images of \(1, 9, 9\)"):
        Scores(LeNet((1, 9, 9)).eval(), data, Canvas(SHAPE))
    with pytest.raises(ValueError, match="features: expected a model of images, got a Made"):
        scores(Made(None), object(), data, net, None)
    with pytest.raises(ValueError, match="expected --features RUN for faces"):
        network(None, "faces")
    with pytest.raises(ValueError, match="pixelcnn: expected a LeNet, got a GatedPixelCNN"):
        network("pixelcnn", "mnist")
    assert network(run, "faces")[1] == run


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (8, 8)}, "expected shape"),
        ({"channels": (3, 0)}, "expected shape"),
        ({"classes": 2.0}, "expected shape"),
        ({"channels": (1,) * 4}, "shape: expected sides >= 16, got"),
    ],
)
def test_sizes_that_there_are_not_are_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=f"LeNet: {match}"):
        LeNet(**SIZES | options)
    config = {name: [*v] if isinstance(v, tuple) else v for name, v in (SIZES | options).items()}
    path = tmp_path / "a.safetensors"
    save(path, {"a": torch.zeros(1)}, {"model": "LeNet", "config": config})
    with pytest.raises(CheckpointError, match="config: LeNet: "):
        weights.load(path)


def test_the_digits_of_what_is_shipped_are_recognised():
    label = torch.arange(20) % 10
    model, _ = weights.load("pixelcnn")
    x = model.sample(20, seed=0, label=label) * 17  # of 16 levels
    _, log_p = network(None, "mnist")[0].read(x)
    assert (log_p.argmax(1) == label).sum() >= 15
