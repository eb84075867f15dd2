"""Detecting a final normalization: the embedding as a rescaled vector.

The cosine does not depend on the length of the embedding, so that the map of a normalized embedding is the map of the
vector before the normalization. The equations of FAM are written for that vector. Therefore the factor per sample is
noted, ``embedding = factor * vector``. The way back multiplies the weights of the score by the factor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.attr.way_back.notes import layer_tensors_among, note_of
from captum_fam.attr.way_back.tracker import is_rearranging


def factor_of_result(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Tensor | None:
    """The factor ``(B, 1)`` of a result that is a rescaled vector per sample; None for any other result.

    A product with one positive number per sample is a rescaling, and so is a quotient. A chain of products and
    quotients is a rescaling, also with rearrangements and casts between them.

    Args:
        name: plain name of the function of torch.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: a tensor that the function gave.
    """
    source = next(layer_tensors_among(args, kwargs), None)
    if source is None or source.numel() != result.numel() or len(source) != len(result):
        return None
    earlier = note_of(source).factor
    if is_rearranging(name) or name in ("clone", "contiguous", "to", "float", "double", "half", "bfloat16"):
        return earlier
    if name not in ("mul", "div") or max(result.shape[1:], default=0) * len(result) != result.numel():
        return None
    other = args[1] if len(args) > 1 and args[0] is source else args[0] if len(args) > 1 else kwargs.get("other")
    # A fixed number is a part of the head. Only numbers per sample can be a normalization.
    if not isinstance(other, Tensor) or other.dim() != result.dim() or len(other) != len(result):
        return None
    factor = F.widen(other.detach()).reshape(len(result), -1)
    if factor.shape[1] > 1 and not bool((factor == factor[:, :1]).all()):
        return None
    factor = factor[:, :1].reciprocal() if name == "div" else factor[:, :1]
    if bool((factor <= 0).any()):
        return None  # a negative factor reverses the direction
    return factor if earlier is None else earlier * factor


def factor_between(vector: Tensor, embedding: Tensor) -> Tensor | None:
    """The factor ``(B, 1)`` from a vector to an embedding of the same direction; None where the directions differ.

    Args:
        vector: one vector per sample, ``(B, J)`` or another layout such as ``(B, J, 1, 1)``.
        embedding: ``(B, J)``.

    Example:
        >>> factor_between(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]]))
        tensor([[0.2000]])
    """
    if not _parallel(vector, embedding):
        return None
    length = F.widen(vector.detach()).flatten(1).norm(dim=1, keepdim=True)
    embedding_length = F.widen(embedding.detach()).norm(dim=1, keepdim=True)
    return torch.where(length == 0, 1.0, embedding_length / length)


def _parallel(vector: Tensor, embedding: Tensor) -> bool:
    """Whether all rows have the same direction up to rounding. Zero rows match zero rows only."""
    if embedding.shape[1] == 1:
        # A single number per sample has no direction to compare.
        return torch.equal(vector.detach().reshape(-1), embedding.detach().reshape(-1))
    eps = max(torch.finfo(vector.dtype).eps, torch.finfo(embedding.dtype).eps)
    # A normalization rounds each number a few times: 8 machine epsilons in float32 and float64, 2 in the coarser half
    # precision.
    tolerance = 8 * eps if eps < 1e-5 else 2 * eps
    a, b = F.common_precision(vector.detach().flatten(1), embedding.detach())
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((F.unit(a) - F.unit(b)).norm(dim=1) <= tolerance).all())
