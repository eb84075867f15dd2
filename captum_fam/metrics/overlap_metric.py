"""The measure of ``overlap.py`` as torchmetrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.boxes import BOX_THRESHOLD, Boxes
from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.overlap import Over, box_iou
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class BoxIoU(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.box_iou`, Eq. 20.

    Args:
        threshold: share of the map's range; default 0.2.
        connectivity: 8 (default) or 4.
        over: the boxes of an image: ``"best"`` (default), ``"first"``, ``"largest"`` or ``"mean"``.
        energy: the map's range, ``"minmax"`` (default) or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = BoxIoU()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]]), size=(1, 3))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True

    def __init__(
        self,
        threshold: float = BOX_THRESHOLD,
        connectivity: int = 8,
        over: Over = "best",
        energy: Energy = "minmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.threshold, self.connectivity = threshold, connectivity
        self.over: Over = over
        self.energy: Energy = energy

    def update(self, maps: Tensor, boxes: Boxes, size: Size, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            boxes: ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B tensors ``(M_i, 4)``.
            size: height and width of the input.
            groups: one integer per sample, or one for the batch; None (default) averages over samples.

        Raises:
            ValueError: if the arguments do not fit.
        """
        values = box_iou(maps, boxes, size, self.threshold, self.connectivity, self.over, self.energy)
        self.record_maps(values, maps, groups, self.energy)
