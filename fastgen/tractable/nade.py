"""NADE, the neural autoregressive distribution estimator (Larochelle and Murray 2011)."""

import torch
from torch import nn

from .binary import Binary, check_config

CHUNK = 24  # pixels; more make larger products, of which a larger part is not wanted


class NADE(Binary):
    """A small network for each pixel, whose hidden layers share their weights.

        h_i = sigmoid(c + sum_{j<i} W_j x[o_j])
        p(x[o_i] = 1 | x[o_<i]) = sigmoid(b_i + V_i h_i)

    W, V: (D, H)    shape: of an image, (C, H, W) or (D,)    order: of the pixels, the raster's
    unless given

    Raises ValueError for sizes that do not fit.
    Larochelle and Murray 2011, The Neural Autoregressive Distribution Estimator.
    """

    def __init__(self, shape=(1, 28, 28), hidden=500, order=None):
        check_config("NADE", shape, order, hidden=hidden)
        super().__init__(shape, order)
        self.config = {"shape": list(shape), "hidden": hidden, "order": order and list(order)}
        D, H = self.pixels, hidden
        self.W = nn.Parameter(torch.empty(D, H).uniform_(-(D**-0.5), D**-0.5))
        self.V = nn.Parameter(torch.empty(D, H).uniform_(-(H**-0.5), H**-0.5))
        self.b = nn.Parameter(torch.zeros(D))
        self.c = nn.Parameter(torch.zeros(H))

    def logits(self, x, s=0):
        """In memory for B + (number of ones) hidden layers in place of B D.

        A pixel of 0 leaves the hidden layer as it was, so that an image has as many different ones
        as it has ones. Those of a chunk of pixels are made, and multiplied by V, as one matrix.
        """
        a, logits = self.c.expand(len(x), -1), []  # (B, H)
        for start in range(0, self.pixels, CHUNK):
            chunk = slice(start, start + CHUNK)
            part, W, V, b = x[:, chunk], self.W[chunk], self.V[chunk], self.b[chunk]
            image, ones, row = hidden_layers(part)
            h = torch.sigmoid(a.index_select(0, image) + ones @ W)  # (R, H)
            at = row * len(b) + torch.arange(len(b), device=x.device)  # in (R, K), of (B, K)
            logits.append((h @ V.T).flatten().index_select(0, at.flatten()).view(at.shape) + b)
            a = a + part @ W
        return torch.cat(logits, dim=1)

    def steps(self, n, s=0):
        a = self.c.expand(n, -1)
        for W, V, b in zip(self.W, self.V, self.b, strict=True):
            x = yield torch.sigmoid(a) @ V + b
            a = torch.addcmul(a, x[:, None].to(a.dtype), W)


def hidden_layers(x):
    """The different sets of ones before the pixels of x (B, K), of each image in turn.

    returns: the image of each (R,), its ones (R, K), and which of them is before a pixel (B, K)
    """
    B, K = x.shape
    count = x.cumsum(1).long() - x.long()  # of the ones before a pixel
    each = count[:, -1] + 1
    row = (each.cumsum(0) - each)[:, None] + count  # (B, K)
    image = torch.arange(B, device=x.device).repeat_interleave(each)
    ones = x.new_zeros(len(image), K)
    before = x[:, None] * x.new_ones(K, K).tril(-1)  # (B, K, K)
    ones[row.flatten()] = before.flatten(0, 1)
    return image, ones, row
