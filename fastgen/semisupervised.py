"""A classifier of images of which few have labels: its making, its errors, and its pictures."""

from .data.images import Images
from .data.levels import PartlyLabelled
from .data.png import write_png
from .gans import Encoded, format_of, picture
from .images import Unseen

BATCH = 100  # images that are classified at once, and that weights are fitted to


def prepare(sizes, data, *, labels, seed):
    """A model with fitted weights, its source of batches, and the meta of its file.

    sizes: build(shape, classes) makes the model    labels: number of images with labels
    """
    images, meta = Images(data), {"data": data, "labelled": {"number": labels, "seed": seed}}
    source = PartlyLabelled(images, labels, seed=seed)
    net = sizes.build(images.shape, images.classes)
    source = Encoded(source, format_of(net, meta))
    net.initialize(source.batch(0, min(BATCH, len(images.x)))[2])
    return net, source, meta


def errors(model, unseen):
    """How many labelled images are taken for another class than theirs."""
    parts = zip(unseen.codes.split(BATCH), unseen.labels.split(BATCH), strict=True)
    return sum(int((model.classify(x).argmax(1).cpu() != label).sum()) for x, label in parts)


class Validation:
    """Called with a model: its share of errors of held-out images; samples.png into a folder."""

    def __init__(self, net, meta, out, number):
        self.form, self.out = format_of(net, meta), out
        self.unseen = Unseen(meta["data"], self.form, True, number, split="held out")

    def __call__(self, model):
        if model.config["weight"]:  # else nobody teaches the generator
            write_png(self.out / "samples.png", picture(model, self.form, None, 0))
        return {"errors": errors(model, self.unseen) / len(self.unseen.codes)}
