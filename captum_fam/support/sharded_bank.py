"""A memory bank whose rows lie on several ranks, because one machine cannot hold them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.embedding.ranks import Ranks, current_ranks, torchrun_size
from captum_fam.similarity import Similarity
from captum_fam.support.bank_making import split_options, unfinished_folder, warn_of_skipped
from captum_fam.support.base import Support
from captum_fam.support.checks import as_exclusion, check_embedding_sizes, check_exclusion, check_query
from captum_fam.support.comparison import Comparison
from captum_fam.support.memory_bank import MemoryBank
from captum_fam.support.neighbor_rules import NeighborRule
from captum_fam.support.search import ExactSearch
from captum_fam.support.shard_facts import check_same_options, facts_of, items_of_ranks, join_class_names, renumbered
from captum_fam.support.shard_files import load_shard, shard_files, shard_path
from captum_fam.support.shard_gallery import ShardedRows
from captum_fam.support.shard_making import check_shard, embed_shard
from captum_fam.support.shard_search import BankShard, ShardQuery, ShardRows
from captum_fam.support.target import select_class
from captum_fam.support.vote import Vote

_BY_CLASS = ("within-class", "whole-class")


class ShardedMemoryBank(Support):
    """A memory bank in shards, one on each rank of a process group of PyTorch.

    Queries have the neighbors, votes, scores and supports that a :class:`MemoryBank` of all rows gives them. On a CPU
    they are the same to the last digit, equally similar rows included. Every rank searches for its own queries, of any
    number: the queries go to all ranks, each finds the nearest of its rows, and the ranks exchange what they found.
    Memory per rank: its shard, the position of every row (8 bytes each), and the supports of its batch of queries.

    Ranks search together: a search of one rank waits until the other ranks search too, or call :meth:`finish`, which
    answers the searches of other ranks until all ranks have called it. So a rank may have fewer batches than others, or
    none. Use the bank as a context, which calls :meth:`finish` at its end, also after an exception:

    ``with bank: maps = [fam.attribute(images, support=bank) for images in batches_of_this_rank]``

    A rank that ends inside of the context without :meth:`finish` ends the search of the others with an error of
    PyTorch. Do not wait for other ranks in other ways inside of the context.

    Args:
        shard: the rows of this rank. Its options are those of the whole bank, and equal on all ranks. Its ``items``
            give the order of the rows of all ranks; if all ranks have the default items, the rows of rank 0 come first,
            then those of rank 1, and so on. Classes with equal names are the same class.
        ranks: the ranks. Default: None, those of the process group of PyTorch; without one, this process alone.

    Attributes:
        items: the positions in the data set of all rows of all ranks, int64 ``(M,)`` ascending, on the CPU.
        skipped: the items of the data set without a row, with the reason.
        k, temperature, neighbors, similarity: as in :class:`MemoryBank`.

    Raises:
        ValueError: for shards with different options or features, or with items in common.

    Example:
        >>> bank = ShardedMemoryBank(MemoryBank(torch.eye(3), [0, 1, 1], k=2))  # every rank with its rows
        >>> with bank:
        ...     bank.classify(torch.tensor([[0.0, 1.0, 0.9]])).predicted
        tensor([1])
    """

    forms_gallery = True
    similarity: Similarity

    def __init__(self, shard: MemoryBank, ranks: Ranks | None = None) -> None:
        ranks = (current_ranks() if ranks is None else ranks).apart()
        facts = check_same_options(ranks.gather(facts_of(shard)))
        items = items_of_ranks(facts)
        self.items, order = torch.cat(items).sort()
        of_row = torch.empty_like(order)
        of_row[order] = torch.arange(len(order))
        self.class_names = join_class_names([fact["class_names"] for fact in facts])
        labels = renumbered(shard.labels, shard.class_names, self.class_names)
        counts = ranks.gather(labels.bincount(minlength=self.n_classes).tolist())
        self._class_counts = [sum(one) for one in zip(*counts, strict=True)]
        self.skipped = {item: reason for fact in facts for item, reason in fact["skipped"].items()}
        self.similarity = shard.similarity
        self.k, self.temperature, self.neighbors = shard.k, shard.temperature, shard.neighbors
        self.exclude: Tensor | None = None
        self._own_bank = shard
        self._every_class = False
        search = ExactSearch(shard.embeddings, labels, shard.similarity, shard.backend)
        mine = of_row.split([len(one) for one in items])[ranks.rank]
        self._shard = BankShard(mine, shard.embeddings, labels, search, ranks)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        ranks, (here, features) = self._shard.ranks, self._shard.embeddings.shape
        place = f"of which {here} on rank {ranks.rank} of {ranks.size}"
        return f"ShardedMemoryBank({len(self)} x {features}, {place}, n_classes={self.n_classes}, k={self.k})"

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedMemoryBank:
        # Captum deep-copies keyword arguments. A process group cannot be copied.
        return self

    def __enter__(self) -> ShardedMemoryBank:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        # A process that is told to end does not wait for others.
        if kind is None or issubclass(kind, Exception):
            self.finish()

    def finish(self) -> None:
        """Answer the searches of the other ranks until all ranks have called this method.

        The bank can be used again afterwards.
        """
        self._shard.finish()

    def using(
        self,
        *,
        k: int | None = None,
        temperature: float | None = None,
        neighbors: NeighborRule | None = None,
        exclude: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> ShardedMemoryBank:
        """A bank with the same rows and other options, which may differ between ranks; see :meth:`MemoryBank.using`.

        Args:
            k: how many rows vote. Default: None, the number of this bank.
            temperature: the temperature of the votes. Default: None, the temperature of this bank.
            neighbors: the rule that chooses the supports. Default: None, the rule of this bank.
            exclude: rows that are left out for each query of this rank: rows of the bank as one piece, 0..M-1. Default:
                None, no row is left out.

        Returns:
            A new bank.

        Raises:
            TypeError: for a ``k``, or rows to exclude, that are no whole numbers.
            ValueError: for an option out of range.
        """
        bank = copy.copy(self)
        own = self._own_bank.using(k=k, temperature=temperature, neighbors=neighbors)
        bank._own_bank, bank.k, bank.temperature, bank.neighbors = own, own.k, own.temperature, own.neighbors
        bank.exclude = None if exclude is None else as_exclusion(exclude, torch.device("cpu"))
        return bank

    def classify(self, query: Tensor) -> Vote:
        """Find the K nearest rows of each query, on all ranks, and count their votes.

        Args:
            query: embeddings of this rank, ``(B, J)``.

        Returns:
            As :meth:`MemoryBank.classify`; ``neighbor_indices`` are rows of the bank as one piece.

        Raises:
            ValueError: if the queries do not fit the bank or hold NaN or inf, or all rows are excluded.
            RuntimeError: if another rank could not search.
        """
        question = self._question(query)
        bank = self._bank_of(query, question, self._shard.find(question))
        vote = bank.classify(query)
        return vote._replace(neighbor_indices=bank.items[vote.neighbor_indices])

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query with the rows that the rule ``neighbors`` chooses, as :meth:`MemoryBank.compare`.

        Raises:
            ValueError: for queries or a similarity that do not fit the bank.
            RuntimeError: if another rank could not search.
        """
        self.measure(similarity)
        question = self._question(query)
        found = self._shard.find(question)
        if self.neighbors in _BY_CLASS and not self._every_class:
            vote = self._bank_of(query, question, found).classify(query)
            classes = select_class(target, vote.predicted, self.n_classes).cpu()
            more = replace(question, classes=classes, whole=self.neighbors == "whole-class")
            found = ShardRows.join([found, self._shard.find(more)])
        return self._bank_of(query, question, found).compare(query, target, similarity)

    @property
    def class_counts(self) -> list[int]:
        return list(self._class_counts)

    @property
    def per_query(self) -> bool:
        """Whether rows are left out for each query, so that the bank fits one batch of queries only."""
        return self.exclude is not None

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        if self.exclude is not None:
            check_exclusion(self.exclude, len(inputs[0]), len(self))

    def for_queries(self, start: int, stop: int) -> ShardedMemoryBank:
        """The bank with the rows that are left out for the queries ``start`` to ``stop - 1``."""
        return self if self.exclude is None else self.using(exclude=self.exclude[start:stop])

    def for_every_class(self) -> ShardedMemoryBank:
        """The same bank with rows of every class as supports, where ``neighbors`` chooses rows of one class.

        Raises:
            ValueError: for ``neighbors="whole-class"``: the whole bank would have to lie on every rank.
        """
        if self.neighbors == "whole-class":
            raise ValueError(
                'neighbors="whole-class" with scores of every class needs all rows on every rank, which a bank in '
                'shards is made to avoid; use neighbors="within-class"'
            )
        bank = copy.copy(self)
        bank._every_class = True
        return bank

    def gallery_rows(self) -> ShardedRows:
        """The rows of all ranks as the rows of a gallery, whose sums the ranks exchange."""
        return ShardedRows(self._shard, len(self), self.exclude)

    def _question(self, query: Tensor) -> ShardQuery:
        """The question for the rows that any rule may need, after all checks: a rank that fails here asks nothing."""
        check_query(query, "; a rank without queries calls finish()")
        check_embedding_sizes(query, self._shard.embeddings[:1].to(query.device), "the memory bank")
        exclude = torch.full((len(query), 1), -1)
        if self.exclude is not None:
            exclude = check_exclusion(self.exclude, len(query), len(self))
        every = self.n_classes if self._every_class else 0
        return ShardQuery(
            F.widen(query.detach()).cpu(),
            self.k,
            exclude,
            n_classes=every if self.neighbors == "within-class" else 0,
            nearest_of=every if self.neighbors in ("predicted", "vote") else 0,
        )

    def _bank_of(self, query: Tensor, question: ShardQuery, found: ShardRows) -> MemoryBank:
        """A bank in one piece of the rows that the queries of this rank need; its items are rows of the whole bank."""
        embeddings, options = found.embeddings.to(query.device), (self.k, self.temperature, self.similarity)
        bank = MemoryBank(embeddings, found.labels, self.class_names, *options, self.neighbors, items=found.rows)
        if self.exclude is not None:
            positions = torch.searchsorted(found.rows, question.exclude)
            bank = bank.using(exclude=torch.where(question.exclude < 0, -1, positions))
        return bank.for_every_class() if self._every_class else bank

    def save(self, path: str | Path) -> None:
        """Write one file per rank; the ranks need no common file system, but :meth:`load` does.

        Args:
            path: the name that the files share: ``bank.safetensors`` for ``bank-1-of-2.safetensors`` and so on.

        Raises:
            ModuleNotFoundError: if safetensors is not installed.
            OSError: if a file cannot be written.
        """
        ranks, shard = self._shard.ranks, self._part_of_whole()
        error: Exception | None = None
        try:
            shard.save(shard_path(Path(path), ranks.rank + 1, ranks.size))
        except Exception as caught:  # the other ranks must not wait for a rank that has failed
            error = caught
        failures = ranks.gather(None if error is None else str(error))
        if error is not None:
            raise error
        others = [f"rank {rank} could not save its shard: {text}" for rank, text in enumerate(failures) if text]
        if others:
            raise OSError("; ".join(others))

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", *, ranks: Ranks | None = None, **options: Any
    ) -> ShardedMemoryBank:
        """Read the files that :meth:`save` wrote, with any number of ranks. All ranks must see all files.

        Args:
            path: the name that the files share, as for :meth:`save`; or a file of a bank in one piece, of which each
                rank reads a part.
            device: the device of the shard of this rank. Default: ``"cpu"``.
            ranks: the ranks. Default: None, those of the process group of PyTorch; without one, this process alone.
            options: arguments of :class:`MemoryBank`, which replace the options in the files.

        Raises:
            FileNotFoundError: if there are no such files.
            ValueError: if files are missing, broken or do not belong together, or there are fewer rows than ranks.
            ModuleNotFoundError: if safetensors is not installed.
        """
        ranks = current_ranks() if ranks is None else ranks
        return cls(load_shard(Path(path), ranks, options).to(device), ranks)

    @classmethod
    def from_dataset(
        cls, model: Any, dataset: Any, path: str | Path | None = None, *, ranks: Ranks | None = None, **options: Any
    ) -> ShardedMemoryBank:
        """Embed a labeled data set, one row per item, of which every rank keeps a part.

        Args:
            model: as for :meth:`MemoryBank.from_dataset`.
            dataset: labeled images as there, the same on all ranks.
            path: the name that the files share, as for :meth:`save`; all ranks need a common file system. An
                interrupted call can be repeated, also with another number of ranks. Default: None, no files.
            ranks: the ranks. Default: None, those of the process group of PyTorch; without one, this process alone.
            options: all other arguments of :meth:`MemoryBank.from_dataset`.

        Raises:
            TypeError, ValueError, ModuleNotFoundError, OSError: as for :meth:`MemoryBank.from_dataset`; and ValueError
                if a rank would have no row, or torchrun has started processes that are in no process group.

        Example:
            >>> images = [(torch.rand(3, 8, 8), label) for label in (0, 1, 1)]
            >>> embed = lambda images: images.mean((2, 3))
            >>> ShardedMemoryBank.from_dataset(embed, images, progress=False).class_counts
            [1, 2]
        """
        ranks = current_ranks() if ranks is None else ranks
        if ranks.size == 1 and torchrun_size() > 1:
            raise ValueError(
                "torchrun has started several processes, but there is no process group: call "
                "torch.distributed.init_process_group() first, and keep the group while the bank is in use"
            )
        maker, options = split_options(model, dataset, options)
        place = "cpu" if maker.device is None else maker.device
        path = None if path is None else Path(path)
        if ranks.gather(path is not None and bool(shard_files(path, missing_ok=True)))[0]:
            assert path is not None
            bank = cls.load(path, place, ranks=ranks, **options)
            check_shard(maker, str(path), bank._part_of_whole(), len(bank) + len(bank.skipped))
        else:
            bank = cls(embed_shard(maker, path, ranks, options).to(place), ranks)
            if path is not None:
                bank.save(path)
                unfinished = unfinished_folder(path)
                ranks.only_first(lambda: shutil.rmtree(unfinished))
        if ranks.is_first:
            warn_of_skipped(bank.skipped, 1)
        return bank

    def _part_of_whole(self) -> MemoryBank:
        """The shard of this rank with classes, items and skipped items as the whole bank has them."""
        shard = copy.copy(self._own_bank)
        shard.class_names, shard.labels = self.class_names, self._shard.labels
        shard.items = self.items[self._shard.rows]
        shard.skipped = self.skipped if self._shard.ranks.is_first else {}
        return shard
