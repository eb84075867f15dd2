"""Does the model predict the right class? One value per query, for predictions of any kind."""

from __future__ import annotations

from torch import Tensor


def is_correct(predicted: Tensor, target: Tensor) -> Tensor:
    """1 where the predicted class is the true class, and 0 elsewhere.

    The predictions may be the ``argmax`` of few-shot scores, the vote of a memory bank
    (``bank.classify(queries).predicted``) or the predictions of any other classifier.

    Args:
        predicted: predicted classes, integers ``(B,)``.
        target: true classes, integers ``(B,)``.

    Returns:
        float32 ``(B,)``, on the device of ``predicted``.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> is_correct(torch.tensor([0, 1]), torch.tensor([0, 2]))
        tensor([1., 0.])
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted has shape {tuple(predicted.shape)} and target {tuple(target.shape)}; pass one class per query"
        )
    return (predicted == target.to(predicted.device)).float()
