"""Maxout (Goodfellow et al. 2013, "Maxout Networks")."""

from torch import nn


class Maxout(nn.Module):
    """The largest of each K channels that follow one another.

        y[:, c] = max over k < K of x[:, c K + k]

    x: (N, C K, ...)    returns: (N, C, ...)
    Raises ValueError for channels that K does not divide.
    """

    def __init__(self, pieces):
        super().__init__()
        if pieces < 1:
            raise ValueError(f"Maxout: pieces: expected 1 or more, got {pieces}")
        self.pieces = pieces

    def forward(self, x):
        if x.ndim < 2 or x.shape[1] % self.pieces:
            got = tuple(x.shape)
            raise ValueError(f"Maxout: x: expected (N, C {self.pieces}, ...), got {got}")
        return x.unflatten(1, (-1, self.pieces)).amax(2)

    def extra_repr(self):
        return f"pieces={self.pieces}"
