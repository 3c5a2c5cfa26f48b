"""An InfoGAN's codes: what they draw, how much of them is read, and which classes they found."""

import math

import torch

from .data.images import Images
from .images import BATCH, Unseen
from .latent import traverse
from .metrics.matching import matching

FAR, COLUMNS = 2.0, 10  # of a traversal: how far it goes, and how many images a code gets
DRAWN = 10_000  # samples whose codes are read


def traversal(model, seed):
    """Images of one noise: a row for each category, in which each continuous code goes by turns.

    returns: images, columns
    """
    drawn = model.draw(1, seed)
    codes = 0 * drawn["continuous"]
    ways = [traverse(codes, m, torch.linspace(-FAR, FAR, COLUMNS)) for m in range(model.M)]
    columns = torch.cat(ways, dim=1)[0] if ways else codes  # (V, M)
    V = len(columns)
    category = torch.arange(model.K).repeat_interleave(V)
    x = model.sample(
        model.K * V,
        z=drawn["z"].expand(model.K * V, -1),
        category=category,
        continuous=columns.repeat(model.K, 1),
    )
    return x, V


@torch.no_grad()
def bounds(model, number, seed):
    """The lower bound of the information on each code, in nats, and its standard error.

    returns: (1 + M, 2)    Raises ValueError for a number < 2.
    """
    if number < 2:
        raise ValueError(f"files: expected at least 2 samples, got {number}")
    device = next(model.parameters()).device
    drawn, parts = model.draw(number, seed), []
    for i in range(0, number, BATCH):
        some = {name: t[i : i + BATCH].to(device) for name, t in drawn.items()}
        x = model.sample(len(some["z"]), **some)
        parts.append(model.bound(x, some["category"], some["continuous"]).double().cpu())
    nats = torch.cat(parts)
    return torch.stack([nats.mean(0), nats.std(0) / math.sqrt(number)], dim=1)


@torch.no_grad()
def categories(model, x):
    """The likeliest category of each image, (N,)."""
    device = next(model.parameters()).device
    found = [model.codes(part.to(device)).category.argmax(1).cpu() for part in x.split(BATCH)]
    return torch.cat(found)


def accuracy(found, labels):
    """Share of images in the class that their category is matched with, and the pairs."""
    found, labels = found.cpu(), labels.cpu()
    count = torch.zeros(int(found.max()) + 1, int(labels.max()) + 1)
    count.index_put_((found, labels), torch.ones(len(found)), accumulate=True)
    pairs = matching(count)
    return sum(count[pair].item() for pair in pairs) / len(found), pairs


def report(model, form, name, number, seed):
    """What there is to be said of a model and the images of a set: a title, and rows of text."""
    labelled = bool(Images(name).classes)
    unseen = Unseen(name, form, labelled, number)
    number = DRAWN if number is None else number
    rows = []
    for m, (nats, error) in enumerate(bounds(model, number, seed).tolist()):
        what = f"continuous code {m}" if m else "category"
        rows.append((f"{what}: bound", f"{nats:.4f} nats", f"standard error {error:.4f}"))
        if not m:
            rows.append(("category: entropy", f"{math.log(model.K):.4f} nats", f"ln {model.K}"))
    if labelled:
        share, pairs = accuracy(categories(model, unseen.codes), unseen.labels)
        matched = " ".join(f"{k}:{c}" for k, c in pairs)
        rows.append(("images in their category's class", f"{100 * share:.2f} %", matched))
    title = f"{number:,} samples of seed {seed}"
    return f"{title}, {len(unseen.codes):,} {unseen.split} images of {unseen.title}", rows
