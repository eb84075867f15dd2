"""k-NN classification by a memory bank, and maps of the queries for the neighbors that decided."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.cli.options import option
from captum_fam.embedding import Batch, BatchLoader, reason_not_finite
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.protocols.base import Example, PreparedProtocol, Protocol, cached
from captum_fam.experiments.protocols.query_bank import (
    bank_settings,
    check_bank,
    items_in_bank,
    make_bank,
    seems_to_hold,
)
from captum_fam.experiments.protocols.registry import register_protocol
from captum_fam.experiments.records import QueryColumns, UnitRecord, jsonable
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import Foil, Maps, ScoresFor, TableMethod
from captum_fam.functional import first_largest, rounding_of_supports
from captum_fam.support import BankRows, MemoryBank, SimilarityToSupport, Vote, WeightedSupport
from captum_fam.support.memory_bank import NeighborRule
from captum_fam.support.search import Backend


@register_protocol("contrastive")
@dataclass(eq=False, kw_only=True)
class Contrastive(Protocol):
    """The paper's section V-C. Means are taken over the correctly classified queries.

    Images are read, classified, explained and forgotten batch by batch. A foil is made of the neighbors of the
    other classes (``"others"``) or of the class with the next most votes (``"runner-up"``), which also is what
    ``swap`` compares with. A query whose neighbors are of one class has nothing to be told from: methods with a foil
    give it a map of NaN, which is counted and has no part in their means, and it has no ``swap``.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: the queries, ``(image, label, boxes)``, images as the model takes them.
        panel: methods and measures.
        bank: a memory bank of the model, or the dataset to make one of. A query whose file is in that dataset too is
            left out of its own neighbors. The rows of a memory bank have no files: it must not hold the queries,
            and a warning says where it seems to. Default: the dataset of the queries.
        k: neighbors that vote. Default: 200.
        temperature: of the vote. Default: 0.07.
        neighbors: which rows of the bank stand for the class in Eq. 11: see :class:`~captum_fam.MemoryBank`. Default:
            those of the predicted class among the k nearest.
        backend: of the search in a bank that is made of a dataset; a memory bank has its own. Default: ``"torch"``.
        explain: the ``"correct"`` queries for their class, or ``"all"`` for the predicted one. Default: the correct.
        batch_size: images that are worked on at once; one unit of the run. Default: 32.
        num_workers: processes that read images. Default: 0.

    Raises:
        ValueError: for a memory bank of another similarity than the model's, or of other classes than the dataset's;
            for k, temperature, neighbors or a backend that :class:`~captum_fam.MemoryBank` does not take.
        ImportError: for the backend ``"faiss"`` without FAISS.
    """

    summary = "k-NN classification by a memory bank"
    takes_bank = True
    has_positions = False

    bank: MemoryBank | Dataset[Any] | None = None
    k: int = option("neighbors that vote", 200)
    temperature: float = option("of the vote", 0.07, metavar="T")
    neighbors: NeighborRule = option("which rows of the bank stand for the class in Eq. 11", "predicted")
    backend: Backend = option("of the exact search", "torch")
    explain: Literal["correct", "all"] = option("which queries are explained", "correct")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bank, MemoryBank):
            check_bank(self.bank, self.model, self.dataset)
            self.backend = self.bank.backend
        # A bank of one row refuses bad settings, or lacks FAISS, as any bank does, and does so before there are files.
        bank = MemoryBank(torch.ones(1, 1), [0], similarity=self.model.similarity, backend=self.backend)
        self.set_up(bank).classify(torch.ones(1, 1))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)  # type: ignore[arg-type]

    @property
    def bank_source(self) -> MemoryBank | Dataset[Any]:
        """The bank, or the dataset that it is made of."""
        return self.dataset if self.bank is None else self.bank

    @cached_property
    def items_in_bank(self) -> list[int]:
        """The position of every query in the dataset of the bank, -1 where it is not there."""
        return items_in_bank(self.dataset, self.bank_source)

    def set_up(self, bank: MemoryBank) -> MemoryBank:
        """A bank that reads its rows with the options of this protocol."""
        return bank.using(k=self.k, temperature=self.temperature, neighbors=self.neighbors)

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        leave_one_out = any(item >= 0 for item in self.items_in_bank)
        return {**super().settings(), "bank": bank_settings(self.bank_source), "leave_one_out": leave_one_out}

    def prepare(self, folder: Path, ranks: Ranks | None = None, progress: bool = False) -> PreparedContrastive:
        """Make the memory bank, kept in ``bank.safetensors`` beside the results."""
        ranks = ranks or Ranks()
        model = self.model.fast_copy(ranks.device)
        bank = self.bank_source
        if not isinstance(bank, MemoryBank):
            bank = make_bank(
                model,
                bank,
                folder,
                self.backend,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                ranks=ranks,
                progress=progress,
            )
        return PreparedContrastive(self, model, self.set_up(bank.to(ranks.device)))

    @property
    def figure_header(self) -> str:
        """A query, and the accuracy of the vote above the models."""
        return f"query\n{self.k}-NN accuracy"

    @property
    def support_title(self) -> str:
        """The nearest image of the class."""
        return "nearest of the class"


class PreparedContrastive(PreparedProtocol[Contrastive]):
    """Queries and the bank that they are compared with.

    Args:
        protocol: what is to be done.
        model: a fast copy of the protocol's.
        bank: with the options of the protocol, on the model's device.
    """

    def __init__(self, protocol: Contrastive, model: TwoPartModel, bank: MemoryBank) -> None:
        super().__init__(protocol, model)
        self.bank = bank
        self.bank_skipped = bank.skipped
        row_of = {item: row for row, item in enumerate(bank.items.tolist())}
        self._own_rows = torch.tensor([row_of.get(item, -1) for item in protocol.items_in_bank], dtype=torch.int64)
        # Rows of a dataset have files, by which queries are known that are in it.
        self._may_hold_queries = isinstance(protocol.bank, MemoryBank)

    def run(self, units: Sequence[int]) -> Iterator[UnitRecord]:
        """The records of these batches, which are read ahead where there are workers."""
        protocol = self.protocol
        waiting = list(units)
        items = [item for unit in units for item in self._items(unit)]
        loader = BatchLoader(protocol.dataset, items, protocol.batch_size, protocol.num_workers, on_error="skip")
        for batch in loader:
            unit = int(batch.indices[0]) // protocol.batch_size
            # Batches of which nothing could be read do not come by.
            while waiting[0] < unit:
                yield self._empty_record(waiting.pop(0), loader.skipped)
            record = self._empty_record(waiting.pop(0), loader.skipped)
            for part in self._parts(batch):
                self._explain(part, record)
            yield record
        for unit in waiting:
            yield self._empty_record(unit, loader.skipped)

    def _items(self, unit: int) -> range:
        n_items, size = len(self.protocol.dataset), self.protocol.batch_size  # type: ignore[arg-type]
        return range(unit * size, min((unit + 1) * size, n_items))

    def _empty_record(self, unit: int, skipped: dict[int, str]) -> UnitRecord:
        return UnitRecord(unit, skipped={item: skipped[item] for item in self._items(unit) if item in skipped})

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The queries that are in the bank, and those that are not: a batch excludes rows for all of it or none."""
        inside = self._own_rows[batch.indices] >= 0
        for chosen in (inside, ~inside):
            if chosen.any():
                boxes = tuple(box for box, is_chosen in zip(batch.boxes, chosen.tolist(), strict=False) if is_chosen)
                yield Batch(batch.indices[chosen], batch.images[chosen], batch.labels[chosen], boxes)

    def _explain(self, batch: Batch, record: UnitRecord) -> None:
        """Add a part of a batch to its record."""
        protocol = self.protocol
        activation = self.model.activation(batch.images)
        embedding = self._embed(activation)
        finite = (embedding.isfinite().all(1) & activation.flatten(1).isfinite().all(1)).cpu()
        for item in batch.indices[~finite].tolist():
            record.skipped[item] = reason_not_finite(protocol.dataset, item)
        if not finite.any():
            return
        items, labels = batch.indices[finite], batch.labels[finite]
        usable = finite.to(activation.device)
        query = _Query(activation[usable], embedding[usable], self._rows(items))
        vote = self.bank.using(exclude=query.exclude).classify(query.embedding)
        predicted = vote.predicted.cpu()
        correct = predicted == labels
        self._warn_of_leak(query, vote)
        first_row = len(record.queries)
        record.queries.extend(
            QueryColumns(
                item=jsonable(items),
                label=jsonable(labels),
                predicted=jsonable(predicted),
                confidence=jsonable(vote.class_scores.amax(1)),
                correct=jsonable(correct),
            )
        )
        chosen = (correct if protocol.explain == "correct" else torch.ones_like(correct)).nonzero()[:, 0]
        if not len(chosen):
            return
        query, vote = query.take(chosen), _take(vote, chosen.to(activation.device))
        scores_for, has_other = self._scores(query, vote, vote.predicted)
        target = torch.arange(len(chosen), device=activation.device)
        kept = finite.nonzero()[:, 0][chosen]
        alone = ~has_other[:, None, None, None]

        def maps_of(method: TableMethod) -> Maps:
            made = self.maps(method, scores_for, query.activation, target)
            return made._replace(maps=made.maps.masked_fill(alone, torch.nan)) if method.foil else made

        def pairs(method: TableMethod, maps: Tensor) -> tuple[Tensor, Tensor]:
            others = self.maps(method, scores_for, query.activation, target + len(target)).maps
            return maps, others.masked_fill(alone, torch.nan)

        explained = protocol.panel.values(
            maps_of,
            self.size,
            [batch.boxes[row] for row in kept.tolist()] if batch.boxes else None,
            self.perturbable(batch.images[kept], query.activation, scores_for(None), target),
            pairs,
        )
        record.add_explained(jsonable(chosen + first_row), explained)

    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """One query and its neighbors of a class."""
        item = record.queries.item[query]
        activation = self.model.activation(self.protocol.dataset[item][0][None])
        single = _Query(activation, self._embed(activation), self._rows(torch.tensor([item])))
        vote = self.bank.using(exclude=single.exclude).classify(single.embedding)
        target = torch.tensor([label], device=activation.device)
        support = None
        source = self.protocol.bank_source
        if not isinstance(source, MemoryBank):
            chosen = self._support(single, vote, target)
            nearest = chosen.indices[0][chosen.weights[0] > 0][0]
            support = self.image(int(self.bank.items[nearest]), source)
        scores_for, has_other = self._scores(single, vote, target)
        return Example(self.image(item), activation, scores_for, torch.zeros_like(target), support, bool(has_other))

    def has_support(self, record: UnitRecord, query: int, label: int) -> bool:
        """Whether the bank has a row of a class, other than the query's own."""
        rows = (self.bank.labels == label).nonzero()[:, 0]
        return bool((rows != self._own_rows[record.queries.item[query]]).any())

    @torch.no_grad()
    def _embed(self, activation: Tensor) -> Tensor:
        embedding: Tensor = self.model.tail(activation)
        return embedding

    def _rows(self, items: Tensor) -> Tensor | None:
        """The queries' own rows of the bank, which are no neighbors of theirs; None where they are not in it."""
        rows = self._own_rows[items]
        return None if (rows < 0).any() else rows.to(self.bank.items.device)

    def _warn_of_leak(self, query: _Query, vote: Vote) -> None:
        """Say once that a memory bank, whose rows have no files, seems to hold the queries."""
        if self._may_hold_queries and seems_to_hold(self.bank, query.embedding, vote):
            self._may_hold_queries = False
            warnings.warn(
                "bank: it seems to hold the queries: some have the very embedding of a row, which then votes for "
                "them. Use a bank of other images, or give its images as a dataset: queries are left out of that",
                stacklevel=2,
            )

    def _support(self, query: _Query, vote: Vote, target: Tensor) -> BankRows:
        """What stands for the target; a class that has no neighbor is looked up in the whole bank."""
        bank = self.bank.using(exclude=query.exclude)
        members = self.bank.labels[vote.neighbor_indices] == target[:, None]
        if not members.any(1).all() and self.protocol.neighbors in ("predicted", "vote"):
            bank = bank.using(exclude=query.exclude, neighbors="within-class")
        return bank.support(query.embedding, target, vote)

    def _scores(self, query: _Query, vote: Vote, target: Tensor) -> tuple[ScoresFor, Tensor]:
        """Scores whose class b is the target of query b, and B + b its runner-up; and whether there is one."""
        labels = self.bank.labels[vote.neighbor_indices]
        of_target = labels == target[:, None]
        others = vote.class_scores.scatter(1, target[:, None], -1)
        # The temperature magnifies what rounding does to a similarity of at most about one.
        rounding = rounding_of_supports(query.embedding.shape[1], others.dtype) / self.bank.temperature
        second = first_largest(others, torch.clamp_max(rounding * others.abs(), 0.5))
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
        embeddings = self.bank.embeddings[rows].float()
        scores_for = cached(
            lambda foil: SimilarityToSupport(
                self.model.tail, WeightedSupport(embeddings, weights, foils[foil]), self.model.similarity
            )
        )
        return scores_for, of_second.any(1)


@dataclass(frozen=True)
class _Query:
    """Queries of which all have a row of their own in the bank, or none.

    Attributes:
        activation: ``(B, N, h, w)``.
        embedding: ``(B, J)``.
        exclude: their own rows, ``(B,)``.
    """

    activation: Tensor
    embedding: Tensor
    exclude: Tensor | None

    def take(self, rows: Tensor) -> _Query:
        """Some of the queries."""
        rows = rows.to(self.activation.device)
        exclude = None if self.exclude is None else self.exclude[rows]
        return _Query(self.activation[rows], self.embedding[rows], exclude)


def _take(vote: Vote, rows: Tensor) -> Vote:
    return Vote(*(part[rows] for part in vote))
