"""What the torchmetrics classes share: one value per sample, a mean over groups, an exact merge over processes."""

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
    """What a metric has seen, sample by sample.

    Attributes:
        values: ``(n,)``, or ``(n, T)`` for a measure with T numbers per sample; NaN where the measure is undefined.
        nan: where a map or score held NaN or inf, boolean ``(n,)``.
        empty: where a map was flat, boolean ``(n,)``.
        groups: the group of each sample, int64 ``(n,)``; None where no groups were given.
    """

    values: Tensor
    nan: Tensor
    empty: Tensor
    groups: Tensor | None


class RowMetric(Metric):
    """A metric that keeps one row per sample and merges the rows of all processes before it computes.

    A subclass names its states with :meth:`_add_rows` and gives the :class:`~captum_fam.metrics.Result` of all rows in
    :meth:`_summarize`.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        # torchmetrics gathers a process that has seen nothing as float32, which does not fit the others.
        super().__init__(**{"dist_sync_fn": gather_rows, **kwargs})
        # A MetricCollection updates only one of several metrics whose states were close after the first batch. Two
        # metrics of different options may have equal values there, so the number of the metric is a state too, in two
        # parts because 100000 and 100001 count as close.
        number = torch.tensor(divmod(next(_NUMBERS), 1000))
        self.add_state("number", default=number, dist_reduce_fx="max")

    def compute(self) -> Tensor:
        """The mean, a scalar tensor that loggers take; :meth:`result` has the interval and the counts."""
        return torch.tensor(self._summarize().value, device=self.device)

    def result(self) -> Result:
        """The mean with its 95 % interval and the counts, over the samples of all processes."""
        with self._synced():
            return self._summarize()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the mean, or the values that :meth:`compute` or ``forward`` gave; see :meth:`torchmetrics.Metric.plot`.

        Args:
            val: one value or several; None (default): that of :meth:`compute`.
            ax: axes of matplotlib; None (default): new ones.

        Returns:
            The figure and the axes.
        """
        return self._plot(val, ax)

    @abstractmethod
    def _summarize(self) -> Result: ...

    def _synced(self) -> AbstractContextManager[None]:
        """Inside, the states hold the rows of all processes, as they do in :meth:`compute`."""
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

    ``update`` takes ``groups``, one integer per sample or one for the batch, such as the number of the episode. Then
    the mean is taken within each group first and over the groups afterwards. A subclass computes the values of a batch
    in ``update`` and keeps them by :meth:`record` or :meth:`record_maps`.

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
        """The values of the single samples; those of this process, outside ``sync_context``."""
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
            values: one per sample, ``(B,)`` or ``(B, T)``; NaN where the measure is undefined.
            nan: where the map or score held NaN or inf, boolean ``(B,)``; None (default): nowhere.
            empty: where the map was flat, boolean ``(B,)``; None (default): nowhere.
            groups: one integer per sample, or one for the batch; None (default): no groups.

        Raises:
            ValueError: if some updates have groups and others have none, or the groups do not fit.
        """
        if self._has_rows("values") and self._has_rows("groups") != (groups is not None):
            raise ValueError("groups must be given in every update or in none")
        none = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        if groups is not None:
            groups = torch.as_tensor(groups, device=values.device)
            if groups.is_floating_point() or groups.shape not in ((), none.shape):
                raise ValueError(
                    f"groups must be an integer, or integers of shape {tuple(none.shape)}, "
                    f"got {groups.dtype} of shape {tuple(groups.shape)}"
                )
            self._append(groups=groups.long().expand(len(values)).clone())
        self._append(values=values, nan=none if nan is None else nan, empty=none if empty is None else empty)

    def record_maps(self, values: Tensor, maps: Tensor, groups: Groups = None, energy: Energy = "minmax") -> None:
        """Keep the values of a batch, and which of its maps hold NaN or are empty.

        Args:
            values: one per map, ``(B,)`` or ``(B, T)``; NaN where the measure is undefined.
            maps: ``(B, ...)``.
            groups: as in :meth:`record`; default None.
            energy: which maps are empty, as in :func:`~captum_fam.metrics.find_empty`; default ``"minmax"``.

        Raises:
            ValueError: as in :meth:`record`.
        """
        self.record(values, find_nan(maps), find_empty(maps, energy), groups)


class SampleMean(SampleMetric):
    """The mean of values that exist already, such as those in a file of results.

    It is to the other metrics of this package what ``torchmetrics.MeanMetric`` is to those of torchmetrics, with
    groups, an interval and counts. One update with all values gives what :func:`~captum_fam.metrics.summarize` gives.

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
            values: one per sample, ``(B,)``; NaN where the measure is undefined.
            nan: where the map or score held NaN or inf, boolean ``(B,)``; None (default): nowhere.
            empty: where the map was flat, boolean ``(B,)``; None (default): nowhere.
            groups: one integer per sample, or one for the batch; None (default) averages over samples.

        Raises:
            ValueError: if the arguments do not fit.
        """
        self.record(values, nan, empty, groups)


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """The rows of all processes in the order of their ranks; processes without rows are left out.

    Args:
        rows: those of this process, ``(n, ...)``.
        group: the process group; None (default): all processes.

    Returns:
        One tensor per process that has rows, on the device of ``rows``.
    """
    parts: list[Tensor] = [rows] * dist.get_world_size(group)
    dist.all_gather_object(parts, rows.cpu(), group)
    return [part.to(rows.device) for part in parts if part.numel()] or [rows]
