"""Checks that refuse supports and embeddings that cannot be compared, with a message that says why."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_fam import functional as F
from captum_fam._text import printable
from captum_fam.support.labels import plain_value


def check_support_tensor(support: object, name: str = "support") -> Tensor:
    """Check that a support is a finite, non-empty tensor of images or embeddings.

    Args:
        support: the value to check.
        name: the name of the argument, for the message. Default: ``"support"``.

    Returns:
        The tensor itself.

    Raises:
        TypeError: for anything but a tensor of real numbers.
        ValueError: for a tensor of the wrong shape, an empty tensor, NaN or inf.
    """
    if not isinstance(support, Tensor):
        raise TypeError(
            f"{name} must be a tensor or a Support (SupportSet, MemoryBank, ...), got {type(support).__name__}"
        )
    if support.dim() < 2:
        raise ValueError(f"{name} must be images (K, C, H, W) or embeddings (K, J), got shape {tuple(support.shape)}")
    if support.numel() == 0:
        raise ValueError(f"{name} is empty: got shape {tuple(support.shape)}, expected at least one support")
    if support.is_complex() or (support.dim() == 2 and not support.is_floating_point()):
        kind = "embeddings (K, J)" if support.dim() == 2 else "images"
        raise TypeError(f"{name} must hold real numbers, {kind} of a floating-point type, got {support.dtype}")
    if support.is_floating_point() and not F.is_finite(support):
        raise ValueError(f"{name} contains NaN or inf")
    return support


def plain_tensor(tensor: Tensor) -> Tensor:
    """The tensor without its graph; a copy if it is an inference tensor, which could not take part in a later graph.

    Args:
        tensor: any tensor.
    """
    with torch.inference_mode(False):
        return (tensor.clone() if tensor.is_inference() else tensor).detach()


def check_finite(embeddings: Tensor) -> Tensor:
    """Check that the embeddings of a support are finite.

    Returns:
        The tensor itself.

    Raises:
        ValueError: for NaN or inf.
    """
    if not F.is_finite(embeddings):
        raise ValueError("support: its embeddings contain NaN or inf")
    return embeddings


def check_embedding_sizes(query: Tensor, support: Tensor, name: str = "support") -> None:
    """Check that the embeddings of a query and of a support can be compared.

    Args:
        query: ``(B, J)``.
        support: ``(..., J)``.
        name: what the support is called in the message. Default: ``"support"``.

    Raises:
        TypeError: for a support that is no floating-point tensor.
        ValueError: for another device or another number of features than those of the query.
    """
    if not support.is_floating_point():
        raise TypeError(f"{name} must have embeddings of a floating-point type, got {support.dtype}")
    if query.device != support.device:
        raise ValueError(f"{name} is on {support.device} but the query's embedding on {query.device}; move one of them")
    if query.shape[-1] != support.shape[-1]:
        raise ValueError(
            f"{name} embeds to {support.shape[-1]} features but the query to {query.shape[-1]}; "
            "encode both with the same model"
        )


def check_query(query: object, hint: str = "") -> None:
    """Check that the query of a memory bank is a finite batch of embeddings.

    Args:
        query: the value to check.
        hint: the end of the message for another shape. Default: empty.

    Raises:
        ValueError: for anything but a tensor ``(B, J)`` of at least one query, NaN or inf.
    """
    if not isinstance(query, Tensor) or query.dim() != 2 or not len(query):
        kind = f"shape {tuple(query.shape)}" if isinstance(query, Tensor) else type(query).__name__
        raise ValueError(f"query must be embeddings (B, J) of at least one query, a tensor, got {kind}{hint}")
    if not query.isfinite().all():
        raise ValueError("query contains NaN or inf")


def check_batch(support: Tensor, batch: int) -> None:
    """Check that there is one set of supports per query.

    Args:
        support: ``(B, K, ...)``.
        batch: the number of queries.

    Raises:
        ValueError: for another number of queries.
    """
    if len(support) != batch:
        raise ValueError(
            f"support holds one set for each of {len(support)} queries but inputs is a batch of {batch}; "
            "methods that repeat the inputs (NoiseTunnel) need a support shared by the batch"
        )


def check_images(images: Tensor, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
    """Check that support images can go through the same model as the queries.

    Args:
        images: ``(K, ...)``.
        inputs: the input tensors of the model, queries first.
        args: further arguments of the model; None if there are none.

    Raises:
        TypeError: for images of another dtype than the queries.
        ValueError: for images on another device, of another rank or with other channels than the queries, or for a
            model that takes several tensors.
    """
    queries = inputs[0]
    if images.device != queries.device:
        raise ValueError(f"support is on {images.device} but inputs on {queries.device}; move one of them")
    if images.shape[1:] == queries.shape:
        raise ValueError(no_batch_dimension(queries, images))
    if images.dim() != queries.dim() or images.shape[1] != queries.shape[1]:
        raise ValueError(
            f"support has images of shape {tuple(images.shape[1:])} but inputs of {tuple(queries.shape[1:])}; "
            "both go through the same model"
        )
    if images.dtype != queries.dtype:
        raise TypeError(
            f"support has images of {images.dtype} but inputs of {queries.dtype}; both go through the same model: "
            "convert one of them"
        )
    if len(inputs) > 1 or any(isinstance(arg, Tensor) for arg in args or ()):
        raise ValueError(
            "support: images cannot be embedded by a model that takes several tensors; pass their embeddings"
        )


def no_batch_dimension(inputs: Tensor, images: Tensor) -> str:
    """The error message for a single query that was passed without a batch dimension."""
    return (
        f"inputs has shape {tuple(inputs.shape)} and the support {tuple(images.shape)}: "
        "inputs is one query without its batch dimension; pass inputs[None]"
    )


def whole_number(value: object, name: str) -> int:
    """Check that an argument is one whole number, at least 1.

    Args:
        value: the argument, of any integer type.
        name: the name of the argument, for the message.

    Returns:
        The number as an ``int``.

    Raises:
        TypeError: for anything but a whole number; 3.0, "3" and True are none.
        ValueError: for a number below 1.

    Example:
        >>> whole_number(3.0, "k")
        Traceback (most recent call last):
        ...
        TypeError: k must be a whole number, got 3.0 (float)
    """
    plain = plain_value(value)
    if isinstance(plain, bool) or not hasattr(plain, "__index__") or isinstance(plain, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a whole number, got {printable(value)} ({type(value).__name__})")
    number = operator.index(plain)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def whole_numbers(name: str, values: Tensor | Sequence[int], rows: Tensor) -> Tensor:
    """Convert positions to int64 on the device of the rows.

    Args:
        name: the name of the argument, for the message.
        values: one whole number per row, not negative.
        rows: ``(M, J)``.

    Returns:
        int64 ``(M,)``.

    Raises:
        TypeError: for numbers that are not integers.
        ValueError: for another number of values than rows, or a negative number.
    """
    tensor = _integers(name, values).to(rows.device)
    if tuple(tensor.shape) != (len(rows),):
        raise ValueError(f"{name} must have one entry per row: got shape {tuple(tensor.shape)} for {len(rows)} rows")
    if tensor.min() < 0:
        raise ValueError(f"{name} must not be negative, got {int(tensor.min())}")
    return tensor


def _integers(name: str, values: object) -> Tensor:
    """Whole numbers of any integer type as int64."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be whole numbers, got {type(values).__name__} ({error})") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {tensor.dtype}")
    return tensor.long()


