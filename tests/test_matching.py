"""The best matching is the best of all."""

from itertools import permutations

import pytest
import torch

from fastgen.metrics.matching import matching


@pytest.mark.parametrize(("R", "C"), [(1, 1), (3, 3), (6, 6), (3, 6), (6, 4), (2, 7), (0, 3)])
@pytest.mark.parametrize("whole", [False, True])
def test_no_other_matching_gains_more(R, C, whole):
    generator = torch.Generator().manual_seed(R * 10 + C)
    for _ in range(10):
        gain = torch.randn(R, C, generator=generator, dtype=torch.float64)
        gain = (3 * gain).round() if whole else gain  # with ties
        pairs = matching(gain)
        assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == min(R, C)
        got = sum(gain[r, c].item() for r, c in pairs)
        wide = gain if R <= C else gain.T
        rows = range(len(wide))
        ways = permutations(range(wide.shape[1]), len(wide))
        best = max(sum(wide[r, c].item() for r, c in zip(rows, way, strict=True)) for way in ways)
        assert got == pytest.approx(best, abs=1e-12)


def test_a_permutation_is_found():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    gain = torch.eye(40)[order] - 5
    assert matching(gain) == [*enumerate(order.tolist())]


@pytest.mark.parametrize("gain", [torch.ones(3), torch.full((2, 2), float("nan"))])
def test_others_are_refused(gain):
    with pytest.raises(ValueError, match="matching: expected finite"):
        matching(gain)
