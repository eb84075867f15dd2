"""The measure of ``recall.py`` as a torchmetrics class."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from captum_fam.metrics.recall import recall_at_k
from captum_fam.metrics.result import Result, summarize
from captum_fam.metrics.sample_metric import RowMetric
from captum_fam.similarity import SimilarityLike
from captum_fam.support.checks import whole_number
from captum_fam.support.labels import Labels, encode_labels


class RecallAtK(RowMetric):
    """Mean of :func:`~captum_fam.metrics.recall_at_k`: every embedding is a query, all others are its gallery.

    The metric keeps the embeddings of all batches and processes, because it compares each embedding with all others.

    Args:
        k: number of neighbors K. Default: 1.
        similarity: name, :class:`~captum_fam.similarity.Similarity` or callable. Default: ``"cosine"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: for a K that is no whole number.
        ValueError: for a K below 1.

    Example:
        >>> metric = RecallAtK(k=1)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = True

    def __init__(self, k: int = 1, similarity: SimilarityLike = "cosine", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k, self.similarity = whole_number(k, "k"), similarity
        self._add_rows("embeddings", "labels")

    def update(self, embeddings: Tensor, labels: Labels) -> None:
        """Add a batch.

        Args:
            embeddings: ``(B, J)``.
            labels: the class of each embedding, ``(B,)``: names, or whole numbers of any type and size.

        Raises:
            TypeError, ValueError: for labels that are neither whole numbers nor names, or not one per embedding.
        """
        indices, names = encode_labels(labels, None, len(embeddings))
        # States are tensors, and class indices differ between batches: a hash stands for a class in all of them.
        numbers = torch.tensor([_number_of(name) for name in names], dtype=torch.int64)
        self._append(embeddings=embeddings.detach(), labels=numbers[indices].to(embeddings.device))

    def _summarize(self) -> Result:
        embeddings = self._rows("embeddings")
        values = recall_at_k(embeddings, self._rows("labels").long(), (self.k,), self.similarity)
        return summarize(values[:, 0], nan=~embeddings.isfinite().all(1))


def _number_of(name: str) -> int:
    """A whole number of 64 bits that stands for a name in every process."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)
