"""The measures of ``energy.py`` as torchmetrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.boxes import Boxes, region_mask_of_maps
from captum_fam.metrics.energy import area_share, energy_lift, energy_proportion
from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class EnergyProportion(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.energy_proportion`, Eq. 19.

    Args:
        energy: ``"minmax"`` (default) as in the paper, or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = EnergyProportion()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2), groups=0)
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True

    def __init__(self, energy: Energy = "minmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.energy: Energy = energy

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            region: boxes ``(B, 4)``, ``(B, M, 4)`` or a list of ``(M_i, 4)``; or a boolean mask ``(B, H, W)``.
            size: height and width of the input; None (default) is allowed with a mask only.
            groups: one integer per sample, or one for the batch; None (default) averages over samples.

        Raises:
            ValueError: if the arguments do not fit.
        """
        self.record_maps(energy_proportion(maps, region, size, self.energy), maps, groups, self.energy)


class EnergyLift(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.energy_lift`: the energy proportion divided by that of a uniform map.

    Args:
        energy: ``"minmax"`` (default) as in the paper, or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = EnergyLift()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        >>> metric.compute()
        tensor(1.5000)
    """

    higher_is_better = True

    def __init__(self, energy: Energy = "minmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.energy: Energy = energy

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch; the arguments are those of :meth:`EnergyProportion.update`."""
        self.record_maps(energy_lift(maps, region, size, self.energy), maps, groups, self.energy)


class AreaShare(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.area_share`: the energy proportion of a uniform map, the floor of a table.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = AreaShare()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch; the arguments are those of :meth:`EnergyProportion.update`.

        The values of the maps play no part. They are an argument so that the three metrics of this file go together in
        a ``MetricCollection``.
        """
        self.record(area_share(region_mask_of_maps(maps, region, size)), groups=groups)
