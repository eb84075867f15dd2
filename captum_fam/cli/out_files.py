"""Where a command may write: nothing but results of this package is replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from captum_fam._files import try_file
from captum_fam._text import printable_path
from captum_fam.image_folders import own_record

_OF_REPORTS = b'<meta name="generator" content="captum-fam'
_HEAD = 4096  # bytes, in which the head of a report says what made it


def report_place(out: Path) -> Path:
    """The file that a report is written to, checked before the work.

    Args:
        out: the value of ``--out``. A symbolic link stands for the file that it leads to.

    Returns:
        The file.

    Raises:
        ValueError: for anything but a new file, an empty file or a report of this package.
        OSError: if the file cannot be written, or a folder has its name.

    Example:
        >>> _ = Path("notes.html").write_text("my notes")
        >>> report_place(Path("notes.html"))
        Traceback (most recent call last):
        ...
        ValueError: --out notes.html: the file is no report of captum-fam, and is not replaced; delete it, or choose ...
    """
    try:
        place = Path(os.path.realpath(out)) if out.is_symlink() else out
        try_file(place)
        if not os.path.lexists(place):
            return place
        if not place.is_file():
            raise ValueError(f"--out {printable_path(out)} is no regular file; choose the name of a file")
        with place.open("rb") as file:
            head = file.read(_HEAD)
    except RuntimeError as error:  # links in a circle
        raise ValueError(f"--out {printable_path(out)}: {error}") from error
    if head and _OF_REPORTS not in head:
        raise ValueError(
            f"--out {printable_path(out)}: the file is no report of captum-fam, and is not replaced; delete it, or "
            "choose another name"
        )
    return place


def check_results_folder(out: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which files of somebody else have the names of results.

    Args:
        out: the value of ``--out``, a folder that need not exist.
        names: the names of the files that the command writes, replaces or removes.

    Raises:
        ValueError: if the folder holds such a file, and no results of this package.

    Example:
        >>> check_results_folder(Path("results"), ["manifest.json"])
    """
    if not out.is_dir() or own_record(out) is not None:
        return
    taken = next((out / name for name in names if os.path.lexists(out / name)), None)
    if taken is not None:
        raise ValueError(
            f"--out {printable_path(out)} holds {printable_path(taken)}, which is no result of captum-fam and is not "
            "replaced; delete it, or choose another folder"
        )
