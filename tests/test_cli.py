"""The command does what it says, and tells in one line what is wrong with what it was given."""

import errno
import importlib.util
import math
import os
import signal
import threading
import time

import pytest
import torch

from fastgen import WaveNet, checkpoint
from fastgen.data import LogMel, load_audio, mulaw_decode, mulaw_encode, read_wav, write_wav
from fastgen.data.features import Conditioning
from fastgen.text import number, table
from fastgen.tractable.wavenet_stream import Stream
from fastgen.verify import Check, wavenet

pytest.importorskip("tyro")
from fastgen import cli, options
from fastgen.commands import sound

RATE = 8000
MEL = LogMel(RATE, 256, 256, 80, 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(options, "NAIVE_SECONDS", 0.01)
    torch.set_num_threads(1)


def wavenet_file(path, audio=None, **config):
    torch.manual_seed(0)
    model = WaveNet(4, 2, 8, 12, 8, **config)
    audio = {"rate": RATE, "features": None, "mean": None, "std": None, **(audio or {})}
    meta = {"model": "WaveNet", "config": model.config, "audio": audio}
    checkpoint.save(path, model.state_dict(), meta)
    return model.eval()


@pytest.fixture
def model(tmp_path):
    wavenet_file(tmp_path / "m.safetensors")
    return str(tmp_path / "m.safetensors")


@pytest.fixture
def vocoder(tmp_path):
    config = Conditioning(MEL, [-5.0] * 4, [3.0] * 4).config
    wavenet_file(tmp_path / "v.safetensors", config, cond_channels=5, hop_length=80)
    return str(tmp_path / "v.safetensors")


def tone(T=1000, hertz=440, seed=0):
    noise = torch.randn(T, generator=torch.Generator().manual_seed(seed))
    return 0.4 * torch.sin(2 * math.pi * hertz * torch.arange(T) / RATE) + 0.02 * noise


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(21):
        write_wav(folder / f"{i:02}.wav", tone(600 + 10 * i, 200 + 20 * i, seed=i), RATE)
    return str(folder)


@pytest.fixture
def fails(capsys, tmp_path):
    """A command that must end with code 2, one line on stderr, and no file more."""

    def run(*argv, code=2):
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([str(a) for a in argv]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("fastgen: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize("command", [(), ("sample",), ("vocode",), ("train",), ("eval",)])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    assert "usage: fastgen" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["smaple"], ["sample"], ["sample", "m", "--outt", "a.wav"]])
def test_usage(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_sample(model, tmp_path, capsys):
    out = tmp_path / "a.wav"
    assert cli.main(["sample", model, "--out", str(out), "--seconds", "0.3", "--seed", "7"]) == 0
    got, rate = read_wav(out)
    net = wavenet_file(tmp_path / "again.safetensors")
    expected = mulaw_decode(net.sample(1, 2400, seed=7))
    assert rate == RATE
    torch.testing.assert_close(got, expected, rtol=0, atol=1 / 32768)
    said = capsys.readouterr().out
    assert "0.3 s at 8,000 Hz, seed 7" in said
    assert said.count("samples/s") == said.count("x real time") == 2
    assert "ratio" in said


def test_sample_many(model, tmp_path):
    options = ["--n", "3", "--seconds", "0.02", "--seed", "1", "--threads", "2"]
    for dtype in ("float32", "float64", "bfloat16", "int8"):
        out = str(tmp_path / f"{dtype}.wav")
        assert cli.main(["sample", model, "--out", out, "--dtype", dtype, *options]) == 0
        waves = [read_wav(tmp_path / f"{dtype}-{i}.wav")[0] for i in range(3)]
        assert {wave.shape for wave in waves} == {(1, 160)}
        assert not torch.equal(waves[0], waves[1])
        assert not os.path.exists(out)


def test_sample_without_a_seed_tells_it(model, tmp_path, capsys):
    first, second = tmp_path / "1.wav", tmp_path / "2.wav"
    assert cli.main(["sample", model, "--out", str(first), "--seconds", "0.1"]) == 0
    seed = capsys.readouterr().out.split("seed ")[1].split()[0]
    argv = ["sample", model, "--out", str(second), "--seconds", "0.1", "--seed", seed]
    assert cli.main(argv) == 0
    assert first.read_bytes() == second.read_bytes()


def test_sample_a_mixture_of_features_without_any(tmp_path):
    config = Conditioning(MEL, [-5.0] * 4, [3.0] * 4).config
    path = tmp_path / "x.safetensors"
    wavenet_file(path, config, cond_channels=5, hop_length=80, mixtures=3, classes=65536)
    out = tmp_path / "x.wav"
    assert cli.main(["sample", str(path), "--out", str(out), "--seconds", "0.05"]) == 0
    assert read_wav(out)[0].shape == (1, 400)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "seconds: expected above 0"),
        (["--seconds", "-1"], "seconds: expected above 0"),
        (["--seconds", "nan"], "seconds: expected above 0"),
        (["--seconds", "inf"], "seconds: expected above 0"),
        (["--seconds", "1e9"], "below 134,217, got 1e+09"),
        (["--n", "0"], "n: expected at least 1, got 0"),
        (["--seed", "-1"], "seed: expected 0 <= seed"),
        (["--temperature", "-1"], "temperature: expected finite and >= 0, got -1"),
        (["--temperature", "nan"], "temperature: expected finite"),
        (["--threads", "0"], "threads: expected at least 1, got 0"),
        (["--device", "tpu"], "device: expected cpu or cuda, got tpu"),
    ],
)
def test_an_option_out_of_range(model, tmp_path, fails, options, message):
    assert message in fails("sample", model, "--out", tmp_path / "a.wav", *options)


def test_a_gpu_that_is_not_there(model, tmp_path, fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    err = fails("sample", model, "--out", tmp_path / "a.wav", "--device", "cuda")
    assert "torch sees no GPU" in err


def test_a_model_that_is_not_there_or_broken(model, tmp_path, fails):
    out = ["--out", tmp_path / "a.wav"]
    assert "no such model" in fails("sample", tmp_path / "absent", *out)
    assert "found no checkpoint" in fails("sample", tmp_path, *out)
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    assert "cut.safetensors: expected" in fails("sample", tmp_path / "cut.safetensors", *out)
    wavenet_file(tmp_path / "quiet.safetensors", {"rate": None})
    err = fails("sample", tmp_path / "quiet.safetensors", *out)
    assert "quiet.safetensors: audio: rate: expected Hz, got None" in err


def test_a_place_that_cannot_be_written(model, tmp_path, fails, monkeypatch):
    folder = tmp_path / "folder.wav"
    folder.mkdir()
    assert "got a folder" in fails("sample", model, "--out", folder)
    assert "to be there" in fails("sample", model, "--out", tmp_path / "absent" / "a.wav")
    assert "name in .wav" in fails("sample", model, "--out", tmp_path / "a.mp3")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "may not write in" in fails("sample", model, "--out", tmp_path / "a.wav")


def test_a_full_disk(model, tmp_path, fails, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    err = fails("sample", model, "--out", tmp_path / "a.wav", "--seconds", "0.01")
    assert f"{tmp_path}/a.wav: No space left on device" in err


def test_ctrl_c_between_chunks(model, tmp_path, fails, monkeypatch):
    chunks, after = [], Stream.__next__

    def interrupted(stream):
        if len(chunks) == 2:
            raise KeyboardInterrupt
        chunks.append(after(stream))
        return chunks[-1]

    monkeypatch.setattr(Stream, "__next__", interrupted)
    err = fails("sample", model, "--out", tmp_path / "a.wav", code=130)
    assert err == "fastgen: interrupted\n"
    assert len(chunks) == 2


def test_ctrl_c_ends_within_a_second(model, tmp_path, fails):
    pressed = []

    def press():
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.5, press)
    timer.start()
    fails("sample", model, "--out", tmp_path / "a.wav", "--seconds", "9999", code=130)
    assert time.monotonic() - pressed[0] < 1


def test_a_reader_that_leaves(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert cli.main(["doctor"]) == 141


def test_errors_in_full_on_demand(model, tmp_path, capsys, monkeypatch):
    argv = ["sample", model, "--out", str(tmp_path / "a.wav"), "--seconds", "0"]
    with pytest.raises(ValueError, match="seconds"):
        cli.main([*argv, "--traceback"])
    monkeypatch.setenv("FASTGEN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seconds"):
        cli.main(argv)


def test_a_defect_has_its_own_code(model, tmp_path, fails, monkeypatch):
    monkeypatch.setattr(sound, "draw", lambda *args, **options: {}["key"])
    err = fails("sample", model, "--out", tmp_path / "a.wav", code=1)
    assert err == "fastgen: KeyError: 'key' (--traceback shows where)\n"


def test_vocode(vocoder, tmp_path, capsys):
    source, out = tmp_path / "in.wav", tmp_path / "out.wav"
    write_wav(source, tone(1234), RATE)
    assert cli.main(["vocode", str(source), str(out), "--model", vocoder, "--seed", "3"]) == 0
    got, rate = read_wav(out)
    assert (got.shape, rate) == ((1, 1234), RATE)
    net, _, form, _ = cli.load(vocoder, "cpu", cli.FAMILIES)
    cond = form.conditioning(load_audio(source)[0])[None]
    expected = mulaw_decode(net.sample(1, 1234, seed=3, cond=cond))
    torch.testing.assert_close(got, expected, rtol=0, atol=1 / 32768)
    assert "wrote" in capsys.readouterr().out


def test_vocode_averages_channels(vocoder, tmp_path):
    write_wav(tmp_path / "mono.wav", torch.full((800,), 0.25), RATE)
    write_wav(tmp_path / "stereo.wav", torch.tensor([[0.0], [0.5]]).expand(2, 800), RATE)
    for name in ("mono", "stereo"):
        source, out = (str(tmp_path / f"{name}{end}.wav") for end in ("", "-out"))
        assert cli.main(["vocode", source, out, "--model", vocoder, "--seed", "0"]) == 0
    assert (tmp_path / "mono-out.wav").read_bytes() == (tmp_path / "stereo-out.wav").read_bytes()


def test_what_cannot_be_vocoded(vocoder, model, tmp_path, fails):
    out, source = tmp_path / "out.wav", tmp_path / "it's in.wav"
    assert "No such file" in fails("vocode", source, out, "--model", vocoder)
    write_wav(source, tone(), 16000)
    err = fails("vocode", source, out, "--model", vocoder)
    assert "expected 8000 Hz, got 16000 Hz: sox " in err
    assert f"'{tmp_path}/it'\"'\"'s in.wav' -r 8000 -c 1 converted.wav" in err
    write_wav(source, torch.zeros(0), RATE)
    assert "at least 1 sample" in fails("vocode", source, out, "--model", vocoder)
    source.write_bytes(b"RIFF")
    assert "in.wav" in fails("vocode", source, out, "--model", vocoder)
    write_wav(source, tone(), RATE)
    err = fails("vocode", source, out, "--model", model)
    assert "expected a model of features, got one trained without" in err


SMALL = ["--batch-size", "2", "--crop", "320", "--layers", "4", "--residual-channels", "8"]
SMALL += ["--gate-channels", "12", "--skip-channels", "8", "--files", "1"]


def test_train_then_eval_and_sample(clips, tmp_path, capsys):
    run = str(tmp_path / "run")
    argv = ["train", "wavenet", "--data", clips, "--out", run, *SMALL, "--vocoder", "--mels", "4"]
    assert cli.main([*argv, "--steps", "2"]) == 0
    assert cli.main([*argv, "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "nats given features" in said
    other = tmp_path / "other"
    other.symlink_to(clips)
    assert cli.main([*argv, "--steps", "4", "--data", str(other)]) == 2
    assert f"data expected '{other}', got '{clips}'" in capsys.readouterr().err
    assert cli.main(["eval", run, "--files", "1"]) == 0
    said = capsys.readouterr().out
    rows = [line.strip().rsplit(None, 1) for line in said.splitlines()]
    table = {row[0].strip(): row[1] for row in rows if len(row) == 2}
    net, _, form, _ = cli.load(run, "cpu", cli.FAMILIES)
    codes = mulaw_encode(load_audio(f"{clips}/00.wav")[0])[None]
    with torch.no_grad():
        free = -net.log_prob(codes).item() / codes.numel()
        cond = form.conditioning(load_audio(f"{clips}/00.wav")[0])[None]
        given = -net.log_prob(codes, cond).item() / codes.numel()
    assert table["model"] == f"{free:.4f}"
    assert table["model, given features"] == table["float32"] == f"{given:.4f}"
    assert float(table["int8"]) == pytest.approx(given, abs=0.05)
    assert {"linear predictor", "unigram", "uniform, ln 256"} < table.keys()
    assert "log-mel distance" in said
    installed = importlib.util.find_spec("pystoi")
    assert ("no clip holds enough speech" if installed else "fastgen[metrics]") in said
    assert cli.main(["sample", run, "--out", str(tmp_path / "a.wav"), "--seconds", "0.01"]) == 0


def test_train_a_mixture(clips, tmp_path, capsys):
    run = str(tmp_path / "run")
    argv = ["train", "wavenet", "--data", clips, "--out", run, *SMALL, "--steps", "2"]
    assert cli.main([*argv, "--mixtures", "2", "--classes", "65536"]) == 0
    assert cli.main(["eval", run, "--data", clips]) == 0
    said = capsys.readouterr().out
    assert "uniform, ln 65536" in said
    assert "linear predictor" not in said
    assert "spoken again" not in said


def test_ctrl_c_in_training_saves(clips, tmp_path, capsys, monkeypatch):
    average, steps = options.training.Game.average, []

    def press(game, decay):
        steps.append(decay)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        average(game, decay)

    monkeypatch.setattr(options.training.Game, "average", press)
    run = tmp_path / "run"
    argv = ["train", "wavenet", "--data", clips, "--out", str(run), *SMALL, "--steps", "50"]
    assert cli.main(argv) == 130
    assert "saved at step" in capsys.readouterr().err
    assert (run / "model.safetensors").exists()


def test_what_cannot_be_trained_or_evaluated(clips, model, tmp_path, fails):
    argv = ["train", "wavenet", "--out", tmp_path / "run", *SMALL]
    assert "expected .wav files" in fails(*argv, "--data", tmp_path / "absent")
    assert "layers: expected a multiple" in fails(*argv, "--data", clips, "--layers", "5")
    assert "mels expected" in fails(*argv, "--data", clips, "--vocoder", "--mels", "0")
    assert "p expected in [0, 1]" in fails(*argv, "--data", clips, "--vocoder", "--drop", "2")
    assert "files: expected at least 1" in fails(*argv, "--data", clips, "--files", "0")
    assert "expected --data" in fails("eval", model)
    for path in (tmp_path / "clips").iterdir():
        write_wav(path, tone(), 16000)
    assert "expected 8000 Hz, got 16000 Hz" in fails("eval", model, "--data", clips)


@pytest.mark.parametrize(
    ("x", "said"),
    [(31234.5, "31,200"), (1e7, "10,000,000"), (3.9, "3.9"), (0.013849, "0.0138"), (100, "100")],
)
def test_numbers(x, said):
    assert number(x) == said


def test_tables_align():
    assert table([("a", "bcd", "e"), ("fg", "h"), ("i",)]) == "  a   bcd  e\n  fg  h\n  i"


def test_verify(capsys, monkeypatch):
    def false():
        return Check("a thing", "1", "2", False)

    monkeypatch.setattr(wavenet, "CHECKS", (wavenet.sums_to_one,))
    assert cli.main(["verify", "wavenet"]) == 0
    assert "1 of 1 hold" in capsys.readouterr().out
    monkeypatch.setattr(wavenet, "CHECKS", (wavenet.sums_to_one, false))
    assert cli.main(["verify", "wavenet"]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 hold" in said
    assert said.count("FAIL") == 1


def test_doctor(capsys, monkeypatch):
    assert cli.main(["doctor"]) == 0
    assert "wavenet_sample" in capsys.readouterr().out
    monkeypatch.setattr(cli.doctor, "self_tests", lambda: [Check("a kernel", "1", "2", False)])
    assert cli.main(["doctor"]) == 1
    assert "FAIL" in capsys.readouterr().out
    monkeypatch.setattr(cli.doctor, "self_tests", list)
    assert cli.main(["doctor"]) == 0
    assert "none: there are references alone" in capsys.readouterr().out
