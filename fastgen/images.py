"""A model of images: its making, its pictures, and how well it does on images it has not seen."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from .data.images import Images, has_test
from .data.levels import BINARIZE, Batches, evaluated, pixels
from .data.png import grid, write_png
from .text import progress
from .tractable.fvbn import FVSBN
from .tractable.made import MADE
from .tractable.nade import NADE
from .tractable.pixelcnn import GatedPixelCNN, PixelCNN
from .tractable.pixelcnnpp import PixelCNNpp

BATCH = 100  # images whose likelihood is found at once
SHOWN, GIVEN, COMPLETED = 64, 8, 4  # samples; images given by half; completions of each
GREY = 128  # of what is not given
FIRST = 16  # images that weights are fitted to before training


@dataclass(frozen=True)
class FVBNSizes:
    order: Literal["raster", "random"] = "raster"  # of the pixels

    def build(self, images, levels, seed):
        binary("FVSBN", levels)
        return FVSBN(images.shape, permutation(self.order, images, seed))


@dataclass(frozen=True)
class NADESizes:
    hidden: int = 500  # units
    order: Literal["raster", "random"] = "raster"  # of the pixels

    def build(self, images, levels, seed):
        binary("NADE", levels)
        return NADE(images.shape, self.hidden, permutation(self.order, images, seed))


@dataclass(frozen=True)
class MADESizes:
    hidden: tuple[int, ...] = (500,)  # units of each layer
    sets: int = 1  # of masks, whose mixture the model is
    order: Literal["raster", "random"] = "raster"  # of the pixels; random for one of each set's own
    direct: bool = False  # weights from the pixels to the outputs

    def build(self, images, levels, seed):
        binary("MADE", levels)
        order = "random" if self.order == "random" else None
        return MADE(images.shape, self.hidden, self.sets, order, self.direct, seed)


@dataclass(frozen=True)
class PixelCNNSizes:
    layers: int = 8
    channels: int = 64
    head_channels: int = 64
    first_kernel: int = 7
    kernel: int = 3
    plain: bool = False  # convolutions without gates, which have a blind spot
    labels: bool = False  # condition on the labels of the images

    def build(self, images, levels, seed):
        C, H, W = images.shape
        sizes = {k: v for k, v in asdict(self).items() if k not in ("plain", "labels")}
        sizes |= {"levels": levels, "colors": C, "height": H, "width": W}
        if self.labels and (self.plain or not images.classes):
            raise ValueError("labels: expected a gated PixelCNN, and images with labels")
        if self.plain:
            return PixelCNN(**sizes)
        return GatedPixelCNN(**sizes, classes=images.classes if self.labels else 0)


@dataclass(frozen=True)
class PixelCNNppSizes:
    resnets: int = 5  # in each stage and direction
    channels: int = 160
    stages: int = 3  # of resolution, each half the one before
    mixtures: int = 10  # of logistics
    dropout: float = 0.5
    labels: bool = False  # condition on the labels of the images

    def build(self, images, levels, seed):
        C, H, W = images.shape
        if self.labels and not images.classes:
            raise ValueError("labels: expected images with labels")
        sizes = {k: v for k, v in asdict(self).items() if k != "labels"}
        sizes |= {"levels": levels, "colors": C, "height": H, "width": W}
        return PixelCNNpp(**sizes, classes=images.classes if self.labels else 0)


SIZES = {
    "pixelcnn": PixelCNNSizes,
    "pixelcnnpp": PixelCNNppSizes,
    "made": MADESizes,
    "nade": NADESizes,
    "fvbn": FVBNSizes,
}


def binary(name, levels):
    if levels != 2:
        raise ValueError(f"{name}: levels: expected 2, got {levels}")


def permutation(order, images, seed):
    """An order of the pixels that the seed chooses, or None for the raster's."""
    if order == "raster":
        return None
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.permutation(math.prod(images.shape)).tolist()


class Pictures(NamedTuple):
    """How a model's levels become pictures, and pictures its levels."""

    shape: tuple  # (C, H, W)
    levels: int
    mode: str  # how images become binary, see `Batches`

    def encode(self, x):
        """The levels of the pixels of images to measure a model on."""
        return evaluated(x, self.levels, self.mode)

    def decode(self, codes):
        return pixels(codes, self.levels)


