"""The class of each query that a target selects."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam._captum import TargetType, select_targets


def select_class(target: TargetType, predicted: Tensor, n_classes: int) -> Tensor:
    """The class of each sample that ``target`` selects by Captum's rules.

    Args:
        target: as Captum's methods take it: a class for all samples, or a list or tensor with a class per sample; None:
            the predicted class.
        predicted: the predicted class, ``(B,)``.
        n_classes: C.

    Returns:
        Class indices, ``(B,)``.

    Raises:
        AssertionError: for a target that does not fit the batch or the classes, as Captum raises it.

    Example:
        >>> select_class([2, 0], predicted=torch.tensor([1, 1]), n_classes=3)
        tensor([2, 0])
    """
    if target is None:
        return predicted
    count = len(predicted)
    columns = torch.arange(n_classes, device=predicted.device).expand(count, n_classes)
    # Captum checks this with an assert statement, which `python -O` removes.
    if isinstance(target, list) and len(target) != count:
        raise AssertionError(f"target is a list of {len(target)} for a batch of {count}")
    try:
        selected = select_targets(columns, target)
    except (IndexError, RuntimeError) as error:
        raise AssertionError(f"target {target!r} is out of range for {n_classes} classes") from error
    if selected.shape != predicted.shape:
        raise AssertionError(f"target {target!r} does not select one class for each of {count} samples")
    return selected
