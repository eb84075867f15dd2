"""Folders in which one process works at a time, and the scratch folders of killed processes, which are removed.

A lock is taken on an open file (``flock``): the system frees it when its process ends, however it ends. Systems and
file systems without such locks (Windows, some network drives) are not protected.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

LOCK = ".captum-fam.lock"
"""The file that names the process that works in a folder."""
SCRATCH = ".captum-fam-"
"""The first characters of the name of a scratch folder."""

_TRIES = 20

# The open files with a lock of this process.
_locked: set[int] = set()
# The thread that holds a folder, by the path of the folder.
_holders: dict[str, int] = {}


def _close_in_child() -> None:
    """Give up the locks in a child process, which may live for seconds after its parent was killed."""
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def lock_folder(folder: str | Path, holds: bool = True, waits: bool = False) -> Iterator[None]:
    """A context in which no other process that asks for the same folder works in it.

    The folder is created, and removed again if nothing was written into it. Scratch folders that a killed process
    left in it are removed. A thread that holds the folder already may ask for it again.

    Args:
        folder: the folder.
        holds: whether this process takes the lock; False for a process that shares the work of the one that holds it,
            such as the other ranks of torchrun. Default: True.
        waits: whether to wait until another process that works in the folder has ended. Default: False, an error.

    Raises:
        OSError: if another process works in the folder, which the message names; or if the folder cannot be written.

    Example:
        >>> with lock_folder("results"):
        ...     Path("results", "notes.txt").write_text("done")
        4
    """
    key = os.path.realpath(folder)
    if not holds or _holders.get(key) == threading.get_ident():
        yield
        return
    folder = Path(folder)
    path = folder / LOCK
    while True:
        with made_folders(folder):
            try:
                descriptor = _open_lock(path, waits)
            except FileNotFoundError:  # another process has removed the empty folder
                continue
            _holders[key] = threading.get_ident()
            try:
                remove_dead_scratch(folder)
                yield
            finally:
                del _holders[key]
                path.unlink(missing_ok=True)
                _release(descriptor)
            return


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """A context in which a folder and its parents exist; at its end, those that are new and empty are removed.

    Args:
        folder: the folder.

    Raises:
        OSError: if the folder cannot be made or written; the message names it.
    """
    new = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        _make_and_try(folder)
    except OSError as error:
        _remove_empty(new)
        blocking = next((part for part in (folder, *folder.parents) if part.exists() and not part.is_dir()), None)
        reason = error.strerror if blocking is None else f"{blocking} is a file"
        raise OSError(f"{folder} cannot be written: {reason}; choose another folder") from error
    try:
        yield
    finally:
        _remove_empty(new)


def _make_and_try(folder: Path) -> None:
    """Make a folder and write into it."""
    for tries_left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return
        except FileNotFoundError:  # another process may have removed the empty folder
            if not tries_left:
                raise


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the deepest first, up to the first that is not empty."""
    for part in folders:
        try:
            part.rmdir()
        except OSError:
            return


def _open_lock(path: Path, waits: bool) -> int:
    """Open and lock the file that names the owner of a folder; returns its descriptor."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error.strerror}") from error
        if _take(descriptor, waits) is False:
            owner = _read_owner(descriptor)
            os.close(descriptor)
            raise OSError(f"{path.parent} is in use by {owner}; wait until it has ended, or choose another folder")
        # Between the two calls, the earlier owner may have removed the file, and a third process may have made another.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
    _locked.add(descriptor)
    owner_entry = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner_entry).encode())
    return descriptor


def _read_owner(descriptor: int) -> str:
    """The owner of a locked folder in words."""
    try:
        entry: Any = json.loads(os.read(descriptor, 1 << 16))
        return f"process {entry['pid']} on {entry['host']} since {entry['since']} ({entry['command']})"
    except (ValueError, KeyError, TypeError):  # the owner has not written its name yet
        return "another process"


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside a folder, which is removed at the end.

    Args:
        folder: the folder in which the new folder lies.

    Yields:
        The new folder, whose name begins with a dot.
    """
    while True:
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=SCRATCH))
        descriptor = _open_folder(scratch)
        if descriptor is not None:
            _take(descriptor, wait=True)
            _locked.add(descriptor)
        # Before it was locked, another process may have taken the folder for one of a dead process.
        if scratch.exists():
            break
        _release(descriptor)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _release(descriptor)


def remove_dead_scratch(folder: Path) -> None:
    """Remove the scratch folders of processes that have ended without removing them.

    Args:
        folder: the folder in which they lie.
    """
    for path in folder.glob(f"{SCRATCH}*"):
        descriptor = _open_folder(path)
        if descriptor is None:
            continue
        if _take(descriptor):
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _open_folder(path: Path) -> int | None:
    """A descriptor of a folder, for a lock; None if it is no folder, and on Windows, which opens no folders."""
    if path.is_symlink() or not path.is_dir() or os.name == "nt":
        return None
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:  # another process has removed it, or it belongs to another user
        return None


def _take(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file: True, or False if another process has the lock; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _release(descriptor: int | None) -> None:
    # In a child process that was forked since, the descriptor is closed already.
    if descriptor in _locked:
        _locked.discard(descriptor)
        os.close(descriptor)
