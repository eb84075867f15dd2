"""Names of models that installed packages declare as entry points, before anything of the packages is imported.

A package declares the module that registers the model, in its ``setup.cfg``::

    [options.entry_points]
    captum_fam.models =
        my_network = my_package.my_network

or in its ``pyproject.toml``::

    [project.entry-points."captum_fam.models"]
    my_network = "my_package.my_network"
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, distributions

GROUP = "captum_fam.models"
"""The group of entry points in which packages declare the names of their models."""


def declared_models() -> dict[str, list[EntryPoint]]:
    """Entry points by the name of the model, one per package that claims the name."""
    declared: dict[str, list[EntryPoint]] = {}
    # Not importlib.metadata.entry_points(), which takes one record per package: beside a source tree often lies a
    # record of an earlier build (*.egg-info), which hides that of the installation.
    for package in distributions():
        for point in package.entry_points.select(group=GROUP):
            points = declared.setdefault(point.name, [])
            if _package(point) not in map(_package, points):
                points.append(point)
    return declared


def import_declared(name: str) -> str | None:
    """Import the module that is declared for a name.

    Returns:
        The entry point in words, for messages; None if no package declares the name.

    Raises:
        ImportError: if several packages declare the name, or the import fails; the message names the packages.
    """
    points = declared_models().get(name, [])
    if not points:
        return None
    if len(points) > 1:
        raise ImportError(
            f"model {name!r} is declared by several packages ({'; '.join(map(_in_words, points))}); uninstall all but "
            "one of them"
        )
    (point,) = points
    try:
        point.load()
    except Exception as error:  # a package may fail in any way
        raise ImportError(
            f"model {name!r}: the entry point {_in_words(point)} fails with {type(error).__name__}: {error}"
        ) from error
    return _in_words(point)


def find_declaration(name: str) -> str | None:
    """The entry point that claims a name, in words, while its module is not imported; None if there is none."""
    points = [point for point in declared_models().get(name, []) if point.module not in sys.modules]
    return _in_words(points[0]) if points else None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"


def _in_words(point: EntryPoint) -> str:
    return f"{point.name} = {point.value} of {_package(point)}"
