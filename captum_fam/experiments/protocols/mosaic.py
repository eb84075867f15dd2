"""Mosaics: images of different classes side by side, and maps for supports of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.measures import Panel, jsonable
from captum_fam.experiments.protocols.base import Example, FeaturesProtocol
from captum_fam.experiments.records import Record
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import MapMethod
from captum_fam.images import unnormalize
from captum_fam.support import Aggregate


class Mosaic(FeaturesProtocol):
    """Does a map follow the support? It has to point at the cell whose class the support is of.

    A mosaic has grid x grid images of different classes; each class in turn is the support, by images that are not
    in the mosaic. Chance is 1 / grid² for ``cell-energy`` and ``cell-hit``, 0.5 for ``cell-auroc``. ``swap`` is on
    the single images: their map for their own class against that for another class of the mosaic. The model's own
    number, ``correct``, is how often a single image is classified correctly among the classes of its mosaic.

    The maps of one mosaic share its activation: means are taken over them first, then over mosaics, which are what the
    intervals count.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: items ``(image, label)``, images as the model takes them.
        panel: methods and measures; of these ``"swap"`` alone is for mosaics, beside those of the cells.
        grid: images a side.
        shot: supports a class.
        mosaics: how many.
        cell: side of an image in the mosaic; None: as the model takes it, so that the mosaic is larger than that.
        seed: of the mosaics.
        aggregate: of the similarities to a class's supports, ``"mean"`` or ``"prototype"``.
        batch_size: images that go through the backbone at once.
        num_workers: processes that read images.

    Raises:
        ValueError: for a grid below 2, or a measure that is not for mosaics.
    """

    name = "mosaic"
    unit = "mosaic"
    units = "mosaics"
    by_unit = True
    explained = "label"
    keeps_images = True

    def __init__(
        self,
        model: TwoPartModel,
        dataset: Dataset[Any],
        panel: Panel | None = None,
        *,
        grid: int = 2,
        shot: int = 5,
        mosaics: int = 150,
        cell: int | None = None,
        seed: int = 0,
        aggregate: Aggregate = "mean",
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        if grid < 2:
            raise ValueError(f"grid must be at least 2, got {grid}")
        panel = panel or Panel(measures=("swap",))
        others = sorted({*panel.measures} - {"swap"})
        if others:
            raise ValueError(
                f"measures: {', '.join(others)} is not for mosaics, which have cell-energy, cell-hit and cell-auroc, "
                "and swap if asked for (--measures swap)"
            )
        super().__init__(model, dataset, panel, batch_size=batch_size, num_workers=num_workers)
        self.grid = grid
        self.shot = shot
        self.mosaics = mosaics
        self.cell = cell or model.size
        self.seed = seed
        self.aggregate = aggregate

    def __len__(self) -> int:
        return self.mosaics

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        own = ("grid", "shot", "mosaics", "cell", "seed", "aggregate")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def prepare(self, folder: Path, ranks: Ranks, progress: bool) -> None:
        """Every single image through the backbone once, then the mosaics."""
        super().prepare(folder, ranks, progress)
        self._sampler = EpisodeSampler(self._features.labels, self.grid**2, self.shot, 1, self.mosaics, self.seed)

    def _run(self, unit: int) -> Record:
        episode = self._sampler.episode(unit)
        rows = episode.query.flatten()
        scores_for = self._scores_of_classes(episode.support, self.aggregate)
        single = self._activation(rows)
        with torch.no_grad():
            scores = scores_for(None)(single)
        predicted = scores.argmax(1).cpu()
        cells = torch.arange(len(rows))
        target = cells.to(single.device)
        image = self._compose(rows)
        activation = self.model.activation(image).expand(len(rows), -1, -1, -1).contiguous()
        size = (image.shape[2], image.shape[3])

        def pairs(method: MapMethod, _: Tensor) -> tuple[Tensor, Tensor]:
            first = self.maps(method, scores_for, single, target)
            return first, self.maps(method, scores_for, single, (target + 1) % len(rows))

        return {
            "unit": unit,
            "queries": {
                "item": jsonable(self._features.items[rows]),
                "label": jsonable(episode.classes),
                "predicted": jsonable(episode.classes[predicted]),
                "confidence": jsonable(scores.softmax(1).amax(1)),
                "correct": jsonable(predicted == cells),
            },
            "explained": {
                "row": jsonable(cells),
                **self.panel.values(
                    lambda method: self.account(method, scores_for, activation, target, size),
                    size,
                    pairs_of=pairs,
                    cells=(target, self.grid),
                ),
            },
        }

    def example(self, record: Record, query: int, label: int) -> Example:
        """A mosaic and the supports of one of its classes."""
        episode = self._sampler.episode(record["unit"])
        target = (episode.classes == label).nonzero()[0]
        image = self._compose(episode.query.flatten())
        return Example(
            unnormalize(image[0], self.model.mean, self.model.std),
            self.model.activation(image),
            self._scores_of_classes(episode.support, self.aggregate),
            target.to(self.model.device),
            self.image(int(self._features.items[episode.support[target[0], 0]])),
        )

    def _compose(self, rows: Tensor) -> Tensor:
        """The mosaic of these images, ``(1, 3, H, W)``, in raster order."""
        images = self._features.images(rows)
        if images.shape[2:] != (self.cell, self.cell):
            images = torch.nn.functional.interpolate(images, (self.cell, self.cell), mode="bilinear", antialias=True)
        lines = [torch.cat(list(line), 2) for line in images.split(self.grid)]
        return torch.cat(lines, 1)[None]
