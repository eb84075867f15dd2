"""The measure of ``correlation.py`` as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.correlation import Correlation, map_correlation
from captum_fam.metrics.maps import find_empty, find_nan
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class SupportSwap(SampleMetric):
    """Mean :func:`~captum_fam.metrics.map_correlation` between the maps of a query for two supports; low is good.

    Args:
        kind: ``"pearson"`` or ``"spearman"``. Default: ``"pearson"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = SupportSwap("spearman")
        >>> metric.update(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[9.0, 4.0, 1.0]]]]))
        >>> metric.compute()
        tensor(-1.)
    """

    higher_is_better = False

    def __init__(self, kind: Correlation = "pearson", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind: Correlation = kind

    def update(self, maps: Tensor, others: Tensor, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: maps for the first support, ``(B, 1, h, w)``.
            others: maps of the same queries for the second support, ``(B, 1, h, w)``.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.map_correlation`, or for groups that do not fit.
        """
        nan = find_nan(maps) | find_nan(others)
        empty = ~nan & (find_empty(maps) | find_empty(others))
        self.record(map_correlation(maps, others, self.kind), nan, empty, groups)
