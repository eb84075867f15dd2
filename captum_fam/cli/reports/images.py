"""Embedding the images of a report, with the images that cannot be read left out and told."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from captum_fam._warnings import warn_user
from captum_fam.cli.class_files import read_classes, report_unreadable
from captum_fam.cli.loading import RunOptions
from captum_fam.embedding.forward import embed_images
from captum_fam.explanation.reading.pictures import read_batches
from captum_fam.explanation.reading.supports import PictureSupport, float_type_of
from captum_fam.models import EmbeddingModel

_MOST_IN_MEAN = 500


@dataclass(frozen=True)
class ImageEmbedder:
    """Embeds image files.

    Attributes:
        net: the model.
        device: its device.
        run: the options for the work through the images.
        unreadable: gets the reason for each file that cannot be read.
    """

    net: EmbeddingModel
    device: str
    run: RunOptions
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
        for batch in read_batches(files, self.net.preprocessing, self.run.batch_size, self.device, reasons, dtype):
            rows = embed_images(self.net.model, batch.inputs)
            vectors |= {files[position]: row for position, row in zip(batch.positions, rows, strict=True)}
        report_unreadable({files[position]: reason for position, reason in reasons.items()}, self.unreadable)
        return vectors

    def read(self, classes: Mapping[str, Sequence[Path]], option: str, *, keep_images: bool) -> PictureSupport:
        """Read images by class as a support, as :func:`~captum_fam.cli.class_files.read_classes`.

        Args:
            classes: files by class.
            option: the option of the files.
            keep_images: whether the support keeps the images; else it has their embeddings.

        Raises:
            ValueError: if no image of a class can be read.
        """
        return read_classes(classes, option, self.net, self.device, self.run, self.unreadable, keep_images=keep_images)


def read_foil_images(files: Sequence[Path], option: str, seed: int, embedder: ImageEmbedder) -> PictureSupport:
    """Embed the images whose average is a foil, or a sample of 500 of them; then the user is told.

    Args:
        files: the files of the images.
        option: where the files come from, for messages and the progress bar.
        seed: the seed of the sample.
        embedder: the model, and what cannot be read.

    Raises:
        ValueError: if no image can be read.
    """
    sample = list(files)
    if len(files) > _MOST_IN_MEAN:
        sample = random.Random(seed).sample(sample, _MOST_IN_MEAN)
        warn_user(f"the foil is the average of {_MOST_IN_MEAN} of the {len(files)} images of the gallery", 1)
    return embedder.read({"gallery": sample}, option, keep_images=False)
