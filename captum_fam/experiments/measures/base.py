"""What a measure is: a function of a batch of maps, what it needs, and the columns of the table that it fills."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from captum_fam.cli.options import option
from captum_fam.experiments import records
from captum_fam.experiments.table_methods import Drawing
from captum_fam.metrics import PERTURBATION_STEPS, Energy, Over

Size = tuple[int, int]
Kept = Tensor | records.Column
"""One value per query, ``(B,)``: a tensor of numbers, or a list as JSON has it."""


@dataclass(frozen=True)
class Conventions:
    """What the definitions of the measures leave open.

    Attributes:
        threshold: of the map's box, a share of its range.
        connectivity: 8 or 4.
        over: which IoU counts where an image has several boxes.
        mask: ``"normalized"`` masks the tensor that the model takes, ``"raw"`` the pixels before normalization.
        steps: of the perturbation curves.
        signed: what box and mask see of a signed map: the whole of it by ``"minmax"``, or its ``"positive"`` part.
        epsilon: similarities of at most this have no drop, increase, deletion and insertion.
    """

    over: Over = option("which IoU counts where an image has several boxes", "best")
    mask: Literal["normalized", "raw"] = option(
        "what average drop masks: the model's input, or the pixels", "normalized"
    )
    signed: Energy = option("what box and mask see of a signed map: all of it, or its positive part", "minmax")
    threshold: float = option("of the box, a share of the map's range", 0.2, metavar="T")
    connectivity: Literal[8, 4] = option("of the pixels of a box", 8)
    steps: int = option("of deletion and insertion", PERTURBATION_STEPS)
    epsilon: float = option(
        "similarities of at most this have no drop, increase, deletion and insertion", 1e-6, metavar="S"
    )


@dataclass(frozen=True)
class Perturbable:
    """Queries whose images can be masked and scored again.

    Attributes:
        images: as the model takes them, ``(B, 3, H, W)``.
        score: takes images ``(B, 3, H, W)`` in the order of the queries and gives the score of each query's target,
            ``(B,)``.
        scores: of the images as they are, ``(B,)``.
        mean: of the images' channels, by which they were normalized.
        std: of the images' channels.
    """

    images: Tensor
    score: Callable[[Tensor], Tensor]
    scores: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Cells:
    """The cells of mosaics that the supports belong to.

    Attributes:
        of_support: the cell of each query's support in raster order, ``(B,)``.
        grid: cells per side.
    """

    of_support: Tensor
    grid: int


@dataclass(frozen=True)
class MapBatch:
    """The maps of one method for a batch of queries, with all that measures may compare them with.

    What a measure *needs* are names of these attributes: it runs where none of them is None.

    Attributes:
        maps: ``(B, 1, h, w)``.
        size: height and width of the images.
        coverage: of maps that add up, their sum over the explained score, ``(B,)``.
        drawing: of a baseline that draws its mask and box itself.
        boxes: of each query, ``(m, 4)`` in pixels of the images.
        images: for measures that mask the images and score them again.
        swap: gives maps of the same queries for two supports.
        cells: of mosaics.
    """

    maps: Tensor
    size: Size
    coverage: Tensor | None = None
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
        name: in the table.
        sees: which part of a signed map: ``"all"`` of it, its ``"positive"`` part, or what is ``"chosen"`` by
            :attr:`Conventions.signed`. A map without that part is counted as empty.
        from_kept: the numbers ``(n,)``, NaN where undefined, from what the measure has kept of all n queries. Default:
            what is kept under the column's own name.
    """

    name: str
    sees: Literal["all", "positive", "chosen"] = "all"
    from_kept: Callable[[Mapping[str, records.Column]], Tensor] | None = None

    def numbers(self, kept: Mapping[str, records.Column]) -> Tensor:
        """The numbers of all queries, float64 ``(n,)``."""
        return records.as_numbers(kept[self.name]) if self.from_kept is None else self.from_kept(kept)


@dataclass(frozen=True)
class Measure:
    """A measure of a table.

    Attributes:
        name: by which it is asked for.
        compute: what it keeps of a batch of maps, by name; a single tensor goes by the name of the measure.
        needs: attributes of :class:`MapBatch` without which it cannot run.
        columns: of the table, in their order.
        always: whether it runs wherever it has what it needs, and is not asked for.
    """

    name: str
    compute: Compute
    needs: tuple[str, ...]
    columns: tuple[Column, ...]
    always: bool = False

    def can_run(self, batch: MapBatch) -> bool:
        """Whether a batch has all that the measure needs."""
        return all(getattr(batch, need) is not None for need in self.needs)

    def keep(self, batch: MapBatch, conventions: Conventions) -> dict[str, records.Column]:
        """What is kept of a batch, by name: one JSON value per query."""
        kept = self.compute(batch, conventions)
        named = kept if isinstance(kept, Mapping) else {self.name: kept}
        return {name: records.jsonable(one) if isinstance(one, Tensor) else one for name, one in named.items()}


MEASURES: dict[str, Measure] = {}
"""All measures by name; their order is that of the columns of a table."""


def register_measure(
    name: str,
    needs: Sequence[str] = (),
    columns: Sequence[Column] | None = None,
    *,
    always: bool = False,
) -> Callable[[Compute], Compute]:
    """Make a function a measure of the tables.

    Args:
        name: by which it is asked for.
        needs: names of attributes of :class:`MapBatch` without which the measure cannot run.
        columns: of the table. Default: one, of the measure's name.
        always: run the measure wherever it has what it needs, without being asked for.

    Returns:
        A decorator, which gives the function back as it is.

    Raises:
        ValueError: for a name that is taken, a need that no batch of maps has, or a column that another measure has.

    Example:
        >>> @register_measure("peak", needs=("boxes",))
        ... def peak(batch, conventions):
        ...     '''Whether the largest value lies in a box.'''
        ...     return mosaic_hit(batch.maps, box_mask(batch.boxes, batch.size))
    """
    if name in MEASURES:
        raise ValueError(f"name {name!r} is taken by another measure; choose another")
    unknown = sorted({*needs} - MapBatch.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"needs: {', '.join(unknown)} is none of {', '.join(MapBatch.__dataclass_fields__)}")
    filled = tuple(columns or (Column(name),))
    taken = {column.name for other in MEASURES.values() for column in other.columns}
    twice = [column.name for column in filled if column.name in taken]
    if twice:
        raise ValueError(f"columns: {', '.join(twice)} is a column of another measure; choose another name")

    def register(compute: Compute) -> Compute:
        MEASURES[name] = Measure(name, compute, tuple(needs), filled, always)
        return compute

    return register


def list_measures(gives: Collection[str] | None = None) -> tuple[str, ...]:
    """The measures that may be asked for.

    Args:
        gives: names of attributes of :class:`MapBatch` that there are. Default: all.

    Example:
        >>> list_measures(gives={"swap"})
        ('swap',)
    """
    return tuple(
        measure.name
        for measure in MEASURES.values()
        if not measure.always and (gives is None or {*measure.needs} <= {*gives, "maps", "size"})
    )
