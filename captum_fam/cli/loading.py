"""The model of a command: the options that name the model, and the function that loads it."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from captum_fam.cli.options import option
from captum_fam.cli.ranges import at_least
from captum_fam.models import EmbeddingModel, create_model, default_weights, has_factory_weights
from captum_fam.preprocessing import Resize, check_size

Missing = Literal["refuse", "warn", "ignore"]


def image_size(text: str) -> int | tuple[int, int]:
    """A type for an option that takes the size of images: ``224``, or ``256x128`` for height x width.

    Args:
        text: the word on the command line.

    Returns:
        The side of a square, or ``(height, width)``, in pixels.

    Raises:
        argparse.ArgumentTypeError: for anything but one or two whole numbers from 1 to 4096.

    Example:
        >>> image_size("224"), image_size("256x128")
        (224, (256, 128))
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"expected pixels as in 224, or height x width as in 256x128, got {text!r}")
    try:
        return check_size(int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1])))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def output_field(text: str) -> str | int:
    """A type for an option that takes a field of the output of a model, or an index.

    Args:
        text: the word on the command line.

    Returns:
        The name, or the index as a number.

    Example:
        >>> output_field("pooler_output"), output_field("-1")
        ('pooler_output', -1)
    """
    return int(text) if text.removeprefix("-").isdecimal() else text


@dataclass(frozen=True)
class ModelOptions:
    """The options that name the model of a command, and what it is used with.

    Attributes:
        model: name of the model. Default: ``"resnet50"``.
        weights: file or tag of weights, or ``"none"``; None for the weights that the model has by default. Default:
            None.
        layer: layer to explain; None for the layer of the model. Default: None.
        output: field or index of the embedding in the output of the model; None to find it. Default: None.
        similarity: name of the similarity; None for the similarity of the model. Default: None.
        size: side of the square images, or ``(height, width)``, in pixels; None for the size of the model. Default:
            None.
        resize: how images get their size; None for the way of the model, mostly ``"squash"``. Default: None.
    """

    model: str = option(
        "NAME of torchvision, timm/NAME, hf/NAME or hf/FOLDER (transformers), open_clip/NAME, demo, a registered name, "
        "or FILE.py:FACTORY or MODULE:FACTORY of your own",
        "resnet50",
        metavar="NAME",
    )
    weights: str | None = option(
        "file of weights (.pth, .pt, .tar, .safetensors), or FILE#KEY if it holds several networks; none for random "
        "weights; a TAG of open_clip; default: the pretrained weights of the library, downloaded once",
        None,
        metavar="FILE|none|TAG",
    )
    layer: str | None = option(
        "layer whose output the maps explain; default: the model's, or found by measurement: layer4 of a ResNet", None
    )
    output: str | int | None = option(
        "which part of the model's output is the embedding; default: image_embeds or pooler_output",
        None,
        metavar="FIELD|INDEX",
        parse=output_field,
    )
    similarity: str | None = option(
        "similarity of embeddings: cosine, dot, euclidean, squared-euclidean, ...; default: the model's, mostly cosine",
        None,
    )
    size: int | tuple[int, int] | None = option(
        "size of the images: N for a square, or HxW (height x width) as in 256x128; default: the model's",
        None,
        metavar="PIXELS",
        parse=image_size,
    )
    resize: Resize | None = option(
        "how images get this size: squash changes the aspect ratio; pad fills the sides; crop cuts out the center; "
        "keep makes the longer side N; default: squash",
        None,
    )

    def load(self) -> EmbeddingModel:
        """Load the model with these options.

        Returns:
            The model in eval mode, on the CPU.

        Raises:
            ValueError: for an unknown model, layer or similarity, a size that the model does not take, missing weights,
                weights that do not fit the model, or a model whose output holds no embedding.
            ImportError: for a library that is not installed, or code that cannot be imported.
        """
        check_weights(self.model, self.weights, "--weights FILE")
        return create_model(
            self.model,
            self.weights or default_weights(self.model),
            layer=self.layer,
            output=self.output,
            similarity=self.similarity,
            size=self.size,
            resize=self.resize,
        )


def usable_device(text: str) -> str:
    """A type for an option that takes a device of this machine.

    Args:
        text: the word on the command line.

    Returns:
        The word.

    Raises:
        argparse.ArgumentTypeError: for a word that names no device, or a device that this machine does not have.

    Example:
        >>> usable_device("cpu")
        'cpu'
    """
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine, which has {there}") from error
    return text


def window_side(text: str) -> int:
    """A type for an option that takes the side of a window with a cell in its middle.

    Args:
        text: the word on the command line.

    Returns:
        The number of cells.

    Raises:
        argparse.ArgumentTypeError: for anything but an odd whole number of at least 1.

    Example:
        >>> window_side("5")
        5
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) % 2):
        raise argparse.ArgumentTypeError(f"expected an odd whole number, at least 1, got {text!r}")
    return int(text)


@dataclass(frozen=True)
class RunOptions:
    """The options for the work through the images of a command.

    Attributes:
        batch_size: images per batch. Default: 32.
        device: device of the model; None for a GPU if there is one. Default: None.
        quiet: whether progress bars are hidden. Default: False.
    """

    batch_size: int = option("images per pass through the model", 32, within=at_least(1))
    device: str | None = option(
        "cpu, cuda, cuda:1, ...; default: cuda if there is a GPU, else cpu", None, metavar="NAME", parse=usable_device
    )
    quiet: bool = option("show no progress bars", False)


@dataclass(frozen=True)
class MapOptions:
    """The options for all maps of a command, whatever their method.

    Attributes:
        smooth: side of the mean filter over every map, in cells of the layer. Default: 1, no filter.
    """

    smooth: int = option(
        "mean filter over N x N cells of every map, for an odd N: the map keeps its sum and its account, and loses "
        "detail below N cells",
        1,
        metavar="N",
        parse=window_side,
    )


def choose_device(name: str | None) -> str:
    """The device of a command.

    Args:
        name: value of ``--device``; None for a GPU if there is one, else the CPU.

    Returns:
        The name of a device of torch.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def check_weights(model: str, weights: str | Path | None, remedy: str, missing: Missing = "refuse") -> None:
    """Check that a model has trained weights; a map of random weights explains nothing.

    Args:
        model: name of the model.
        weights: file of weights, or ``"none"``; None if nothing was given.
        remedy: how a user passes a file of weights, for the message.
        missing: what to do for a model without trained weights: ``"refuse"``, ``"warn"`` or ``"ignore"``. Default:
            ``"refuse"``.

    Raises:
        ValueError: for a model without trained weights, if ``missing`` is ``"refuse"`` and random weights are not asked
            for.

    Example:
        >>> check_weights("resnet50", None, "--weights FILE")
    """
    is_random = weights == "none" and not has_factory_weights(model)
    if missing == "ignore" or (not is_random and (weights is not None or default_weights(model) is not None)):
        return
    if missing == "refuse" and not is_random:
        raise ValueError(
            f"--model {model}: give its weights as {remedy}; there are no weights to download, and random weights "
            "(--weights none) explain nothing"
        )
    warnings.warn(
        f"--model {model}: random weights, whose maps explain nothing; give trained weights as {remedy}", stacklevel=2
    )
