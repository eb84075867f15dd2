"""A fingerprint of a data set, without reading its items."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from captum_fam._files import sha256_of
from captum_fam.experiments.data.labels import labels_of


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
