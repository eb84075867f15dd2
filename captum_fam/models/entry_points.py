"""Names of models that installed packages declare as entry points; reading the names imports no code of the packages.

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

from captum_fam._text import first_line

GROUP = "captum_fam.models"
"""The group of entry points in which packages declare the names of their models."""


def declared_models() -> dict[str, list[EntryPoint]]:
    """The models that installed packages declare.

    Returns:
        Entry points by the name of the model, one entry point per package that declares the name.

    Example:
        >>> [point.value for point in declared_models()["resnet12"]]
        ['captum_fam.experiments.networks.resnet12']
    """
    declared: dict[str, list[EntryPoint]] = {}
    # importlib.metadata.entry_points() reads one record per package. Beside a source tree there is often an old record
    # of an earlier build (*.egg-info), which would hide the record of the installation.
    for package in distributions():
        for point in package.entry_points.select(group=GROUP):
            points = declared.setdefault(point.name, [])
            if _package_of(point) not in map(_package_of, points):
                points.append(point)
    return declared


def import_declared(name: str) -> str | None:
    """Import the module that a package declares for a name.

    Args:
        name: name of a model.

    Returns:
        The entry point as text, for messages; None if no package declares the name.

    Raises:
        ImportError: if several packages declare the name, or the import fails; the message names the packages.

    Example:
        >>> import_declared("resnet12")
        'resnet12 = captum_fam.experiments.networks.resnet12 of captum-fam'
    """
    points = declared_models().get(name, [])
    if not points:
        return None
    if len(points) > 1:
        raise ImportError(
            f"model {name!r} is declared by several packages ({'; '.join(map(_as_text, points))}); uninstall all but "
            "one of them"
        )
    (point,) = points
    try:
        point.load()
    except (Exception, SystemExit) as error:  # a package may fail in any way
        raise ImportError(
            f"model {name!r}: the entry point {_as_text(point)} fails with {type(error).__name__}: {first_line(error)}"
        ) from error
    return _as_text(point)


def find_declaration(name: str) -> str | None:
    """The entry point that declares a name and whose module is not imported yet.

    Args:
        name: name of a model.

    Returns:
        The entry point as text, for messages; None if there is no such entry point.

    Example:
        >>> find_declaration("no_such_model") is None
        True
    """
    points = [point for point in declared_models().get(name, []) if point.module not in sys.modules]
    return _as_text(points[0]) if points else None


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"


def _as_text(point: EntryPoint) -> str:
    return f"{point.name} = {point.value} of {_package_of(point)}"
