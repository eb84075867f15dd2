"""The cells of a figure of several models: the query, the support, and the maps of a model."""

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

_PHOTOGRAPH_SIDE = 480  # pixels of the longer side

Prepared = PreparedProtocol[Any]
CellOfColumn = tuple[str, GridCell]
"""The title of a column, and the cell of a query in this column."""


def view_photograph(prepared: Prepared, dataset: Dataset[Any], item: int) -> Tensor:
    """The image of an item in the shape of its file, with at most 480 pixels per side.

    If the photograph is cropped for the model, or if the data set has no photographs, this is the input of the model. A
    photograph in the shape of its file is possible only for a model that squashes images, because then the map covers
    the whole photograph.

    Args:
        prepared: the prepared protocol.
        dataset: data set of the item.
        item: position of the item.

    Returns:
        ``(3, H, W)`` in [0, 1].
    """
    if not hasattr(dataset, "photograph") or not isinstance(getattr(dataset, "geometry", None), Squash):
        return prepared.model_view(dataset, item)
    photograph = dataset.photograph(item)
    photograph.thumbnail((_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE))
    return image_to_tensor(photograph)


def query_cell(prepared: Prepared, item: int, title: str) -> GridCell:
    """The cell of a query, with the parts of its boxes inside the image.

    Args:
        prepared: the prepared protocol of the query.
        item: position of the query in the data set.
        title: title above the query.

    Returns:
        The cell.
    """
    image = prepared.image(item)
    model_input, _, *boxes = prepared.protocol.dataset[item]
    if not boxes:
        return GridCell(image, title)
    _, height, width = image.shape
    # Boxes are in pixels of the input of the model. The image is this input, or the photograph that was squashed to it.
    in_image = Squash((height, width)).map_boxes(boxes[0], model_input.shape[2], model_input.shape[1])
    return GridCell(image, title, boxes=in_image[box_areas(in_image) > 0].tolist())


def support_cell(example: Example) -> GridCell:
    """The cell of a support.

    Args:
        example: a query and a class.

    Raises:
        ValueError: if there is no image of the support.
    """
    if example.support is None:
        raise ValueError("supports: a memory bank has no images to show; leave out the supports")
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
    """The cells of a model for a query and a class: the support, and the maps of the query.

    If the support is explained too, as a retrieved image is, the map of the support is beside each map of the query,
    and there is no separate cell of the support.

    Args:
        prepared: the protocol, prepared with the model.
        record: record of the unit of the query.
        query: row of the query in the record.
        label: the class.
        methods: the methods of the maps; their names are the titles of the columns if there are several methods.
        supports: whether the support is shown.
        title: title above each map of the query. Default: empty.

    Yields:
        The title of each column, with the cell.

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
    """The name of a class in a figure, after its role.

    Args:
        prepared: the prepared protocol, which knows the names.
        label: the class.
        role: role of the class for the query, such as ``"true"``. Default: empty, no role.
    """
    name = class_title(prepared.protocol.class_name(label))
    return f"{role}: {name}" if role else name


def _map_cell(prepared: Prepared, method: TableMethod, example: Example, title: str = "") -> GridCell:
    if method.foil and not example.has_foil:
        return GridCell(example.image, f"{title}\nno other class to contrast with".strip())
    result = prepared.maps(method, example.scores_for, example.activation, example.target)
    return GridCell(example.image, title, result.maps[0].cpu())
