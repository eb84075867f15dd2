"""Checks of the matrix of a similarity, and of the embeddings that it is applied to."""

from __future__ import annotations

from torch import Tensor


def check_square(matrix: Tensor) -> None:
    """Check that a matrix is square and finite.

    Args:
        matrix: ``(J, J)``.

    Raises:
        ValueError: for another shape, NaN or inf.

    Example:
        >>> check_square(torch.zeros(2, 3))
        Traceback (most recent call last):
        ...
        ValueError: matrix must be square, (J, J), got (2, 3)
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, (J, J), got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError("matrix contains NaN or inf")


def check_features(matrix: Tensor, vectors: Tensor) -> None:
    """Check that embeddings have as many features as a matrix.

    Args:
        matrix: ``(J, J)``.
        vectors: embeddings, ``(..., J)``.

    Raises:
        ValueError: for another number of features.

    Example:
        >>> check_features(torch.eye(2), torch.rand(4, 2))
    """
    if vectors.shape[-1] != len(matrix):
        raise ValueError(f"similarity: its matrix is for embeddings of {len(matrix)} features, got {vectors.shape[-1]}")
