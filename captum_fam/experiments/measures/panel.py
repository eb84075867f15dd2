"""The methods, measures and conventions of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from captum_fam.experiments.measures.base import (
    MEASURES,
    Cells,
    Conventions,
    MapBatch,
    Measure,
    Perturbable,
    Size,
    list_measures,
)
from captum_fam.experiments.records import MethodColumns, as_numbers, jsonable
from captum_fam.experiments.table_methods import DEFAULT_METHODS, Maps, TableMethod, get_methods
from captum_fam.metrics import Result, SampleMean, find_empty, find_nan


def _default_methods() -> tuple[TableMethod, ...]:
    return get_methods(DEFAULT_METHODS)


@dataclass(frozen=True)
class Panel:
    """The methods, measures and conventions of a table.

    Attributes:
        methods: rows of the table.
        measures: names of the measures that are asked for, as :func:`list_measures` gives them.
        conventions: of the measures.

    Raises:
        ValueError: for an unknown measure.

    Example:
        >>> Panel(get_methods("fam,uniform"), ("localization", "swap"))
    """

    methods: tuple[TableMethod, ...] = field(default_factory=_default_methods)
    measures: tuple[str, ...] = ("localization",)
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        unknown = sorted({*self.measures} - {*list_measures()})
        if unknown:
            raise ValueError(f"measures: {', '.join(unknown)} is none of {', '.join(list_measures())}")

    def needing(self, need: str) -> list[str]:
        """Those of the measures that are asked for which need this attribute of :class:`MapBatch`."""
        return [name for name in self.measures if need in MEASURES[name].needs]

    def check(self, gives: Collection[str], protocol: str) -> None:
        """Refuse measures that need what a protocol does not give.

        Args:
            gives: names of attributes of :class:`MapBatch`.
            protocol: its name, for the message.

        Raises:
            ValueError: for such a measure.
        """
        possible = list_measures(gives)
        unfit = sorted({*self.measures} - {*possible})
        if unfit:
            raise ValueError(
                f"measures: {', '.join(unfit)} is not for {protocol}, which can have {', '.join(possible) or 'none'} "
                "(--measures)"
            )

    def values(
        self,
        maps_of: Callable[[TableMethod], Maps],
        size: Size,
        boxes: Sequence[Tensor] | None = None,
        images: Perturbable | None = None,
        pairs_of: Callable[[TableMethod, Tensor], tuple[Tensor, Tensor]] | None = None,
        cells: Cells | None = None,
    ) -> dict[str, MethodColumns]:
        """What all measures make of the maps of all methods.

        Args:
            maps_of: gives the maps of a method for a batch of B queries.
            size: height and width of the images.
            boxes: of each query, ``(m, 4)`` each. Default: there are none.
            images: for the measures that mask them.
            pairs_of: for ``swap``, gives maps of one query for two supports, from a method and its maps by ``maps_of``.
            cells: of mosaics.

        Returns:
            By the name of the method, columns with one entry per query.
        """
        columns: dict[str, MethodColumns] = {}
        for method in self.methods:
            made = maps_of(method)
            maps = made.maps

            def pairs(method: TableMethod = method, maps: Tensor = maps) -> tuple[Tensor, Tensor]:
                assert pairs_of is not None
                return pairs_of(method, maps)

            swap = None if pairs_of is None else pairs
            batch = MapBatch(maps, size, made.coverage, made.drawing, boxes, images, swap, cells)
            columns[method.name] = MethodColumns(
                jsonable(find_nan(maps)), jsonable(find_empty(maps)), jsonable(find_empty(maps, "positive"))
            )
            for measure in self._running():
                if measure.can_run(batch):
                    columns[method.name].kept[measure.name] = measure.keep(batch, self.conventions)
        return columns

    def results(self, columns: MethodColumns, groups: Tensor | None = None) -> dict[str, Result]:
        """The numbers of one method in the table, by column.

        Args:
            columns: of all queries of all units.
            groups: the episode of each query, ``(n,)``: means are taken within each first. Default: over all queries.
        """
        nan, empty, no_positive = (
            as_numbers(flags).bool() for flags in (columns.nan, columns.empty, columns.no_positive)
        )
        by_column: dict[str, Result] = {}
        for measure in self._running():
            for column in measure.columns if measure.name in columns.kept else ():
                sees_positive = column.sees == "positive" or (
                    column.sees == "chosen" and self.conventions.signed == "positive"
                )
                mean = SampleMean()
                numbers = column.numbers(columns.kept[measure.name])
                mean.update(numbers, nan=nan, empty=no_positive if sees_positive else empty, groups=groups)
                by_column[column.name] = mean.result()
        return by_column

    def _running(self) -> list[Measure]:
        """The measures that are asked for and those that always run, in the order of the table."""
        return [measure for measure in MEASURES.values() if measure.always or measure.name in self.measures]
