"""Image retrieval: the most similar other image, and maps of the query for this image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from captum_fam.cli.options import option
from captum_fam.cli.ranges import at_least
from captum_fam.experiments.features import Features
from captum_fam.experiments.protocols.base import Example
from captum_fam.experiments.protocols.features_protocol import FeaturesProtocol, PreparedFeatures
from captum_fam.experiments.protocols.registry import register_protocol
from captum_fam.experiments.records import QueryColumns, UnitRecord, jsonable
from captum_fam.experiments.table_methods import Foil, ScoresFor, TableMethod
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.metrics import recall_at_k
from captum_fam.similarity import get_similarity
from captum_fam.support import SimilarityToSupport, WeightedSupport


@register_protocol("retrieval")
@dataclass(eq=False, kw_only=True)
class Retrieval(FeaturesProtocol):
    """Image retrieval, section V-D of the FAM paper (arXiv 2307.05017).

    Every image is a query, all other images are its gallery, and the nearest image of the gallery, which is retrieved,
    is its support. A query is correct if the retrieved image is of the class of the query. A foil is the mean of the
    gallery (``"others"`` and ``"gallery"``), or the nearest image that is of another class than the retrieved image
    (``"runner-up"``). ``swap`` also compares with the map for the runner-up.

    Args:
        model: the model in two parts, which does not change: a fast copy does the work.
        dataset: items ``(image, label, boxes)``, with images as inputs of the model.
        panel: methods and measures. Default: ``Panel()``.
        ks: the numbers K of Recall@K. Default: 1, 2, 4, 8.
        explain: ``"correct"`` explains the correct queries, ``"all"`` explains all queries. Default: ``"correct"``.
        batch_size: images per pass through the backbone, which are one unit of the run. Default: 32.
        num_workers: number of processes that read images. Default: 0.
    """

    summary = "every image as a query, the nearest other as its support"
    split = "retrieval-test"
    has_positions = False
    has_gallery = True

    ks: tuple[int, ...] = option("the numbers K of Recall@K", (1, 2, 4, 8), metavar="K,K,...", within=at_least(1))
    explain: Literal["correct", "all"] = option("which queries are explained", "correct")

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)  # type: ignore[arg-type]

    def prepared(self, model: TwoPartModel, features: Features) -> PreparedRetrieval:
        """Make the gallery."""
        return PreparedRetrieval(self, model, features)

    def check_labels(self, labels: Tensor) -> None:
        """Check that there are at least two classes; see :meth:`Protocol.check_labels`."""
        super().check_labels(labels)
        if len(labels.unique()) < 2:
            raise ValueError("dataset: retrieval needs images of at least two classes")

    @property
    def figure_header(self) -> str:
        """Title above the queries of a figure; the number above each model is Recall@1."""
        return "query\nRecall@1"


class PreparedRetrieval(PreparedFeatures[Retrieval]):
    """Retrieval in the gallery of the usable images; for the arguments see :class:`PreparedFeatures`.

    Raises:
        ValueError: for images of one class only.
    """

    def __init__(self, protocol: Retrieval, model: TwoPartModel, features: Features) -> None:
        super().__init__(protocol, model, features)
        protocol.check_labels(features.labels)
        self._gallery = features.embeddings.to(model.device)
        self._labels = features.labels.to(model.device)
        self._similarity = get_similarity(model.similarity)
        self._recall = recall_at_k(self._gallery, self._labels, protocol.ks, model.similarity).cpu()

    def run_unit(self, unit: int) -> UnitRecord:
        """Run a batch of queries; see :meth:`PreparedFeatures.run_unit`."""
        protocol = self.protocol
        items = self.features.items
        rows = ((items >= unit * protocol.batch_size) & (items < (unit + 1) * protocol.batch_size)).nonzero()[:, 0]
        if not len(rows):
            return UnitRecord(unit)
        nearest, similarity, other = self._nearest(rows)
        predicted = self.features.labels[nearest]
        labels = self.features.labels[rows]
        correct = predicted == labels
        record = UnitRecord(
            unit,
            QueryColumns(
                item=jsonable(items[rows]),
                label=jsonable(labels),
                predicted=jsonable(predicted),
                confidence=jsonable(similarity),
                correct=jsonable(correct),
                numbers={f"recall@{k}": jsonable(self._recall[rows, column]) for column, k in enumerate(protocol.ks)},
            ),
        )
        chosen = (correct if protocol.explain == "correct" else torch.ones_like(correct)).nonzero()[:, 0]
        if not len(chosen):
            return record
        rows = rows[chosen]
        scores_for = self._scores(rows, nearest[chosen], other[chosen])
        activation = self.activation(rows)
        target = torch.arange(len(rows), device=activation.device)

        def pairs(method: TableMethod, maps: Tensor) -> tuple[Tensor, Tensor]:
            return maps, self.maps(method, scores_for, activation, target + len(rows)).maps

        explained = protocol.panel.values(
            lambda method: self.maps(method, scores_for, activation, target),
            self.size,
            self.boxes(rows),
            self.perturbable(self.images(rows), activation, scores_for(None), target),
            pairs,
        )
        record.add_explained(jsonable(chosen), explained)
        return record

    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """A query and the nearest image of a class; see :meth:`PreparedProtocol.example`."""
        row = self._row_of(record, query)
        nearest, _, other = self._nearest(row, label)
        return Example(
            self.image(record.queries.item[query]),
            self.activation(row),
            self._scores(row, nearest, other),
            torch.zeros(1, dtype=torch.int64, device=self.model.device),
            self.image(int(self.features.items[nearest[0]])),
        )

    def reverse_example(self, record: UnitRecord, query: int, label: int) -> Example:
        """The image of a class that is retrieved for a query, explained by its similarity to the query.

        See :meth:`PreparedProtocol.reverse_example`.
        """
        row = self._row_of(record, query)
        nearest = self._nearest(row, label)[0]
        _, _, other = self._nearest(nearest, int(self.features.labels[row]))
        item = int(self.features.items[nearest])
        return Example(
            self.image(item),
            self.activation(nearest),
            self._scores(nearest, row, other),
            torch.zeros(1, dtype=torch.int64, device=self.model.device),
            None,
        )

    def has_support(self, record: UnitRecord, query: int, label: int) -> bool:
        """Whether the gallery has another image of a class."""
        others = self.features.items != record.queries.item[query]
        return bool((others & (self.features.labels == label)).any())

    def _row_of(self, record: UnitRecord, query: int) -> Tensor:
        """The row of a query in the features, ``(1,)``."""
        return (self.features.items == record.queries.item[query]).nonzero()[:, 0]

    def _nearest(self, rows: Tensor, label: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Search the gallery for queries.

        Args:
            rows: rows of B queries, ``(B,)``.
            label: class in which the nearest image is searched; None for all classes.

        Returns:
            The row of the nearest other image, its similarity, and the row of the nearest image of another class than
            the class of the nearest image; ``(B,)`` each, on the CPU.
        """
        queries = rows.to(self._labels.device)
        similarities = self._similarity.score(self._gallery[queries], self._gallery)
        similarities[torch.arange(len(queries), device=queries.device), queries] = -torch.inf
        candidates = similarities if label is None else similarities.masked_fill(self._labels != label, -torch.inf)
        # Without a tolerance for rounding, as in recall_at_k, so that accuracy and Recall@1 agree.
        best, nearest = candidates.max(1)
        other = similarities.masked_fill(self._labels == self._labels[nearest][:, None], -torch.inf).argmax(1)
        return nearest.cpu(), best.cpu(), other.cpu()

    def _scores(self, rows: Tensor, nearest: Tensor, other: Tensor) -> ScoresFor:
        """Scores in which class b is the image retrieved for query b, and class B + b the nearest of another class."""
        n_gallery = len(self._gallery)

        def one_hot(images: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(images.to(self._gallery.device), n_gallery).to(self._gallery)

        gallery_mean = (1 - one_hot(rows)) / (n_gallery - 1)
        gallery = torch.cat([gallery_mean, gallery_mean])
        foils: dict[Foil | None, Tensor | None] = {
            None: None,
            "others": gallery,
            "gallery": gallery,
            "runner-up": torch.cat([one_hot(other), one_hot(nearest)]),
        }
        weights = torch.cat([one_hot(nearest), one_hot(other)])
        return cache(
            lambda foil: SimilarityToSupport(
                self.model.tail, WeightedSupport(self._gallery, weights, foils[foil]), self.model.similarity
            )
        )
