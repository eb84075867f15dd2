"""Photographs with boxes whose classes are classes of ImageNet, numbered 0 to 999 in the order of torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captum_fam.experiments import TwoPartModel
from captum_fam.experiments.data import CUB200, ImageNetBoxes
from captum_fam.experiments.data.boxed_images import BoxedImages

# CUB's species whose class ImageNet has too. The synset of class 11 is called Carduelis carduelis, the European
# goldfinch; the American goldfinch is not set apart by any other class. Only images that the network gives the class
# are explained.
SPECIES = {
    "001.Black_footed_Albatross": "n02058221",
    "002.Laysan_Albatross": "n02058221",
    "003.Sooty_Albatross": "n02058221",
    "014.Indigo_Bunting": "n01537544",
    "047.American_Goldfinch": "n01531178",
    "048.European_Goldfinch": "n01531178",
}


@dataclass(frozen=True)
class Photographs:
    """Photographs as inputs of a network.

    Attributes:
        name: name in the names of folders.
        title: name in a sentence.
        images: data set of items ``(image, label, boxes)``; its own labels are not used.
        items: positions of the photographs in the data set.
        labels: class of each photograph, ``(n,)``, from 0 to 999.
    """

    name: str
    title: str
    images: BoxedImages
    items: list[int]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.items)

    def read(self, rows: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Read photographs.

        Args:
            rows: which of the n photographs.

        Returns:
            Images ``(B, 3, H, W)`` and the boxes of each, ``(m, 4)``.
        """
        read = [self.images[self.items[row]] for row in rows]
        return torch.stack([item.image for item in read]), [item.boxes for item in read]


def class_names(shared: Path) -> dict[str, str]:
    """Names of ImageNet's 1,000 classes by WordNet id, in the order of torchvision.

    Args:
        shared: folder of data and weights.
    """
    lines = (shared / "data" / "imagenet1300" / "synset_words.txt").read_text().splitlines()
    return {wnid: name for wnid, _, name in (line.partition(" ") for line in lines)}


def imagenet(shared: Path, model: TwoPartModel) -> Photographs:
    """1,300 validation images of ImageNet with all their boxes.

    Args:
        shared: folder of data and weights.
        model: model whose geometry and normalization the images get.
    """
    folder = shared / "data" / "imagenet1300"
    images = ImageNetBoxes(
        folder / "images", folder / "LOC_val_solution.csv", list(class_names(shared)), model.geometry, model.normalize
    )
    labels = torch.tensor([record.label for record in images.records])
    return Photographs("imagenet", "ImageNet, validation", images, list(range(len(labels))), labels)


def cub(shared: Path, model: TwoPartModel) -> Photographs:
    """The photographs of CUB whose species are classes of ImageNet.

    Args:
        shared: folder of data and weights.
        model: model whose geometry and normalization the images get.
    """
    images = CUB200(shared / "data" / "cub50", "all", model.geometry, model.normalize)
    index = {wnid: number for number, wnid in enumerate(class_names(shared))}
    class_of = {images.class_names.index(species): index[wnid] for species, wnid in SPECIES.items()}
    items = [item for item, record in enumerate(images.records) if record.label in class_of]
    labels = torch.tensor([class_of[images.records[item].label] for item in items])
    return Photographs("cub", "CUB, species that are classes of ImageNet", images, items, labels)


def few(photographs: Photographs) -> Photographs:
    """The first four photographs of each of eight classes that have as many, for a small run.

    Args:
        photographs: the source.
    """
    rows: list[int] = []
    classes = [label for label, number in enumerate(photographs.labels.bincount().tolist()) if number >= 4][:8]
    for label in classes:
        rows += (photographs.labels == label).nonzero()[:4, 0].tolist()
    items = [photographs.items[row] for row in rows]
    return Photographs(photographs.name, photographs.title, photographs.images, items, photographs.labels[rows])


SOURCES = {"imagenet": imagenet, "cub": cub}
