"""The mosaics of ``captum-fam evaluate mosaic`` as questions to any package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.mosaics import DrawnMosaics
from benchmarks.networks import Network
from benchmarks.peers.question import Contrast, Question, Subject
from captum_fam import create_model
from captum_fam.experiments import load_dataset, load_model

SPLIT = "novel"


class Mosaics(DrawnMosaics):
    """A network, and mosaics of four classes with five supports each; the classes, images and places of the protocol.

    Args:
        model: name of the network, or the network.
        weights: file of its weights.
        data: source of the images.
        folder: keeps images and embeddings.
        count: number of mosaics.
        middle: dotted name of an intermediate layer.
    """

    def __init__(self, model: str, weights: Path | None, data: str, folder: Path, count: int, middle: str) -> None:
        parts = load_model(model, weights)
        super().__init__(parts, load_dataset(data, SPLIT, parts), folder, count)
        # The protocol embeds with a copy that is cut at the layer; packages get the model whole.
        self.subject = _subject(model, weights, middle)
        self._embeddings: dict[int, Tensor] = {}

    def question(self, number: int, targets: tuple[int, ...], contrast: Contrast) -> Question:
        """A mosaic with its supports; class t stands in cell t.

        Args:
            number: of the mosaic.
            targets: the classes to explain.
            contrast: what is subtracted from their scores.
        """
        episode = self.episode(number)
        support_images = self.features.images(episode.support.flatten())
        is_other = ~torch.isin(self.features.labels, episode.classes)
        return Question(
            self.image(number),
            support_images.unflatten(0, episode.support.shape),
            self.features.embeddings[episode.support],
            self.features.embeddings[is_other],
            targets,
            contrast,
        )

    def embedding(self, number: int) -> Tensor:
        """The embedding of a mosaic, ``(1, J)``, computed once for all rows.

        Args:
            number: of the mosaic.
        """
        if number not in self._embeddings:
            with torch.no_grad():
                self._embeddings[number] = self.subject.model(self.question(number, (0,), "none").image)
        return self._embeddings[number]


def mosaics_of(network: Network, shared: Path, folder: Path, count: int) -> Mosaics:
    """The mosaics of a network of the tables.

    Args:
        network: the network.
        shared: folder of data and weights.
        folder: keeps images and embeddings.
        count: number of mosaics.
    """
    middle = network.middle.removeprefix("rest.")
    data = str(shared / "data" / "cub50")
    return Mosaics(network.model, network.weights(shared), data, folder, count, middle)


def _subject(name: str, weights: Path | None, middle: str) -> Subject:
    net = create_model(name, weights)
    return Subject(net.model, net.layer_module, net.model.get_submodule(middle), net.mean, net.std)
