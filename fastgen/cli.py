"""The command `fastgen`."""

import math
import os
import shlex
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import torch
import tyro
from tyro.conf import Positional, arg, subcommand

from . import __version__, doctor, images, weights
from . import train as training
from .checkpoint import CheckpointError
from .data import Speech, grid, load_audio, write_png, write_wav
from .data.features import format_of
from .images import Pictures, pictures_of
from .metrics.likelihood import network_nats
from .options import (
    NAMELESS,
    Descent,
    Device,
    Files,
    Model,
    Sampling,
    check_device,
    check_output,
    parameters,
    prepared,
    refuse,
)
from .sound import Clips, arithmetic, draw, likelihoods, naive_speed, prepare, resynthesis
from .text import number, progress, speed, table
from .tractable.wavenet import WaveNet
from .verify import flows as flow_checks
from .verify import images as image_checks
from .verify import wavenet

DESCRIPTION = f"""fastgen {__version__}: fast kernels for generative models, and the models on top.

An error is one line; --traceback, or FASTGEN_TRACEBACK=1, shows where it came from."""
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + the signal, as in a shell
EXPECTED = (ValueError, TypeError, OSError, ImportError)  # of what was asked for, not of fastgen
NAIVE_SECONDS = 2  # for which the naive sampler is timed
FRAMES = 8  # of conditioning that a stream is given at once

VERIFY = {"wavenet": wavenet.verify} | {
    name: partial(checks.verify, name)
    for checks in (image_checks, flow_checks)
    for name in checks.MODELS
}


@dataclass(frozen=True)
class Sizes:
    layers: int = 20
    stacks: int = 2  # in each the dilations are 1, 2, 4 ...
    residual_channels: int = 64
    gate_channels: int = 128  # tanh and sigmoid together
    skip_channels: int = 256
    kernel_size: int = 2
    classes: int = 256  # levels of a sample
    mixtures: int = 0  # logistics of a mixture, in place of a softmax over the levels


