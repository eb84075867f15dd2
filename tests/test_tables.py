from __future__ import annotations

import pytest

from captum_fam._tables import align_columns


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    rows = [["method", "n", ""], ["fam", "120", "note"], ["similarity-cam", "7", ""]]
    assert align_columns(rows) == [
        "method          n",
        "fam             120  note",
        "similarity-cam  7",
    ]
    assert align_columns(rows, "<><") == [
        "method            n",
        "fam             120  note",
        "similarity-cam    7",
    ]


@pytest.mark.parametrize(("rows", "align"), [([["a", "b"], ["c"]], ""), ([["a", "b"]], "<")])
def test_rows_of_different_lengths_are_refused(rows: list[list[str]], align: str) -> None:
    with pytest.raises(ValueError, match="argument"):
        align_columns(rows, align)
