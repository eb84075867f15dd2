"""The model of a command: the options that name the model, and the function that loads it."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from captum_fam.cli.options import option, positive
from captum_fam.models import EmbeddingModel, create_model, default_weights, list_models
from captum_fam.similarity import get_similarity

Missing = Literal["refuse", "warn", "ignore"]


@dataclass(frozen=True)
class ModelOptions:
    """The options that name the model of a command, and that change its layer, similarity and image size.

    Attributes:
        model: name of the model. Default: ``"resnet50"``.
        weights: file of weights; None for the weights that the model has by default. Default: None.
        layer: layer to explain; None for the layer of the model. Default: None.
        similarity: name of the similarity; None for the similarity of the model. Default: None.
        size: side of the square images, in pixels; None for the size of the model. Default: None.
    """

    model: str = option(
        f"a model of torchvision, timm/NAME, or a registered model, which mostly needs --weights: "
        f"{', '.join(list_models())}",
        "resnet50",
    )
    weights: str | None = option(
        "file of weights (.pth, .pt, .tar, .safetensors), from captum-fam train or from the authors of the paper's "
        "networks; default for torchvision and timm: the pretrained weights, downloaded once",
        None,
        metavar="FILE",
    )
    layer: str | None = option(
        "layer whose output the maps explain; default: the model's, or found by measurement: layer4 of a ResNet", None
    )
    similarity: str | None = option(
        "similarity of embeddings: cosine, dot, euclidean, squared-euclidean, ...; default: the model's, mostly cosine",
        None,
    )
    size: int | None = option(
        "side of the square to which images are squashed; default: the model's", None, metavar="PIXELS", parse=positive
    )

    def load(self) -> EmbeddingModel:
        """Load the model with these options.

        Returns:
            The model in eval mode, on the CPU.

        Raises:
            ValueError: for an unknown model, layer or similarity, a size that the model does not take, missing weights,
                or weights that do not fit the model.
            ImportError: for a library that is not installed.
        """
        if self.similarity is not None:
            get_similarity(self.similarity)  # refuses an unknown name before a download
        check_weights(self.model, self.weights, "--weights FILE")
        net = create_model(self.model, self.weights or default_weights(self.model), layer=self.layer)
        size = self.size or net.size
        if not net.any_size and size != net.size:
            raise ValueError(f"--size {size}: {self.model} takes images of {net.size} pixels only")
        return dataclasses.replace(net, size=size, similarity=self.similarity or net.similarity)


@dataclass(frozen=True)
class RunOptions:
    """The options for the work through the images of a command.

    Attributes:
        batch_size: images per batch. Default: 32.
        device: device of the model; None for a GPU if there is one. Default: None.
        quiet: whether progress bars are hidden. Default: False.
    """

    batch_size: int = option("images per pass through the model", 32, parse=positive)
    device: str | None = option("cpu, cuda, cuda:1, ...; default: cuda if there is a GPU, else cpu", None)
    quiet: bool = option("show no progress bars", False)


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
        weights: file of weights; None if no file was given.
        remedy: how a user passes a file of weights, for the message.
        missing: what to do for a model without trained weights: ``"refuse"``, ``"warn"`` or ``"ignore"``. Default:
            ``"refuse"``.

    Raises:
        ValueError: for a model without trained weights, if ``missing`` is ``"refuse"``.

    Example:
        >>> check_weights("resnet50", None, "--weights FILE")
    """
    if weights is not None or default_weights(model) is not None or missing == "ignore":
        return
    if missing == "refuse":
        raise ValueError(
            f"--model {model}: give its weights as {remedy}; there are no weights to download, and random weights "
            "explain nothing"
        )
    warnings.warn(f"--model {model}: random weights; give trained weights as {remedy}", stacklevel=2)
