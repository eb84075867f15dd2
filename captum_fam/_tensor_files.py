"""Reading the files of tensors that this package has written, past those that a crash has damaged."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path, remedy: str, *, mmap: bool = False) -> Any:
    """Read a file that ``torch.save`` wrote for this package, after a check of its length and its checksums.

    Args:
        path: the file.
        remedy: what a user can do about a broken file, for the message.
        mmap: whether tensors are mapped into memory, so that only those that are used are read. Default: False.

    Returns:
        Tensors, numbers and texts, in lists, tuples and dictionaries.

    Raises:
        ValueError: if the file is truncated or damaged, or holds anything else; the message has the path and the
            remedy.
        OSError: if the file cannot be read.

    Example:
        >>> torch.save({"rows": torch.zeros(2)}, "rows.pt")
        >>> read_tensors(Path("rows.pt"), "delete it")
        {'rows': tensor([0., 0.])}
    """
    if not is_intact(path):
        raise ValueError(f"{path} is truncated or damaged; {remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # The message of torch is left out: it advises to switch off what keeps a file from running code.
        raise ValueError(f"{path} holds no tensors of this package ({type(error).__name__}); {remedy}") from error


def is_intact(path: Path) -> bool:
    """Whether a file of ``torch.save`` is complete: the length and the checksum of each part fit its directory.

    Args:
        path: the file.

    Returns:
        False for a file that is truncated, damaged, or not of this kind.

    Raises:
        OSError: if the file cannot be read.

    Example:
        >>> torch.save(torch.zeros(100), "zeros.pt")
        >>> content = Path("zeros.pt").read_bytes()
        >>> _ = Path("cut.pt").write_bytes(content[:-1])
        >>> is_intact(Path("zeros.pt")), is_intact(Path("cut.pt"))
        (True, False)
    """
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False
