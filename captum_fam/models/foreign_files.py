"""Recognizes files that hold no weights: a web page, a pointer of git-LFS, an archive of another format."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from captum_fam._text import printable

_N_HEAD = 4096
_N_SHOWN = 40
_AGAIN = "download or copy it again"
_SIGNATURES = {
    b"\x1f\x8b": "a file compressed by gzip; decompress it first",
    b"BZh": "a file compressed by bzip2; decompress it first",
    b"\xfd7zXZ": "a file compressed by xz; decompress it first",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd; decompress it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras and MATLAB write; save the weights with torch.save",
    b"\x93NUMPY": "an array of NumPy (.npy); save a state dict with torch.save",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"PK\x05\x06": "an empty zip archive",
    b"MZ": "a program of Windows",
    b"\x7fELF": "a program of Linux",
    b"GGUF": "a file of llama.cpp (GGUF); save the weights with torch.save",
}


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Args:
        path: the file.

    Returns:
        At most 4,096 bytes.
    """
    with path.open("rb") as file:
        return file.read(_N_HEAD)


def is_safetensors(head: bytes) -> bool:
    """Whether a file is one of safetensors: eight bytes of a length, and a header in JSON.

    Args:
        head: the first bytes of the file.

    Returns:
        Whether it begins as such a file. The length may be wrong.

    Example:
        >>> is_safetensors((2).to_bytes(8, "little") + b"{}"), is_safetensors(b'{"name": {"a": 1}}')
        (True, False)
    """
    return head[8:9] == b"{" and not _is_text(head[:8])


def what_it_is(path: Path) -> str | None:
    """The format of a file that is neither of ``torch.save`` nor of safetensors, and what to do.

    Args:
        path: the file, which is not empty.

    Returns:
        The format and a remedy; None if the file begins as a file of ``torch.save`` or of safetensors.

    Example:
        >>> _ = Path("a.pth").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
        >>> what_it_is(Path("a.pth"))
        'an HTML page, as a failed download leaves; open its address in a browser, and download the file itself'
    """
    head = head_of(path)
    if is_safetensors(head):
        return None
    if head.startswith(b"PK\x03\x04"):
        return _what_zip_it_is(path)
    if head[257:262] == b"ustar":
        return _what_tar_it_is(head)
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            return what
    if _is_text(head):
        return _what_text_it_is(head)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return None
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return "a model of ONNX or TensorFlow, which holds a graph; save model.state_dict() of the model in torch"
    if head[4:8] == b"TFL3":
        return "a model of TensorFlow Lite; save model.state_dict() of the model in torch"
    if not any(head):
        return f"it begins with {len(head)} zeros, as an interrupted download or copy leaves; {_AGAIN}"
    return f"no file of torch.save or safetensors: it begins with the bytes {head[:8].hex(' ')}"


def _what_zip_it_is(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a broken archive can raise any exception
        return f"a zip archive, as torch.save writes, that is cut off or damaged; {_AGAIN}"
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return (
            "a TorchScript archive, which holds code; load it with torch.jit.load, and save its state_dict() with "
            "torch.save"
        )
    if "data.pkl" in files:
        return None
    if any(name.endswith(".npy") for name in files):
        return "an archive of arrays of NumPy (.npz); save a state dict of tensors with torch.save"
    if files & {"serialized_exported_program.json", "archive_format", "archive_version"}:
        return "an archive of torch.export, which holds a graph; save model.state_dict() of the model"
    return f"a zip archive that torch.save did not write, of {_listed(names)}; unpack it first"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(printable(name, _N_SHOWN) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _what_tar_it_is(head: bytes) -> str:
    name = head[:100].rstrip(b"\0").decode("utf-8", "replace")
    if name in ("sys_info", "pickle", "storages", "tensors"):
        return "a file of torch before 0.1.10 (a tar archive); read it with torch.load, and save it again"
    return f"a tar archive that begins with {printable(name, _N_SHOWN)}; unpack it first"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) and error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode("utf-8")
        if not text:
            return False
    return not any(ord(char) < 32 and char not in "\t\n\f\r\x1b" for char in text)


def _what_text_it_is(head: bytes) -> str:
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    start = text[:_N_HEAD].lower()
    if start.startswith("<") and ("<html" in start or "<!doctype html" in start or "<head" in start):
        return "an HTML page, as a failed download leaves; open its address in a browser, and download the file itself"
    if start.startswith("<"):
        return f"an XML document, as a failed download leaves, that begins with {_begin(text)}; {_AGAIN}"
    if start.startswith("version https://git-lfs"):
        return "a pointer of git-LFS instead of the file; run git lfs pull in its repository"
    if start.startswith(("../", "/annex")) and "annex/objects" in start:
        return "a pointer of git-annex instead of the file; run git annex get in its repository"
    if '"weight_map"' in start:
        return "the index of weights that lie in several files; load the whole folder, as the model hf/FOLDER"
    if start.startswith(("{", "[")):
        return f"a JSON text that begins with {_begin(text)}, no weights"
    return f"a text that begins with {_begin(text)}, no weights; {_AGAIN}"


def _begin(text: str) -> str:
    return repr(printable(text.partition("\n")[0][:_N_SHOWN]))
