"""Mosaics: images of different classes side by side, with maps for the supports of each class."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from captum_fam.cli.options import option
from captum_fam.cli.ranges import at_least
from captum_fam.experiments.data.episodes import EpisodeItems, EpisodeSampler
from captum_fam.experiments.features import Features
from captum_fam.experiments.measures import Cells, Panel
from captum_fam.experiments.protocols.base import Example
from captum_fam.experiments.protocols.features_protocol import FeaturesProtocol, PreparedFeatures
from captum_fam.experiments.protocols.registry import register_protocol
from captum_fam.experiments.records import QueryColumns, UnitRecord, jsonable
from captum_fam.experiments.table_methods import ScoresFor, TableMethod
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.images import unnormalize
from captum_fam.metrics import make_mosaic
from captum_fam.support import Aggregate


def _default_panel() -> Panel:
    return Panel(measures=("swap",))


@register_protocol("mosaic")
@dataclass(eq=False, kw_only=True)
class Mosaic(FeaturesProtocol):
    """Does a map follow the support? It should point at the cell that shows the class of the support.

    A mosaic has grid x grid images of different classes. It is explained once for each of these classes, whose supports
    are images outside the mosaic. Chance is 1 / grid² for ``cell-energy`` and ``cell-hit``, and 0.5 for ``cell-auroc``.
    ``swap`` is measured on the single images: it compares the map for the class of the image with the map for the next
    class of the mosaic. ``accuracy`` is the share of the single images that are classified correctly among the classes
    of the mosaic. The gallery of a method ``NAME-gallery`` is all images of the classes that the mosaic does not show.

    All maps of a mosaic come from the same activation. So means are taken within each mosaic first, then over mosaics,
    and intervals are over mosaics.

    Args:
        model: the model in two parts, which does not change: a fast copy does the work.
        dataset: items ``(image, label)``, with images as inputs of the model.
        panel: methods and measures; beside the measures of the cells, only ``"swap"`` fits mosaics. Default:
            ``Panel(measures=("swap",))``.
        grid: images per side of a mosaic. Default: 2.
        shot: supports per class. Default: 5.
        mosaics: number of mosaics. Default: 150.
        cell: side of an image in the mosaic, in pixels. Default: the size of the model, so that a mosaic is larger than
            the inputs of the model. For a model that takes images of its size only, the whole mosaic has this size.
        seed: seed of the mosaics. Default: 0.
        aggregate: as in :class:`FewShot`, ``"mean"`` or ``"prototype"``. Default: ``"mean"``.
        batch_size: images per pass through the backbone. Default: 32.
        num_workers: number of processes that read images. Default: 0.

    Raises:
        ValueError: for a grid below 2, a measure that does not fit mosaics, or a gallery without further classes.
    """

    summary = "images of several classes side by side, supports of one"
    split = "novel"
    default_measures = ("swap",)
    gives = frozenset({"swap", "cells"})
    unit = "mosaic"
    units = "mosaics"
    by_unit = True
    explains_label = True
    keeps_images = True
    has_gallery = True

    panel: Panel = field(default_factory=_default_panel, kw_only=False)
    grid: int = option("images per side of a mosaic", 2, within=at_least(2))
    shot: int = option("supports per class", 5, within=at_least(1))
    mosaics: int = option("number of mosaics", 150, within=at_least(1))
    cell: int | None = option(
        "side of an image in the mosaic; default: the model's", None, metavar="PIXELS", within=at_least(1)
    )
    seed: int = option("seed of the mosaics", 0, within=at_least(0))
    aggregate: Aggregate = option(
        "score of a class from its supports: mean similarity, or similarity to the prototype", "mean"
    )

    def __post_init__(self) -> None:
        height, width = self.model.height_and_width
        if self.cell and not self.model.takes_larger_images and (self.cell * self.grid,) * 2 != (height, width):
            raise ValueError(
                f"cell={self.cell}: the model takes images of {height} x {width} pixels only, which are those of the "
                "whole mosaic; leave it out"
            )
        super().__post_init__()

    def __len__(self) -> int:
        return self.mosaics

    def check_labels(self, labels: Tensor) -> None:
        """Check that there are enough classes with enough images for a mosaic; see :meth:`Protocol.check_labels`."""
        super().check_labels(labels)
        self.sampler(labels)
        asking = [method.name for method in self.panel.methods if method.foil == "gallery"]
        if asking and len(labels.unique()) <= self.grid**2:
            raise ValueError(
                f"methods: {asking[0]} needs images of classes that the mosaic does not show, and the data set has "
                f"only the {self.grid**2} classes of a mosaic"
            )

    def sampler(self, labels: Tensor) -> EpisodeSampler:
        """The mosaics of labeled items, as episodes with one query per class.

        Args:
            labels: class of every item, ``(n,)``.

        Raises:
            ValueError: if there are too few classes, or a class has too few items.
        """
        return EpisodeSampler(labels, self.grid**2, self.shot, 1, self.mosaics, self.seed)

    def prepared(self, model: TwoPartModel, features: Features) -> PreparedMosaic:
        """Draw the mosaics."""
        return PreparedMosaic(self, model, features)


class PreparedMosaic(PreparedFeatures[Mosaic]):
    """Mosaics of the usable images; for the arguments see :class:`PreparedFeatures`."""

    def __init__(self, protocol: Mosaic, model: TwoPartModel, features: Features) -> None:
        super().__init__(protocol, model, features)
        self.sampler = protocol.sampler(features.labels)

    @cached_property
    def embeddings(self) -> Tensor:
        """The embeddings of all usable images, ``(n, J)``."""
        rows = torch.arange(len(self.features.labels)).split(self.protocol.batch_size)
        with torch.no_grad():
            return torch.cat([self.model.tail(self.activation(batch)) for batch in rows])

    def scores(self, episode: EpisodeItems) -> ScoresFor:
        """Scores of activations for the classes of a mosaic.

        Args:
            episode: the items of the mosaic.
        """
        is_other = ~torch.isin(self.features.labels, episode.classes)
        return self.scores_of_classes(
            episode.support, self.protocol.aggregate, lambda: self.embeddings[is_other.to(self.embeddings.device)]
        )

    def run_unit(self, unit: int) -> UnitRecord:
        """Run a mosaic; see :meth:`PreparedFeatures.run_unit`."""
        protocol = self.protocol
        episode = self.sampler.episode(unit)
        rows = episode.query.flatten()
        scores_for = self.scores(episode)
        single = self.activation(rows)
        with torch.no_grad():
            scores, predicted = (part.cpu() for part in scores_for(None).predict(single))
        # The queries are the cells in raster order. Each cell has a class of its own, with the index of the cell.
        cells = torch.arange(len(rows))
        target = cells.to(single.device)
        mosaic = self._compose(rows)
        activation = self.model.activation(mosaic).repeat_interleave(len(rows), 0)
        size = (mosaic.shape[2], mosaic.shape[3])

        def pairs(method: TableMethod, _: Tensor) -> tuple[Tensor, Tensor]:
            first = self.maps(method, scores_for, single, target)
            second = self.maps(method, scores_for, single, (target + 1) % len(rows))
            return first.maps, second.maps

        record = UnitRecord(
            unit,
            QueryColumns(
                item=jsonable(self.features.items[rows]),
                label=jsonable(episode.classes),
                predicted=jsonable(episode.classes[predicted]),
                confidence=jsonable(scores.softmax(1).amax(1)),
                correct=jsonable(predicted == cells),
            ),
        )
        explained = protocol.panel.values(
            lambda method: self.maps(method, scores_for, activation, target, size),
            size,
            pairs_of=pairs,
            cells=Cells(target, protocol.grid),
        )
        record.add_explained(jsonable(cells), explained)
        return record

    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """A mosaic and the supports of one of its classes; see :meth:`PreparedProtocol.example`."""
        episode = self.sampler.episode(record.unit)
        target = (episode.classes == label).nonzero()[0]
        mosaic = self._compose(episode.query.flatten())
        return Example(
            unnormalize(mosaic[0], self.model.mean, self.model.std),
            self.model.activation(mosaic),
            self.scores(episode),
            target.to(self.model.device),
            self.image(int(self.features.items[episode.support[target[0], 0]])),
        )

    def _compose(self, rows: Tensor) -> Tensor:
        """The mosaic of images in raster order, ``(1, 3, H, W)``."""
        images = self.features.images(rows)
        grid = self.protocol.grid
        height, width = self.model.height_and_width
        if self.protocol.cell:
            height = width = self.protocol.cell * grid
        elif self.model.takes_larger_images:
            height, width = height * grid, width * grid
        return make_mosaic(images, (height, width), grid)
