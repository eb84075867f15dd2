"""Writing files completely or not at all, hashing contents, and importing optional packages."""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import __version__
from captum_fam._locks import lock_folder as lock_folder
from captum_fam._locks import made_folders, remove_dead_scratch, scratch_folder

MANIFEST = "manifest.json"
SETTINGS = "run.json"
"""The file with the settings of a run, in the folder of its results."""
_HASHED_AT_ONCE = 1 << 20


@contextmanager
def write_all_or_nothing(folder: str | Path) -> Iterator[Path]:
    """Give a scratch folder whose files move to ``folder`` when the block ends, and vanish when the block raises.

    The files are flushed to the disk before they move, and the moves are flushed before the context ends. So each file
    is either completely the old file or completely the new file, even after a crash of the machine. A file named
    ``manifest.json`` moves last, and the manifest of an earlier run is removed first: a folder with a manifest has all
    files that the manifest lists. Files of equal names are replaced; all other files in ``folder`` stay. No file moves
    if one of them cannot: if its name is that of a folder.

    Args:
        folder: the folder to write to; it is created if it does not exist.

    Yields:
        The scratch folder.

    Raises:
        OSError: if the disk is full, ``folder`` cannot be written, or a folder has the name of one of the files; the
            old files are still there.

    Example:
        >>> with write_all_or_nothing("results") as scratch:
        ...     write_json(scratch / "summary.json", {"accuracy": 0.5})
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _clean_once(folder.absolute())
    # The scratch folder lies inside the folder, because a move is atomic only within one file system.
    with _full_disk_named(folder), scratch_folder(folder) as scratch:
        yield scratch
        files = sorted(scratch.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        for path in files:
            check_no_folder(folder / path.name)
        # A rename can reach the disk before the bytes of the file do; a crash in between would leave an empty file.
        for path in files:
            _flush(path)
        if files and files[-1].name == MANIFEST:
            (folder / MANIFEST).unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)
    _flush(folder)


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """Name the folder in the error of a full disk, which says only what happened."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            raise OSError(
                error.errno, f"{folder} cannot be written: {error.strerror}. Free some space and repeat the command"
            ) from error
        raise


@cache
def _clean_once(folder: Path) -> None:
    """Remove what killed processes left in a folder; once a process, because a folder may have many files."""
    remove_dead_scratch(folder)


def check_no_folder(path: Path) -> None:
    """Refuse the name of a folder for a file that is to be written.

    Args:
        path: the file to write.

    Raises:
        IsADirectoryError: if there is a folder of this name.

    Example:
        >>> check_no_folder(Path("results.csv"))
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(f"{path} is a folder, where a file is to be written; move it, or choose another name")


def try_folder(folder: str | Path) -> None:
    """Try whether files can be written into a folder, before the work whose results they are. Nothing is left behind.

    Args:
        folder: the folder, which need not exist.

    Raises:
        OSError: if the folder cannot be made or written; the message names the folder, and a file in its way.

    Example:
        >>> try_folder("results/today")
        >>> Path("results").exists()
        False
    """
    with made_folders(Path(folder)):
        pass


def try_file(path: str | Path) -> None:
    """Try whether a file can be written, before the work whose result it is. Nothing is left behind.

    Args:
        path: the file, which need not exist.

    Raises:
        OSError: if its folder cannot be made or written, or if a folder has its name.

    Example:
        >>> try_file("figure.png")
    """
    try_folder(Path(path).parent)
    check_no_folder(Path(path))


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

    A file name that is no UTF-8 has its bytes as lone surrogates in Python. JSON holds a surrogate as an escape, so
    that the file is valid UTF-8. ``json.load`` gives the same text again: ``open`` takes it as the name of the file,
    and ``os.fsencode`` gives its bytes.

    Args:
        path: the file to write.
        content: keys and values that JSON can represent.

    Example:
        >>> write_json(Path("settings.json"), {"seed": 0, "file": "é\udcff.jpg"})
        >>> Path("settings.json").read_text("utf-8")
        '{\n  "seed": 0,\n  "file": "é\\udcff.jpg"\n}\n'
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # Only texts in quotes can hold surrogates, and there the escape stands for the surrogate.
    escaped = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    path.write_text(escaped + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a mapping from a JSON file.

    Args:
        path: the file.
        remedy: what a user can do about a broken file, for the message.

    Returns:
        The mapping.

    Raises:
        ValueError: if the file holds no JSON, or no mapping; the message has the path, the reason and the remedy.
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("run.json").write_text('{"seed": ')
        >>> read_json(Path("run.json"), "delete it")
        Traceback (most recent call last):
        ...
        ValueError: run.json is broken (Expecting value: line 1 column 10 (char 9)); delete it
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or JSON that is nested too deeply
        raise ValueError(f"{path} is broken ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is broken (it holds a {type(content).__name__}, no mapping); {remedy}")
    return content


def check_same_settings(path: Path, settings: Mapping[str, Any], holds: str) -> None:
    """Write the settings of a run to a file, or compare them with the settings that an earlier run wrote there.

    A run that is continued must have the settings with which it began: results of different settings do not belong
    into one folder.

    Args:
        path: the JSON file with the settings.
        settings: everything that the results depend on, as JSON can represent it.
        holds: what the folder holds, for the error message, such as ``"another run"``.

    Raises:
        ValueError: if the file has other settings, of which the message names each; or if it is broken.

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
    written = read_json(
        path, f"delete it together with the other files of its run, or choose another folder than {path.parent}"
    )
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
            text = part.encode(errors="surrogatepass")  # a file name may hold lone surrogates
            # The length in front makes the hashes of ("ab", "c") and ("a", "bc") differ.
            digest.update(f"{len(text)} ".encode() + text)
            continue
        digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
        for block in part.detach().reshape(-1).split(_HASHED_AT_ONCE):
            digest.update(block.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_weights(model: nn.Module) -> str:
    """SHA-256 of the names and values of all parameters and buffers of a module, as 64 hexadecimal digits.

    Args:
        model: the module.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> sha256_of_weights(nn.ReLU())[:8]
        'e3b0c442'
    """
    return sha256_of(*(part for named in sorted(model.state_dict().items()) for part in named))


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
