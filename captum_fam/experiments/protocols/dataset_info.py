"""Facts about a data set that are known without reading its items: class names, and a fingerprint."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from captum_fam._files import sha256_of
from captum_fam.experiments.data.labels import labels_of


def class_names_of(dataset: Dataset[Any]) -> tuple[str, ...]:
    """The names of the classes.

    Args:
        dataset: any data set, such as one of this package (``class_names``) or of torchvision (``classes``).

    Returns:
        Names in the order of the class indices; empty for a data set without names.
    """
    return tuple(getattr(dataset, "class_names", None) or getattr(dataset, "classes", None) or ())


def fingerprint(dataset: Dataset[Any]) -> dict[str, Any]:
    """A fingerprint by which two data sets can be told apart.

    Args:
        dataset: any data set with labels.

    Returns:
        The number of items, and a hash of labels, file names and boxes.
    """
    labels = labels_of(dataset)
    # The last folder and the file name only, so that a copy of the data set in another place has the same fingerprint.
    files = [
        f"{record.path.parent.name}/{record.path.name} {getattr(record, 'boxes', torch.empty(0)).tolist()}"
        for record in getattr(dataset, "records", ())
    ]
    return {"items": len(labels), "sha256": sha256_of(labels, *files)}
