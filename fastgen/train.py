"""The one loop that trains every model, by playing the model's game.

A run is a folder: checkpoints (see `fastgen.checkpoint.Folder`), log.jsonl, and tensorboard/ where
asked for. Batches depend on the step alone, and torch's generator is seeded from (seed, step, rank)
at each, so that a run that was stopped and one that was not are equal bit for bit.
"""

import atexit
import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from .checkpoint import Folder
from .files import atomic
from .game import MOMENTS, Game

_TINY = sys.float_info.min  # the least value of what must be positive


def train(
    model,
    source,
    *,
    out,
    steps,
    batch_size,
    lr=1e-3,
    optimizer="adam",
    betas=(0.9, 0.999),
    eps=1e-8,
    warmup=0,
    schedule="constant",
    final=0.01,
    clip=math.inf,
    ema=0.999,
    dtype="float32",
    validate=None,
    validate_every=1000,
    log_every=10,
    save_every=1000,
    keep=2,
    seed=0,
    meta=None,
    simultaneous=False,
    tensorboard=False,
    progress=True,
):
    """Play a model's game by gradient descent; returns a copy with the averaged weights.

    A run that `out` holds already goes on where it stopped. Under torchrun each process takes its
    share of every batch, and the first process writes. The first Ctrl-C finishes the step (on a GPU
    the steps up to the next line of the log), saves and raises KeyboardInterrupt; the second raises
    it at once. On a GPU the first steps are captured as a CUDA graph, where they can be, and what
    follows replays it: the loss's own Python, checks of the batch among it, runs no more.

    source: batch(step, batch_size) -> tuple of tensors of batch_size rows, a function of the step
    optimizer: "adam" with `betas`, or "sgd" with the momentum betas[0]
    eps: added to the root of Adam's mean squared slope: slopes far below it make small steps
    lr: rises over `warmup` steps, then follows `schedule` ("constant", "cosine", "exponential") and
    is final·lr at the end; each player has a factor for it
    clip: bound of the gradient's norm
    ema: averaged weights are a ← d·a + (1 - d)·w with d = min(ema, step / (step + 9))
    dtype: "float32", or "bfloat16" for autocast
    validate: called with the averaged model when the log's last line is of the step, returns
    numbers by name for the log
    keep: checkpoints to keep    meta: JSON object for the checkpoints; its "data" names the source
    simultaneous: whether all players' gradients are taken before any of them steps

    Raises ValueError: an option out of range, a batch or loss of another shape, a run of another
    model or on other data, a loss or gradient that is not finite (the last checkpoint stays), a
    broken checkpoint.
    """
    _check_range(1, 10**8 - 1, steps=steps, batch_size=batch_size, keep=keep)
    _check_range(1, math.inf, validate_every=validate_every, log_every=log_every)
    _check_range(1, math.inf, save_every=save_every)
    _check_range(0, math.inf, warmup=warmup)
    _check_range(0, 2**64 - 1, seed=seed)
    _check_range(_TINY, math.inf, clip=clip)
    _check_range(_TINY, sys.float_info.max, lr=lr, eps=eps)
    _check_range(0, 1, final=final, ema=ema)
    _check_choice(("constant", "cosine", "exponential"), schedule=schedule)
    _check_choice(("float32", "bfloat16"), dtype=dtype)
    _check_choice(tuple(MOMENTS), optimizer=optimizer)
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError("train: for tensorboard=True, pip install 'fastgen[tensorboard]'")
    rate = partial(learning_rate, steps=steps, lr=lr, warmup=warmup, schedule=schedule, final=final)
    game = Game(model, optimizer, betas, simultaneous, eps)
    identity = {"model": type(model).__name__, "config": model.config}
    folder = Folder(out, {**(meta or {}), **identity}, keep)
    rank, world = _processes(game.device)
    if batch_size % world:
        raise ValueError(f"train: batch_size {batch_size} does not divide by {world} processes")
    tensors = game.tensors(0)
    if rank == 0:
        folder.resume(tensors)
    start = _share(tensors, world)
    if start > steps:
        raise ValueError(f"train: {out} is at step {start} already, expected at most {steps}")
    with contextlib.ExitStack() as stack:
        if rank == 0:
            log = _Log(folder.path, start, steps, tensorboard, progress)
            stack.callback(log.close)
        interrupts = stack.enter_context(_interrupts())
        pending = []  # of each step whose numbers are not read yet: (P, 3), on the device
        for step in range(start + 1, steps + 1):
            [mixed] = np.random.SeedSequence((seed, step, rank)).generate_state(1)
            torch.manual_seed(int(mixed))
            first = (step - 1) * game.batches  # the source counts from 0
            each = range(first, first + game.batches)
            batches = [_rows(source, i, batch_size, rank, world) for i in each]
            turn = {"lr": rate(step), "clip": clip, "dtype": getattr(torch, dtype), "world": world}
            pending.append(game.turn(batches, stop=bool(interrupts), **turn))
            game.average(min(ema, step / (step + 9)))
            logs, validates, saves = (
                step % every == 0 or step == steps
                for every in (log_every, validate_every, save_every)
            )
            # To read a number is to wait for the GPU, so there only where one is needed.
            if game.device.type != "cpu" and not (logs or validates or saves):
                continue
            numbers, stop = _read(pending, step, game.names)
            if rank == 0:
                log.show(step, numbers)
                if logs or validates:
                    log.step(step, batch_size, **numbers, lr=rate(step))
                if validates and validate:
                    log.write(step, _validated(validate, game.mean()))
                if saves or stop:
                    log.sync()
                    folder.save(step, game.mean().state_dict(), game.tensors(step))
            if stop:
                raise KeyboardInterrupt(f"train: stopped and saved at step {step}")
    return game.mean()


