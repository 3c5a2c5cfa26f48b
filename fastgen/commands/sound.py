"""The commands for models of sound."""

import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from .. import options as common
from ..data import Speech, load_audio, write_wav
from ..data.features import format_of
from ..metrics.likelihood import network_nats
from ..options import (
    NAMELESS,
    Descent,
    Device,
    Family,
    Files,
    Sampling,
    check_device,
    check_output,
    fit,
    load,
    parameters,
    prepared,
)
from ..sound import Clips, arithmetic, draw, likelihoods, naive_speed, prepare, resynthesis
from ..text import number, progress, speed, table
from ..tractable.wavenet import WaveNet
from ..verify import wavenet

FRAMES = 8  # of conditioning that a stream is given at once


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


@dataclass(frozen=True)
class Spoken:
    seconds: Annotated[
        float | None,
        arg(
            metavar="FLOAT",
            help="length of sound",
            help_behavior_hint="(default: the phrase's, or 4)",
        ),
    ] = None
    phrase: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help='what to speak, of the phrases that come with the model; "none" to babble',
            help_behavior_hint="(default: the seed chooses)",
        ),
    ] = None


def sample(net, meta, form, out, n, spoken, sampling):
    n = n or 1
    paths = [out.with_stem(f"{out.stem}-{i}") for i in range(n)] if n > 1 else [out]
    for path in paths:
        check_output(path, ".wav")
    options = prepared(sampling)
    name = choose(meta["phrases"], spoken.phrase, options["seed"])
    if name is None:
        T, cond = samples(4 if spoken.seconds is None else spoken.seconds, form.rate), None
    else:
        features = form.conditioning.normalize(meta["phrases"][name])
        longest = features.shape[1] * net.hop_length
        whole = spoken.seconds is None
        T = longest if whole else min(longest, samples(spoken.seconds, form.rate))
        cond = features.expand(n, -1, -1).split(FRAMES, dim=-1)
    codes, rate = draw(net, n, T, form.rate, cond=cond, **options)
    for path, wave in zip(paths, form.decode(codes), strict=True):
        write_wav(path, wave, form.rate)
    names = str(out) if n == 1 else f"{paths[0]} to {paths[-1].name}"
    print(wrote(names, codes, form, options))
    if name is not None:
        print(f"speaks {name!r}, from the log-mel features that come with the model")
    naive = naive_speed(net, codes, common.NAIVE_SECONDS)
    rows = [
        ("fastgen", *speed(rate, form.rate), f"{sampling.dtype}, cached activations"),
        (
            "naive",
            *speed(naive, form.rate),
            f"a forward pass for each, timed for {common.NAIVE_SECONDS} s",
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
    net, _, form, _ = load(model, sampling.device, [SOUND])
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


def train(
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
    form = format_of(net, audio)
    clips = Clips(data, form, files)
    field = number(1000 * net.receptive_field / form.rate)
    print(f"{parameters(net)}, a receptive field of {field} ms at {form.rate:,} Hz", flush=True)

    def validate(averaged):
        nats = {"nats": clips.nats(lambda x, cond: network_nats(averaged, x))}
        if vocoder:
            nats["nats given features"] = clips.nats(lambda *clip: network_nats(averaged, *clip))
        return nats

    meta = {"audio": audio, "data": data}
    last = fit(net.to(device), source, out, validate, meta, descent)
    print(table([(name, f"{nats:.4f} a sample, held out") for name, nats in last.items()]))


def evaluate(net, form, name, files, seed):
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


SOUND = Family(
    kind="sound",
    models=(WaveNet,),
    train={"wavenet": train},
    verify={"wavenet": wavenet.verify},
    commands={"vocode": vocode},
    format_of=lambda net, meta: format_of(net, meta.get("audio")),
    options=Spoken,
    sample=sample,
    evaluate=evaluate,
)
