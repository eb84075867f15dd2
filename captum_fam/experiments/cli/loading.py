"""Models, images, memory banks and methods of the commands of the experiments: their options, and their loading."""

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
from captum_fam.experiments.table_methods import list_table_methods
from captum_fam.models import EmbeddingModel, create_model, has_factory_weights, load_weights, read_state_dict
from captum_fam.support import MemoryBank
from captum_fam.support.search import Backend


@dataclass(frozen=True)
class SplitModelOptions(ModelOptions):
    """The options of a model that is cut at the layer to explain; see also :class:`ModelOptions`.

    Attributes:
        model: name of the model.
        layer: module behind which the model is cut; None for the layer of the model. Default: None.
        head: file of a linear head, in place of the head of the model. Default: None.
        pooling: name of the pooling in place of the pooling of the model. Default: None.
        interpolation: interpolation of the resizing; None for the interpolation of the model. Default: None.
    """

    model: str = option(
        "demo, squeezenet, conv4, timm/NAME, hf/NAME, open_clip/NAME, another name of create_model, or "
        "package.module:factory or FILE.py:factory; the factory returns a module from images to embeddings, an "
        "EmbeddingModel or a TwoPartModel"
    )
    layer: str | None = option(
        "cut the network behind this module, whose output the maps explain; default: the module whose output is "
        "pooled, or that is found by measurement. METHOD[layers=rest.NAME] explains a layer behind the cut, "
        "METHOD[layers=rest] the pooled layer",
        None,
    )
    head: str | None = option("file of a linear head, from captum-fam train", None, metavar="FILE")
    pooling: str | None = option(
        "pooling before the head, for which the head was trained; default: the model's", None, choices=tuple(POOLINGS)
    )
    interpolation: str | None = option(
        "interpolation of the resizing; default: the model's",
        None,
        choices=("nearest", "bilinear", "bicubic", "lanczos"),
    )


@dataclass(frozen=True)
class DataOptions:
    """The options of the images, with their classes and boxes.

    Attributes:
        data: source of the images, see :func:`~captum_fam.experiments.load_dataset`.
        split: split of CUB or of the scenes. Default: ``"novel"``.
        boxes: boxes of ImageNet's validation images. Default: None.
    """

    data: str = option(
        "folder of CUB-200-2011, of ImageNet's validation images (with --boxes), or of class folders (without boxes); "
        "scenes[:NUMBER] for planted scenes, 1000 without a number; or package.module:factory",
        metavar="FOLDER",
    )
    split: str = option("split of CUB or of the scenes", "novel")
    boxes: str | None = option("folder of ImageNet's XML files, or LOC_val_solution.csv", None, metavar="PATH")

    def load(self, model: TwoPartModel) -> Dataset[Any]:
        """Load the images as inputs of a model.

        Args:
            model: the model.

        Returns:
            The data set.

        Raises:
            ValueError: for an unknown split.
            FileNotFoundError: for a folder or file that does not exist.
        """
        return load_dataset(self.data, self.split, model, boxes=self.boxes)


