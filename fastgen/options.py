"""What the commands share: options, and what is checked of them before any work is done."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from . import train as training
from . import weights
from .checkpoint import CheckpointError
from .text import number

Model = Annotated[
    Positional[str],
    arg(metavar="MODEL", help="a shipped model's name, a model's file, or a run's folder"),
]
Device = Annotated[str, arg(metavar="DEVICE", help="cpu, or cuda for a GPU")]
Files = Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")]
NAMELESS = arg(name="")  # --lr, not --descent.lr
NAIVE_SECONDS = 2  # for which a naive sampler is timed


@dataclass(frozen=True)
class Sampling:
    seed: Annotated[
        int | None,
        arg(metavar="INT", help="of the random numbers", help_behavior_hint="(default: a new one)"),
    ] = None
    temperature: float = 1.0  # of the softmax, or of a flow's sources; 0 takes the likeliest
    dtype: Literal["float32", "bfloat16", "int8", "float64"] = "float32"  # of what is multiplied
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch's)")] = (
        None
    )
    device: Device = "cpu"


@dataclass(frozen=True)
class Descent:
    steps: int = 100_000
    batch_size: int = 8
    lr: float = 1e-3
    clip: float = 1.0  # bound of the gradient's norm
    warmup: int = 0  # steps
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 for autocast
    validate_every: int = 1000  # steps
    save_every: int = 1000  # steps
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        if not 0 <= self.seed < 2**64:  # or torch says that something overflows
            raise ValueError(f"seed: expected in [0, 2^64), got {self.seed}")


@dataclass(frozen=True)
class Family:
    """A family of models, and what the commands do of it.

    kind: what its models are, in words    models: classes
    train, verify: commands and checks by the model's name    commands: its own, by name
    format_of(net, meta): how samples are written; ValueError for meta that does not fit
    options: what `sample` takes for it alone, a dataclass of fields that are None unless given
    sample(net, meta, form, out, n, options, sampling)    evaluate(net, form, data, files, seed)
    """

    kind: str
    models: tuple[type, ...]
    train: dict[str, Callable]
    verify: dict[str, Callable]
    commands: dict[str, Callable]
    format_of: Callable
    options: type
    sample: Callable
    evaluate: Callable


def load(name, device, families):
    """A model, its file's meta, its format and its family.

    Raises ValueError for a model of none of the families, CheckpointError for a broken file.
    """
    check_device(device)
    net, meta = weights.load(name, device)
    family = next((f for f in families if isinstance(net, f.models)), None)
    if family is None:
        kinds = " or ".join(f.kind for f in families)
        raise ValueError(f"{name}: expected {kinds}, got a {type(net).__name__}")
    try:
        return net, meta, family.format_of(net, meta), family
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def fit(net, source, out, validate, meta, descent, **more):
    """Train, say so, and return the last numbers of `validate` by name."""
    last = {}

    def remembered(averaged):
        last.update(validate(averaged))
        return last

    options = {"validate": remembered, "meta": meta, **asdict(descent), **more}
    training.train(net, source, out=out, **options)
    print(f"wrote {out}: step {descent.steps}")
    return last


def refuse(model, kind, **options):
    """Raise ValueError for options that are for models of another kind."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{model}: {name}: expected none, which is for {kind}")


def parameters(net):
    return f"{number(sum(p.numel() for p in net.parameters()))} parameters"


def check_output(path, suffix):
    """Raise before the work is done what writing a file would raise after it."""
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: expected a name in {suffix} to write")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected the folder {path.parent} to be there")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: may not write in the folder {path.parent}")


def check_device(name):
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {name}")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device: {name}: torch sees no GPU; fastgen doctor says more")


def prepared(sampling):
    """The options of a stream; a seed is drawn, and torch told of the threads, where need be."""
    options = asdict(sampling)
    options.pop("device")
    if sampling.seed is None:
        options["seed"] = int.from_bytes(os.urandom(4), "little")  # short enough to be typed again
    if sampling.threads is not None:
        if sampling.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {sampling.threads}")
        torch.set_num_threads(min(sampling.threads, os.cpu_count() or 1))
    return options
