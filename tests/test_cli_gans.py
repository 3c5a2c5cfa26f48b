"""The commands for GANs."""

import numpy as np
import pytest
import torch

pytest.importorskip("tyro")

from fastgen import cli


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "set.npz"
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(40) % 3, x_test=x[:12], y_test=np.arange(12) % 3)
    return path


def run(*words):
    return cli.main([str(word) for word in words])


def test_points_are_learned_shown_and_counted(tmp_path, capsys):
    out = tmp_path / "run"
    train = ["train", "gan", "--data", "eight_gaussians", "--out", out, "--hidden", 16]
    options = ["--steps", 3, "--batch-size", 16, "--unrolled", 2, "--validate-every", 2]
    assert run(*train, *options) == 0
    with np.load(out / "film.npz") as film:
        assert film["steps"].tolist() == [2, 3]
    for name in ("samples.png", "samples.gif", "modes.png"):
        assert (out / name).is_file()
    assert "modes" in capsys.readouterr().out
    assert run(*train, "--steps", 4, "--unrolled", 2, "--data", "two_moons") == 2
    assert "data expected 'two_moons', got 'eight_gaussians'" in capsys.readouterr().err
    assert run("sample", out, "--out", tmp_path / "a.png", "--n", 100, "--seed", 1) == 0
    assert run("eval", out) == 0
    printed = capsys.readouterr().out
    assert "100 samples" in printed
    assert "10,000 samples" in printed
    assert "share" in printed
    assert run("eval", out, "--files", 500) == 0
    assert "500 samples" in capsys.readouterr().out
    assert run("eval", out, "--files", 0) == 2
    assert "files: expected" in capsys.readouterr().err
    assert run("eval", out, "--data", "two_moons") == 2
    assert "data: expected eight_gaussians, which the model is of" in capsys.readouterr().err
    assert run("sample", out, "--label", 2, "--out", tmp_path / "b.png") == 2
    assert "label: expected none of a model without labels, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("game", ["nonsaturating", "f-kl", "wasserstein"])
def test_images_are_learned_with_their_labels(tmp_path, images, capsys, game):
    out = tmp_path / "run"
    sizes = ["--channels", 2, "--latent", 4, "--steps", 2, "--batch-size", 4, "--game", game]
    train = ["train", "dcgan", "--data", images, "--out", out, "--labels", "--flips", *sizes]
    assert run(*train, "--discriminator-steps", 2, "--penalty", 1) == 0
    assert run("sample", out, "--label", 2, "--n", 3, "--out", tmp_path / "a.png") == 0
    assert "3 images of 8 x 8" in capsys.readouterr().out
    assert run("sample", out, "--label", 3, "--out", tmp_path / "b.png") == 2
    assert "label: expected one of 0 ... 2, got 3" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()
    assert run("eval", out) == 2
    assert "features: expected --features RUN for" in capsys.readouterr().err


def test_images_are_measured_by_a_network_of_the_users(tmp_path, images, capsys):
    lenet, out = tmp_path / "lenet", tmp_path / "run"
    train = ["--data", images, "--steps", 4, "--batch-size", 4, "--out"]
    assert run("train", "lenet", "--channels", 2, "--features", 3, *train, lenet) == 0
    assert "accuracy" in capsys.readouterr().out
    assert run("train", "gan", "--hidden", 4, *train, out) == 0
    assert run("eval", lenet) == 0
    assert "12 test images" in capsys.readouterr().out
    ten = tmp_path / "ten.npz"
    np.savez(ten, x_train=np.zeros((40, 8, 8), np.uint8), y_train=np.arange(40) // 4)
    assert run("eval", lenet, "--data", ten) == 2
    assert "data: expected labels 0 to 2, got 5" in capsys.readouterr().err
    assert run("eval", out, "--features", lenet) == 0
    printed = capsys.readouterr().out
    assert "12 samples of seed 0, test images of" in printed
    for name in (f"fid@{lenet}", f"kid@{lenet}", "Inception score", "recall", "coverage"):
        assert name in printed
    assert "labels" not in printed
    assert run("train", "made", "--hidden", 4, *train, tmp_path / "made") == 0
    assert run("eval", tmp_path / "made", "--features", lenet) == 0
    assert f"fid@{lenet}" in capsys.readouterr().out
    assert run("eval", out, "--features", lenet, "--files", 9) == 2
    assert "files: expected at least 10 images, got 9" in capsys.readouterr().err
    assert run("eval", out, "--features", out) == 2
    assert "expected a LeNet, got a GAN" in capsys.readouterr().err
    assert run("sample", lenet, "--out", tmp_path / "a.png") == 2
    assert "expected a model that samples, got a LeNet" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["blobs", "mirrored"])
