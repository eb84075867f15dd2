"""k-NN classification by a memory bank, and maps of the queries for the neighbors that decided."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.embedding.batches import Batch, BatchLoader
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.features import extract, not_finite
from captum_fam.experiments.measures import Panel, jsonable
from captum_fam.experiments.protocols.base import Example, ModelProtocol, cached, fingerprint, labels_of
from captum_fam.experiments.records import Record
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import Foil, MapMethod, Maps, PairedScores, ScoresFor, check_no_positions
from captum_fam.similarity import get_similarity
from captum_fam.support.memory_bank import Backend, BankSupport, MemoryBank, Neighbors, Vote


class Contrastive(ModelProtocol):
    """The paper's section V-C. Means are taken over the correctly classified queries.

    Images are read, classified, explained and forgotten batch by batch. A foil is made of the neighbors of the
    other classes (``"others"``) or of the class with the next most votes (``"runner-up"``), which also is what
    ``swap`` compares with. A query whose neighbors are of one class has nothing to be told from: methods with a foil
    give it a map of NaN, which is counted and has no part in their means, and it has no ``swap``.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: the queries, ``(image, label, boxes)``, images as the model takes them.
        bank: a memory bank of the model, or the dataset to make one of. A query whose file is in that dataset too is
            left out of its own neighbors. The rows of a memory bank have no files: it must not hold the queries,
            and a warning says where it seems to.
        panel: methods and measures.
        k: neighbors that vote.
        temperature: of the vote.
        neighbors: which rows of the bank stand for the class in Eq. 11: see :class:`~captum_fam.MemoryBank`.
        backend: of the search in a bank that is made of a dataset; a memory bank has its own.
        explain: the ``"correct"`` queries for their class, or ``"all"`` for the predicted one.
        batch_size: images that are worked on at once; one unit of the run.
        num_workers: processes that read images.

    Raises:
        ValueError: for a memory bank of another similarity than the model's, or of other classes than the dataset's;
            for k, temperature, neighbors or a backend that :class:`~captum_fam.MemoryBank` does not take.
        ImportError: for the backend ``"faiss"`` without FAISS.
    """

    name = "contrastive"

    def __init__(
        self,
        model: TwoPartModel,
        dataset: Dataset[Any],
        bank: MemoryBank | Dataset[Any],
        panel: Panel | None = None,
        *,
        k: int = 200,
        temperature: float = 0.07,
        neighbors: Neighbors = "predicted",
        backend: Backend = "torch",
        explain: Literal["correct", "all"] = "correct",
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(model, dataset, panel, batch_size=batch_size, num_workers=num_workers)
        check_no_positions(self.panel.methods)
        if isinstance(bank, MemoryBank):
            _check_bank(bank, model, dataset)
        self.bank = bank
        self.k = k
        self.temperature = temperature
        self.neighbors = neighbors
        self.backend = bank.backend if isinstance(bank, MemoryBank) else backend
        self.explain = explain
        # Any bank refuses these settings, or lacks FAISS, as this one does; it does so before there are files.
        options: dict[str, Any] = {"similarity": model.similarity, "neighbors": neighbors, "backend": self.backend}
        MemoryBank(torch.ones(1, 1), [0], k=k, temperature=temperature, **options).classify(torch.ones(1, 1))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        own = ("k", "temperature", "neighbors", "backend", "explain")
        bank = _bank_settings(self.bank) if isinstance(self.bank, MemoryBank) else fingerprint(self.bank)
        return {
            **super().settings(),
            **{name: getattr(self, name) for name in own},
            "bank": bank,
            "leave_one_out": any(item >= 0 for item in self._items_in_bank),
        }

    def prepare(self, folder: Path, ranks: Ranks, progress: bool) -> None:
        """The memory bank, kept in ``bank.safetensors`` beside the results."""
        super().prepare(folder, ranks, progress)
        bank = self.bank
        if not isinstance(bank, MemoryBank):
            bank = self._make_bank(bank, folder, ranks, progress)
        row_of = {item: row for row, item in enumerate(bank.items.tolist())}
        self._own_rows = torch.tensor([row_of.get(item, -1) for item in self._items_in_bank], dtype=torch.int64)
        if bank.skipped and ranks.is_first:
            item, reason = next(iter(bank.skipped.items()))
            warnings.warn(
                f"left out of the bank, because they could not be used: {len(bank.skipped)}, the first is item {item}: "
                f"{reason}",
                stacklevel=2,
            )
        self._warned = False
        self._bank = bank.to(ranks.device).using(k=self.k, temperature=self.temperature, neighbors=self.neighbors)

    def _make_bank(self, dataset: Dataset[Any], folder: Path, ranks: Ranks, progress: bool) -> MemoryBank:
        """The bank of a dataset, by all processes, or what an earlier run made of it."""
        path = folder.parent / "bank.safetensors"
        made = path.is_file()
        # All have looked before any writes.
        ranks.wait()
        if not made:
            features = extract(
                self.model,
                dataset,
                folder / "bank",
                (),
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                ranks=ranks,
                progress=progress,
                name="memory bank",
            )
            if ranks.is_first:
                names = getattr(dataset, "class_names", None) or getattr(dataset, "classes", None)
                bank = MemoryBank(
                    features.embeddings,
                    features.labels,
                    names,
                    similarity=self.model.similarity,
                    items=features.items,
                )
                bank.skipped = features.skipped
                bank.save(path)
            ranks.wait()
        return MemoryBank.load(path, backend=self.backend)

    def run(self, units: Sequence[int]) -> Iterator[Record]:
        """The records of these batches, which are read ahead where there are workers."""
        waiting = list(units)
        items = [item for unit in units for item in self._items(unit)]
        loader = BatchLoader(self.dataset, items, self.batch_size, self.num_workers, on_error="skip")
        for batch in loader:
            unit = int(batch.indices[0]) // self.batch_size
            while waiting[0] < unit:
                yield self._record(waiting.pop(0), loader.skipped)
            record = self._record(waiting.pop(0), loader.skipped)
            for part in self._parts(batch):
                self._explain(part, record)
            yield record
        for unit in waiting:
            yield self._record(unit, loader.skipped)

    @property
    def bank_skipped(self) -> dict[int, str]:
        """Images of the bank's dataset that could not be used; they have no row."""
        return self._bank.skipped

    def _items(self, unit: int) -> range:
        n_items = len(self.dataset)  # type: ignore[arg-type]
        return range(unit * self.batch_size, min((unit + 1) * self.batch_size, n_items))

    def _record(self, unit: int, skipped: dict[int, str]) -> Record:
        own = {str(item): skipped[item] for item in self._items(unit) if item in skipped}
        return {"unit": unit, "queries": {}, "explained": {}, "skipped": own}

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The queries that are in the bank, and those that are not: a batch excludes rows for all of it or none."""
        inside = self._own_rows[batch.indices] >= 0
        for chosen in (inside, ~inside):
            if chosen.any():
                boxes = tuple(box for box, own in zip(batch.boxes, chosen.tolist(), strict=False) if own)
                yield Batch(batch.indices[chosen], batch.images[chosen], batch.labels[chosen], boxes)

    def _explain(self, batch: Batch, record: Record) -> None:
        """Add a part of a batch to its record."""
        activation = self.model.activation(batch.images)
        embedding = self._embed(activation)
        finite = (embedding.isfinite().all(1) & activation.flatten(1).isfinite().all(1)).cpu()
        for item in batch.indices[~finite].tolist():
            record["skipped"][str(item)] = not_finite(self.dataset, item)
        if not finite.any():
            return
        items, labels = batch.indices[finite], batch.labels[finite]
        query = _Query(
            activation[finite.to(activation.device)], embedding[finite.to(activation.device)], self._rows(items)
        )
        vote = self._bank.using(exclude=query.exclude).classify(query.embedding)
        predicted = vote.predicted.cpu()
        correct = predicted == labels
        self._warn_of_leak(query, vote)
        before = len(record["queries"].get("item", ()))
        _extend(
            record["queries"],
            {
                "item": jsonable(items),
                "label": jsonable(labels),
                "predicted": jsonable(predicted),
                "confidence": jsonable(vote.class_scores.amax(1)),
                "correct": jsonable(correct),
            },
        )
        chosen = (correct if self.explain == "correct" else torch.ones_like(correct)).nonzero()[:, 0]
        if not len(chosen):
            return
        query, vote = query.take(chosen), _take(vote, chosen.to(activation.device))
        scores_for, has_other = self._scores(query, vote, vote.predicted)
        target = torch.arange(len(chosen), device=activation.device)
        kept = finite.nonzero()[:, 0][chosen]

        alone = ~has_other[:, None, None, None]

        def maps_of(method: MapMethod) -> Maps:
            maps, coverage = self.account(method, scores_for, query.activation, target)
            return Maps(maps.masked_fill(alone, torch.nan) if method.foil else maps, coverage)

        def pairs(method: MapMethod, maps: Tensor) -> tuple[Tensor, Tensor]:
            others = self.maps(method, scores_for, query.activation, target + len(target))
            return maps, others.masked_fill(alone, torch.nan)

        values = self.panel.values(
            maps_of,
            self.size,
            [batch.boxes[row] for row in kept.tolist()] if batch.boxes else [],
            self.perturbable(batch.images[kept], query.activation, scores_for(None), target),
            pairs,
        )
        _extend(record["explained"], {"row": jsonable(chosen + before), **values})

    def example(self, record: Record, query: int, label: int) -> Example:
        """One query and its neighbors of a class."""
        item = record["queries"]["item"][query]
        activation = self.model.activation(self.dataset[item][0][None])
        one = _Query(activation, self._embed(activation), self._rows(torch.tensor([item])))
        vote = self._bank.using(exclude=one.exclude).classify(one.embedding)
        target = torch.tensor([label], device=activation.device)
        support = None
        if not isinstance(self.bank, MemoryBank):
            chosen = self._support(one, vote, target)
            nearest = chosen.indices[0][chosen.weights[0] > 0][0]
            support = self.image(int(self._bank.items[nearest]), self.bank)
        scores_for, has_other = self._scores(one, vote, target)
        return Example(self.image(item), activation, scores_for, torch.zeros_like(target), support, bool(has_other))

    def has_support(self, record: Record, query: int, label: int) -> bool:
        """Whether the bank has a row of a class, other than the query's own."""
        rows = (self._bank.labels == label).nonzero()[:, 0]
        return bool((rows != self._own_rows[record["queries"]["item"][query]]).any())

    @torch.no_grad()
    def _embed(self, activation: Tensor) -> Tensor:
        embedding: Tensor = self.model.tail(activation)
        return embedding

    def _rows(self, items: Tensor) -> Tensor | None:
        """The queries' own rows of the bank, which are no neighbors of theirs; None where they are not in it."""
        rows = self._own_rows[items]
        return None if (rows < 0).any() else rows.to(self._bank.items.device)

    @cached_property
    def _items_in_bank(self) -> list[int]:
        """Of every query its position in the dataset of the bank, -1 where it is not there."""
        n_items = len(self.dataset)  # type: ignore[arg-type]
        if self.bank is self.dataset:
            return list(range(n_items))
        item_of = {path: item for item, path in enumerate(_paths(self.bank))}
        return [item_of.get(path, -1) for path in _paths(self.dataset)] or [-1] * n_items

    def _warn_of_leak(self, query: _Query, vote: Vote) -> None:
        """Say once that a memory bank, whose rows have no files, seems to hold the queries."""
        if not isinstance(self.bank, MemoryBank) or self._warned:
            return
        nearest = self._bank.embeddings[vote.neighbor_indices[:, 0]]
        if (torch.cosine_similarity(query.embedding.double(), nearest.double()) >= 1 - 1e-6).any():
            self._warned = True
            warnings.warn(
                "bank: it seems to hold the queries: some have the very embedding of a row, which then votes for "
                "them. Use a bank of other images, or give its images as a dataset: queries are left out of that",
                stacklevel=2,
            )

    def _support(self, query: _Query, vote: Vote, target: Tensor) -> BankSupport:
        """What stands for the target; a class that has no neighbor is looked up in the whole bank."""
        bank = self._bank.using(exclude=query.exclude)
        members = self._bank.labels[vote.neighbor_indices] == target[:, None]
        if not members.any(1).all() and self.neighbors in ("predicted", "vote"):
            bank = bank.using(exclude=query.exclude, neighbors="within-class")
        return bank.support(query.embedding, target, vote)

    def _scores(self, query: _Query, vote: Vote, target: Tensor) -> tuple[ScoresFor, Tensor]:
        """Scores whose class b is the target of query b, and B + b its runner-up; and whether there is one."""
        labels = self._bank.labels[vote.neighbor_indices]
        of_target = labels == target[:, None]
        second = vote.class_scores.scatter(1, target[:, None], -1).argmax(1)
        of_second = labels == second[:, None]
        support = self._support(query, vote, target)
        rows = torch.cat([support.indices.flatten(), vote.neighbor_indices.flatten()]).unique()

        def spread(indices: Tensor, weights: Tensor) -> Tensor:
            at = torch.searchsorted(rows, indices)
            return weights.new_zeros(len(indices), len(rows)).scatter_add_(1, at, weights)

        def mean_of(members: Tensor) -> Tensor:
            count = members.sum(1, keepdim=True).clamp_min(1)
            return spread(vote.neighbor_indices, members.to(vote.similarities) / count)

        classes, runner_up = spread(support.indices, support.weights), mean_of(of_second)
        foils: dict[Foil | None, Tensor | None] = {
            None: None,
            "others": torch.cat([mean_of(~of_target), mean_of(~of_second)]),
            "runner-up": torch.cat([runner_up, classes]),
        }
        weights = torch.cat([classes, runner_up])
        embeddings = self._bank.embeddings[rows].float()
        scores_for = cached(
            lambda foil: PairedScores(self.model.tail, embeddings, weights, foils[foil], self.model.similarity)
        )
        return scores_for, of_second.any(1)


