"""A figure of several models: a row per query, a block of columns per model, and the accuracy of each model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from captum_fam.attr.registry import get_method
from captum_fam.experiments.figure_cells import CellOfColumn, class_cells, query_cell, support_cell, titled_class
from captum_fam.experiments.figure_queries import FigureQuery, Which
from captum_fam.experiments.model_run import ModelRun
from captum_fam.experiments.table_methods import TableMethod
from captum_fam.metrics import Result
from captum_fam.visualization import ColumnBlock, GridCell, MapFigure, visualize_grid

ClearValue = Literal["zero", "minmax"]

_WITHOUT_SIGN = ("auto", "minmax", "relu")  # normalizations to [0, 1], for a method without a foil
# The columns of the records whose classes have maps, with the role of the class in the title of a map.
_ROLES: dict[Which, dict[Literal["label", "predicted"], str]] = {
    "correct": {"label": ""},  # which is also the predicted class
    "any": {"predicted": "predicted"},
    "wrong": {"predicted": "predicted", "label": "true"},
}


def check_scale(methods: Sequence[TableMethod], scale: ClearValue) -> None:
    """Refuse signed maps for the scale ``"minmax"``, in which the zero of a map cannot be seen.

    Args:
        methods: methods of the maps.
        scale: as in :func:`model_figure`.

    Raises:
        ValueError: for ``"minmax"`` and a method with a foil, with signed maps, or with a normalization that keeps the
            sign.
    """
    signed = [method.name for method in methods if not _is_unsigned(method)]
    if signed and scale == "minmax":
        raise ValueError(
            f"scale minmax: {', '.join(signed)} is signed, and would lose the evidence against the match; use zero"
        )


def model_figure(
    runs: Sequence[ModelRun],
    queries: Iterable[FigureQuery],
    methods: Sequence[TableMethod],
    *,
    which: Which = "correct",
    supports: bool = True,
    scale: ClearValue = "zero",
) -> MapFigure:
    """Draw a figure like Figs. 2, 3 and 5 of the FAM paper, or Fig. 4 for ``which="wrong"``.

    Args:
        runs: runs of the models, which are the blocks of columns.
        queries: queries, which are the rows.
        methods: methods, which are the columns of each block.
        which: as in :func:`~captum_fam.experiments.figure_queries.choose_queries`. For ``"correct"`` maps explain the
            true class, which is also predicted; for ``"any"`` the predicted class; for ``"wrong"`` there are maps for
            both classes. Default: ``"correct"``.
        supports: whether the supports are shown; retrieved images also have maps. Default: True.
        scale: ``"zero"`` makes the value zero transparent, and the largest magnitude fully colored; ``"minmax"`` makes
            the smallest value transparent, as in the paper, which shows differences within maps that are large
            everywhere. Default: ``"zero"``.

    Returns:
        The figure.

    Raises:
        ValueError: for ``"minmax"`` and signed maps, see :func:`check_scale`; or for supports that have no images.
    """
    check_scale(methods, scale)
    protocol = runs[0].prepared.protocol
    # All models have the same episodes. So they share the support of a class that all of them predict.
    shared_support = supports and which == "correct" and protocol.by_unit
    supports_per_model = supports and not shared_support
    rows = []
    # Titles of the columns, per model; all rows have the titles of the first row.
    columns: list[tuple[str, ...]] = []
    for query in queries:
        row = _query_cells(runs[0], query, which, shared_support)
        by_model = [
            _model_cells(run, query, number, methods, which, supports_per_model) for number, run in enumerate(runs)
        ]
        columns = columns or [tuple(title for title, _ in cells) for cells in by_model]
        row += [_scaled(cell, scale) for cells in by_model for _, cell in cells]
        rows.append(row)
    blocks = [ColumnBlock(protocol.figure_header, ("query", protocol.support_title) if shared_support else ("",))]
    blocks += [
        ColumnBlock(f"{run.label}\n{format_percent(run.accuracy)}", titles)
        for run, titles in zip(runs, columns, strict=True)
    ]
    return visualize_grid(rows, blocks)


def format_percent(result: Result) -> str:
    """A share with its 95 % interval, as text in percent.

    Args:
        result: the share.

    Example:
        >>> format_percent(Result(0.659, 0.008, n=600, n_nan=0, n_empty=0))
        '65.9 ± 0.8 %'
    """
    interval = "" if math.isnan(result.half_width) else f" ± {100 * result.half_width:.1f}"
    return f"{100 * result.value:.1f}{interval} %"


def _query_cells(run: ModelRun, query: FigureQuery, which: Which, with_support: bool) -> list[GridCell]:
    """The cell of the query, and the cell of the support if all models share it."""
    label = query.column("label")[0]
    title = titled_class(run.prepared, label, "" if which == "correct" else "true")
    cells = [query_cell(run.prepared, query.item, title)]
    if with_support:
        cells.append(support_cell(run.prepared.example(*query.places[0], label)))
    return cells


def _model_cells(
    run: ModelRun, query: FigureQuery, number: int, methods: Sequence[TableMethod], which: Which, supports: bool
) -> list[CellOfColumn]:
    """The cells of a query for the model with this number."""
    record, row = query.places[number]
    cells: list[CellOfColumn] = []
    for column, role in _ROLES[which].items():
        label = query.column(column)[number]
        title = titled_class(run.prepared, label, role) if role else ""
        cells += class_cells(run.prepared, record, row, label, methods, supports=supports, title=title)
    return cells


def _scaled(cell: GridCell, scale: ClearValue) -> GridCell:
    if cell.attribution is None or scale == "zero":
        return cell
    return replace(cell, attribution=cell.attribution - cell.attribution.min())


def _is_unsigned(method: TableMethod) -> bool:
    return method.foil is None and (not method.is_signed or _normalization(method) in _WITHOUT_SIGN)


def _normalization(method: TableMethod) -> object:
    """The normalization of the maps of a method; None for a method without this option."""
    parameters = inspect.signature(get_method(method.base).make).parameters
    default = parameters["normalization"].default if "normalization" in parameters else None
    return method.options.get("normalization", default)
