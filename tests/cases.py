"""The inputs of each op, for tests and benchmarks: a maker and a table of sizes by name."""

import torch

T_TILE = 96  # samples that wavenet_layer's C++ kernel takes at once


def wavenet_layer(
    B=2, R=5, S=7, H=3, K=2, T=11, F=0, hop=1, dilation=1, res=True, dtype=torch.float32
):
    """The arguments of `wavenet_layer`; without conditioning for F = 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        normal(B, R, T),
        normal(B, S, T),
        normal(2 * H, R, K, scale=(R * K) ** -0.5),
        normal(2 * H),
        normal(R, H, scale=H**-0.5) if res else None,
        normal(R) if res else None,
        normal(S, H, scale=H**-0.5),
        normal(S),
        normal(B, 2 * H, F) if F else None,
        hop,
        dilation,
    )


WAVENET_LAYER = {
    "plain": {},
    "ones": {"B": 1, "R": 1, "S": 1, "H": 1, "K": 1, "T": 1},
    "empty batch": {"B": 0, "F": 3},
    "no samples": {"T": 0, "F": 1},
    "one sample": {"T": 1, "F": 2, "dilation": 3},
    "shorter than the dilation": {"T": 13, "dilation": 64, "K": 3},
    "as long as the dilation": {"T": 32, "dilation": 32},
    "prime sizes": {"B": 3, "R": 13, "S": 19, "H": 17, "T": 101, "dilation": 7},
    "a tile": {"T": T_TILE, "dilation": 8},
    "a tile less one": {"T": T_TILE - 1, "dilation": 16},
    "a tile and one": {"T": T_TILE + 1, "dilation": 2},
    "many tiles": {"B": 2, "R": 8, "S": 16, "H": 8, "T": 7 * T_TILE + 5, "dilation": 100},
    "three taps": {"R": 16, "S": 24, "H": 16, "K": 3, "T": 130, "dilation": 33},
    "last layer": {"T": 40, "res": False, "dilation": 4},
    "frames": {"T": 100, "F": 3, "hop": 40, "dilation": 2},
    "frames beyond the end": {"T": 50, "F": 9, "hop": 10},
    "held frame": {"T": 50, "F": 2, "hop": 7, "res": False},
    "one frame": {"T": 20, "F": 1, "hop": 5},
    "a frame a sample": {"T": 20, "F": 20, "hop": 1},
}
