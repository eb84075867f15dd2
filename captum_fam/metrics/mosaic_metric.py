"""The measures of ``mosaic.py`` as torchmetrics classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.mosaic import By, Grid, mosaic_auroc, mosaic_energy, mosaic_hit
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class MosaicEnergy(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_energy`; chance is 1 / (number of cells).

    Args:
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.
        energy: ``"positive"`` or ``"minmax"``; see :func:`~captum_fam.metrics.normalize_maps`. Default:
            ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MosaicEnergy(grid=2)
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True

    def __init__(self, grid: Grid = 2, energy: Energy = "positive", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid
        self.energy: Energy = energy

    def update(self, maps: Tensor, cells: Tensor, size: Size, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: maps of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``.
            cells: index in raster order of the cell that shows the class of the support, integers ``(B,)``.
            size: height and width of the mosaic, in pixels.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.mosaic_energy`, or for groups that do not fit.
        """
        self.record_maps(mosaic_energy(maps, cells, size, self.grid, self.energy), maps, groups, self.energy)


class MosaicHit(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_hit`; chance is 1 / (number of cells).

    Args:
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.
        by: ``"energy"`` or ``"peak"``. Default: ``"energy"``.
        energy: ``"positive"`` or ``"minmax"``; see :func:`~captum_fam.metrics.normalize_maps`. Default:
            ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MosaicHit(grid=2)
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True

    def __init__(self, grid: Grid = 2, by: By = "energy", energy: Energy = "positive", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid
        self.by: By = by
        self.energy: Energy = energy

    def update(self, maps: Tensor, cells: Tensor, size: Size, groups: Groups = None) -> None:
        """Add a batch; arguments and errors are as for :meth:`MosaicEnergy.update`."""
        self.record_maps(mosaic_hit(maps, cells, size, self.grid, self.by, self.energy), maps, groups, self.energy)


class MosaicAUROC(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_auroc`; chance is 0.5.

    Args:
        grid: k for k x k cells, or the numbers of rows and columns. Default: 2.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MosaicAUROC(grid=2)
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True

    def __init__(self, grid: Grid = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid

    def update(self, maps: Tensor, cells: Tensor, size: Size, groups: Groups = None) -> None:
        """Add a batch; arguments and errors are as for :meth:`MosaicEnergy.update`."""
        self.record_maps(mosaic_auroc(maps, cells, size, self.grid), maps, groups)
