"""Does the model predict the right class? One value per query, for predictions of any kind."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captum_fam.support.labels import Labels, encode_labels


def is_correct(predicted: Labels, target: Labels) -> Tensor:
    """1 where the predicted class is the true class, and 0 elsewhere.

    The predictions may be the ``argmax`` of few-shot scores, the vote of a memory bank
    (``bank.classify(queries).predicted``) or the predictions of any other classifier.

    Args:
        predicted: predicted classes, ``(B,)``: names, or whole numbers of any type.
        target: true classes, ``(B,)``, of the same kind. The predictions of a memory bank are class indices: compare
            them with class indices, or their names ``bank.class_names[c]`` with names.

    Returns:
        float32 ``(B,)``, on the device of ``predicted``.

    Raises:
        TypeError: for classes that are neither whole numbers nor names.
        ValueError: if the shapes differ.

    Example:
        >>> is_correct(torch.tensor([0, 1]), torch.tensor([0, 2])), is_correct(["jay", "wren"], ["tit", "wren"])
        (tensor([1., 0.]), tensor([0., 1.]))
    """
    shapes = [np.shape(classes) for classes in (predicted, target)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(f"predicted has shape {shapes[0]} and target {shapes[1]}; pass one class per query")
    indices, names = encode_labels(predicted, None, shapes[0][0], "predicted")
    target_indices, target_names = encode_labels(target, None, shapes[0][0], "target")
    position = {name: index for index, name in enumerate(names)}
    expected = torch.tensor([position.get(name, -1) for name in target_names], dtype=torch.int64)[target_indices]
    correct = (indices == expected).float()
    return correct.to(predicted.device) if isinstance(predicted, Tensor) else correct
