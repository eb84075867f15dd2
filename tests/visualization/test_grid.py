from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_fam.visualization import ColumnBlock, GridCell, MapFigure, visualize_grid
from tests.visualization.figures import PHOTO

BLOCKS = [ColumnBlock("left", ("",)), ColumnBlock("right", ("",))]


def images(figure: MapFigure) -> list[list[np.ndarray]]:
    """By cell, what is drawn: an image, or an image and a map."""
    return [[np.asarray(image.get_array()) for image in ax.images] for ax in figure.axes]


def test_a_cell_is_an_image_or_a_map_over_it() -> None:
    values = torch.randn(1, 12, 20)
    image, (below, heat) = images(visualize_grid([[GridCell(PHOTO), GridCell(PHOTO, attribution=values)]]))
    np.testing.assert_allclose(image[0], PHOTO.movedim(0, 2))
    np.testing.assert_allclose(below, PHOTO.movedim(0, 2))
    np.testing.assert_array_equal(heat, values[0].double())


def test_every_map_reaches_to_its_own_largest_magnitude() -> None:
    row = [GridCell(PHOTO, attribution=torch.full((3, 5), value)) for value in (0.1, -4.0)]
    limits = [ax.images[1].get_clim() for ax in visualize_grid([row]).axes]
    assert limits == [pytest.approx((-0.1, 0.1)), (-4.0, 4.0)]


def test_a_grid_keeps_shapes_and_gives_tall_images_less_width() -> None:
    wide, tall = torch.rand(3, 10, 20), torch.rand(3, 40, 20)
    figure = visualize_grid([[GridCell(wide, "one"), GridCell(tall)], [GridCell(tall)]], BLOCKS)
    width, height = figure.get_size_inches()
    shapes = [(ax.get_position().width * width, ax.get_position().height * height) for ax in figure.axes]
    assert [high / wide for wide, high in shapes] == pytest.approx([0.5, 2, 2])
    assert shapes[0][0] > shapes[1][0]
    tops = [ax.get_position().y1 for ax in figure.axes]
    assert tops[0] == pytest.approx(tops[1])
    assert tops[0] > tops[2]


def test_titles_and_headers_are_broken_and_do_not_run_into_images() -> None:
    long = "a network of a very long name, which goes on over several lines of the header"
    unbroken = "LayerIntegratedGradientsOfSomething_without_a_space"
    blocks = [
        ColumnBlock("query\naccuracy", ("",)),
        ColumnBlock(f"{long}\n65 %", ("fam", long)),
        ColumnBlock("b", ("",)),
    ]
    rows = [[GridCell(PHOTO, f"{unbroken}\n{number}"), *[GridCell(PHOTO, long)] * 3] for number in range(2)]
    figure = visualize_grid(rows, blocks)
    renderer = FigureCanvasAgg(figure).get_renderer()
    cells = [ax.get_window_extent(renderer) for ax in figure.axes]
    written = [text for text in [*figure.texts, *(ax.title for ax in figure.axes)] if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in written]
    for number, box in enumerate(boxes):
        assert box.y1 <= figure.bbox.height
        assert not any(box.overlaps(cell) for cell in cells)
        assert not any(box.overlaps(other) for other in boxes[:number])
    assert " ".join(long.split()) in " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def test_the_first_line_of_a_header_is_bold() -> None:
    figure = visualize_grid([[GridCell(PHOTO)]], [ColumnBlock("a model\n65 %", ("",))])
    weights = {text.get_text(): text.get_fontweight() for text in figure.texts if text.get_text()}
    assert weights == {"a model": "bold", "65 %": "normal"}


def test_boxes_are_drawn_in_pixels_of_the_image() -> None:
    figure = visualize_grid([[GridCell(PHOTO, boxes=[(3, 4, 18, 10)]), GridCell(PHOTO)]])
    assert [len(ax.patches) for ax in figure.axes] == [1, 0]
    assert figure.axes[0].patches[0].get_bbox().bounds == (2.5, 3.5, 15, 6)


def test_a_row_with_more_cells_than_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows .* 3 .*blocks .* 2 "):
        visualize_grid([[GridCell(PHOTO)] * 3], BLOCKS)


def test_a_cell_says_that_a_mean_of_channels_is_drawn() -> None:
    figure = visualize_grid([[GridCell(torch.rand(13, 9, 7), "query"), GridCell(PHOTO, attribution=torch.ones(2, 2))]])
    assert [ax.get_title() for ax in figure.axes] == ["query\nmean of 13 channels", ""]


def test_maps_of_one_unit_in_a_row_share_a_scale_and_have_color_bars() -> None:
    values = {"cosine": (0.5, -4.0), "activation": (9.0,), "": (0.25,)}
    row = [GridCell(PHOTO)] + [
        GridCell(PHOTO, attribution=torch.full((3, 5), one), unit=unit) for unit, ones in values.items() for one in ones
    ]
    second = [GridCell(PHOTO, attribution=torch.full((3, 5), 0.125), unit="cosine")]
    first, *maps, below = visualize_grid([row, second]).axes
    assert not first.child_axes
    assert [ax.images[1].get_clim()[1] for ax in maps] == [4.0, 4.0, 9.0, 0.25]
    # A bar has a negative half where one of the maps of its scale has.
    bars = [[(bar.get_xlabel(), bar.get_xlim()) for bar in ax.child_axes] for ax in (*maps, below)]
    assert bars == [
        [("cosine", (-4, 4))],
        [("cosine", (-4, 4))],
        [("activation", (0, 9))],
        [],
        [("cosine", (0, 0.125))],
    ]


def test_a_long_row_without_blocks_goes_on_in_the_next_row_on_the_same_scale() -> None:
    cells = [GridCell(PHOTO, str(number), torch.full((3, 5), float(number + 1)), unit="cosine") for number in range(7)]
    figure = visualize_grid([cells, cells[:2]])
    axes = {ax.get_title(): ax for ax in figure.axes[:7]}
    tops = [round(axes[str(number)].get_position().y1, 6) for number in range(7)]
    lefts = [round(axes[str(number)].get_position().x0, 6) for number in range(7)]
    assert len(set(tops[:4])) == len(set(tops[4:])) == 1
    assert tops[0] > tops[4] > figure.axes[7].get_position().y1
    assert lefts[4:] == lefts[:3]
    assert {ax.images[1].get_clim() for ax in figure.axes[:7]} == {(-7.0, 7.0)}


def test_color_bars_overlap_neither_titles_nor_images() -> None:
    row = [GridCell(PHOTO, "a\nb", torch.ones(3, 5), unit="negative squared Euclidean distance")] * 6
    figure = visualize_grid([row, row])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [ax.get_window_extent(renderer) for ax in figure.axes]
    titles = [ax.title.get_window_extent(renderer) for ax in figure.axes]
    for ax in figure.axes:
        (bar,) = ax.child_axes
        box = bar.get_tightbbox(renderer)
        assert box.y0 >= 0
        assert not any(box.overlaps(other) for other in [*boxes, *titles])


def test_a_grid_can_have_outlines() -> None:
    (ax,) = visualize_grid([[GridCell(PHOTO, attribution=torch.eye(4))]], style="outline").axes
    assert ax.collections
    assert not ax.images[1].get_visible()
