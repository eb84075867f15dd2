from __future__ import annotations

import itertools
import warnings

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from captum_fam.visualization.titles import text_font, wrap_title

FONT = FontProperties(size=9)


def width_in_inches(text: str) -> float:
    """The width of the letters' outlines, which the advance of the last letter may exceed."""
    return float(TextPath((0, 0), text, prop=FONT).get_extents().width) / 72


@pytest.mark.parametrize("inches", [0.8, 1.5, 3.0])
def test_no_line_is_wider_than_asked_for_and_no_word_is_lost(inches: float) -> None:
    text = "score -61,200, which is 36,100 more than an embedding of zeros has (-97,300), and further words"
    lines = wrap_title(text, inches, FONT)
    assert " ".join(lines) == text
    assert all(width_in_inches(line) <= inches for line in lines)
    # The next word would not have fitted.
    for line, following in itertools.pairwise(lines):
        assert width_in_inches(f"{line} {following.split()[0]}") > 0.95 * inches


def test_a_word_that_is_too_long_is_broken() -> None:
    word = "LayerIntegratedGradientsOfSomething"
    lines = wrap_title(f"a {word} b", 1.0, FONT)
    assert "".join(lines).replace(" ", "") == f"a{word}b"
    assert lines[0] == "a"
    assert len(lines) > 3


def test_line_ends_stay_and_empty_texts_have_no_line() -> None:
    assert wrap_title("a\nb", 1.0, FONT) == ["a", "b"]
    assert wrap_title("", 1.0, FONT) == []


def test_a_letter_that_is_wider_than_a_line_stands_alone() -> None:
    assert wrap_title("WM", 0.01, FONT) == ["W", "M"]


def test_a_long_name_is_broken_behind_its_signs_where_it_has_some() -> None:
    assert wrap_title("Black_footed_Albatross", 1.0, FONT) == ["Black_footed_", "Albatross"]
    assert wrap_title("birds/wren-1.jpg", 0.7, FONT) == ["birds/", "wren-1.jpg"]


def test_a_percentage_is_not_broken() -> None:
    assert wrap_title("token 85 %, bias 3 %", 0.5, FONT) == ["token", "85 %,", "bias", "3 %"]


def test_a_letter_that_no_font_has_is_a_box_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    font = FontProperties(family=["DejaVu Sans"], size=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wrap_title("鸟 wren é", 5.0, font) == ["□ wren é"]
    monkeypatch.setattr("captum_fam.visualization.titles._MORE_FONTS", ("No Such Font", "DejaVu Serif"))
    assert text_font(9, "bold").get_family() == ["sans-serif", "DejaVu Serif"]
