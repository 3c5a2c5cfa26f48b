"""The command `fastgen`."""

import os
import sys
import warnings
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional, arg, subcommand

from . import __version__, doctor
from .commands import FAMILIES
from .commands.scores import show_scores
from .options import NAMELESS, Device, Files, Model, Sampling, load, refuse
from .text import table

DESCRIPTION = f"""fastgen {__version__}: fast kernels for generative models, and the models on top.

An error is one line; --traceback, or FASTGEN_TRACEBACK=1, shows where it came from."""
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + the signal, as in a shell
EXPECTED = (ValueError, TypeError, OSError, ImportError)  # of what was asked for, not of fastgen

TRAIN, VERIFY, COMMANDS = (
    {name: does for family in FAMILIES for name, does in getattr(family, part).items()}
    for part in ("train", "verify", "commands")
)
# what `sample` takes for one family or another
OPTIONS = {field.name: field for family in FAMILIES for field in fields(family.options)}
Choice = make_dataclass("Choice", [(f.name, f.type, f) for f in OPTIONS.values()], frozen=True)
NONE = Choice()


def main(argv=None):
    """Run the command that `argv` holds, or the process's; returns its exit code.

    2 for a wrong argument, file or machine, 1 for a check that failed or a defect, 130 for Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    raises = "--traceback" in argv or os.environ.get("FASTGEN_TRACEBACK") == "1"
    argv = [a for a in argv if a != "--traceback"]
    commands = {"sample": sample, **COMMANDS, "train": train}
    commands |= {"eval": evaluate, "verify": verify, "doctor": diagnose}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(message)
            code = tyro.extras.subcommand_cli_from_dict(
                commands,
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
        int | None,
        arg(metavar="INT", help_behavior_hint="(default: 1 of sound, 64 images, 40,000 points)"),
    ] = None,
    choice: Annotated[Choice, NAMELESS] = NONE,
    sampling: Annotated[Sampling, NAMELESS] = Sampling(),
):
    """Sample sound, images or points from a model; what has a naive sampler is timed against it.

    Args:
        out: WAV or PNG file to write; NAME-0.wav, NAME-1.wav ... for n above 1
        n: how many
    """
    if n is not None and n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    net, meta, form, family = load(model, sampling.device, FAMILIES)
    own = [field.name for field in fields(family.options)]
    for other in FAMILIES:
        theirs = [field.name for field in fields(other.options) if field.name not in own]
        refuse(model, other.kind, **{name: getattr(choice, name) for name in theirs})
    family.sample(net, meta, form, out, n, choice, sampling)


def nested(commands):
    """The type of an argument that is one of the commands, by name."""
    named = [Annotated[Any, subcommand(k, constructor=f)] for k, f in commands.items()]
    return Annotated[Union[tuple(named)], NAMELESS]  # noqa: UP007, of a tuple


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
    features: Annotated[
        str | None,
        arg(metavar="MODEL", help_behavior_hint="(default: of a GAN the data's that is shipped)"),
    ] = None,
    device: Device = "cpu",
):
    """Measure a model on clips, images or points that were held out of its training.

    Args:
        data: what `train` takes; of images those to test on, where there are such
        files: how many clips, images or points
        seed: of what is spoken again, of the noise that a flow's images get, of samples
        features: lenet-mnist, or a run of `fastgen train lenet`: compare the samples of any model
            of images with images by its features
    """
    net, meta, form, family = load(model, device, FAMILIES)
    name = data or meta.get("data")
    if not isinstance(name, str):
        raise ValueError(f"{model}: does not say what it was trained on: expected --data")
    if features is not None:
        return show_scores(net, form, name, files, seed, features)
    family.evaluate(net, form, name, files, seed)


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


if __name__ == "__main__":
    sys.exit(main())
