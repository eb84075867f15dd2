"""Measures and their registry: a measure is a function of a batch of maps, with its needs and its columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from captum_fam._registration import check_not_taken
from captum_fam.cli.options import check_fields, option
from captum_fam.cli.ranges import at_least, between
from captum_fam.experiments import records
from captum_fam.experiments.table_methods import Account, Drawing
from captum_fam.metrics import BOX_THRESHOLD, LEAST_SCORE, PERTURBATION_STEPS, Energy, Over

Size = tuple[int, int]
Kept = Tensor | records.Column
"""One value per query, ``(B,)``: a tensor of numbers, or a list of JSON values."""

SHARE = between(-1e-4, 1 + 1e-4)
"""The shares from 0 to 1, with room for rounding in float32."""


@dataclass(frozen=True)
class Conventions:
    """Choices that the definitions of the measures leave open.

    Attributes:
        over: which IoU counts if an image has several boxes, see :func:`~captum_fam.metrics.box_iou`. Default:
            ``"best"``.
        mask: ``"normalized"`` masks the input of the model, ``"raw"`` the pixels before the normalization. Default:
            ``"normalized"``.
        signed: which part of a signed map box and mask use: ``"minmax"`` for the whole map, ``"positive"`` for the
            positive part. Default: ``"minmax"``.
        threshold: threshold of the box of a map, as a share of the range of the map. Default: 0.2.
        connectivity: connectivity of the pixels of a box, 8 or 4. Default: 8.
        steps: steps of the curves of deletion and insertion. Default: 20.
        epsilon: largest similarity for which drop, increase, deletion and insertion are undefined. Default: 1e-6.

    Raises:
        ValueError: for a number out of its range, or an unknown choice.
    """

    over: Over = option("which IoU counts if an image has several boxes", "best")
    mask: Literal["normalized", "raw"] = option(
        "what average drop masks: the model's input, or the pixels", "normalized"
    )
    signed: Energy = option("part of a signed map for box and mask: the whole map, or the positive part", "minmax")
    threshold: float = option(
        "threshold of the box, a share of the range of the map",
        BOX_THRESHOLD,
        metavar="T",
        within=between(0, 1, without_most=True),
    )
    connectivity: Literal[8, 4] = option("connectivity of the pixels of a box", 8)
    steps: int = option("steps of deletion and insertion", PERTURBATION_STEPS, within=at_least(1))
    epsilon: float = option(
        "similarities up to S have no drop, increase, deletion and insertion",
        LEAST_SCORE,
        metavar="S",
        within=at_least(0),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Perturbable:
    """Queries whose images can be masked and scored again.

    Attributes:
        images: inputs of the model, ``(B, 3, H, W)``.
        score: function from images ``(B, 3, H, W)``, in the order of the queries, to the score of the target of each
            query, ``(B,)``.
        scores: scores of the images without a mask, ``(B,)``.
        mean: mean of each channel, with which the images were normalized.
        std: standard deviation of each channel, with which the images were normalized.
    """

    images: Tensor
    score: Callable[[Tensor], Tensor]
    scores: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Cells:
    """The cells of mosaics that show the class of the support.

    Attributes:
        of_support: index in raster order of the cell, for each query, ``(B,)``.
        grid: cells per side of a mosaic.
    """

    of_support: Tensor
    grid: int


@dataclass(frozen=True)
class MapBatch:
    """The maps of one method for a batch of queries, with everything that measures may compare with the maps.

    A measure *needs* some of these attributes, by name. It runs if none of them is None.

    Attributes:
        maps: ``(B, 1, h, w)``.
        size: height and width of the images, in pixels.
        account: sums and explained scores of maps that add up to the score. Default: None.
        drawing: mask and box of a baseline that draws them itself. Default: None.
        boxes: boxes of each query, ``(m, 4)`` in pixels of the images. Default: None.
        images: images for measures that mask them. Default: None.
        swap: function that returns the maps of the queries for two supports. Default: None.
        cells: cells of mosaics. Default: None.
    """

    maps: Tensor
    size: Size
    account: Account | None = None
    drawing: Drawing | None = None
    boxes: Sequence[Tensor] | None = None
    images: Perturbable | None = None
    swap: Callable[[], tuple[Tensor, Tensor]] | None = None
    cells: Cells | None = None


Compute = Callable[[MapBatch, Conventions], Kept | Mapping[str, Kept]]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: name of the column.
        sees: which part of a signed map the number depends on: ``"all"``, the ``"positive"`` part, or the part
            ``"chosen"`` by :attr:`Conventions.signed`. A map without this part counts as empty. Default: ``"all"``.
        from_kept: function from the values that the measure keeps, by name, of all n queries, to the numbers of the
            column, ``(n,)``, NaN where undefined. Default: the values under the name of the column.
    """

    name: str
    sees: Literal["all", "positive", "chosen"] = "all"
    from_kept: Callable[[Mapping[str, records.Column]], Tensor] | None = None

    def numbers(self, kept: Mapping[str, records.Column]) -> Tensor:
        """The numbers of the column.

        Args:
            kept: values that the measure keeps of n queries, by name.

        Returns:
            float64 ``(n,)``.
        """
        return records.as_numbers(kept[self.name]) if self.from_kept is None else self.from_kept(kept)


