"""What is known of the items of a dataset without reading them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from captum_fam._files import sha256_of
from captum_fam.experiments.data.labels import labels_of


def class_names_of(dataset: Dataset[Any]) -> tuple[str, ...]:
    """The names of the classes; empty where the dataset does not know them."""
    return tuple(getattr(dataset, "class_names", None) or getattr(dataset, "classes", None) or ())


def fingerprint(dataset: Dataset[Any]) -> dict[str, Any]:
    """What tells one dataset from another: its length, and a hash of its labels, file names and boxes."""
    labels = labels_of(dataset)
    # Not the whole path: the same data may lie elsewhere.
    files = [
        f"{record.path.parent.name}/{record.path.name} {getattr(record, 'boxes', torch.empty(0)).tolist()}"
        for record in getattr(dataset, "records", ())
    ]
    return {"items": len(labels), "sha256": sha256_of(labels, *files)}
