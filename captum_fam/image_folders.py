"""The image files of a folder, and what lies beside them and is left out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captum_fam._files import MANIFEST
from captum_fam._text import printable

# Formats that Pillow gives to other programs (EPS to Ghostscript, WMF to Windows) or to any other reader (IPTC), and
# formats of measurements and films.
REFUSED_FORMATS = {"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "SPIDER", "WMF"}

OUTPUT_MARK = ".captum-fam"
"""A file of this name marks a folder of results, from before the first result is written to it."""

NO_IMAGE = "no image"
HIDDEN = "hidden"
OWN_OUTPUT = "results of captum-fam"
FOLDER = "folder"
LOOP = "link to a folder above"
"""Reasons to leave out an entry of a folder."""

_NAME_IN_VERSIONS = b'"captum-fam":'
# The files by which a folder of results is known, and texts of which each file holds at least one: the version of this
# package in the manifest and the summary, and keys in the settings of evaluate and of train.
_RECORDS = {
    MANIFEST: (_NAME_IN_VERSIONS,),
    "summary.json": (_NAME_IN_VERSIONS,),
    "run.json": (b'"conventions":', b'"recipe":'),
}
_MOST_NAMES = 3


@dataclass(frozen=True)
class FoundImages:
    """The image files of a folder.

    Attributes:
        files: paths of the image files, sorted by name within each folder.
        skipped: why each other entry of the folder is left out, by its path.
    """

    files: tuple[Path, ...]
    skipped: Mapping[Path, str]


def image_suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case: those of all photographs that Pillow reads.

    A plug-in of Pillow, such as the one for HEIF, adds its suffixes when it is registered.

    Returns:
        Suffixes with their dot.

    Example:
        >>> {".jpg", ".jfif", ".webp"} <= image_suffixes(), ".pdf" in image_suffixes()
        (True, False)
    """
    suffixes = Image.registered_extensions()  # loads the readers of all formats
    # MPO, several photographs in one JPEG file, is read by the reader of JPEG.
    formats = {*Image.OPEN, "MPO"} - REFUSED_FORMATS
    return frozenset(suffix for suffix, kind in suffixes.items() if kind in formats)


def list_images(folder: str | Path, *, deep: bool = False) -> FoundImages:
    """Sort the entries of a folder into image files and others.

    Hidden files, files without the suffix of an image, folders, and figures that ``captum-fam figure`` has written are
    no image files. A link is an image file whatever it points to, so that reading it names a broken link.

    Args:
        folder: the folder.
        deep: whether the images of the folders inside belong to the folder too, after its own images. Hidden folders
            and folders of results are left out. Default: False.

    Returns:
        The image files, and the reasons for the other entries.

    Raises:
        OSError: if the folder cannot be read.

    Example:
        >>> Path("wrens").mkdir()
        >>> for name in ("b.jpg", "a.JFIF", "labels.csv"):
        ...     Path("wrens", name).touch()
        >>> found = list_images("wrens")
        >>> [path.name for path in found.files], skipped_in_words(found.skipped)
        (['a.JFIF', 'b.jpg'], 'no image: 1 (labels.csv)')
    """
    return _list(Path(folder), deep, ())


def own_record(folder: str | Path) -> Path | None:
    """The file by which a folder of results of this package is known.

    Args:
        folder: the folder.

    Returns:
        The mark, the manifest, the summary or the settings of a run; None for a folder without results.

    Raises:
        OSError: if the folder cannot be read.

    Example:
        >>> Path("results").mkdir()
        >>> Path("results", OUTPUT_MARK).touch()
        >>> own_record("results").name
        '.captum-fam'
    """
    mark = Path(folder, OUTPUT_MARK)
    if mark.is_file():
        return mark
    records = ((Path(folder, name), texts) for name, texts in _RECORDS.items())
    return next((path for path, texts in records if _holds(path, *texts)), None)


def written_images(folder: str | Path) -> set[str]:
    """The names of the images that the manifest of a folder lists.

    Args:
        folder: the folder.

    Returns:
        Names of overlays and figures; none without a manifest of this package.

    Raises:
        OSError: if the manifest cannot be read.
    """
    path = Path(folder, MANIFEST)
    if not _holds(path, _NAME_IN_VERSIONS):
        return set()
    try:
        queries = json.loads(path.read_bytes())["queries"]
        return {
            name
            for query in queries
            for name in (query.get("figure"), *(method.get("overlay") for method in query["methods"].values()))
            if name is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # a manifest that was edited
        return set()


def skipped_in_words(skipped: Mapping[Path, str]) -> str:
    """How many files and folders are left out for each reason, with the names of the first three.

    Args:
        skipped: reasons by path.

    Returns:
        One line for a terminal; an empty text if nothing is left out.

    Example:
        >>> skipped_in_words({Path(f"wrens/{i}.txt"): "no image" for i in range(5)})
        'no image: 5 (0.txt, 1.txt, 2.txt, ...)'
    """
    by_reason: dict[str, list[str]] = {}
    for path, reason in skipped.items():
        by_reason.setdefault(reason, []).append(printable(path.name))
    return "; ".join(
        f"{reason}: {len(names)} ({', '.join(names[:_MOST_NAMES] + ['...'][: len(names) - _MOST_NAMES])})"
        for reason, names in by_reason.items()
    )


def _list(folder: Path, deep: bool, above: tuple[str, ...]) -> FoundImages:
    """List a folder; ``above`` are the folders in which it lies, to which a link inside would lead in a circle."""
    suffixes = image_suffixes()
    above = (*above, os.path.realpath(folder))
    # The listing has the kind of each entry. To ask for every file would take long on a network drive.
    with os.scandir(folder) as entries:
        is_folder = {entry.name: _is_folder(entry) for entry in entries}
    files: list[Path] = []
    skipped: dict[Path, str] = {}
    inner: list[FoundImages] = []
    for name in sorted(is_folder):
        path = Path(folder, name)
        if name.startswith("."):
            skipped[path] = HIDDEN
        elif is_folder[name]:
            if own_record(path) is not None:
                skipped[path] = OWN_OUTPUT
            elif deep and os.path.realpath(path) in above:
                skipped[path] = LOOP
            elif deep:
                inner.append(_list(path, True, above))
            else:
                skipped[path] = FOLDER
        elif path.suffix.lower() not in suffixes:
            skipped[path] = NO_IMAGE
        elif f"{path.stem}.json" in is_folder and _holds(path.with_suffix(".json"), _NAME_IN_VERSIONS):
            skipped[path] = OWN_OUTPUT
        else:
            files.append(path)
    for found in inner:
        files += found.files
        skipped |= found.skipped
    return FoundImages(tuple(files), skipped)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _holds(path: Path, *texts: bytes) -> bool:
    """Whether a file holds one of several texts."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return any(text in content for text in texts)
