"""The file of a memory bank: writing it, and reading it with checks that refuse broken and crafted files."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam._files import need, write_all_or_nothing
from captum_fam._text import printable
from captum_fam.support.neighbor_rules import RULES
from captum_fam.support.vote import LEAST_TEMPERATURE

_HEADER = "captum-fam memory bank"
_DTYPES = {"embeddings": ("F16", "BF16", "F32", "F64"), "labels": ("I64",), "items": ("I64",)}
# Enough for the class names and reasons of any bank. A larger header, as of a crafted file, would take seconds and
# gigabytes to read.
_HEADER_BYTES = 32 * 2**20
# The header of a bank has five containers: the whole, settings, class names, skipped items and checksums.
_CONTAINERS = 5
_CHECKED_AT_ONCE = 1 << 16
_REMEDY = "give a file of MemoryBank.save; if it was one, make the bank again"
_ALL = slice(None)


@dataclass(frozen=True)
class StoredBank:
    """What the file of a memory bank holds.

    Attributes:
        tensors: ``embeddings`` ``(M, J)``, ``labels`` ``(M,)`` and ``items`` ``(M,)``.
        settings: arguments of :class:`MemoryBank`, and the hash of the weights of the model; empty for rows that are in
            no file yet.
        skipped: the items without a row, with the reasons.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    skipped: dict[int, str]

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the :class:`MemoryBank` of these rows.

        Args:
            options: arguments of :class:`MemoryBank`, which replace the settings.

        Raises:
            ValueError: if the similarity of the bank was an object, which no file holds, and ``options`` has none.
        """
        settings = {**self.settings, **options}
        settings.pop("weights", None)
        if "similarity" in settings and settings["similarity"] is None:
            raise ValueError("similarity was an object when the bank was saved; pass it again: similarity=...")
        return {**self.tensors, **settings}


def write_bank(path: Path, bank: StoredBank) -> None:
    """Write a safetensors file, completely or not at all.

    Args:
        path: the file.
        bank: the content.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        ValueError: if class names and reasons take more than 32 MiB.
        OSError: if the file cannot be written.
    """
    safetensors = _safetensors("safetensors.torch")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bank.tensors.items()}
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header = json.dumps({"settings": bank.settings, "skipped": bank.skipped, "checksums": checksums})
    if len(header) > _HEADER_BYTES // 2:  # quotation marks are escaped once more in the file
        raise ValueError(
            f"{path}: class names and the reasons of skipped items take {len(header) / 2**20:.0f} MiB, more than the "
            f"{_HEADER_BYTES // 2**21} that fit in the file of a bank; give the classes shorter names"
        )
    with write_all_or_nothing(path.parent) as scratch:
        safetensors.save_file(tensors, scratch / path.name, {_HEADER: header})
        # safetensors lets nobody else read its files.
        usual = scratch / "usual"
        usual.touch()
        (scratch / path.name).chmod(usual.stat().st_mode)
        usual.unlink()


def read_bank(path: Path, rows: slice = _ALL) -> StoredBank:
    """Read a file that :func:`write_bank` wrote. Broken and crafted files are refused in little time and memory.

    Args:
        path: the file.
        rows: the rows to read. Default: all.

    Returns:
        The content, of which every value is checked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken, no memory bank, or holds what no memory bank can be made of.
        ModuleNotFoundError: if safetensors is not installed.
    """
    with _opened(path) as (header, columns):
        tensors = {name: column[rows] for name, column in columns.items()}
    settings, skipped, checksums = _read_header(path, header)
    if rows == _ALL and checksums != {name: _checksum(tensor) for name, tensor in tensors.items()}:
        raise ValueError(f"{path}: damaged, its numbers are not those that were written; {_REMEDY}")
    _check_numbers(path, tensors, len(settings["class_names"]))
    return StoredBank(tensors, settings, skipped)


def count_rows(path: Path) -> int:
    """The number of rows in the file of a memory bank; no row is read.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken or no memory bank.
        ModuleNotFoundError: if safetensors is not installed.
    """
    with _opened(path) as (_, columns):
        return int(columns["items"].get_shape()[0])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The header of a bank, and its tensors, whose types and shapes are checked and whose values are not read yet."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such memory bank, or no regular file")
    _check_header_size(path)
    safetensors = _safetensors("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            columns = {name: file.get_slice(name) for name in list(file.keys())}
            if header is None or columns.keys() != _DTYPES.keys():
                raise ValueError(f"{path}: a safetensors file, but no memory bank")
            _check_shapes(path, columns)
            yield header, columns
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: no memory bank, or damaged ({printable(error)}); {_REMEDY}") from error


def _check_header_size(path: Path) -> None:
    """Refuse a header that does not fit in the file, or is larger than that of any bank."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > path.stat().st_size - 8:
        raise ValueError(f"{path}: no memory bank, or damaged (it ends within its header); {_REMEDY}")
    if size > _HEADER_BYTES + 2**20:
        raise _refused(path, f"a header of {size / 2**20:.0f} MiB")


