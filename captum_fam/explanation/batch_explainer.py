"""Explanations inside a data pipeline: a callable on batches of arrays that can be sent to other processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from captum_fam.explanation.explainer import Explainer
from captum_fam.explanation.model import ModelLike
from captum_fam.explanation.result import Explanation
from captum_fam.explanation.supports import SupportLike

RESULTS = ("map", "score", "predicted", "target", "coverage")
"""The columns that an explanation adds to a batch."""


class BatchExplainer:
    """Explains batches of arrays, for data pipelines of other libraries.

    The object is called with a batch, and gives the batch without its images and with the columns ``map``, the
    attributions at the layer, float32 ``(B, h, w)``; ``score``, the score of the explained class minus the score of its
    foil, float32 ``(B,)``; ``predicted`` and ``target``, names of classes; and ``coverage``, float32 ``(B,)``, NaN for
    a method without an account of the score.

    The batch may be a mapping from names to arrays or lists, as ``map_batches`` of Ray Data and ``map(batched=True)``
    of Hugging Face datasets give it; a ``DataFrame`` or a ``Series`` of pandas, as pandas functions of Spark get it; or
    an iterator of DataFrames, as ``mapInPandas`` of Spark gives it. The result has the same form; for a Series it is a
    DataFrame. In a DataFrame a map is a list of rows. A batch without images, as a filter leaves it, gives columns
    without rows.

    The object can be pickled if the model and the support can. Each process makes its own :class:`Explainer` with the
    first batch; a model given by name is loaded there.

    Args:
        model: the model, as for :func:`~captum_fam.explain`.
        support: the support, as for :func:`~captum_fam.explain`; it must be shared by all queries.
        column: the name of the column with the images: inputs of the model or pictures, as for
            :func:`~captum_fam.explain`. Default: ``"image"``.
        target_column: the name of the column with the classes to explain. Default: None, the predicted classes.
        **options: further arguments of :class:`Explainer`.

    Example:
        >>> explain_batch = BatchExplainer(model, SupportSet(images, labels), method="similarity-cam")
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
        **options: Any,
    ) -> None:
        self.model = model
        self.support = support
        self.column = column
        self.target_column = target_column
        self.options = options
        self._explainer: Explainer | None = None

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
            KeyError: for a batch without the column of the images; the message lists the columns.
            TypeError: for a batch of another form.
            ValueError, TypeError: as :func:`~captum_fam.explain`.
        """
        if isinstance(batch, Mapping):
            return self._explain(dict(batch))
        if isinstance(batch, Iterator):
            return map(self, batch)
        if hasattr(batch, "columns"):
            columns = {name: batch[name].tolist() for name in batch.columns}
            return type(batch)(_as_cells(self._explain(columns)), index=batch.index)
        if hasattr(batch, "to_frame"):
            return self(batch.to_frame(self.column))
        raise TypeError(
            f"batch must be a mapping of arrays, a DataFrame, a Series or an iterator, got {type(batch).__name__}"
        )

    def _explain(self, columns: dict[str, Any]) -> dict[str, Any]:
        if self.column not in columns:
            raise KeyError(f"batch has no column {self.column!r}, only {', '.join(map(repr, columns))}; pass column=")
        targets = None if self.target_column is None else list(columns[self.target_column])
        if not len(columns[self.column]):
            columns.pop(self.column)
            none = np.zeros(0, np.float32)
            return {**columns, **dict(zip(RESULTS, (np.zeros((0, 0, 0), np.float32), none, [], [], none), strict=True))}
        if self._explainer is None:
            self._explainer = Explainer(self.model, self.support, **self.options)
        why = self._explainer.explain(_as_inputs(columns.pop(self.column)), target=targets)
        return {**columns, **_columns_of(why)}


def _as_inputs(cells: Any) -> Any:
    """The cells of a column in a form that :func:`explain` takes."""
    if isinstance(cells, Tensor) or (isinstance(cells, np.ndarray) and cells.dtype != object):
        return cells
    # Cells of nested lists, or of arrays of arrays, as Arrow and pandas give them.
    arrays = [cell if not isinstance(cell, list | np.ndarray) else _as_array(cell) for cell in cells]
    if all(isinstance(cell, np.ndarray) and cell.dtype != np.uint8 for cell in arrays):
        return np.stack(arrays)
    return arrays


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
    values = (
        why.attributions[:, 0].float().cpu().numpy(),
        why.target_scores.float().cpu().numpy(),
        names[why.predicted.cpu().numpy()].tolist(),
        names[why.target.cpu().numpy()].tolist(),
        np.full(len(why), np.nan, np.float32) if why.coverage is None else why.coverage.float().cpu().numpy(),
    )
    return dict(zip(RESULTS, values, strict=True))


def _as_cells(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns as lists of cells, which pandas stores and Arrow reads."""
    return {
        name: values.tolist() if isinstance(values, np.ndarray) else list(values) for name, values in columns.items()
    }
