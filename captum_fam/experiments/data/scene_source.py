"""Planted scenes in place of a folder of images: the sources ``scenes`` and ``scenes:LENGTH``."""

from __future__ import annotations

from pathlib import Path

SCENES_TO_EVALUATE = 1000
"""Number of scenes in ``scenes`` without a length for an evaluation, which then takes about a minute."""

SCENES_TO_TRAIN = 8000
"""Number of scenes in ``scenes`` without a length for a training, about eighty per class."""


def is_scenes(source: str | Path) -> bool:
    """Whether a source of images stands for planted scenes instead of a folder.

    Args:
        source: the source of images on the command line.

    Example:
        >>> is_scenes("scenes:160"), is_scenes("CUB_200_2011")
        (True, False)
    """
    return str(source).partition(":")[0] == "scenes"


def number_of_scenes(source: str | Path, default: int) -> int:
    """The number of scenes of a source.

    Args:
        source: ``"scenes"`` or ``"scenes:LENGTH"``.
        default: number of scenes without a length.

    Returns:
        The length of the source, else the default.

    Raises:
        ValueError: for a length that is no whole number of at least 1.

    Example:
        >>> number_of_scenes("scenes:160", SCENES_TO_EVALUATE), number_of_scenes("scenes", SCENES_TO_EVALUATE)
        (160, 1000)
    """
    length = str(source).partition(":")[2]
    if not length:
        return default
    if not length.isdecimal() or int(length) < 1:
        raise ValueError(f"data {source}: expected the number of scenes, at least 1, got {length!r}")
    return int(length)
