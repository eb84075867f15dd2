"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import captum
import torch

_LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (captum, torch) if module.__file__)
_PREFIXES = (str(Path(__file__).parent), *_LIBRARIES)


@contextmanager
def collected_notes(stacklevel: int) -> Iterator[list[str]]:
    """Collect notes, and warn of each once at the line that called, also where the call fails.

    Args:
        stacklevel: how many calls up that line is, 1 being the caller of the function with this context.
    """
    notes: list[str] = []
    try:
        yield notes
    finally:
        for note in dict.fromkeys(notes):
            warn_user(note, stacklevel + 3)  # this function, and the two that end a context


def warn_user(message: str, stacklevel: int) -> None:
    """Warn at the line that called into this package.

    Args:
        message: what is to be known.
        stacklevel: how many calls up that line is for a direct call, 1 being the caller of this function. Python 3.12
            looks beyond Captum and PyTorch by itself, where one of these calls.
    """
    if sys.version_info >= (3, 12):
        warnings.warn(message, skip_file_prefixes=_PREFIXES)
    else:
        warnings.warn(message, stacklevel=stacklevel + 1)
