"""What a tensor means where a support is asked for."""

from __future__ import annotations

from torch import Tensor

from captum_fam.support.base import Support
from captum_fam.support.checks import check_support_tensor, no_batch_dimension
from captum_fam.support.support_per_query import SupportPerQuery
from captum_fam.support.support_set import SupportSet


def support_from_tensor(support: object, inputs: tuple[Tensor, ...]) -> Support:
    """What a tensor means beside inputs of this shape: images or embeddings, shared or per query.

    Args:
        support: images ``(K, ...)`` shared by the batch or ``(B, K, ...)`` one set per query; embeddings ``(K, J)`` or
            ``(B, K, J)``.
        inputs: the tensors of the queries.

    Raises:
        TypeError: for anything but a tensor of real numbers.
        ValueError: for a shape that is none of these.
    """
    tensor = check_support_tensor(support).detach()
    queries = inputs[0]
    rank = queries.dim()
    if tensor.dim() == rank - 1 > 2 and tensor.shape[1:] == queries.shape[2:]:
        raise ValueError(
            f"support has shape {tuple(tensor.shape)}, one image without its batch dimension; pass support[None]"
        )
    if tensor.shape[1:] == queries.shape and len(tensor) != len(queries):
        raise ValueError(no_batch_dimension(queries, tensor))
    if tensor.dim() == rank + 1:
        return SupportPerQuery(tensor)
    is_image = tensor.dim() == rank and tensor.dim() > 2 and (rank > 3 or tensor.shape[1:] == queries.shape[1:])
    if is_image or tensor.dim() == 2:
        return SupportSet(tensor, class_names=("support",))
    if tensor.dim() == 3:
        return SupportPerQuery(tensor)
    raise ValueError(
        f"support has shape {tuple(tensor.shape)}; for inputs of shape {tuple(queries.shape)} it must be "
        "images (K, ...), images per query (B, K, ...), embeddings (K, J) or embeddings per query (B, K, J)"
    )
