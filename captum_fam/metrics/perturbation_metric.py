"""The measures of ``perturbation.py`` as torchmetrics classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.metrics.confidence import LEAST_SCORE
from captum_fam.metrics.maps import find_empty, find_nan
from captum_fam.metrics.perturbation import PERTURBATION_STEPS, Mode, ScoreFunc, perturbation_auc, perturbation_curve
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class _PerturbationAUC(SampleMetric):
    """Mean area under a curve of the score; a subclass sets the mode of the curve."""

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
        """Add a batch; calls the score function ``steps + 1`` times.

        Args:
            score_func: takes images ``(B, C, H, W)`` and returns one score per image, ``(B,)``.
            inputs: ``(B, C, H, W)``.
            maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
            baseline: value of deleted pixels, and of pixels that are not inserted yet: a number, or a tensor that
                broadcasts to the inputs. Default: 0.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: as :func:`~captum_fam.metrics.perturbation_curve`, or for groups that do not fit.
        """
        curve = perturbation_curve(score_func, inputs, maps, self._mode, self.steps, baseline)
        values = perturbation_auc(curve, self._mode, self.relative, self.eps)
        empty = find_empty(maps)
        self.record(values, (curve.isnan().any(1) & ~empty) | find_nan(maps), empty, groups)


class DeletionAUC(_PerturbationAUC):
    """Mean of :func:`~captum_fam.metrics.deletion_auc`; low is good.

    Args:
        steps: number of steps, each with an equal share of the pixels. Default: 20.
        relative: divide the area by the score of the whole image. Default: True.
        eps: with ``relative``, a sample whose score is at most ``eps`` is left out, and counted in ``n_skipped``.
            Default: 1e-6.
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
        steps: number of steps, each with an equal share of the pixels. Default: 20.
        relative: divide the area by the score of the whole image. Default: True.
        eps: with ``relative``, a sample whose score is at most ``eps`` is left out, and counted in ``n_skipped``.
            Default: 1e-6.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = InsertionAUC(steps=2)
        >>> metric.update(lambda x: x.sum((1, 2, 3)), torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.6250)
    """

    higher_is_better = True
    _mode = "insertion"
