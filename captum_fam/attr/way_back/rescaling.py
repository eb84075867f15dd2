"""Which vector the embedding is a rescaling of.

For a cosine the length of the embedding does not matter, and the map of a normalized embedding is the map of the vector
before the normalization. The equations of FAM are written for that vector. So a factor per sample is kept beside the
embedding, ``embedding = factor * vector``, which the weights of the score are multiplied by on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.attr.way_back.notes import layer_tensors_among, note_of
from captum_fam.attr.way_back.tracker import is_rearranging


def factor_of_result(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Tensor | None:
    """How the result is a rescaling of the samples of a vector, ``(B, 1)``; None where it is no rescaling.

    A product or quotient with one positive number per sample is a rescaling; so is a chain of these, with nothing but
    rearrangements and casts between them.
    """
    source = next(layer_tensors_among(args, kwargs), None)
    if source is None or source.numel() != result.numel() or len(source) != len(result):
        return None
    known = note_of(source).factor
    if is_rearranging(name) or name in ("clone", "contiguous", "to", "float", "double", "half", "bfloat16"):
        return known
    if name not in ("mul", "div") or max(result.shape[1:], default=0) * len(result) != result.numel():
        return None
    other = args[1] if len(args) > 1 and args[0] is source else args[0] if len(args) > 1 else kwargs.get("other")
    # A fixed number is a part of the head; what differs by sample is a normalization.
    if not isinstance(other, Tensor) or other.dim() != result.dim() or len(other) != len(result):
        return None
    factor = F.widen(other.detach()).reshape(len(result), -1)
    if factor.shape[1] > 1 and not bool((factor == factor[:, :1]).all()):
        return None
    factor = factor[:, :1].reciprocal() if name == "div" else factor[:, :1]
    if bool((factor <= 0).any()):
        return None  # a negative factor turns the direction around
    return factor if known is None else known * factor


def factor_between(vector: Tensor, embedding: Tensor) -> Tensor | None:
    """``(B, 1)``, the embedding over a vector of the same direction; None where the directions differ."""
    if not _parallel(vector, embedding):
        return None
    before = F.widen(vector.detach()).flatten(1).norm(dim=1, keepdim=True)
    after = F.widen(embedding.detach()).norm(dim=1, keepdim=True)
    return torch.where(before == 0, 1.0, after / before)


def _parallel(vector: Tensor, embedding: Tensor) -> bool:
    """Whether all rows have the same direction up to rounding; zero rows go with zero rows."""
    if embedding.shape[1] == 1:
        return torch.equal(vector.detach().reshape(-1), embedding.detach().reshape(-1))  # a number has no direction
    eps = max(torch.finfo(vector.dtype).eps, torch.finfo(embedding.dtype).eps)
    # A normalization rounds each number a few times: 8 steps of float32, fewer of the coarser half precision.
    tolerance = 8 * eps if eps < 1e-5 else 2 * eps
    a, b = F.common_precision(vector.detach().flatten(1), embedding.detach())
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((F.unit(a) - F.unit(b)).norm(dim=1) <= tolerance).all())
