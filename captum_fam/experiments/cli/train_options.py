"""The options of ``captum-fam train`` that are no settings of a recipe."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captum_fam.cli.options import option
from captum_fam.cli.ranges import at_least
from captum_fam.experiments.training.training_run import Precision


def none_or_every(text: str) -> int:
    """A type for an option that takes N for every Nth, or 0 for none.

    Args:
        text: the word on the command line.

    Returns:
        0, or a number of at least 2.

    Raises:
        argparse.ArgumentTypeError: for any other word.

    Example:
        >>> none_or_every("0"), none_or_every("5")
        (0, 5)
    """
    if not (text.isascii() and text.isdecimal()) or int(text) == 1:
        raise argparse.ArgumentTypeError(f"expected 0 or a whole number of at least 2, got {text!r}")
    return int(text)


@dataclass(frozen=True)
class NetworkOptions:
    """The options of the network to train.

    Attributes:
        model: name of the network.
        weights: file of the initial weights; None or ``"none"`` for random weights, or those that a factory gives.
            Default: None.
        size: side of the images, in pixels; None for the size of the model. Default: None.
    """

    model: str = option("name of the network for captum_fam.models.create_model: conv4net, ...")
    weights: str | None = option(
        "file of the initial weights; default: random weights, or those that a factory gives", None, metavar="FILE"
    )
    size: int | None = option("side of the images; default: the model's", None, metavar="PIXELS", within=at_least(1))


@dataclass(frozen=True)
class ResourceOptions:
    """The options of any recipe that concern speed and files.

    Attributes:
        precision: precision of the network. Default: ``"float32"``.
        cache: folder for decoded images and features; None for the folder of the run. Default: None.
        num_workers: number of processes that read images. Default: 0.
        tensorboard: whether curves are written. Default: False.
    """

    precision: Precision = option("precision of the network; bfloat16 halves the time, also on most CPUs", "float32")
    cache: Path | None = option("folder for decoded images and features; default: --out", None, metavar="DIR")
    num_workers: int = option("number of processes that read images", 0, within=at_least(0))
    tensorboard: bool = option("write curves to DIR/tensorboard", False)


@dataclass(frozen=True)
class FewShotTestOptions:
    """The option of the test after few-shot training.

    Attributes:
        test_episodes: number of episodes of the novel classes. Default: 2000.
    """

    test_episodes: int = option(
        "episodes of the novel classes, which measure the best epoch in the end", 2000, within=at_least(1)
    )


@dataclass(frozen=True)
class MetricHeadOptions:
    """The options of metric learning that concern the head and the validation classes.

    Attributes:
        freeze_backbone: whether only a head is trained. Default: False.
        pooling: pooling before a new head; None for the pooling of the model. Default: None.
        embedding_size: number of outputs of a new head. Default: 512.
        hold_out: N, where every Nth training class chooses the best step; 0 for none. Default: 5.
    """

    freeze_backbone: bool = option("train only a head, in seconds, on features of squashed images", False)
    pooling: Literal["gap", "gmp"] | None = option("pooling before a new head; default: the model's", None)
    embedding_size: int = option("number of outputs of a new head", 512, within=at_least(1))
    hold_out: int = option(
        "hold out every Nth training class to choose the best step; 0: none, the last step is kept",
        5,
        parse=none_or_every,
    )


@dataclass(frozen=True)
class ProxyHeadOptions:
    """The options of a linear head that separates classes by the cosine.

    Attributes:
        width: number of outputs of the head. Default: 128.
        steps: number of steps of the optimizer. Default: 300.
        seed: seed of the initial weights. Default: 0.
    """

    width: int = option("number of outputs of the head", 128, within=at_least(1))
    steps: int = option("steps of the optimizer", 300, within=at_least(1))
    seed: int = option("seed of the initial weights", 0, within=at_least(0))
