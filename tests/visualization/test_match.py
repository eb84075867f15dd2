from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_fam.visualization import MapStyle, PairLines, SupportMap, visualize_match
from tests.visualization.figures import PHOTO, panels


def heat(ax: Axes) -> np.ndarray:
    """The values that a map's panel shows."""
    return np.asarray(ax.images[1].get_array())


def test_panels_are_query_supports_foils_and_maps_in_this_order() -> None:
    maps = {"a": torch.randn(3, 5), "b": torch.randn(3, 5)}
    figure = visualize_match(PHOTO, maps, supports=PHOTO[None], foils=[PHOTO, PHOTO])
    assert [ax.get_title() for ax in panels(figure)] == ["query", "support", "foil", "a", "b"]


def test_a_map_of_the_images_size_is_shown_as_it_is() -> None:
    values = torch.randn(12, 20) ** 5  # outliers that a percentile would clip
    (ax,) = panels(visualize_match(PHOTO, {"a": values}))[1:]
    np.testing.assert_array_equal(heat(ax), values.double().numpy())
    low, high = ax.images[1].get_clim()
    assert high == -low == values.abs().max().item()


def test_a_coarse_map_is_interpolated_as_captum_does() -> None:
    values = torch.randn(1, 3, 5)
    expected = torch.nn.functional.interpolate(values[None].double(), (12, 20), mode="bilinear")[0, 0]
    (ax,) = panels(visualize_match(PHOTO, {"a": values}))[1:]
    np.testing.assert_allclose(heat(ax), expected.numpy())


def test_maps_share_one_scale_that_reaches_to_the_largest_of_all() -> None:
    figure = visualize_match(PHOTO, {"weak": torch.full((12, 20), 0.1), "strong": torch.full((12, 20), -4.0)})
    assert [ax.images[1].get_clim() for ax in panels(figure)[1:]] == [(-4.0, 4.0)] * 2


def test_methods_of_other_units_each_have_their_own_scale() -> None:
    maps = {"weak": torch.full((12, 20), 0.1), "strong": torch.full((12, 20), -4.0)}
    figure = visualize_match(PHOTO, maps, scale="own")
    assert [ax.images[1].get_clim()[1] for ax in panels(figure)[1:]] == [pytest.approx(0.1), 4.0]


def test_maps_of_one_unit_share_a_scale_and_every_bar_names_its_unit() -> None:
    values = {"a": 0.5, "b": -4.0, "c": 9.0, "d": 0.25}
    units = {"a": "cosine", "b": "cosine", "c": "activation"}
    maps = {title: torch.full((3, 5), value) for title, value in values.items()}
    axes = panels(visualize_match(PHOTO, maps, units=units))[1:]
    assert [ax.images[1].get_clim()[1] for ax in axes] == [4.0, 4.0, 9.0, 0.25]
    bars = [[(bar.get_xlabel(), bar.get_xlim()) for bar in ax.child_axes] for ax in axes]
    assert bars == [[("cosine", (-4, 4))], [("cosine", (-4, 4))], [("activation", (0, 9))], [("", (0, 0.25))]]


def test_one_scale_of_all_maps_has_one_bar_with_its_unit() -> None:
    maps = {"a": torch.full((3, 5), 2.0), "b": torch.full((3, 5), 5.0)}
    axes = panels(visualize_match(PHOTO, maps, units=dict.fromkeys(maps, "cosine")))[1:]
    assert [[bar.get_ylabel() for bar in ax.child_axes] for ax in axes] == [[], ["cosine"]]


