"""Rows of the figure that stands beside the table of a protocol: one query with its supports and maps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from captum_fam.experiments.protocols.base import PreparedProtocol
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table_methods import TableMethod
from captum_fam.visualization import GridCell


def class_title(name: str) -> str:
    """The name of a class as a figure writes it: without the number in front and the underscores of a folder's name.

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
    """One query, then a support of each class, then the maps of each class.

    A class without an image to compare the query with is named in the title of the query, and has no maps. A method
    with a foil has no map for a class without other classes to tell it from.

    Args:
        prepared: the protocol that asked the query.
        record: of the query's unit.
        query: the row of the query in the record.
        classes: labels by what they are to the query, such as ``"predicted"``; of one at least there is a support.
        methods: whose maps to show.
        title: a further line above the query. Default: none.
    """
    lines = [class_title(prepared.protocol.class_name(record.queries.label[query])), title]
    shown = {role: label for role, label in classes.items() if prepared.has_support(record, query, label)}
    lines += [f"no image of the {role} class to compare with" for role in classes if role not in shown]
    examples = {role: prepared.example(record, query, label) for role, label in shown.items()}
    supports, maps = [], []
    for role, example in examples.items():
        of_class = f"{role}:\n{class_title(prepared.protocol.class_name(shown[role]))}"
        if example.support is not None:
            supports.append(GridCell(example.support, of_class))
        height, width = example.image.shape[1:]
        for method in methods:
            if method.foil is None or example.has_foil:
                above = method.name if len(classes) == 1 else f"{method.name}\n{of_class}"
                found = prepared.maps(
                    method, example.scores_for, example.activation, example.target, size=(height, width)
                )
                maps.append(GridCell(example.image, above, found.maps[0]))
    # Each example has the image of the query, which for a mosaic is no item of the dataset.
    image = next(iter(examples.values())).image
    return [GridCell(image, "\n".join(filter(None, lines))), *supports, *maps]
