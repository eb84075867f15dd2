from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_fam.visualization.layout import draw_panels
from captum_fam.visualization.marks import draw_color_bar


@dataclass
class Box:
    """A panel that is an empty box."""

    title: str
    aspect: float
    unit: str = ""

    def draw(self, ax: Axes) -> None:
        ax.set(xticks=[], yticks=[])
        ax.set_box_aspect(1 / self.aspect)
        if self.unit:
            heat = ax.imshow([[0.0, 1.0]], aspect="auto")
            ax.set(xticks=[], yticks=[])
            draw_color_bar(heat, signed=True, beside=False, unit=self.unit)


def rows(count: int, aspect: float) -> list[int]:
    """How many panels each row has."""
    figure = draw_panels([Box("a", aspect)] * count)
    FigureCanvasAgg(figure).draw()
    levels = [round(ax.get_position().y1, 2) for ax in figure.axes]
    return [levels.count(level) for level in sorted(set(levels), reverse=True)]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1]), (5, [5]), (6, [3, 3]), (7, [4, 3]), (10, [5, 5]), (11, [4, 4, 3]), (16, [4] * 4)]
)
def test_more_than_five_panels_stand_in_rows_of_about_as_many(count: int, expected: list[int]) -> None:
    assert rows(count, 1.0) == expected


def test_a_wide_panel_does_not_leave_a_hole_beside_a_row_of_narrow_ones() -> None:
    figure = draw_panels([*[Box("a", 1.0)] * 5, Box("b", 2.25)])
    FigureCanvasAgg(figure).draw()
    levels = [round(ax.get_position().y1, 2) for ax in figure.axes]
    assert levels == [levels[0]] * 4 + [levels[5]] * 2
    assert levels[0] > levels[5]


def test_wide_panels_stand_in_rows_too() -> None:
    assert rows(5, 1.5) == [5]
    assert rows(5, 2.5) == [3, 2]
    assert rows(2, 9.0) == [1, 1]


def test_all_panels_are_about_as_high_whatever_their_width_row_and_title() -> None:
    boxes = [
        Box("\n".join("abcdef"[:number]), aspect) for number, aspect in enumerate((1.5, 0.8, 1.0, 2.5, 1.0, 1.2, 3.0))
    ]
    figure = draw_panels(boxes, "a caption")
    FigureCanvasAgg(figure).draw()
    heights = [ax.get_window_extent().height / figure.dpi for ax in figure.axes]
    assert min(heights) > 0.93 * max(heights)
    assert heights == pytest.approx([2.2] * 7, rel=0.12)


def test_a_long_caption_is_broken() -> None:
    figure = draw_panels([Box("a", 1.0)], "a caption with more words than a panel of this width has room for")
    FigureCanvasAgg(figure).draw()
    (caption,) = [text for text in figure.texts if text.get_text()]
    assert caption.get_text().count("\n") >= 1
    assert caption.get_window_extent().width <= figure.bbox.width


@pytest.mark.parametrize("aspect", [0.4, 1.0, 1.6])
def test_titles_and_color_bars_of_rows_do_not_touch(aspect: float) -> None:
    unit = "grad-cam of the negative Euclidean distance of unit vectors"
    figure = draw_panels([Box("\n".join("abcdef"), aspect, unit)] * 11, "a caption")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [ax.get_tightbbox(canvas.get_renderer()) for ax in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    inside = figure.bbox
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 for box in boxes)
