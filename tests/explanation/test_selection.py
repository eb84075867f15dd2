"""Some queries of an explanation are an explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import Explanation, SupportSet, explain
from captum_fam.explanation.reading.thumbnails import shown_pictures
from tests.explanation.by_hand import picture, small_model

pytestmark = pytest.mark.filterwarnings("ignore:the map explains", "ignore:more than half of a map")
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def why(model: nn.Module, support: SupportSet, many_queries: Tensor) -> Explanation:
    return explain(model, many_queries, support, layer="features", foil="others", names=NAMES, sides="both", top=2)


def assert_rows(part: Explanation, whole: Explanation, rows: list[int]) -> None:
    assert len(part) == len(rows)
    assert part.names == tuple(whole.names[row] for row in rows)
    for name in ("maps", "attributions", "scores", "predicted", "target", "plain_scores", "support_rows"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
    for name in ("contributions", "convergence_delta", "coverage"):
        value = getattr(whole, name)
        assert getattr(part, name) is None if value is None else torch.equal(getattr(part, name), value[rows])
    for share, values in (whole.shares or {}).items():
        assert torch.equal(part.shares[share], values[rows])  # type: ignore[index]
    assert part.pairs == tuple(whole.pairs[row] for row in rows)  # type: ignore[index]
    assert (part.method, part.about, part.notes, part.class_names) == (
        whole.method,
        whole.about,
        whole.notes,
        whole.class_names,
    )
    for index, row in enumerate(rows):
        assert part.score_text(index) == whole.score_text(row)
        assert part.supports_of(index) == whole.supports_of(row)
        for one, other in zip(shown_pictures(part, index), shown_pictures(whole, row), strict=True):
            assert [np.asarray(image).tolist() for image in one] == [np.asarray(image).tolist() for image in other]
    assert len(part.beside) == len(whole.beside)
    for one, other in zip(part.beside, whole.beside, strict=True):
        assert_rows(one, other, rows)


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        (0, [0]),
        (-1, [4]),
        (np.int64(2), [2]),
        (torch.tensor(3), [3]),
        ("d", [3]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        (slice(7, 9), []),
    ],
    ids=str,
)
def test_a_part_has_the_values_of_its_queries(key: Any, rows: list[int], why: Explanation) -> None:
    assert_rows(why[key], why, rows)


def test_parts_of_parts_and_loops(why: Explanation) -> None:
    assert_rows(why[1:5][1:3]["c"], why, [2])
    alone = list(why)
    assert [one.names for one in alone] == [(name,) for name in NAMES]
    for row, one in enumerate(alone):
        assert_rows(one, why, [row])
    assert [one.names for one in reversed(why)] == [(name,) for name in reversed(NAMES)]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (5, IndexError, "index 5 is out of range for an explanation of 5 queries"),
        (-6, IndexError, "index -6 is out of range"),
        ("f", KeyError, "no query has the name 'f'; the names are a, b, c, d, e"),
        (1.0, TypeError, "indexed by the position, the name or a slice of queries, got float"),
        ([0, 1], TypeError, "got list"),
    ],
)
def test_what_is_no_query_is_refused(key: Any, error: type[Exception], message: str, why: Explanation) -> None:
    with pytest.raises(error, match=message):
        why[key]


def test_explanations_are_equal_only_to_themselves(why: Explanation) -> None:
    again = why[:]
    assert why == why
    assert again != why
    assert len({why, again}) == 2


def test_pictures_and_left_out_supports_follow_their_queries() -> None:
    photos = [picture(0), picture(1), picture(2)]
    support = {"jay": [picture(5), photos[1]], "wren": [picture(6), picture(7)]}
    why = explain(small_model(), photos, support, target="jay", foil=[picture(8), photos[2]])
    for row in range(3):
        part = why[row]
        assert isinstance(part.images, list)
        assert np.array_equal(np.asarray(part.images[0]), np.asarray(why.images[row]))
        supports, foils = shown_pictures(part, 0)
        assert len(supports) == (1 if row == 1 else 2)
        assert len(foils) == (1 if row == 2 else 2)
