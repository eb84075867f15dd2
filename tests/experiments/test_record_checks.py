"""Lines of records that are damaged or foreign: named by file and line, and never part of a table."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captum_fam.cli.ranges import between
from captum_fam.experiments.record_checks import RecordRules
from captum_fam.experiments.records import MethodColumns, QueryColumns, UnitRecord
from captum_fam.experiments.result_store import ResultStore

RULES = RecordRules(
    n_units=12,
    n_items=30,
    methods=("fam", "uniform"),
    allowed={"localization": {"iou": between(0, 1)}, "levels": {}},
)


def record(unit: int) -> UnitRecord:
    """Two queries, of which the second is explained by two methods."""
    queries = QueryColumns([4, 29], [0, 3], [1, 3], [0.25, None], [0, 1], {"recall@2": [1, 0]})
    columns = {
        method: MethodColumns([0], [1], [0], {"localization": {"iou": [0.5]}, "levels": {"levels": ["0123"]}})
        for method in ("fam", "uniform")
    }
    return UnitRecord(unit, queries, [1], columns, {7: "corrupt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = ResultStore(tmp_path, {"seed": 0}, rules=RULES)
    for unit in (3, 11):
        store.append(record(unit))
    store.close()
    return tmp_path


def test_right_records_are_read(folder: Path) -> None:
    store = ResultStore(folder, {"seed": 0}, rules=RULES)
    assert store.done == {3, 11}
    assert store.records() == [record(3), record(11)]


def test_a_unit_without_a_query_has_no_columns_to_compare(folder: Path) -> None:
    store = ResultStore(folder, {"seed": 0}, rules=RULES)
    store.append(UnitRecord(0, skipped={5: "missing"}))
    store.close()
    assert ResultStore(folder, {"seed": 0}, rules=RULES).done == {0, 3, 11}


def changed(change: Callable[[Any], object]) -> Callable[[Any], bytes]:
    def line(entry: Any) -> bytes:
        entry = copy.deepcopy(entry)
        change(entry)
        return json.dumps(entry).encode()

    return line


def put(value: object, *path: str | int) -> Callable[[Any], bytes]:
    """The record with another value at a place."""

    def change(entry: Any) -> None:
        for part in path[:-1]:
            entry = entry[part]
        entry[path[-1]] = value

    return changed(change)


FAM = ("explained", "fam")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (lambda _: b"[1,2]", "no record of this version"),
        (lambda _: b'{"a":1}', "no record of this version"),
        (lambda _: b"half a li", "no JSON"),
        (lambda _: b"\x00" * 500, "no JSON"),
        (lambda _: b"\xff\xfe", "no JSON"),
        (lambda _: b"[" * 200_000, "no JSON"),
        (put("0123456789abcdef", "run"), "a record of another run"),
        (put(3, "unit"), "unit 3, which another line has too"),
        (put(999, "unit"), "unit 999, where the run has 12 units"),
        (put(-1, "unit"), "unit -1, where the run has 12 units"),
        (put("2", "unit"), "unit 2, where"),
        (put(30, "queries", "item", 0), "item 30, where the data set has 30 items"),
        (put([1], "queries", "label"), "a column label without 2 entries"),
        (put("wren", "queries", "predicted", 0), "predicted 'wren', which is not the index of a class"),
        (put(2, "queries", "correct", 0), "correct 2, which is not 0 or 1"),
        (put(float("nan"), "queries", "confidence", 0), "confidence nan, which is not a number"),
        (put(1e300, "queries", "numbers", "recall@2", 0), "recall@2 1e"),
        (put({}, "queries", "numbers"), "other columns than the records before"),
        (put([2], "rows"), "explained queries that it does not have"),
        (put([], "rows"), "a column nan without 0 entries"),
        (put({}, "explained"), "other methods than fam, uniform"),
        (put(1e300, *FAM, "kept", "localization", "iou", 0), "fam iou 1e.300, which is not at least 0 and at most 1"),
        (put("x", *FAM, "kept", "localization", "iou", 0), "fam iou 'x', which is not"),
        (put([0.5, 0.5], *FAM, "kept", "localization", "iou"), "a column iou without 1 entries"),
        (put({"peak": [1]}, *FAM, "kept", "peak"), "the measure peak, which is not asked"),
        (put({}, *FAM, "kept", "levels"), "other columns than the records before"),
        (put(None, "explained", "fam"), "no record of this version"),
        (put({"x": "corrupt"}, "skipped"), "no record of this version"),
        (put({"30": "corrupt"}, "skipped"), "item 30, where the data set has 30 items"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_what_to_do(
    line: Callable[[Any], bytes], problem: str, folder: Path
) -> None:
    path = folder / "records-0.jsonl"
    entry = json.loads(path.read_text().splitlines()[1])
    entry["unit"] = 5
    with path.open("ab") as file:
        file.write(line(entry) + b"\n")
    with pytest.raises(ValueError, match=rf"records-0\.jsonl, line 3: {problem}.*Delete the file"):
        ResultStore(folder, {"seed": 0}, rules=RULES)


def test_the_records_of_another_run_do_not_count_although_they_fit(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    store = ResultStore(other, {"seed": 1}, rules=RULES)
    store.append(record(0))
    store.close()
    (folder / "records-1.jsonl").write_bytes((other / "records-0.jsonl").read_bytes())
    with pytest.raises(ValueError, match=r"records-1\.jsonl, line 1: a record of another run"):
        ResultStore(folder, {"seed": 0}, rules=RULES)
