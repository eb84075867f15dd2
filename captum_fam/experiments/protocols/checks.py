"""What is checked before a protocol begins, so that no work is lost to an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from captum_fam.attr.registry import get_method
from captum_fam.embedding import BatchLoader
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.table_methods import DRAWN, TableMethod
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.support import SimilarityToSupport, SupportSet


def check_method_options(methods: Sequence[TableMethod], model: TwoPartModel) -> None:
    """Check that methods take their options, and that a model has their layers.

    Args:
        methods: the methods.
        model: the model.

    Raises:
        ValueError: for an option that a method does not take, or a layer that the tail of the model does not have.
    """
    # Any supports will do, because nothing is compared.
    scores = SimilarityToSupport(model.tail, SupportSet(torch.eye(2), [0, 1]), model.similarity)
    for method in methods:
        layers = method.modules(model.tail)
        if method.base in DRAWN:
            continue
        try:
            options = {"token_grid": method.token_grid(model.tail), **method.options}
            get_method(method.base).create(scores, layers if len(layers) > 1 else layers[0], **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"methods: {method.name}: {error}") from error


def check_positions(methods: Sequence[TableMethod], protocol: str) -> None:
    """Check that no method compares positions, for a protocol whose supports are embeddings.

    Args:
        methods: the methods.
        protocol: name of the protocol, for the message.

    Raises:
        ValueError: for a method that compares positions.
    """
    comparing = [method.name for method in methods if method.needs_images]
    if comparing:
        raise ValueError(
            f"methods: {', '.join(comparing)} compares with the positions of support images, which {protocol} does not "
            "have, because its supports are embeddings"
        )


def check_gallery(methods: Sequence[TableMethod], protocol: str, has_gallery: bool) -> None:
    """Check that no method asks for a gallery that a protocol does not have.

    Args:
        methods: the methods.
        protocol: name of the protocol, for the message.
        has_gallery: whether the protocol has a gallery, of embeddings.

    Raises:
        ValueError: for a method with the foil ``"gallery"``, or for one that compares positions with a gallery.
    """
    asking = [method for method in methods if method.foil == "gallery"]
    if asking and not has_gallery:
        raise ValueError(f"methods: {asking[0].name}: {protocol} has no gallery of images of other classes; use -foil")
    comparing = [method.name for method in asking if method.needs_images]
    if comparing:
        raise ValueError(
            f"methods: {', '.join(comparing)} compares with the positions of images, and the gallery holds embeddings; "
            "use -foil"
        )


def check_boxes(panel: Panel, dataset: Dataset[Any]) -> None:
    """Check that a data set has boxes, if a measure needs them.

    Args:
        panel: the measures.
        dataset: the data set, of which the first readable item is read.

    Raises:
        ValueError: if a measure needs boxes, and the data set has none.
    """
    measures = panel.needing("boxes")
    first = next(iter(BatchLoader(dataset, batch_size=1, on_error="skip")), None) if measures else None
    if first is not None and not first.boxes:
        raise ValueError(
            f"measures: {', '.join(measures)} needs boxes, which the dataset {type(dataset).__name__} does not have; "
            "choose other measures (--measures swap), or give items (image, label, boxes)"
        )
