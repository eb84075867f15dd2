"""The measure of ``max_box.py`` as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from captum_fam.metrics.boxes import Boxes
from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.max_box import (
    MAX_BOX_DELTAS,
    MAX_BOX_THRESHOLDS,
    MaxBoxAccuracy,
    Which,
    box_ious_by_threshold,
    max_box_accuracy,
)
from captum_fam.metrics.result import Result, summarize
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class MaxBoxAccV2(SampleMetric):
    """:func:`~captum_fam.metrics.max_box_accuracy`: the mean over IoU levels of the best accuracy over thresholds.

    The thresholds are the best of all samples; :meth:`levels` tells them. The interval of :meth:`result` is that at
    these thresholds, and does not know that they were chosen.

    Args:
        deltas: levels of IoU; default 0.3, 0.5, 0.7.
        thresholds: shares of the map's range, default 0, 0.01, ..., 0.99; a single one, found on other images, judges
            without choosing.
        connectivity: 8 (default) or 4.
        components: ``"all"`` (default), which is MaxBoxAccV2, or the ``"largest"``, which with ``deltas=(0.5,)`` is
            MaxBoxAcc.
        energy: the map's range, ``"minmax"`` (default) or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MaxBoxAccV2()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]]), size=(1, 3))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True

    def __init__(
        self,
        deltas: Sequence[float] = MAX_BOX_DELTAS,
        thresholds: Sequence[float] = MAX_BOX_THRESHOLDS,
        connectivity: int = 8,
        components: Which = "all",
        energy: Energy = "minmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deltas, self.thresholds = tuple(deltas), tuple(thresholds)
        self.connectivity = connectivity
        self.components: Which = components
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
        ious = box_ious_by_threshold(
            maps, boxes, size, self.thresholds, self.connectivity, self.components, self.energy
        )
        self.record_maps(ious, maps, groups, self.energy)

    def levels(self) -> MaxBoxAccuracy:
        """The accuracy of each delta, over the samples of all processes, and the index of its best threshold."""
        with self._synced():
            return self._levels()

    def _levels(self) -> MaxBoxAccuracy:
        return max_box_accuracy(self.samples.values.reshape(-1, len(self.thresholds)), self.deltas)

    def _summarize(self) -> Result:
        _, nan, empty, groups = self.samples
        return summarize(self._levels().correct, groups, nan, empty)
