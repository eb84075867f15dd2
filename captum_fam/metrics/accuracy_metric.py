"""The measure of ``accuracy.py`` as torchmetrics."""

from __future__ import annotations

from torch import Tensor

from captum_fam.metrics.accuracy import is_correct
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class GroupedAccuracy(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.is_correct`; with episodes as groups, the accuracy of few-shot tables.

    Few-shot papers average within each episode first and over the episodes afterwards, with a 95 % interval.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = GroupedAccuracy()
        >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), groups=torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True

    def update(self, predicted: Tensor, target: Tensor, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            predicted: classes, integers ``(B,)``.
            target: true classes, integers ``(B,)``.
            groups: the episode of each query, integers ``(B,)`` or one for the batch; None (default) averages over
                queries.

        Raises:
            ValueError: if the arguments do not fit.
        """
        self.record(is_correct(predicted, target), groups=groups)
