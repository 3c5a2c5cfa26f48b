"""The command trains, samples and measures flows, of points and of images."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from fastgen import checkpoint, flows
from fastgen.data import POINTS, Images, grid, write_png
from fastgen.data.points import Curves
from fastgen.flows import HELD_OUT, Plane, encode, plane, point_nats
from fastgen.tractable.nice import NICE
from fastgen.tractable.realnvp import RealNVP

pytest.importorskip("tyro")
from fastgen import cli
from fastgen.commands.flows import exactness

KINDS = {
    "realnvp": ["--layers", "2", "--hidden", "6", "--blocks", "1"],
    "glow": ["--layers", "2", "--hidden", "6"],
    "nice": ["--layers", "2", "--hidden", "6", "--depth", "1"],
    "ica": ["--layers", "1", "--hidden", "6"],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(flows, "POINTS_SHOWN", 500)
    monkeypatch.setattr(flows, "NUMBER", 300)
    monkeypatch.setattr(flows, "WIDE", 32)
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path):
    """60 images of 3 x 8 x 4 pixels to train on, and 5 more."""
    x = np.random.default_rng(0).integers(0, 256, (65, 8, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", x_train=x[:60], x_test=x[60:])
    return str(tmp_path / "noise.npz")


@pytest.fixture
def fails(capsys, tmp_path):
    """A command that must end with code 2, one line on stderr, and no file more."""

    def run(*argv):
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def gaussian(middle, sd):
    return Curves(lambda t: torch.tensor([[middle]]).double().expand(len(t), 1, 2), sd, nodes=1)


def identity():
    """The flow of the standard normal."""
    return RealNVP((2,), 0, 2, 4, 1, norm="none").eval()


def saved(path, model, **meta):
    meta = {"model": type(model).__name__, "config": model.config, **meta}
    checkpoint.save(path, model.state_dict(), meta)
    return str(path)


def tiles(path, shape, columns):
    """The images (N, C, H, W) of a grid in a PNG."""
    pixels = torch.from_numpy(np.asarray(pytest.importorskip("PIL.Image").open(path)).copy())
    (_, H, W), scale, margin = shape, round(64 / shape[2]), 2
    high, wide = H * scale + margin, W * scale + margin
    parts = pixels[margin:, margin:].unfold(0, high, high).unfold(1, wide, wide)
    assert parts.shape[1] == columns
    return parts[..., : H * scale : scale, : W * scale : scale].flatten(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_points(kind, tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["train", kind, "--data", "eight_gaussians", "--out", str(run), *KINDS[kind]]
    argv += ["--batch-size", "8", "--validate-every", "2", "--save-every", "2"]
    assert cli.main([*argv, "--steps", "2"]) == 0
    assert cli.main([*argv, "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "parameters, points of eight_gaussians, 2\n" in said
    assert cli.main([*argv, "--steps", "4", "--data", "two_moons"]) == 2
    assert "data expected 'two_moons', got 'eight_gaussians'" in capsys.readouterr().err
    net, meta, form, _ = cli.load(str(run), "cpu", cli.FAMILIES)
    assert (form, meta["data"]) == (Plane("eight_gaussians"), "eight_gaussians")
    x = POINTS["eight_gaussians"].sample(300, seed=HELD_OUT)
    nats = -net.log_prob(x.float()).double().mean().item()
    gap = nats + POINTS["eight_gaussians"].log_prob(x).mean().item()
    assert f"nats     {nats:.4f}, held out" in said
    assert f"gap      {gap:.4f}, held out" in said
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    [last] = [line for line in logged if line["step"] == 3 and "validate/nats" in line]
    assert last["validate/entropy"] == POINTS["eight_gaussians"].entropy
    write_png(tmp_path / "want.png", plane(net, form.points, 500, 0))
    assert (run / "density.png").read_bytes() == (tmp_path / "want.png").read_bytes()
    assert cli.main(["eval", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"model                          {nats:.4f} nats" in said
    assert f"gap, on these points           {gap:.4f} nats, standard error" in said
    assert f"true density, entropy          {form.points.entropy:.4f} nats" in said
    out = tmp_path / "a.png"
    assert cli.main(["sample", str(run), "--out", str(out), "--seed", "0", "--n", "500"]) == 0
    assert out.read_bytes() == (tmp_path / "want.png").read_bytes()
    assert "500 points of eight_gaussians, seed 0" in capsys.readouterr().out


def test_the_gap_is_the_divergence(monkeypatch):
    same, wider = gaussian([0.0, 0.0], 1.0), gaussian([0.0, 1.0], 2.0)
    nats, gap, error = point_nats(identity(), same, 5000, 0)
    assert abs(gap) < 1e-6
    assert error < 1e-6
    assert nats == pytest.approx(same.entropy, abs=0.06)
    _, gap, error = point_nats(identity(), wider, 20_000, 0)
    want = 3 - 2 * math.log(2) + 0.5  # of KL(N(m, 4 I) || N(0, I)), with |m| = 1
    assert gap == pytest.approx(want, abs=4 * error)
    assert error < 0.1
    assert flows.mass(identity(), same) == pytest.approx(1, abs=1e-6)


def test_a_picture_of_the_plane(monkeypatch):
    """Up is up, right is right; density is density, and so are the samples."""
    monkeypatch.setattr(flows, "WIDE", 64)
    points = gaussian([1.0, 2.0], 0.5)
    model = identity()
    model.inverse = lambda z: (z * 0.5 + torch.tensor([1.0, -1.0]), None)
    pixels = plane(model, points, 20_000, 0).double().sum(0)
    true = pixels[2:-2, 2:66]
    learned, drawn = pixels[2:-2, 68:132], pixels[2:-2, 134:198]
    at = [divmod(int(p.argmax()), 64) for p in (true, learned)]
    assert at[0] in [(31, 31), (31, 32), (32, 31), (32, 32)]  # the middle of its own box
    assert at[1][1] in (22, 23)  # at the origin, 1 to the left and 2 below, of 64 / 7 pixels
    assert at[1][0] in (49, 50)
    weight = drawn - drawn.min()
    row = (weight.sum(1) * torch.arange(64)).sum() / weight.sum()
    column = (weight.sum(0) * torch.arange(64)).sum() / weight.sum()
    assert column.item() == pytest.approx(31.5, abs=1)
    assert row > 31.5 + 20  # 3 below


def test_colours():
    got = flows.coloured(torch.tensor([[[0, 0.25, 1, 7]]]))
    assert [tuple(c) for c in got[0, :, 0].T.tolist()] == [flows.COLOURS[i] for i in (0, 1, -1, -1)]


@pytest.mark.parametrize("kind", KINDS)
def test_images(kind, data, tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["train", kind, "--data", data, "--out", str(run), *KINDS[kind], "--batch-size", "8"]
    assert cli.main([*argv, "--flips", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert f"parameters, images of {data}, 3 x 8 x 4\n" in said
    assert "missed levels  0.0000, held out" in said
    net, meta, form, _ = cli.load(str(run), "cpu", cli.FAMILIES)
    assert meta["images"] == {"shape": [3, 8, 4], "binarize": "threshold"}
    held = form.encode(Images(data, "held out").x)
    nats = -net.log_prob(held, seed=0).double().mean().item()
    assert f"nats           {nats:.4f}, held out" in said
    assert f"bits/dim       {nats / 96 / math.log(2):.4f}, held out" in said
    for name in flows.PICTURES:
        assert (run / f"{name}.png").exists() == (kind in ("realnvp", "glow") or name != "redrawn")
    pairs = tiles(run / "reconstructions.png", form.shape, 6).unflatten(0, (-1, 2))
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert torch.equal(pairs[:, 0], form.decode(held))
    rows = tiles(run / "interpolations.png", form.shape, 8).unflatten(0, (-1, 8))
    assert torch.equal(rows[:, 0], form.decode(held)[:2])
    assert torch.equal(rows[:, -1], form.decode(held)[1:])
    assert cli.main(["eval", str(run)]) == 0
    said = capsys.readouterr().out
    test = form.encode(Images(data, "test").x)
    nats = -net.log_prob(test, seed=0).double().mean().item()
    assert f"5 test images of {data}, noise of seed 0" in said
    assert f"{nats:.4f} nats" in said
    assert f"{nats / 96 / math.log(2):.4f} bits/dim" in said
    assert "reconstructions: all 480 levels of 5 images are the same; before" in said


def test_a_flow_of_one_scale_redraws_nothing(data, tmp_path, capsys):
    argv = ["train", "realnvp", "--data", data, "--out", str(tmp_path / "run"), *KINDS["realnvp"]]
    argv += ["--scales", "1", "--norm", "none", "--levels", "8", "--steps", "1"]
    assert cli.main([*argv, "--batch-size", "4"]) == 0
    assert "missed levels  0.0000" in capsys.readouterr().out
    found = {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert found == {"samples", "reconstructions", "interpolations"}


def test_sample_and_temperature(data, tmp_path, capsys):
    torch.manual_seed(0)
    model = RealNVP((3, 8, 4), 256, 2, 6, 1)
    meta = {"data": data, "images": {"shape": [3, 8, 4], "binarize": "threshold"}}
    path, out = saved(tmp_path / "m.safetensors", model, **meta), tmp_path / "a.png"
    sample = ["sample", path, "--out", str(out), "--seed", "3"]
    assert cli.main([*sample, "--n", "4"]) == 0
    said = capsys.readouterr().out
    assert "a.png: samples, 4 images of 8 x 4, seed 3" in said
    assert "images/s" in said
    want = model.eval().sample(4, seed=3)
    write_png(tmp_path / "want.png", grid(want.to(torch.uint8)))
    assert out.read_bytes() == (tmp_path / "want.png").read_bytes()
    assert cli.main([*sample, "--n", "4", "--temperature", "0", "--dtype", "float64"]) == 0
    assert len(tiles(out, (3, 8, 4), 2).unique(dim=0)) == 1
    assert cli.main([*sample, "--show", "reconstructions", "--n", "6"]) == 0
    assert "all 288 levels of 3 images are the same" in capsys.readouterr().out
    assert cli.main([*sample, "--show", "redrawn"]) == 0
    rows = tiles(out, (3, 8, 4), 8).unflatten(0, (-1, 4))
    assert torch.equal(rows[:5, 0], Images(data, "test").x)
    assert len(rows[0].unique(dim=0)) == 4


def test_images_that_moved(data, tmp_path, capsys):
    flat = NICE((3, 8, 4), 256, 2, 4, 1).eval()
    meta = {"data": data + ".gone", "images": {"shape": [3, 8, 4], "binarize": "threshold"}}
    path, out = saved(tmp_path / "m.safetensors", flat, **meta), tmp_path / "a.png"
    sample = ["sample", path, "--out", str(out), "--show", "reconstructions", "--data", data]
    assert cli.main(sample) == 0
    assert "all 480 levels of 5 images are the same" in capsys.readouterr().out
    assert torch.equal(
        tiles(out, (3, 8, 4), 8)[:2], Images(data, "test").x[:1].expand(2, -1, -1, -1)
    )


def test_what_is_redrawn(monkeypatch):
    """The sources of the scales from 1, 2 ... on are the image's, and the others are new."""
    torch.manual_seed(0)
    model = RealNVP((1, 8, 8), 16, 1, 4, 1, scales=3).eval()
    x = torch.randint(16, (2, 1, 8, 8))
    monkeypatch.setattr(flows, "decode", lambda model, z: z)
    z, columns = flows.redrawn(model, x, 14, 5, 1.0)
    assert columns == 7
    z, own, scale = z.view(2, 7, 1, 8, 8), encode(model, x), model.scale_map()
    assert torch.equal(z[:, 0], x.float())
    for column in range(1, 7):
        keep = scale > (column - 1) // 3
        assert torch.equal(z[:, column] == own, keep.expand(2, -1, -1, -1))
    new = z[:, 1:4, scale == 0]
    assert new.numel() == 2 * 3 * int((scale == 0).sum())
    assert len(new.unique()) == new.numel()
    z = flows.redrawn(model, x, 14, 5, 0.0)[0].view(2, 7, 1, 8, 8)
    assert not z[:, 1:4, scale == 0].any()


