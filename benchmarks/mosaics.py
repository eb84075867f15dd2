"""The mosaics of ``captum-fam evaluate mosaic``, one by one, for code that is no method of its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam import SupportSet
from captum_fam.experiments import Mosaic, TwoPartModel
from captum_fam.experiments.data.episodes import EpisodeItems
from captum_fam.experiments.features import extract
from captum_fam.metrics import make_mosaic


class DrawnMosaics:
    """Mosaics with the classes, images and places of the protocol.

    Args:
        model: the network.
        dataset: images with labels.
        folder: keeps images and embeddings.
        count: number of mosaics.
        seed: seed of the mosaics. Default: 0.
    """

    def __init__(
        self,
        model: TwoPartModel,
        dataset: Dataset[Any],
        folder: Path,
        count: int,
        seed: int = 0,
    ) -> None:
        # What the protocol itself embeds with.
        self.fast = model.fast_copy("cpu")
        self.features = extract(self.fast, dataset, folder, ("images",))
        protocol = Mosaic(model, dataset, mosaics=count, seed=seed)
        self.sampler = protocol.sampler(self.features.labels)
        self.grid = protocol.grid

    def episode(self, number: int) -> EpisodeItems:
        """The classes, supports and images of a mosaic; class c stands in cell c.

        Args:
            number: of the mosaic.
        """
        return self.sampler.episode(number)

    def image(self, number: int) -> Tensor:
        """A mosaic as input of the network, ``(1, 3, H, W)``.

        Args:
            number: of the mosaic.
        """
        return make_mosaic(self.features.images(self.episode(number).query.flatten()), grid=self.grid)

    def support(self, number: int) -> SupportSet:
        """The embedded supports of all classes of a mosaic.

        Args:
            number: of the mosaic.
        """
        rows = self.episode(number).support
        return SupportSet(
            self.features.embeddings[rows.flatten()], torch.arange(len(rows)).repeat_interleave(rows.shape[1])
        )
