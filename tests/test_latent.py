"""Ways through latent space: their ends, lengths and sums."""

import math

import pytest
import torch

from fastgen import DCGAN, GAN, NICE, InfoGAN, RealNVP
from fastgen.latent import arithmetic, interpolate, traverse
from fastgen.verify import latent


def codes(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["linear", "spherical"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 4, 4), (0, 5)])
def test_ways_begin_and_end_where_they_should(kind, shape):
    a, b = codes(*shape), codes(*shape, seed=1)
    way = interpolate(a, b, 4, kind)
    assert way.shape == (shape[0], 4, *shape[1:])
    assert torch.equal(way[:, 0], a)
    assert torch.equal(way[:, -1], b)
    back = interpolate(b, a, 4, kind)
    torch.testing.assert_close(back.flip(1), way)


def test_the_straight_way_is_straight():
    a, b = codes(3, 5), codes(3, 5, seed=1)
    torch.testing.assert_close(
        interpolate(a, b, 5, "linear").diff(dim=1), ((b - a) / 4)[:, None].expand(-1, 4, -1)
    )


def test_the_spherical_way_stays_on_the_sphere_and_turns_evenly():
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (codes(6, 9), codes(6, 9, seed=1)))
    way = interpolate(a, b, 7)
    torch.testing.assert_close(way.norm(dim=2), torch.ones(6, 7).double())
    angles = (way[:, 1:] * way[:, :-1]).sum(2).acos()
    whole = (a * b).sum(1).acos()
    torch.testing.assert_close(angles, (whole / 6)[:, None].expand(-1, 6))


def test_close_codes_have_a_way():
    a = codes(2, 5)
    torch.testing.assert_close(interpolate(a, a, 3), a[:, None].expand(-1, 3, -1))
    near = interpolate(a, a * (1 + 1e-9), 3)
    torch.testing.assert_close(near[:, 1], a * (1 + 5e-10), rtol=1e-14, atol=0)


def test_a_quarter_turn():
    got = interpolate(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 3)
    want = torch.tensor([[[2.0, 0.0], [math.sqrt(2), math.sqrt(2)], [0.0, 2.0]]])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("b", [-torch.ones(1, 3), torch.zeros(1, 3)])
def test_no_single_way_is_refused(b):
    with pytest.raises(ValueError, match="expected one way at place 0"):
        interpolate(torch.ones(1, 3), b, 3)
    assert interpolate(torch.ones(1, 3), b, 3, "linear").isfinite().all()


def test_concepts_are_added():
    shape, colour, both, neither = torch.eye(4).double()
    noise = [0.1 * codes(3, 4, seed=i) for i in range(3)]
    got = arithmetic(shape + both + noise[0], both + noise[1], colour + noise[2])
    want = shape + colour + noise[0].mean(0) - noise[1].mean(0) + noise[2].mean(0)
    torch.testing.assert_close(got, want)
    assert neither @ got == pytest.approx(0, abs=0.3)


def test_sums_of_three_are_as_far_from_0_as_one():
    a, b, c = (codes(100, 3, 50, seed=i) for i in range(3))
    assert arithmetic(a, b, c).square().sum(1).mean() / 50 == pytest.approx(1, abs=0.05)


def test_a_traversal_moves_one_coordinate():
    z = codes(2, 5)
    way = traverse(z, 3, [-1, 0, 2])
    assert torch.equal(way[..., 3], torch.tensor([[-1.0, 0, 2]] * 2).double())
    rest = [0, 1, 2, 4]
    assert torch.equal(way[..., rest], z[:, None, rest].expand(-1, 3, -1))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: interpolate(codes(2, 3), codes(2, 4), 3), "of one shape"),
        (lambda: interpolate(codes(2, 3), codes(2, 3), 1), "steps: expected >= 2, got 1"),
        (lambda: interpolate(codes(2, 3), codes(2, 3), 3, "curved"), "kind: expected linear"),
        (lambda: traverse(codes(2, 3), 3, [1.0]), "an axis of codes"),
        (lambda: traverse(codes(3), 0, [1.0]), "an axis of codes"),
        (lambda: arithmetic(codes(3), codes(3), codes(3)), "expected codes"),
        (lambda: arithmetic(codes(0, 3), codes(1, 3), codes(1, 3)), "expected codes"),
        (lambda: arithmetic(codes(2, 3), codes(2, 4), codes(2, 3)), "expected codes"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_dcgan_adds_concepts():
    found = latent.verify_dcgan()
    assert [check for check in found if not check.ok] == []
    assert len(found) == 2


def test_concepts_are_named_by_the_rule():
    corner = torch.tensor([0.0, 1.0])
    x = latent.discs(corner.repeat_interleave(2), corner.repeat(2))
    assert latent.concepts(x, 0.4).tolist() == [0, 1, 2, 3]
    assert latent.concepts(latent.discs(torch.full((1,), 0.5), torch.ones(1)), 0.1).tolist() == [-1]


@pytest.mark.parametrize(
    "model",
    [
        lambda: GAN(latent=4, hidden=(8,)),
        lambda: DCGAN((1, 8, 8), latent=4, channels=2),
        lambda: InfoGAN((1, 8, 8), latent=4, channels=2, units=8),
        lambda: NICE((4,), 0, layers=2, hidden=8, depth=1),
        lambda: RealNVP((1, 4, 4), 256, 1, 4, 1, 1),
    ],
)
def test_models_take_codes(model):
    torch.manual_seed(0)
    model = model().eval()
    shape = (4,) if hasattr(model, "generator") else model.shape
    z = codes(2, *shape).float()
    way = interpolate(z[:1], z[1:], 3)[0]
    made = model.sample(3, z=way, seed=0)
    assert made.shape == (3, *model.shape)
    torch.testing.assert_close(model.sample(3, z=way, seed=0)[:1], made[:1])
    if isinstance(model, NICE):
        torch.testing.assert_close(model(made)[0], way)
    with pytest.raises(ValueError, match="sample: z: expected"):
        model.sample(3, z=z)
