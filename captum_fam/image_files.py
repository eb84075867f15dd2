"""Image files and folders as people name them, sorted into classes and queries.

The results list what is left out too: their attribute ``skipped`` has the reasons by path.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from captum_fam._files import sha256_of_file
from captum_fam._text import printable_path
from captum_fam.image_folders import (
    FOLDER,
    OWN_OUTPUT,
    FoundImages,
    list_images,
    own_record,
    written_images,
)

_LONGEST_NAME = 160  # bytes
EMPTY_FOLDER = "folder without images"
NESTED_FOLDER = "folder of folders"

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class FoundFiles(dict[_Key, _Value]):
    """The files by class, or the names by file.

    Attributes:
        folders: the folders from which the files are; none for files that were given one by one.
        skipped: why each other file or folder is left out, by its path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folders: list[Path] = []
        self.skipped: dict[Path, str] = {}


def find_classes(paths: Sequence[Path], name: str) -> FoundFiles[str, list[Path]]:
    """Sort image files into classes.

    Image files, or one folder of images, are one class. Several folders, or a folder of class folders, are one class
    per folder. Results of this package and hidden folders are no classes.

    Args:
        paths: image files, or folders.
        name: name of the argument or option of the paths, such as ``"--support"``, for messages. A class of image files
            has this name without dashes; a folder gives its own name to the class.

    Returns:
        Image files by class.

    Raises:
        ValueError: for no path, a path that does not exist, a folder without images or with results of this package, a
            mixture of files and folders, or two folders with the same name.
        OSError: if a folder cannot be read.

    Example:
        >>> for bird in ("wren", "jay"):
        ...     Path("birds", bird).mkdir(parents=True)
        ...     Path("birds", bird, "1.jpg").touch()
        >>> list(find_classes([Path("birds")], "--support"))
        ['jay', 'wren']
        >>> list(find_classes([Path("birds/wren/1.jpg"), Path("birds/jay/1.jpg")], "--support"))
        ['support']
    """
    if not paths:
        raise ValueError(f"{name}: expected files or folders, got none")
    for path in paths:
        if not path.exists():
            reason = "a link to no file" if path.is_symlink() else "no such file or folder"
            raise ValueError(f"{name} {printable_path(path)}: {reason}")
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        classes: FoundFiles[str, list[Path]] = FoundFiles()
        classes.skipped = _written(paths)
        classes[name.lstrip("-")] = [path for path in paths if path not in classes.skipped]
        if len(classes.skipped) == len(paths):
            raise ValueError(f"{name}: all files are results of captum-fam, expected images")
        return classes
    if len(folders) < len(paths):
        raise ValueError(f"{name}: give either images or folders, not both")
    if len(folders) > 1:
        return _classes_of_folders(folders, name)
    classes = find_class_folders(folders[0])
    classes.folders.append(folders[0])
    images = _images_of(folders[0])
    if classes and images.files:
        raise ValueError(
            f"{name} {printable_path(folders[0])} holds both images and folders of images; give one or the other"
        )
    return classes or _classes_of_folders(folders, name)


def find_class_folders(folder: str | Path, *, deep: bool = False) -> FoundFiles[str, list[Path]]:
    """Sort the images of a folder with one folder per class.

    Args:
        folder: the folder.
        deep: whether images in folders inside a class folder belong to the class too. Default: False.

    Returns:
        Image files by class, in the order of the names; empty if no folder in it has images. Image files in ``folder``
        itself belong to no class.

    Raises:
        OSError: if a folder cannot be read.

    Example:
        >>> Path("photos/wren/2019").mkdir(parents=True)
        >>> Path("photos/wren/2019/1.jpg").touch()
        >>> find_class_folders("photos"), list(find_class_folders("photos").skipped.values())
        ({}, ['folder of folders'])
        >>> list(find_class_folders("photos", deep=True))
        ['wren']
    """
    classes: FoundFiles[str, list[Path]] = FoundFiles()
    for path, reason in list_images(folder).skipped.items():
        if reason != FOLDER:
            classes.skipped[path] = reason
            continue
        found = list_images(path, deep=deep)
        if found.files:
            classes[path.name] = list(found.files)
            classes.folders.append(path)
            classes.skipped |= found.skipped
        else:
            classes.skipped[path] = NESTED_FOLDER if FOLDER in found.skipped.values() else EMPTY_FOLDER
    return classes


def find_queries(paths: Sequence[Path], name: str = "QUERY") -> FoundFiles[Path, str]:
    """Find the query images, and give each a name for the files of its results.

    Args:
        paths: image files, or folders of images.
        name: name of the argument, for messages. Default: ``"QUERY"``.

    Returns:
        Names by file, as :func:`names_of_files` gives them; one entry for a file that is given twice.

    Raises:
        ValueError: for a folder without images or with results of this package.
        OSError: if a folder cannot be read.

    Example:
        >>> list(find_queries([Path("wren.jpg"), Path("old/wren.jpg")]).values())
        ['wren', 'wren-2']
    """
    queries: FoundFiles[Path, str] = FoundFiles()
    queries.skipped = _written(paths)
    for path in paths:
        files: Sequence[Path] = () if path in queries.skipped else (path,)
        if path.is_dir():
            found = _images_of(path)
            _check_images(path, found, name)
            files = found.files
            queries.folders.append(path)
            queries.skipped |= found.skipped
        queries.update(dict.fromkeys(files, ""))  # one entry for a file given twice, as by a folder and by a file in it
    if not queries:
        raise ValueError(f"{name}: all files are results of captum-fam, expected images")
    queries.update(zip(queries, names_of_files(list(queries)), strict=True))
    return queries