def test_maps_of_supports_follow_on_a_scale_of_their_own() -> None:
    figure = visualize_match(
        PHOTO,
        {"a": torch.full((3, 5), 0.5), "b": torch.ones(3, 5)},
        units={"a": "cosine", "b": "activation"},
        support_maps=[SupportMap(PHOTO.flip(2), torch.full((2, 2), -2.0), "its map", "cosine")],
        lines=PairLines.of(PHOTO, PHOTO, [], (3, 5), (3, 5), "lines"),
    )
    axes = {ax.get_title(): ax for ax in panels(figure)}
    assert list(axes) == [
        "query",
        "a\nthe same everywhere",
        "b\nthe same everywhere",
        "its map\nthe same everywhere",
        "lines",
    ]
    _, a, b, its, _ = axes.values()
    assert [ax.images[1].get_clim()[1] for ax in (a, b, its)] == [0.5, 1.0, 2.0]
    assert [len(ax.child_axes) for ax in (a, b, its)] == [1, 1, 1]
    np.testing.assert_allclose(its.images[0].get_array(), PHOTO.flip(2).movedim(0, 2))


def test_a_caption_stands_above_all_panels() -> None:
    figure = visualize_match(PHOTO, {"a": torch.eye(3)}, caption="a network, layer 4")
    assert figure.get_suptitle() == "a network, layer 4"
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (caption,) = [text for text in figure.texts if text.get_text()]
    bottom = caption.get_window_extent(renderer).y0
    assert all(ax.title.get_window_extent(renderer).y1 < bottom for ax in panels(figure))


def test_outlines_are_drawn_over_the_query_in_color() -> None:
    values = torch.zeros(12, 20)
    values[3:6, 4:9] = 1
    query, ax = panels(visualize_match(PHOTO, {"a": values}, style="outline"))
    assert not query.collections
    assert ax.collections
    np.testing.assert_allclose(ax.images[0].get_array(), PHOTO.movedim(0, 2))
    assert not ax.images[1].get_visible()


@pytest.mark.parametrize(("sign", "expected"), [(1, (0.0, 2.0)), (-1, (-2.0, 2.0))])
@pytest.mark.parametrize("scale", ["shared", "own"])
def test_the_color_bar_has_a_negative_half_only_where_maps_have(
    sign: int, expected: tuple[float, float], scale: str
) -> None:
    figure = visualize_match(PHOTO, {"a": torch.full((12, 20), 2.0 * sign)}, scale=scale)
    (bar,) = panels(figure)[1].child_axes
    assert (bar.get_ylim() if scale == "shared" else bar.get_xlim()) == expected


@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 5.0])
@pytest.mark.parametrize("scale", ["shared", "own"])
def test_flat_maps_of_any_sign_are_drawn(value: float, scale: str, tmp_path: Path) -> None:
    figure = visualize_match(PHOTO, {"a": torch.full((1, 4, 4), value)}, scale=scale)
    figure.save(tmp_path / "flat.png")
    assert panels(figure)[1].get_title() == ("a\nthe same everywhere" if value else "a\nzero everywhere")


def test_a_map_of_one_value_up_to_the_rounding_of_its_precision_is_the_same_everywhere() -> None:
    nearly = torch.full((3, 5), 0.1) + torch.tensor([0.0, 7e-9, 0.0, -7e-9, 0.0])
    titles = [panels(visualize_match(PHOTO, {"a": one}))[1].get_title() for one in (nearly, nearly.double())]
    assert nearly.unique().numel() > 1
    assert titles == ["a\nthe same everywhere", "a"]
    whole_numbers = torch.tensor([[3, 3], [3, 3]])
    assert panels(visualize_match(PHOTO, {"a": whole_numbers}))[1].get_title() == "a\nthe same everywhere"


@pytest.mark.parametrize("scale", ["shared", "own"])
def test_zeros_have_no_color_bar(scale: str) -> None:
    figure = visualize_match(PHOTO, {"a": torch.zeros(3, 5), "b": torch.zeros(3, 5)}, scale=scale)
    assert [ax.child_axes for ax in panels(figure)[1:]] == [[], []]
    figure = visualize_match(PHOTO, {"a": torch.zeros(3, 5), "b": torch.randn(3, 5)}, scale=scale)
    assert [len(ax.child_axes) for ax in panels(figure)[1:]] == [0, 1]


