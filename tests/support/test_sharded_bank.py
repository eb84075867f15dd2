"""A bank in shards, on two processes, gives what a bank in one piece gives, to the last digit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from captum_fam import MemoryBank
from captum_fam.embedding.ranks import Ranks
from captum_fam.support import ShardedMemoryBank
from captum_fam.support.shard_files import read_part, shard_files
from tests.support import two_ranks
from tests.support.banks import random_bank, random_queries
from tests.support.pictures import Pictures, build, embedder

pytest.importorskip("safetensors", reason="a bank on disk is a safetensors file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes have written."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.raises(KeyboardInterrupt):  # the processes go on with the batches that are there
        build(Pictures(dies_at=29, broken={7}), path=folder / "resumed.safetensors", on_error="skip")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [sys.executable, str(Path(two_ranks.__file__))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("kind", ["f32", "f16", "dot"])
@pytest.mark.parametrize("left_out", [False, True])
def test_neighbors_votes_scores_and_supports_are_those_of_one_piece(kind: str, left_out: bool, folder: Path) -> None:
    options = {"f32": {}, "f16": {"dtype": torch.float16}, "dot": {"similarity": "dot"}}[kind]
    bank = two_ranks.whole_bank(k=7, **options)
    expected = two_ranks.cases(bank)
    for rank in range(2):
        found = torch.load(folder / f"{kind}-{rank}.pt")
        assert len(found) == len(expected) + len(two_ranks.RULES)
        for case in [f"without {rule}" for rule in two_ranks.RULES] if left_out else expected:
            for query, results in zip(two_ranks.queries_of(rank), found[case], strict=True):
                if left_out:
                    variant = two_ranks.excluded(bank, len(query), case.removeprefix("without "))
                else:
                    variant = expected[case]
                for name, value in two_ranks.results_of(variant, query).items():
                    assert torch.equal(results[name], value), (case, rank, name)


@pytest.mark.parametrize("kind", ["f32", "f16", "dot"])
def test_the_mean_over_all_rows_is_that_of_one_piece(kind: str, folder: Path) -> None:
    options = {"f32": {}, "f16": {"dtype": torch.float16}, "dot": {"similarity": "dot"}}[kind]
    bank = two_ranks.whole_bank(k=7, **options)
    for rank in range(2):
        found = torch.load(folder / f"gallery-{kind}-{rank}.pt")
        for query, scores in zip(two_ranks.queries_of(rank), found, strict=True):
            # The ranks add up other blocks of rows than one process does.
            torch.testing.assert_close(scores, two_ranks.against_gallery(bank, query), rtol=1e-5, atol=1e-5)


def test_equally_similar_rows_come_in_the_order_of_the_whole_bank(folder: Path) -> None:
    (rows, _) = (results["rows"] for results in torch.load(folder / "f32-0.pt")["predicted"])
    # Row 2 and the rows 150..169, of both ranks, are equal; the query is row 2.
    assert rows[1].tolist() == [2, 150, 151, 152, 153, 154, 155]


def test_maps_and_scores_are_those_of_one_piece_and_a_rank_may_have_no_query(folder: Path) -> None:
    maps, scores = torch.load(folder / "maps.pt")
    expected_maps, expected_scores = two_ranks.maps_and_scores(two_ranks.Conv().eval(), two_ranks.conv_bank())
    assert torch.equal(maps, expected_maps)
    assert torch.equal(scores, expected_scores)


def test_ranks_share_a_data_set_and_each_gets_the_whole_bank(folder: Path) -> None:
    alone = build(Pictures())
    for name in ("None", "pictures.safetensors"):
        for rank in range(2):
            embeddings, labels, items = torch.load(folder / f"{name}-{rank}.pt")
            assert torch.equal(embeddings, alone.embeddings)
            assert torch.equal(labels, alone.labels)
            assert torch.equal(items, alone.items)
    assert not list(folder.glob("*.parts"))


def test_processes_of_torchrun_go_on_with_an_interrupted_bank(folder: Path) -> None:
    with pytest.warns(UserWarning, match="could not be used: 1"):
        alone = build(Pictures(broken={7}), on_error="skip")
    embeddings, items, read, warned = zip(
        *(torch.load(folder / f"resumed-{rank}.pt") for rank in range(2)), strict=True
    )
    for rank in range(2):
        assert torch.equal(embeddings[rank], alone.embeddings)
        assert torch.equal(items[rank], alone.items)
    assert warned == (1, 0)
    # Each remaining item is read once; every process reads the first items, to compare them with the stored rows.
    rest = [{item for item in one if item > 3} for one in read]
    assert rest[0] | rest[1] == set(range(28, 53))
    assert not rest[0] & rest[1]
    assert rest[0]
    assert rest[1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_files_of_shards_are_read_by_any_number_of_ranks(size: int, folder: Path) -> None:
    whole = two_ranks.whole_bank()
    parts = []
    for rank in range(size):
        path = folder / "f32.safetensors"
        stored = read_part(path, shard_files(path), Ranks(rank, size)).tensors
        assert abs(len(stored["items"]) - two_ranks.M / size) < 1
        parts.append(stored)
    items = torch.cat([part["items"] for part in parts])
    assert torch.equal(items.sort().values, torch.arange(two_ranks.M))
    assert torch.equal(torch.cat([part["embeddings"] for part in parts]), whole.embeddings[items])
    assert torch.equal(torch.cat([part["labels"] for part in parts]), whole.labels[items])


def test_a_saved_bank_of_shards_is_read_in_one_process(folder: Path) -> None:
    bank = ShardedMemoryBank.load(folder / "f32.safetensors", neighbors="vote")
    whole, query = two_ranks.whole_bank(k=7, neighbors="vote"), random_queries(5, two_ranks.J)
    assert (bank.k, bank.neighbors, bank.class_counts) == (7, "vote", whole.class_counts)
    for name, value in two_ranks.results_of(whole, query).items():
        assert torch.equal(two_ranks.results_of(bank, query)[name], value)


def test_a_bank_in_one_piece_is_read_as_a_bank_in_shards(tmp_path: Path) -> None:
    random_bank(k=3).save(tmp_path / "bank.safetensors")
    bank, query = ShardedMemoryBank.load(tmp_path / "bank.safetensors"), random_queries()
    assert torch.equal(bank.classify(query).class_scores, random_bank(k=3).classify(query).class_scores)


@pytest.mark.parametrize("names", [["one-1-of-2"], ["one-1-of-1", "one-1-of-2", "one-2-of-2"]])
def test_files_that_are_missing_or_too_many_are_refused(names: list[str], tmp_path: Path) -> None:
    for name in names:
        random_bank(rows=20).save(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"not all shards|shards of 2 different banks"):
        ShardedMemoryBank.load(tmp_path / "one.safetensors")
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors: no such memory bank"):
        ShardedMemoryBank.load(tmp_path / "two.safetensors")


def test_a_rank_that_fails_does_not_hang_the_other(folder: Path) -> None:
    assert (folder / "finished").exists()
    assert (folder / "failure").read_text().startswith("rank 1 could not search: TypeError")


def test_one_process_needs_no_process_group() -> None:
    bank, query = random_bank(k=9), random_queries()
    with ShardedMemoryBank(bank) as shards:
        for neighbors in two_ranks.RULES:
            one, other = (each.using(neighbors=neighbors).compare(query) for each in (bank, shards))
            assert torch.equal(one.score, other.score)
    assert repr(shards).startswith("ShardedMemoryBank(503 x 17, of which 503 on rank 0 of 1")


def test_a_data_set_becomes_shards_in_one_process(tmp_path: Path) -> None:
    whole = build(Pictures(), k=3)
    for path in (None, tmp_path / "bank.safetensors"):
        bank = ShardedMemoryBank.from_dataset(embedder(), Pictures(), path, batch_size=4, k=3, progress=False)
        assert bank.class_names == whole.class_names
        assert torch.equal(bank.classify(whole.embeddings[:5]).class_scores, whole.classify(whole.embeddings[:5])[1])
    assert [file.name for file in tmp_path.iterdir()] == ["bank-1-of-1.safetensors"]
    other = Pictures()
    other.images = 1 - other.images
    with pytest.raises(ValueError, match=r"bank\.safetensors was made with another model or dataset"):
        ShardedMemoryBank.from_dataset(embedder(), other, tmp_path / "bank.safetensors", progress=False)


class _Gathering(Ranks):
    """Rank 0 of two, whose other rank says what the test says."""

    other: object

    def gather(self, value):  # type: ignore[no-untyped-def]
        return [value, self.other(value) if callable(self.other) else self.other]

    def apart(self) -> Ranks:
        return self


def _ranks(other: object) -> Ranks:
    ranks = _Gathering(0, 2)
    object.__setattr__(ranks, "other", other)
    return ranks


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda fact: {**fact, "options": {**fact["options"], "k": 3}},
            ValueError,
            "k is 200 on rank 0 and 3 on rank 1",
        ),
        (lambda fact: {**fact, "options": {**fact["options"], "features": 9}}, ValueError, "features is 17 .* 9"),
        (lambda fact: fact, ValueError, "ranks 0 and 1 hold the same rows"),
        (lambda fact: {**fact, "items": torch.tensor([7, 900])}, ValueError, "item 7 is on ranks 0 and 1; pass items="),
        (lambda fact: "shard must be a MemoryBank", TypeError, "rank 1: shard must be a MemoryBank"),
    ],
)
def test_shards_that_are_no_parts_of_one_bank_are_refused(change, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        ShardedMemoryBank(random_bank(), _ranks(change))


def test_what_a_rank_cannot_ask_is_refused_before_it_asks() -> None:
    bank = ShardedMemoryBank(random_bank())
    for query, message in (
        (torch.empty(0, 17), r"a rank without queries calls finish\(\)"),
        (torch.ones(2, 5), "17 features but the query to 5"),
        (torch.full((1, 17), torch.nan), "query contains NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.classify(query)
    with pytest.raises(ValueError, match='use neighbors="within-class"'):
        bank.using(neighbors="whole-class").for_every_class()
    with pytest.raises(ValueError, match="similarity of the support is"):
        bank.compare(random_queries(), similarity=MemoryBank(torch.eye(2), [0, 1], similarity="dot").similarity)


def test_torchrun_without_a_process_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"init_process_group\(\) first"):
        ShardedMemoryBank.from_dataset(embedder(), Pictures())
