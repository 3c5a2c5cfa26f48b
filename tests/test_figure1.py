"""Figure 1 of the GAN's paper: what is drawn where, and that it is played."""

import pytest
import torch

from fastgen import figure1
from fastgen.figure1 import BLACK, BLUE, FLOOR, GREEN, GREY, PALETTE, TOP, H, Line, W, X, Z


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(figure1, "EVERY", (1, 2, 1, 2))
    for name, turns in (("ROUGH", 2), ("ALONE", 4), ("FEW", 1), ("TURNS", 4)):
        monkeypatch.setattr(figure1, name, turns)


def test_a_figure_is_played(short, monkeypatch):
    torch.manual_seed(0)
    frames, panels, distance = figure1.draw()
    assert frames.shape == (2 + 2 + 1 + 2, H, W)
    assert panels.shape == (4, H, W)
    assert 0 < distance <= 1
    assert int(frames.max()) < len(PALETTE)
    assert torch.equal(frames[[1, 3, 4, 6]], panels)
    below = lambda panel: panel[X + 1 : Z]  # noqa: E731
    assert torch.equal(below(panels[0]), below(panels[1]))  # D alone has learned
    assert not torch.equal(panels[0], panels[1])
    assert not torch.equal(below(panels[1]), below(panels[2]))  # now G


def test_curves_and_arrows_are_where_they_should_be():
    torch.manual_seed(0)
    model = Line()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.discriminator.layers[4].bias += 20  # D = 1
    panel = figure1.panel(model)  # and G(z) = 0
    assert (panel[TOP] == BLUE).float().mean() > 0.5
    peak = (panel == BLACK)[:X].nonzero()[:, 0].min()
    assert abs(peak - (FLOOR - 2 * 0.3989 * (FLOOR - TOP))) <= 1
    columns = (panel[TOP + 5 : FLOOR - 5] == GREEN).nonzero()[:, 1].double()
    assert abs(columns.mean() - W / 2) < 2
    assert columns.max() - columns.min() < W / 5
    grey = (panel[Z - 2] == GREY).nonzero()[:, 0]
    assert grey.min() < 8
    assert grey.max() > W - 8
    assert abs((panel[X + 1] == GREY).nonzero().double().mean() - W / 2) < 2


def test_the_distance_of_known_distributions(monkeypatch):
    model = Line()
    u = (torch.arange(figure1.GRID, dtype=torch.float64) + 0.5) / figure1.GRID
    for shift, want in ((0.0, 0.5 / figure1.GRID), (0.5, 0.19741)):
        monkeypatch.setattr(Line, "places", lambda self, s=shift: torch.special.ndtri(u) + s)
        assert figure1.distance(model) == pytest.approx(want, abs=1e-3 * bool(shift) + 1e-9)


def test_by_the_command(tmp_path, capsys, short):
    pytest.importorskip("tyro")
    from fastgen import cli

    assert cli.main(["figure1", "--out", str(tmp_path / "a.gif")]) == 0
    assert "7 frames, seed 0" in capsys.readouterr().out
    assert (tmp_path / "a.gif").read_bytes()[:6] == b"GIF89a"
    assert (tmp_path / "a.png").is_file()
    assert cli.main(["figure1", "--out", str(tmp_path / "a.png")]) == 2
    assert "expected a name in .gif" in capsys.readouterr().err
