"""The settings of contrastive training: instance discrimination with a memory bank (NPID), and momentum contrast."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from typing import Literal

from captum_fam.cli.options import check_fields, option
from captum_fam.cli.ranges import above, at_least, between

Projection = Literal["auto", "linear", "mlp", "none"]

_MOST_KEYS = 65_536


@dataclass(frozen=True)
class ContrastiveRecipe:
    """The settings that :class:`NPIDRecipe` and :class:`MoCoRecipe` share, with their defaults for ImageNet.

    Attributes:
        epochs: passes through the images. Default: 200.
        batch_size: images per step of the optimizer, SGD, over all processes; the images that fill no batch are left
            out of an epoch. Default: 256.
        learning_rate: learning rate of the first epoch. Default: 0.03.
        schedule: ``"steps"``: the rate is divided by ten at each milestone; ``"cosine"``: the rate falls to zero as
            half a cosine. The rate changes from epoch to epoch. Default: ``"steps"``.
        milestones: epochs, of 200 epochs, at which the rate falls with ``schedule="steps"``. Default: 120, 160.
        momentum: momentum of SGD. Default: 0.9.
        weight_decay: weight decay of all parameters. Default: 1e-4.
        temperature: temperature of the softmax. Default: 0.07.
        augmentation: ``"v1"``: crop, mirror, strong color jitter, gray (NPID, MoCo v1); ``"v2"``: color jitter for 80 %
            of the images with less hue, and a blur (MoCo v2). Default: ``"v1"``.
        smallest_crop: smallest share of the area that a random crop has. Default: 0.2.
        projection: the head that a model without a head gets: ``"linear"``; ``"mlp"``, with a hidden layer and a ReLU
            before; ``"none"``. ``"auto"``: the head of the paper. Default: ``"auto"``.
        embedding_size: number of outputs of that head. Default: 128.
        norm_groups: parts of a batch, each with batch statistics of its own in batch normalization. Default: 1.
        k: neighbors that vote in the k-NN accuracy. Default: 200.
        knn_images: training images at most, evenly spaced, that may vote. Default: 50,000.
        seed: seed of order, augmentation, negatives, and new heads. Default: 1.

    Raises:
        ValueError: for a number out of its range, an unknown name, or groups of different sizes.

    Example:
        >>> recipe = NPIDRecipe(epochs=100)
        >>> recipe.rate(59), round(recipe.rate(60), 6), recipe.head
        (0.03, 0.003, 'linear')
    """

    epochs: int = option("passes through the images", 200, within=at_least(1))
    batch_size: int = option(
        "images per step of the optimizer, SGD, over all processes; images that fill no batch are left out of an epoch",
        256,
        within=at_least(2),
    )
    learning_rate: float = option("learning rate of the first epoch", 0.03, within=above(0))
    schedule: Literal["steps", "cosine"] = option(
        "how the rate falls: divided by ten at each milestone, or to zero as half a cosine", "steps"
    )
    milestones: tuple[int, ...] = option(
        "epochs, of 200, at which the rate falls with --schedule steps", (120, 160), within=at_least(0)
    )
    momentum: float = option("momentum of SGD", 0.9, within=between(0, 1, without_most=True))
    weight_decay: float = option("weight decay of all parameters", 1e-4, within=at_least(0))
    temperature: float = option("temperature of the softmax", 0.07, within=above(0))
    augmentation: Literal["v1", "v2"] = option(
        "v1: crop, mirror, color jitter, gray (NPID, MoCo v1); v2: less jitter, and blur (MoCo v2)", "v1"
    )
    smallest_crop: float = option("smallest share of the area that a random crop has", 0.2, within=between(0.01, 1))
    projection: Projection = option(
        "head that a model without a head gets, with a file of its own; auto: linear for npid, MLP for moco", "auto"
    )
    embedding_size: int = option("number of outputs of that head", 128, within=at_least(1))
    norm_groups: int = option(
        "parts of a batch, each with batch statistics of its own in batch normalization; divides the batch size",
        1,
        within=at_least(1),
    )
    k: int = option("neighbors that vote in the k-NN accuracy", 200, within=at_least(1))
    knn_images: int = option("training images at most, evenly spaced, that may vote", 50_000, within=at_least(1))
    seed: int = option("seed of order, augmentation, negatives and new heads", 1, within=at_least(0))

    def __post_init__(self) -> None:
        check_fields(self)
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be in ascending order, got {self.milestones}")
        if self.batch_size % self.norm_groups:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of norm_groups={self.norm_groups}")

    @property
    def head(self) -> Literal["linear", "mlp", "none"]:
        """The head that a model without a head gets."""
        return "linear" if self.projection == "auto" else self.projection

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: number of the epoch, counted from zero.
        """
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate * 0.1 ** bisect(self.milestones, 200 * epoch / self.epochs)

    def check(self, n_images: int, n_processes: int = 1) -> None:
        """Check that the images suffice, and that the processes can share each batch.

        Args:
            n_images: number of training images.
            n_processes: number of processes. Default: 1.

        Raises:
            ValueError: if the images fill no batch, or a batch or its groups cannot be shared equally.
        """
        if n_images < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} is more than the {n_images} training images; lower it")
        if self.batch_size % n_processes:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of the {n_processes} processes")
        if self.norm_groups > 1 and self.norm_groups % n_processes:
            raise ValueError(f"norm_groups={self.norm_groups} must be a multiple of the {n_processes} processes, or 1")

    def check_neighbors(self, n_images: int) -> None:
        """Check that there are as many voters in the k-NN accuracy as have to vote.

        Args:
            n_images: number of training images.

        Raises:
            ValueError: if there are fewer.
        """
        voters = min(n_images, self.knn_images)
        if self.k > voters:
            raise ValueError(f"k={self.k} is more than the {voters} training images that can vote; lower it")


