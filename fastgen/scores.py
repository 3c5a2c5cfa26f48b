"""What a model's samples are like beside images it has not seen, by the features of a LeNet."""

import torch

from . import weights
from .data.images import Images
from .images import Unseen, draw, labelled, labels
from .metrics import frechet_distance, inception_score, kernel_distance, overlap
from .metrics.counts import count_blobs, mirror_overlap, swapped, total_variation
from .metrics.lenet import LeNet

DRAWN = 500  # samples made at once
SEEDS = 1 << 63
LEAST = 10  # images, for the parts of the Inception score


def network(name, data, device="cpu"):
    """The LeNet `name`, of `weights.load`, or None for the one that is shipped for a set of images.

    returns: a `LeNet` and its name
    Raises ValueError where none is shipped, and for a model of another kind; as `weights.load`.
    """
    if name is None and f"lenet-{data}" not in weights.shipped():
        known = ", ".join(n for n in weights.shipped() if n.startswith("lenet-"))
        raise ValueError(
            f"features: expected --features RUN for {data}, of a run of fastgen train lenet: "
            f"shipped are {known}"
        )
    name = name or f"lenet-{data}"
    net, _ = weights.load(name, device)
    if not isinstance(net, LeNet):
        raise ValueError(f"features: {name}: expected a LeNet, got a {type(net).__name__}")
    return net, name


class Scores:
    """Called with a model: what its samples are like beside images to test on.

    Samples of a model of labels get those of the test's images.

    lenet: a `LeNet`    data: see `Images`    form: of the model, with `shape`, `encode`, `decode`
    number: of images and of samples; all, unless given
    title, split, count: of the images to test on

    Raises ValueError for fewer than 10 images and those of another shape; as `Unseen` does.
    """

    def __init__(self, lenet, data, form, labelled=False, number=None):
        self.lenet, self.data, self.form = lenet, data, form
        unseen = Unseen(data, form, labelled)
        self.title, self.split, N = unseen.title, unseen.split, len(unseen.codes)
        some = shuffled(N, N if number is None else max(0, number))
        if len(some) < LEAST:
            raise ValueError(f"files: expected at least {LEAST} images, got {len(some)}")
        self.count, self.labels = len(some), unseen.labels[some] if labelled else None
        self.real, _ = lenet.read(form.decode(unseen.codes[some]))

    def __call__(self, model, seed, show=lambda line: None):
        """Of as many samples as there are images to test on: see `measured`."""
        x = made(model, self.form, self.labels, self.count, seed, show)
        return self.measured(x, self.labels)

    def floor(self):
        """Of images that the model was trained on: what perfect samples would have."""
        images = Images(self.data)
        some = shuffled(len(images.x), self.count)
        x = self.form.decode(self.form.encode(images.x[some]))
        return self.measured(x, None if self.labels is None else images.labels[some])

    def measured(self, x, labels=None):
        """Numbers and their errors, or None, by name, of images (N, C, H, W) and their labels."""
        features, log_p = self.lenet.read(x)
        kid, score = kernel_distance(self.real, features), inception_score(log_p)
        found = {"fid": (frechet_distance(self.real, features), None), "kid": kid}
        found |= {"Inception score": score}
        found |= {k: (v, None) for k, v in overlap(self.real, features)._asdict().items()}
        best, guess = log_p.max(1)
        found["confidence"] = best.exp().mean().item(), None
        if labels is not None:
            found["labels recognised"] = (guess.cpu() == labels).double().mean().item(), None
        return found


def shuffled(N, n):
    """At most n of N places, at random: sets may be sorted, and parts of them differ."""
    return torch.randperm(N, generator=torch.Generator().manual_seed(0))[:n]


def scores(net, form, data, lenet, number):
    """`Scores` for a model. Raises ValueError for one that is not of images; as `Scores` does."""
    if len(getattr(form, "shape", ())) != 3:
        raise ValueError(f"features: expected a model of images, got a {type(net).__name__}")
    return Scores(lenet, data, form, labelled(net), number)


def made(model, form, label, n, seed, show=lambda line: None):
    """Pixels (n, C, H, W) of samples, of labels (n,) or, if None, of each in turn."""
    label, parts = labels(model, n, None) if label is None else label, []
    for i in range(0, n, DRAWN):
        show(f"sample {i} of {n}")
        own = None if label is None else label[i : i + DRAWN]
        count = min(DRAWN, n - i)
        drawn = draw(model, count, form, label=own, seed=(seed + i) % SEEDS)
        parts.append(form.decode(drawn))
    return torch.cat(parts)


def counted(net, form, data, number, seed):
    """What a model's samples are as wholes, beside images of a set of BLOBS to test on.

    returns: counts of blobs (N,) of samples and of images, and by name the numbers of each
    Raises ValueError as `Unseen` does.
    """
    unseen = Unseen(data, form, False, number)
    n = len(unseen.codes)
    sets = made(net, form, None, n, seed), form.decode(unseen.codes)
    counts = [count_blobs(x) for x in sets]
    found = [
        {
            "total variation": total_variation(c, counts[1]),
            "overlap with mirror image": mirror_overlap(x).mean().item(),
            "the same, of halves of two": mirror_overlap(swapped(x)).mean().item(),
        }
        for x, c in zip(sets, counts, strict=True)
    ]
    return counts, found
