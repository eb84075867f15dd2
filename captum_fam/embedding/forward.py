"""Embedding images that are in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_fam._captum import run_forward


def embed_images(
    forward_func: Callable[..., Any], images: Tensor, additional_forward_args: Any = None, batch_size: int = 64
) -> Tensor:
    """Embed images batch by batch, without a graph.

    Args:
        forward_func: maps a batch of images to embeddings ``(B, J)``.
        images: images as the model takes them, ``(K, ...)``.
        additional_forward_args: further arguments of ``forward_func``. Default: None.
        batch_size: how many images go through the model at once. Default: 64.

    Returns:
        ``(K, J)``.

    Raises:
        TypeError: if ``forward_func`` does not return a floating-point tensor.
        ValueError: if ``forward_func`` returns another shape than ``(B, J)``.

    Example:
        >>> embed_images(lambda images: images.mean((2, 3)), torch.rand(5, 3, 8, 8), batch_size=2).shape
        torch.Size([5, 3])
    """
    with torch.inference_mode(False), torch.no_grad():
        chunks = [
            check_embedding(run_forward(forward_func, chunk, additional_forward_args=additional_forward_args))
            for chunk in images.split(batch_size)
        ]
        return torch.cat(chunks)


def check_embedding(embedding: object) -> Tensor:
    """Check that the output of a forward function is a batch of vectors.

    Args:
        embedding: the output.

    Returns:
        The output itself, ``(B, J)``.

    Raises:
        TypeError: for anything but a floating-point tensor.
        ValueError: for a shape that is not ``(B, J)``.

    Example:
        >>> check_embedding(torch.zeros(2, 64)).shape
        torch.Size([2, 64])
    """
    if not isinstance(embedding, Tensor):
        raise TypeError(
            f"forward_func must return a tensor of embeddings (B, J), got {type(embedding).__name__}; "
            "wrap it in a function that returns the embedding"
        )
    if embedding.dim() != 2:
        raise ValueError(
            f"forward_func must return embeddings of shape (B, J), got {tuple(embedding.shape)}; "
            "pool or flatten its output"
        )
    if not embedding.is_floating_point():
        raise TypeError(f"forward_func must return embeddings of a floating-point type, got {embedding.dtype}")
    return embedding
