"""Facts of the shards of a memory bank, which the ranks exchange, and what follows for the whole bank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_fam._files import sha256_of
from captum_fam.similarity import similarity_name
from captum_fam.support.memory_bank import MemoryBank

_COMPARED_ROWS = 64


def facts_of(shard: object) -> dict[str, Any] | str:
    """The facts of a shard that all ranks need; the text of an error, which all ranks raise, for another object.

    Args:
        shard: the argument of this rank.
    """
    if not isinstance(shard, MemoryBank):
        return f"shard must be a MemoryBank of the rows of this rank, got {type(shard).__name__}"
    return {
        "class_names": shard.class_names,
        "items": shard.items.cpu(),
        "skipped": shard.skipped,
        "hash": sha256_of(shard.labels, shard.embeddings[:_COMPARED_ROWS], shard.embeddings[-_COMPARED_ROWS:]),
        "options": {
            "k": shard.k,
            "temperature": shard.temperature,
            "neighbors": shard.neighbors,
            "similarity": similarity_name(shard.similarity),
            "dtype": str(shard.embeddings.dtype),
            "features": shard.embeddings.shape[1],
        },
    }


def check_same_options(facts: Sequence[dict[str, Any] | str]) -> list[dict[str, Any]]:
    """Check that all shards are memory banks with the same options. All ranks raise the same error.

    Args:
        facts: the result of :func:`facts_of` for the shard of every rank.

    Returns:
        The facts, all of memory banks.

    Raises:
        TypeError: if the shard of a rank is no memory bank.
        ValueError: if an option, or the number of features, is not the same on all ranks.
    """
    known = []
    for rank, fact in enumerate(facts):
        if isinstance(fact, str):
            raise TypeError(f"rank {rank}: {fact}")
        known.append(fact)
    for rank, fact in enumerate(known):
        for name, value in fact["options"].items():
            first = known[0]["options"][name]
            if value != first:
                raise ValueError(f"shard: {name} is {first} on rank 0 and {value} on rank {rank}; make them equal")
    return known


def items_of_ranks(facts: Sequence[dict[str, Any]]) -> list[Tensor]:
    """The position of each row in the data set, for the rows of every rank.

    Args:
        facts: the result of :func:`facts_of` for the shard of every rank.

    Raises:
        ValueError: if two ranks have an item in common, or hold the same rows.
    """
    items: list[Tensor] = [fact["items"] for fact in facts]
    if len(items) > 1 and all(torch.equal(one, torch.arange(len(one))) for one in items):
        hashes = [fact["hash"] for fact in facts]
        for rank, one in enumerate(hashes):
            if one in hashes[:rank]:
                raise ValueError(
                    f"shard: ranks {hashes.index(one)} and {rank} hold the same rows; each rank passes its own part of "
                    "the bank"
                )
        starts = torch.tensor([0, *map(len, items)]).cumsum(0).tolist()
        return [one + start for one, start in zip(items, starts[:-1], strict=True)]
    joined, order = torch.cat(items).sort(stable=True)
    again = (joined.diff() == 0).nonzero()
    if len(again):
        ranks = torch.arange(len(items)).repeat_interleave(torch.tensor([len(one) for one in items]))[order]
        at = int(again[0])
        raise ValueError(
            f"shard: item {int(joined[at])} is on ranks {int(ranks[at])} and {int(ranks[at + 1])}; pass items=, the "
            "position of each row in the data set of all ranks"
        )
    return items


def join_class_names(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The classes of all ranks, in the order in which one bank of all rows would have them.

    Args:
        names: the class names of every rank.

    Example:
        >>> join_class_names([("2", "10"), ("7",)]), join_class_names([("wren",), ("jay", "wren")])
        (('2', '7', '10'), ('jay', 'wren'))
    """
    if len(set(names)) == 1:
        return names[0]
    different = {name for one in names for name in one}
    if all(re.fullmatch(r"-?\d+", name) for name in different):
        return tuple(sorted(different, key=int))
    return tuple(sorted(different))


def renumbered(labels: Tensor, names: Sequence[str], all_names: Sequence[str]) -> Tensor:
    """The class indices of a shard as class indices of the whole bank.

    Args:
        labels: class indices of the shard, ``(m,)``.
        names: the class names of the shard.
        all_names: the class names of the bank.

    Example:
        >>> renumbered(torch.tensor([0, 0, 1]), ("jay", "wren"), ("jay", "tit", "wren"))
        tensor([0, 0, 2])
    """
    if tuple(names) == tuple(all_names):
        return labels
    number = {name: index for index, name in enumerate(all_names)}
    return torch.tensor([number[name] for name in names], device=labels.device)[labels]
