"""Protocols that pass every image through the backbone once, before their units run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from captum_fam._files import read_json, write_all_or_nothing, write_json
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.features import Features, Kept, extract, source_of
from captum_fam.experiments.protocols.base import P, PreparedProtocol, Protocol
from captum_fam.experiments.records import UnitRecord, by_item
from captum_fam.experiments.table_methods import Foil, ScoresFor
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.support import Aggregate, SimilarityToSupport, SupportSet

SKIPPED = "skipped.json"
"""The file of the images that are left out of a run, in the folder of its results."""


@dataclass(eq=False)
class FeaturesProtocol(Protocol):
    """A protocol that passes every image through the backbone once, before its units run.

    A subclass returns the object that runs its units, a :class:`PreparedFeatures`, in :meth:`prepared`. For arguments
    and further attributes see :class:`Protocol`.

    Attributes:
        keeps_images: whether the units need the images, also if no measure needs them.
    """

    keeps_images: ClassVar[bool] = False

    @abstractmethod
    def prepared(self, model: TwoPartModel, features: Features) -> PreparedFeatures[Any]:
        """The object that runs the units.

        Args:
            model: fast copy of the model, on the device of the work.
            features: features of all usable items.
        """

    def prepare(self, folder: Path, ranks: Ranks | None = None, progress: bool = False) -> PreparedFeatures[Any]:
        """Pass every image through the backbone once.

        ``skipped.json`` in the folder of the results lists the items that are left out. Units are drawn from all other
        items. So a resumed run has the same units, even if a file has changed.

        Args:
            folder: as in :meth:`Protocol.prepare`.
            ranks: as in :meth:`Protocol.prepare`. Default: this process alone.
            progress: as in :meth:`Protocol.prepare`. Default: False.

        Returns:
            The object that runs the units.

        Raises:
            ValueError: if a file has become unusable since the run began, if no image could be read, or for stored
                features or a list of skipped images that are broken or belong to another run.
            OSError: if the disk is full.
        """
        ranks = ranks or Ranks()
        model = self.model.fast_copy(ranks.device)
        path = folder.parent / SKIPPED
        has_begun = path.is_file()
        # The first process writes the file below. Wait until every process has checked whether it exists.
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
            left_out=_read_skipped(path) if has_begun else None,
            source=source_of(folder.parent),
        )
        if ranks.is_first and not has_begun:
            with write_all_or_nothing(path.parent) as scratch:
                write_json(scratch / path.name, {str(item): reason for item, reason in features.skipped.items()})
        return self.prepared(model, features)


def _read_skipped(path: Path) -> dict[int, str]:
    """The items that a run left out when it began, with the reasons."""
    remedy = f"delete {path.parent}, and run again"
    content = read_json(path, remedy)
    try:
        return by_item(content)
    except ValueError as error:
        raise ValueError(f"{path} is no list of skipped images ({error}); {remedy}") from error


class PreparedFeatures(PreparedProtocol[P], Generic[P]):
    """A protocol that is ready to run its units, with the features of all images.

    Args:
        protocol: description of the experiment.
        model: fast copy of the model of the protocol.
        features: features of all usable items.
    """

    def __init__(self, protocol: P, model: TwoPartModel, features: Features) -> None:
        super().__init__(protocol, model)
        self.features = features
        self.skipped = features.skipped

    @abstractmethod
    def run_unit(self, unit: int) -> UnitRecord:
        """Run a unit.

        Args:
            unit: number of the unit.

        Returns:
            The record of the unit.
        """

    def run(self, units: Sequence[int]) -> Iterator[UnitRecord]:
        """Run units one after another; see :meth:`PreparedProtocol.run`."""
        return map(self.run_unit, units)

    def activation(self, rows: Tensor) -> Tensor:
        """The activations of rows of the features, ``(len(rows), N, h, w)`` on the device of the model."""
        return self.features.activations(rows).to(self.model.device)

    def boxes(self, rows: Tensor) -> list[Tensor] | None:
        """The boxes ``(m, 4)`` of each row of the features; None for a data set without boxes."""
        return [self.features.boxes[row] for row in rows.tolist()] if self.features.boxes else None

    def images(self, rows: Tensor) -> Tensor | None:
        """The images of rows of the features, ``(len(rows), 3, H, W)`` on the CPU; None if no measure needs images."""
        return self.features.images(rows) if self.protocol.panel.needing("images") else None

    def scores_of_classes(
        self, support: Tensor, aggregate: Aggregate, gallery: Callable[[], Tensor] | None = None
    ) -> ScoresFor:
        """Scores of activations for C classes with K supports each.

        Args:
            support: rows of the features, ``(C, K)``.
            aggregate: how the similarities to the supports of a class become one score.
            gallery: gives the embeddings ``(M, J)`` of the gallery; it is called for methods that ask for it. Default:
                None, no method does.

        Returns:
            A function from a foil to the scores.
        """
        n_classes, shot = support.shape
        # The support set holds activations instead of embeddings, because some methods compare positions.
        supports = SupportSet(self.activation(support.flatten()), torch.arange(n_classes).repeat_interleave(shot))

        def scores(foil: Foil | None) -> SimilarityToSupport:
            given = gallery() if foil == "gallery" and gallery is not None else None
            return SimilarityToSupport(self.model.tail, supports, self.model.similarity, foil, aggregate, gallery=given)

        return cache(scores)