def pictures_of(model, images):
    """The format of a model of images; `images` is its file's meta["images"].

    Raises ValueError for what `Pictures` does not know or that does not fit the model.
    """
    if not isinstance(images, dict):
        raise ValueError(f"images: expected shape and binarize, got {images!r:.80}")
    shape, mode = images.get("shape"), images.get("binarize")
    fits = isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) for n in shape)
    if not fits or shape[0] not in (1, 3):
        raise ValueError(f"images: shape: expected [1 or 3, H, W], got {shape!r:.80}")
    config = model.config
    own = config.get("shape") or [config[key] for key in ("colors", "height", "width")]
    if shape != own:
        raise ValueError(f"images: shape: expected {own}, got {shape}")
    if mode not in BINARIZE:
        raise ValueError(f"images: binarize: expected one of {BINARIZE}, got {mode!r:.80}")
    return Pictures(tuple(shape), model.config.get("levels", 2), mode)


class Unseen:
    """Images that a model was not trained on, as it takes them; those to test on, if there are any.

    split: "test", or "held out"    title: as of `Images`    codes: (N, C, H, W) int64
    labels: (N,), or None of a model without

    Raises ValueError for a number < 1 and another shape than the format's, and as `Images` does.
    """

    def __init__(self, name, form, labelled, number=None, split=None):
        if number is not None and number < 1:
            raise ValueError(f"files: expected at least 1, got {number}")
        self.split = split or ("test" if has_test(name) else "held out")
        images = Images(name, self.split)
        if images.shape != form.shape:
            raise ValueError(f"{name}: expected images {form.shape}, got {images.shape}")
        if labelled and images.labels is None:
            raise ValueError(f"{name}: expected images with labels, got none")
        some = spread(len(images.x), number or len(images.x))
        self.title, self.codes = images.title, form.encode(images.x[some])
        self.labels = images.labels[some] if labelled else None

    @torch.no_grad()
    def nats(self, model, show=lambda line: None):
        """Mean of -log p, in nats an image."""
        device, total = next(model.parameters()).device, 0.0
        for i in range(0, len(self.codes), BATCH):
            show(f"image {i} of {len(self.codes)}")
            batch = [
                part[i : i + BATCH].to(device)
                for part in (self.codes, self.labels)
                if part is not None
            ]
            total -= model.log_prob(*batch).double().sum().item()
        return total / len(self.codes)


def prepare(sizes, data, *, levels, binarize, seed):
    """A model, its source of batches, and the "images" of its meta.

    sizes: one of SIZES    binarize: see `Batches`
    """
    images = Images(data)
    net = sizes.build(images, levels, seed)
    source = Batches(images, levels, seed=seed, mode=binarize, labelled=labelled(net))
    if net.config.get("weight_norm"):
        net.initialize(*source.batch(0, FIRST))
    return net, source, {"shape": [*images.shape], "binarize": binarize}


def labelled(net):
    """Whether a model is conditional on labels."""
    return bool(net.config.get("classes"))


def labels(net, n, label):
    """Labels (n,) for samples: all `label`, or unless given each in turn; None of a model without.

    Raises ValueError for one that the model does not know.
    """
    classes = net.config.get("classes", 0)
    if label is not None and not 0 <= label < classes:
        known = f"one of 0 ... {classes - 1}" if classes else "none of a model without labels"
        raise ValueError(f"label: expected {known}, got {label}")
    if not classes:
        return None
    return torch.full((n,), label) if label is not None else torch.arange(n) % classes


def spread(N, n):
    """At most n of N places, evenly: a set may be sorted by labels."""
    n = min(n, N)
    return torch.arange(n) * N // n


def bits(nats, shape):
    """Bits a dimension."""
    return nats / (math.prod(shape) * math.log(2))


