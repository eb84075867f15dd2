"""The measure of ``correlation.py`` as torchmetrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.correlation import Correlation, map_correlation
from captum_fam.metrics.maps import find_empty, find_nan
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class SupportSwap(SampleMetric):
    """Mean :func:`~captum_fam.metrics.map_correlation` of the maps of a query for two supports; low is good.

    Args:
        kind: ``"pearson"`` (default) or ``"spearman"``.
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
            maps: for one support, ``(B, 1, h, w)``.
            others: of the same queries for another support, ``(B, 1, h, w)``.
            groups: one integer per sample, or one for the batch; None (default) averages over samples.

        Raises:
            ValueError: if the arguments do not fit.
        """
        nan = find_nan(maps) | find_nan(others)
        empty = ~nan & (find_empty(maps) | find_empty(others))
        self.record(map_correlation(maps, others, self.kind), nan, empty, groups)
