from __future__ import annotations

import io
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam.embedding import Batch, DatasetEmbedder, EmbeddedDataset
from captum_fam.embedding.ranks import Ranks
from tests.embedding.data_sets import Pictures, mean_and_sum


def _embed(dataset: Pictures, folder: Path | None = None, compute: Any = mean_and_sum, **options: Any) -> Any:
    options = {"batch_size": 4, "batches_per_block": 2, **options}
    return DatasetEmbedder(compute, dataset, folder, **options).run()


def _assert_equal(one: EmbeddedDataset, other: EmbeddedDataset) -> None:
    for name in ("mean", "sum"):
        assert torch.equal(one.column(name), other.column(name))
    assert torch.equal(one.items, other.items)
    assert torch.equal(one.labels, other.labels)
    assert one.skipped == other.skipped


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_every_item_has_a_row_in_the_order_of_the_data_set(on_disk: bool, num_workers: int, tmp_path: Path) -> None:
    dataset = Pictures()
    rows = _embed(dataset, tmp_path / "rows" if on_disk else None, num_workers=num_workers)
    assert len(rows) == 23
    torch.testing.assert_close(rows.column("mean"), dataset.images.mean((2, 3)))
    assert rows.items.tolist() == list(range(23))
    assert rows.labels.tolist() == [item % 3 for item in range(23)]
    chosen = torch.tensor([22, 3, 3, 9])
    torch.testing.assert_close(rows.rows("sum", chosen), dataset.images[chosen].sum((1, 2, 3)))


@pytest.mark.parametrize("dies_at", [0, 5, 12, 22])
def test_an_interrupted_run_goes_on_behind_its_last_whole_batch(dies_at: int, tmp_path: Path) -> None:
    broken = {1, 8, 9, 10, 11}  # one item, and a whole batch
    with pytest.raises(KeyboardInterrupt):
        _embed(Pictures(broken, dies_at), tmp_path, on_error="skip")
    rest = Pictures(broken)
    rows = _embed(rest, tmp_path, on_error="skip")
    assert set(rest.read) == set(range(dies_at // 4 * 4, 23)) - broken
    assert max(rest.read.values()) == 1
    _assert_equal(rows, _embed(Pictures(broken), on_error="skip"))


def test_a_finished_folder_is_read_without_a_picture(tmp_path: Path) -> None:
    first = _embed(Pictures(), tmp_path)
    dataset = Pictures(broken=range(23))
    _assert_equal(_embed(dataset, tmp_path), first)


def test_a_failing_write_leaves_the_blocks_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def full(value: Any, path: Path) -> None:
        if path.name != f"{0:010d}.pt":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"No space left.*0\.00 MiB per item"):
            _embed(Pictures(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{0:010d}.pt"]
    rest = Pictures()
    _assert_equal(_embed(rest, tmp_path), _embed(Pictures()))
    assert min(rest.read) == 8


@dataclass(frozen=True)
class _Threads(Ranks):
    """Threads in the place of processes."""

    barrier: threading.Barrier = field(kw_only=True)
    values: list[Any] = field(kw_only=True)

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(60)
        gathered = list(self.values)
        self.barrier.wait(60)
        return gathered


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_shared_by_processes_the_rows_and_batches_are_those_of_one(size: int, in_memory: bool, tmp_path: Path) -> None:
    def of_batch(batch: Batch) -> dict[str, Tensor]:
        # The sum over the batch tells which items were in it.
        return {**mean_and_sum(batch), "batch": batch.images.sum().expand(len(batch.indices))}

    barrier = threading.Barrier(size)
    datasets = [Pictures({2}) for _ in range(size)]
    found: list[Any] = [None] * size
    values: list[Any] = [None] * size

    def work(rank: int) -> None:
        ranks, folder = _Threads(rank, size, barrier=barrier, values=values), None if in_memory else tmp_path
        found[rank] = _embed(datasets[rank], folder, of_batch, on_error="skip", ranks=ranks)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = _embed(Pictures({2}), None, of_batch, on_error="skip")
    for rows in found:
        _assert_equal(rows, alone)
        assert torch.equal(rows.column("batch"), alone.column("batch"))
    assert sum((dataset.read for dataset in datasets), Pictures().read) == dict.fromkeys({*range(23)} - {2}, 1)


def test_nan_is_an_error_or_leaves_the_item_out(tmp_path: Path) -> None:
    dataset = Pictures()
    dataset.images[13] = math.nan
    with pytest.raises(ValueError, match="item 13 contains NaN"):
        _embed(dataset, tmp_path)
    rows = _embed(dataset, tmp_path, on_not_finite="skip")
    assert rows.skipped.keys() == {13}
    assert 13 not in rows.items


def test_of_known_left_out_items_none_is_read_and_no_other_may_be_missing(tmp_path: Path) -> None:
    left_out = {3: "was corrupt"}
    with pytest.raises(ValueError, match=r"dataset: 9\.jpg: corrupt.*restore it"):
        _embed(Pictures({9}), tmp_path, left_out=left_out)
    restored = Pictures()
    rows = _embed(restored, tmp_path, left_out=left_out)
    assert rows.skipped == left_out
    assert set(restored.read) == set(range(8, 23))


@pytest.mark.parametrize("other", ["function", "width", "labels", "length"])
def test_rows_of_another_function_or_data_set_are_noticed(other: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _embed(Pictures(dies_at=20), tmp_path)
    dataset, compute = Pictures(), mean_and_sum
    if other == "function":
        compute = lambda batch: {"mean": batch.images.amax((2, 3))}  # noqa: E731
    elif other == "width":
        compute = lambda batch: {"mean": batch.images.flatten(1)}  # noqa: E731
    elif other == "labels":
        dataset.__class__ = type("Relabeled", (Pictures,), {"__getitem__": lambda self, item: (self.images[item], 1)})
    else:
        dataset.images = dataset.images[:20]
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*delete it"):
        DatasetEmbedder(compute, dataset, tmp_path).check_stored("mean")
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*delete it"):
        DatasetEmbedder(mean_and_sum, Pictures(), tmp_path).check_stored("no such column")
    DatasetEmbedder(mean_and_sum, Pictures(), tmp_path).check_stored("mean")


def test_a_data_set_without_a_usable_item_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset.* 23 items .*0\.jpg: corrupt"):
        _embed(Pictures(range(23)), tmp_path / "rows", on_error="skip")
    assert not (tmp_path / "rows").exists()


def test_the_global_random_numbers_stay_as_they_are() -> None:
    state = torch.get_rng_state()
    _embed(Pictures())
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_progress_bar_is_drawn_in_a_terminal_only(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    stream = Stream()
    monkeypatch.setattr("sys.stderr", stream)
    DatasetEmbedder(mean_and_sum, Pictures(), progress="embedding").run()
    assert ("embedding" in stream.getvalue()) == is_terminal
