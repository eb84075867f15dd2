"""Embedding the images of a report, with the images that cannot be read left out and told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captum_fam._warnings import warn_user
from captum_fam.cli.explain_supports import report_unreadable
from captum_fam.embedding.forward import embed_images
from captum_fam.explanation.reading.pictures import read_batches
from captum_fam.explanation.reading.supports import PictureSupport, SupportReader, float_type_of
from captum_fam.models import EmbeddingModel

_MOST_IN_MEAN = 500


@dataclass(frozen=True)
class ImageEmbedder:
    """Embeds image files.

    Attributes:
        net: the model.
        device: its device.
        batch_size: images per pass through the model.
        unreadable: gets the reason for each file that cannot be read.
    """

    net: EmbeddingModel
    device: str
    batch_size: int
    unreadable: dict[Path, str]

    def embed(self, files: Sequence[Path]) -> dict[Path, Tensor]:
        """Embed the images that can be read.

        Args:
            files: different files.

        Returns:
            The embeddings ``(J,)`` by file.
        """
        reasons: dict[int, str] = {}
        dtype = float_type_of(self.net.model)
        vectors: dict[Path, Tensor] = {}
        for batch in read_batches(files, self.net.preprocessing, self.batch_size, self.device, reasons, dtype):
            rows = embed_images(self.net.model, batch.inputs)
            vectors |= {files[position]: row for position, row in zip(batch.positions, rows, strict=True)}
        report_unreadable({files[position]: reason for position, reason in reasons.items()}, self.unreadable)
        return vectors


def read_foil_images(files: Sequence[Path], seed: int, embedder: ImageEmbedder) -> PictureSupport:
    """Embed the images whose average is a foil, or a sample of 500 of them; then the user is told.

    Args:
        files: the files of the images.
        seed: the seed of the sample.
        embedder: the model, and what cannot be read.

    Raises:
        ValueError: if no image can be read.
    """
    sample = list(files)
    if len(files) > _MOST_IN_MEAN:
        sample = random.Random(seed).sample(sample, _MOST_IN_MEAN)
        warn_user(f"the foil is the average of {_MOST_IN_MEAN} of the {len(files)} images of the gallery", 1)
    net, device = embedder.net, torch.device(embedder.device)
    reader = SupportReader(net.model, lambda: net.preprocessing, embedder.batch_size, device, keep_images=False)
    reasons: dict[Path, str] = {}
    try:
        return reader.of_classes({"gallery": sample}, "--gallery", reasons)
    finally:
        report_unreadable(reasons, embedder.unreadable)
