"""A support of a third party: labeled embeddings that count less the older they are."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam import Comparison, Support
from captum_fam.similarity import Similarity
from captum_fam.support import SharedMembers


class DecayingSupport(Support):
    """Two classes of embeddings, each support counting half as much as the next.

    Args:
        embeddings: ``(K, J)``, the oldest first; even rows are of class "even", odd ones of class "odd".
    """

    class_names = ("even", "odd")

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings
        age = torch.arange(len(embeddings) - 1, -1, -1)
        weights = torch.zeros(2, len(embeddings), dtype=embeddings.dtype)
        for row in range(len(embeddings)):
            weights[row % 2, row] = 0.5 ** int(age[row])
        self.members = SharedMembers(weights / weights.sum(1, keepdim=True))

    def compare(self, query: Tensor, target: object = None, similarity: Similarity | None = None) -> Comparison:
        measure = self.measure(similarity)
        return Comparison(query, self.embeddings, self.members, measure, self.class_names, target)
