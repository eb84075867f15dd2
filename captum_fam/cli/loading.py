"""The model of a command: the options that name it, and the one place that loads it."""

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
    """Which model a command takes, and what is changed in it."""

    model: str = option(
        f"of torchvision, timm/NAME, or a registered one, most of which need --weights: {', '.join(list_models())}",
        "resnet50",
    )
    weights: str | None = option(
        "a file (.pth, .pt, .tar, .safetensors), as captum-fam train or the authors of the paper's networks wrote it; "
        "default, of torchvision and timm: the pretrained ones, downloaded once",
        None,
        metavar="FILE",
    )
    layer: str | None = option(
        "whose output the maps explain; default: found by measuring what its map explains, layer4 of a ResNet", None
    )
    similarity: str | None = option(
        "that compares embeddings: cosine, dot, euclidean, squared-euclidean, ...; default: the model's, cosine", None
    )
    size: int | None = option(
        "side of the square that images are brought to; default: the model's", None, metavar="PIXELS", parse=positive
    )

    def load(self) -> EmbeddingModel:
        """The model with these options.

        Raises:
            ValueError: for an unknown model, layer or similarity, a size that the model does not take, or a network
                without the weights that it needs.
        """
        if self.similarity is not None:
            get_similarity(self.similarity)  # an unknown name is refused before a download
        check_weights(self.model, self.weights, "--weights FILE")
        net = create_model(self.model, self.weights or default_weights(self.model), layer=self.layer)
        size = self.size or net.size
        if not net.any_size and size != net.size:
            raise ValueError(f"--size {size}: {self.model} takes images of {net.size} pixels only")
        return dataclasses.replace(net, size=size, similarity=self.similarity or net.similarity)


@dataclass(frozen=True)
class RunOptions:
    """How a command works through its images."""

    batch_size: int = option("images that go through the model at once", 32, parse=positive)
    device: str | None = option("cpu, cuda, cuda:1, ...; default: cuda where there is one", None)
    quiet: bool = option("show no progress bars", False)


def choose_device(name: str | None) -> str:
    """The device that ``--device`` names; None: a GPU where there is one."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def check_weights(model: str, weights: str | Path | None, remedy: str, missing: Missing = "refuse") -> None:
    """Refuse, or warn of, a network that only a file of weights trains: random weights explain nothing.

    Args:
        model: its name.
        weights: as given.
        remedy: how weights are given, for the message.
        missing: what to do where there are none. Default: ``"refuse"``.

    Raises:
        ValueError: where they are missing and that is refused.
    """
    if weights is not None or default_weights(model) is not None or missing == "ignore":
        return
    if missing == "refuse":
        raise ValueError(
            f"--model {model}: give its weights as {remedy}; there are none to download, and random ones explain "
            "nothing"
        )
    warnings.warn(f"--model {model}: random weights; give trained ones as {remedy}", stacklevel=2)
