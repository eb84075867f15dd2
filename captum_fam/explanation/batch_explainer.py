"""Explanations inside a data pipeline: a callable on batches of arrays that can be sent to other processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from captum_fam._warnings import warn_user
from captum_fam.explanation.explainer import Explainer
from captum_fam.explanation.reading.methods import MethodsLike, check_options, read_methods
from captum_fam.explanation.reading.model import ModelLike
from captum_fam.explanation.reading.pictures import as_pictures, open_picture
from captum_fam.explanation.reading.supports import SupportLike
from captum_fam.explanation.result import Explanation
from captum_fam.functional import check_window
from captum_fam.images import UnreadableImageError

RESULTS = ("map", "score", "predicted", "target", "coverage")
"""The columns that an explanation adds to a batch."""


class BatchExplainer:
    """Explains batches of arrays, for data pipelines of other libraries.

    The object is called with a batch, and gives the batch without its images and with the columns ``map``, the
    attributions at the layer, float32 ``(B, h, w)``; ``score``, the score of the explained class minus the score of its
    foil, float32 ``(B,)``; ``predicted`` and ``target``, names of classes; and ``coverage``, float32 ``(B,)``, NaN for
    a method without an account of the score. With several methods, each further method has columns ``map_METHOD`` and
    ``coverage_METHOD``, such as ``map_fam``. A batch with a column of such a name is refused: pass ``prefix``.

    The batch may be a mapping from names to arrays or lists, as ``map_batches`` of Ray Data and ``map(batched=True)``
    of Hugging Face datasets give it; a ``DataFrame`` or a ``Series`` of pandas, as pandas functions of Spark get it; or
    an iterator of DataFrames, as ``mapInPandas`` of Spark gives it. The result has the same form; for a Series it is a
    DataFrame. In a DataFrame a map is a list of rows. A batch without images, as a filter leaves it, gives columns
    without rows.

    An image is an input of the model, or a picture: pixels, a path, the bytes of a file, as ``binaryFile`` of Spark
    reads them, or a mapping with ``"bytes"`` or ``"path"``, as Hugging Face datasets give images that are not decoded.

    The object can be pickled if the model and the support can. Each process makes its own :class:`Explainer` with the
    first batch; a model given by name is loaded there.

    Args:
        model: the model, as for :func:`~captum_fam.explain`.
        support: the support, as for :func:`~captum_fam.explain`; it must be shared by all queries.
        column: the name of the column with the images: inputs of the model or pictures, as for
            :func:`~captum_fam.explain`. Default: ``"image"``.
        target_column: the name of the column with the classes to explain. Default: None, the predicted classes.
        prefix: a text in front of the names of the new columns. Default: an empty text.
        on_error: what a missing picture (None) or one that cannot be read does. ``"raise"``: it is an error of the
            whole batch. ``"skip"``: its row has a map, score and coverage of NaN and None for the classes; a further
            column ``error`` has the reason, and None for other rows. Default: ``"raise"``.
        method: a method or a sequence of methods, as for :func:`~captum_fam.explain`. Default: ``"similarity-cam"``,
            the map that adds up to the score, alone: a second map doubles the time and the column.
        **options: further arguments of :class:`Explainer`.

    Raises:
        TypeError: for an option that neither :class:`Explainer` nor the method takes.
        ValueError: for an unknown method, a method of None, or another ``on_error``.

    Example:
        >>> explain_batch = BatchExplainer(model, SupportSet(images, labels))
        >>> batch = explain_batch({"id": np.arange(8), "image": queries.numpy()})
        >>> list(batch), batch["score"].shape
        (['id', 'map', 'score', 'predicted', 'target', 'coverage'], (8,))
        >>> dataset.map_batches(explain_batch, batch_size=32)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ModelLike,
        support: SupportLike,
        *,
        column: str = "image",
        target_column: str | None = None,
        prefix: str = "",
        on_error: Literal["raise", "skip"] = "raise",
        method: MethodsLike = "similarity-cam",
        **options: Any,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        methods = read_methods(method)
        if methods is None:
            raise ValueError("method is None, expected a method or a sequence of methods, whose names the columns get")
        taken = inspect.signature(Explainer).parameters
        check_options(methods, {name: value for name, value in options.items() if name not in taken}, "BatchExplainer")
        check_window("smooth", options.get("smooth", 1))
        self.model = model
        self.support = support
        self.column = column
        self.target_column = target_column
        self.prefix = prefix
        self.on_error = on_error
        self.options = {"method": method, **options}
        self._beside = [one.name for one in methods[1:]]
        self._explainer: Explainer | None = None
        # Of each map the size in the last batch.
        self._grids: dict[str, tuple[int, ...]] = dict.fromkeys(self._names("map"), (0, 0))

    def __getstate__(self) -> dict[str, Any]:
        # The explainer holds an embedded support and hooks' owners; another process makes its own.
        return {**vars(self), "_explainer": None}

    def __call__(self, batch: Any) -> Any:
        """Explain a batch.

        Args:
            batch: a mapping, a DataFrame, a Series or an iterator of DataFrames.

        Returns:
            The batch in the same form, with the columns of the explanation in place of the images.

        Raises:
            KeyError: for a batch without the column of the images or of the classes; the message lists the columns.
            TypeError: for a batch of another form.
            ValueError: for a batch that has columns of the names of the results, or a missing picture.
            ValueError, TypeError: as :func:`~captum_fam.explain`.
        """
        if isinstance(batch, Mapping):
            columns = dict(batch)
            made = self._explain(columns)
            return {**{name: column for name, column in columns.items() if name != self.column}, **made}
        if isinstance(batch, Iterator):
            return map(self, batch)
        if hasattr(batch, "columns"):
            made = self._explain({name: batch[name].tolist() for name in batch.columns})
            # In a frame without rows, columns of another type than objects would not fit those of other batches.
            numbers = [self.prefix + name for name in ("score", *self._names("coverage"))]
            cells = type(batch)(_as_cells(made), index=batch.index, dtype=object)
            cells = cells.astype(dict.fromkeys(numbers, float))
            frame = batch.drop(columns=[self.column])
            for name in cells.columns:
                frame[name] = cells[name]
            return frame
        if hasattr(batch, "to_frame"):
            return self(batch.to_frame(self.column))
        raise TypeError(
            f"batch must be a mapping of arrays, a DataFrame, a Series or an iterator, got {type(batch).__name__}"
        )

    def _explain(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the results, for the columns of a batch."""
        self._check_columns(columns)
        cells = columns[self.column]
        targets = None if self.target_column is None else list(columns[self.target_column])
        errors: list[str | None] = [None] * len(cells)
        parts = []
        # In parts, because the pictures of a large batch need not be in memory at once.
        size = self.options.get("batch_size", 32)
        for start in range(0, len(cells), size):
            pictures, reasons = self._read(cells[start : start + size], start)
            errors[start : start + size] = reasons
            kept = [start + place for place, reason in enumerate(reasons) if reason is None]
            if kept:
                explainer = self._explainer = self._explainer or Explainer(self.model, self.support, **self.options)
                why = explainer.explain(pictures, target=None if targets is None else [targets[row] for row in kept])
                parts.append(_columns_of(why))
        results = self._join(parts, [row for row, reason in enumerate(errors) if reason is None], len(cells))
        failed = [reason for reason in errors if reason is not None]
        if failed:
            warn_user(f"{len(failed)} of {len(errors)} images were skipped; the first: {failed[0]}", 3)
        if self.on_error == "skip":
            results["error"] = errors
        return {self.prefix + name: column for name, column in results.items()}

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        for argument, name in (("column", self.column), ("target_column", self.target_column)):
            if name is not None and name not in columns:
                listed = ", ".join(map(repr, columns))
                raise KeyError(f"batch has no column {name!r}, only {listed}; pass {argument}=")
        results = [*RESULTS, *self._names("map")[1:], *self._names("coverage")[1:]]
        new = {self.prefix + name for name in (*results, *(["error"] if self.on_error == "skip" else []))}
        taken = [name for name in columns if name in new and name != self.column]
        if taken:
            raise ValueError(
                f"batch has columns of the names of the results: {', '.join(map(repr, taken))}; rename them, or pass "
                'prefix=, such as prefix="why_"'
            )

    def _read(self, cells: Any, start: int) -> tuple[Any, list[str | None]]:
        """Images in a form that :func:`explain` takes, and for each cell the reason why it is skipped, or None."""
        if isinstance(cells, Tensor) or (isinstance(cells, np.ndarray) and cells.dtype != object):
            return cells, [None] * len(cells)
        made: list[Any] = []
        reasons: list[str | None] = []
        for place, cell in enumerate(cells):
            reason: str | None = None
            picture = _as_cell(cell)
            if picture is None:
                reason = f"row {start + place} of column {self.column!r} has no image"
                if self.on_error == "raise":
                    raise ValueError(f'{reason}; leave the row out, or pass on_error="skip"')
            elif self.on_error == "skip" and as_pictures(picture) is not None:
                try:
                    picture = open_picture(picture)
                except UnreadableImageError as error:
                    reason = f"row {start + place}: {error}"
            made += [picture] if reason is None else []
            reasons.append(reason)
        if made and all(isinstance(one, np.ndarray) and one.dtype != np.uint8 for one in made):
            return np.stack(made), reasons
        return made, reasons

    def _join(self, parts: Sequence[Mapping[str, Any]], rows: list[int], count: int) -> dict[str, Any]:
        """The results of some rows as columns of all rows; the other rows have NaN and None."""
        numbers: dict[str, np.ndarray[Any, Any]] = {}
        for name in self._names("map"):
            grids = {part[name].shape[1:] for part in parts}
            if len(grids) > 1:
                raise ValueError(
                    f"batch: the maps have the sizes {', '.join(map(str, sorted(grids)))}; explain images of one size, "
                    'or use another resize than "keep"'
                )
            self._grids[name] = next(iter(grids), self._grids[name])
            numbers[name] = np.full((count, *self._grids[name]), np.nan, np.float32)
        for name in ("score", *self._names("coverage")):
            numbers[name] = np.full(count, np.nan, np.float32)
        for name, values in numbers.items():
            if parts:
                values[rows] = np.concatenate([part[name] for part in parts])
        texts: dict[str, list[str | None]] = {name: [None] * count for name in ("predicted", "target")}
        for name, column in texts.items():
            for row, value in zip(rows, (value for part in parts for value in part[name]), strict=True):
                column[row] = value
        order = dict.fromkeys([*RESULTS, *numbers])
        return {name: numbers[name] if name in numbers else texts[name] for name in order}

    def _names(self, column: str) -> list[str]:
        """The names of a column that every method has; that of the first method is the plain one."""
        return [column, *(f"{column}_{method}" for method in self._beside)]


def _as_cell(cell: Any) -> Any:
    """The image of a cell: a picture or an array; None where there is no image."""
    if isinstance(cell, Mapping) and cell.keys() <= {"bytes", "path"}:
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, bytearray | memoryview):
        return bytes(cell)
    if cell is None or (isinstance(cell, float) and np.isnan(cell)) or type(cell).__name__ in ("NAType", "NaTType"):
        return None
    return _as_array(cell) if isinstance(cell, list | np.ndarray) else cell


def _as_array(cell: Any) -> np.ndarray[Any, Any]:
    """One image as an array of numbers."""
    array = np.array(cell.tolist() if isinstance(cell, np.ndarray) and cell.dtype == object else cell)
    if array.dtype == object:
        return np.stack([_as_array(part) for part in array])
    # Whole numbers are pixels; Arrow and JSON keep no 8 bits.
    return array.astype(np.uint8 if array.dtype.kind in "iu" else np.float32)


def _columns_of(why: Explanation) -> dict[str, Any]:
    """The columns of an explanation, with one entry per query."""
    names = np.array(why.class_names, dtype=object)
    columns: dict[str, Any] = {
        "score": why.target_scores.float().cpu().numpy(),
        "predicted": names[why.predicted.cpu().numpy()].tolist(),
        "target": names[why.target.cpu().numpy()].tolist(),
    }
    for one in (why, *why.beside):
        end = "" if one is why else f"_{one.method}"
        columns[f"map{end}"] = one.attributions[:, 0].float().cpu().numpy()
        unknown = np.full(len(why), np.nan, np.float32)
        columns[f"coverage{end}"] = unknown if one.coverage is None else one.coverage.float().cpu().numpy()
    return columns


def _as_cells(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns as lists of cells, which pandas stores and Arrow reads."""
    return {
        name: values.tolist() if isinstance(values, np.ndarray) else list(values) for name, values in columns.items()
    }
