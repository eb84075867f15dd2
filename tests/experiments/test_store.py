"""Results that survive: whole lines, one a unit, whatever happens to the process."""

from __future__ import annotations

import errno
import json
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.records import MethodColumns, QueryColumns, UnitRecord
from captum_fam.experiments.result_store import ResultStore


def _record(unit: int, value: float | str = 0.5) -> UnitRecord:
    """A unit with one query, whose item is the square of the unit."""
    queries = QueryColumns([unit * unit], [0], [1], [value], [0], {"recall@2": [1]})
    columns = MethodColumns([0], [1], [0], {"swap": {"swap": [None]}})
    return UnitRecord(unit, queries, [0], {"fam": columns}, {7: "corrupt"})


def _fill(folder: Path, units: list[int], ranks: Ranks | None = None) -> None:
    store = ResultStore(folder, {"seed": 0}, ranks)
    for unit in units:
        store.append(_record(unit))
    store.close()


def test_records_come_back_sorted_by_unit(tmp_path: Path) -> None:
    _fill(tmp_path, [2, 0, 1])
    store = ResultStore(tmp_path, {"seed": 0})
    assert store.done == {0, 1, 2}
    assert store.records() == [_record(0), _record(1), _record(2)]


def test_a_line_that_was_being_written_does_not_count_and_is_replaced(tmp_path: Path) -> None:
    _fill(tmp_path, [0, 1, 2])
    path = tmp_path / "records-0.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert ResultStore(tmp_path, {"seed": 0}).done == {0, 1}
    _fill(tmp_path, [2, 3])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["unit"] for line in lines] == [0, 1, 2, 3]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    _fill(tmp_path, [0])
    path = tmp_path / "records-0.jsonl"
    with path.open("ab") as file:
        file.write(b'{"unit":1,"value":"' + b"x" * 200_000)
    _fill(tmp_path, [1])
    assert [record.unit for record in ResultStore(tmp_path, {"seed": 0}).records()] == [0, 1]
    assert path.stat().st_size < 1000


def test_a_file_of_nothing_but_a_torn_line_is_emptied(tmp_path: Path) -> None:
    _fill(tmp_path, [])
    (tmp_path / "records-0.jsonl").write_bytes(b'{"unit":0')
    _fill(tmp_path, [0])
    assert [record.unit for record in ResultStore(tmp_path, {"seed": 0}).records()] == [0]


def test_the_records_of_all_ranks_are_read_whatever_their_number_now(tmp_path: Path) -> None:
    for rank in range(3):
        _fill(tmp_path / str(rank), [rank])
        written = tmp_path / str(rank) / "records-0.jsonl"
        written.rename(tmp_path / f"records-{rank}.jsonl")
    _fill(tmp_path, [])
    assert ResultStore(tmp_path, {"seed": 0}).done == {0, 1, 2}


def test_results_of_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    _fill(tmp_path, [0])
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        ResultStore(tmp_path, {"seed": 1})


def test_settings_compare_as_json_has_them(tmp_path: Path) -> None:
    ResultStore(tmp_path, {"ks": (1, 2)})
    assert ResultStore(tmp_path, {"ks": [1, 2]}).done == frozenset()


def test_a_full_disk_leaves_every_whole_record_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullAfter(FileIO):
        """Takes a part of the third record, then nothing."""

        # A line also has the identity of its run.
        room = len(json.dumps({"run": "0" * 16, **_record(0).to_json()}, separators=(",", ":"))) * 2 + 10

        def write(self, data: Any) -> int:
            if self.room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = super().write(bytes(data[: self.room]))
            self.room -= written
            return written

    monkeypatch.setattr("captum_fam.experiments.result_store.FileIO", FullAfter)
    store = ResultStore(tmp_path, {"seed": 0})
    store.append(_record(0))
    store.append(_record(1))
    with pytest.raises(OSError, match=r"cannot be written: No space left on device") as caught:
        store.append(_record(2))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    text = (tmp_path / "records-0.jsonl").read_text()
    assert [json.loads(line)["unit"] for line in text.splitlines()] == [0, 1]
    assert text.endswith("\n")


def test_nan_is_never_written(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, {})
    with pytest.raises(ValueError, match="JSON"):
        store.append(_record(0, float("nan")))
    store.close()
    assert store.records() == []