@dataclass(frozen=True)
class Measure:
    """A measure of a table.

    Attributes:
        name: name of the measure.
        compute: function from a batch of maps to the values that are kept, by name; a single tensor has the name of the
            measure.
        needs: attributes of :class:`MapBatch` that the measure needs.
        columns: columns of the table, in order.
        always: whether the measure runs without a request, wherever it has everything that it needs. Default: False.
        allowed: the values that can be, by the name of a value that is kept; a stored value outside is refused when it
            is read. A value without an entry may be any number or text. Default: none.
    """

    name: str
    compute: Compute
    needs: tuple[str, ...]
    columns: tuple[Column, ...]
    always: bool = False
    allowed: Mapping[str, Container[Any]] = field(default_factory=dict)

    def can_run(self, batch: MapBatch) -> bool:
        """Whether a batch has all attributes that the measure needs.

        Args:
            batch: a batch of maps.
        """
        return all(getattr(batch, need) is not None for need in self.needs)

    def keep(self, batch: MapBatch, conventions: Conventions) -> dict[str, records.Column]:
        """Compute the values that are kept of a batch.

        Args:
            batch: a batch of maps.
            conventions: choices that the definition of the measure leaves open.

        Returns:
            One JSON value per query, by name.

        Raises:
            ValueError: if the measure gives another number of values than maps.
        """
        kept = self.compute(batch, conventions)
        named = kept if isinstance(kept, Mapping) else {self.name: kept}
        for name, part in named.items():
            if len(part) != len(batch.maps):
                raise ValueError(
                    f"measure {self.name!r} gave {len(part)} values of {name!r} for {len(batch.maps)} maps"
                )
        return {name: records.jsonable(part) if isinstance(part, Tensor) else part for name, part in named.items()}


MEASURES: dict[str, Measure] = {}
"""All registered measures by name, in the order of the columns of a table."""


def register_measure(
    name: str,
    needs: Sequence[str] = (),
    columns: Sequence[Column] | None = None,
    *,
    always: bool = False,
    allowed: Mapping[str, Container[Any]] | None = None,
) -> Callable[[Compute], Compute]:
    """Register a function as a measure.

    Args:
        name: name of the measure, for ``--measures``.
        needs: names of attributes of :class:`MapBatch` that the measure needs. Default: none.
        columns: columns of the table. Default: one column with the name of the measure.
        always: run the measure without a request, wherever it has everything that it needs. Default: False.
        allowed: the values that can be, by the name of a value that is kept, such as ``{"peak": between(0, 1)}``; a
            stored value outside is refused when it is read. Default: any numbers and texts.

    Returns:
        A decorator, which returns the function unchanged.

    Raises:
        ValueError: for a name that another measure has, a need that is no attribute of :class:`MapBatch`, or a column
            that another measure has.
        TypeError: for needs or columns of another type, or something that cannot be called.

    Example:
        >>> @register_measure("peak", needs=("boxes",))
        ... def peak(batch, conventions):
        ...     '''Whether the largest value lies in a box.'''
        ...     return mosaic_hit(batch.maps, box_mask(batch.boxes, batch.size))
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-]+", name):
        raise ValueError(f"name must be letters, digits, '-', '_' and '+', got {name!r}")
    if isinstance(needs, str):
        raise TypeError(f"needs must be names in a tuple or list, got the text {needs!r}")
    unknown = sorted({*needs} - MapBatch.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"needs: {', '.join(unknown)} is none of {', '.join(MapBatch.__dataclass_fields__)}")
    own_columns = tuple(columns or (Column(name),))
    if not all(isinstance(column, Column) for column in own_columns):
        raise TypeError(f"columns must be Column objects, got {own_columns!r}")
    taken_names = {column.name for measure in MEASURES.values() if measure.name != name for column in measure.columns}
    duplicates = [column.name for column in own_columns if column.name in taken_names]
    if duplicates:
        raise ValueError(f"columns: {', '.join(duplicates)} is a column of another measure; choose another name")

    def register(compute: Compute) -> Compute:
        if not callable(compute):
            raise TypeError(f"compute must be a function of a batch of maps, got {type(compute).__name__}")
        check_not_taken(name, MEASURES[name].compute if name in MEASURES else None, compute, "measure")
        MEASURES[name] = Measure(name, compute, tuple(needs), own_columns, always, dict(allowed or {}))
        return compute

    return register


def list_measures(gives: Collection[str] | None = None) -> tuple[str, ...]:
    """The names of the measures that run on request.

    Args:
        gives: names of the attributes of :class:`MapBatch` that a protocol provides. Default: all.

    Returns:
        The measures that need no other attributes.

    Example:
        >>> list_measures(gives={"swap"})
        ('swap',)
    """
    return tuple(
        measure.name
        for measure in MEASURES.values()
        if not measure.always and (gives is None or {*measure.needs} <= {*gives, "maps", "size"})
    )
