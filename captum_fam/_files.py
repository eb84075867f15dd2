"""Files that a reader never meets half written, hashes of what is in them, and the packages that they need."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam import __version__

MANIFEST = "manifest.json"
_HASHED_AT_ONCE = 1 << 20


@contextmanager
def write_all_or_nothing(folder: str | Path) -> Iterator[Path]:
    """A scratch folder whose files move to a folder when the block ends, and vanish when the block raises.

    The files are on the disk before they move, and the moves are on the disk when the block is left: after a crash of
    the machine, too, each file is the old one or the new one. A file named ``manifest.json`` moves last, and the
    manifest of an earlier run goes first: where a manifest stands, the files that it lists stand too. Files of the same
    name are replaced, all others left alone.

    Args:
        folder: made where it is missing.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the old files are still there.

    Example:
        >>> with write_all_or_nothing("results") as scratch:
        ...     write_json(scratch / "summary.json", {"accuracy": 0.5})
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder, because a move is atomic within one file system only.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".captum-fam-") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        # A rename can reach the disk before the bytes of the file do, and a crash between the two leaves an empty file.
        for path in files:
            _flush(path)
        if files and files[-1].name == MANIFEST:
            (folder / MANIFEST).unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)
    _flush(folder)


def _flush(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write UTF-8 JSON, indented."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_same_settings(path: Path, settings: Mapping[str, Any], holds: str) -> None:
    """Write the settings of a run where its folder has none yet, so that the run goes on with the same ones only.

    Args:
        path: of the JSON file.
        settings: what the results depend on, as JSON can hold it.
        holds: what a folder with other settings has in it, for the message.

    Raises:
        ValueError: if the file has other settings.
    """
    if not path.exists():
        with write_all_or_nothing(path.parent) as scratch:
            write_json(scratch / path.name, settings)
        return
    written = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(key for key in {*written, *settings} if written.get(key) != settings.get(key))
    if differing:
        changes = "; ".join(f"{key} was {written.get(key)!r}, now {settings.get(key)!r}" for key in differing)
        raise ValueError(f"{path.parent} holds {holds} ({changes}); choose another folder")


def sha256_of(*parts: Tensor | str) -> str:
    """SHA-256 of tensors and texts in their order, as 64 hexadecimal digits.

    Dtype and shape of a tensor count, its device and memory format do not.

    Example:
        >>> sha256_of("labels", torch.tensor([0, 1])) == sha256_of("labels", torch.tensor([1, 0]))
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            text = part.encode()
            # The length in front tells ("ab", "c") from ("a", "bc").
            digest.update(f"{len(text)} ".encode() + text)
            continue
        digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
        for block in part.detach().reshape(-1).split(_HASHED_AT_ONCE):
            digest.update(block.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that a result depends on: of this package, captum, torch and Python."""
    anchors = {name: importlib.metadata.version(name) for name in ("captum", "torch")}
    return {"captum-fam": __version__, **anchors, "python": platform.python_version()}


def need(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module of a package that an extra of this package installs.

    Args:
        module: dotted name, such as ``"safetensors.torch"``.
        extra: the name in ``pip install "captum-fam[extra]"``.
        purpose: what needs the module, the beginning of the message.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: if it is not installed; the message names the extra.

    Example:
        >>> ndimage = need("scipy.ndimage", extra="eval", purpose="max_box")
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)  # first: where the package is missing, a module of it may still be in memory
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{purpose} needs {package}: pip install "captum-fam[{extra}]" ({error})', name=error.name
        ) from error
