from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from captum_fam.visualization import MATCH_COLORS, MapFigure, overlay, unnormalize, visualize_match

PHOTO = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0))


def panels(figure: MapFigure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_title()]


def heat(ax: Axes) -> np.ndarray:
    """The values that a map's panel shows."""
    return np.asarray(ax.images[1].get_array())


def test_panels_are_query_supports_foils_and_maps_in_this_order() -> None:
    maps = {"a": torch.randn(3, 5), "b": torch.randn(3, 5)}
    figure = visualize_match(PHOTO, maps, supports=PHOTO[None], foils=[PHOTO, PHOTO])
    assert [ax.get_title() for ax in panels(figure)] == ["query", "support", "foil", "a", "b"]


def test_figures_leave_nothing_in_pyplot(tmp_path: Path) -> None:
    visualize_match(PHOTO, {"a": torch.randn(3, 5)}, supports=PHOTO[None], mask=torch.ones(12, 20)).save(
        tmp_path / "a.png"
    )
    assert plt.get_fignums() == []


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
    long = "score -61,200 = 36,100 explained + -97,300 of the zero embedding\nexplains 12 % of it; class token 85 %"
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
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)
    text = " ".join(" ".join(ax.get_title() for ax in panels(figure)).split())
    assert " ".join(long.split()) in text
    # The panel is as high as it was meant to be, whatever stands above it.
    assert panels(figure)[-1].get_window_extent(renderer).height > 0.75 * 2.2 * figure.dpi * min(
        1, 2.5 * size[0] / size[1]
    )


def test_colors_are_rgb_and_the_gray_image_keeps_its_brightness() -> None:
    red = torch.zeros(3, 6, 6)
    red[0] = 1
    query, ax = panels(visualize_match(red, {"a": torch.zeros(6, 6)}))
    np.testing.assert_array_equal(query.images[0].get_array()[0, 0], [255, 0, 0])
    gray = ax.images[0]
    assert gray.get_array()[0, 0] == 85
    assert gray.get_clim() == (0, 255)


@pytest.mark.parametrize(
    "image",
    [
        PHOTO[:1],
        PHOTO[0],
        PHOTO[0].numpy(),
        PHOTO[:1].permute(1, 2, 0).numpy(),
        PHOTO.permute(1, 2, 0).numpy(),
        (PHOTO.permute(1, 2, 0).numpy() * 255).astype(np.uint8),
        (PHOTO * 255).byte(),
        Image.fromarray((PHOTO[0].numpy() * 255).astype(np.uint8)),
    ],
    ids=["tensor 1HW", "tensor HW", "array HW", "array HW1", "array HW3", "8-bit array", "8-bit tensor", "gray PIL"],
)
def test_images_of_every_usual_form_show_the_same(image: object) -> None:
    shown = np.asarray(panels(visualize_match(image, {}))[0].images[0].get_array())
    assert shown.shape == (12, 20, 3)
    np.testing.assert_allclose(shown[..., 0], np.floor(PHOTO[0].numpy() * 255), atol=1)


def test_a_nearly_black_8_bit_image_stays_black() -> None:
    image = np.ones((5, 5, 3), dtype=np.uint8)  # which Captum would take for white
    shown = panels(visualize_match(image, {}))[0].images[0].get_array()
    assert shown.max() == 1


def test_more_than_nine_supports_are_counted() -> None:
    figure = visualize_match(PHOTO, {}, supports=PHOTO.expand(25, -1, -1, -1))
    block = panels(figure)[1]
    assert block.get_title() == "support\n9 of 25"
    assert len(block.child_axes) == 9


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
        ({"query": PHOTO * 3 - 1}, "unnormalize"),
        ({"query": torch.rand(4, 5, 5)}, "one or three channels"),
        ({"query": torch.full((3, 2, 2), torch.nan)}, "expected"),
        ({"maps": {"a": torch.full((2, 2), torch.nan)}}, "a: the map contains NaN"),
        ({"maps": {"a": torch.ones(2, 3, 4)}}, r"a: a map must have the shape .* got \(2, 3, 4\)"),
        ({"scores": {"b": 1.0}}, "scores has the title.* b, which maps has not"),
        ({"notes": {"b": "c"}}, "notes has the title.* b, which maps has not"),
        ({"scale": "log"}, "scale must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualize_match(**{"query": PHOTO, "maps": {"a": torch.ones(2, 2)}, **arguments})


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_figure_saves_in_the_format_of_the_suffix_and_makes_its_folder(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"figure{suffix}"
    visualize_match(PHOTO, {"a": torch.randn(3, 5)}).save(path)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")


def test_a_figure_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="xyz"):
        visualize_match(PHOTO, {}).save(tmp_path / "figure.xyz")
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_the_figure() -> None:
    assert visualize_match(PHOTO, {})._repr_png_().startswith(b"\x89PNG")


def test_an_overlay_of_zero_is_the_gray_image() -> None:
    shown = np.asarray(overlay(PHOTO, torch.zeros(3, 4)))
    expected = PHOTO.mean(0).numpy() * 255
    assert shown.shape == (12, 20, 3)
    np.testing.assert_allclose(shown, np.repeat(expected[..., None], 3, 2), atol=0.51)


@pytest.mark.parametrize("scale", [1e-42, 1e-300, 1e30])
def test_an_overlay_alone_knows_no_score_and_draws_the_smallest_values_too(scale: float) -> None:
    values = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64).expand(4, 4)
    gray = torch.full((3, 4, 4), 0.5)
    drawn, expected = (np.asarray(overlay(gray, one)).astype(int) for one in (values * scale, values))
    np.testing.assert_allclose(drawn, expected, atol=1)


def test_overlays_are_red_for_the_match_and_blue_against_it() -> None:
    gray = torch.full((3, 4, 8), 0.5)
    values = torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0]).expand(4, 8)
    red, _, blue = np.moveaxis(np.asarray(overlay(gray, values)).astype(int), 2, 0)[:, 0]
    assert (red > blue).tolist() == [True, True, *[False] * 6]
    assert (blue > red).tolist() == [*[False] * 6, True, True]


def test_an_overlay_on_a_given_scale_is_paler_than_on_its_own() -> None:
    gray, values = torch.full((3, 4, 4), 0.5), torch.ones(4, 4)
    own, shared = (np.asarray(overlay(gray, values, limit)).astype(int)[0, 0] for limit in (None, 10.0))
    assert abs(own - 127).sum() > 3 * abs(shared - 127).sum()
    np.testing.assert_array_equal(own, np.asarray(overlay(gray, values * 7))[0, 0])


def test_colors_are_clear_at_zero_and_more_opaque_further_out() -> None:
    opacity = MATCH_COLORS(np.linspace(0, 1, 9))[:, 3]
    assert opacity[4] == 0
    assert (np.diff(opacity[4:]) > 0).all()
    assert (np.diff(opacity[:5]) < 0).all()


def test_unnormalize_undoes_the_normalization() -> None:
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    batch = PHOTO.expand(2, -1, -1, -1)
    normalized = (batch - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(unnormalize(normalized, mean.tolist(), std.tolist()), batch)
    assert unnormalize(normalized[0] * 50).min() == 0


def test_unnormalize_refuses_another_number_of_channels() -> None:
    with pytest.raises(ValueError, match="1 channels, but there are 3 means"):
        unnormalize(torch.rand(2, 1, 5, 5))
