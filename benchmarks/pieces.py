"""Pieces of a benchmark: what was computed once is a file, and is not computed again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from captum_fam._files import write_all_or_nothing


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds; where it is not there, its content is made and written first.

    Args:
        path: the file.
        make: makes the content: plain data, also NaN.

    Returns:
        The content as JSON has it, so that a first and a later call give the same.
    """
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def kept_tensors(path: Path, make: Callable[[], Any]) -> Any:
    """As :func:`kept`, for tensors in a file of torch.

    Args:
        path: the file.
        make: makes the content: a tensor, or tensors by name.
    """
    if not path.exists():
        content = make()
        with _in_one_step(path) as scratch:
            torch.save(content, scratch)
    return torch.load(path, weights_only=True)


def file_name(words: str) -> str:
    """Words as a part of a file's name: what does not belong there becomes a hyphen.

    Args:
        words: such as the name of a method.

    Example:
        >>> file_name("similarity-cam[smooth=5]-foil, rows")
        'similarity-cam-smooth=5-foil-rows'
    """
    return re.sub(r"[^\w+=.]+", "-", words.lower()).strip("-")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step, so that a reader never sees half of it.

    Args:
        path: the file; its folder is made.
        content: plain data.
    """
    text = json.dumps(content, indent=1) + "\n"
    with _in_one_step(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def _in_one_step(path: Path) -> Iterator[Path]:
    """A file that takes the place of ``path`` when the block ends."""
    with write_all_or_nothing(path.parent) as scratch:
        yield scratch / path.name