@dataclass(frozen=True)
class NPIDRecipe(ContrastiveRecipe):
    """Non-parametric instance discrimination (Wu et al., CVPR 2018): every image is a class of its own.

    Attributes:
        bank_momentum: share of its old value that a row of the bank keeps in an update. Default: 0.5.
        negatives: rows of the bank that are drawn as negatives in each step; 0 for all rows; None for all rows of a
            bank of up to 65,537 rows, and 65,536 rows of a larger bank. Default: None.

    See :class:`ContrastiveRecipe` for the other settings.

    Example:
        >>> NPIDRecipe().n_negatives(1000), NPIDRecipe().n_negatives(1_281_167)
        (0, 65536)
    """

    bank_momentum: float = option(
        "share of its old value that a row of the bank keeps", 0.5, within=between(0, 1, without_most=True)
    )
    negatives: int | None = option(
        "rows of the bank drawn as negatives in each step; 0: all; default: all, at most 65536",
        None,
        within=at_least(0),
    )

    def n_negatives(self, n_images: int) -> int:
        """The number of rows that are drawn in each step, 0 for all rows.

        Args:
            n_images: number of training images.
        """
        wanted = _MOST_KEYS if self.negatives is None else self.negatives
        return wanted if 0 < wanted < n_images - 1 else 0


@dataclass(frozen=True)
class MoCoRecipe(ContrastiveRecipe):
    """Momentum contrast, version 2 (He et al., CVPR 2020; Chen et al., 2020).

    Version 1 is ``MoCoRecipe(projection="linear", augmentation="v1", schedule="steps", temperature=0.07)``.

    Attributes:
        key_momentum: share of its old weights that the key encoder keeps in each step. Default: 0.999.
        queue: number of keys that are negatives, at least ``batch_size``; None for 65,536, or for as many whole batches
            as half of the images fill if this is less. So a key has mostly left the queue when its image comes again.
            Default: None.

    The defaults of five shared settings differ: ``schedule`` is ``"cosine"``, ``temperature`` 0.2, ``augmentation``
    ``"v2"``, the head of the paper an MLP, and ``norm_groups`` 8, as on the eight GPUs of the authors. See
    :class:`ContrastiveRecipe` for the other settings.

    Example:
        >>> MoCoRecipe().queue_length(1_281_167), MoCoRecipe().queue_length(1500)
        (65536, 512)
    """

    schedule: Literal["steps", "cosine"] = option(
        "how the rate falls: divided by ten at each milestone, or to zero as half a cosine", "cosine"
    )
    temperature: float = option("temperature of the softmax", 0.2, within=above(0))
    augmentation: Literal["v1", "v2"] = option(
        "v1: crop, mirror, color jitter, gray (NPID, MoCo v1); v2: less jitter, and blur (MoCo v2)", "v2"
    )
    norm_groups: int = option(
        "parts of a batch, each with batch statistics of its own in batch normalization, among which the keys are "
        "shuffled; divides the batch size",
        8,
        within=at_least(1),
    )
    key_momentum: float = option(
        "share of its old weights that the key encoder keeps in each step; 0.99 for a training of few steps",
        0.999,
        within=between(0, 1),
    )
    queue: int | None = option(
        "keys that are negatives; default: 65536, or less for fewer than 131072 images: whole batches of half of them",
        None,
        within=at_least(1),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queue is not None and self.queue < self.batch_size:
            raise ValueError(f"queue={self.queue} must hold a batch, batch_size={self.batch_size}; raise it")

    @property
    def head(self) -> Literal["linear", "mlp", "none"]:
        """The head that a model without a head gets."""
        return "mlp" if self.projection == "auto" else self.projection

    def queue_length(self, n_images: int) -> int:
        """The number of keys in the queue.

        Args:
            n_images: number of training images.
        """
        if self.queue is not None:
            return self.queue
        batches = min(_MOST_KEYS, n_images // 2) // self.batch_size
        return max(batches, 1) * self.batch_size
