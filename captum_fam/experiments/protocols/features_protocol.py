"""Protocols whose images all go through the backbone once, before their units run."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from captum_fam._files import write_all_or_nothing, write_json
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.features import Features, Kept, extract
from captum_fam.experiments.protocols.base import P, PreparedProtocol, Protocol, cached
from captum_fam.experiments.records import UnitRecord, by_item
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import ScoresFor
from captum_fam.support import Aggregate, SimilarityToSupport, SupportSet


@dataclass(eq=False)
class FeaturesProtocol(Protocol):
    """A protocol whose images all go through the backbone once, before its units run.

    A subclass says in :meth:`prepared` what runs its units: a :class:`PreparedFeatures`.

    Attributes:
        keeps_images: whether units need the images themselves, whatever the measures.
    """

    keeps_images: ClassVar[bool] = False

    @abstractmethod
    def prepared(self, model: TwoPartModel, features: Features) -> PreparedFeatures[Any]:
        """The protocol ready to run.

        Args:
            model: a fast copy, on the device of the work.
            features: of all items that could be used.
        """

    def prepare(self, folder: Path, ranks: Ranks | None = None, progress: bool = False) -> PreparedFeatures[Any]:
        """Put every image through the backbone once.

        What is left out is kept in ``skipped.json`` beside the results: units are drawn from the other items, and
        must stay the same whatever becomes of a file later.

        Raises:
            ValueError: at the first file that has become unusable since the run began.
        """
        ranks = ranks or Ranks()
        model = self.model.fast_copy(ranks.device)
        path = folder.parent / "skipped.json"
        began = path.is_file()
        # No process writes before every process has looked.
        ranks.wait()
        keep: tuple[Kept, ...] = ("activations",)
        if self.keeps_images or self.panel.needing("images"):
            keep = ("activations", "images")
        features = extract(
            model,
            self.dataset,
            folder,
            keep,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            ranks=ranks,
            progress=progress,
            left_out=by_item(json.loads(path.read_text(encoding="utf-8"))) if began else None,
        )
        if ranks.is_first and not began:
            with write_all_or_nothing(path.parent) as scratch:
                write_json(scratch / path.name, {str(item): reason for item, reason in features.skipped.items()})
        return self.prepared(model, features)


class PreparedFeatures(PreparedProtocol[P], Generic[P]):
    """A protocol with the features of its images.

    Args:
        protocol: what is to be done.
        model: a fast copy of the protocol's.
        features: of all items that could be used.
    """

    def __init__(self, protocol: P, model: TwoPartModel, features: Features) -> None:
        super().__init__(protocol, model)
        self.features = features
        self.skipped = features.skipped

    @abstractmethod
    def run_unit(self, unit: int) -> UnitRecord:
        """The record of one unit."""

    def run(self, units: Sequence[int]) -> Iterator[UnitRecord]:
        """The records of these units, in order."""
        return map(self.run_unit, units)

    def activation(self, rows: Tensor) -> Tensor:
        """The activations of some rows of the features, ``(len(rows), N, h, w)``, on the model's device."""
        return self.features.activations(rows).to(self.model.device)

    def boxes(self, rows: Tensor) -> list[Tensor] | None:
        """The boxes of some rows of the features, ``(m, 4)`` each; None where the dataset has no boxes."""
        return [self.features.boxes[row] for row in rows.tolist()] if self.features.boxes else None

    def images(self, rows: Tensor) -> Tensor | None:
        """The images of some rows of the features, ``(len(rows), 3, H, W)``; None where no measure needs them."""
        return self.features.images(rows) if self.protocol.panel.needing("images") else None

    def scores_of_classes(self, support: Tensor, aggregate: Aggregate) -> ScoresFor:
        """Scores on activations of C classes with K supports each.

        Args:
            support: rows of the features, ``(C, K)``.
            aggregate: of the similarities to the supports of a class.
        """
        n_classes, shot = support.shape
        # Activations, not embeddings: some methods compare positions.
        images = SupportSet(self.activation(support.flatten()), torch.arange(n_classes).repeat_interleave(shot))
        return cached(
            lambda foil: SimilarityToSupport(
                self.model.tail, images, self.model.similarity, foil=foil, aggregate=aggregate
            )
        )
