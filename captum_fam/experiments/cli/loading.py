"""Models, images, memory banks and methods of the experiments' commands: their options, and how they are loaded."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from captum_fam.cli.loading import Missing, ModelOptions, check_weights
from captum_fam.cli.options import option
from captum_fam.experiments import POOLINGS, TwoPartModel, load_dataset, load_model
from captum_fam.experiments.networks import BNInception
from captum_fam.experiments.networks.layouts import IMAGENET_BN_INCEPTION
from captum_fam.experiments.split_model import Framing
from captum_fam.experiments.table_methods import list_methods
from captum_fam.models import EmbeddingModel, create_model, load_weights, read_state_dict
from captum_fam.support import MemoryBank
from captum_fam.support.search import Backend


@dataclass(frozen=True)
class SplitModelOptions(ModelOptions):
    """A model that is cut at the layer to explain, and what is changed in it."""

    model: str = option("demo, squeezenet, conv4, another name of create_model, or package.module:factory")
    layer: str | None = option(
        "cut the network behind this module, whose output the maps explain; default: the one whose output is pooled. "
        "Layers behind it are explained by METHOD[layers=rest.NAME], rest alone being the pooled one",
        None,
    )
    head: str | None = option("a linear head, as captum-fam train makes one", None, metavar="FILE")
    pooling: str | None = option(
        "before the head, the one that the head was trained for; default: the model's", None, choices=tuple(POOLINGS)
    )
    interpolation: str | None = option("of the resizing; default: the model's", None, choices=("bilinear", "bicubic"))


@dataclass(frozen=True)
class DataOptions:
    """The images, with classes and boxes."""

    data: str = option(
        "CUB-200-2011; ImageNet's validation images, with --boxes; class folders, which have no boxes; "
        "scenes[:NUMBER]; or package.module:factory",
        metavar="FOLDER",
    )
    split: str = option("of CUB and the scenes", "novel")
    boxes: str | None = option("ImageNet's XML folder or LOC_val_solution.csv", None, metavar="PATH")
    geometry: Framing | None = option(
        "squash the whole image to the model's size, or resize its shorter side and crop the center, both in the "
        "model's ratio or 256:224; default: the model's, squash",
        None,
    )

    def load(self, model: TwoPartModel) -> Dataset[Any]:
        """The images as the model takes them."""
        return load_dataset(self.data, self.split, model, boxes=self.boxes)


@dataclass(frozen=True)
class BankOptions:
    """Where a memory bank comes from."""

    bank: str | None = option(
        "a memory bank (.safetensors) without the queries; default: made of --bank-split", None, metavar="FILE"
    )
    bank_data: str | None = option("where the bank's images are; default: as --data", None, metavar="FOLDER")
    bank_boxes: str | None = option("ImageNet's boxes for --bank-data; default: as --boxes", None, metavar="PATH")
    bank_split: str = option("of the bank's images", "train")

    def load(
        self, model: TwoPartModel, images: DataOptions, dataset: Dataset[Any], backend: Backend
    ) -> MemoryBank | Dataset[Any]:
        """The memory bank of the file, or the images to make it of: those of the queries, or others.

        Args:
            model: whose embeddings the bank has.
            images: the options of the queries.
            dataset: the queries.
            backend: of the search.
        """
        if self.bank:
            return MemoryBank.load(self.bank, backend=backend)
        source = replace(
            images,
            data=self.bank_data or images.data,
            split=self.bank_split,
            boxes=self.bank_boxes or images.boxes,
        )
        # The same dataset object tells the protocol that queries are in the bank themselves.
        return dataset if source == images else source.load(model)


def load_split_model(
    options: SplitModelOptions,
    geometry: Framing | None = None,
    *,
    remedy: str = "--weights FILE",
    missing: Missing = "refuse",
    head: nn.Module | None = None,
) -> TwoPartModel:
    """The model that the options name.

    Args:
        options: which model, and what is changed in it.
        geometry: of its images. Default: the model's.
        remedy: how weights are given, for the message.
        missing: what to do with a network of the paper without weights: ``"refuse"``, ``"warn"`` or
            ``"ignore"``.
        head: in place of the model's and the options'.

    Raises:
        ValueError: for a model, weights, head, pooling or layer that cannot be had.
    """
    check_weights(options.model, options.weights, remedy, missing)
    model = load_model(options.model, options.weights, head or options.head, options.pooling, options.layer)
    model.size = options.size or model.size
    model.framing = geometry or model.framing
    model.interpolation = options.interpolation or model.interpolation
    model.similarity = options.similarity or model.similarity
    return model


def load_network(name: str, weights: str | None, *, size: int | None, seed: int) -> EmbeddingModel:
    """A network to train: with random weights, those of a file, or those of an ImageNet classifier.

    Args:
        name: of the network.
        weights: a file, or None. For BN-Inception also one of its ImageNet classifier, whose head stays random.
        size: of its images. Default: the model's.
        seed: of random weights.

    Raises:
        ValueError: for an unknown name, or weights that do not fit.
    """
    torch.manual_seed(seed)
    net = create_model(name)
    state = {} if weights is None else read_state_dict(weights)
    if isinstance(net.model, BNInception) and "last_linear.weight" in state:
        load_weights(net.model.features, state, [IMAGENET_BN_INCEPTION])
    elif state:
        net = create_model(name, weights)
    return replace(net, size=size) if size else net


def add_methods(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options that name the maps.

    Args:
        parser: that gets them.
        default: names with commas between.
    """
    parser.add_argument(
        "--methods",
        default=default,
        metavar="NAME,NAME,...",
        help=f"{', '.join(list_methods())}; each with -foil behind it, or [option=value,...] as in "
        "fam[normalization=none] and similarity-cam[layers=activation+rest]; default: %(default)s",
    )
    parser.add_argument(
        "--foil",
        choices=("others", "runner-up"),
        default="others",
        help="what -foil subtracts: the mean of the other classes, or the runner-up; default: %(default)s",
    )