class Validation:
    """Called with a model: its nats on held-out images; writes what it draws into a folder.

    samples.png is SHOWN samples; completions.png has in each row an image, its upper half, and
    COMPLETED completions, where the model's order begins with that half.
    """

    def __init__(self, net, images, data, out, number):
        self.form, self.out = pictures_of(net, images), out
        self.unseen = Unseen(data, self.form, labelled(net), number, split="held out")

    def __call__(self, model):
        drawn = draw(model, SHOWN, self.form, label=labels(model, SHOWN, None), seed=0)
        write_png(self.out / "samples.png", grid(self.form.decode(drawn)))
        whole = completions(model, self.unseen, self.form)
        if whole is not None:
            write_png(self.out / "completions.png", grid(whole, 2 + COMPLETED))
        nats = self.unseen.nats(model)
        return {"nats": nats, "bits/dim": bits(nats, self.form.shape)}


def draw(model, n, form, *, label=None, prefix=None, **options):
    """Codes (n, C, H, W) of samples; label: (n,) or None."""
    device = next(model.parameters()).device
    given = {"label": label, "prefix": prefix}
    options |= {name: x.to(device) for name, x in given.items() if x is not None}
    return model.sample(n, **options).view(n, *form.shape).cpu()


def timed_draw(model, n, form, **options):
    """`draw`, and how many images it made a second."""
    began = time.perf_counter()
    codes = draw(model, n, form, **options)
    return codes, n / (time.perf_counter() - began)


def completions(model, unseen, form):
    """Pixels of images, their upper halves and completions, or None: see `Validation`."""
    some = spread(len(unseen.codes), GIVEN)
    x, label = unseen.codes[some], unseen.labels
    rows = form.shape[1] // 2
    order = getattr(model, "order", None)  # else the raster's
    if order is not None and (order[:, : rows * form.shape[2]] >= rows * form.shape[2]).any():
        return None
    label = None if label is None else label[some].repeat_interleave(COMPLETED)
    options = {"label": label, "prefix": x[:, :, :rows].repeat_interleave(COMPLETED, 0), "seed": 0}
    made = form.decode(draw(model, len(x) * COMPLETED, form, **options))
    whole = form.decode(x)
    half = whole.clone()
    half[:, :, rows:] = GREY
    made = made.view(len(x), COMPLETED, *form.shape)
    return torch.cat([whole[:, None], half[:, None], made], dim=1).flatten(0, 1)


@torch.no_grad()
def naive_speed(model, codes, label, seconds):
    """Images a second of a sampler that runs the network on the whole image for each pixel."""
    device = next(model.parameters()).device
    batch = [part.to(device) for part in (codes, label) if part is not None]
    began, passes, took = time.perf_counter(), 0, 0.0
    while took < seconds:
        model(*batch).sum().item()
        passes, took = passes + 1, time.perf_counter() - began
    return len(codes) * passes / took / codes[0].numel()


def likelihoods(model, form, unseen, name):
    """Nats an image and bits a dimension, by the model and by what it must beat: rows of text."""
    with progress() as show:
        nats = {"model": unseen.nats(model, show)}
        show("baselines")
        nats["pixels on their own"] = independent(Images(name).x, unseen.codes, form)
    nats[f"uniform, ln {form.levels} a pixel"] = math.prod(form.shape) * math.log(form.levels)
    return [
        (label, f"{value:.4f} nats", f"{bits(value, form.shape):.4f} bits/dim")
        for label, value in nats.items()
    ]


def independent(train, codes, form):
    """Nats an image if each pixel were drawn by its frequencies in `train`, one added to each."""
    A, x = form.levels, train.flatten(1)
    if A == 2 and form.mode != "threshold":  # their expectation, over all ways to be binary
        ones = x.double().sum(0) / 255
        n = torch.stack([len(x) - ones, ones], dim=1)  # (D, A)
    else:
        places = torch.arange(x.shape[1]) * A
        n = torch.zeros(x.shape[1] * A, dtype=torch.float64)
        for part in x.split(1024):
            n += torch.bincount((form.encode(part) + places).flatten(), minlength=len(n))
        n = n.view(-1, A)
    log_p = torch.log((n + 1) / (n + 1).sum(1, keepdim=True))
    flat = codes.flatten(1)
    return -log_p.gather(1, flat.T).sum().item() / len(flat)
