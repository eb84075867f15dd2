from __future__ import annotations

import numpy as np
import pytest

from captum_fam.visualization import MATCH_COLORS, color_limit, color_limits


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
    with pytest.raises(ValueError, match=r"scale .*'log'"):
        color_limits(maps, "log")  # type: ignore[arg-type]
