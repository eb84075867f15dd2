"""Run by ``test_sharded_bank.py`` as each of two processes: ``python two_ranks.py RANK FOLDER``."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from captum_fam import LayerFAM, MemoryBank, SimilarityToSupport
from captum_fam.support import ContrastedSupport, ShardedMemoryBank
from tests.support.banks import random_queries
from tests.support.pictures import Pictures, build, embedder

M, J = 203, 17
RULES = ("predicted", "vote", "all", "nearest", "within-class", "whole-class")


def whole_bank(dtype: torch.dtype = torch.float32, similarity: str = "cosine", **options: Any) -> MemoryBank:
    """203 rows of six classes. Some rows are equal, and the last two classes are on one rank each."""
    embeddings = torch.randn(M, J, generator=torch.Generator().manual_seed(3))
    embeddings[150:170] = embeddings[2]
    embeddings[60] = embeddings[171]
    labels = torch.arange(M) % 4
    labels[[5, 9, 41]] = 4
    labels[[100, 202]] = 5
    return MemoryBank(embeddings.to(dtype), labels, list("uvwxyz"), similarity=similarity, **options)


def shard_of(bank: MemoryBank, rank: int) -> MemoryBank:
    """Rank 1 has few rows, in the middle of those of rank 0."""
    is_mine = (torch.arange(M) >= 90) & (torch.arange(M) < 121) if rank == 1 else torch.ones(M, dtype=torch.bool)
    if rank == 0:
        is_mine[90:121] = False
    options = {"k": bank.k, "neighbors": bank.neighbors, "similarity": bank.similarity_name}
    items = is_mine.nonzero()[:, 0]
    return MemoryBank(bank.embeddings[items], bank.labels[items], bank.class_names, items=items, **options)


def queries_of(rank: int) -> list[Tensor]:
    """Rank 0 has two batches of different sizes, rank 1 has one. A query equals many rows, another is a row."""
    everything = random_queries(11, J)
    everything[1] = whole_bank().embeddings[2]
    everything[8] = whole_bank().embeddings[100]
    return [everything[:3], everything[3:8]] if rank == 0 else [everything[8:]]


def results_of(bank: MemoryBank | ShardedMemoryBank, query: Tensor) -> dict[str, Tensor]:
    """Everything that a bank says of a batch."""
    vote, comparison = bank.classify(query), bank.compare(query)
    scores = comparison.class_scores
    named = {"votes": vote.class_scores, "rows": vote.neighbor_indices, "similarities": vote.similarities}
    weights = [row[row != 0] for row in comparison.support_weights]
    kept = [vectors[row != 0] for vectors, row in zip(comparison.support, comparison.support_weights, strict=True)]
    named |= {"predicted": comparison.predicted, "scores": scores, "score": comparison.score}
    return {**named, "weights": torch.cat(weights), "supports": torch.cat(kept)}


def cases(bank: Any) -> dict[str, Any]:
    """Banks with the same rows and different options."""
    found = {rule: bank.using(neighbors=rule) for rule in RULES}
    found |= {f"every {rule}": found[rule].for_every_class() for rule in RULES if rule != "whole-class"}
    return {**found, "k above a shard": bank.using(k=90), "k above all": bank.using(k=500)}


def excluded(bank: Any, count: int, rule: str) -> Any:
    """Two rows are left out for the first query, the row of the query itself for the others."""
    return bank.using(exclude=[[2, 151]] + [[100]] * (count - 1), neighbors=rule)


def against_gallery(bank: Any, query: Tensor) -> Tensor:
    """The scores minus the mean similarity to all rows, for the rows that count, and without those left out."""
    variants = [bank.using(neighbors="all"), bank.for_every_class(), excluded(bank, len(query), "predicted")]
    return torch.stack([ContrastedSupport(variant, "gallery").compare(query).score for variant in variants])


def work(rank: int, folder: Path) -> None:
    for name, options in {"f32": {}, "f16": {"dtype": torch.float16}, "dot": {"similarity": "dot"}}.items():
        whole = whole_bank(k=7, **options)
        bank = ShardedMemoryBank(shard_of(whole, rank))
        assert len(bank) == M
        assert bank.class_counts == whole.class_counts
        results: dict[str, Any] = {}
        with bank:
            for case, variant in cases(bank).items():
                results[case] = [results_of(variant, query) for query in queries_of(rank)]
            for rule in RULES:
                results[f"without {rule}"] = [
                    results_of(excluded(bank, len(query), rule), query) for query in queries_of(rank)
                ]
            contrasts = [against_gallery(bank, query) for query in queries_of(rank)]
        torch.save(contrasts, folder / f"gallery-{name}-{rank}.pt")
        torch.save(results, folder / f"{name}-{rank}.pt")
        bank.save(folder / f"{name}.safetensors")
    explain(bank_of_pictures(folder, rank), rank, folder)
    fail(rank, folder)


def join_by_torchrun(folder: Path, rank: int) -> None:
    """Without a process group, a bank joins the processes that torchrun has started, and goes on after a kill."""
    dataset = Pictures(broken={7})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        bank = build(dataset, path=folder / "resumed.safetensors", on_error="skip")
    torch.save((bank.embeddings, bank.items, dict(dataset.read), len(warned)), folder / f"resumed-{rank}.pt")
    assert not distributed.is_initialized()


def bank_of_pictures(folder: Path, rank: int) -> ShardedMemoryBank:
    """Both ranks embed the data set, as one bank and in shards, with files and without."""
    for name in (None, "pictures.safetensors"):
        one = build(Pictures(), path=name and folder / name, k=5)
        torch.save((one.embeddings, one.labels, one.items), folder / f"{name}-{rank}.pt")
        options = {"batch_size": 4, "save_every": 2, "progress": False, "k": 5}
        path = name and folder / f"shards-{name}"
        bank = ShardedMemoryBank.from_dataset(embedder(), Pictures(), path, **options)
        again = Pictures()
        if path:
            bank = ShardedMemoryBank.from_dataset(embedder(), again, path, **options)
            assert len(again.read) <= 5  # the first item, and four of this rank
        assert torch.equal(bank.items, one.items)
    return bank


class Conv(nn.Module):
    """A network whose embedding the maps can explain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))


