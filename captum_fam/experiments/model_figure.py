"""One figure of several models: the same queries, maps in columns per model, and the accuracy of each model above."""

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

_TO_ONE = ("auto", "minmax", "relu")  # normalizations of a map to [0, 1], where there is no foil
# Which classes have maps, and what they are to the query.
_ROLES: dict[Which, dict[Literal["label", "predicted"], str]] = {
    "correct": {"label": ""},  # true and predicted
    "any": {"predicted": "predicted"},
    "wrong": {"predicted": "predicted", "label": "true"},
}


def check_scale(methods: Sequence[TableMethod], scale: ClearValue) -> None:
    """Refuse signed maps for ``"minmax"``, which would lose where their zero is.

    Args:
        methods: whose maps are to be drawn.
        scale: as for :func:`model_figure`.

    Raises:
        ValueError: for a method with a foil, with signed maps, or with a normalization that keeps a sign.
    """
    signed = [method.name for method in methods if not _is_unsigned(method)]
    if signed and scale == "minmax":
        raise ValueError(
            f"scale minmax: {', '.join(signed)} is signed, and would lose what speaks against the match; use zero"
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
    """The paper's Figs. 2, 3 and 5, and for ``"wrong"`` Fig. 4, where each model has a map for either class.

    Args:
        runs: blocks of columns.
        queries: rows.
        methods: columns of each block.
        which: as for :func:`~captum_fam.experiments.figure_queries.choose_queries`: for ``"correct"``, the default,
            maps explain the true class, which is the predicted one; for ``"any"`` the predicted one; for ``"wrong"``
            both.
        supports: show what the query was compared with; retrieved images have maps too. Default: True.
        scale: of each map: ``"zero"``, the default, is clear and the largest magnitude has the full color; or
            ``"minmax"``, clear is the smallest value, as in the paper, which shows what differs within maps that are
            large everywhere.

    Raises:
        ValueError: for ``"minmax"`` and signed maps, see :func:`check_scale`; or if there are no supports to show.
    """
    check_scale(methods, scale)
    protocol = runs[0].prepared.protocol
    # Episodes are the same for all models, and so is the support of a class that all of them predict.
    shared_support = supports and which == "correct" and protocol.by_unit
    own_supports = supports and not shared_support
    rows = []
    # Per model, the titles of the columns: those of the first row, which all rows share.
    columns: list[tuple[str, ...]] = []
    for query in queries:
        row = _query_cells(runs[0], query, which, shared_support)
        by_model = [_model_cells(run, query, at, methods, which, own_supports) for at, run in enumerate(runs)]
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
    """A share with its 95 % interval in percent.

    Example:
        >>> format_percent(Result(0.659, 0.008, n=600, n_nan=0, n_empty=0))
        '65.9 ± 0.8 %'
    """
    interval = "" if math.isnan(result.half_width) else f" ± {100 * result.half_width:.1f}"
    return f"{100 * result.value:.1f}{interval} %"


def _query_cells(run: ModelRun, query: FigureQuery, which: Which, with_support: bool) -> list[GridCell]:
    """The query, and its support where all models share it."""
    label = query.column("label")[0]
    title = titled_class(run.prepared, label, "" if which == "correct" else "true")
    cells = [query_cell(run.prepared, query.item, title)]
    if with_support:
        cells.append(support_cell(run.prepared.example(*query.places[0], label)))
    return cells


def _model_cells(
    run: ModelRun, query: FigureQuery, at: int, methods: Sequence[TableMethod], which: Which, supports: bool
) -> list[CellOfColumn]:
    """The cells of one model, the ``at``-th, for a query."""
    record, row = query.places[at]
    cells: list[CellOfColumn] = []
    for column, role in _ROLES[which].items():
        label = query.column(column)[at]
        title = titled_class(run.prepared, label, role) if role else ""
        cells += class_cells(run.prepared, record, row, label, methods, supports=supports, title=title)
    return cells


def _scaled(cell: GridCell, scale: ClearValue) -> GridCell:
    if cell.attribution is None or scale == "zero":
        return cell
    return replace(cell, attribution=cell.attribution - cell.attribution.min())


def _is_unsigned(method: TableMethod) -> bool:
    return method.foil is None and (not method.is_signed or _normalization(method) in _TO_ONE)


def _normalization(method: TableMethod) -> object:
    """The normalization of a method's maps, as given or by default; None for a method without the option."""
    parameters = inspect.signature(get_method(method.base).make).parameters
    default = parameters["normalization"].default if "normalization" in parameters else None
    return method.options.get("normalization", default)
