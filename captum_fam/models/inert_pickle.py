"""Reads checkpoints that hold whole objects, such as the checkpoints of lemniscate, without running code of the files.

``torch.load(weights_only=True)`` refuses such files. Here an object of a class that the published files name becomes a
:class:`Record`, which has attributes and no code. Tensors, ``OrderedDict`` and plain data are read. Every other name in
a file is an error.
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
    # Classes of lemniscate. The name of the last class depends on how Python 2 imported the module.
    "lib.NCEAverage.NCEAverage",
    "lib.LinearAverage.LinearAverage",
    "lib.alias_multinomial.AliasMethod",
    "alias_multinomial.AliasMethod",
    # Every module of torch before 1.0 holds the result of this function.
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
    """The attributes of an object whose class is not imported.

    Args:
        arguments: arguments of the class; they are ignored, because the attributes are set after the creation.

    Example:
        >>> vars(Record("any", "arguments"))
        {}
    """

    def __init__(self, *arguments: object) -> None:
        """Ignore the arguments of the class."""


class RefusedError(ValueError):
    """A file names something that is neither a tensor nor plain data."""


def load_inert(path: Path) -> Any:
    """Read a file of ``torch.save``, in the zip format or in the format before torch 1.6.

    Args:
        path: the file.

    Returns:
        The saved object: tensors on the CPU, plain data, and a :class:`Record` for each object of a known class.

    Raises:
        RefusedError: (a ``ValueError``) if the file names anything but tensors, plain data and the known classes.
        ValueError: if the file is broken or has another format.

    Example:
        >>> from pathlib import Path
        >>> torch.save({"epoch": 3}, "checkpoint.pth")
        >>> load_inert(Path("checkpoint.pth"))
        {'epoch': 3}
    """
    with path.open("rb") as file:
        try:
            return _load_zip(file) if zipfile.is_zipfile(file) else _load_legacy(file, path.stat().st_size)
        except RefusedError:
            raise
        except Exception as error:  # a broken pickle can raise any exception
            raise ValueError(f"broken, or not written by torch.save ({type(error).__name__}: {error})") from error


def _load_zip(file: BinaryIO) -> Any:
    """Read a zip archive of ``NAME/data.pkl`` and one entry ``NAME/data/KEY`` per storage."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != sys.byteorder.encode():
            raise ValueError("written on a machine of the other byte order")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, location: str, count: int) -> Tensor:
            if key not in storages:
                entry = archive.getinfo(f"{folder}data/{key}")
                # A compressed entry of a few bytes could fill the memory.
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * dtype.itemsize:
                    raise ValueError(f"storage {key} has {entry.file_size} bytes, expected {count} x {dtype}")
                storages[key] = torch.empty(count, dtype=dtype)
                with archive.open(entry) as source:
                    _fill(storages[key], source)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _load_legacy(file: BinaryIO, size: int) -> Any:
    """Read a file of the old format.

    The file begins with five pickles: magic number, version, system, object and storage keys. The storages follow.
    """
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
            # The file is not read yet: a wrong count must not reserve more memory than the file can fill.
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
    buffer = flat.view(torch.uint8).numpy().data
    n_filled = 0
    while n_filled < len(buffer):
        n_read = source.readinto(buffer[n_filled:])
        if not n_read:
            raise EOFError("the file ends within a tensor")
        n_filled += n_read


class _Unpickler(pickle.Unpickler):
    """An unpickler that looks up every name of a file in its own table, and imports nothing."""

    def __init__(self, file: Any, storage: Callable[..., Tensor] | None = None) -> None:
        # latin1 decodes every byte, so that each string of Python 2 can be read.
        super().__init__(file, encoding="latin1")
        self._storage = storage

        def tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
            return flat.as_strided(size, stride, flat.storage_offset() + offset)

        # A table for each file, because a pickle can set attributes of the classes that it names.
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
            # The class of a module, with its source code, which is ignored.
            return rest[0]
        if kind != "storage" or self._storage is None:
            raise ValueError(f"unknown kind of reference {kind!r}")
        return self._storage(*rest)
