"""The measure of ``ranking.py`` as a torchmetrics class."""

from __future__ import annotations

from torch import Tensor

from captum_fam.metrics.boxes import Boxes
from captum_fam.metrics.maps import Size
from captum_fam.metrics.ranking import region_auroc
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class RegionAUROC(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.region_auroc`; chance is 0.5.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = RegionAUROC()
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([[1, 0, 2, 1]]), size=(2, 2))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            region: boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B tensors
                ``(M_i, 4)``; or a boolean mask ``(B, H, W)``.
            size: height and width of the input, in pixels; None is allowed only if the region is a mask. Default:
                None.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.region_auroc`, or for groups that do not fit.
        """
        self.record_maps(region_auroc(maps, region, size), maps, groups)
