"""Small files made to take much time or memory, to run something, or to reach outside their tensors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

from tests.models.file_writers import Call, Global, Instance, Persistent, ordered_dict, python2_pickle

_START = b"\x80\x02"
_DUP, _TUPLE1, _TUPLE2 = b"2", b"\x85", b"\x86"


def zipped(pickled: bytes, storages: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> bytes:
    """A file in the format of torch since 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy(pickled: bytes, storages: dict[str, bytes] | None = None, width: int = 4) -> bytes:
    """A file in the format of torch before 1.6."""
    storages = storages or {}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(python2_pickle(part) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    content = b"".join(struct.pack("<q", len(part) // width) + part for part in storages.values())
    return head + pickled + python2_pickle(list(storages)) + content


def safetensors(header: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A file of safetensors, whose header may say another length."""
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def lying(content: bytes, size: int, claimed: int) -> bytes:
    """A zip archive whose entry of a size claims another one."""
    return content.replace(struct.pack("<I", size), struct.pack("<I", claimed))


def _nested(depth: int) -> bytes:
    """A tuple of two tuples of two tuples..., which are one object: its hash takes 2 ** depth steps."""
    return b"K\x01" + _TUPLE1 + (_DUP + _TUPLE2) * depth


def _tensor(count: int, offset: int, size: tuple, stride: tuple, kind: str = "FloatStorage") -> Call:
    storage = Persistent(("storage", Global("torch", kind), "0", "cpu", count))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, False, ordered_dict({})))


def _copies(function: str, elements: bytes, count: int) -> bytes:
    module, name = function.split()
    head = f"c{module}\n{name}\n".encode() + b"q\0(" + elements + b"lq\x010"
    return _START + head + b"h\0h\x01\x85R" * count + b"."


def _pickles() -> dict[str, bytes]:
    numbers = b"".join(b"M" + struct.pack("<H", i) for i in range(2500))
    pairs = b"".join(b"M" + struct.pack("<H", i) + b"N\x86" for i in range(1200))
    text = b"X" + struct.pack("<I", 5000) + b"a" * 5000
    return {
        "key of nested tuples": _START + b"}" + _nested(60) + b"K\x01s.",
        "element of nested tuples": _START + b"\x8f(" + _nested(60) + b"\x90.",
        "frozen nested tuples": _START + b"(" + _nested(60) + b"\x91.",
        "nested tuples": _START + _nested(60) + b".",
        "value of nested tuples": _START + b"}U\x01a" + _nested(60) + b"s.",
        "message of nested tuples": _START + b"(" + _nested(24) + b"Q.",
        "deep tuple": _START + b")" + _TUPLE1 * 5000 + b".",
        "deep list": _START + b"]" * 3000 + b"a" * 2999 + b".",
        "list in itself": _START + b"]q\0h\0a.",
        "dictionary in itself": _START + b"}q\0U\x05modelh\0s.",
        "marks": _START + b"(" * 5000 + b".",
        "empty stack": _START + b".",
        "pops": _START + b"0" * 50 + b".",
        "builds": _START + b"}" + b"}b" * 100 + b".",
        "number of 2 GB": _START + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\1" * 3000 + b".",
        "number of -1 bytes": _START + b"\x8b" + struct.pack("<i", -1) + b".",
        "number of 3000 bytes": _START + b"\x8b" + struct.pack("<i", 3000) + b"\1" * 3000 + b".",
        "number of 5000 digits": _START + b"I" + b"9" * 5000 + b"\n.",
        "text of 4 GB": _START + b"X" + struct.pack("<I", 2**32 - 1) + b"a.",
        "text of 16 EB": _START + b"\x8d" + struct.pack("<Q", 2**64 - 1) + b"a.",
        "text of -1 bytes": _START + b"T" + struct.pack("<i", -1) + b"a.",
        "bytes of 8 EB": _START + b"\x96" + struct.pack("<Q", 2**63 - 1) + b"a.",
        "memo of 4 G": _START + b"}r\xff\xff\xff\xff.",
        "copies of a set": _copies("__builtin__ set", numbers, 1000),
        "copies of a list": _copies("builtins list", numbers, 1000),
        "copies of a deque": _copies("collections deque", numbers, 1000),
        "copies of an OrderedDict": _copies("collections OrderedDict", pairs, 2000),
        "copies of a text": (
            _START + b"c_codecs\nencode\nq\0" + text + b"q\x01U\x06latin1q\x020" + b"h\0h\x01h\x02\x86R" * 3000 + b"."
        ),
        "bytearray of 2 GB": python2_pickle(Call(Global("builtins", "bytearray"), (2**31 - 1,))),
        "extension": _START + b"\x82\x01.",
        "out-of-band buffer": _START + b"\x97.",
        "unknown reference": python2_pickle(Persistent(("socket", 1))),
        "name in a name": python2_pickle(Call(Global("numpy", "dtype"), (Global("numpy", "dtype"),))),
        "array of objects": python2_pickle(Call(Global("numpy", "dtype"), ("O8", False, True))),
        "key of a huge number": _START + b"}\x8a\x10" + b"\x7f" * 16 + b"Ns.",
        "escapes": python2_pickle({"\x1b[2J\x1b[H": 1}),
        "numbers as keys": python2_pickle({1: 2}),
        "sparse tensor": python2_pickle(Call(Global("torch._utils", "_rebuild_sparse_tensor"), (1,))),
        "quantized tensor": python2_pickle(Call(Global("torch._utils", "_rebuild_qtensor"), (1,))),
        "tensor without values": python2_pickle(Call(Global("torch._utils", "_rebuild_meta_tensor_no_storage"), (1,))),
    }


def attacks(sentinel: Path | str) -> dict[str, Call | Instance]:
    """Ways to make a naive reader create a file, each with the name it needs."""
    command = f"echo > {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    return {
        "os.system": Call(Global("os", "system"), (command,)),
        "posix.system": Call(Global("posix", "system"), (command,)),
        "subprocess.check_call": Call(Global("subprocess", "check_call"), (["touch", str(sentinel)],)),
        "builtins.eval": Call(Global("builtins", "eval"), (code,)),
        "builtins.exec": Call(Global("builtins", "exec", stack=True), (code,)),
        "__builtin__.eval": Call(Global("__builtin__", "eval"), (code,)),
        "__builtin__.getattr": Call(Global("__builtin__", "getattr"), ("", "join")),
        "torch.hub.load": Call(Global("torch.hub", "load"), ("someone/repository", "model")),
        "torch.load": Call(Global("torch", "load"), (str(sentinel),)),
        "torch.storage._load_from_bytes": Call(Global("torch.storage", "_load_from_bytes"), ("",)),
        "pickle.loads": Call(Global("pickle", "loads"), (python2_pickle(0).decode("latin1"),)),
        "copy_reg._reconstructor": Call(Global("copy_reg", "_reconstructor"), ()),
        "functools.partial": Call(Global("functools", "partial"), (Global("os", "system"), command)),
        "subprocess.Popen": Call(Global("subprocess", "Popen"), (["touch", str(sentinel)],), new=True),
        "os.popen": Instance("os", "popen", (command,)),
        "lib.NCEAverage.NCEAverage.forward": Call(Global("lib.NCEAverage", "NCEAverage.forward"), ()),
        "argparse.Namespace.__init__": Call(Global("argparse", "Namespace.__init__"), ()),
        "argparse.FileType": Call(Global("argparse", "FileType"), ("w",)),
        "numpy.core.multiarray.fromfile": Call(Global("numpy.core.multiarray", "fromfile"), (str(sentinel),)),
        "pathlib.Path": Call(Global("pathlib", "Path"), (str(sentinel),)),
        "torch.nn.modules.linear.Linear": Call(Global("torch.nn.modules.linear", "Linear"), (), {}, new=True),
        "sys.exit": Call(Global("lib.NCEAverage", "NCEAverage"), (), Call(Global("sys", "exit"), (1,)), new=True),
    }


def hostile_files(sentinel: Path | str = "sentinel") -> dict[str, bytes]:
    """Files of at most 300 kB by what they try.

    Args:
        sentinel: file that the attacks would create.
    """
    files = {f"{name}, zip": zipped(pickled) for name, pickled in _pickles().items()}
    files |= {f"{name}, legacy": legacy(pickled) for name, pickled in _pickles().items()}
    files |= {f"{name}, zip": zipped(python2_pickle({"a": attack})) for name, attack in attacks(sentinel).items()}
    number = {"0": b"\0" * 4}
    for name, tensor in {
        "tensor of 3.6 GB in 4 bytes": _tensor(1, 0, (30000, 30000), (0, 0)),
        "tensor beyond its storage": _tensor(1, 0, (3,), (1,)),
        "tensor before its storage": _tensor(1, -1, (1,), (1,)),
        "tensor backwards": _tensor(1, 0, (1,), (-1,)),
        "tensor of 2 ** 62 columns": _tensor(1, 0, (0, 2**62), (1, 1)),
        "tensor far away": _tensor(1, 2**70, (1,), (1,)),
        "tensor of 100 dimensions": _tensor(1, 0, (1,) * 100, (1,) * 100),
        "storage of -1": _tensor(-1, 0, (1,), (1,)),
        "storage of 2 ** 50": _tensor(2**50, 0, (1,), (1,)),
        "storage of another type": _tensor(1, 0, (1,), (1,), "DoubleStorage"),
    }.items():
        files[f"{name}, zip"] = zipped(python2_pickle({"a": tensor}), number)
        files[f"{name}, legacy"] = legacy(python2_pickle({"a": tensor}), number)
    views = {f"a{i}": _tensor(10_000, 0, (10_000,), (1,)) for i in range(1000)}
    files["a thousand views of a storage, zip"] = zipped(python2_pickle(views), {"0": bytes(40_000)})
    for name, kind, size in (("zip", zipfile.ZIP_DEFLATED, 150_000_000), ("bzip2", zipfile.ZIP_BZIP2, 5_000_000)):
        bomb = zipped(bytes(size), kind=kind)
        files[f"{name} bomb"] = bomb
        files[f"{name} bomb that lies"] = lying(bomb, size, 10)
    repeated = {f"a{i}": _tensor(1, 0, (1000, 1000), (0, 0)) for i in range(100)}
    files["a hundred repetitions of a number"] = zipped(python2_pickle({"a": repeated, "b": repeated}), number)
    states = b"".join(b"U\x03" + b"%03d" % i + b"h\0" for i in range(999))
    pickled = python2_pickle({"a": _tensor(1, 0, (1,), (1,))})[:-1] + b"q\x000}(" + states + b"u."
    files["a thousand names of a state dict"] = zipped(pickled, number)
    states = b"".join(b"U\x03" + b"%03d" % i + b"}U\x01ah\0s" for i in range(999))
    pickled = python2_pickle(_tensor(1, 0, (1,), (1,)))[:-1] + b"q\x000}(" + states + b"u."
    files["a thousand state dicts"] = zipped(pickled, number)
    names = b"".join(b"U\x06" + b"%02d.%02d." % divmod(i, 100) + b"h\0" for i in range(2000))
    pickled = python2_pickle(_tensor(1, 0, (1,), (1,)))[:-1] + b"q\x000}(" + names + b"u."
    files["thousands of prefixes"] = zipped(pickled, number)
    files["path in a key"] = zipped(python2_pickle({"a": _tensor(1, 0, (1,), (1,))}), {"../../0": b"\0" * 4})
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    files["header of 8 EB"] = safetensors(b"{}", length=2**63)
    files["header of 90 MB"] = safetensors(b"{}", length=90_000_000)
    files["header of other data"] = safetensors(b'{"a": 1}')
    files["header of deep lists"] = safetensors(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}")
    files["safetensors that overflow"] = safetensors(
        json.dumps({"a": {**entry, "shape": [2**62, 2**62]}}).encode(), number["0"]
    )
    files["safetensors of an unknown type"] = safetensors(
        json.dumps({"a": {**entry, "dtype": "F99"}}).encode(), number["0"]
    )
    files["safetensors with escapes"] = safetensors(json.dumps({"\x1b[2J": entry}).encode(), number["0"])
    return files
