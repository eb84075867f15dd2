"""The measure of ``overlap.py`` as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.boxes import BOX_THRESHOLD, Boxes
from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.overlap import Over, box_iou
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class BoxIoU(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.box_iou`, Eq. 20 of the FAM paper (arXiv 2307.05017).

    Args:
        threshold: share of the range of the map, in [0, 1). Default: 0.2.
        connectivity: 8 or 4, as in :func:`~captum_fam.metrics.box_from_map`. Default: 8.
        over: how the IoUs with several boxes of an image become one value: ``"best"``, ``"first"``, ``"largest"`` or
            ``"mean"``. Default: ``"best"``.
        energy: range of the map, ``"minmax"`` or ``"positive"``. Default: ``"minmax"``.
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
            boxes: annotated boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B
                tensors ``(M_i, 4)``.
            size: height and width of the input, in pixels.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.box_iou`, or for groups that do not fit.
            ModuleNotFoundError: if scipy is missing.
        """
        values = box_iou(maps, boxes, size, self.threshold, self.connectivity, self.over, self.energy)
        self.record_maps(values, maps, groups, self.energy)
