"""A similarity of a third party: the Bhattacharyya coefficient of embeddings that are histograms."""

import torch
from torch import Tensor

from captum_fam import register_similarity
from captum_fam.similarity import LinearSimilarity


@register_similarity("overlap")
class Overlap(LinearSimilarity):
    """The sum of the square roots of products, for supports shared by the batch or per query."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return (query.relu().sqrt().unsqueeze(1) * support.relu().sqrt()).sum(-1)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        roots = (support_weights.unsqueeze(-1) * support.relu().sqrt()).sum(1)
        return torch.where(query > 0, roots / query.relu().sqrt(), 0.0)
