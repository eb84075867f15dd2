from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from captum_fam.visualization import MapFigure, PairLines
from tests.visualization.figures import PHOTO


class Match(NamedTuple):
    query: tuple[int, ...]
    support: tuple[int, ...]
    share: float


WIDE, TALL = torch.rand(3, 20, 40), torch.rand(3, 30, 15)


def drawn(lines: PairLines) -> Axes:
    ax = MapFigure().add_subplot()
    lines.draw(ax)
    return ax


def ends(ax: Axes) -> list[list[list[float]]]:
    """The two ends of each line, (x, y), the line of the first match first."""
    return [np.asarray(line.get_xydata()).tolist() for line in reversed(ax.lines)]


def test_lines_end_in_the_middles_of_cells() -> None:
    matches = [Match((0, 0), (2, 1), 0.5), Match((1, 3), (0, 0), 0.25)]
    ax = drawn(PairLines.of(WIDE, TALL, matches, (2, 4), (3, 2)))
    # One unit is the height of the panel. The query is 2 wide; the support starts at 2.25 and is 0.5 wide.
    first, second = ends(ax)
    assert first == [pytest.approx([0.25, 0.25]), pytest.approx([2.25 + 0.375, 5 / 6])]
    assert second == [pytest.approx([1.75, 0.75]), pytest.approx([2.25 + 0.125, 1 / 6])]
    assert [image.get_extent() for image in ax.images] == [[0.0, 2.0, 1.0, 0.0], [2.25, 2.75, 1.0, 0.0]]
    np.testing.assert_allclose(ax.images[0].get_array(), WIDE.movedim(0, 2))
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 2.75), (1, 0))


def test_a_line_is_as_wide_as_its_share_and_dashed_if_that_is_negative() -> None:
    matches = [Match((0,) * 2, (0,) * 2, share) for share in (0.8, -0.4, 0.0)]
    widest, negative, zero = reversed(drawn(PairLines.of(PHOTO, PHOTO, matches, (1, 1), (1, 1))).lines)
    assert negative.get_linewidth() - zero.get_linewidth() == pytest.approx(
        (widest.get_linewidth() - zero.get_linewidth()) / 2
    )
    assert [line.is_dashed() for line in (widest, negative, zero)] == [False, True, False]


def test_neighboring_lines_have_different_colors() -> None:
    matches = [Match((0, column), (0, column), 0.1) for column in range(5)]
    lines = drawn(PairLines.of(PHOTO, PHOTO, matches, (1, 5), (1, 5))).lines
    assert len({line.get_color() for line in lines}) == 5


def test_very_wide_and_very_tall_images_keep_their_shape_and_their_cells() -> None:
    wide, tall = torch.rand(3, 10, 60), torch.rand(3, 60, 10)
    ax = drawn(PairLines.of(wide, tall, [Match((0, 5), (5, 0), 1.0)], (1, 6), (6, 1)))
    boxes = [image.get_extent() for image in ax.images]
    shapes = [(right - left) / (bottom - top) for left, right, bottom, top in boxes]
    assert shapes == pytest.approx([6, 1 / 6])
    ((start, end),) = ends(ax)
    (left, right, bottom, top), (its_left, its_right, its_bottom, its_top) = boxes
    assert start == pytest.approx([left + (right - left) * 11 / 12, (bottom + top) / 2])
    assert end == pytest.approx([(its_left + its_right) / 2, its_top + (its_bottom - its_top) * 11 / 12])
    assert 0 <= left < right < its_left < its_right <= ax.get_xlim()[1]


def test_volumes_are_joined_in_their_middle_slices_only() -> None:
    # Of 6 slices the fourth is drawn, which lies in the second of two layers of cells; of 9 slices the sixth.
    query, support = torch.rand(1, 6, 8, 8), torch.rand(1, 9, 8, 8)
    matches = [
        Match((1, 0, 0), (1, 1, 1), 0.5),
        Match((0, 0, 0), (1, 1, 1), 0.4),
        Match((1, 0, 0), (0, 1, 1), 0.3),
        Match((1, 1, 0), (1, 0, 0), 0.2),
    ]
    ax = drawn(PairLines.of(query, support, matches, (2, 2, 2), (3, 2, 2)))
    np.testing.assert_allclose(ax.images[0].get_array()[..., 0], query[0, 3])
    np.testing.assert_allclose(ax.images[1].get_array()[..., 0], support[0, 5])
    assert ends(ax) == [
        [pytest.approx([0.25, 0.25]), pytest.approx([2.0, 0.75])],
        [pytest.approx([0.25, 0.75]), pytest.approx([1.5, 0.25])],
    ]


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (Match((2, 0), (0, 0), 1.0), r"\(2, 0\) of the query.* \(2, 4\)"),
        (Match((0, 0), (0, 2), 1.0), r"\(0, 2\) of the support.* \(3, 2\)"),
        (Match((0, 0), (0, -1), 1.0), r"\(0, -1\) of the support"),
        (Match((0,), (0, 0), 1.0), r"\(0,\) of the query"),
    ],
)
def test_cells_outside_a_map_are_refused(match: Match, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairLines.of(WIDE, TALL, [match], (2, 4), (3, 2))
