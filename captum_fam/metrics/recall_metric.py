"""The measure of ``recall.py`` as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.recall import recall_at_k
from captum_fam.metrics.result import Result, summarize
from captum_fam.metrics.sample_metric import RowMetric
from captum_fam.similarity import SimilarityLike


class RecallAtK(RowMetric):
    """Mean of :func:`~captum_fam.metrics.recall_at_k`: every embedding is a query, all others are its gallery.

    The metric keeps the embeddings of all batches and processes, because it compares each embedding with all others.

    Args:
        k: number of neighbors K. Default: 1.
        similarity: name, :class:`~captum_fam.similarity.Similarity` or callable. Default: ``"cosine"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = RecallAtK(k=1)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = True

    def __init__(self, k: int = 1, similarity: SimilarityLike = "cosine", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k, self.similarity = k, similarity
        self._add_rows("embeddings", "labels")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: ``(B, J)``.
            labels: class of each embedding, integers ``(B,)``.
        """
        self._append(embeddings=embeddings.detach(), labels=labels)

    def _summarize(self) -> Result:
        embeddings = self._rows("embeddings")
        values = recall_at_k(embeddings, self._rows("labels").long(), (self.k,), self.similarity)
        return summarize(values[:, 0], nan=~embeddings.isfinite().all(1))