def conv_bank() -> MemoryBank:
    """The bank of the pictures by the embedding of :class:`Conv`."""
    with torch.no_grad():
        return MemoryBank(Conv()(Pictures().images), torch.arange(53) % 4, k=6)


def explain(_: object, rank: int, folder: Path) -> None:
    """Maps and scores of the pictures of this rank; rank 1 has none."""
    net, whole = Conv().eval(), conv_bank()
    mine = torch.arange(53) % 2 == rank
    bank = ShardedMemoryBank(
        MemoryBank(whole.embeddings[mine], whole.labels[mine], whole.class_names, k=6, items=whole.items[mine])
    )
    with bank:
        if rank == 0:
            torch.save(maps_and_scores(net, bank), folder / "maps.pt")


def maps_and_scores(net: Conv, bank: Any) -> tuple[Tensor, Tensor]:
    images = Pictures().images[:4]
    return LayerFAM(net, net.features).attribute(images, support=bank), SimilarityToSupport(net, bank)(images)


def fail(rank: int, folder: Path) -> None:
    """A rank that raises inside of the context lets the other finish, and so does a search that fails."""
    bank = ShardedMemoryBank(shard_of(whole_bank(k=7), rank))
    try:
        with bank:
            if rank == 1:
                raise KeyError("a fault of rank 1")
            bank.classify(random_queries(2, J))
            (folder / "finished").touch()
    except KeyError:
        pass
    with bank:
        if rank == 1:
            bank._shard._search.nearest = None  # type: ignore[assignment]
        else:
            try:
                bank.classify(random_queries(2, J))
            except RuntimeError as error:
                (folder / "failure").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    me, place = int(sys.argv[1]), Path(sys.argv[2])
    join_by_torchrun(place, me)
    distributed.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=me, world_size=2, timeout=timedelta(seconds=60)
    )
    work(me, place)
    distributed.destroy_process_group()
