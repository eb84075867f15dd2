"""Searching a bank whose rows lie on several ranks: the questions of the ranks to each other, and the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captum_fam.embedding.ranks import Ranks
from captum_fam.similarity import Similarity
from captum_fam.support.gallery_rows import RowSums, sum_of_rows
from captum_fam.support.mean_form import MeanForm, mean_form
from captum_fam.support.search import ExactSearch


@dataclass(frozen=True)
class ShardQuery:
    """The question of one rank to all ranks. Rows are rows of the bank as one piece.

    Attributes:
        query: embeddings ``(B, J)`` on the CPU.
        k: the number of rows to find: among all rows, and in each class that is asked for.
        exclude: rows that are left out for each query, ``(B, E)``; -1 leaves nothing out.
        classes: the class of each query, ``(B,)``, of which the k nearest rows are wanted. Default: None.
        whole: whether all rows of ``classes`` are wanted instead. Default: False.
        n_classes: the number of classes, if the k nearest rows of every class are wanted; else 0. Default: 0.
        nearest_of: the number of classes, if the nearest row of every class is wanted; else 0. Default: 0.
    """

    query: Tensor
    k: int
    exclude: Tensor
    classes: Tensor | None = None
    whole: bool = False
    n_classes: int = 0
    nearest_of: int = 0


@dataclass(frozen=True)
class ShardSum:
    """The question of one rank for the sum of the rows of all ranks, for the mean of a gallery.

    Attributes:
        similarity: the similarity whose mean is computed.
    """

    similarity: Similarity


@dataclass(frozen=True)
class ShardRows:
    """Rows of the bank, ascending.

    Attributes:
        rows: their positions in the bank as one piece, int64 ``(n,)``.
        embeddings: ``(n, J)``.
        labels: class indices, int64 ``(n,)``.
    """

    rows: Tensor
    embeddings: Tensor
    labels: Tensor

    @classmethod
    def join(cls, parts: Sequence[ShardRows]) -> ShardRows:
        """Rows of several parts, each once.

        Args:
            parts: rows in any order.
        """
        rows = torch.cat([part.rows for part in parts])
        rows, order = rows.sort(stable=True)
        is_new = rows.diff(prepend=rows.new_full((1,), -1)) != 0
        order = order[is_new]
        embeddings, labels = (
            torch.cat([getattr(part, name) for part in parts])[order] for name in ("embeddings", "labels")
        )
        return cls(rows[is_new], embeddings, labels)


Hits = tuple[Tensor, Tensor]
"""Similarities and rows for each query, ``(B, n)``; -inf for places without a row."""


class BankShard:
    """The rows of one rank, which answers the questions of all ranks.

    Args:
        rows: the positions of the rows in the bank as one piece, int64 ``(m,)`` ascending.
        embeddings: ``(m, J)``.
        labels: class indices, ``(m,)``.
        search: the search among these rows.
        ranks: all ranks, with a process group that nothing else uses.
    """

    def __init__(self, rows: Tensor, embeddings: Tensor, labels: Tensor, search: ExactSearch, ranks: Ranks) -> None:
        self.rows = rows
        self.embeddings = embeddings
        self.labels = labels
        self.ranks = ranks
        self._search = search
        self._own_sums = RowSums(partial(sum_of_rows, embeddings), embeddings)
        self._sums = RowSums(self._ask_sum, embeddings)

    def finish(self) -> None:
        """Answer the questions of the other ranks until no rank asks any more."""
        while self._round(None) is not None:
            pass

    def find(self, question: ShardQuery) -> ShardRows:
        """The rows that answer a question, found on all ranks.

        Args:
            question: the question of this rank.

        Raises:
            RuntimeError: if the search of a rank failed.
        """
        found = self._round(question)
        assert found is not None  # None would mean that no rank has asked
        return found[0]

    def total(self, form: MeanForm) -> Tensor:
        """The sum of the rows of all ranks that a form lifts, float64 ``(L,)``.

        It is asked for once, and again after the similarity or the rows of this rank have changed in place.

        Args:
            form: lifts rows.

        Raises:
            RuntimeError: if another rank failed.
        """
        return self._sums.of(form)

    def _ask_sum(self, form: MeanForm) -> Tensor:
        found = self._round(ShardSum(form.similarity))
        assert found is not None
        return found[1]

    def _round(self, question: ShardQuery | ShardSum | None) -> tuple[ShardRows, Tensor] | None:
        """Take part in one round, in which each rank may ask one question and answers those of all ranks.

        Args:
            question: the question of this rank; None to answer only.

        Returns:
            The rows that answer the question, and the sum; no rows and zero where they were not asked for. None if no
            rank has asked anything.

        Raises:
            RuntimeError: if a rank failed to answer.
        """
        questions = self.ranks.gather(question)
        if all(one is None for one in questions):
            return None
        answers = self.ranks.exchange([self._answer(one) for one in questions])
        failures = [f"rank {rank} could not search: {one}" for rank, one in enumerate(answers) if isinstance(one, str)]
        wanted, total = torch.empty(0, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        if isinstance(question, ShardQuery) and not failures:
            wanted = _merge(question, [one for one in answers if isinstance(one, list)])
        elif question is not None and not failures:
            total = torch.stack([one for one in answers if isinstance(one, Tensor)]).sum(0)
        sent = [self._rows(rows) for rows in self.ranks.gather(wanted)]
        received = ShardRows.join(self.ranks.exchange(sent))
        if failures:
            raise RuntimeError("; ".join(failures))
        return received, total

    def _answer(self, question: ShardQuery | ShardSum | None) -> list[Hits] | Tensor | str:
        """Groups of hits, or the sum of the rows of this rank; or the reason, as a text, why there are none."""
        if question is None:
            return []
        try:
            if isinstance(question, ShardSum):
                form = mean_form(question.similarity)
                assert form is not None  # only the mean of similarities with a form is asked for
                return self._own_sums.of(form)
            groups = self._find(question)
        except Exception as error:  # the error is raised by the rank that has asked; this rank continues
            return f"{type(error).__name__}: {error}"
        return [(scores.cpu(), self.rows[rows.cpu()]) for scores, rows in groups]

    def _find(self, question: ShardQuery) -> list[Hits]:
        device = self.embeddings.device
        query = question.query.to(device)
        exclude = self._positions(question.exclude).to(device)
        found = [self._search.search(query, question.k, exclude)]
        if question.nearest_of:
            found.append(self._search.nearest_of_classes(query, question.nearest_of, exclude))
        if question.classes is not None:
            found.append(self._of_classes(query, question.k, exclude, question.classes.tolist(), question.whole))
        for label in range(question.n_classes):
            found.append(self._of_classes(query, question.k, exclude, [label] * len(query), whole=False))
        return found

    def _of_classes(self, query: Tensor, k: int, exclude: Tensor, classes: Sequence[int], whole: bool) -> Hits:
        """The k nearest rows, or all rows, of one class per query."""
        of_classes = self._search.rows_of_classes
        scores, rows = [], []
        for part, left_out, label in zip(query.split(1), exclude, classes, strict=True):
            own = of_classes[label] if label < len(of_classes) else self.labels[:0]
            if not whole:
                own = own[~torch.isin(own, left_out)]
            if whole or not len(own):
                similarities = part.new_zeros(len(own))
            else:
                nearest, own = self._search.nearest(part, min(k, len(own)), own)
                similarities, own = nearest[0], own[0]
            scores.append(similarities)
            rows.append(own)
        padded = torch.nn.utils.rnn.pad_sequence(scores, batch_first=True, padding_value=-torch.inf)
        return padded, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _positions(self, rows: Tensor) -> Tensor:
        """The positions in this shard of rows of the bank, -1 for rows that are not here."""
        positions = torch.searchsorted(self.rows, rows).clamp_max(len(self.rows) - 1)
        return torch.where(self.rows[positions] == rows, positions, -1)

    def _rows(self, wanted: Tensor) -> ShardRows:
        """Those of the wanted rows that are here."""
        positions = self._positions(wanted)
        positions = positions[positions >= 0]
        place = positions.to(self.embeddings.device)
        return ShardRows(self.rows[positions], self.embeddings[place].cpu(), self.labels[place].cpu())


def _merge(question: ShardQuery, answers: Sequence[list[Hits]]) -> Tensor:
    """The rows of the bank that answer a question, ascending, from the hits in every shard."""
    # A MemoryBank fills up places without a row with rows that are left out, or with row 0.
    wanted = [question.exclude.flatten(), torch.zeros(1, dtype=torch.int64)]
    for index, groups in enumerate(zip(*answers, strict=True)):
        if index == 1 and question.nearest_of:
            wanted.append(_best_of_classes(groups))
            continue
        is_whole = question.whole and index > 0
        wanted += [_first(groups, None if is_whole else question.k)]
    rows = torch.cat(wanted)
    return rows[rows >= 0].unique()


def _first(groups: Sequence[Hits], k: int | None) -> Tensor:
    """The rows of the k largest similarities of each query, and of equal similarities the first rows."""
    scores, rows = (torch.cat(parts, 1) for parts in zip(*groups, strict=True))
    rows, order = rows.sort(1)
    scores, order = scores.gather(1, order).sort(stable=True, dim=1, descending=True)
    rows = rows.gather(1, order)
    return rows[:, :k][scores[:, :k] != -torch.inf]


def _best_of_classes(groups: Sequence[Hits]) -> Tensor:
    """The row of the largest similarity of each query and class, and of equal similarities the first row."""
    scores, rows = (torch.stack(parts) for parts in zip(*groups, strict=True))
    best = scores.amax(0)
    last = torch.iinfo(torch.int64).max
    first = torch.where(scores == best, rows, last).amin(0)
    return first[best != -torch.inf]
