"""Embedding the images of a support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.embedding.forward import embed_images
from captum_fam.support.checks import check_finite


def embed_supports(
    forward_func: Callable[..., Any], images: Tensor, additional_forward_args: Any = None, batch_size: int = 64
) -> Tensor:
    """Embed images of a support batch by batch, without a graph.

    Args:
        forward_func: maps a batch of images to embeddings ``(B, J)``.
        images: ``(K, ...)``.
        additional_forward_args: further arguments of ``forward_func``. Default: None.
        batch_size: how many images go through the model at once. Default: 64.

    Returns:
        Finite embeddings, ``(K, J)``.

    Raises:
        TypeError: if ``forward_func`` does not give a floating-point tensor, or fails and has weights of another dtype
            than the images.
        ValueError: if ``forward_func`` does not give finite embeddings ``(B, J)``.

    Example:
        >>> embed_supports(nn.Flatten(), torch.zeros(3, 2, 2)).shape
        torch.Size([3, 4])
    """
    try:
        return check_finite(embed_images(forward_func, images, additional_forward_args, batch_size))
    except RuntimeError as error:
        dtype = _dtype_of(forward_func)
        # A model may convert its inputs, so that only an error shows that the dtypes do not fit.
        if dtype is None or dtype == images.dtype:
            raise
        raise TypeError(
            f"support has images of {images.dtype} but the model weights of {dtype}; convert one of them ({error})"
        ) from error


def _dtype_of(forward_func: object) -> torch.dtype | None:
    """The dtype of the weights of a module, or of the module of a method; None if it cannot be seen."""
    owner = getattr(forward_func, "__self__", forward_func)
    parameters = owner.parameters() if isinstance(owner, nn.Module) else iter(())
    return next((parameter.dtype for parameter in parameters), None)
