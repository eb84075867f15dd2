"""Reads checkpoints that hold whole objects, as those of lemniscate do, without running anything of them.

``torch.load(weights_only=True)`` refuses such files altogether. Here the classes that the published files name become
:class:`Record`, which has attributes and no code; tensors, ``OrderedDict`` and plain data are read; every other name
in a file is an error.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_RECORDS = {
    # lemniscate; Python 2 imports the last one relative to lib, or not.
    "lib.NCEAverage.NCEAverage",
    "lib.LinearAverage.LinearAverage",
    "lib.alias_multinomial.AliasMethod",
    "alias_multinomial.AliasMethod",
    # In every module of torch before 1.0.
    "torch.nn.backends.thnn._get_thnn_function_backend",
}
_DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


class Record:
    """An object of a class that is not known here: its attributes, and nothing that runs."""

    def __init__(self, *arguments: object) -> None:
        """Take what the object was made of, and forget it."""


class RefusedError(ValueError):
    """A file names something that is neither a tensor nor plain data."""


def load_inert(path: Path) -> Any:
    """Read a file of ``torch.save``, of the zip format or the one before torch 1.6.

    Raises:
        RefusedError: if it names anything but tensors, plain data and the known classes.
        ValueError: if it is broken or has another format.
    """
    with path.open("rb") as file:
        try:
            return _load_zip(file) if zipfile.is_zipfile(file) else _load_legacy(file, path.stat().st_size)
        except RefusedError:
            raise
        except Exception as error:  # a broken pickle fails in as many ways as there are opcodes
            raise ValueError(f"broken, or not written by torch.save ({type(error).__name__}: {error})") from error


def _load_zip(file: BinaryIO) -> Any:
    """``NAME/data.pkl`` and one entry ``NAME/data/KEY`` for each storage."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != sys.byteorder.encode():
            raise ValueError("written on a machine of the other byte order")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, location: str, count: int) -> Tensor:
            if key not in storages:
                entry = archive.getinfo(f"{folder}data/{key}")
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * dtype.itemsize:
                    raise ValueError(f"storage {key} has {entry.file_size} bytes, expected {count} x {dtype}")
                storages[key] = torch.empty(count, dtype=dtype)
                with archive.open(entry) as source:
                    _fill(storages[key], source)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _load_legacy(file: BinaryIO, size: int) -> Any:
    """Pickles of a magic number, version, system, object and storage keys; then the storages one after another."""
    file.seek(0)
    magic, version, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _MAGIC_NUMBER or version != 1001:
        raise ValueError("no magic number")
    if (sys.byteorder == "little") != system["little_endian"]:
        raise ValueError("written on a machine of the other byte order")
    storages: dict[str, Tensor] = {}

    def storage(
        dtype: torch.dtype, key: str, location: str, count: int, view: tuple[str, int, int] | None = None
    ) -> Tensor:
        if key not in storages:
            if count * dtype.itemsize > size:
                raise ValueError(f"storage {key} is larger than the file")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key] if view is None else storages[key][view[1] : view[1] + view[2]]

    loaded = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        if count != len(storages[key]):
            raise ValueError(f"storage {key} has {count} elements, expected {len(storages[key])}")
        _fill(storages[key], file)
    return loaded


def _fill(flat: Tensor, source: Any) -> None:
    view = flat.view(torch.uint8).numpy().data
    done = 0
    while done < len(view):
        read = source.readinto(view[done:])
        if not read:
            raise EOFError("the file ends within a tensor")
        done += read


class _Unpickler(pickle.Unpickler):
    """What a file can name is looked up in a table of its own and nowhere else."""

    def __init__(self, file: Any, storage: Callable[..., Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # in which the bytes of Python 2 are always text
        self._storage = storage

        def tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
            return flat.as_strided(size, stride, flat.storage_offset() + offset)

        # Made anew for each file: a pickle can set attributes of what it names.
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            **{name: type(name.rpartition(".")[2], (Record,), {}) for name in _RECORDS},
            **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
            **{f"torch.cuda.{name}": dtype for name, dtype in _DTYPES.items()},
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in self._known:
            raise RefusedError(
                f"refused: it names {name}, which is neither a tensor nor plain data, and could run code"
            )
        return self._known[name]

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "module":
            # A class with its source code, which stays text.
            return rest[0]
        if kind != "storage" or self._storage is None:
            raise ValueError(f"unknown kind of reference {kind!r}")
        return self._storage(*rest)