def check_exclusion(exclude: Tensor, n_queries: int, n_rows: int, name: str = "exclude") -> Tensor:
    """Check the rows of a bank or gallery that are excluded for each query.

    Args:
        exclude: rows of the bank, int64 ``(B,)`` or ``(B, E)``; -1 excludes nothing.
        n_queries: B, the number of queries.
        n_rows: M, the number of rows of the bank.
        name: the name of the argument, for the message. Default: ``"exclude"``.

    Returns:
        ``(B, E)``.

    Raises:
        ValueError: for another number of queries, rows that the bank does not have, or if all rows are excluded.
    """
    check_exclusion_batch(exclude, n_queries, name)
    excluded = exclude.reshape(len(exclude), -1)
    if excluded.numel() and (excluded.min() < -1 or excluded.max() >= n_rows):
        raise ValueError(
            f"{name} must hold rows 0..{n_rows - 1}, or -1 for none, got {excluded.min()}..{excluded.max()}"
        )
    nothing_left = (count_excluded(excluded) >= n_rows).nonzero()
    if len(nothing_left):
        raise ValueError(f"{name} leaves nothing of the {n_rows} rows for query {int(nothing_left[0])}")
    return excluded


def check_exclusion_batch(exclude: Tensor, n_queries: int, name: str) -> None:
    """Check that rows are excluded for the queries of this batch.

    Args:
        exclude: rows, ``(B,)`` or ``(B, E)``.
        n_queries: the number of queries.
        name: the name of the argument, for the message.

    Raises:
        ValueError: for another number of queries.
    """
    if len(exclude) != n_queries:
        raise ValueError(f"{name} is for {len(exclude)} queries but there are {n_queries}; set it for each batch")


def count_excluded(exclude: Tensor) -> Tensor:
    """How many different rows are excluded for each query.

    Args:
        exclude: rows, ``(B, E)``; -1 excludes nothing.

    Returns:
        int64 ``(B,)``.

    Example:
        >>> count_excluded(torch.tensor([[4, 4, 2], [-1, -1, 0]]))
        tensor([2, 1])
    """
    ordered = exclude.sort(1).values
    is_new = ordered.diff(dim=1, prepend=torch.full_like(ordered[:, :1], -1)) != 0
    return is_new.sum(1)


def as_exclusion(
    exclude: Tensor | Sequence[int] | Sequence[Sequence[int]], device: torch.device, name: str = "exclude"
) -> Tensor:
    """Convert rows of a bank that are excluded for each query to a tensor.

    Args:
        exclude: one row per query, or a list of rows per query; the lists may differ in length. -1 excludes nothing.
        device: the device of the bank.
        name: the name of the argument, for the message. Default: ``"exclude"``.

    Returns:
        int64 ``(B,)`` or ``(B, E)``, in which -1 fills up the shorter lists.

    Raises:
        TypeError: for anything but whole numbers.
        ValueError: for a tensor of another shape.

    Example:
        >>> as_exclusion([[4], [], [1, 3]], torch.device("cpu"))
        tensor([[ 4, -1],
                [-1, -1],
                [ 1,  3]])
    """
    if isinstance(exclude, list | tuple) and all(isinstance(rows, list | tuple) for rows in exclude):
        nothing = torch.empty(0, dtype=torch.int64)
        parts = [_integers(name, rows) if rows else nothing for rows in exclude]
        rows = pad_sequence(parts, batch_first=True, padding_value=-1) if parts else nothing
    else:
        rows = _integers(name, exclude)
    if rows.dim() not in (1, 2):
        raise ValueError(f"{name} must be rows (B,) or (B, E), got shape {tuple(rows.shape)}")
    return rows.to(device)
