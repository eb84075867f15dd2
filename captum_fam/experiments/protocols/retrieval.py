"""Image retrieval: the most similar other image, and maps of the query for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.measures import Panel, jsonable
from captum_fam.experiments.protocols.base import Example, FeaturesProtocol, cached
from captum_fam.experiments.records import Record
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import Foil, MapMethod, PairedScores, ScoresFor, check_no_positions
from captum_fam.metrics import recall_at_k
from captum_fam.similarity import get_similarity


class Retrieval(FeaturesProtocol):
    """The paper's section V-D: every image is a query, all others are its gallery, the nearest is its support.

    A query is correct if the retrieved image is of its class. A foil is the mean of the gallery (``"others"``), or the
    nearest image of another class than the retrieved one (``"runner-up"``), which also is what ``swap`` compares
    with.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: items ``(image, label, boxes)``, images as the model takes them.
        panel: methods and measures.
        ks: the K of Recall@K.
        explain: the ``"correct"`` queries, or ``"all"``.
        batch_size: images that are worked on at once; one unit of the run.
        num_workers: processes that read images.
    """

    name = "retrieval"

    def __init__(
        self,
        model: TwoPartModel,
        dataset: Dataset[Any],
        panel: Panel | None = None,
        *,
        ks: Sequence[int] = (1, 2, 4, 8),
        explain: Literal["correct", "all"] = "correct",
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(model, dataset, panel, batch_size=batch_size, num_workers=num_workers)
        check_no_positions(self.panel.methods)
        self.ks = tuple(ks)
        self.explain = explain

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        return {**super().settings(), "ks": list(self.ks), "explain": self.explain}

    def prepare(self, folder: Path, ranks: Ranks, progress: bool) -> None:
        """Every image through the backbone once, then the gallery."""
        super().prepare(folder, ranks, progress)
        if len(self._features.labels.unique()) < 2:
            raise ValueError("dataset: retrieval needs images of two classes at least")
        self._gallery = self._features.embeddings.to(ranks.device)
        self._labels = self._features.labels.to(ranks.device)
        self._similarity = get_similarity(self.model.similarity)
        self._recall = recall_at_k(self._gallery, self._labels, self.ks, self.model.similarity).cpu()

    def _run(self, unit: int) -> Record:
        items = self._features.items
        rows = ((items >= unit * self.batch_size) & (items < (unit + 1) * self.batch_size)).nonzero()[:, 0]
        if not len(rows):
            return {"unit": unit, "queries": {}, "explained": {}}
        nearest, similarity, other = self._nearest(rows)
        predicted = self._features.labels[nearest]
        labels = self._features.labels[rows]
        correct = predicted == labels
        record: Record = {
            "unit": unit,
            "queries": {
                "item": jsonable(items[rows]),
                "label": jsonable(labels),
                "predicted": jsonable(predicted),
                "confidence": jsonable(similarity),
                "correct": jsonable(correct),
                **{f"recall@{k}": jsonable(self._recall[rows, at]) for at, k in enumerate(self.ks)},
            },
            "explained": {},
        }
        chosen = (correct if self.explain == "correct" else torch.ones_like(correct)).nonzero()[:, 0]
        if not len(chosen):
            return record
        rows = rows[chosen]
        scores_for = self._scores(rows, nearest[chosen], other[chosen])
        activation = self._activation(rows)
        target = torch.arange(len(rows), device=activation.device)
        images = self._features.images(rows) if self.panel.needs_images else None

        def pairs(method: MapMethod, maps: Tensor) -> tuple[Tensor, Tensor]:
            return maps, self.maps(method, scores_for, activation, target + len(rows))

        record["explained"] = {
            "row": jsonable(chosen),
            **self.panel.values(
                lambda method: self.account(method, scores_for, activation, target),
                self.size,
                [self._features.boxes[row] for row in rows.tolist()] if self._features.boxes else [],
                self.perturbable(images, activation, scores_for(None), target),
                pairs,
            ),
        }
        return record

    def example(self, record: Record, query: int, label: int) -> Example:
        """One query and the nearest image of a class."""
        item = record["queries"]["item"][query]
        row = (self._features.items == item).nonzero()[:, 0]
        nearest, _, other = self._nearest(row, label)
        return Example(
            self.image(item),
            self._activation(row),
            self._scores(row, nearest, other),
            torch.zeros(1, dtype=torch.int64, device=self.model.device),
            self.image(int(self._features.items[nearest[0]])),
        )

    def has_support(self, record: Record, query: int, label: int) -> bool:
        """Whether the gallery has another image of a class."""
        others = self._features.items != record["queries"]["item"][query]
        return bool((others & (self._features.labels == label)).any())

    def _nearest(self, rows: Tensor, label: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest other image (of a class), its similarity, and the nearest of another class than that one."""
        at = rows.to(self._labels.device)
        similarities = self._similarity.score(self._gallery[at], self._gallery)
        similarities[torch.arange(len(at), device=at.device), at] = -torch.inf
        among = similarities if label is None else similarities.masked_fill(self._labels != label, -torch.inf)
        best, nearest = among.max(1)
        other = similarities.masked_fill(self._labels == self._labels[nearest][:, None], -torch.inf).argmax(1)
        return nearest.cpu(), best.cpu(), other.cpu()

    def _scores(self, rows: Tensor, nearest: Tensor, other: Tensor) -> ScoresFor:
        """Scores whose class b is the image retrieved for query b, and B + b the nearest of another class."""
        n_gallery = len(self._gallery)

        def only(images: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(images.to(self._gallery.device), n_gallery).to(self._gallery)

        rest = (1 - only(rows)) / (n_gallery - 1)
        foils: dict[Foil | None, Tensor | None] = {
            None: None,
            "others": torch.cat([rest, rest]),
            "runner-up": torch.cat([only(other), only(nearest)]),
        }
        weights = torch.cat([only(nearest), only(other)])
        return cached(
            lambda foil: PairedScores(self.model.tail, self._gallery, weights, foils[foil], self.model.similarity)
        )
