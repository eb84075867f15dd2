"""Reads the content of a file of weights, whatever its suffix, without running code of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from captum_fam._files import need
from captum_fam._text import first_line, printable, printable_path
from captum_fam.models.foreign_files import head_of, is_safetensors, what_it_is
from captum_fam.models.inert_pickle import load_inert

_LONGEST_HEADER = 100_000_000  # the limit of safetensors


class WeightsError(ValueError):
    """Weights that cannot be found, downloaded or read, or that do not fit the model; the message names the remedy.

    Example:
        >>> try:
        ...     weights = read_checkpoint("no-such.pth")
        ... except WeightsError as error:
        ...     print(error)
        weights no-such.pth: no such file
    """


def split_weights(weights: str | Path) -> tuple[Path, str | None]:
    """Split ``FILE#PART`` into the file and the part of its content to take.

    Args:
        weights: the path of a file, with or without ``#`` and the name of a part. If a file of the whole text exists,
            its path is taken, with its ``#``.

    Returns:
        The path of the file, and the part; None for no part.

    Example:
        >>> split_weights("dino.pth#teacher")
        (PosixPath('dino.pth'), 'teacher')
    """
    path, separator, part = str(weights).rpartition("#")
    if not separator or not path or not part or _exists(Path(weights)):
        return Path(weights), None
    return Path(path), part


def is_there(weights: str | Path) -> bool:
    """Whether there is a file or a folder of this path.

    Args:
        weights: as in :func:`split_weights`.

    Returns:
        Whether there is one; False for a path that no file can have.

    Example:
        >>> is_there("no-such.pth#teacher")
        False
    """
    return _exists(split_weights(weights)[0])


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of safetensors, or of ``torch.save`` in the zip format or in the format before torch 1.6.

    The content decides, not the suffix. No code of the file is run: tensors, arrays of NumPy and plain data are read,
    objects of some classes that training scripts store beside weights become records without code
    (:func:`~captum_fam.models.inert_pickle.load_inert`), and all else is refused. Time and memory have bounds, which
    follow from the size of the file.

    Args:
        path: the file.

    Returns:
        The content of the file, with all tensors on the CPU.

    Raises:
        WeightsError: (a ``ValueError``) if there is no such file, if the file is broken, if it is of another format,
            or if it names anything but tensors and plain data; the message has the reason, and what to do.
        ImportError: for a file of safetensors without the library.

    Example:
        >>> torch.save({"epoch": 3}, "checkpoint.pth")
        >>> read_checkpoint("checkpoint.pth")
        {'epoch': 3}
    """
    path = Path(path)
    name = weights_in_words(path)
    try:
        if not _exists(path):
            raise WeightsError(f"{name}: no such file")
        if path.is_dir():
            raise WeightsError(f"{name} is a folder; {_of_folder(path)}")
        if not path.is_file():
            raise WeightsError(f"{name} is no file but a pipe or a device")
        if path.stat().st_size == 0:
            raise WeightsError(f"{name} cannot be read: it is empty; download or copy it again")
        what = what_it_is(path)
        if what is not None:
            raise WeightsError(f"{name} cannot be read: {what}")
        return _read_safetensors(path) if is_safetensors(head_of(path)) else load_inert(path)
    except WeightsError:
        raise
    except (ValueError, OSError) as error:
        raise WeightsError(f"{name} cannot be read: {first_line(error)}") from error


def weights_in_words(path: str | Path) -> str:
    """A file of weights in messages.

    Args:
        path: the file.

    Returns:
        ``weights`` and the path.

    Example:
        >>> weights_in_words("net.pth")
        'weights net.pth'
    """
    return f"weights {printable_path(path)}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False


def _of_folder(path: Path) -> str:
    files = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.suffix in (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")
    )
    if not files:
        return "give a file of weights"
    return f"give a file in it: {', '.join(printable(file, 60) for file in files[:5])}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    n_bytes = path.stat().st_size
    n_header = int.from_bytes(head_of(path)[:8], "little")
    if n_header > min(n_bytes - 8, _LONGEST_HEADER):
        raise ValueError(
            f"a file of safetensors that is cut off or damaged: its header claims {n_header} bytes, the file has "
            f"{n_bytes}; download or copy it again"
        )
    load_file = need("safetensors.torch", extra="models", purpose=f"reading {printable_path(path)}").load_file
    try:
        state: dict[str, Tensor] = load_file(path)
    except Exception as error:  # a broken header can raise any exception
        raise ValueError(f"a file of safetensors that is cut off or damaged ({first_line(error)})") from error
    return state
