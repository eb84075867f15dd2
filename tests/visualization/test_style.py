from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from captum_fam.visualization import MapFigure, MapStyle, draw_color_bar, draw_map
from captum_fam.visualization.colors import END_COLORS

# Rows of a map over an image of 8 x 10: positive in the middle, negative at the left.
VALUES = torch.zeros(8, 10)
VALUES[2:6, 5:8] = 4.0
VALUES[3:5, 1:3] = -3.0


def outlined(values: torch.Tensor, **options: float) -> Axes:
    ax = MapFigure().add_subplot()
    draw_map(ax, torch.rand(3, *values.shape), values, style=MapStyle("outline", **options))
    return ax


def extents(ax: Axes) -> list[list[float]]:
    """The rectangle around each set of lines: left, bottom, right and top."""
    return [lines.get_paths()[0].get_extents().extents.tolist() for lines in ax.collections]


def test_an_outline_lies_at_half_of_the_largest_magnitude() -> None:
    # The limit is 4, so that lines lie at 2 and -2. Between the middles of two pixels, values are interpolated.
    negative, positive = extents(outlined(VALUES))
    assert positive == pytest.approx([4.5, 1.5, 7.5, 5.5])
    assert negative == pytest.approx([1 / 3 * 2, 2 + 2 / 3, 2 + 1 / 3, 4 + 1 / 3])
    # At a quarter, the lines are at 1 and -1.
    negative, positive = extents(outlined(VALUES, level=0.25))
    assert positive == pytest.approx([4.25, 1.25, 7.75, 5.75])
    assert negative == pytest.approx([1 / 3, 2 + 1 / 3, 2 + 2 / 3, 4 + 2 / 3])


def test_positive_lines_are_solid_and_negative_lines_are_dashed() -> None:
    ax = outlined(VALUES)
    negative, positive = ax.collections
    (_, solid), (_, dashed) = positive.get_linestyle()[0], negative.get_linestyle()[0]
    assert solid is None
    assert len(dashed) == 2
    for lines, sign in ((positive, 1), (negative, -1)):
        np.testing.assert_allclose(lines.get_edgecolor()[0][:3], END_COLORS[sign])


@pytest.mark.filterwarnings("error")
def test_a_map_that_is_weak_on_its_scale_has_no_outline() -> None:
    ax = MapFigure().add_subplot()
    draw_map(ax, torch.rand(3, 8, 10), VALUES, limit=9.0, style="outline")
    draw_map(ax, torch.rand(3, 8, 10), VALUES * 0, style="outline")
    draw_map(ax, torch.rand(3, 1, 10), VALUES[:1], style="outline")
    assert not ax.collections


def test_the_bar_of_an_outline_has_its_two_lines() -> None:
    ax = MapFigure().add_subplot()
    heat = draw_map(ax, torch.rand(3, 8, 10), VALUES, style="outline")
    draw_color_bar(heat, signed=True, beside=True, unit="cosine")
    (bar,) = ax.child_axes
    assert (bar.get_ylim(), bar.get_ylabel()) == ((-4, 4), "cosine")
    table = heat.get_cmap()((np.linspace(-4, 4, 801) + 4) / 8)
    shown = np.linspace(-4, 4, 801)[table[:, 3] > 0]
    assert set(shown.round()) == {-2, 2}
    assert np.abs(np.abs(shown) - 2).max() < 0.08


@pytest.mark.parametrize("signal", [torch.rand(2, 8), torch.rand(1, 1)])
def test_the_outline_of_a_signal_is_a_bar_below_its_strongest_samples(signal: torch.Tensor) -> None:
    values = torch.tensor([0.0, 4.0, 3.0, 0.0, -1.0, -3.0, 0.0, 0.0])[: signal.shape[1]]
    ax = MapFigure().add_subplot()
    heat = draw_map(ax, signal, values[None], limit=4.0, style="outline")
    assert not heat.get_visible()
    ends = [
        [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in bars.get_paths()] for bars in ax.collections
    ]
    assert ends == ([[(4.5, 5.5)], [(0.5, 2.5)]] if len(values) > 1 else [[], []])


def test_volumes_have_outlines_on_their_slices() -> None:
    ax = MapFigure().add_subplot()
    draw_map(ax, torch.rand(1, 3, 8, 10), torch.stack([VALUES, VALUES * 0, VALUES * 0.7]), style="outline")
    # The third slice reaches half of the largest magnitude with its positive part only.
    negative, positive = (len(lines.get_paths()[0].to_polygons()) for lines in ax.collections)
    assert (negative, positive) == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "heat"}, "style .*'heat'"),
        ({"strength": 0.0}, "strength .*0.0"),
        ({"strength": 1.1}, "strength .*1.1"),
        ({"strength": float("nan")}, "strength .*nan"),
        ({"level": 0.0}, "level .*0.0"),
        ({"level": 1}, "level .*1"),
    ],
)
def test_other_styles_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MapStyle(**options)  # type: ignore[arg-type]