def test_scores_and_notes_stand_above_their_maps() -> None:
    maps = {"a": torch.randn(2, 2), "b": torch.randn(2, 2), "c": torch.zeros(2, 2)}
    figure = visualize_match(PHOTO, maps, scores={"b": -0.25, "c": 61234.0}, notes={"b": "so\nit is", "c": "why"})
    assert [ax.get_title() for ax in panels(figure)[1:]] == [
        "a",
        "b\nscore -0.250\nso\nit is",
        "c\nscore 61,200\nwhy\nzero everywhere",
    ]


@pytest.mark.parametrize("size", [(90, 20), (30, 30), (20, 90)])
def test_long_titles_are_broken_and_do_not_touch_each_other(size: tuple[int, int]) -> None:
    photo = torch.rand(3, *size)
    score = "score -61,200, which is 36,100 more than an embedding of zeros has (-97,300)"
    long = f"{score}\nexplains 12 % of it; class token 85 %"
    maps = {
        "LayerIntegratedGradientsOfSomething_without_a_space": torch.randn(4, 4),
        "similarity-cam": torch.randn(4, 4),
    }
    figure = visualize_match(
        photo,
        maps,
        supports=[photo],
        foils=[torch.rand(3, 90, 20)],
        notes=dict.fromkeys(maps, long),
        titles={"query": "query\npredicted: Red winged Blackbird of the north", "foils": "foil: the runner-up of all"},
    )
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [ax.title.get_window_extent(renderer) for ax in panels(figure)]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)
    text = " ".join(" ".join(ax.get_title() for ax in panels(figure)).split())
    assert " ".join(long.split()) in text
    # The panel is as high as it was meant to be, whatever stands above it.
    assert panels(figure)[-1].get_window_extent(renderer).height > 0.75 * 2.2 * figure.dpi * min(
        1, 2.5 * size[0] / size[1]
    )


def test_an_image_below_a_map_keeps_its_colors_and_on_request_its_brightness_only() -> None:
    red = torch.zeros(3, 6, 6)
    red[0] = 1
    for style, expected in (("overlay", [1, 0, 0]), (MapStyle(gray=True), [1 / 3] * 3)):
        query, ax = panels(visualize_match(red, {"a": torch.zeros(6, 6)}, style=style))
        np.testing.assert_array_equal(query.images[0].get_array()[0, 0], [1, 0, 0])
        np.testing.assert_allclose(ax.images[0].get_array()[0, 0], expected)


def test_more_than_nine_supports_are_counted() -> None:
    figure = visualize_match(PHOTO, {}, supports=PHOTO.expand(25, -1, -1, -1))
    block = panels(figure)[1]
    assert block.get_title() == "support\n9 of 25"
    assert len(block.images) == 9


def test_a_mask_is_outlined_on_the_query_and_every_map() -> None:
    mask = torch.zeros(12, 20)
    mask[3:6, 4:9] = 1
    figure = visualize_match(PHOTO, {"a": torch.ones(2, 2)}, mask=mask, supports=PHOTO[None])
    query, support, a = panels(figure)
    assert query.collections
    assert a.collections
    assert not support.collections


