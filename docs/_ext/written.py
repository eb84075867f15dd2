"""Writing pages that a build makes: an unchanged page keeps its time, so that Sphinx does not read it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_page(file: Path, text: str) -> None:
    """Write a page, unless it has this text already.

    Args:
        file: the file.
        text: its text.
    """
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write all pages of a folder, and remove those of an earlier build.

    Args:
        folder: the folder; nothing else stands in it.
        pages: the texts, by file name.
    """
    for name, text in pages.items():
        write_page(folder / name, text)
    for file in folder.iterdir():
        if file.is_file() and file.name not in pages:
            file.unlink()
