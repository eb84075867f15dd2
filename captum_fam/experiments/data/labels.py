"""The classes of the items of any data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The class of every item of a data set.

    Args:
        dataset: data set with an attribute ``labels``, as in this package, or ``targets``, as in torchvision.

    Returns:
        ``(len(dataset),)`` int64.

    Raises:
        ValueError: if the data set has neither attribute.

    Example:
        >>> from captum_fam.demo import PlantedScenes
        >>> labels_of(PlantedScenes("novel", length=100)).shape
        torch.Size([100])
    """
    for name in ("labels", "targets"):
        if hasattr(dataset, name):
            return torch.as_tensor(getattr(dataset, name), dtype=torch.int64)
    raise ValueError(
        f"dataset {type(dataset).__name__} has neither labels nor targets; set one of them to the class of every item"
    )
