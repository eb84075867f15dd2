"""Writers of checkpoint files that share no code with the readers: opcode by opcode, or by torch from real modules."""

from __future__ import annotations

import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Global:
    """A name in a module, as the opcode GLOBAL, or STACK_GLOBAL of protocol 4."""

    module: str
    name: str
    stack: bool = False


@dataclass
class Call:
    """REDUCE, or NEWOBJ; then BUILD where there is a state."""

    function: Any
    arguments: tuple
    state: Any = None
    new: bool = False


@dataclass
class Persistent:
    """BINPERSID."""

    identity: tuple


@dataclass
class Instance:
    """INST of protocol 0: module and name in the text, arguments after a mark."""

    module: str
    name: str
    arguments: tuple


def python2_pickle(value: Any) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: strings are bytes, nothing is memoised."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(digits)]) + digits
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, Global):
        if value.stack:
            names = (value.module.encode(), value.name.encode())
            return b"".join(b"\x8c" + bytes([len(name)]) + name for name in names) + b"\x93"
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        made = _opcodes(value.function) + _opcodes(value.arguments) + (b"\x81" if value.new else b"R")
        return made if value.state is None else made + _opcodes(value.state) + b"b"
    if isinstance(value, Persistent):
        return _opcodes(value.identity) + b"Q"
    if isinstance(value, Instance):
        return b"(" + b"".join(map(_opcodes, value.arguments)) + f"i{value.module}\n{value.name}\n".encode()
    raise TypeError(type(value))


_KINDS = {"float32": "Float", "float64": "Double", "int64": "Long"}


class Python2Writer:
    """Files as torch 0.3 under Python 2 wrote them: no zip, storages behind the pickles, ``_rebuild_tensor``.

    Args:
        location: where the tensors lived.
        rebuild: the function of the tensors, ``_rebuild_tensor_v2`` since torch 0.4.
    """

    def __init__(self, location: str = "cpu", rebuild: str = "_rebuild_tensor") -> None:
        self.location = location
        self.rebuild = rebuild
        self.storages: dict[str, np.ndarray] = {}

    def tensor(self, array: np.ndarray) -> Call:
        """A tensor with a storage of its own."""
        key = str(94_000_000_000 + 64 * len(self.storages))
        self.storages[key] = np.ascontiguousarray(array).reshape(-1)
        return self.view(key, 0, array.shape)

    def view(self, key: str, offset: int, shape: tuple[int, ...]) -> Call:
        """A tensor in a storage."""
        array = self.storages[key]
        module = "torch" if self.location == "cpu" else "torch.cuda"
        kind = Global(module, _KINDS[array.dtype.name] + "Storage")
        storage = Persistent(("storage", kind, key, self.location, array.size, None))
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        arguments: tuple = (storage, offset, tuple(shape), strides)
        if self.rebuild == "_rebuild_tensor_v2":
            arguments += (False, ordered_dict({}))
        return Call(Global("torch._utils", self.rebuild), arguments)

    def state_dict(self, state: dict[str, Any]) -> Call:
        """An ``OrderedDict`` of the tensors of a state dict."""
        return ordered_dict({key: self.tensor(value.numpy()) for key, value in state.items()})

    def write(self, path: Path, value: Any) -> Path:
        sizes = {"short": 2, "int": 4, "long": 8}
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        keys = sorted(self.storages)
        with path.open("wb") as file:
            for part in (0x1950A86A20F9469CFC6C, 1001, system, value, keys):
                file.write(python2_pickle(part))
            for key in keys:
                file.write(struct.pack("<q", self.storages[key].size) + self.storages[key].tobytes())
        return path


def ordered_dict(items: dict[str, Any]) -> Call:
    """``OrderedDict([[key, value], ...])``, the way of Python 2."""
    return Call(Global("collections", "OrderedDict"), ([[key, value] for key, value in items.items()],))


def write_zip(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, compress: bool = False) -> Path:
    """The format of torch since 1.6."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


_LIB = {
    "lib": "",
    "lib.alias_multinomial": """
class AliasMethod(object):
    def __init__(self, count):
        import torch
        self.prob = torch.ones(count)
        self.alias = torch.zeros(count, dtype=torch.int64)
""",
    "lib.NCEAverage": """
import torch
from lib.alias_multinomial import AliasMethod

class NCEAverage(torch.nn.Module):
    def __init__(self, memory, T):
        super(NCEAverage, self).__init__()
        self.nLem = len(memory)
        self.multinomial = AliasMethod(len(memory))
        self.K = 4096
        self.register_buffer('params', torch.tensor([4096, T, -1, 0.5]))
        self.register_buffer('memory', memory)
""",
    "lib.LinearAverage": """
import torch

class LinearAverage(torch.nn.Module):
    def __init__(self, memory, T):
        super(LinearAverage, self).__init__()
        self.nLem = len(memory)
        self.register_buffer('params', torch.tensor([T, 0.5]))
        self.register_buffer('memory', memory)
""",
}


@contextmanager
def lemniscate_modules(folder: Path) -> Iterator[Any]:
    """``lib`` with lemniscate's classes, as files whose source torch can find; gone when the context ends."""
    (folder / "lib").mkdir()
    modules = {}
    for name, source in _LIB.items():
        module = types.ModuleType(name)
        path = folder / (name.replace(".", "/") + ("/__init__.py" if name == "lib" else ".py"))
        path.write_text(source)
        module.__file__ = str(path)
        sys.modules[name] = modules[name] = module
        exec(compile(source, str(path), "exec"), vars(module))
    try:
        yield types.SimpleNamespace(
            NCEAverage=modules["lib.NCEAverage"].NCEAverage, LinearAverage=modules["lib.LinearAverage"].LinearAverage
        )
    finally:
        for name in _LIB:
            del sys.modules[name]
