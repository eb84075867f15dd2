"""Embedding a stack of images that is in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_fam._captum import run_forward


def embed_images(
    forward_func: Callable[..., Any], images: Tensor, additional_forward_args: Any = None, batch_size: int = 64
) -> Tensor:
    """Embeddings of images, in chunks and without a graph: ``(K, ...)`` -> ``(K, J)``.

    Args:
        forward_func: maps a batch of images to embeddings ``(B, J)``.
        images: K images as the model takes them.
        additional_forward_args: further arguments of ``forward_func``.
        batch_size: how many images go through the model at once.

    Raises:
        TypeError, ValueError: for an output that is no batch of vectors.
    """
    with torch.inference_mode(False), torch.no_grad():
        chunks = [
            check_embedding(run_forward(forward_func, chunk, additional_forward_args=additional_forward_args))
            for chunk in images.split(batch_size)
        ]
        return torch.cat(chunks)


def check_embedding(embedding: object) -> Tensor:
    """Refuse a forward function whose output is not a batch of vectors.

    Raises:
        TypeError: for anything but a floating-point tensor.
        ValueError: for a shape that is not ``(B, J)``.
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
