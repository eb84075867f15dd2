"""Mosaics: images of different classes side by side, and maps for supports of one of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_fam.cli.options import option, positive
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.features import Features
from captum_fam.experiments.measures import Cells, Panel
from captum_fam.experiments.protocols.base import Example
from captum_fam.experiments.protocols.features_protocol import FeaturesProtocol, PreparedFeatures
from captum_fam.experiments.protocols.registry import register_protocol
from captum_fam.experiments.records import QueryColumns, UnitRecord, jsonable
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import TableMethod
from captum_fam.images import unnormalize
from captum_fam.support import Aggregate


def _default_panel() -> Panel:
    return Panel(measures=("swap",))


@register_protocol("mosaic")
@dataclass(eq=False, kw_only=True)
class Mosaic(FeaturesProtocol):
    """Does a map follow the support? It has to point at the cell whose class the support is of.

    A mosaic has grid x grid images of different classes; each class in turn is the support, by images that are not
    in the mosaic. Chance is 1 / grid² for ``cell-energy`` and ``cell-hit``, 0.5 for ``cell-auroc``. ``swap`` is on
    the single images: their map for their own class against that for another class of the mosaic. The model's own
    number, ``accuracy``, is how often a single image is classified correctly among the classes of its mosaic.

    The maps of one mosaic share its activation: means are taken over them first, then over mosaics, which are what the
    intervals count.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: items ``(image, label)``, images as the model takes them.
        panel: methods and measures; of these ``"swap"`` alone is for mosaics, beside those of the cells. Default:
            ``Panel(measures=("swap",))``.
        grid: images per side. Default: 2.
        shot: supports per class. Default: 5.
        mosaics: how many. Default: 150.
        cell: side of an image in the mosaic. Default: as the model takes it, so that the mosaic is larger than that.
        seed: of the mosaics. Default: 0.
        aggregate: of the similarities to a class's supports, ``"mean"`` or ``"prototype"``. Default: the mean.
        batch_size: images that go through the backbone at once. Default: 32.
        num_workers: processes that read images. Default: 0.

    Raises:
        ValueError: for a grid below 2, or a measure that is not for mosaics.
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

    panel: Panel = field(default_factory=_default_panel, kw_only=False)
    grid: int = option("images per side", 2)
    shot: int = option("supports per class", 5)
    mosaics: int = option("how many", 150)
    cell: int | None = option(
        "side of an image; default: as the model takes it", None, metavar="PIXELS", parse=positive
    )
    seed: int = option("of the mosaics", 0)
    aggregate: Aggregate = option("of the similarities to the supports of a class", "mean")

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ValueError(f"grid must be at least 2, got {self.grid}")
        super().__post_init__()

    def __len__(self) -> int:
        return self.mosaics

    def prepared(self, model: TwoPartModel, features: Features) -> PreparedMosaic:
        """Draw the mosaics."""
        return PreparedMosaic(self, model, features)


class PreparedMosaic(PreparedFeatures[Mosaic]):
    """Mosaics of the images that could be used."""

    def __init__(self, protocol: Mosaic, model: TwoPartModel, features: Features) -> None:
        super().__init__(protocol, model, features)
        n_cells = protocol.grid**2
        self.sampler = EpisodeSampler(features.labels, n_cells, protocol.shot, 1, protocol.mosaics, protocol.seed)

    def run_unit(self, unit: int) -> UnitRecord:
        """The record of one mosaic."""
        protocol = self.protocol
        episode = self.sampler.episode(unit)
        rows = episode.query.flatten()
        scores_for = self.scores_of_classes(episode.support, protocol.aggregate)
        single = self.activation(rows)
        with torch.no_grad():
            scores, predicted = (part.cpu() for part in scores_for(None).predict(single))
        # One query per cell, in raster order, and one class per cell.
        cells = torch.arange(len(rows))
        target = cells.to(single.device)
        mosaic = self._compose(rows)
        activation = self.model.activation(mosaic).expand(len(rows), -1, -1, -1).contiguous()
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
        """A mosaic and the supports of one of its classes."""
        episode = self.sampler.episode(record.unit)
        target = (episode.classes == label).nonzero()[0]
        mosaic = self._compose(episode.query.flatten())
        return Example(
            unnormalize(mosaic[0], self.model.mean, self.model.std),
            self.model.activation(mosaic),
            self.scores_of_classes(episode.support, self.protocol.aggregate),
            target.to(self.model.device),
            self.image(int(self.features.items[episode.support[target[0], 0]])),
        )

    def _compose(self, rows: Tensor) -> Tensor:
        """The mosaic of these images, ``(1, 3, H, W)``, in raster order."""
        images = self.features.images(rows)
        side = self.protocol.cell or self.model.size
        if images.shape[2:] != (side, side):
            images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        lines = [torch.cat(list(line), 2) for line in images.split(self.protocol.grid)]
        return torch.cat(lines, 1)[None]