def test_blobs_are_counted(tmp_path, capsys, data):
    out = tmp_path / "run"
    sizes = ["--channels", 2, "--latent", 4, "--steps", 1, "--batch-size", 4]
    assert run("train", "dcgan", "--data", data, "--out", out, *sizes) == 0
    assert run("eval", out, "--files", 20) == 0
    printed = capsys.readouterr().out
    assert f"20 samples of seed 0, 20 test images of {data}" in printed
    for name in ("blobs", "total variation", "overlap with mirror image"):
        assert name in printed


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["gan", "--data", "two_moons", "--labels"], "expected none of points"),
        (["dcgan", "--data", "two_moons"], "DCGAN: shape: expected (C, S, S)"),
        (["gan", "--data", "nowhere"], "nowhere"),
        (["gan", "--data", "two_moons", "--penalty", "-1"], "penalty: expected >= 0"),
        (["gan", "--data", "ring", "--smooth", "0.1", "--game", "f-kl"], "smooth: expected 0"),
        (["gan", "--data", "ring", "--discriminator-lr", "0"], "lr > 0 expected"),
        (["gan", "--data", "ring", "--simultaneous", "--generator-steps", "2"], "one step a turn"),
        (["gan", "--data", "ring", "--ema", "2"], "ema expected in"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, capsys, words, what):
    assert run("train", *words, "--out", tmp_path / "run", "--steps", 1) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_game_of_many_options(tmp_path, capsys):
    out, sizes = tmp_path / "run", ["--hidden", 8, "--latent", 3, "--batch-size", 6]
    train = ["train", "gan", "--data", "ring", "--out", out, *sizes, "--steps", 2, "--ema", 0]
    assert run(*train, "--discriminator-lr", 0.1, "--smooth", 0.1, "--minibatch", 3) == 0
    options = ["--generator-steps", 3, "--discriminator-steps", 2]
    assert run(*train[:5], tmp_path / "b", *sizes, "--steps", 2, *options) == 0
    game = ["--game", "nonsaturating-kl", "--simultaneous"]
    assert run(*train[:5], tmp_path / "c", *sizes, "--steps", 2, *game) == 0
    assert capsys.readouterr().out.count("modes") == 3


def test_a_curve_has_no_modes(tmp_path, capsys):
    out = tmp_path / "run"
    torch.manual_seed(0)
    assert run("train", "gan", "--data", "two_moons", "--out", out, "--steps", 1) == 0
    assert run("eval", out) == 2
    assert "modes, which two_moons have not" in capsys.readouterr().err
    assert run("sample", out, "--out", tmp_path / "a.png", "--temperature", 0.5) == 2


def test_games_verify_by_the_command(capsys):
    assert run("verify", "unrolled") == 0
    assert "2 of 2 hold" in capsys.readouterr().out


def test_codes_are_learned_shown_and_matched(tmp_path, images, capsys):
    out, png = tmp_path / "run", tmp_path / "a.png"
    sizes = ["--channels", 2, "--units", 8, "--latent", 4, "--categories", 3, "--continuous", 1]
    train = ["train", "infogan", "--data", images, "--out", out, *sizes, "--batch-size", 4]
    assert run(*train, "--steps", 2) == 0
    assert "bound 1" in capsys.readouterr().out
    assert (out / "samples.png").is_file()
    assert (out / "traversal.png").is_file()
    for show in ("samples", "traversal", "interpolations"):
        assert run("sample", out, "--show", show, "--out", png, "--seed", 1) == 0
    assert "interpolations, seed 1" in capsys.readouterr().out
    assert run("eval", out, "--files", 5) == 0
    printed = capsys.readouterr().out
    assert "5 samples of seed 0, 5 test images" in printed
    assert "ln 3" in printed
    assert "%" in printed
    assert run("eval", out, "--files", 1) == 2
    assert run("sample", out, "--show", "redrawn", "--out", png) == 2
    assert "show: expected one of" in capsys.readouterr().err
    assert run("sample", out, "--data", images, "--out", png) == 2
    assert "data: expected none of a GAN" in capsys.readouterr().err
    assert run(*train[:4], "--out", tmp_path / "b", "--labels", "--steps", 1) == 2
    assert "labels: expected none of an InfoGAN" in capsys.readouterr().err


def test_a_set_smaller_than_the_first_batch_is_fitted_to(tmp_path, images):
    train = ["train", "dcgan", "--data", images, "--channels", 2, "--minibatch", 2, "--steps", 1]
    assert run(*train, "--batch-size", 4, "--out", tmp_path / "run") == 0


def test_noise_is_shown_between_and_along(tmp_path, images, capsys):
    out, png = tmp_path / "run", tmp_path / "a.png"
    train = ["train", "dcgan", "--data", images, "--out", out, "--labels", "--channels", 2]
    assert run(*train, "--latent", 4, "--steps", 1, "--batch-size", 4) == 0
    assert run("sample", out, "--show", "traversal", "--out", png, "--label", 1) == 0
    assert run("sample", out, "--show", "interpolations", "--out", png, "--n", 3) == 0
    line = tmp_path / "line"
    assert run(*train[:4], "--out", line, "--latent", 1, "--channels", 2, "--steps", 1) == 0
    assert run("sample", line, "--show", "interpolations", "--out", png) == 0
    points = tmp_path / "points"
    assert run("train", "gan", "--data", "two_moons", "--out", points, "--steps", 1) == 0
    capsys.readouterr()
    assert run("sample", points, "--show", "traversal", "--out", png) == 2
    assert "show: expected samples of points, got 'traversal'" in capsys.readouterr().err
    assert run("train", "gan", "--data", "ring", "--out", points, "--seed", 1 << 64) == 2
    assert f"seed: expected in [0, 2^64), got {1 << 64}" in capsys.readouterr().err


def test_infogan_verifies_by_the_command(capsys):
    assert run("verify", "infogan") == 0
    assert "6 of 6 hold" in capsys.readouterr().out
