"""LeNet, a small network that tells images apart, whose features samples are measured by."""

import torch
import torch.nn.functional as F
from torch import nn

from ..game import Player
from ..nn.evaluating import evaluating

BATCH = 500  # images whose features are found at once


class LeNet(nn.Module):
    """Convolutions and maxima of 2 x 2 pixels in turn, then a layer of features, then classes.

        p(label | x) = softmax(W relu(f(x)) + b)

    The features f are of mean 0 and variance 1 over what it was trained on. Images are pixels
    0 ... 255, of any numeric dtype.

    shape: of an image, (C, H, W)    classes: how many labels    channels: of each convolution
    features: how many

    Raises ValueError for sizes that there are not.
    After LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition; convolutions
    of 3 x 3 pixels and batch normalization (Ioffe and Szegedy 2015) are newer.
    """

    def __init__(self, shape=(1, 28, 28), classes=10, channels=(16, 32, 48), features=64):
        super().__init__()
        sizes = [*shape, classes, *channels, features]
        if len(shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in sizes):
            got = f"{shape!r:.80}, {classes!r:.80}, {channels!r:.80} and {features!r:.80}"
            raise ValueError(f"LeNet: expected shape (C, H, W) and sizes >= 1, got {got}")
        C, H, W = shape
        H, W = H >> len(channels), W >> len(channels)
        if not H or not W:
            raise ValueError(f"LeNet: shape: expected sides >= {1 << len(channels)}, got {shape}")
        self.config = {
            "shape": [*shape],
            "classes": classes,
            "channels": [*channels],
            "features": features,
        }
        self.shape = tuple(shape)
        layers = []
        for K in channels:
            # the normalization has the bias
            layers += [nn.Conv2d(C, K, 3, padding=1, bias=False), nn.BatchNorm2d(K)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            C = K
        layers += [nn.Flatten(), nn.Linear(C * H * W, features, bias=False)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm1d(features, affine=False))
        self.last = nn.Linear(features, classes)

    def features(self, x):
        """x: (B, C, H, W)    returns: (B, features). Raises ValueError for another shape."""
        if x.shape[1:] != self.shape:
            got = tuple(x.shape[1:])
            raise ValueError(f"LeNet: x: expected images of {self.shape}, got {got}")
        return self.layers(x.to(self.last.weight.dtype) / 127.5 - 1)

    def forward(self, x):
        """x: (B, C, H, W)    returns: logits (B, classes)"""
        return self.last(F.relu(self.features(x)))

    def players(self):
        """One, whose loss is the cross-entropy of the labels, in nats."""

        def loss(x, label):
            return F.cross_entropy(self(x), label)

        return [Player("lenet", self, loss)]

    @torch.no_grad()
    def read(self, x):
        """Features (N, features) and log p(label | x) (N, classes), float32, of a set of images.

        As in evaluation.
        """
        device = self.last.weight.device
        with evaluating(self):
            features = torch.cat([self.features(part.to(device)) for part in x.split(BATCH)])
        return features, self.last(F.relu(features)).log_softmax(1)
