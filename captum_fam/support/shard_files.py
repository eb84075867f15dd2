"""The files of a memory bank in shards: their names, and the part of them that one rank reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captum_fam._text import printable
from captum_fam.embedding.ranks import Ranks
from captum_fam.support.bank_file import StoredBank, count_rows, read_bank
from captum_fam.support.memory_bank import MemoryBank


def shard_path(path: Path, number: int, count: int) -> Path:
    """The file of one shard.

    Args:
        path: the name that the files share.
        number: the number of the shard, 1 at least.
        count: the number of shards.

    Example:
        >>> shard_path(Path("bank.safetensors"), 1, 2).name
        'bank-1-of-2.safetensors'
    """
    return path.with_name(f"{path.stem}-{number}-of-{count}{path.suffix}")


def shard_files(path: Path, missing_ok: bool = False) -> list[Path]:
    """The files of a bank in the order of the ranks that wrote them; or the one file of a bank in one piece.

    Args:
        path: the name that the files share.
        missing_ok: whether the list is empty, instead of an error, if a file is missing. Default: False.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if some are missing, or there are several sets.
    """
    if path.is_file():
        return [path]
    pattern = re.compile(rf"{re.escape(path.stem)}-(\d+)-of-(\d+){re.escape(path.suffix)}")
    found = [match for file in path.parent.glob("*") if (match := pattern.fullmatch(file.name))]
    counts = sorted({int(match[2]) for match in found})
    complete = [count for count in counts if sum(int(match[2]) == count for match in found) == count]
    if missing_ok and not complete:
        return []
    shown = printable(path)
    if not found:
        raise FileNotFoundError(f"{shown}: no such memory bank, neither in one piece nor in shards")
    if len(complete) != 1:
        problem = f"shards of {len(complete)} different banks" if complete else "not all shards of the bank"
        raise ValueError(f"{shown}: the folder holds {problem} ({len(found)} files); delete those that do not belong")
    return [shard_path(path, number + 1, complete[0]) for number in range(complete[0])]


def load_shard(path: Path, ranks: Ranks, options: dict[str, Any]) -> MemoryBank:
    """The rows of one rank as a bank.

    Args:
        path: the name that the files share.
        ranks: the place of this process.
        options: arguments of :class:`MemoryBank`, which replace the options in the files.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if files are missing, broken or do not belong together, or there are fewer rows than ranks.
        ModuleNotFoundError: if safetensors is not installed.
    """
    stored = read_part(path, shard_files(path), ranks)
    try:
        shard = MemoryBank(**stored.arguments(options))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    shard.skipped = stored.skipped
    return shard


def read_part(path: Path, files: Sequence[Path], ranks: Ranks) -> StoredBank:
    """The rows of one rank: as many as those of every other rank, or one more or less.

    Args:
        path: the name that the files share, for messages.
        files: the files.
        ranks: the place of this process.

    Raises:
        ValueError: if files are broken or do not belong together, or there are fewer rows than ranks.
    """
    counts = [count_rows(file) for file in files]
    if sum(counts) < ranks.size:
        raise ValueError(f"{path}: {sum(counts)} rows are fewer than {ranks.size} ranks; take fewer ranks")
    start, stop = (sum(counts) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    parts: list[StoredBank] = []
    skipped: dict[int, str] = {}
    before = 0
    for file, count in zip(files, counts, strict=True):
        part = read_bank(file, slice(max(start - before, 0), max(min(stop - before, count), 0)))
        skipped.update(part.skipped)
        if parts and part.settings != parts[0].settings:
            raise ValueError(f"{file}: its settings differ from those of {files[0]}; delete the shards of another bank")
        parts.append(part)
        before += count
    widths = {(part.tensors["embeddings"].shape[1], part.tensors["embeddings"].dtype) for part in parts}
    if len(widths) > 1:
        raise ValueError(
            f"{path}: its shards have embeddings of different sizes or types; delete those of another bank"
        )
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    order = tensors["items"].argsort()
    return StoredBank({name: tensor[order] for name, tensor in tensors.items()}, parts[0].settings, skipped)