@dataclass(frozen=True)
class BankOptions:
    """The options of a memory bank.

    Attributes:
        bank: file of a memory bank; None for a bank that is made of images. Default: None.
        bank_data: source of the images of the bank; None for the source of the queries. Default: None.
        bank_boxes: boxes for ``bank_data``; None for the boxes of the queries. Default: None.
        bank_split: split of the images of the bank. Default: ``"train"``.
    """

    bank: str | None = option(
        "file of a memory bank (.safetensors) without the queries; default: a bank of the images of --bank-split",
        None,
        metavar="FILE",
    )
    bank_data: str | None = option("images of the bank; default: as --data", None, metavar="FOLDER")
    bank_boxes: str | None = option("ImageNet's boxes for --bank-data; default: as --boxes", None, metavar="PATH")
    bank_split: str = option("split of the images of the bank", "train")

    def load(
        self, model: TwoPartModel, images: DataOptions, dataset: Dataset[Any], backend: Backend
    ) -> MemoryBank | Dataset[Any]:
        """Load the memory bank of the file, or the images of which the bank is made.

        Args:
            model: model of the embeddings in the bank.
            images: options of the queries.
            dataset: the queries.
            backend: backend of the search.

        Returns:
            The memory bank; or a data set, which is ``dataset`` itself if the bank has the same images as the queries.

        Raises:
            ValueError: for a file that holds no memory bank, or an unknown split.
            FileNotFoundError: for a folder or file that does not exist.
        """
        if self.bank:
            return MemoryBank.load(self.bank, backend=backend)
        source = replace(
            images,
            data=self.bank_data or images.data,
            split=self.bank_split,
            boxes=self.bank_boxes or images.boxes,
        )
        # By the same object the protocol knows that the queries are in the bank.
        return dataset if source == images else source.load(model)


def load_split_model(
    options: SplitModelOptions,
    *,
    remedy: str = "--weights FILE",
    missing: Missing = "refuse",
    head: nn.Module | None = None,
) -> TwoPartModel:
    """Load the model that the options name.

    Args:
        options: the options of the model.
        remedy: how a user passes a file of weights, for the message. Default: ``"--weights FILE"``.
        missing: what to do for a network without trained weights: ``"refuse"``, ``"warn"`` or ``"ignore"``. Default:
            ``"refuse"``.
        head: head in place of the head of the model and of the options. Default: None.

    Returns:
        The model in two parts.

    Raises:
        ValueError: for an unknown model, missing weights, or weights, a head, a pooling or a layer that do not fit the
            model.
    """
    check_weights(options.model, options.weights, remedy, missing)
    names = ("output", "size", "resize", "interpolation", "similarity")
    model = load_model(
        options.model,
        options.weights,
        head or options.head,
        options.pooling,
        options.layer,
        **{name: getattr(options, name) for name in names if getattr(options, name) is not None},
    )
    _ = model.geometry  # refuses a way to resize that does not fit, before any image is read
    return model


def load_network(name: str, weights: str | None, *, size: int | None, seed: int) -> EmbeddingModel:
    """Load a network for a training.

    Args:
        name: name of the network.
        weights: file of weights, also the weights of an ImageNet classifier for BN-Inception, for which the head stays
            random; None or ``"none"`` for random weights, or those that a factory gives.
        size: side of the images, in pixels; None for the size of the model.
        seed: seed of random weights.

    Returns:
        The network.

    Raises:
        ValueError: for an unknown name, or weights that do not fit.
    """
    torch.manual_seed(seed)
    net = create_model(name, None if has_factory_weights(name) else "none")
    file = None if weights == "none" else weights
    state = read_state_dict(file) if file and isinstance(net.model, BNInception) else {}
    if isinstance(net.model, BNInception) and "last_linear.weight" in state:
        load_weights(net.model.features, state, [IMAGENET_BN_INCEPTION])
    elif file:
        net = create_model(name, file)
    return replace(net, size=size) if size else net


def add_methods(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options that name the methods.

    Args:
        parser: parser that gets the options.
        default: names of the default methods, separated by commas.
    """
    parser.add_argument(
        "--methods",
        default=default,
        metavar="NAME,NAME,...",
        help=f"methods that compute the maps: {', '.join(list_table_methods())}; a name may end with -foil, -runner-up "
        "or -gallery, which explain the score minus the score of --foil, of the runner-up, or of images of other "
        "classes; [option=value,...] before that end sets options, as in fam[normalization=none]-foil and "
        "similarity-cam[layers=activation+rest], and [smooth=N] filters a map by the mean of N x N positions, which "
        "keeps its sum; default: %(default)s",
    )
    parser.add_argument(
        "--foil",
        choices=("others", "runner-up"),
        default="others",
        help="foil that -foil subtracts: the mean of all other classes, or the runner-up; default: %(default)s",
    )
