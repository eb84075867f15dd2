"""Numbers and pictures are small, and are what they were."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from captum_fam.report import CellMatch, CellMatches, ReportMap, ReportPair, ReportRow, ReportSide
from captum_fam.report.encode import MOST_CELLS, picture_uri, quantized, row_data, safe_json
from tests.report.made import QUERY, cosines, matrix, pair, photograph, row
from tests.report.reading import numbers_of, values_at


def test_a_row_is_read_back_as_it_was() -> None:
    whole = row(1)
    data = row_data(whole)
    wide, narrow = numbers_of(data)
    for place, one in enumerate(whole.pairs):
        found, shares = data["pairs"][place], matrix(10 + place)
        for maps, given in ((found["query"], one.query_maps), (found["support"], one.support.maps)):
            for (values, plain), expected in zip(maps, given, strict=True):
                np.testing.assert_allclose(
                    values_at(wide, values), expected.values, atol=abs(expected.values).max() / 65534
                )
                np.testing.assert_allclose(
                    values_at(wide, plain), expected.plain, atol=abs(expected.plain).max() / 65534
                )
        matches = found["matches"]
        steps = values_at(wide, matches["steps"])
        read = values_at(narrow, matches["matrix"]).T * steps[:, None]
        assert (abs(read - shares) <= steps[:, None] / 2 + 1e-15).all()
        for side, (values, angles) in enumerate(((shares, cosines(10 + place)), (shares.T, cosines(10 + place).T))):
            best = matches["best"][side]
            np.testing.assert_array_equal(values_at(wide, best["cells"]), values.argmax(1))
            np.testing.assert_allclose(
                values_at(wide, best["shares"]), values.max(1), atol=abs(values.max(1)).max() / 65534
            )
            expected = [angles[cell, values[cell].argmax()] for cell in range(len(values))]
            np.testing.assert_allclose(values_at(wide, best["cosines"]) / 32767, expected, atol=1 / 65534)


def test_a_step_is_an_eighth_bit_of_the_matrix_and_finer_in_weak_rows() -> None:
    values = np.array([[1.0, -0.3, 0.0], [0.02, 0.001, -0.013], [0.0, 0.0, 0.0]])
    numbers, steps = quantized(values)
    np.testing.assert_allclose(steps, [1 / 127, 0.02 / 4, 0], rtol=1e-3)
    assert numbers[0, 0] == 127
    assert not numbers[2].any()
    np.testing.assert_allclose(numbers * steps[:, None], values, atol=steps.max() / 2)


def test_a_map_without_a_contrast_is_kept_once_and_an_unknown_plain_map_not_at_all() -> None:
    values = np.arange(6.0).reshape(2, 3)
    maps = [ReportMap(values, plain=values), ReportMap(values), None]
    data = row_data(ReportRow(ReportSide("a", photograph(1), maps)))
    same, unknown, missing = data["query"]
    assert same[0] == same[1]
    assert unknown[1] is None
    assert missing is None
    assert data["wide"] == 12


def test_a_pair_of_14_by_14_cells_takes_at_most_60_kilobytes() -> None:
    random = np.random.default_rng(0)  # noise is the worst case: it is not compressed
    shares = random.normal(size=(196, 196))
    sides = [ReportMap(random.normal(size=(14, 14)), plain=random.normal(size=(14, 14))) for _ in range(4)]
    one = ReportPair(
        ReportSide("a", photograph(1), sides[:2]),
        query_maps=sides[2:],
        matches=CellMatches(1.0, (14, 14), (14, 14), shares, np.tanh(shares)),
    )
    assert len(safe_json(row_data(ReportRow(ReportSide("q", photograph(2)), [one])))) <= 60_000


@pytest.mark.parametrize("side", [32, 33])
def test_of_images_with_more_than_32_by_32_cells_only_the_best_matches_are_kept(side: int) -> None:
    top = [CellMatch((1, 2), (0, 1), 0.5, 0.25), CellMatch((0, 3), (1, 1), 0.125)]
    shares = np.ones((side * 32, 4))
    matches = CellMatches(1.0, (side, 32), (2, 2), shares, top=top)
    data = row_data(ReportRow(ReportSide("q", photograph(1)), [replace(pair(1), matches=matches)]))["pairs"][0][
        "matches"
    ]
    assert ("matrix" in data) == (side * 32 <= MOST_CELLS)
    if side == 33:
        assert data["top"] == [[34, 1, 0.5, 0.25], [3, 3, 0.125, None]]


def test_a_picture_is_small_and_keeps_its_form() -> None:
    large = photograph(1, 900, 600)
    head, _, content = picture_uri(large).partition(",")
    small = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/jpeg;base64"
    assert small.size == (224, 149)
    assert large.size == (900, 600)


def test_json_cannot_leave_its_element() -> None:
    texts = ["</script><!--", "\u2028 & ' \"", "\udcff", "\u202eabc"]
    text = safe_json(texts)
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text) == texts


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"values must be a map \(h, w\) of finite numbers, got shape \(4,\)"):
        ReportMap(np.ones(4))
    with pytest.raises(ValueError, match="plain must be a map"):
        ReportMap(np.ones((2, 2)), plain=np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"matrix must have the shape \(12, 4\) of the two grids, got \(4, 12\)"):
        CellMatches(1.0, QUERY, (2, 2), np.ones((4, 12)))
