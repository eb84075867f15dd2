"""The panel of a table: its methods, measures and conventions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_fam.cli.parser import did_you_mean
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
from captum_fam.experiments.table_methods import (
    DEFAULT_METHODS,
    Maps,
    TableMethod,
    get_methods,
    once_for_all_windows,
)
from captum_fam.functional import smooth_maps
from captum_fam.metrics import Result, SampleMean, find_empty, find_nan


def _default_methods() -> tuple[TableMethod, ...]:
    return get_methods(DEFAULT_METHODS)


@dataclass(frozen=True)
class Panel:
    """The methods, measures and conventions of a table.

    Attributes:
        methods: methods, which are the rows of the table. Default: :data:`DEFAULT_METHODS`.
        measures: names of the requested measures, see :func:`list_measures`. Default: ``("localization",)``.
        conventions: choices that the definitions of the measures leave open. Default: ``Conventions()``.

    Raises:
        ValueError: for an unknown measure.

    Example:
        >>> panel = Panel(get_methods("fam,uniform"), ("localization", "swap"))
        >>> panel.needing("boxes")
        ['localization']
    """

    methods: tuple[TableMethod, ...] = field(default_factory=_default_methods)
    measures: tuple[str, ...] = ("localization",)
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        unknown = sorted({*self.measures} - {*list_measures()})
        if unknown:
            known = list_measures()
            raise ValueError(
                f"measures: {', '.join(unknown)} is none of {', '.join(known)}{did_you_mean(unknown[0], known)}"
            )

    def needing(self, need: str) -> list[str]:
        """The requested measures that need an attribute.

        Args:
            need: name of an attribute of :class:`MapBatch`.

        Returns:
            Names of the measures.
        """
        return [name for name in self.measures if need in MEASURES[name].needs]

    def check(self, gives: Collection[str], protocol: str) -> None:
        """Refuse measures that need an attribute that a protocol does not provide.

        Args:
            gives: names of the attributes of :class:`MapBatch` that the protocol provides.
            protocol: name of the protocol, for the message.

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
        """Compute all measures for the maps of all methods.

        Methods that differ in the window of their filter only share one call of each function.

        Args:
            maps_of: function from a method to its maps for a batch of B queries.
            size: height and width of the images, in pixels.
            boxes: boxes ``(m, 4)`` of each query. Default: None.
            images: images for the measures that mask them. Default: None.
            pairs_of: function from a method and its maps to maps of the queries for two supports, for ``swap``.
                Default: None.
            cells: cells of mosaics. Default: None.

        Returns:
            Columns with one entry per query, by the name of the method.
        """
        columns: dict[str, MethodColumns] = {}
        unfiltered = once_for_all_windows(maps_of)

        @once_for_all_windows
        def unfiltered_pairs(method: TableMethod) -> tuple[Tensor, Tensor]:
            assert pairs_of is not None
            return pairs_of(method, unfiltered(method).maps)

        for method in self.methods:
            result = unfiltered(method)
            maps = smooth_maps(result.maps, method.smooth)

            def pairs(method: TableMethod = method) -> tuple[Tensor, Tensor]:
                first, second = unfiltered_pairs(method)
                return smooth_maps(first, method.smooth), smooth_maps(second, method.smooth)

            swap = None if pairs_of is None else pairs
            batch = MapBatch(maps, size, result.account, result.drawing, boxes, images, swap, cells)
            columns[method.name] = MethodColumns(
                jsonable(find_nan(maps)), jsonable(find_empty(maps)), jsonable(find_empty(maps, "positive"))
            )
            for measure in self._running():
                if measure.can_run(batch):
                    columns[method.name].kept[measure.name] = measure.keep(batch, self.conventions)
        return columns

    def results(self, columns: MethodColumns, groups: Tensor | None = None) -> dict[str, Result]:
        """The numbers of one method in the table.

        Args:
            columns: columns of n queries, of all units.
            groups: episode of each query, ``(n,)``, within which means are taken first. Default: None, means over all
                queries.

        Returns:
            Results by the name of the column.
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
                # This process has the records of all processes, and must not wait for them.
                mean = SampleMean(sync_on_compute=False)
                numbers = column.numbers(columns.kept[measure.name])
                mean.update(numbers, nan=nan, empty=no_positive if sees_positive else empty, groups=groups)
                by_column[column.name] = mean.result()
        return by_column

    def allowed_values(self) -> dict[str, Mapping[str, Container[Any]]]:
        """The values that the running measures can have, by the name of the measure and the name of the value."""
        return {measure.name: measure.allowed for measure in self._running()}

    def _running(self) -> list[Measure]:
        """The requested measures and the measures that always run, in the order of the table."""
        return [measure for measure in MEASURES.values() if measure.always or measure.name in self.measures]
