"""Writing files completely or not at all, hashing contents, and importing optional packages."""

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
    """Give a scratch folder whose files move to ``folder`` when the block ends, and vanish when the block raises.

    The files are flushed to the disk before they move, and the moves are flushed before the context ends. So each file
    is either completely the old file or completely the new file, even after a crash of the machine. A file named
    ``manifest.json`` moves last, and the manifest of an earlier run is removed first: a folder with a manifest has all
    files that the manifest lists. Files of equal names are replaced; all other files in ``folder`` stay.

    Args:
        folder: the folder to write to; it is created if it does not exist.

    Yields:
        The scratch folder.

    Raises:
        OSError: if the disk is full or ``folder`` cannot be written; the old files are still there.

    Example:
        >>> with write_all_or_nothing("results") as scratch:
        ...     write_json(scratch / "summary.json", {"accuracy": 0.5})
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The scratch folder lies inside the folder, because a move is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".captum-fam-") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        # A rename can reach the disk before the bytes of the file do; a crash in between would leave an empty file.
        for path in files:
            _flush(path)
        if files and files[-1].name == MANIFEST:
            (folder / MANIFEST).unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)
    _flush(folder)


def _flush(path: Path) -> None:
    """Make the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    r"""Write a mapping as indented JSON in UTF-8.

    Args:
        path: the file to write.
        content: keys and values that JSON can represent.

    Example:
        >>> write_json(Path("settings.json"), {"seed": 0})
        >>> Path("settings.json").read_text()
        '{\n  "seed": 0\n}\n'
    """
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_same_settings(path: Path, settings: Mapping[str, Any], holds: str) -> None:
    """Write the settings of a run to a file, or compare them with the settings that an earlier run wrote there.

    A run that is continued must have the settings with which it began: results of different settings do not belong
    into one folder.

    Args:
        path: the JSON file with the settings.
        settings: everything that the results depend on, as JSON can represent it.
        holds: what the folder holds, for the error message, such as ``"another run"``.

    Raises:
        ValueError: if the file has other settings; the message names each setting that differs.

    Example:
        >>> check_same_settings(Path("run/settings.json"), {"seed": 0}, "another run")
        >>> check_same_settings(Path("run/settings.json"), {"seed": 1}, "another run")
        Traceback (most recent call last):
        ...
        ValueError: run holds another run (seed was 0, now 1); choose another folder
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
    """SHA-256 of tensors and texts in the given order, as 64 hexadecimal digits.

    The hash depends on the values, the dtype and the shape of a tensor, not on its device or memory format.

    Args:
        *parts: tensors and texts.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> sha256_of("labels", torch.tensor([0, 1])) == sha256_of("labels", torch.tensor([1, 0]))
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            text = part.encode()
            # The length in front makes the hashes of ("ab", "c") and ("a", "bc") differ.
            digest.update(f"{len(text)} ".encode() + text)
            continue
        digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
        for block in part.detach().reshape(-1).split(_HASHED_AT_ONCE):
            digest.update(block.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hexadecimal digits.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("empty").write_bytes(b"")
        >>> sha256_of_file("empty")[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that a result depends on: of this package, captum, torch and Python.

    Returns:
        Version numbers by name.

    Example:
        >>> list(versions())
        ['captum-fam', 'captum', 'torch', 'python']
    """
    dependencies = {name: importlib.metadata.version(name) for name in ("captum", "torch")}
    return {"captum-fam": __version__, **dependencies, "python": platform.python_version()}


def need(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: the dotted name of the module, such as ``"safetensors.torch"``.
        extra: the extra of this package that installs the module: ``pip install "captum-fam[EXTRA]"``.
        purpose: what needs the module, as the first words of the error message.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: if the package is not installed; the message names the extra.

    Example:
        >>> ndimage = need("scipy.ndimage", extra="eval", purpose="max_box")
    """
    package = module.partition(".")[0]
    try:
        # The package first: a module of an uninstalled package may still be in memory, and would be found.
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{purpose} needs {package}: pip install "captum-fam[{extra}]" ({error})', name=error.name
        ) from error
