from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from captum_fam.visualization import MapFigure
from captum_fam.visualization.signal import SignalDrawing


def axes() -> Axes:
    return MapFigure(figsize=(4, 2)).add_subplot()


def test_one_channel_is_drawn_in_its_own_units() -> None:
    ax = axes()
    SignalDrawing.of(torch.tensor([[-20.0, 5.0, 30.0]])).draw(ax)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == [-20, 5, 30]
    assert ax.get_xlim() == (-0.5, 2.5)
    assert ax.get_ylim() == (-23, 33)


def test_several_channels_are_drawn_below_each_other_from_the_first_to_the_last() -> None:
    ax = axes()
    SignalDrawing.of(torch.tensor([[0.0, 1.0, 0.5], [700.0, 500.0, 600.0], [3.0, 3.0, 3.0]])).draw(ax)
    # A band of height one per channel, of which the line takes 0.8; a constant channel lies in the middle.
    np.testing.assert_allclose(
        np.stack([line.get_ydata() for line in ax.lines]), [[1.6, 2.4, 2.0], [1.4, 0.6, 1.0], [0, 0, 0]], atol=1e-12
    )
    assert [(tick, label.get_text()) for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)] == [
        (0, "2"),
        (1, "1"),
        (2, "0"),
    ]


def test_at_most_six_channels_are_drawn_and_a_note_names_the_others() -> None:
    counts, notes = [], []
    for channels in (2, 6, 7, 13):
        drawing = SignalDrawing.of(torch.rand(channels, 9))
        drawing.draw(ax := axes())
        counts.append(len(ax.lines))
        notes.append(drawing.note)
    assert counts == [2, 6, 6, 6]
    assert notes == ["", "", "first 6 of 7 channels", "first 6 of 13 channels"]


def test_the_color_of_a_sample_lies_behind_the_sample() -> None:
    ax = axes()
    heat = SignalDrawing.of(torch.rand(2, 4)).draw_map(ax, np.array([0.0, 0.0, -3.0, 0.0]), 3.0)
    assert np.asarray(heat.get_array()).tolist() == [[0, 0, -3, 0]]
    assert heat.get_clim() == (-3, 3)
    assert heat.get_zorder() < min(line.get_zorder() for line in ax.lines)
    left, right, bottom, top = heat.get_extent()
    assert (left, right) == (-0.5, 3.5) == ax.get_xlim()
    assert (bottom, top) == ax.get_ylim()


def test_the_extremes_of_a_long_signal_are_not_lost() -> None:
    signal = np.zeros(100_003)
    signal[[777, 100_002]] = 5, -7
    ax = axes()
    SignalDrawing.of(signal).draw(ax)
    positions, heights = ax.lines[0].get_data()
    assert len(heights) <= 4000
    assert positions[np.argmax(heights)] == pytest.approx(777, abs=51)
    assert positions[np.argmin(heights)] == pytest.approx(100_002, abs=51)
    assert (heights.max(), heights.min()) == (5, -7)


def test_a_thumbnail_has_the_lines_without_numbers() -> None:
    drawing = SignalDrawing.of(torch.rand(2, 9)).thumbnail
    drawing.draw(ax := axes())
    assert len(ax.lines) == 2
    assert [*ax.get_xticks(), *ax.get_yticks()] == []


def test_a_mask_is_a_bar_above_the_samples_that_it_holds() -> None:
    drawing = SignalDrawing.of(torch.rand(1, 9))
    drawing.draw(ax := axes())
    drawing.draw_mask(ax, np.array([0, 1, 1, 0, 0, 0, 1, 0, 0.0]))
    (bars,) = ax.collections
    corners = [path.vertices[:, 0] for path in bars.get_paths()]
    assert [(corner.min(), corner.max()) for corner in corners] == [(0.5, 2.5), (5.5, 6.5)]


def test_a_signal_of_one_sample_is_a_visible_dot() -> None:
    drawing = SignalDrawing.of(torch.tensor([[4.0]]))
    drawing.draw(ax := axes())
    assert ax.lines[0].get_marker() == "o"
    assert ax.get_ylim() == (3.5, 4.5)
