"""The queries of a report: their names, their true classes, and which of them get a row."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from captum_fam._text import printable
from captum_fam.cli.reports.hit_list import ListedHits
from captum_fam.image_files import FoundFiles, find_class_folders, find_classes, find_queries, names_of_files

T = TypeVar("T")


@dataclass(frozen=True)
class LabeledQueries:
    """Query images with their true classes, as far as they are known.

    Attributes:
        names: the name of each query, by its file.
        truth: the true class of queries, by file; empty if none is known.
        skipped: why other files and folders are left out, by path.
    """

    names: Mapping[Path, str]
    truth: Mapping[Path, str]
    skipped: Mapping[Path, str]

    @property
    def truth_by_name(self) -> dict[str, str]:
        """The true class of queries, by the name of the query."""
        return {self.names[path]: name for path, name in self.truth.items()}

    def require_truth(self) -> None:
        """Check that the true class of every query is known.

        Raises:
            ValueError: if one is not known.
        """
        unknown = [path for path in self.names if path not in self.truth]
        if unknown:
            raise ValueError(
                f"--wrong-first needs the true class of each query, which {len(unknown)} of {len(self.names)} do not "
                f"have, such as {printable(unknown[0])}; give queries in folders with the names of the classes"
            )


def find_labeled_queries(paths: Sequence[Path], classes: Collection[str]) -> LabeledQueries:
    """Find query images, whose true class is the name of their folder.

    Args:
        paths: image files, folders of images, or one folder of class folders.
        classes: the names of the classes that queries are compared with. A folder with another name gives no true
            class, unless it is one of several class folders of which others have such names.

    Raises:
        ValueError: for paths without images, or a folder with both images and folders of images.
        OSError: if a folder cannot be read.

    Example:
        >>> for bird in ("wren", "owl"):
        ...     Path("photos", bird).mkdir(parents=True)
        ...     Path("photos", bird, "1.jpg").touch()
        >>> queries = find_labeled_queries([Path("photos")], ["jay", "wren"])
        >>> list(queries.names.values()), list(queries.truth.values())
        (['1', '1-2'], ['owl', 'wren'])
    """
    found: FoundFiles[str, list[Path]] | FoundFiles[Path, str]
    are_class_folders = len(paths) == 1 and paths[0].is_dir() and bool(find_class_folders(paths[0]))
    if are_class_folders:
        found = find_classes(paths, "--queries")
        files = [path for members in found.values() for path in members]
        names = dict(zip(files, names_of_files(files), strict=True))
    else:
        missing = [path for path in paths if not os.path.lexists(path)]
        if missing:
            raise ValueError(f"--queries {printable(missing[0])}: no such file or folder")
        found = find_queries(paths, "--queries")
        names = dict(found)
    return LabeledQueries(names, true_classes(list(names), classes, are_class_folders), found.skipped)


def true_classes(files: Sequence[Path], classes: Collection[str], are_class_folders: bool) -> dict[Path, str]:
    """The true class of files: the name of their folder.

    Args:
        files: the files.
        classes: the names of the classes; a single class is none that an image could be confused with.
        are_class_folders: whether all folders are those of classes, so that a name that is no class is a class too,
            which is missing among the classes.

    Returns:
        The class of each file whose class is known.

    Example:
        >>> files = [Path("wren/1.jpg"), Path("photos/2.jpg")]
        >>> list(true_classes(files, ["jay", "wren"], are_class_folders=False).values())
        ['wren']
    """
    if len(classes) < 2:
        return {}
    folders = {path: os.path.basename(os.path.dirname(os.path.abspath(path))) for path in files}
    known = {path: name for path, name in folders.items() if name in classes}
    return folders if known and are_class_folders else known


def queries_of_hits(
    hits: Sequence[ListedHits], folders: Sequence[Path], classes: Collection[str]
) -> tuple[LabeledQueries, dict[Path, ListedHits]]:
    """The queries of a list of neighbors.

    Args:
        hits: the neighbors of each query.
        folders: the folders to which paths of queries are relative, the first one first.
        classes: the names of the classes of the gallery.

    Returns:
        The queries, and the neighbors by the file of the query.

    Raises:
        ValueError: for a query that is no file; the message has the number of the line.
    """
    by_file: dict[Path, ListedHits] = {}
    known: dict[str, ListedHits] = {}
    for one in hits:
        places = [base / one.query for base in (*folders, Path())]
        path = next((place for place in places if os.path.isfile(place)), None)
        if path is None:
            where = ", ".join(dict.fromkeys(printable(os.fspath(folder)) for folder in folders))
            one.line.refuse(f"the query {printable(one.query)} is no file in {where}")
        first = known.setdefault(os.path.realpath(path), one)
        if first is not one:
            one.line.refuse(f"the query {printable(one.query)} is the same file as in line {first.line.number}")
        by_file[path] = one
    names = dict(zip(by_file, names_of_files(list(by_file)), strict=True))
    return LabeledQueries(names, true_classes(list(by_file), classes, are_class_folders=False), {}), by_file


def choose_rows(rows: Sequence[T], most: int, seed: int, is_wrong: Collection[T] | None = None) -> list[T]:
    """Choose the rows of a report.

    Args:
        rows: all rows in their order.
        most: how many rows the report has at most.
        seed: the seed of the sample, if there are more.
        is_wrong: the rows with a wrong prediction, which come first, and of which as many as possible are shown.
            Default: None, all rows are alike.

    Returns:
        A random sample in the given order; the wrong rows before the others.

    Example:
        >>> choose_rows("abcdef", 10, seed=0, is_wrong={"b", "e"})
        ['b', 'e', 'a', 'c', 'd', 'f']
    """
    generator = random.Random(seed)
    wrong = [row for row in rows if is_wrong is not None and row in is_wrong]
    others = [row for row in rows if is_wrong is None or row not in is_wrong]
    chosen = _sample(wrong, most, generator)
    return chosen + _sample(others, most - len(chosen), generator)


def _sample(rows: Sequence[T], count: int, generator: random.Random) -> list[T]:
    if len(rows) <= count:
        return list(rows)
    return [rows[position] for position in sorted(generator.sample(range(len(rows)), count))]
