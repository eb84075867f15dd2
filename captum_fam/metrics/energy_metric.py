"""The measures of ``energy.py`` as torchmetrics classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.boxes import Boxes, region_mask_of_maps
from captum_fam.metrics.energy import area_share, energy_lift, energy_proportion
from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class EnergyProportion(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.energy_proportion`, Eq. 19 of the FAM paper (arXiv 2307.05017).

    Args:
        energy: ``"minmax"`` as in the paper, or ``"positive"``; see :func:`~captum_fam.metrics.normalize_maps`.
            Default: ``"minmax"``.
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
            region: boxes in pixels of the input, ``(B, 4)``, ``(B, M, 4)`` padded with zeros, or a list of B tensors
                ``(M_i, 4)``; or a boolean mask ``(B, H, W)``.
            size: height and width of the input, in pixels; None is allowed only if the region is a mask. Default:
                None.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.energy_proportion`, or for groups that do not fit.
        """
        self.record_maps(energy_proportion(maps, region, size, self.energy), maps, groups, self.energy)


class EnergyLift(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.energy_lift`, the energy proportion divided by that of a uniform map.

    Args:
        energy: ``"minmax"`` as in the paper, or ``"positive"``; see :func:`~captum_fam.metrics.normalize_maps`.
            Default: ``"minmax"``.
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
        """Add a batch; arguments and errors are as for :meth:`EnergyProportion.update`."""
        self.record_maps(energy_lift(maps, region, size, self.energy), maps, groups, self.energy)


class AreaShare(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.area_share`, the energy proportion of a uniform map.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = AreaShare()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch; arguments and errors are as for :meth:`EnergyProportion.update`.

        The result does not depend on the values of the maps. The maps are an argument so that the three metrics of this
        file fit into one ``MetricCollection``.
        """
        self.record(area_share(region_mask_of_maps(maps, region, size)), groups=groups)