@dataclass(frozen=True)
class _Query:
    activation: Tensor
    embedding: Tensor
    exclude: Tensor | None

    def take(self, rows: Tensor) -> _Query:
        rows = rows.to(self.activation.device)
        exclude = None if self.exclude is None else self.exclude[rows]
        return _Query(self.activation[rows], self.embedding[rows], exclude)


def _paths(images: Dataset[Any] | MemoryBank) -> list[Path]:
    """The files of a dataset that knows them."""
    return [record.path.resolve() for record in getattr(images, "records", ())]


def _bank_settings(bank: MemoryBank) -> dict[str, Any]:
    """What tells one memory bank from another."""
    digest = hashlib.sha256()
    for tensor in (bank.labels, bank.embeddings):
        for block in tensor.split(1 << 16):
            digest.update(block.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {"rows": len(bank), "similarity": repr(bank.similarity), "sha256": digest.hexdigest()}


def _check_bank(bank: MemoryBank, model: TwoPartModel, dataset: Dataset[Any]) -> None:
    if repr(bank.similarity) != repr(get_similarity(model.similarity)):
        raise ValueError(
            f"bank: it finds its neighbors by {bank.similarity_name or bank.similarity}, the model decides by "
            f"{model.similarity}; make it anew with the model's similarity, or set that of the model (--similarity)"
        )
    names = getattr(dataset, "class_names", None) or getattr(dataset, "classes", None)
    n_classes = len(names) if names else max(bank.n_classes, int(labels_of(dataset).max()) + 1)
    if bank.n_classes != n_classes:
        raise ValueError(
            f"bank: it has {bank.n_classes} classes, the dataset {n_classes}; use a bank of images of the same classes"
        )


def _extend(columns: dict[str, list[Any]], further: dict[str, list[Any]]) -> None:
    for name, column in further.items():
        columns.setdefault(name, []).extend(column)


def _take(vote: Vote, rows: Tensor) -> Vote:
    return Vote(*(part[rows] for part in vote))
