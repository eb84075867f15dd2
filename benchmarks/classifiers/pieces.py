"""Pieces of the benchmark: the maps of one method on the images of one source, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.classifiers.methods import Method
from benchmarks.classifiers.networks import Classifier
from benchmarks.classifiers.queries import GRID, Queries
from captum_fam.experiments.measures import MEASURES, Cells, Conventions, MapBatch, Perturbable
from captum_fam.experiments.records import jsonable
from captum_fam.metrics import Result, find_empty, find_nan, map_correlation, summarize, upsample

OF_PHOTOGRAPHS = ("energy", "energy-positive", "iou", "drop", "increase")
OF_MOSAICS = ("cell-energy", "cell-hit", "cell-auroc")
WITH_CAM = "with-cam"


@dataclass
class Piece:
    """The measures of the maps of one method.

    Attributes:
        shown: rows of the photographs that each explained image shows.
        values: one number per map, by measure; None where the measure is undefined.
        nan: 1 for a map with NaN or inf, else 0.
        empty: 1 for a map without any contrast, else 0.
    """

    shown: list[list[int]] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    nan: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)

    def results(self, among: list[list[int]] | None = None) -> dict[str, Result]:
        """The mean of each measure with its interval; the maps of one mosaic count as one sample of the interval.

        Args:
            among: the images of the mean, by the rows of the photographs that they show. Default: None, all images.
        """
        kept = [index for index, rows in enumerate(self.shown) if among is None or rows in among]
        images = list(dict.fromkeys(tuple(self.shown[index]) for index in kept))
        groups = torch.tensor([images.index(tuple(self.shown[index])) for index in kept])
        nan, empty = (torch.tensor(flags, dtype=torch.bool)[kept] for flags in (self.nan, self.empty))
        return {
            name: summarize(
                torch.tensor([math.nan if value is None else value for value in values]).double()[kept],
                groups if len(images) < len(kept) else None,
                nan,
                empty,
            )
            for name, values in self.values.items()
        }


def measure(
    classifier: Classifier, method: Method, batches: Iterable[Queries], cam: Callable[[Queries], Tensor]
) -> Piece:
    """Explain images by a method, and measure the maps.

    Average drop and increase are of the probability that the classifier gives the explained class, for every method.

    Args:
        classifier: the network.
        method: the method.
        batches: photographs with boxes, or mosaics.
        cam: function from queries to the maps of CAM, with which the maps are correlated.
    """
    piece = Piece()
    for queries in batches:
        made = method.maps(queries)
        is_mosaic = not queries.boxes
        batch = MapBatch(
            made.maps,
            queries.size,
            drawing=made.drawing,
            boxes=None if is_mosaic else queries.boxes,
            images=None if is_mosaic else _perturbable(classifier, queries),
            cells=Cells(torch.arange(len(made.maps)), GRID) if is_mosaic else None,
        )
        for name in ("cells",) if is_mosaic else ("localization", "faithfulness"):
            for value, column in MEASURES[name].keep(batch, Conventions()).items():
                piece.values.setdefault(value, []).extend(column)
        # At the size of the images, since some libraries give maps of that size.
        correlation = map_correlation(*(upsample(maps, queries.size) for maps in (made.maps, cam(queries))))
        correlation = correlation.masked_fill(find_empty(made.maps), math.nan)
        piece.values.setdefault(WITH_CAM, []).extend(jsonable(correlation))
        piece.shown += queries.shown
        piece.nan += find_nan(made.maps).int().tolist()
        # A baseline that draws its mask has one, although its map is flat.
        piece.empty += (find_empty(made.maps) & (made.drawing is None)).int().tolist()
    return piece


def _perturbable(classifier: Classifier, queries: Queries) -> Perturbable:
    def probability(images: Tensor) -> Tensor:
        return classifier.logits(images).softmax(1).gather(1, queries.classes[:, None])[:, 0]

    model = classifier.model
    return Perturbable(queries.images, probability, probability(queries.images), model.mean, model.std)