def names_of_files(files: Sequence[Path]) -> list[str]:
    """A name for each file, for the files of its results.

    Args:
        files: paths.

    Returns:
        The name of each file without its suffix, with a number if an earlier file has the same name. A name of more
        than 160 bytes is shortened, and ends with a hash of the whole name: names of results are longer, and most file
        systems hold names of 255 bytes.

    Example:
        >>> names_of_files([Path("wren.jpg"), Path("old/wren.jpg"), Path("wren.jpg")])
        ['wren', 'wren-2', 'wren-3']
    """
    n_taken: Counter[str] = Counter()
    names: dict[str, str] = {}
    for file in files:
        shown = _shortened(file.stem)
        # Some file systems do not distinguish upper and lower case.
        stem = shown.casefold()
        n_taken[stem] += 1
        while (name := shown if n_taken[stem] == 1 else f"{shown}-{n_taken[stem]}").casefold() in names:
            n_taken[stem] += 1
        names[name.casefold()] = name
    return list(names.values())


def _shortened(stem: str) -> str:
    """A name of at most 160 bytes."""
    name = os.fsencode(stem)
    if len(name) <= _LONGEST_NAME:
        return stem
    kept = name[: _LONGEST_NAME - 9].decode("utf-8", "ignore")  # not a part of a character
    return f"{kept}-{hashlib.sha256(name).hexdigest()[:8]}"


def check_output_apart(out: Path, folders: Iterable[Path]) -> None:
    """Refuse to write results beside the images that they come from, where they would be read as images.

    Args:
        out: folder of the results.
        folders: folders whose images are read.

    Raises:
        ValueError: if the results would lie in one of the folders.

    Example:
        >>> check_output_apart(Path("birds/out"), [Path("birds")])
    """
    for folder in folders:
        if os.path.realpath(out) == os.path.realpath(folder):
            raise ValueError(
                f"--out {printable_path(out)}: images are read from this folder, and results would be taken for "
                "images; choose another folder, which may lie inside this one"
            )


def same_files(first: Sequence[str | Path], second: Sequence[str | Path]) -> list[tuple[int, int]]:
    """Find the files that two lists share: the same file by any path, or files of the same bytes.

    Args:
        first: paths.
        second: paths.

    Returns:
        Position in ``first`` and position in ``second`` of each pair of the same content, in ascending order. Files
        that do not exist or are no regular files are in no pair.

    Raises:
        OSError: if a file cannot be read.

    Example:
        >>> for name, text in {"a.png": "wren", "copy.png": "wren", "b.png": "jay"}.items():
        ...     _ = Path(name).write_text(text)
        >>> same_files(["a.png", "b.png"], ["copy.png", "a.png"])
        [(0, 0), (0, 1)]
    """
    sizes_first, sizes_second = [_size(path) for path in first], [_size(path) for path in second]
    shared = ({*sizes_first} & {*sizes_second}) - {None}
    hashes: dict[str, str] = {}

    def content(path: str | Path) -> str:
        real = os.path.realpath(path)
        if real not in hashes:
            hashes[real] = sha256_of_file(real)
        return hashes[real]

    by_content: dict[str, list[int]] = {}
    for position, (path, size) in enumerate(zip(second, sizes_second, strict=True)):
        if size in shared:
            by_content.setdefault(content(path), []).append(position)
    return [
        (position, other)
        for position, (path, size) in enumerate(zip(first, sizes_first, strict=True))
        if size in shared
        for other in by_content.get(content(path), ())
    ]


def _classes_of_folders(folders: Sequence[Path], name: str) -> FoundFiles[str, list[Path]]:
    """One class per folder. Results of this package are left out if other folders are there, as after ``birds/*``."""
    classes: FoundFiles[str, list[Path]] = FoundFiles()
    for folder in folders:
        if len(folders) > 1 and own_record(folder) is not None:
            classes.skipped[folder] = OWN_OUTPUT
            continue
        found = _images_of(folder)
        _check_images(folder, found, name)
        label = os.path.basename(os.path.abspath(folder))
        if label in classes:
            raise ValueError(f"{name}: two folders have the same name, but the names of the classes must differ")
        classes[label] = list(found.files)
        classes.folders.append(folder)
        classes.skipped |= found.skipped
    if not classes:
        raise ValueError(f"{name}: all folders hold results of captum-fam, expected images")
    return classes


def _written(paths: Sequence[Path]) -> dict[Path, str]:
    """The overlays and figures among some files, as ``*.png`` names them after a run with ``--out .``."""
    written = {parent: written_images(parent) for parent in {path.parent for path in paths}}
    return {path: OWN_OUTPUT for path in paths if path.name in written[path.parent]}


def _images_of(folder: Path) -> FoundImages:
    """The images of a folder that was named, which may be hidden; none of a folder of results."""
    found = list_images(folder)
    if own_record(folder) is None:
        return found
    return FoundImages((), {**found.skipped, **dict.fromkeys(found.files, OWN_OUTPUT)})


def _check_images(folder: Path, found: FoundImages, name: str) -> None:
    if found.files:
        return
    record = own_record(folder)
    if record is not None:
        raise ValueError(
            f"{name} {printable_path(folder)} holds results of captum-fam ({record.name}), which are not read as "
            "images; give a folder of images only"
        )
    beside = ", but folders: give these" if FOLDER in found.skipped.values() else ""
    raise ValueError(f"{name} {printable_path(folder)} holds no images (.jpg, .png, .webp and others){beside}")


def _size(path: str | Path) -> int | None:
    """The size of a regular file in bytes; None for anything else."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # no such file, or a name that no file can have
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
