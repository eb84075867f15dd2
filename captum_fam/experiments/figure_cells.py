"""The cells of a figure of several models: a query, what a model compares the query with, and the model's maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.experiments.example_figure import class_title
from captum_fam.experiments.protocols.base import Example, PreparedProtocol
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table_methods import TableMethod
from captum_fam.geometry import Squash, box_areas
from captum_fam.images import image_to_tensor
from captum_fam.visualization import GridCell

_PHOTOGRAPH = 480  # pixels of the longer side

Prepared = PreparedProtocol[Any]
CellOfColumn = tuple[str, GridCell]
"""The title of a column, and the cell that a query has there."""


def view_photograph(prepared: Prepared, dataset: Dataset[Any], item: int) -> Tensor:
    """An item of a dataset with the pixels and the shape of its file, ``(3, H, W)`` in [0, 1], at most 480 pixels long.

    Only where the model sees the whole photograph squashed, so that a map lies on the pixels of the file alike; else,
    and where the dataset has no photographs, as the model sees it.
    """
    if not hasattr(dataset, "photograph") or not isinstance(getattr(dataset, "geometry", None), Squash):
        return prepared.model_view(dataset, item)
    photograph = dataset.photograph(item)
    photograph.thumbnail((_PHOTOGRAPH, _PHOTOGRAPH))
    return image_to_tensor(photograph)


def query_cell(prepared: Prepared, item: int, title: str) -> GridCell:
    """A query with its boxes, as far as they are in sight.

    Args:
        prepared: the protocol that asked the query.
        item: position of the query in the dataset.
        title: above the query.
    """
    image = prepared.image(item)
    view, _, *boxes = prepared.protocol.dataset[item]
    if not boxes:
        return GridCell(image, title)
    _, height, width = image.shape
    # The image is the model's view, or the whole photograph that was squashed to it.
    in_image = Squash((height, width)).map_boxes(boxes[0], view.shape[2], view.shape[1])
    return GridCell(image, title, boxes=in_image[box_areas(in_image) > 0].tolist())


def support_cell(example: Example) -> GridCell:
    """What a query was compared with.

    Raises:
        ValueError: if there is no image of it.
    """
    if example.support is None:
        raise ValueError("supports: a memory bank has no images to show; leave them out")
    return GridCell(example.support)


def class_cells(
    prepared: Prepared,
    record: UnitRecord,
    query: int,
    label: int,
    methods: Sequence[TableMethod],
    *,
    supports: bool,
    title: str = "",
) -> Iterator[CellOfColumn]:
    """What a model says of a query and a class: the support and the maps of the query, column by column.

    Where the support is explained by its similarity to the query, as a retrieved image is, its map stands beside each
    map of the query, in the place of the support.

    Args:
        prepared: the protocol, prepared with the model.
        record: of the query's unit.
        query: the row of the query in the record.
        label: the class.
        methods: whose maps to show; the columns have their names, unless there is only one.
        supports: show what the query was compared with.
        title: above each map of the query. Default: none.

    Raises:
        ValueError: for supports of a memory bank, which has no images.
    """
    example = prepared.example(record, query, label)
    reverse = prepared.reverse_example(record, query, label) if supports else None
    if supports and reverse is None:
        yield prepared.protocol.support_title, support_cell(example)
    for method in methods:
        name = method.name if len(methods) > 1 else ""
        cell = _map_cell(prepared, method, example, title)
        if reverse is None:
            yield name, cell
        else:
            yield f"{name}\nquery".strip(), cell
            yield f"{name}\nretrieved".strip(), _map_cell(prepared, method, reverse)


def titled_class(prepared: Prepared, label: int, role: str = "") -> str:
    """The name of a class as a figure writes it, behind what the class is to the query, if anything."""
    name = class_title(prepared.protocol.class_name(label))
    return f"{role}: {name}" if role else name


def _map_cell(prepared: Prepared, method: TableMethod, example: Example, title: str = "") -> GridCell:
    if method.foil and not example.has_foil:
        return GridCell(example.image, f"{title}\nno other class to contrast with".strip())
    found = prepared.maps(method, example.scores_for, example.activation, example.target)
    return GridCell(example.image, title, found.maps[0].cpu())
