"""Converting a tensor to the support that it means."""

from __future__ import annotations

from torch import Tensor

from captum_fam.support.base import Support
from captum_fam.support.checks import check_support_tensor, no_batch_dimension
from captum_fam.support.support_per_query import SupportPerQuery
from captum_fam.support.support_set import SupportSet


def support_from_tensor(support: object, inputs: tuple[Tensor, ...]) -> Support:
    """Convert a tensor of images or embeddings to a support, by its shape and the shape of the inputs.

    Args:
        support: images ``(K, ...)`` that the batch shares, or ``(B, K, ...)`` with one set per query; or embeddings
            ``(K, J)`` or ``(B, K, J)``.
        inputs: the input tensors of the model, queries ``(B, ...)`` first.

    Returns:
        A :class:`SupportSet` of one class for supports that the batch shares, else a :class:`SupportPerQuery`.

    Raises:
        TypeError: for anything but a tensor of real numbers.
        ValueError: for any other shape, an empty tensor, NaN or inf.

    Example:
        >>> inputs = (torch.rand(2, 3, 84, 84),)
        >>> support_from_tensor(torch.rand(5, 3, 84, 84), inputs)
        SupportSet(images (5, 3, 84, 84), n_classes=1)
        >>> type(support_from_tensor(torch.rand(2, 5, 64), inputs)).__name__
        'SupportPerQuery'
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
