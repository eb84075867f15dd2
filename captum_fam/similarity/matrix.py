"""The matrix that a similarity is made with: what it must be, and which embeddings fit it."""

from __future__ import annotations

from torch import Tensor


def check_square(matrix: Tensor) -> None:
    """Refuse a matrix that is not ``(J, J)``, or holds NaN or inf.

    Raises:
        ValueError: for such a matrix.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, (J, J), got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError("matrix contains NaN or inf")


def check_features(matrix: Tensor, vectors: Tensor) -> None:
    """Refuse embeddings ``(..., J)`` of another length than the matrix ``(J, J)`` is for.

    Raises:
        ValueError: for such embeddings.
    """
    if vectors.shape[-1] != len(matrix):
        raise ValueError(f"similarity: its matrix is for embeddings of {len(matrix)} features, got {vectors.shape[-1]}")
