"""The other side of a pair as a row of the tables: the query stands as the support image of a pair decomposition.

    python -m captum_fam --plugin benchmarks.support_side evaluate mosaic ... --methods pair-support,pair-support-foil

Each support image is explained as a query by its similarity to the image of the table, and the map is that of the
support's side (:class:`captum_fam.attr.LayerPairs`). The maps are added with the weights of the supports in the score,
which are negative for those of a foil. A cosine does not change where its arguments are exchanged: for the cosine the
sum is the map of ``similarity-cam``, by another computation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.attr import LayerPairs, register_method


@register_method("pair-support", needs_images=True)
class SupportSide:
    """The support-side maps of pairs, for the scores of a table.

    Args:
        scores: the scores, with a support set of images.
        layer: the layer to explain.
        token_grid: as in :class:`captum_fam.attr.LayerPairs`. Default: None.

    Raises:
        ValueError: for a score that is no mean of similarities to images.
    """

    def __init__(self, scores: SimilarityToSupport, layer: nn.Module, token_grid: Any = None) -> None:
        if not isinstance(scores.support, SupportSet) or scores.aggregate != "mean":
            raise ValueError("scores must be means of similarities to the images of a SupportSet")
        self.scores = scores
        self.pairs = LayerPairs(scores, layer, token_grid=token_grid)

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """The maps of images in the place of the support.

        Args:
            inputs: the images, ``(B, C, H, W)``.
            target: the explained class of each image, ``(B,)``.

        Returns:
            ``(B, 1, h, w)``.
        """
        weights = self.scores.compare_quietly(inputs, target=target).support_weights
        queries = self.pairs.run(self.scores.support.inputs).parts()
        # A mosaic comes once for each of its classes, and its parts are the same.
        images, number = inputs.unique_consecutive(dim=0, return_inverse=True)
        parts = self.pairs.run(images).parts()
        maps = [
            torch.stack([self.pairs.decompose(queries[k], parts[b]).support_map for k in range(len(queries))])
            for b in range(len(parts))
        ]
        return torch.einsum("bk,bkhw->bhw", weights, torch.stack(maps)[number])[:, None]
