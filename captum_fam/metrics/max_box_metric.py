"""The measure of ``max_box.py`` as a torchmetrics class."""

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
    """Mean over IoU levels of the best accuracy over thresholds, see :func:`~captum_fam.metrics.max_box_accuracy`.

    The thresholds are the best thresholds over all samples; :meth:`levels` returns them. The interval of :meth:`result`
    is for fixed thresholds: it does not include the uncertainty of the choice.

    Args:
        deltas: levels of IoU. Default: 0.3, 0.5, 0.7.
        thresholds: shares of the range of the map, in [0, 1); pass a single threshold to measure without a choice, for
            example the best threshold on other images. Default: 0, 0.01, ..., 0.99.
        connectivity: 8 or 4, as in :func:`~captum_fam.metrics.box_from_map`. Default: 8.
        components: ``"all"`` for MaxBoxAccV2; ``"largest"``, which with ``deltas=(0.5,)`` gives MaxBoxAcc. Default:
            ``"all"``.
        energy: range of the map, ``"minmax"`` or ``"positive"``. Default: ``"minmax"``.
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
            boxes: annotated boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B
                tensors ``(M_i, 4)``.
            size: height and width of the input, in pixels.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.box_ious_by_threshold`, or for groups that do not fit.
            ModuleNotFoundError: if scipy is missing.
        """
        ious = box_ious_by_threshold(
            maps, boxes, size, self.thresholds, self.connectivity, self.components, self.energy
        )
        self.record_maps(ious, maps, groups, self.energy)

    def levels(self) -> MaxBoxAccuracy:
        """The accuracy and the best threshold for each delta, over the samples of all processes."""
        with self._synced():
            return self._levels()

    def _levels(self) -> MaxBoxAccuracy:
        return max_box_accuracy(self.samples.values.reshape(-1, len(self.thresholds)), self.deltas)

    def _summarize(self) -> Result:
        _, nan, empty, groups = self.samples
        return summarize(self._levels().correct, groups, nan, empty)
