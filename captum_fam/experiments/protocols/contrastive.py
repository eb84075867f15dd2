"""k-NN classification by a memory bank, with maps of the queries for the neighbors that decided."""

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
from captum_fam.cli.ranges import above, at_least
from captum_fam.embedding import Batch, BatchLoader, reason_not_finite
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.protocols.base import Example, PreparedProtocol, Protocol
from captum_fam.experiments.protocols.neighbor_scores import (
    BankQuery,
    rows_of_class,
    scores_by_neighbors,
    take_votes,
)
from captum_fam.experiments.protocols.query_bank import (
    bank_settings,
    check_bank,
    items_in_bank,
    prepare_bank,
    seems_to_hold,
)
from captum_fam.experiments.protocols.registry import register_protocol
from captum_fam.experiments.records import QueryColumns, UnitRecord, jsonable
from captum_fam.experiments.table_methods import Maps, TableMethod
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.support import MemoryBank, NeighborRule, Vote
from captum_fam.support.search import Backend


@register_protocol("contrastive")
@dataclass(eq=False, kw_only=True)
class Contrastive(Protocol):
    """k-NN classification by a memory bank, section V-C of the FAM paper (arXiv 2307.05017).

    Means are taken over the correctly classified queries. Images are read, classified and explained batch by batch, and
    are not kept. A foil is the mean of the neighbors of all other classes (``"others"``), or of the neighbors of the
    class with the second most votes (``"runner-up"``). ``swap`` also compares with the map for the runner-up. If all
    neighbors of a query are of one class, the query has no foil. Then methods with a foil give a map of NaN, which is
    counted but is not in their means, and the query has no ``swap``.

    Args:
        model: the model in two parts, which does not change: a fast copy does the work.
        dataset: the queries, items ``(image, label, boxes)``, with images as inputs of the model.
        panel: methods and measures. Default: ``Panel()``.
        bank: a memory bank of the model, or a data set of which the bank is made. A query whose file is also in this
            data set is not its own neighbor. The rows of a memory bank have no files, so the bank must not hold the
            queries; a warning is given if it seems to. Default: the data set of the queries.
        k: number of neighbors that vote. Default: 200.
        temperature: temperature of the vote. Default: 0.07.
        neighbors: which rows of the bank are the support of the class in Eq. 11, see
            :class:`~captum_fam.MemoryBank`. Default: ``"predicted"``, the rows of the predicted class among the k
            nearest.
        backend: backend of the search in a bank that is made of a data set; a memory bank has its own backend. Default:
            ``"torch"``.
        explain: ``"correct"`` explains the correct queries, ``"all"`` explains all queries for the predicted class.
            Default: ``"correct"``.
        batch_size: images per pass through the model, which are one unit of the run. Default: 32.
        num_workers: number of processes that read images. Default: 0.

    Raises:
        ValueError: for a memory bank of another similarity than that of the model, or of other classes than those of
            the data set; for k, temperature, neighbors or a backend that :class:`~captum_fam.MemoryBank` refuses.
        ImportError: for the backend ``"faiss"`` without FAISS.
    """

    summary = "k-NN classification by a memory bank"
    takes_bank = True
    has_positions = False

    bank: MemoryBank | Dataset[Any] | None = None
    k: int = option("neighbors that vote", 200, within=at_least(1))
    temperature: float = option("temperature of the vote", 0.07, metavar="T", within=above(0))
    neighbors: NeighborRule = option("which rows of the bank are the support of the class in Eq. 11", "predicted")
    backend: Backend = option("backend of the exact search", "torch")
    explain: Literal["correct", "all"] = option("which queries are explained", "correct")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bank, MemoryBank):
            check_bank(self.bank, self.model, self.dataset)
            self.backend = self.bank.backend
        # A vote of a bank of one row checks the settings, and that FAISS is installed, before any file is written.
        bank = MemoryBank(torch.ones(1, 1), [0], similarity=self.model.similarity, backend=self.backend)
        self.set_up(bank).classify(torch.ones(1, 1))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)  # type: ignore[arg-type]

    @property
    def bank_source(self) -> MemoryBank | Dataset[Any]:
        """The memory bank, or the data set of which the bank is made."""
        return self.dataset if self.bank is None else self.bank

    @cached_property
    def items_in_bank(self) -> list[int]:
        """The position of every query in the data set of the bank, -1 for a query that is not in the data set."""
        return items_in_bank(self.dataset, self.bank_source)

    def set_up(self, bank: MemoryBank) -> MemoryBank:
        """The bank with the options of this protocol.

        Args:
            bank: any memory bank.

        Returns:
            A bank with the same rows.
        """
        return bank.using(k=self.k, temperature=self.temperature, neighbors=self.neighbors)

    def settings(self) -> dict[str, Any]:
        """Everything on which the results depend, in types that JSON can hold."""
        leave_one_out = any(item >= 0 for item in self.items_in_bank)
        return {**super().settings(), "bank": bank_settings(self.bank_source), "leave_one_out": leave_one_out}

    def prepare(self, folder: Path, ranks: Ranks | None = None, progress: bool = False) -> PreparedContrastive:
        """Make the memory bank, and save it as ``bank.safetensors`` in the folder of the results."""
        ranks = ranks or Ranks()
        model = self.model.fast_copy(ranks.device)
        bank = self.bank_source
        if not isinstance(bank, MemoryBank):
            bank = prepare_bank(
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
        """Title above the queries of a figure; the number above each model is the accuracy of the vote."""
        return f"query\n{self.k}-NN accuracy"

    @property
    def support_title(self) -> str:
        """Title above the nearest image of the class."""
        return "nearest of the class"


class PreparedContrastive(PreparedProtocol[Contrastive]):
    """Queries, and the memory bank with which they are compared.

    Args:
        protocol: description of the experiment.
        model: fast copy of the model of the protocol.
        bank: memory bank with the options of the protocol, on the device of the model.
    """

    def __init__(self, protocol: Contrastive, model: TwoPartModel, bank: MemoryBank) -> None:
        super().__init__(protocol, model)
        self.bank = bank
        self.bank_skipped = bank.skipped
        row_of = {item: row for row, item in enumerate(bank.items.tolist())}
        # The row of each query in the bank, -1 for a query that is not in the bank.
        self._own_rows = torch.tensor([row_of.get(item, -1) for item in protocol.items_in_bank], dtype=torch.int64)
        # Files tell which queries are in a bank that is made of a data set. A given memory bank has no files.
        self._may_hold_queries = isinstance(protocol.bank, MemoryBank)

    def run(self, units: Sequence[int]) -> Iterator[UnitRecord]:
        """Run batches of queries; worker processes read the images ahead. See :meth:`PreparedProtocol.run`."""
        protocol = self.protocol
        remaining_units = list(units)
        items = [item for unit in units for item in self._items(unit)]
        loader = BatchLoader(protocol.dataset, items, protocol.batch_size, protocol.num_workers, on_error="skip")
        for batch in loader:
            unit = int(batch.indices[0]) // protocol.batch_size
            # The loader gives no batch for a unit without a readable image. Such a unit gets an empty record.
            while remaining_units[0] < unit:
                yield self._empty_record(remaining_units.pop(0), loader.skipped)
            record = self._empty_record(remaining_units.pop(0), loader.skipped)
            for part in self._parts(batch):
                self._explain(part, record)
            yield record
        for unit in remaining_units:
            yield self._empty_record(unit, loader.skipped)

    def _items(self, unit: int) -> range:
        n_items, size = len(self.protocol.dataset), self.protocol.batch_size  # type: ignore[arg-type]
        return range(unit * size, min((unit + 1) * size, n_items))

    def _empty_record(self, unit: int, skipped: dict[int, str]) -> UnitRecord:
        return UnitRecord(unit, skipped={item: skipped[item] for item in self._items(unit) if item in skipped})

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The queries of a batch that are in the bank, then all others: a vote excludes a row per query, or none."""
        in_bank = self._own_rows[batch.indices] >= 0
        for selected in (in_bank, ~in_bank):
            if selected.any():
                boxes = tuple(box for box, is_in in zip(batch.boxes, selected.tolist(), strict=False) if is_in)
                yield Batch(batch.indices[selected], batch.images[selected], batch.labels[selected], boxes)

    def _explain(self, batch: Batch, record: UnitRecord) -> None:
        """Classify and explain a part of a batch, and add the results to the record of the batch."""
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
        query = BankQuery(activation[usable], embedding[usable], self._rows(items))
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
        query, vote = query.take(chosen), take_votes(vote, chosen)
        scores_for, has_other = scores_by_neighbors(self.model, self.bank, query, vote, vote.predicted)
        target = torch.arange(len(chosen), device=activation.device)
        batch_rows = finite.nonzero()[:, 0][chosen]
        # Queries without a foil get maps of NaN.
        has_no_foil = ~has_other[:, None, None, None]

        def maps_of(method: TableMethod) -> Maps:
            result = self.maps(method, scores_for, query.activation, target)
            return result._replace(maps=result.maps.masked_fill(has_no_foil, torch.nan)) if method.foil else result

        def pairs(method: TableMethod, maps: Tensor) -> tuple[Tensor, Tensor]:
            others = self.maps(method, scores_for, query.activation, target + len(target)).maps
            return maps, others.masked_fill(has_no_foil, torch.nan)

        explained = protocol.panel.values(
            maps_of,
            self.size,
            [batch.boxes[row] for row in batch_rows.tolist()] if batch.boxes else None,
            self.perturbable(batch.images[batch_rows], query.activation, scores_for(None), target),
            pairs,
        )
        record.add_explained(jsonable(chosen + first_row), explained)

    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """A query and its neighbors of a class; see :meth:`PreparedProtocol.example`."""
        item = record.queries.item[query]
        activation = self.model.activation(self.protocol.dataset[item][0][None])
        single = BankQuery(activation, self._embed(activation), self._rows(torch.tensor([item])))
        vote = self.bank.using(exclude=single.exclude).classify(single.embedding)
        target = torch.tensor([label], device=activation.device)
        support = None
        source = self.protocol.bank_source
        if not isinstance(source, MemoryBank):
            bank_rows = rows_of_class(self.bank, single, vote, target)
            nearest = bank_rows.indices[0][bank_rows.weights[0] > 0][0]
            support = self.image(int(self.bank.items[nearest]), source)
        scores_for, has_other = scores_by_neighbors(self.model, self.bank, single, vote, target)
        return Example(self.image(item), activation, scores_for, torch.zeros_like(target), support, bool(has_other))

    def has_support(self, record: UnitRecord, query: int, label: int) -> bool:
        """Whether the bank has a row of a class, other than the row of the query."""
        rows = (self.bank.labels == label).nonzero()[:, 0]
        return bool((rows != self._own_rows[record.queries.item[query]]).any())

    @torch.no_grad()
    def _embed(self, activation: Tensor) -> Tensor:
        embedding: Tensor = self.model.tail(activation)
        return embedding

    def _rows(self, items: Tensor) -> Tensor | None:
        """The rows of the queries in the bank, which are excluded from their neighbors; None if they are not in it."""
        rows = self._own_rows[items]
        return None if (rows < 0).any() else rows.to(self.bank.items.device)

    def _warn_of_leak(self, query: BankQuery, vote: Vote) -> None:
        """Warn once if a memory bank, whose rows have no files, seems to hold the queries."""
        if self._may_hold_queries and seems_to_hold(self.bank, query.embedding, vote):
            self._may_hold_queries = False
            warnings.warn(
                "bank: it seems to hold the queries: some queries have the same embedding as a row, which then votes "
                "for them. Use a bank of other images, or give the images of the bank as a dataset: then a query is "
                "not its own neighbor",
                stacklevel=2,
            )
