"""What the torchmetrics side of the measures shares: states of single samples, and their exact merging."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from captum_fam.metrics._extra import missing_extra
from captum_fam.metrics.maps import Energy, find_empty, find_nan
from captum_fam.metrics.summary import Result, summarize

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise missing_extra("torchmetrics", error) from error

Groups = Tensor | int | None


class Samples(NamedTuple):
    """What a metric has seen, sample by sample.

    Attributes:
        values: ``(n,)``, NaN where the measure is not defined.
        nan: where a map or score held NaN or inf, boolean ``(n,)``.
        empty: where a map was flat, boolean ``(n,)``.
        groups: the groups, int64 ``(n,)``, or None.
    """

    values: Tensor
    nan: Tensor
    empty: Tensor
    groups: Tensor | None


class StateMetric(Metric):
    """A Metric whose states are lists of tensors, one row a sample, merged in full between processes."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        # torchmetrics gathers a process that has seen nothing as float32, which does not fit the others.
        super().__init__(**{"dist_sync_fn": gather_rows, **kwargs})

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
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.zeros(0, device=self.device)


class SampleMetric(StateMetric):
    """A mean over samples, or over groups of samples, of one value each.

    ``update`` takes ``groups``, an integer for each sample or one for the batch, such as the episode: then the
    mean is over the groups' means. ``compute`` gives a :class:`~captum_fam.metrics.Result`.

    Args:
        kwargs: further arguments of :class:`torchmetrics.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_rows("values", "nan", "empty", "groups")

    @property
    def samples(self) -> Samples:
        """The values of the single samples; those of this process, outside ``sync_context``."""
        values, groups = self._rows("values"), self._rows("groups")
        return Samples(
            values, self._rows("nan").bool(), self._rows("empty").bool(), groups.long() if len(groups) else None
        )

    def compute(self) -> Result:
        """The mean, its interval and the counts."""
        values, nan, empty, groups = self.samples
        return summarize(values, groups, nan, empty)

    def _record(self, values: Tensor, nan: Tensor, empty: Tensor | None = None, groups: Groups = None) -> None:
        if self._has_rows("values") and self._has_rows("groups") != (groups is not None):
            raise ValueError("groups must be given in every update or in none")
        if groups is not None:
            groups = torch.as_tensor(groups, device=values.device)
            if groups.is_floating_point() or groups.shape not in ((), values.shape):
                raise ValueError(
                    f"groups must be an integer, or integers of shape {tuple(values.shape)}, "
                    f"got {groups.dtype} of shape {tuple(groups.shape)}"
                )
            self._append(groups=groups.long().expand(len(values)).clone())
        self._append(values=values, nan=nan, empty=torch.zeros_like(nan) if empty is None else empty)

    def _record_maps(self, values: Tensor, maps: Tensor, groups: Groups, energy: Energy = "minmax") -> None:
        self._record(values, find_nan(maps), find_empty(maps, energy), groups)


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """The rows of all processes, in the order of their ranks; those that have none are left out."""
    parts: list[Tensor] = [rows] * dist.get_world_size(group)
    dist.all_gather_object(parts, rows.cpu(), group)
    return [part.to(rows.device) for part in parts if part.numel()] or [rows]
