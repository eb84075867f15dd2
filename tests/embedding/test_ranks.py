"""A single process is a rank too; how several ranks talk is tested where two processes work together."""

from __future__ import annotations

import pytest

from captum_fam.embedding.ranks import Ranks, current_ranks, every_rank, joined


def test_every_item_belongs_to_one_rank() -> None:
    parts = [Ranks(rank, 3).share(range(8)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_one_process_talks_to_itself_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = current_ranks()
    assert ranks == Ranks()
    assert ranks.gather("a") == ["a"]
    assert ranks.exchange(["a"]) == ["a"]
    assert ranks.apart() is ranks
    ranks.wait()
    for context in (every_rank(), joined("cpu")):
        with context as found:
            assert found == Ranks()


def test_the_error_of_the_first_process_is_raised() -> None:
    done: list[int] = []
    Ranks().only_first(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        Ranks().only_first(lambda: 1 // 0)
