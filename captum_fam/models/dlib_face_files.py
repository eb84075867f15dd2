"""Finds the two files of face-api's face network in the npm package, or unpacked; nothing is written to disk."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from captum_fam._text import first_line
from captum_fam.models.foreign_files import head_of
from captum_fam.models.weights_file import WeightsError, weights_in_words

PACKAGE = "https://registry.npmjs.org/@vladmandic/face-api/-/face-api-1.7.15.tgz"
"""The address of the npm package that has the weights."""

NUMBERS = "face_recognition_model.bin"
"""The file of the numbers of all tensors, one tensor after another."""

MANIFEST = "face_recognition_model-weights_manifest.json"
"""The file of the names, shapes and quantizations of the tensors."""

# Without a quantization a tensor has four bytes a number, and the network has 5.6 million numbers.
_MOST_BYTES = {NUMBERS: 32 << 20, MANIFEST: 1 << 20}
# The package has 24 MB in 254 files.
_MOST_UNPACKED = 64 << 20
_MOST_MEMBERS = 10_000
_GZIP = b"\x1f\x8b"


def is_face_api(weights: str | Path) -> bool:
    """Whether weights are the npm package, a folder, or one of the two files out of it.

    Args:
        weights: a path, which need not exist.

    Returns:
        False for any other file and for no file.

    Example:
        >>> is_face_api("fine_tuned.pth")
        False
    """
    path = Path(weights)
    try:
        if path.is_dir():
            return True
        return path.is_file() and (path.name in (NUMBERS, MANIFEST) or head_of(path).startswith(_GZIP))
    except (OSError, ValueError):  # a name that no file can have
        return False


def face_api_files(weights: str | Path) -> tuple[bytes, bytes]:
    """The contents of the two files.

    The npm package is unpacked in memory, up to a bounded length. Of its members, only the two files are kept.

    Args:
        weights: the npm package (``.tgz``); a folder with the two files, or a folder with ``model`` or
            ``package/model``; or one of the two files, beside the other.

    Returns:
        The numbers and the manifest.

    Raises:
        WeightsError: (a ``ValueError``) if a file is missing, too large, damaged or there twice.

    Example:
        >>> _ = Path(NUMBERS).write_bytes(b"12"), Path(MANIFEST).write_bytes(b"[]")
        >>> face_api_files(".")
        (b'12', b'[]')
    """
    path = Path(weights)
    with _errors_named(path):
        found = _in_folder(path if path.is_dir() else path.parent) if not _is_package(path) else _in_package(path)
        missing = [name for name in (NUMBERS, MANIFEST) if name not in found]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} in it")
        return found[NUMBERS], found[MANIFEST]


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken archive can raise any exception
        raise WeightsError(
            f"{weights_in_words(path)} cannot be read as face-api's network: {first_line(error) or 'damaged'}; "
            f"download {PACKAGE} again"
        ) from error


def _is_package(path: Path) -> bool:
    return path.is_file() and path.name not in (NUMBERS, MANIFEST)


def _in_folder(folder: Path) -> dict[str, bytes]:
    for place in (folder, folder / "model", folder / "package" / "model"):
        found = {name: place / name for name in _MOST_BYTES if (place / name).is_file()}
        if found:
            return {name: _bounded(name, path.stat().st_size, path.read_bytes) for name, path in found.items()}
    return {}


def _in_package(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with gzip.open(path) as file:
        unzipped = file.read(_MOST_UNPACKED + 1)
    if len(unzipped) > _MOST_UNPACKED:
        raise ValueError("it unpacks to far more than the package has")
    # Not as a stream: there, tarfile reads on past the end for as many bytes as a header claims.
    with tarfile.open(fileobj=io.BytesIO(unzipped), mode="r:") as archive:
        for number, member in enumerate(archive):
            if number == _MOST_MEMBERS:
                raise ValueError(f"more than {_MOST_MEMBERS} files in it")
            name = member.name.rpartition("/")[2]
            if name not in _MOST_BYTES:
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or name in found:
                raise ValueError(f"{name} is no plain file" if content is None else f"{name} is there twice")
            found[name] = _bounded(name, member.size, content.read)
    return found


def _bounded(name: str, n_bytes: int, read: Callable[[], bytes]) -> bytes:
    """The content of a file whose size is looked at first."""
    if n_bytes > _MOST_BYTES[name]:
        raise ValueError(f"{name} has {n_bytes} bytes, expected at most {_MOST_BYTES[name]}")
    return read()
