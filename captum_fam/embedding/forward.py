"""Embedding images that are in memory, and finding the embedding in the output of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam._captum import run_forward

# Fields of the output objects of transformers that hold an embedding; of both, the first is taken.
_FIELDS = ("image_embeds", "pooler_output")


def embed_images(
    forward_func: Callable[..., Any], images: Tensor, additional_forward_args: Any = None, batch_size: int = 64
) -> Tensor:
    """Embed images batch by batch, without a graph.

    Args:
        forward_func: maps a batch of images to embeddings, in any form that :func:`check_embedding` takes.
        images: images as the model takes them, ``(K, ...)``.
        additional_forward_args: further arguments of ``forward_func``. Default: None.
        batch_size: how many images go through the model at once. Default: 64.

    Returns:
        ``(K, J)``.

    Raises:
        TypeError: if the output of ``forward_func`` holds no floating-point tensor of embeddings.
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


def check_embedding(output: object) -> Tensor:
    """Take the batch of embeddings out of the output of a forward function.

    Args:
        output: a tensor ``(B, J)`` or ``(B, J, 1, 1)``, which is flattened; or an output object, as the models of
            transformers return, whose ``image_embeds`` or else ``pooler_output`` is taken.

    Returns:
        The embeddings, ``(B, J)``.

    Raises:
        TypeError: for an output that holds no embedding, or is no floating-point tensor. The message lists the fields
            of an output object.
        ValueError: for another shape.

    Example:
        >>> check_embedding(torch.zeros(2, 64, 1, 1)).shape
        torch.Size([2, 64])
    """
    embedding = output if isinstance(output, Tensor) else _embedding_field(output)
    if embedding.dim() > 2 and embedding.shape[2:].numel() == 1:
        embedding = embedding.flatten(1)
    if embedding.dim() != 2:
        raise ValueError(
            f"the model must give embeddings of shape (B, J), got {tuple(embedding.shape)}; "
            + (
                "for a sequence of tokens, take the class token or average the tokens (output= of explain and "
                "create_model takes a function)"
                if embedding.dim() == 3
                else "pool or flatten its output"
            )
        )
    if not embedding.is_floating_point():
        raise TypeError(f"the model must give embeddings of a floating-point type, got {embedding.dtype}")
    return embedding


def output_fields(output: object) -> Mapping[Any, Any]:
    """The fields of an output object, by name.

    Args:
        output: a mapping, a named tuple, or an object with attributes.

    Returns:
        The fields; empty for anything else.

    Example:
        >>> output_fields({"features": 1})
        {'features': 1}
    """
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        named: Mapping[Any, Any] = output._asdict()
        return named
    return getattr(output, "__dict__", {})


def _embedding_field(output: object) -> Tensor:
    """The embedding in an output object: a mapping, or an object with attributes."""
    fields = output_fields(output)
    for name in _FIELDS:
        if isinstance(fields.get(name), Tensor):
            embedding: Tensor = fields[name]
            return embedding
    if fields:
        listed = ", ".join(
            f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else str(name)
            for name, value in fields.items()
            if value is not None
        )
        raise TypeError(
            f"the model must give a tensor of embeddings (B, J), got {type(output).__name__} with the fields {listed}; "
            "say which is the embedding with output=FIELD of explain or create_model (--output FIELD)"
        )
    raise TypeError(
        f"the model must give a tensor of embeddings (B, J), got {_in_words(output)}; wrap it in a function that "
        "returns the embedding, or say which element it is with output=INDEX of explain or create_model (--output "
        "INDEX)"
    )


def _in_words(output: object) -> str:
    """The type of an output; for a list or tuple, the shapes of its elements too."""
    if not isinstance(output, tuple | list):
        return type(output).__name__
    kinds = (str(tuple(item.shape)) if isinstance(item, Tensor) else type(item).__name__ for item in output)
    return f"a {type(output).__name__} of {', '.join(kinds) or 'nothing'}"


def device_of(model: object) -> torch.device | None:
    """The device of the parameters of a model; None for a function, or a module without parameters.

    Args:
        model: any model.

    Example:
        >>> device_of(torch.nn.Linear(2, 2))
        device(type='cpu')
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), None)
