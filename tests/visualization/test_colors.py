from __future__ import annotations

import numpy as np
import pytest

from captum_fam.visualization import MATCH_COLORS, color_limit, color_limits
from captum_fam.visualization.colors import END_COLORS, STRENGTH, match_colors

# What people without one kind of cones see, of Machado, Oliveira and Fernandes (2009), for linear RGB.
VISION = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
GRAYS = [0.2, 0.5, 0.8]


def lab(color: np.ndarray, vision: str = "all cones") -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB color, as people with this vision see it."""
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(VISION[vision]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ratio = np.asarray(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def over(gray: float, value: float) -> np.ndarray:
    """The color of a value from -1 to 1 over a gray pixel."""
    *color, opacity = MATCH_COLORS(0.5 + value / 2)
    return opacity * np.array(color) + (1 - opacity) * gray


def test_the_colors_of_this_test_are_those_of_the_literature() -> None:
    # The corners of sRGB in CIE L*a*b*, and one color as deuteranopes see it.
    np.testing.assert_allclose(lab(np.array([1.0, 0, 0])), [53.24, 80.09, 67.20], atol=0.02)
    np.testing.assert_allclose(lab(np.array([0, 0, 1.0])), [32.30, 79.19, -107.86], atol=0.02)
    np.testing.assert_allclose(lab(np.full(3, 0.5), "no green"), lab(np.full(3, 0.5)), atol=0.02)


@pytest.mark.parametrize("gray", GRAYS)
@pytest.mark.parametrize("vision", VISION)
def test_everybody_tells_for_against_and_zero_apart(vision: str, gray: float) -> None:
    ends = {value: lab(over(gray, value), vision) for value in (-1.0, 0.0, 1.0)}
    assert np.linalg.norm(ends[1] - ends[-1]) > 70
    assert np.linalg.norm(ends[1] - ends[0]) > 35
    assert np.linalg.norm(ends[-1] - ends[0]) > 17
    # Half of the largest value is seen too.
    assert np.linalg.norm(lab(over(gray, 0.5), vision) - ends[0]) > 15
    assert np.linalg.norm(lab(over(gray, -0.5), vision) - ends[0]) > 10


@pytest.mark.parametrize("gray", GRAYS)
def test_a_print_without_colors_shows_the_sign(gray: float) -> None:
    assert lab(over(gray, 1.0))[0] - lab(over(gray, -1.0))[0] > 15


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_photograph_is_legible_below_the_strongest_color(value: float) -> None:
    assert lab(over(1.0, value))[0] - lab(over(0.0, value))[0] > 15


def test_weak_values_are_nearly_transparent() -> None:
    assert MATCH_COLORS(0.5 + 0.1 / 2)[3] < 0.06
    assert MATCH_COLORS(0.5 - 0.2 / 2)[3] < 0.12
    assert 0.4 < MATCH_COLORS(0.75)[3] < STRENGTH == pytest.approx(MATCH_COLORS(1.0)[3])


def test_the_strength_is_the_opacity_of_the_full_color_and_changes_nothing_else() -> None:
    strong, weak = (match_colors(strength)(np.linspace(0, 1, 33)) for strength in (1.0, 0.25))
    np.testing.assert_allclose(weak[:, 3], strong[:, 3] / 4, atol=1e-12)
    np.testing.assert_array_equal(weak[:, :3], strong[:, :3])
    assert {-1: tuple(strong[0, :3]), 1: tuple(strong[-1, :3])} == END_COLORS


def test_colors_are_clear_at_zero_and_more_opaque_further_out() -> None:
    opacity = MATCH_COLORS(np.linspace(0, 1, 9))[:, 3]
    assert opacity[4] == 0
    assert (np.diff(opacity[4:]) > 0).all()
    assert (np.diff(opacity[:5]) < 0).all()


def test_the_largest_magnitude_of_either_sign_has_the_full_color() -> None:
    assert color_limit(np.array([[1.0, -3.0]])) == 3.0
    assert color_limit(np.zeros((2, 2))) == 1.0  # any scale shows zeros as clear


def test_limits_are_shared_or_of_each_map() -> None:
    maps = {"a": np.array([1.0]), "b": np.array([-4.0]), "zero": np.zeros(2)}
    assert color_limits(maps, "shared") == {"a": 4.0, "b": 4.0, "zero": 4.0}
    assert color_limits(maps, "own") == {"a": 1.0, "b": 4.0, "zero": 1.0}
    assert color_limits({}, "shared") == {}


def test_maps_of_one_unit_share_a_scale_and_a_map_without_a_unit_has_its_own() -> None:
    maps = {name: np.array([value]) for name, value in zip("abcde", (1.0, -4.0, 9.0, 0.5, 70.0), strict=True)}
    units = {"a": "cosine", "b": "cosine", "c": "activation", "d": ""}
    assert color_limits(maps, "shared", units) == {"a": 4.0, "b": 4.0, "c": 9.0, "d": 0.5, "e": 70.0}
    assert color_limits(maps, "own", units) == {"a": 1.0, "b": 4.0, "c": 9.0, "d": 0.5, "e": 70.0}


def test_an_unknown_scale_is_refused() -> None:
    maps = {"a": np.zeros(2)}
    with pytest.raises(ValueError, match=r"scale .*'log'"):
        color_limits(maps, "log")  # type: ignore[arg-type]
