"""The measure of ``accuracy.py`` as a torchmetrics class."""

from __future__ import annotations

from captum_fam.metrics.accuracy import is_correct
from captum_fam.metrics.sample_metric import Groups, SampleMetric
from captum_fam.support.labels import Labels


class GroupedAccuracy(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.is_correct`; with episodes as groups, the accuracy in few-shot tables.

    Few-shot papers average within each episode first, and over the episodes afterwards. :meth:`result` has the 95 %
    interval of this mean.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = GroupedAccuracy()
        >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), groups=torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True

    def update(self, predicted: Labels, target: Labels, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            predicted: predicted classes, ``(B,)``: names, or whole numbers of any type.
            target: true classes, ``(B,)``, of the same kind.
            groups: episode of each query, integers ``(B,)``, or one integer for the whole batch; None averages over
                the queries. Default: None.

        Raises:
            TypeError, ValueError: as :func:`~captum_fam.metrics.is_correct`, or for groups that do not fit.
        """
        self.record(is_correct(predicted, target), groups=groups)