def main(argv=None):
    """Run the command that `argv` holds, or the process's; returns its exit code.

    2 for a wrong argument, file or machine, 1 for a check that failed or a defect, 130 for Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    raises = "--traceback" in argv or os.environ.get("FASTGEN_TRACEBACK") == "1"
    argv = [a for a in argv if a != "--traceback"]
    commands = (sample, vocode, train, evaluate, verify, diagnose)
    names = ("sample", "vocode", "train", "eval", "verify", "doctor")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(message)
            code = tyro.extras.subcommand_cli_from_dict(
                dict(zip(names, commands, strict=True)),
                prog="fastgen",
                description=DESCRIPTION,
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        # The reader of stdout has left; let nothing be flushed into its absence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted")
        return INTERRUPTED
    except Exception as error:
        if raises:
            raise
        if isinstance(error, EXPECTED):
            say(describe(error))
            return 2
        say(f"{type(error).__name__}: {describe(error)} (--traceback shows where)")
        return 1


def say(message):
    """A line on stderr."""
    print(f"fastgen: {' '.join(str(message).split())}", file=sys.stderr)


def describe(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def sample(
    model: Model,
    *,
    out: Path,
    n: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: 1 of sound, 64 images)")
    ] = None,
    seconds: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint="(default: the phrase's, or 4)")
    ] = None,
    phrase: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the seed chooses)")
    ] = None,
    label: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: all in turn)")
    ] = None,
    sampling: Annotated[Sampling, NAMELESS] = Sampling(),
):
    """Sample sound or images from a model, and compare the speed with the naive sampler's.

    Args:
        out: WAV or PNG file to write; NAME-0.wav, NAME-1.wav ... for n above 1
        n: how many
        seconds: length of sound
        phrase: what to speak, of the phrases that come with the model; "none" to babble
        label: class of the images
    """
    if n is not None and n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    net, meta, form = load(model, sampling.device)
    if isinstance(form, Pictures):
        refuse(model, "sound", seconds=seconds, phrase=phrase)
        return sample_images(net, form, out, n or 64, label, sampling)
    refuse(model, "images", label=label)
    return sample_sound(net, meta, form, out, n or 1, seconds, phrase, sampling)


def sample_sound(net, meta, form, out, n, seconds, phrase, sampling):
    paths = [out.with_stem(f"{out.stem}-{i}") for i in range(n)] if n > 1 else [out]
    for path in paths:
        check_output(path, ".wav")
    options = prepared(sampling)
    name = choose(meta["phrases"], phrase, options["seed"])
    if name is None:
        T, cond = samples(4 if seconds is None else seconds, form.rate), None
    else:
        features = form.conditioning.normalize(meta["phrases"][name])
        longest = features.shape[1] * net.hop_length
        T = longest if seconds is None else min(longest, samples(seconds, form.rate))
        cond = features.expand(n, -1, -1).split(FRAMES, dim=-1)
    codes, rate = draw(net, n, T, form.rate, cond=cond, **options)
    for path, wave in zip(paths, form.decode(codes), strict=True):
        write_wav(path, wave, form.rate)
    names = str(out) if n == 1 else f"{paths[0]} to {paths[-1].name}"
    print(wrote(names, codes, form, options))
    if name is not None:
        print(f"speaks {name!r}, from the log-mel features that come with the model")
    naive = naive_speed(net, codes, NAIVE_SECONDS)
    rows = [
        ("fastgen", *speed(rate, form.rate), f"{sampling.dtype}, cached activations"),
        (
            "naive",
            *speed(naive, form.rate),
            f"a forward pass for each, timed for {NAIVE_SECONDS} s",
        ),
        ("ratio", f"{number(rate / naive)}x"),
    ]
    print(table(rows))


def sample_images(net, form, out, n, label, sampling):
    check_output(out, ".png")
    options = prepared(sampling)
    options.pop("threads")  # torch has been told
    labels = images.labels(net, n, label)
    codes, rate = images.timed_draw(net, n, form, label=labels, **options)
    write_png(out, grid(form.decode(codes)))
    size = " x ".join(map(str, form.shape[1:]))
    print(f"wrote {out}: {n} images of {size}, seed {options['seed']}")
    naive = images.naive_speed(net, codes, labels, NAIVE_SECONDS)
    rows = [
        ("fastgen", f"{number(rate)} images/s", f"{sampling.dtype}, cached"),
        (
            "naive",
            f"{number(naive)} images/s",
            f"a forward pass for each pixel, timed for {NAIVE_SECONDS} s",
        ),
        ("ratio", f"{number(rate / naive)}x"),
    ]
    print(table(rows))


def vocode(
    source: Annotated[Positional[Path], arg(metavar="IN")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    *,
    model: Annotated[str, arg(metavar="MODEL")] = "wavenet",
    sampling: Annotated[Sampling, NAMELESS] = Sampling(),
):
    """Speak a recording again from its log-mel features alone.

    Args:
        source: sound file to read
        out: WAV file to write
        model: a shipped model's name, a model's file, or a run's folder
    """
    check_output(out, ".wav")
    wave, rate = load_audio(source)
    net, _, form = load(model, sampling.device)
    if isinstance(form, Pictures):
        raise ValueError(f"{model}: expected a model of sound, got one of images")
    if form.conditioning is None:
        raise ValueError(f"{model}: expected a model of features, got one trained without")
    if rate != form.rate:
        convert = f"sox {shlex.quote(str(source))} -r {form.rate} -c 1 converted.wav"
        raise ValueError(f"{source}: expected {form.rate} Hz, got {rate} Hz: {convert}")
    options = prepared(sampling)
    cond = form.conditioning(wave)[None].split(FRAMES, dim=-1)
    codes, rate = draw(net, 1, len(wave), form.rate, cond=cond, **options)
    write_wav(out, form.decode(codes[0]), form.rate)
    print(wrote(out, codes, form, options))
    print(table([("fastgen", *speed(rate, form.rate), sampling.dtype)]))


def train_wavenet(
    *,
    data: Annotated[str, arg(metavar="DATA")],
    out: Path,
    crop: int = 8000,
    vocoder: bool = False,
    mels: int = 64,
    drop: float = 0.2,
    files: Files = None,
    device: Device = "cpu",
    sizes: Annotated[Sizes, NAMELESS] = Sizes(),
    descent: Annotated[Descent, NAMELESS] = Descent(),
):
    """Train a WaveNet; the same command goes on where a run was stopped.

    Args:
        data: a folder of .wav files, speech8k or speech16k
        out: folder of the run
        crop: samples in a row of a batch
        vocoder: condition on log-mel features, for fastgen vocode
        mels: bands of the features
        drop: probability that a row goes without its features
        files: held-out clips to validate on
    """
    check_device(device)
    torch.manual_seed(descent.seed)
    options = {"mels": mels if vocoder else None, "drop": drop, "seed": descent.seed}
    net, source, audio = prepare(Speech(data), asdict(sizes), crop=crop, **options)
    form, last = format_of(net, audio), {}
    clips = Clips(data, form, files)
    field = number(1000 * net.receptive_field / form.rate)
    print(f"{parameters(net)}, a receptive field of {field} ms at {form.rate:,} Hz", flush=True)

    def validate(averaged):
        last["nats"] = clips.nats(lambda x, cond: network_nats(averaged, x))
        if vocoder:
            last["nats given features"] = clips.nats(lambda *clip: network_nats(averaged, *clip))
        return last

    meta = {"audio": audio, "data": data}
    training.train(net.to(device), source, out=out, validate=validate, meta=meta, **asdict(descent))
    print(f"wrote {out}: step {descent.steps}")
    print(table([(name, f"{nats:.4f} a sample, held out") for name, nats in last.items()]))


def image_trainer(Kind):
    """The command that trains a model of images, of sizes of a class of `images.SIZES`."""
    default = Kind()

    def train(
        *,
        data: Annotated[str, arg(metavar="DATA")],
        out: Path,
        levels: int = 2,
        binarize: Literal["dynamic", "fixed", "threshold"] = "dynamic",
        files: Files = None,
        device: Device = "cpu",
        sizes: Annotated[Kind, NAMELESS] = default,
        descent: Annotated[Descent, NAMELESS] = Descent(batch_size=100),
    ):
        """Train a model of images; the same command goes on where a run was stopped.

        Args:
            data: mnist, fashion, an npz file, or a folder of IDX files or pictures
            out: folder of the run
            levels: of a pixel
            binarize: with 2 levels, draw the ones anew at each step, once, or from 128 on
            files: held-out images to validate on
        """
        check_device(device)
        torch.manual_seed(descent.seed)
        options = {"levels": levels, "binarize": binarize, "seed": descent.seed}
        net, source, own = images.prepare(sizes, data, **options)
        validation, last = images.Validation(net, own, data, out, files), {}
        print(f"{parameters(net)}, images of {' x '.join(map(str, own['shape']))}", flush=True)

        def validate(averaged):
            last.update(validation(averaged))
            return last

        meta = {"images": own, "data": data}
        options = {"validate": validate, "meta": meta, **asdict(descent)}
        training.train(net.to(device), source, out=out, **options)
        print(f"wrote {out}: step {descent.steps}")
        print(table([(name, f"{value:.4f}, held out") for name, value in last.items()]))

    return train


def nested(commands):
    """The type of an argument that is one of the commands, by name."""
    named = [Annotated[Any, subcommand(k, constructor=f)] for k, f in commands.items()]
    return Annotated[Union[tuple(named)], NAMELESS]  # noqa: UP007, of a tuple


TRAIN = {"wavenet": train_wavenet} | {k: image_trainer(S) for k, S in images.SIZES.items()}


def train(model: nested(TRAIN)):
    """Train a model; the same command goes on where a run was stopped."""


def evaluate(
    model: Model,
    *,
    data: Annotated[
        str | None, arg(metavar="DATA", help_behavior_hint="(default: the model's)")
    ] = None,
    files: Files = None,
    seed: int = 0,
    device: Device = "cpu",
):
    """Measure a model on clips or images that were held out of its training.

    Args:
        data: what `train` takes; of images those to test on, where there are such
        files: how many clips or images
        seed: of what is spoken again
    """
    net, meta, form = load(model, device)
    name = data or meta.get("data")
    if not isinstance(name, str):
        raise ValueError(f"{model}: does not say what it was trained on: expected --data")
    if isinstance(form, Pictures):
        unseen = images.Unseen(name, form, images.labelled(net), files)
        print(f"{len(unseen.codes)} {unseen.split} images of {name}")
        print(table(images.likelihoods(net, form, unseen, name)))
        return
    with progress() as show:
        clips = Clips(name, form, files)
        length = f"{number(clips.samples / form.rate)} s at {form.rate:,} Hz"
        print(f"{len(clips.waves)} held-out clips of {name}, {length}")
        sections = [("nats a sample", lambda: likelihoods(net, form, clips, name, show))]
        sections += [("nats a sample, by the sampler", lambda: arithmetic(net, clips, show))]
        if form.conditioning:
            sections += [("spoken again", lambda: resynthesis(net, form, clips, seed, show))]
        for title, measure in sections:
            rows = measure()
            show("")
            print(f"{title}\n{table(rows)}", flush=True)


def verify(model: Annotated[Positional[Literal[tuple(VERIFY)]], arg(metavar="|".join(VERIFY))]):
    """Hold a model to what is known about it exactly; exit code 1 if it does not hold."""
    print(f"  {'':44}{'expected':24}got")
    found = VERIFY[model](lambda check: print(line(check), flush=True))
    failed = sum(not check.ok for check in found)
    print(f"{len(found) - failed} of {len(found)} hold")
    return 1 if failed else 0


def line(check):
    return f"  {check.name:44}{check.expected:24}{check.got:18}{verdict(check)}"


def verdict(check):
    return "ok" if check.ok else "FAIL"


def diagnose():
    """Say what there is on this machine, and test the kernels; exit code 1 if one is wrong."""
    for title, rows in doctor.report():
        print(f"{title}\n{table(rows)}")
    found = doctor.self_tests()
    print("self-tests: error, of the largest value of the reference")
    rows = [(check.name, f"below {check.expected}", check.got, verdict(check)) for check in found]
    print(table(rows or [("none: there are references alone",)]))
    return 0 if all(check.ok for check in found) else 1


def load(name, device):
    """A model, its file's meta and its format."""
    check_device(device)
    net, meta = weights.load(name, device)
    try:
        if isinstance(net, WaveNet):
            return net, meta, format_of(net, meta.get("audio"))
        return net, meta, pictures_of(net, meta.get("images"))
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def choose(phrases, name, seed):
    """The name of the phrase to speak, by default one that the seed chooses; or None to babble."""
    if name == "none" or (name is None and not phrases):
        return None
    if name is None:
        return sorted(phrases)[seed % len(phrases)]
    if name not in phrases:
        known = ", ".join(map(repr, ["none", *sorted(phrases)]))
        raise ValueError(f"phrase: expected one of {known}, got {name!r}")
    return name


def samples(seconds, rate):
    """How many there are in so many seconds."""
    T = round(seconds * rate) if math.isfinite(seconds) else -1
    if not 1 <= T < 2**30:  # 2 GiB of 16-bit samples; a WAV file holds less than 4
        raise ValueError(f"seconds: expected above 0 and below {2**30 // rate:,}, got {seconds:g}")
    return T


def wrote(name, codes, form, options):
    seconds = number(codes.shape[1] / form.rate)
    return f"wrote {name}: {seconds} s at {form.rate:,} Hz, seed {options['seed']}"
