"""The measures as torchmetrics: batch by batch, on the device, merged exactly over processes.

Each one keeps a value a sample and computes a :class:`~captum_fam.metrics.Result`. Those that take the same
arguments go together in a ``torchmetrics.MetricCollection``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from captum_fam.metrics import faithfulness, localization, retrieval, specificity
from captum_fam.metrics._base import Groups, SampleMetric, StateMetric
from captum_fam.metrics.boxes import Boxes
from captum_fam.metrics.localization import MAX_BOX_DELTAS, MAX_BOX_THRESHOLDS
from captum_fam.metrics.maps import Energy, Size, find_empty, find_nan
from captum_fam.metrics.summary import Result, summarize
from captum_fam.similarity import SimilarityLike

if TYPE_CHECKING:
    from captum_fam.support.memory_bank import MemoryBank


class EnergyProportion(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.energy_proportion`, Eq. 19.

    Args:
        energy: ``"minmax"``, the paper's, or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = EnergyProportion()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2), groups=0)
        >>> metric.compute().value
        0.75
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
            size: height and width of the input.
            groups: an integer for each sample or for the batch.
        """
        values = localization.energy_proportion(maps, region, size, self.energy)
        self._record_maps(values, maps, groups, self.energy)


class EnergyLift(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.energy_lift`: the energy proportion over that of a uniform map.

    Args:
        energy: ``"minmax"``, the paper's, or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = EnergyLift()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        >>> metric.compute().value
        1.5
    """

    higher_is_better = True

    def __init__(self, energy: Energy = "minmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.energy: Energy = energy

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch; the arguments are those of :meth:`EnergyProportion.update`."""
        values = localization.energy_lift(maps, region, size, self.energy)
        self._record_maps(values, maps, groups, self.energy)


class AreaShare(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.area_share`: the energy proportion of a uniform map, the floor of the table.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = AreaShare()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]]), torch.tensor([[1, 0, 2, 2]]), size=(2, 2))
        >>> metric.compute().value
        0.5
    """

    def update(self, maps: Tensor, region: Boxes, size: Size | None = None, groups: Groups = None) -> None:
        """Add a batch; the arguments are those of :meth:`EnergyProportion.update`, of which the maps are not used."""
        inside = localization.region_mask(maps, region, size)
        values = localization.area_share(inside)
        self._record(values, torch.zeros_like(values, dtype=torch.bool), groups=groups)


class BoxIoU(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.box_iou`, Eq. 20.

    Args:
        threshold: share of the map's range.
        connectivity: 8, or 4.
        over: an image's boxes: ``"best"``, ``"first"``, ``"largest"`` or ``"mean"``.
        energy: the map's range, ``"minmax"`` or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = BoxIoU()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]]), size=(1, 3))
        >>> metric.compute().value
        0.5
    """

    higher_is_better = True

    def __init__(
        self,
        threshold: float = 0.2,
        connectivity: int = 8,
        over: localization.Over = "best",
        energy: Energy = "minmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.threshold, self.connectivity, self.over = threshold, connectivity, over
        self.energy: Energy = energy

    def update(self, maps: Tensor, boxes: Boxes, size: Size, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            boxes: ``(B, 4)``, ``(B, M, 4)`` filled up with zeros, or a list of B tensors ``(M_i, 4)``.
            size: height and width of the input.
            groups: an integer for each sample or for the batch.
        """
        values = localization.box_iou(maps, boxes, size, self.threshold, self.connectivity, self.over, self.energy)
        self._record_maps(values, maps, groups, self.energy)


class MaxBoxResult(NamedTuple):
    """MaxBoxAccV2 with its parts; the other attributes are those of :class:`~captum_fam.metrics.Result`.

    The interval is that at the chosen thresholds, and does not know that they were chosen.

    Attributes:
        accuracies: at each delta, at its best threshold.
        thresholds: these thresholds.
    """

    value: float
    half_width: float
    n: int
    n_nan: int
    n_empty: int
    n_skipped: int
    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]


class MaxBoxAccV2(StateMetric):
    """:func:`~captum_fam.metrics.max_box_accuracy`: the mean over IoU levels of the best accuracy over thresholds.

    Args:
        deltas: levels of IoU.
        thresholds: shares of the map's range; one alone, found on other images, judges without choosing.
        connectivity: 8, or 4.
        components: ``"all"`` (MaxBoxAccV2) or the ``"largest"``; with ``deltas=(0.5,)`` that is MaxBoxAcc.
        energy: the map's range, ``"minmax"`` or ``"positive"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MaxBoxAccV2()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 0.9]]]), torch.tensor([[1, 0, 2, 1]]), size=(1, 3))
        >>> metric.compute().value
        1.0
    """

    higher_is_better = True

    def __init__(
        self,
        deltas: Sequence[float] = MAX_BOX_DELTAS,
        thresholds: Sequence[float] = MAX_BOX_THRESHOLDS,
        connectivity: int = 8,
        components: Literal["all", "largest"] = "all",
        energy: Energy = "minmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deltas, self.thresholds = tuple(deltas), tuple(thresholds)
        self.connectivity = connectivity
        self.components: Literal["all", "largest"] = components
        self.energy: Energy = energy
        self._add_rows("ious", "nan", "empty")

    def update(self, maps: Tensor, boxes: Boxes, size: Size) -> None:
        """Add a batch; the arguments are those of :meth:`BoxIoU.update`."""
        ious = localization.box_ious_by_threshold(
            maps, boxes, size, self.thresholds, self.connectivity, self.components, self.energy
        )
        self._append(ious=ious, nan=find_nan(maps), empty=find_empty(maps, self.energy))

    def compute(self) -> MaxBoxResult:
        """The mean over deltas, with the accuracy and threshold of each."""
        ious = self._rows("ious").reshape(-1, len(self.thresholds))
        found = localization.max_box_accuracy(ious, self.deltas)
        mean = summarize(found.correct, nan=self._rows("nan").bool(), empty=self._rows("empty").bool())
        return MaxBoxResult(
            *mean[:6],
            accuracies=tuple(found.accuracies.tolist()),
            thresholds=tuple(self.thresholds[index] for index in found.best.tolist()),
        )


class _MaskedScores(SampleMetric):
    def __init__(self, eps: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eps = eps

    def update(self, scores: Tensor, masked_scores: Tensor, maps: Tensor | None = None, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            scores: s, the similarity of each query to its support, ``(B,)``.
            masked_scores: s', that of the :func:`~captum_fam.metrics.masked_inputs`, ``(B,)``.
            maps: those that masked, to tell flat ones from other reasons for a NaN.
            groups: an integer for each sample or for the batch.
        """
        values = self._measure(scores, masked_scores)
        nan = scores.isnan() | masked_scores.isnan()
        if maps is None:
            self._record(values, nan, groups=groups)
            return
        empty = find_empty(maps)
        values = values.masked_fill(empty | find_nan(maps), torch.nan)
        self._record(values, (nan & ~empty) | find_nan(maps), empty, groups)

    def _measure(self, scores: Tensor, masked_scores: Tensor) -> Tensor:
        raise NotImplementedError


class AverageDrop(_MaskedScores):
    """Mean of :func:`~captum_fam.metrics.average_drop`, Eq. 21, as a share (the paper's percent over 100).

    Print it beside that of a constant and of a noise mask: it favors maps that hide little.

    Args:
        eps: s of at most this is skipped, and counted.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        >>> metric.compute().value
        0.375
    """

    higher_is_better = False

    def _measure(self, scores: Tensor, masked_scores: Tensor) -> Tensor:
        return faithfulness.average_drop(scores, masked_scores, self.eps)


class IncreaseInConfidence(_MaskedScores):
    """Mean of :func:`~captum_fam.metrics.increase_in_confidence`, Eq. 22, as a share.

    Args:
        eps: s of at most this is skipped, and counted; ``-math.inf`` skips none.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        >>> metric.compute().value
        0.5
    """

    higher_is_better = True

    def _measure(self, scores: Tensor, masked_scores: Tensor) -> Tensor:
        return faithfulness.increase_in_confidence(scores, masked_scores, self.eps)


class _PerturbationAUC(SampleMetric):
    _mode: Literal["deletion", "insertion"]

    def __init__(self, steps: int = 50, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def update(
        self,
        score_func: faithfulness.ScoreFunc,
        inputs: Tensor,
        maps: Tensor,
        baseline: float | Tensor = 0.0,
        groups: Groups = None,
    ) -> None:
        """Add a batch; runs the score function ``steps + 1`` times.

        Args:
            score_func: takes images ``(B, C, H, W)`` and gives a score each, ``(B,)``.
            inputs: ``(B, C, H, W)``.
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            baseline: a number, or a tensor that broadcasts to the inputs.
            groups: an integer for each sample or for the batch.
        """
        curve = faithfulness.perturbation_curve(score_func, inputs, maps, self._mode, self.steps, baseline)
        values = faithfulness.area_under_curve(curve)
        empty = find_empty(maps)
        self._record(values, (values.isnan() & ~empty) | find_nan(maps), empty, groups)


class DeletionAUC(_PerturbationAUC):
    """Mean area under the deletion curve, :func:`~captum_fam.metrics.perturbation_curve`; low is good.

    In units of the score; the table of ``captum-fam evaluate`` divides it by the score of the whole image.

    Args:
        steps: equal shares of the pixels.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = DeletionAUC(steps=2)
        >>> metric.update(lambda x: x.sum((1, 2, 3)), torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute().value
        1.5
    """

    higher_is_better = False
    _mode = "deletion"


class InsertionAUC(_PerturbationAUC):
    """Mean area under the insertion curve, :func:`~captum_fam.metrics.perturbation_curve`; high is good.

    In units of the score; the table of ``captum-fam evaluate`` divides it by the score of the whole image.

    Args:
        steps: equal shares of the pixels.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = InsertionAUC(steps=2)
        >>> metric.update(lambda x: x.sum((1, 2, 3)), torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute().value
        2.5
    """

    higher_is_better = True
    _mode = "insertion"


class MosaicEnergy(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_energy`; chance is 1 / cells.

    Args:
        grid: k for k x k cells, or rows and columns.
        energy: that of the ``"positive"`` part, or ``"minmax"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MosaicEnergy(grid=2)
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        >>> metric.compute().value
        0.75
    """

    higher_is_better = True

    def __init__(self, grid: specificity.Grid = 2, energy: Energy = "positive", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid
        self.energy: Energy = energy

    def update(self, maps: Tensor, cells: Tensor, size: Size, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: of mosaics, ``(B, 1, h, w)`` or ``(B, h, w)``.
            cells: the cell whose class the support is of, in raster order, ``(B,)``.
            size: height and width of the mosaic.
            groups: an integer for each sample or for the batch.
        """
        values = specificity.mosaic_energy(maps, cells, size, self.grid, self.energy)
        self._record_maps(values, maps, groups, self.energy)


class MosaicHit(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.mosaic_hit`, how often the support's cell wins; chance is 1 / cells.

    Args:
        grid: k for k x k cells, or rows and columns.
        by: ``"energy"`` or ``"peak"``.
        energy: that of the ``"positive"`` part, or ``"minmax"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MosaicHit(grid=2)
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        >>> metric.compute().value
        1.0
    """

    higher_is_better = True

    def __init__(
        self,
        grid: specificity.Grid = 2,
        by: Literal["energy", "peak"] = "energy",
        energy: Energy = "positive",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.grid = grid
        self.by: Literal["energy", "peak"] = by
        self.energy: Energy = energy

    def update(self, maps: Tensor, cells: Tensor, size: Size, groups: Groups = None) -> None:
        """Add a batch; the arguments are those of :meth:`MosaicEnergy.update`."""
        values = specificity.mosaic_hit(maps, cells, size, self.grid, self.by, self.energy)
        self._record_maps(values, maps, groups, self.energy)


class MosaicAUROC(SampleMetric):
    """Mean of :func:`~captum_fam.metrics.region_auroc` of the support's cell; chance is 0.5.

    Args:
        grid: k for k x k cells, or rows and columns.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MosaicAUROC(grid=2)
        >>> metric.update(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([1]), size=(2, 2))
        >>> metric.compute().value
        1.0
    """

    higher_is_better = True

    def __init__(self, grid: specificity.Grid = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid

    def update(self, maps: Tensor, cells: Tensor, size: Size, groups: Groups = None) -> None:
        """Add a batch; the arguments are those of :meth:`MosaicEnergy.update`."""
        values = specificity.region_auroc(maps, specificity.cell_mask(cells, size, self.grid))
        self._record_maps(values, maps, groups)


class SupportSwap(SampleMetric):
    """Mean correlation of a query's maps for two supports, :func:`~captum_fam.metrics.map_correlation`; low is good.

    Args:
        kind: ``"pearson"`` or ``"spearman"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = SupportSwap("spearman")
        >>> metric.update(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[9.0, 4.0, 1.0]]]]))
        >>> metric.compute().value
        -1.0
    """

    higher_is_better = False

    def __init__(self, kind: specificity.Correlation = "pearson", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind: specificity.Correlation = kind

    def update(self, maps: Tensor, others: Tensor, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            maps: for one support, ``(B, 1, h, w)``.
            others: of the same queries for another support.
            groups: an integer for each sample or for the batch.
        """
        values = specificity.map_correlation(maps, others, self.kind)
        nan = find_nan(maps) | find_nan(others)
        self._record(values, nan, ~nan & (find_empty(maps) | find_empty(others)), groups)


