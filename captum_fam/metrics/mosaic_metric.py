"""The measures of ``mosaic.py`` as torchmetrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.maps import Energy, Size
from captum_fam.metrics.mosaic import By, Grid, mosaic_auroc, mosaic_energy, mosaic_hit
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class MosaicEnergy(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_energy`; chance is 1 / cells.

    Args:
        grid: k for k x k cells (default 2), or rows and columns.
        energy: what counts as energy, ``"positive"`` (default) or ``"minmax"``.
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
            maps: of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``.
            cells: the cell whose class the support is of, in raster order, integers ``(B,)``.
            size: height and width of the mosaic.
            groups: one integer per sample, or one for the batch; None (default) averages over samples.

        Raises:
            ValueError: if the arguments do not fit.
        """
        self.record_maps(mosaic_energy(maps, cells, size, self.grid, self.energy), maps, groups, self.energy)


class MosaicHit(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_hit`, how often the support's cell wins; chance is 1 / cells.

    Args:
        grid: k for k x k cells (default 2), or rows and columns.
        by: ``"energy"`` (default) or ``"peak"``.
        energy: what counts as energy, ``"positive"`` (default) or ``"minmax"``.
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
        """Add a batch; the arguments are those of :meth:`MosaicEnergy.update`."""
        self.record_maps(mosaic_hit(maps, cells, size, self.grid, self.by, self.energy), maps, groups, self.energy)


class MosaicAUROC(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_auroc`; chance is 0.5.

    Args:
        grid: k for k x k cells (default 2), or rows and columns.
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
        """Add a batch; the arguments are those of :meth:`MosaicEnergy.update`."""
        self.record_maps(mosaic_auroc(maps, cells, size, self.grid), maps, groups)