def learning_rate(step, *, steps, lr, warmup, schedule, final):
    """Learning rate of a step in 1 .. steps.

    lr · step / warmup, and after the warm-up with p = (step - warmup) / (steps - warmup):
    cosine      lr · (final + (1 - final) · (1 + cos πp) / 2)
    exponential lr · final^p
    """
    if step < warmup:
        return lr * step / warmup
    p = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return lr * (final + (1 - final) * (1 + math.cos(math.pi * p)) / 2)
    return lr * final**p if schedule == "exponential" else lr


class _Log:
    """What the first process tells: JSON lines, TensorBoard, and progress on stderr."""

    def __init__(self, out, start, steps, tensorboard, progress):
        path = out / "log.jsonl"
        with atomic(path) as file:
            file.writelines(_lines(path, start))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115, closed by `close`
        self.board = self.bar = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(out / "tensorboard", purge_step=start + 1)
        if progress and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(initial=start, total=steps, unit="step")
        self.steps, self.progress = steps, progress
        self.began = self.then = time.perf_counter()  # seconds
        self.at, self.shown = start, -math.inf

    def step(self, step, batch_size, **numbers):
        """Write a step's numbers, and the time and the speed since the last such line."""
        now = time.perf_counter()
        speed = (step - self.at) * batch_size / (now - self.then)
        self.at, self.then = step, now
        self.write(step, {**numbers, "seconds": now - self.began, "samples/s": speed})

    def write(self, step, numbers):
        for name, value in numbers.items() if self.board else ():
            self.board.add_scalar(name, value, step)
        # JSON has no NaN or infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()

    def show(self, step, numbers):
        now = time.perf_counter()
        text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if "loss" in name)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        elif self.progress and (now - self.shown > 10 or step == self.steps):
            print(f"step {step} of {self.steps}: {text}", file=sys.stderr, flush=True)
            self.shown = now

    def sync(self):
        os.fsync(self.file.fileno())

    def close(self):
        for part in (self.bar, self.board, self.file):
            if part is not None:
                part.close()


def _lines(path, last):
    """A log's lines up to step `last`, without one that a kill cut short."""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith(b"\n") and json.loads(line)["step"] <= last:
                yield line


def _rows(source, i, size, rank, world):
    """This process's rows of the batch i."""
    batch = source.batch(i, size)
    for rows in batch:
        if len(rows) != size:
            raise ValueError(f"train: batch {i} expected to have {size} rows, got {len(rows)}")
    return [rows[rank::world] for rows in batch]


def _share(tensors, world):
    """Give the first process's state to the others; returns its step."""
    for tensor in tensors.values() if world > 1 else ():
        whole = tensor.contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)
    return int(tensors["step"])


@torch.no_grad()
def _validated(validate, model):
    return {f"validate/{name}": float(value) for name, value in validate(model).items()}


def _read(pending, step, names):
    """The last step's losses and gradient norms, and whether any process wants to stop."""
    rows = torch.stack(pending)  # of each step, of each player: loss, norm, stop
    pending.clear()
    for at, players in enumerate(rows[..., :2].tolist(), step + 1 - len(rows)):
        numbers = {}
        for player, values in zip(names, players, strict=True):
            of = f"{player}/" if len(names) > 1 else ""
            for name, value in zip(("loss", "grad_norm"), values, strict=True):
                if not math.isfinite(value):
                    what = name.replace("grad_norm", "gradient norm")
                    raise ValueError(
                        f"train: step {at}: {of}{what} expected to be finite, got {value}"
                    )
                numbers[of + name] = value
    return numbers, bool(rows[-1, :, 2].any())


def _processes(device):
    """(rank, count) of the processes that torchrun started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # Not after each run: torchrun's store does not let a process join twice.
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def _interrupts():
    """List that the first Ctrl-C appends to; the second raises KeyboardInterrupt at once.

    Does nothing off the main thread or where the program has its own handler.
    """
    pressed = []  # seconds

    def press(number, frame):
        pressed.append(time.monotonic())
        if len(pressed) == 1:
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        # At once is no second press: torchrun passes on what the terminal told all processes.
        elif pressed[-1] - pressed[0] > 0.5:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def _check_range(low, high, **options):
    for name, value in options.items():
        if not low <= value <= high:
            raise ValueError(f"train: {name} expected in [{low}, {high}], got {value}")


def _check_choice(choices, **options):
    for name, value in options.items():
        if value not in choices:
            raise ValueError(f"train: {name} expected to be one of {choices}, got {value!r}")
