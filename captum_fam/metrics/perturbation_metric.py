"""The measures of ``perturbation.py`` as torchmetrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.confidence import LEAST_SCORE
from captum_fam.metrics.maps import find_empty, find_nan
from captum_fam.metrics.perturbation import PERTURBATION_STEPS, Mode, ScoreFunc, perturbation_auc, perturbation_curve
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class _PerturbationAUC(SampleMetric):
    """The area under a curve of the score; a subclass says under which."""

    _mode: Mode

    def __init__(
        self, steps: int = PERTURBATION_STEPS, relative: bool = True, eps: float = LEAST_SCORE, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.steps, self.relative, self.eps = steps, relative, eps

    def update(
        self,
        score_func: ScoreFunc,
        inputs: Tensor,
        maps: Tensor,
        baseline: float | Tensor = 0.0,
        groups: Groups = None,
    ) -> None:
        """Add a batch; runs the score function ``steps + 1`` times.

        Args:
            score_func: takes images ``(B, C, H, W)`` and returns one score per image, ``(B,)``.
            inputs: ``(B, C, H, W)``.
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            baseline: what stands in the place of a pixel, a number (default 0) or a tensor that broadcasts to the
                inputs.
            groups: one integer per sample, or one for the batch; None (default) averages over samples.

        Raises:
            ValueError: if the arguments do not fit.
        """
        curve = perturbation_curve(score_func, inputs, maps, self._mode, self.steps, baseline)
        values = perturbation_auc(curve, self._mode, self.relative, self.eps)
        empty = find_empty(maps)
        self.record(values, (curve.isnan().any(1) & ~empty) | find_nan(maps), empty, groups)


class DeletionAUC(_PerturbationAUC):
    """Mean of :func:`~captum_fam.metrics.deletion_auc`; low is good.

    Args:
        steps: equal shares of the pixels; default 20.
        relative: divide by the score of the whole image (default True).
        eps: with ``relative``, a score of at most ``eps`` (default 1e-6) is skipped, and counted.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = DeletionAUC(steps=2)
        >>> metric.update(lambda x: x.sum((1, 2, 3)), torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.3750)
    """

    higher_is_better = False
    _mode = "deletion"


class InsertionAUC(_PerturbationAUC):
    """Mean of :func:`~captum_fam.metrics.insertion_auc`; high is good.

    Args:
        steps: equal shares of the pixels; default 20.
        relative: divide by the score of the whole image (default True).
        eps: with ``relative``, a score of at most ``eps`` (default 1e-6) is skipped, and counted.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = InsertionAUC(steps=2)
        >>> metric.update(lambda x: x.sum((1, 2, 3)), torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.6250)
    """

    higher_is_better = True
    _mode = "insertion"
