"""The command trains, samples and measures models of images, and tells what it was given wrong."""

import math
import shutil

import numpy as np
import pytest
import torch

from fastgen import checkpoint
from fastgen.data import Images, binarize, grid, write_png
from fastgen.data.levels import SEED
from fastgen.images import SIZES, independent, naive_speed, pictures_of
from fastgen.tractable.made import MADE
from fastgen.tractable.nade import NADE

pytest.importorskip("tyro")
from fastgen import cli, options


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(options, "NAIVE_SECONDS", 0.01)
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path):
    """Vertical and horizontal bars of 6 x 4 pixels, an npz of 80 images with labels and 7 more."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 87)
    x = np.zeros((87, 6, 4), np.uint8)
    for image, label, at in zip(x, labels, rng.integers(0, 4, 87), strict=True):
        image[(slice(None), at) if label else (at, slice(None))] = 200
    path = tmp_path / "bars.npz"
    np.savez(path, x_train=x[:80], y_train=labels[:80], x_test=x[80:], y_test=labels[80:])
    return str(path)


@pytest.fixture
def fails(capsys, tmp_path):
    """A command that must end with code 2, one line on stderr, and no file more."""

    def run(*argv):
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("fastgen: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def saved(path, model, **images):
    meta = {"model": type(model).__name__, "config": model.config}
    images = {"shape": list(model.shape), "binarize": "dynamic", **images}
    checkpoint.save(path, model.state_dict(), {**meta, "images": images})
    return str(path)


SMALL = {
    "fvbn": [],
    "nade": ["--hidden", "5"],
    "made": ["--hidden", "9", "8", "--sets", "2", "--direct"],
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("order", ["raster", "random"])
def test_train_then_eval_and_sample(kind, order, data, tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["train", kind, "--data", data, "--out", str(run), "--order", order, *SMALL[kind]]
    argv += ["--batch-size", "8", "--lr", "0.03", "--validate-every", "2", "--save-every", "2"]
    assert cli.main([*argv, "--steps", "2"]) == 0
    assert cli.main([*argv, "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "parameters, images of 1 x 6 x 4" in said
    other = shutil.copy(data, tmp_path / "other.npz")
    assert cli.main([*argv, "--steps", "4", "--data", str(other)]) == 2
    assert f"data expected '{other}', got '{data}'" in capsys.readouterr().err
    net, meta, form, _ = cli.load(str(run), "cpu", cli.FAMILIES)
    held = form.encode(Images(data, "held out").x)
    nats = -net.log_prob(held).mean().item()
    assert f"nats      {nats:.4f}, held out" in said
    assert f"bits/dim  {nats / 24 / math.log(2):.4f}, held out" in said
    assert meta["images"] == {"shape": [1, 6, 4], "binarize": "dynamic"}
    assert (run / "samples.png").exists()
    assert (run / "completions.png").exists() == (order == "raster")
    assert cli.main(["eval", str(run)]) == 0
    said = capsys.readouterr().out
    nats = -net.log_prob(binarize(Images(data, "test").x, SEED)).mean().item()
    assert f"7 test images of {data}" in said
    assert f"{nats:.4f} nats" in said
    assert f"uniform, ln 2 a pixel  {24 * math.log(2):.4f} nats" in said
    assert "pixels on their own" in said
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "a.png"), "--n", "3"]) == 0
    said = capsys.readouterr().out
    assert "a.png: 3 images of 6 x 4, seed" in said
    assert said.count("images/s") == 2


def test_samples_and_completions_are_the_models(data, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    run = tmp_path / "run"
    argv = ["train", "nade", "--data", data, "--out", str(run), "--hidden", "5", "--steps", "1"]
    assert cli.main([*argv, "--batch-size", "8"]) == 0
    net, _, form, _ = cli.load(str(run), "cpu", cli.FAMILIES)
    scale, margin = 16, 2
    high, wide = (n * scale + margin for n in (6, 4))

    def tiles(name, columns):
        pixels = torch.from_numpy(np.asarray(pillow.open(run / name)).copy())
        tiles = pixels[margin:, margin:].unfold(0, high, high).unfold(1, wide, wide)
        assert tiles.shape[1] == columns
        return tiles[..., : high - margin : scale, : wide - margin : scale].flatten(0, 1)

    assert torch.equal(tiles("samples.png", 8), form.decode(net.sample(64, seed=0))[:, 0])
    rows = tiles("completions.png", 6).unflatten(0, (-1, 6))
    held = form.decode(form.encode(Images(data, "held out").x))[:, 0]
    assert torch.equal(rows[:, 0], held)  # 4 of them
    assert torch.equal(rows[:, 1, :3], held[:, :3])
    assert rows[:, 1, 3:].unique().tolist() == [128]
    assert torch.equal(rows[:, 2:, :3], held[:, None, :3].expand(-1, 4, -1, -1))
    assert set(rows[:, 2:, 3:].unique().tolist()) <= {0, 255}
    assert len(rows[0, 2:].unique(dim=0)) > 1


def test_a_pixelcnn_of_labels(data, tmp_path, capsys, fails):
    run, out = str(tmp_path / "run"), str(tmp_path / "ones.png")
    argv = ["train", "pixelcnn", "--data", data, "--out", run, "--layers", "2", "--channels", "6"]
    argv += ["--head-channels", "5", "--first-kernel", "3", "--levels", "4", "--batch-size", "8"]
    assert cli.main([*argv, "--labels", "--steps", "2"]) == 0
    assert cli.main(["eval", run]) == 0
    net, _, form, _ = cli.load(run, "cpu", cli.FAMILIES)
    test = Images(data, "test")
    nats = -net.log_prob(form.encode(test.x), test.labels).mean().item()
    assert f"{nats:.4f} nats" in capsys.readouterr().out
    assert cli.main(["sample", run, "--label", "1", "--n", "4", "--out", out, "--seed", "3"]) == 0
    want = net.sample(4, seed=3, label=torch.tensor([1, 1, 1, 1]))
    write_png(tmp_path / "want.png", grid(form.decode(want)))
    assert (tmp_path / "ones.png").read_bytes() == (tmp_path / "want.png").read_bytes()
    capsys.readouterr()
    err = fails("sample", run, "--out", out, "--label", "2")
    assert "label: expected one of 0 ... 1, got 2" in err
    assert "labels: expected a gated PixelCNN" in fails(*argv, "--labels", "--plain")


@pytest.mark.parametrize("labels", [[], ["--labels"]])
def test_a_pixelcnnpp(labels, data, tmp_path, capsys):
    run, out = str(tmp_path / "run"), str(tmp_path / "a.png")
    argv = ["train", "pixelcnnpp", "--data", data, "--out", run, "--resnets", "1", "--channels"]
    argv += ["5", "--stages", "2", "--mixtures", "2", "--levels", "4", "--batch-size", "8"]
    assert cli.main([*argv, *labels, "--steps", "2"]) == 0
    assert (tmp_path / "run" / "completions.png").exists()
    assert cli.main(["eval", run]) == 0
    net, _, form, _ = cli.load(run, "cpu", cli.FAMILIES)
    test = Images(data, "test")
    nats = -net.log_prob(form.encode(test.x), test.labels if labels else None).mean().item()
    assert f"{nats:.4f} nats" in capsys.readouterr().out
    assert cli.main(["sample", run, "--n", "4", "--out", out, "--seed", "3"]) == 0
    label = torch.tensor([0, 1, 0, 1]) if labels else None
    want = net.sample(4, seed=3, label=label)
    write_png(tmp_path / "want.png", grid(form.decode(want)))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "want.png").read_bytes()
    assert "cached" in capsys.readouterr().out


def test_sample_is_a_function_of_the_seed(tmp_path):
    model = saved(tmp_path / "m.safetensors", NADE((1, 5, 4), 3))
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        assert cli.main(["sample", model, "--out", str(path), "--seed", str(seed)]) == 0
    a, b, c = (path.read_bytes() for path in files)
    assert a == b != c


def test_pixels_on_their_own():
    x = torch.tensor([[0, 255], [0, 255], [255, 0], [51, 0]], dtype=torch.uint8)[:, None, None]
    model = MADE((1, 1, 2), (3,))
    form = pictures_of(model, {"shape": [1, 1, 2], "binarize": "dynamic"})
    codes = torch.tensor([[1, 1]])[:, None, None]
    want = -math.log((1.2 + 1) / 6) - math.log((2 + 1) / 6)
    assert independent(x, codes, form) == pytest.approx(want)
    form = pictures_of(model, {"shape": [1, 1, 2], "binarize": "threshold"})
    assert independent(x, codes, form) == pytest.approx(-math.log(2 / 6) - math.log(3 / 6))
    assert independent(x, codes, form._replace(levels=256)) == pytest.approx(2 * math.log(260))
    assert naive_speed(model, codes, None, 0.001) > 0


def test_what_cannot_be_sampled(tmp_path, fails):
    model = saved(tmp_path / "m.safetensors", NADE((1, 5, 4), 3))
    sample = ("sample", model, "--out", tmp_path / "a.png")
    assert "label: expected none of a model without labels, got 3" in fails(*sample, "--label", "3")
    assert "seconds: expected none, which is for models of sound" in fails(*sample, "--seconds=1")
    assert "phrase: expected none" in fails(*sample, "--phrase", "x")
    assert "dtype: expected 'float32' or 'float64'" in fails(*sample, "--dtype", "int8")
    assert "temperature: expected" in fails(*sample, "--temperature", "-1")
    assert "n: expected at least 1" in fails(*sample, "--n", "0")
    err = fails("sample", model, "--out", tmp_path / "a.wav")
    assert "expected a name in .png to write" in err
    (tmp_path / "in.wav").write_bytes(b"")
    argv = ("vocode", tmp_path / "in.wav", tmp_path / "b.wav", "--model", model)
    assert "in.wav" in fails(*argv)
    err = fails("sample", "wavenet", "--out", tmp_path / "a.wav", "--label", "1")
    assert "label: expected none, which is for autoregressive models of images" in err


def test_a_file_whose_images_do_not_fit(tmp_path, fails):
    out, net = ("--out", tmp_path / "a.png"), NADE((1, 5, 4), 3)
    for images, message in (
        ({"shape": [1, 4, 5]}, r"images: shape: expected [1, 5, 4], got [1, 4, 5]"),
        ({"shape": 7}, "images: shape: expected [1 or 3, H, W], got 7"),
        ({"binarize": "coin"}, "images: binarize: expected one of"),
    ):
        model = saved(tmp_path / "m.safetensors", net, **images)
        assert message in fails("sample", model, *out)
    checkpoint.save(
        tmp_path / "m.safetensors", net.state_dict(), {"model": "NADE", "config": net.config}
    )
    err = fails("sample", tmp_path / "m.safetensors", *out)
    assert "m.safetensors: images: expected shape and binarize, got None" in err


def test_what_cannot_be_trained_or_evaluated(data, tmp_path, fails):
    argv = ("train", "made", "--out", tmp_path / "run", "--steps", "1")
    assert "expected a folder or an npz file" in fails(*argv, "--data", tmp_path / "absent")
    assert "levels: expected 2, got 256" in fails(*argv, "--data", data, "--levels", "256")
    assert "hidden 0: expected an int >= 1" in fails(*argv, "--data", data, "--hidden", "0")
    assert "files: expected at least 1" in fails(*argv, "--data", data, "--files", "0")
    assert "device: expected cpu or cuda" in fails(*argv, "--data", data, "--device", "tpu")
    model = saved(tmp_path / "m.safetensors", NADE((1, 5, 4), 3))
    assert "expected --data" in fails("eval", model)
    err = fails("eval", model, "--data", data)
    assert "bars.npz: expected images (1, 5, 4), got (1, 6, 4)" in err


def test_evaluated_on_what_is_held_out_where_there_is_no_test(tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 256, (50, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=x)
    model = saved(tmp_path / "m.safetensors", NADE((1, 5, 4), 3))
    argv = ["eval", model, "--data", str(tmp_path / "a.npz"), "--files"]
    assert cli.main([*argv, "9"]) == 0
    assert "3 held out images" in capsys.readouterr().out
    assert cli.main([*argv, "2"]) == 0
    assert "2 held out images" in capsys.readouterr().out


@pytest.mark.parametrize("kind", SIZES)
def test_help(kind, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", kind, "--help"])
    assert end.value.code == 0
    assert "--binarize" in capsys.readouterr().out


@pytest.mark.parametrize("kind", SMALL)
def test_verify(kind, capsys):
    assert cli.main(["verify", kind]) == 0
    assert "4 of 4 hold" in capsys.readouterr().out
