"""The measures of ``confidence.py`` as torchmetrics classes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from captum_fam.metrics.confidence import LEAST_SCORE, average_drop, increase_in_confidence
from captum_fam.metrics.maps import Energy, find_empty, find_nan
from captum_fam.metrics.sample_metric import Groups, SampleMetric


class _MaskedScores(SampleMetric):
    """A mean over samples of a measure that compares the scores before and after the masking."""

    def __init__(self, eps: float = LEAST_SCORE, energy: Energy = "minmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eps = eps
        self.energy: Energy = energy

    def update(self, scores: Tensor, masked_scores: Tensor, maps: Tensor | None = None, groups: Groups = None) -> None:
        """Add a batch.

        Args:
            scores: s, the similarity of each query to its support, ``(B,)``.
            masked_scores: s', the similarity of the :func:`~captum_fam.metrics.masked_inputs`, ``(B,)``.
            maps: the maps of the masks, ``(B, 1, h, w)`` or ``(B, h, w)``, by which :meth:`result` counts flat maps
                apart from NaN scores; None counts every NaN as a NaN score. Default: None.
            groups: group of each sample, such as its episode, integers ``(B,)``, or one integer for the whole batch;
                None averages over the samples. Default: None.

        Raises:
            ValueError: if ``scores`` and ``masked_scores`` differ in shape, or for groups that do not fit.
        """
        values = self._measure(scores, masked_scores)
        nan = scores.isnan() | masked_scores.isnan()
        if maps is None:
            self.record(values, nan, groups=groups)
            return
        empty, broken = find_empty(maps, self.energy), find_nan(maps)
        # The masked score of an empty map may be a number, because the model also gives a score to a constant image.
        values = values.masked_fill(empty | broken, torch.nan)
        self.record(values, (nan & ~empty) | broken, empty, groups)

    @abstractmethod
    def _measure(self, scores: Tensor, masked_scores: Tensor) -> Tensor: ...


class AverageDrop(_MaskedScores):
    """Mean of :func:`~captum_fam.metrics.average_drop`, Eq. 21, as a share (the paper's percent divided by 100).

    Args:
        eps: a sample whose score is at most ``eps`` is left out, and counted in ``n_skipped``. Default: 1e-6.
        energy: how the maps became masks, ``"minmax"`` or ``"positive"``, which decides which maps are empty. Default:
            ``"minmax"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        >>> metric.compute()
        tensor(0.3750)
    """

    higher_is_better = False

    def _measure(self, scores: Tensor, masked_scores: Tensor) -> Tensor:
        return average_drop(scores, masked_scores, self.eps)


class IncreaseInConfidence(_MaskedScores):
    """Mean of :func:`~captum_fam.metrics.increase_in_confidence`, Eq. 22, as a share.

    Args:
        eps: a sample whose score is at most ``eps`` is left out, and counted in ``n_skipped``; ``-math.inf`` keeps all
            samples. Default: 1e-6.
        energy: how the maps became masks, ``"minmax"`` or ``"positive"``, which decides which maps are empty. Default:
            ``"minmax"``.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True

    def _measure(self, scores: Tensor, masked_scores: Tensor) -> Tensor:
        return increase_in_confidence(scores, masked_scores, self.eps)
