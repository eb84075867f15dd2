"""Rows of the figures of a run: one query with its supports and maps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from captum_fam.experiments.protocols.base import PreparedProtocol
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table_methods import TableMethod
from captum_fam.visualization import GridCell


def class_title(name: str) -> str:
    """The name of a class in a figure: the name of its folder without the number and the underscores.

    Args:
        name: name of the class.

    Example:
        >>> class_title("017.Cardinal_of_the_North")
        'Cardinal of the North'
    """
    return re.sub(r"^\d+\.", "", name).replace("_", " ")


def example_row(
    prepared: PreparedProtocol[Any],
    record: UnitRecord,
    query: int,
    classes: Mapping[str, int],
    methods: Sequence[TableMethod],
    title: str = "",
) -> list[GridCell]:
    """The cells of a row: the query, a support per class, and the maps for each class.

    If there is no image of a class to compare with, the title of the query says so, and the class has no maps. A method
    with a foil has no map for a class without a foil.

    Args:
        prepared: the prepared protocol of the query.
        record: record of the unit of the query.
        query: row of the query in the record.
        classes: labels of the classes by their role, such as ``"predicted"``; at least one of them must have a support.
        methods: the methods of the maps.
        title: a further line above the query. Default: empty.

    Returns:
        The cells from left to right.
    """
    lines = [class_title(prepared.protocol.class_name(record.queries.label[query])), title]
    comparable = {role: label for role, label in classes.items() if prepared.has_support(record, query, label)}
    lines += [f"no image of the {role} class to compare with" for role in classes if role not in comparable]
    examples = {role: prepared.example(record, query, label) for role, label in comparable.items()}
    supports, maps = [], []
    for role, example in examples.items():
        class_line = f"{role}:\n{class_title(prepared.protocol.class_name(comparable[role]))}"
        if example.support is not None:
            supports.append(GridCell(example.support, class_line))
        height, width = example.image.shape[1:]
        for method in methods:
            if method.foil is None or example.has_foil:
                map_title = method.name if len(classes) == 1 else f"{method.name}\n{class_line}"
                result = prepared.maps(
                    method, example.scores_for, example.activation, example.target, size=(height, width)
                )
                maps.append(GridCell(example.image, map_title, result.maps[0]))
    # The image of the query comes from an example, because a mosaic is no item of the data set.
    image = next(iter(examples.values())).image
    return [GridCell(image, "\n".join(filter(None, lines))), *supports, *maps]