class FewShotAccuracy(SampleMetric):
    """Accuracy within each episode, then its mean over the episodes with a 95 % interval.

    Example:
        >>> metric = FewShotAccuracy()
        >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), episodes=torch.tensor([0, 0, 1]))
        >>> metric.compute().value
        0.5
    """

    higher_is_better = True

    def update(self, predicted: Tensor, target: Tensor, episodes: Groups) -> None:
        """Add a batch.

        Args:
            predicted: classes, ``(B,)``.
            target: true classes, ``(B,)``.
            episodes: the number of each query's episode ``(B,)``, or one for the batch.
        """
        values = retrieval.right(predicted, target)
        self._record(values, torch.zeros_like(values, dtype=torch.bool), groups=episodes)


class KNNAccuracy(SampleMetric):
    """Accuracy of the vote of the nearest rows of a memory bank.

    Args:
        bank: with its number of neighbors and temperature, on the queries' device.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = KNNAccuracy(MemoryBank(torch.eye(2), [0, 1], k=1))
        >>> metric.update(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        >>> metric.compute().value
        0.5
    """

    higher_is_better = True

    def __init__(self, bank: MemoryBank, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bank = bank

    def update(self, embeddings: Tensor, labels: Tensor, rows: Tensor | None = None, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            embeddings: queries, ``(B, J)``.
            labels: their classes, ``(B,)``.
            rows: where in the bank the queries themselves are, to leave each out of its own vote.
            groups: an integer for each sample or for the batch.
        """
        values = retrieval.knn_accuracy(embeddings, labels, self.bank, rows)
        self._record(values, torch.zeros_like(values, dtype=torch.bool), groups=groups)


class RecallAtK(StateMetric):
    """Mean of :func:`~captum_fam.metrics.recall_at_k`: every embedding is a query, all others are its gallery.

    Args:
        k: number of neighbors.
        similarity: name, :class:`~captum_fam.similarity.Similarity` or callable.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = RecallAtK(k=1)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1, 0]))
        >>> metric.compute().value
        0.0
    """

    higher_is_better = True

    def __init__(self, k: int = 1, similarity: SimilarityLike = "cosine", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k, self.similarity = k, similarity
        self._add_rows("embeddings", "labels")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add a batch of embeddings ``(B, J)`` and their classes ``(B,)``."""
        self._append(embeddings=embeddings.detach(), labels=labels)

    def compute(self) -> Result:
        """The :class:`~captum_fam.metrics.Result` over all queries."""
        embeddings = self._rows("embeddings")
        values = retrieval.recall_at_k(embeddings, self._rows("labels").long(), (self.k,), self.similarity)
        return summarize(values[:, 0], nan=~embeddings.isfinite().all(1))
