from __future__ import annotations

import pytest
import torch

from captum_fam.visualization import MapFigure, draw_boxes, draw_color_bar, draw_image, draw_map
from tests.visualization.figures import painted, whole_figure


def test_a_box_surrounds_the_pixels_that_it_covers() -> None:
    image = torch.zeros(3, 40, 60)
    figure = whole_figure(40, 60)
    draw_image(figure.axes[0], image)
    draw_boxes(figure.axes[0], [(10, 5, 30, 25)])
    (box,) = figure.axes[0].patches
    assert box.get_bbox().bounds == (9.5, 4.5, 20, 20)
    bright = (painted(figure).sum(2) > 200).nonzero()
    assert [bright[0].min(), bright[0].max() + 1, bright[1].min(), bright[1].max() + 1] == pytest.approx(
        [5, 25, 10, 30], abs=1
    )


def test_the_bar_of_a_signal_lies_below_the_numbers_of_the_samples() -> None:
    figure = MapFigure(figsize=(4, 2.6), layout="constrained")
    ax = figure.add_subplot()
    draw_color_bar(draw_map(ax, torch.rand(2, 50), torch.ones(1, 7)), signed=False, beside=False)
    painted(figure)
    (bar,) = ax.child_axes
    assert 0 < bar.get_window_extent().y1 < ax.xaxis.label.get_window_extent().y0
    assert bar.get_tightbbox().y0 >= 0
