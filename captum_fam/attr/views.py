"""An embedding that combines several views of an image, such as the image and its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from captum_fam.attr.way_back.view import running_view

Transform = Callable[[Tensor], Tensor]
ViewLike = str | tuple[Transform, Transform]
Combine = Literal["mean", "sum"]
Normalize = Literal["before", "after"]


def _identity(images: Tensor) -> Tensor:
    return images


def _mirror(images: Tensor) -> Tensor:
    return images.flip(-1)


def _flip(images: Tensor) -> Tensor:
    return images.flip(-2)


NAMED_VIEWS: dict[str, tuple[Transform, Transform]] = {
    "identity": (_identity, _identity),
    "hflip": (_mirror, _mirror),
    "vflip": (_flip, _flip),
}
"""The transform and its inverse for every view that has a name."""


class Views(nn.Module):
    r"""A model that combines the embeddings of several views of each image, :math:`Z = \sum_v f(\tau_v(x))`.

    Models for re-identification, face verification and retrieval often add the embedding of the mirror image. A layer
    of such a model runs once per view. The methods of this package explain all views together: the map of each view is
    brought back to the image by the inverse of the transform of the view, and the maps are summed. An exact map of such
    a model therefore still sums to the score.

    Args:
        model: maps a batch of images to embeddings ``(B, J)``.
        views: each view is ``"identity"``, ``"hflip"``, ``"vflip"``, or a pair of functions: the transform of images
            ``(B, C, *spatial)``, and its inverse on maps ``(B, 1, *spatial)`` with the spatial size of the layer.
        combine: ``"mean"`` or ``"sum"`` of the embeddings. Default: "mean".
        normalize: ``"before"``: scale each embedding to length one before they are combined; ``"after"``: scale the
            combination to length one; None: no scaling. Default: None.

    Raises:
        ValueError: for an unknown view, combination or normalization, or for an empty sequence of views.
        TypeError: for a view that is neither a name nor a pair of functions.

    Example:
        >>> mirrored = Views(model, ["identity", "hflip"])
        >>> cam = LayerSimilarityCAM(mirrored, model.layer4)
        >>> cam.attribute(queries, support=images).shape
        torch.Size([8, 1, 7, 7])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        views: Sequence[ViewLike],
        combine: Combine = "mean",
        normalize: Normalize | None = None,
    ) -> None:
        super().__init__()
        if combine not in get_args(Combine):
            raise ValueError(f'combine must be "mean" or "sum", got {combine!r}')
        if normalize is not None and normalize not in get_args(Normalize):
            raise ValueError(f'normalize must be "before", "after" or None, got {normalize!r}')
        if not views:
            raise ValueError("views is empty; pass at least one, such as 'identity'")
        self.model = model
        self.views = tuple(_pair(view) for view in views)
        self.combine = combine
        self.normalize = normalize

    def forward(self, inputs: Tensor, *args: Any) -> Tensor:
        """Compute the combined embedding ``(B, J)``. The model gets the further arguments with each view."""
        embeddings = []
        for index, (transform, _) in enumerate(self.views):
            with running_view(index):
                embedding = self.model(transform(inputs), *args)
            embeddings.append(_unit(embedding) if self.normalize == "before" else embedding)
        total: Tensor = sum(embeddings[1:], start=embeddings[0])
        if self.combine == "mean":
            total = total / len(embeddings)
        return _unit(total) if self.normalize == "after" else total

    def lay_back(self, maps: Tensor, view: int) -> Tensor:
        """Bring maps ``(B, N, *spatial)`` of one view back to the image without the transform of the view."""
        return self.views[view][1](maps)

    def extra_repr(self) -> str:
        return f"views={len(self.views)}, combine={self.combine!r}, normalize={self.normalize!r}"


def _unit(embedding: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embedding, dim=1)


def _pair(view: ViewLike) -> tuple[Transform, Transform]:
    """The transform and the inverse of a view."""
    if isinstance(view, str):
        if view not in NAMED_VIEWS:
            raise ValueError(f"views: {view!r} is unknown; pass {', '.join(NAMED_VIEWS)} or (transform, inverse)")
        return NAMED_VIEWS[view]
    if not isinstance(view, tuple) or len(view) != 2 or not all(callable(part) for part in view):
        raise TypeError(f"views: expected a name or a pair (transform, inverse on maps), got {view!r}")
    return view