def _check_shapes(path: Path, columns: dict[str, Any]) -> None:
    shapes = {name: column.get_shape() for name, column in columns.items()}
    for name, column in columns.items():
        if column.get_dtype() not in _DTYPES[name]:
            raise _refused(path, f"{name} of type {column.get_dtype()} instead of {' or '.join(_DTYPES[name])}")
    n_rows, *features = shapes["embeddings"] or [0]
    if len(features) != 1 or not n_rows * features[0]:
        raise _refused(path, f"embeddings of shape {shapes['embeddings']} instead of (M, J)")
    for name in ("labels", "items"):
        if shapes[name] != [n_rows]:
            raise _refused(path, f"{name} of shape {shapes[name]} for {n_rows} rows")


def _read_header(path: Path, header: str) -> tuple[dict[str, Any], dict[int, str], dict[str, Any]]:
    """Settings, skipped items and checksums, of which every value is of its type and in its range."""
    # Every second piece between quotation marks that are not escaped is outside of texts.
    outside_of_texts = "".join(header.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    if outside_of_texts.count("[") + outside_of_texts.count("{") > _CONTAINERS:
        raise _refused(path, "a header with lists inside of lists")
    try:
        content = json.loads(header)
    except ValueError as error:
        raise _refused(path, f"a header that is no JSON ({printable(error)})") from error
    if not isinstance(content, dict) or content.keys() != {"settings", "skipped", "checksums"}:
        raise _refused(path, "a header without settings, skipped items and checksums")
    settings, skipped = content["settings"], content["skipped"]
    if not isinstance(settings, dict) or settings.keys() != _SETTINGS.keys():
        shown = ", ".join(map(printable, settings)) if isinstance(settings, dict) else printable(settings)
        raise _refused(path, f"the settings {shown or 'of nothing'} instead of {', '.join(_SETTINGS)}")
    for name, (is_right, expected) in _SETTINGS.items():
        if not is_right(settings[name]):
            raise _refused(path, f"{name}={printable(repr(settings[name]))} instead of {expected}")
    if not isinstance(skipped, dict) or not all(
        item.isascii() and item.isdigit() and len(item) < 19 and isinstance(reason, str)
        for item, reason in skipped.items()
    ):
        raise _refused(path, "skipped items that are no numbers with reasons")
    if not isinstance(content["checksums"], dict):
        raise _refused(path, "checksums that are none")
    return settings, {int(item): reason for item, reason in skipped.items()}, content["checksums"]


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _check_numbers(path: Path, tensors: dict[str, Tensor], n_classes: int) -> None:
    """Refuse labels, items and embeddings that no bank has."""
    labels, items = tensors["labels"], tensors["items"]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise _refused(path, f"labels {int(labels.min())}..{int(labels.max())} for {n_classes} class names")
    if len(items) and (int(items[0]) < 0 or not (items.diff() > 0).all()):
        raise _refused(path, "items that are negative or not ascending")
    if not all(block.isfinite().all() for block in tensors["embeddings"].split(_CHECKED_AT_ONCE)):
        raise _refused(path, "embeddings with NaN or inf")


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: holds {what}, which no memory bank does; {_REMEDY}")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _is_temperature(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and LEAST_TEMPERATURE <= float(value) < math.inf  # type: ignore[arg-type]


_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "class_names": (_is_names, "a list of names"),
    "k": (lambda value: type(value) is int and value >= 1, "a whole number, 1 at least"),
    "temperature": (_is_temperature, f"a number, {LEAST_TEMPERATURE} at least"),
    "similarity": (lambda value: value is None or isinstance(value, str), "a name"),
    "neighbors": (lambda value: isinstance(value, str) and value in RULES, f"one of {', '.join(RULES)}"),
    "weights": (lambda value: value is None or isinstance(value, str), "a hash"),
}
"""The settings in a file, each with its check and the words for what is expected."""


def _safetensors(module: str) -> Any:
    """A module of safetensors, which is an optional package."""
    return need(module, extra="models", purpose="a memory bank on disk")