def test_half_precision_is_drawn() -> None:
    visualize_match(PHOTO.bfloat16(), {"a": torch.ones(2, 2, dtype=torch.bfloat16)}, supports=PHOTO[None].half())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": PHOTO * 3 - 1}, "query .*unnormalize"),
        ({"query": torch.rand(2, 4, 5, 5, 5)}, r"query .*\(2, 4, 5, 5, 5\)"),
        ({"query": torch.full((4, 2, 2), torch.nan)}, "query .*NaN"),
        ({"supports": [torch.rand(3, 4, 5) + 9]}, "supports .*unnormalize"),
        ({"query": torch.full((3, 2, 2), torch.nan)}, "query .*nan"),
        ({"maps": {"a": torch.full((2, 2), torch.nan)}}, "a: .*NaN"),
        ({"maps": {"a": torch.ones(2, 3, 4)}}, r"a: .*\(2, 3, 4\)"),
        ({"scores": {"b": 1.0}}, "scores .* b,"),
        ({"notes": {"b": "c"}}, "notes .* b,"),
        ({"units": {"b": "cosine"}}, "units .* b,"),
        ({"scale": "log"}, "scale .*'log'"),
        ({"style": "heat"}, "style .*'heat'"),
        ({"support_maps": [SupportMap(PHOTO, torch.ones(2, 3, 4), "a wren")]}, r"a wren: .*\(2, 3, 4\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualize_match(**{"query": PHOTO, "maps": {"a": torch.ones(2, 2)}, **arguments})


def test_a_signal_is_drawn_with_signals_as_supports() -> None:
    figure = visualize_match(
        torch.rand(2, 50),
        {"a": torch.randn(1, 9), "b": torch.randn(50)},
        supports=torch.rand(11, 2, 30),
        foils=[torch.rand(13, 20)],
        mask=torch.arange(50) > 40,
    )
    query, support, foil, a, b = panels(figure)
    assert [len(ax.lines) for ax in (query, a, b)] == [2, 2, 2]
    assert [ax.collections != [] for ax in (query, a, b)] == [True] * 3
    assert support.get_title() == "support\n9 of 11"
    assert [len(ax.lines) for ax in support.child_axes] == [2] * 9
    assert foil.get_title() == "foil\nfirst 6 of 13 channels"
    limits = [ax.images[0].get_clim() for ax in (a, b)]
    assert limits[0] == limits[1]
    assert not any(ax.images for ax in support.child_axes)


def test_a_volume_is_drawn_as_slices_with_middle_slices_as_supports() -> None:
    values = torch.randn(1, 2, 3, 3)
    figure = visualize_match(
        torch.rand(1, 12, 8, 9),
        {"a": values},
        supports=torch.rand(2, 13, 5, 8, 9),
        scale="own",
        mask=torch.ones(2, 3, 3),
    )
    query, support, a = panels(figure)
    assert [len(ax.texts) for ax in (query, a)] == [8, 8]
    assert support.get_title() == "support\nmiddle slice\nmean of 13 channels"
    # The scale ends at the largest magnitude of the whole map, wherever it lies.
    whole = torch.nn.functional.interpolate(values.double()[None], (12, 8, 9), mode="trilinear")
    assert a.images[1].get_clim()[1] == pytest.approx(whole.abs().max().item())
    assert len(a.child_axes) == 1


def test_the_title_says_that_a_mean_of_channels_is_drawn() -> None:
    figure = visualize_match(torch.rand(4, 9, 7), {"a": torch.randn(2, 3)}, supports=[PHOTO, torch.rand(2, 5, 6)])
    assert [ax.get_title() for ax in panels(figure)] == [
        "query\nmean of 4 channels",
        "support\nmean of 2 channels",
        "a",
    ]


@pytest.mark.parametrize(
    ("shape", "map_shape"),
    [((1, 187), (1, 11)), ((6, 3000), (1, 11)), ((1, 12, 14, 16), (2, 3, 3)), ((3, 8, 20, 90), (2, 3, 3))],
)
def test_panels_of_signals_and_volumes_are_large_and_do_not_overlap(
    shape: tuple[int, ...], map_shape: tuple[int, ...]
) -> None:
    maps = {"a": torch.randn(map_shape), "b": torch.randn(map_shape)}
    query = torch.rand(shape)
    figure = visualize_match(query, maps, supports=[query] * 4, foils=[query] * 2, scale="own")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [ax.get_tightbbox(renderer) for ax in panels(figure)]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for ax in panels(figure):
        assert ax.get_window_extent(renderer).height > 0.6 * 2.2 * figure.dpi
    # The color bar lies below everything else of its panel.
    for ax in panels(figure)[-2:]:
        (bar,) = ax.child_axes
        label = ax.xaxis.label.get_window_extent(renderer).y0 if ax.get_xlabel() else ax.get_window_extent(renderer).y0
        assert bar.get_tightbbox(renderer).y1 <= label
