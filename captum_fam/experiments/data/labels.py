"""The classes of the items of any data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The class of every item, as data sets of this package (``labels``) and of torchvision (``targets``) keep them.

    Returns:
        ``(len(dataset),)`` int64.

    Raises:
        ValueError: if the data set has neither.
    """
    for name in ("labels", "targets"):
        if hasattr(dataset, name):
            return torch.as_tensor(getattr(dataset, name), dtype=torch.int64)
    raise ValueError(
        f"dataset {type(dataset).__name__} has neither labels nor targets: give it the class of every item"
    )
