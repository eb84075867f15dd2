"""Base classes of the torchmetrics classes: one value per sample, a mean over groups, an exact merge of processes."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from captum_fam._files import need
from captum_fam.metrics.maps import Energy, find_empty, find_nan
from captum_fam.metrics.result import Result, summarize

try:
    from torchmetrics import Metric
except ModuleNotFoundError:
    need("torchmetrics", extra="eval", purpose="a metric")
    raise

Groups = Tensor | int | None

_NUMBERS = itertools.count()


class Samples(NamedTuple):
    """The n samples that a metric has seen.

    Attributes:
        values: ``(n,)``, or ``(n, T)`` for a measure with T numbers per sample; NaN where the measure is undefined.
        nan: whether the map or the score of a sample holds NaN or inf, boolean ``(n,)``.
        empty: whether the map of a sample is flat, boolean ``(n,)``.
        groups: group of each sample, int64 ``(n,)``; None for a metric without groups.
    """

    values: Tensor
    nan: Tensor
    empty: Tensor
    groups: Tensor | None


class RowMetric(Metric):
    """A metric that keeps one row per sample, and merges the rows of all processes before it computes.

    A subclass names its states with :meth:`_add_rows`, and returns the :class:`~captum_fam.metrics.Result` of all rows
    in :meth:`_summarize`. :class:`~captum_fam.metrics.RecallAtK` is an example.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        # torchmetrics would gather the empty state of a process without samples as float32, which does not fit the
        # states of the other processes.
        super().__init__(**{"dist_sync_fn": gather_rows, **kwargs})
        # A MetricCollection updates only one of several metrics whose states are close after the first batch. Two
        # metrics with different options may have equal values there. The number of the metric tells them apart. The
        # number has two parts, because 100000 and 100001 would count as close.
        number = torch.tensor(divmod(next(_NUMBERS), 1000))
        self.add_state("number", default=number, dist_reduce_fx="max")

    def compute(self) -> Tensor:
        """The mean, for loggers; :meth:`result` also has the interval and the counts.

        Returns:
            A scalar tensor.
        """
        return torch.tensor(self._summarize().value, device=self.device)

    def result(self) -> Result:
        """The mean with its 95 % interval and the counts, over the samples of all processes."""
        with self._synced():
            return self._summarize()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the mean, or results of :meth:`compute` or ``forward``; see :meth:`torchmetrics.Metric.plot`.

        Args:
            val: one result or a sequence of results; None for the result of :meth:`compute`. Default: None.
            ax: axes of matplotlib; None for new axes. Default: None.

        Returns:
            The figure and the axes.
        """
        return self._plot(val, ax)

    @abstractmethod
    def _summarize(self) -> Result: ...

    def _synced(self) -> AbstractContextManager[None]:
        """A context in which the states hold the rows of all processes, as in :meth:`compute`."""
        return self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        )

    def _add_rows(self, *names: str) -> None:
        for name in names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _append(self, **rows: Tensor) -> None:
        for name, tensor in rows.items():
            getattr(self, name).append(tensor)

    def _has_rows(self, name: str) -> bool:
        return len(getattr(self, name)) > 0

    def _rows(self, name: str) -> Tensor:
        state = getattr(self, name)
        if isinstance(state, Tensor):  # torchmetrics has joined the rows of all processes
            return state
        return torch.cat(state) if state else torch.zeros(0, device=self.device)


class SampleMetric(RowMetric):
    """A mean over samples, or over groups of samples, of one value per sample.

    ``update`` takes ``groups``, one integer per sample or one integer for the whole batch, such as the number of the
    episode. With groups the mean is taken within each group first, and over the groups afterwards. A subclass computes
    the values of a batch in ``update``, and keeps the values by :meth:`record` or :meth:`record_maps`.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> class PeakHeight(SampleMetric):
        ...     def update(self, maps, groups=None):
        ...         self.record_maps(maps.flatten(1).amax(1), maps, groups)
        >>> metric = PeakHeight()
        >>> metric.update(torch.tensor([[[1.0, 3.0]], [[0.0, 2.0]]]))
        >>> metric.compute()
        tensor(2.5000)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_rows(*Samples._fields)

    @property
    def samples(self) -> Samples:
        """The samples of this process; inside ``sync_context``, the samples of all processes."""
        groups = self._rows("groups")
        return Samples(
            self._rows("values"),
            self._rows("nan").bool(),
            self._rows("empty").bool(),
            groups.long() if len(groups) else None,
        )

    def _summarize(self) -> Result:
        values, nan, empty, groups = self.samples
        return summarize(values, groups, nan, empty)

    def record(
        self, values: Tensor, nan: Tensor | None = None, empty: Tensor | None = None, groups: Groups = None
    ) -> None:
        """Keep the values of a batch.

        Args:
            values: one value or T values per sample, ``(B,)`` or ``(B, T)``; NaN where the measure is undefined.
            nan: whether the map or the score of a sample holds NaN or inf, boolean ``(B,)``; None if none does.
                Default: None.
            empty: whether the map of a sample is flat, boolean ``(B,)``; None if none is. Default: None.
            groups: group of each sample, integers ``(B,)``, or one integer for the whole batch; None for no groups.
                Default: None.

        Raises:
            ValueError: if some updates have groups and others have none, or if the groups are no integers or of another
                shape.
        """
        if self._has_rows("values") and self._has_rows("groups") != (groups is not None):
            raise ValueError("groups must be given in every update or in none")
        all_false = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        if groups is not None:
            groups = torch.as_tensor(groups, device=values.device)
            if groups.is_floating_point() or groups.shape not in ((), all_false.shape):
                raise ValueError(
                    f"groups must be an integer, or integers of shape {tuple(all_false.shape)}, "
                    f"got {groups.dtype} of shape {tuple(groups.shape)}"
                )
            self._append(groups=groups.long().expand(len(values)).clone())
        self._append(values=values, nan=all_false if nan is None else nan, empty=all_false if empty is None else empty)

    def record_maps(self, values: Tensor, maps: Tensor, groups: Groups = None, energy: Energy = "minmax") -> None:
        """Keep the values of a batch, and record which maps hold NaN or are empty.

        Args:
            values: one value or T values per map, ``(B,)`` or ``(B, T)``; NaN where the measure is undefined.
            maps: ``(B, ...)``.
            groups: as in :meth:`record`. Default: None.
            energy: which maps are empty, as in :func:`~captum_fam.metrics.find_empty`. Default: ``"minmax"``.

        Raises:
            ValueError: as in :meth:`record`.
        """
        self.record(values, find_nan(maps), find_empty(maps, energy), groups)


