from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_fam.visualization import MapFigure, MapStyle, draw_image, draw_map, overlay
from tests.visualization.figures import PHOTO, painted, whole_figure


@pytest.mark.parametrize("style", [MapStyle(), MapStyle(gray=True), MapStyle(strength=0.3)], ids=str)
@pytest.mark.parametrize("limit", [None, 3.0])
def test_a_drawn_map_has_the_pixels_of_the_overlay(limit: float | None, style: MapStyle) -> None:
    """Two ways to the same colors: matplotlib lays one image over the other, ``overlay`` blends them itself."""
    image = torch.rand(3, 40, 60)
    values = torch.randn(4, 6)
    figure = whole_figure(40, 60)
    draw_map(figure.axes[0], image, values, limit, style)
    np.testing.assert_allclose(painted(figure), np.asarray(overlay(image, values, limit, style)).astype(int), atol=3)


def test_a_drawn_image_has_its_own_pixels() -> None:
    image = torch.rand(3, 40, 60)
    figure = whole_figure(40, 60)
    draw_image(figure.axes[0], image)
    np.testing.assert_allclose(painted(figure), image.movedim(0, 2) * 255, atol=1)


def test_what_is_drawn_of_a_map_is_the_map_itself_at_the_size_of_the_image() -> None:
    values = torch.randn(1, 3, 5)
    heat = draw_map(MapFigure().add_subplot(), PHOTO, values, limit=7)
    expected = torch.nn.functional.interpolate(values[None].double(), (12, 20), mode="bilinear")[0, 0]
    np.testing.assert_allclose(np.asarray(heat.get_array()), expected)
    assert heat.get_clim() == (-7, 7)


def test_a_panel_has_no_ticks() -> None:
    ax = MapFigure().add_subplot()
    draw_map(ax, PHOTO, torch.ones(3, 5))
    assert [*ax.get_xticks(), *ax.get_yticks()] == []


def test_an_overlay_of_zero_is_the_image_in_color_or_in_gray() -> None:
    for style, expected in (("overlay", PHOTO), (MapStyle(gray=True), PHOTO.mean(0).expand(3, -1, -1))):
        shown = np.asarray(overlay(PHOTO, torch.zeros(3, 4), style=style))
        assert shown.shape == (12, 20, 3)
        np.testing.assert_allclose(shown, expected.movedim(0, 2) * 255, atol=0.51)


@pytest.mark.parametrize("size", [(7, 11), (29, 58), (224, 301), (300, 113)])
def test_an_overlay_of_outlines_has_the_size_of_the_image_and_its_pixels_beside_the_lines(
    size: tuple[int, int],
) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    drawn = overlay(image, torch.tensor([[0.0, 0.0, 0.0, 9.0]]).expand(4, 4), style="outline")
    assert drawn.size == (size[1], size[0])
    # The map is zero in the left half.
    left = size[1] // 3
    np.testing.assert_allclose(np.asarray(drawn)[:, :left], (image.movedim(0, 2) * 255)[:, :left], atol=1.5)


@pytest.mark.parametrize("scale", [1e-42, 1e-300, 1e30])
def test_an_overlay_alone_knows_no_score_and_draws_the_smallest_values_too(scale: float) -> None:
    values = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64).expand(4, 4)
    gray = torch.full((3, 4, 4), 0.5)
    drawn, expected = (np.asarray(overlay(gray, one)).astype(int) for one in (values * scale, values))
    np.testing.assert_allclose(drawn, expected, atol=1)


def test_overlays_are_orange_for_the_match_and_blue_against_it() -> None:
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


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_an_overlay_of_any_number_of_channels_has_the_size_of_the_image(channels: int) -> None:
    drawn = overlay(torch.rand(channels, 7, 11), torch.randn(1, 3, 2))
    assert (drawn.mode, drawn.size) == ("RGB", (11, 7))


@pytest.mark.parametrize(
    ("image_shape", "map_shape"),
    [
        ((1, 50), (1, 9)),
        ((50,), (9,)),
        ((13, 50), (1, 50)),
        ((2, 1), (1, 1)),
        ((3, 70_001), (1, 9)),
        ((1, 1, 5, 9), (1, 1, 2, 3)),
        ((3, 12, 5, 9), (6, 2, 3)),
        ((13, 3, 90, 4), (1, 3, 2, 3)),
        ((2, 3, 4, 90), (1, 3, 2, 3)),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_overlays_of_signals_and_volumes_are_pictures_with_colors(
    image_shape: tuple[int, ...], map_shape: tuple[int, ...]
) -> None:
    image, attribution = torch.rand(image_shape), torch.randn(map_shape)
    style = MapStyle(gray=True)
    drawn = overlay(image, attribution, style=style)
    assert min(drawn.size) >= 150
    assert drawn.size[0] / drawn.size[1] < 6
    pixels = np.asarray(drawn).astype(int)
    assert (pixels.max(2) - pixels.min(2) > 60).mean() > 0.02
    # Nothing but the map has a color.
    pixels = np.asarray(overlay(image, attribution * 0, style=style)).astype(int)
    assert (pixels.max(2) - pixels.min(2)).max() <= 1


@pytest.mark.parametrize(
    ("image", "attribution", "message"),
    [
        (torch.rand(1, 50), torch.full((1, 9), torch.nan), "attribution: .*NaN"),
        (torch.full((1, 50), torch.inf), torch.randn(1, 9), "image contains NaN or inf"),
        (torch.rand(1, 4, 5, 9), torch.randn(2, 3), r"attribution: a map of a volume .*\(2, 3\)"),
        (torch.rand(3, 5, 9), torch.randn(1, 4, 5, 9), r"attribution: a map of an image .*\(1, 4, 5, 9\)"),
        (torch.rand(1, 4, 5, 9) * 2, torch.randn(2, 3, 3), "image .*unnormalize"),
        (torch.rand(50), torch.randn(2, 9), r"attribution: a map of a signal .*\(2, 9\)"),
        (torch.rand(2, 1, 4, 5, 9), torch.randn(2, 3, 3), r"image .*\(2, 1, 4, 5, 9\)"),
        (torch.rand(2, 0), torch.randn(1, 3), r"image .*\(2, 0\)"),
    ],
)
def test_shapes_and_values_that_cannot_be_drawn_are_refused(
    image: torch.Tensor, attribution: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(image, attribution)