def test_an_inverse_that_misses_is_told():
    model = NICE((1, 4, 4), 256, 2, 4, 1).eval()
    x = torch.arange(32).view(2, 1, 4, 4) * 8
    assert exactness(model, x).startswith("reconstructions: all 32 levels of 2 images are the same")
    inverse = model.inverse
    model.inverse = lambda z: (inverse(z)[0] + 2.0, None)
    assert "32 of 32 levels of 2 images are MISSED" in exactness(model, x)
    assert "largest error is 2 of a level" in exactness(model, x)
    model.inverse = lambda z: (inverse(z)[0] * math.nan, None)
    with pytest.raises(ValueError, match="expected images of the sources, got NaN or Inf"):
        flows.decode(model, encode(model, x))


def test_what_cannot_be_done(data, tmp_path, fails):
    out = ("--out", tmp_path / "a.png")
    points = saved(tmp_path / "p.safetensors", identity(), data="two_moons")
    sample = partial(fails, "sample", points, *out)
    assert "show: expected none, which is for images, got 'samples'" in sample("--show", "samples")
    assert "data: expected none, which is for images, got" in sample("--data", "two_moons")
    assert "data: expected none, which is for flows" in fails(
        "sample", "pixelcnn", *out, "--data", data
    )
    assert "dtype: expected 'float32' or 'float64' of a flow" in sample("--dtype", "int8")
    assert "label: expected none, which is for autoregressive" in sample("--label", "1")
    assert "temperature: expected finite and >= 0, got -1" in sample("--temperature", "-1")
    assert "expected a name in .png" in fails("sample", points, "--out", tmp_path / "a.wav")
    assert "show: expected none, which is for flows" in fails(
        "sample", "pixelcnn", *out, "--show", "redrawn"
    )
    assert "expected two_moons, which the model is of" in fails("eval", points, "--data", data)
    assert "files: expected at least 2 points" in fails("eval", points, "--files", "1")
    train = partial(fails, "train", "realnvp", "--out", tmp_path / "run", "--steps", "1", "--data")
    assert "flips: expected none of points" in train("two_moons", "--flips")
    assert "levels: expected none of points" in train("two_moons", "--levels", "8")
    assert "files: expected at least 2 points, got 1" in train("two_moons", "--files", "1")
    assert "expected a folder or an npz file" in train("three_moons")
    assert "scales" in train(data, "--scales", "7")
    flat = NICE((3, 8, 4), 256, 2, 4, 1).eval()
    meta = {"data": data, "images": {"shape": [3, 8, 4], "binarize": "threshold"}}
    images = saved(tmp_path / "i.safetensors", flat, **meta)
    err = fails("sample", images, *out, "--show", "redrawn")
    assert "redrawn: expected a flow of two scales or more, got one" in err
    nameless = saved(tmp_path / "n.safetensors", flat, images=meta["images"])
    err = fails("sample", nameless, *out, "--show", "interpolations")
    assert "interpolations: expected --data: the model does not say what it is of" in err
    assert "data: expected none of samples" in fails("sample", images, *out, "--data", data)
    err = fails("sample", images, *out, "--data", tmp_path / "moved", "--show", "reconstructions")
    assert "moved: expected a folder or an npz file" in err
    for i, meta in enumerate(({}, {"data": "mnist"}, {"data": 3}, {"data": ["two_moons"]})):
        broken = saved(tmp_path / f"{i}.safetensors", identity(), **meta)
        assert "data: expected images, or one of ['eight_" in fails("sample", broken, *out)
    unlike = saved(tmp_path / "u.safetensors", NICE((3, 8, 4), 0, 2, 4, 1), **meta)
    assert "data: expected images, or one of" in fails("sample", unlike, *out)