class SampleMean(SampleMetric):
    """The mean of values that were computed before, such as the values in a file of results.

    This is ``torchmetrics.MeanMetric`` with groups, an interval and counts. One update with all values has the same
    result as :func:`~captum_fam.metrics.summarize`.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = SampleMean()
        >>> metric.update(torch.tensor([0.5, 0.75]), groups=0)
        >>> metric.update(torch.tensor([1.0, torch.nan]), groups=1)
        >>> metric.compute()
        tensor(0.8125)
        >>> metric.result().n_skipped
        1
    """

    def update(
        self, values: Tensor, nan: Tensor | None = None, empty: Tensor | None = None, groups: Groups = None
    ) -> None:
        """Add a batch.

        Args:
            values: one value per sample, ``(B,)``; NaN where the measure is undefined.
            nan: as in :meth:`SampleMetric.record`. Default: None.
            empty: as in :meth:`SampleMetric.record`. Default: None.
            groups: as in :meth:`SampleMetric.record`. Default: None.

        Raises:
            ValueError: as :meth:`SampleMetric.record`.
        """
        self.record(values, nan, empty, groups)


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """The rows of all processes, in the order of the ranks; processes without rows are left out.

    Args:
        rows: rows of this process, ``(n, ...)``.
        group: the process group; None for all processes. Default: None.

    Returns:
        One tensor per process that has rows, on the device of ``rows``.
    """
    parts: list[Tensor] = [rows] * dist.get_world_size(group)
    dist.all_gather_object(parts, rows.cpu(), group)
    return [part.to(rows.device) for part in parts if part.numel()] or [rows]
