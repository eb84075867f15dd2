"""What is explained: photographs that the network classifies correctly, and mosaics of four of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.classifiers.networks import Classifier
from benchmarks.classifiers.photographs import Photographs
from benchmarks.pieces import kept_tensors
from captum_fam.metrics import make_mosaic

GRID = 2  # photographs per side of a mosaic
BATCH = 8


@dataclass(frozen=True)
class Known:
    """What the network says of all photographs of a source.

    Attributes:
        embeddings: pooled outputs of the layer, ``(n, J)``.
        logits: outputs of the classifier, ``(n, 1000)``.
    """

    embeddings: Tensor
    logits: Tensor

    def correct(self, labels: Tensor) -> Tensor:
        """Which photographs get their class, boolean ``(n,)``.

        Args:
            labels: class of each photograph, ``(n,)``.
        """
        return self.logits.argmax(1) == labels


@dataclass(frozen=True)
class Queries:
    """A batch of images, each with a class that is explained.

    Attributes:
        images: inputs of the network, ``(B, 3, H, W)``.
        activation: output of the layer, ``(B, N, h, w)``.
        classes: the explained class of each image, ``(B,)``.
        runners_up: the class with the largest logit beside the explained class, ``(B,)``.
        shown: rows of the photographs that each image shows, which are no supports of the image.
        boxes: boxes of each photograph, ``(m, 4)``; empty for mosaics.
    """

    images: Tensor
    activation: Tensor
    classes: Tensor
    runners_up: Tensor
    shown: list[list[int]]
    boxes: list[Tensor]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def first(self, count: int) -> Queries:
        """The first images of the batch.

        Args:
            count: number of images, at most.
        """
        return Queries(*(getattr(self, part.name)[:count] for part in fields(self)))


def know(classifier: Classifier, photographs: Photographs, file: Path) -> Known:
    """Run the network on all photographs of a source, or read what an earlier run wrote.

    Args:
        classifier: the network.
        photographs: the source.
        file: file for the results.
    """

    def make() -> dict[str, Tensor]:
        embeddings, logits = [], []
        for rows in torch.arange(len(photographs)).split(BATCH):
            images, _ = photographs.read(rows.tolist())
            with torch.no_grad():
                embeddings.append(classifier.model.tail(classifier.model.activation(images)))
            logits.append(classifier.logits(images))
        return {"embeddings": torch.cat(embeddings), "logits": torch.cat(logits)}

    stored = kept_tensors(file, make)
    if len(stored["logits"]) != len(photographs):
        raise SystemExit(f"{file} has {len(stored['logits'])} photographs, the folder has {len(photographs)}")
    return Known(**stored)


def explainable(known: Known, labels: Tensor) -> list[int]:
    """Rows of the photographs that get their class and have another photograph of the class, in random order.

    Args:
        known: what the network says of the photographs.
        labels: class of each photograph, ``(n,)``.
    """
    has_support = labels.bincount()[labels] > 1
    rows = (known.correct(labels) & has_support).nonzero()[:, 0]
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))].tolist()


def single_photographs(
    classifier: Classifier, photographs: Photographs, known: Known, rows: list[int]
) -> list[Queries]:
    """Photographs, each explained for its class, in batches.

    Args:
        classifier: the network.
        photographs: the source.
        known: what the network says of the photographs.
        rows: which photographs.
    """
    batches = []
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        images, boxes = photographs.read(chosen)
        classes = photographs.labels[chosen]
        runners_up = _largest_beside(known.logits[chosen], classes)
        activation = classifier.model.activation(images)
        batches.append(Queries(images, activation, classes, runners_up, [[row] for row in chosen], boxes))
    return batches


def draw_mosaics(labels: Tensor, rows: Sequence[int], number: int) -> list[list[int]]:
    """Draw photographs of four different classes, for each mosaic.

    Args:
        labels: class of each photograph, ``(n,)``.
        rows: the photographs to choose from.
        number: number of mosaics.
    """
    generator = torch.Generator().manual_seed(0)
    mosaics: list[list[int]] = []
    while len(mosaics) < number:
        order = torch.randperm(len(rows), generator=generator).tolist()
        first_of_class = {int(labels[rows[place]]): rows[place] for place in order}
        mosaics.append(list(first_of_class.values())[: GRID**2])
    return mosaics


def mosaics(classifier: Classifier, photographs: Photographs, drawn: list[list[int]]) -> list[Queries]:
    """Mosaics, each explained once for the class of each of its photographs; one batch per mosaic.

    Args:
        classifier: the network.
        photographs: the source.
        drawn: rows of the photographs of each mosaic, in raster order.
    """
    batches = []
    for rows in drawn:
        images, _ = photographs.read(rows)
        mosaic = make_mosaic(images, grid=GRID)
        classes = photographs.labels[rows]
        runners_up = _largest_beside(classifier.logits(mosaic).expand(len(rows), -1), classes)
        activation = classifier.model.activation(mosaic).expand(len(rows), -1, -1, -1)
        batches.append(Queries(mosaic.expand(len(rows), -1, -1, -1), activation, classes, runners_up, [rows] * 4, []))
    return batches


def _largest_beside(logits: Tensor, classes: Tensor) -> Tensor:
    """The class with the largest logit beside one class per image, ``(B,)``."""
    return logits.scatter(1, classes[:, None], -torch.inf).argmax(1)
