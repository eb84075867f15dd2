"""Reads files of ``torch.save`` without running code of the files, within bounds of time and memory.

Tensors, arrays and plain data are read. An object of a class that training scripts store beside weights becomes a
:class:`~captum_fam.models.inert_values.Record`, which has attributes and no code. Every other name in a file is an
error. ``torch.load(weights_only=True)`` refuses what lies beside the weights in many files, and has no bounds.
"""

from __future__ import annotations

import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from captum_fam._text import first_line, printable
from captum_fam.models.inert_names import InertNames, Storage
from captum_fam.models.inert_values import BrokenError, Budget, RefusedError, in_words
from captum_fam.models.pickle_machine import Machine

_ZIP = b"PK\x03\x04"
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
# Compressed weights shrink by a tenth, their names to a tenth. A file that grows more is made to fill the memory.
_MOST_GROWTH = 10
_SMALL = 2**16
_READ_AT_ONCE = 2**24


def load_inert(path: Path) -> Any:
    """Read a file of ``torch.save``, in the zip format or in the format before torch 1.6.

    Args:
        path: the file.

    Returns:
        The saved object: tensors on the CPU, plain data, and a :class:`~captum_fam.models.inert_values.Record` for each
        object of a known class.

    Raises:
        RefusedError: (a ``ValueError``) if the file names anything but tensors, plain data and the known classes, or
            if reading it takes more time or memory than its size explains.
        ValueError: if the file is broken or has another format.

    Example:
        >>> from pathlib import Path
        >>> torch.save({"epoch": 3}, "checkpoint.pth")
        >>> load_inert(Path("checkpoint.pth"))
        {'epoch': 3}
    """
    with path.open("rb") as file:
        try:
            return _load_zip(file, path.stat().st_size) if file.read(4) == _ZIP else _load_legacy(file)
        except (RefusedError, BrokenError):
            raise
        except Exception as error:  # a broken file can raise any exception
            raise BrokenError(f"broken ({type(error).__name__}: {first_line(error)})") from error


def _load_zip(file: BinaryIO, n_bytes: int) -> Any:
    """Read a zip archive of ``NAME/data.pkl`` and one entry ``NAME/data/KEY`` per storage."""
    with zipfile.ZipFile(file) as archive:
        if not all(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
            raise RefusedError("refused: a zip archive whose compression has no bounds, expected none or deflate")
        inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > _SMALL + _MOST_GROWTH * n_bytes:
            raise RefusedError(f"refused: its {n_bytes} bytes inflate to {inflated}, more than {_MOST_GROWTH} times")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise BrokenError(f"a zip archive with {len(pickles)} files data.pkl, expected 1")
        folder = pickles[0].removesuffix("data.pkl")
        byteorder = f"{folder}byteorder"
        if byteorder in archive.namelist() and _content_of(archive, byteorder) != sys.byteorder.encode():
            raise BrokenError("written on a machine of the other byte order")
        storages: dict[str, Storage] = {}

        def storage(dtype: torch.dtype, key: str, location: str, count: int) -> Storage:
            if key not in storages:
                entry = archive.getinfo(f"{folder}data/{key}")
                if entry.file_size != _size(dtype, count):
                    raise BrokenError(
                        f"storage {printable(key, 40)} has {entry.file_size} bytes, expected {count} x {dtype}"
                    )
                storages[key] = Storage(torch.empty(count, dtype=dtype))
                with archive.open(entry) as source:
                    _fill(storages[key].flat, source)
            return _of_dtype(storages[key], dtype)

        return _machine(_content_of(archive, pickles[0]), storage).load()


def _content_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of an entry, of which no more is inflated than its size in the directory of the archive."""
    entry = archive.getinfo(name)
    with archive.open(entry) as source:
        return source.read(entry.file_size)


def _load_legacy(file: BinaryIO) -> Any:
    """Read a file of the old format.

    The file begins with five pickles: magic number, version, system, object and storage keys. The storages follow.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        storages: dict[str, Storage] = {}
        n_left = len(content)

        def storage(
            dtype: torch.dtype, key: str, location: str, count: int, view: tuple[str, int, int] | None = None
        ) -> Storage:
            nonlocal n_left
            if key not in storages:
                # The file is not read yet: a wrong count must not reserve more memory than the file can fill.
                n_left -= _size(dtype, count)
                if n_left < 0:
                    raise BrokenError(f"storage {printable(key, 40)} is larger than the file: the file is cut off")
                storages[key] = Storage(torch.empty(count, dtype=dtype))
            whole = _of_dtype(storages[key], dtype)
            return whole if view is None else Storage(whole.flat[view[1] :][: view[2]])

        machine = _machine(content, storage)
        magic = machine.load()
        if magic != _MAGIC_NUMBER or machine.load() != 1001:
            raise BrokenError("a pickle that torch.save did not write")
        if (sys.byteorder == "little") != machine.load()["little_endian"]:
            raise BrokenError("written on a machine of the other byte order")
        loaded = machine.load()
        keys = machine.load()
        file.seek(machine.position)
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            if count != len(storages[key].flat):
                raise BrokenError(
                    f"storage {printable(key, 40)} has {count} elements, expected {len(storages[key].flat)}"
                )
            _fill(storages[key].flat, file)
        if len(set(keys)) != len(storages):
            raise BrokenError("the file lacks a storage")
        return loaded


def _machine(content: Any, storage: Callable[..., Storage]) -> Machine:
    budget = Budget(len(content))

    def refer(reference: Any) -> Any:
        if type(reference) is not tuple or not reference:
            raise BrokenError("the pickle has a reference that is no storage")
        kind, *rest = reference
        if kind == "module" and rest:
            return rest[0]  # the class of a module, with its source code, which is ignored
        if kind != "storage" or len(rest) < 4 or not isinstance(rest[0], torch.dtype) or not isinstance(rest[1], str):
            raise BrokenError(f"the pickle has an unknown kind of reference {in_words(kind)}")
        return storage(*rest)

    return Machine(content, InertNames(budget).find, refer, budget)


def _size(dtype: torch.dtype, count: Any) -> int:
    if type(count) is not int or count < 0:
        raise BrokenError(f"a storage has {in_words(count)} elements")
    return count * dtype.itemsize


def _of_dtype(storage: Storage, dtype: torch.dtype) -> Storage:
    if storage.flat.dtype != dtype:
        raise BrokenError(f"a storage has both {storage.flat.dtype} and {dtype}")
    return storage


def _fill(flat: Tensor, source: Any) -> None:
    buffer = flat.view(torch.uint8).numpy().data
    n_filled = 0
    while n_filled < len(buffer):
        n_read = source.readinto(buffer[n_filled : n_filled + _READ_AT_ONCE])
        if not n_read:
            raise BrokenError("the file ends within a tensor: it is cut off")
        n_filled += n_read
