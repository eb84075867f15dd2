from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from captum_fam.visualization import MapFigure
from captum_fam.visualization.volume import VolumeDrawing
from tests.visualization.figures import painted


def axes() -> Axes:
    figure = MapFigure(figsize=(4, 2.2))
    return figure.add_axes((0, 0, 1, 1))


def slices_of(montage: np.ndarray, ax: Axes, height: int, width: int) -> list[np.ndarray]:
    """The parts of a montage below the numbers of the slices."""
    corners = [
        (round(text.get_position()[1] + 0.5), round(text.get_position()[0] + 0.5 - width / 2)) for text in ax.texts
    ]
    return [montage[top : top + height, left : left + width] for top, left in corners]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (16, [2, 4, 6, 8, 10, 12, 14, 16])],
)
def test_at_most_eight_slices_are_drawn_evenly_and_named(depth: int, expected: list[int]) -> None:
    ax = axes()
    VolumeDrawing.of(torch.rand(1, depth, 5, 7)).draw(ax)
    assert [text.get_text() for text in ax.texts] == [f"slice {number} of {depth}" for number in expected]


@pytest.mark.parametrize("size", [(5, 7), (20, 6), (4, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_slice_stands_below_its_number(channels: int, size: tuple[int, int]) -> None:
    volume = torch.rand(channels, 11, *size)
    drawing = VolumeDrawing.of(volume)
    drawing.draw(ax := axes())
    shown = slices_of(np.asarray(ax.images[0].get_array()), ax, *size)
    assert len(shown) == 8
    for text, one in zip(ax.texts, shown, strict=True):
        expected = volume[:, int(text.get_text().split()[1]) - 1].expand(3, -1, -1).movedim(0, 2)
        np.testing.assert_allclose(one, expected)


def test_the_map_of_each_slice_lies_over_it_on_one_scale() -> None:
    values = np.random.default_rng(0).normal(size=(11, 5, 7))
    drawing = VolumeDrawing.of(torch.rand(1, 11, 5, 7))
    heat = drawing.draw_map(ax := axes(), values, 9.0)
    assert heat.get_clim() == (-9, 9)
    shown = slices_of(np.asarray(heat.get_array()), ax, 5, 7)
    for text, one in zip(ax.texts, shown, strict=True):
        np.testing.assert_array_equal(one, values[int(text.get_text().split()[1]) - 1])
    # Between the slices, the map is zero, which is transparent.
    assert np.abs(heat.get_array()).sum() == pytest.approx(sum(np.abs(one).sum() for one in shown))


@pytest.mark.parametrize("shape", [(12, 14, 16), (8, 64, 64), (30, 96, 20), (7, 20, 90), (2, 10, 200), (1, 50, 9)])
def test_numbers_of_slices_overlap_neither_each_other_nor_a_slice(shape: tuple[int, int, int]) -> None:
    drawing = VolumeDrawing.of(torch.rand(1, *shape))
    figure = MapFigure(figsize=(2.2 * drawing.aspect, 2.2))
    drawing.draw(ax := figure.add_axes((0, 0, 1, 1)))
    painted(figure)
    texts = [text.get_window_extent() for text in ax.texts]
    height, width = shape[1:]
    slices = []
    for text in ax.texts:
        x, y = text.get_position()
        ends = ax.transData.transform([(x - width / 2, y), (x + width / 2, y + height)])
        # Half a pixel for rounding.
        slices.append(Bbox.from_extents(*ends.min(0), *ends.max(0)).padded(-0.5))
    for number, text in enumerate(texts):
        assert not any(text.overlaps(other) for other in texts[:number])
        assert not any(text.overlaps(one) for one in slices)


def test_a_mask_is_outlined_on_the_slices_that_it_touches() -> None:
    mask = np.zeros((3, 9, 9))
    mask[1, 3:6, 3:6] = 1
    drawing = VolumeDrawing.of(torch.rand(1, 3, 9, 9))
    drawing.draw(ax := axes())
    drawing.draw_mask(ax, mask)
    extent = ax.collections[0].get_paths()[0].get_extents()
    middle, top = ax.texts[1].get_position()
    assert extent.x0 < middle < extent.x1
    assert (extent.y0, extent.y1) == (top + 0.5 + 2.5, top + 0.5 + 5.5)


def test_a_thumbnail_is_the_middle_slice() -> None:
    volume = torch.rand(1, 5, 4, 6)
    thumbnail = VolumeDrawing.of(volume).thumbnail
    assert thumbnail.note == "middle slice"
    np.testing.assert_allclose(thumbnail.pixels[..., 1], volume[0, 2])


def test_channels_of_other_numbers_are_a_gray_mean() -> None:
    volume = torch.randn(2, 3, 4, 6)
    drawing = VolumeDrawing.of(volume)
    assert drawing.note == "mean of 2 channels"
    assert drawing.thumbnail.note == "middle slice\nmean of 2 channels"
    low, high = volume.flatten(1).amin(1)[:, None, None, None], volume.flatten(1).amax(1)[:, None, None, None]
    np.testing.assert_allclose(drawing.slices[..., 0], ((volume - low) / (high - low)).mean(0), atol=1e-6)
