"""Nearest neighbors in a labeled bank of embeddings: exact, in bounded memory, and as supports."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from captum_fam import functional as F
from captum_fam.embedding.batches import OnError
from captum_fam.similarity import Cosine, Dot, SimilarityLike, get_similarity
from captum_fam.support import bank_file as files
from captum_fam.support import check_embedding_sizes, plain_arithmetic

Neighbors = Literal["predicted", "all", "vote", "within-class", "whole-class", "nearest"]
Backend = Literal["torch", "faiss"]

# What one step of a search may hold: similarities, and a copy of the rows for measures that rescale them.
_STEP_BYTES = 32 * 2**20
_STEP_QUERIES = 256

# What is less is zero in float32.
_LEAST_TEMPERATURE = 1e-37


class Vote(NamedTuple):
    """What a :class:`MemoryBank` says of a batch of queries.

    Attributes:
        predicted: the class with the most votes, the first of those that only rounding sets apart, ``(B,)``.
        class_scores: share of the votes of every class, ``(B, C)``; rows sum to one.
        neighbor_indices: rows of the bank, the most similar first, ``(B, K)``; equally similar ones in any order.
        similarities: theirs, ``(B, K)``.
    """

    predicted: Tensor
    class_scores: Tensor
    neighbor_indices: Tensor
    similarities: Tensor


@dataclass(frozen=True)
class BankSupport:
    """The rows of a bank that stand for a class in Eq. 11, chosen for each query.

    Iterating gathers the supports of one query after another, ``(K, J)``: for the whole batch at once they need
    not fit in memory.

    Attributes:
        embeddings: the bank, ``(M, J)``.
        indices: rows of it, ``(B, K)``.
        weights: of each row in S, ``(B, K)``; rows sum to one, and padding weighs nothing.
    """

    embeddings: Tensor
    indices: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.embeddings[rows] for rows in self.indices)


class MemoryBank:
    """A labeled bank of embeddings that classifies by its K nearest rows, and lends them as supports.

    Every row within the K most similar votes for its class with the weight exp(s / temperature) (Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"). The search is exact and goes through
    the bank block by block.

    ``LayerFAM.attribute(x, support=bank)`` explains the predicted class, with ``target`` any other. Which rows are
    the K images of that class in Eq. 11 is not settled by the paper; ``neighbors`` chooses:

    ==================  ===  ========================================================  ======================
    ``neighbors``           rows                                                      weight
    ==================  ===  ========================================================  ======================
    ``"predicted"``      A   those of the class among the K nearest (default)          equal
    ``"all"``            B   all of the K nearest, whatever their class                equal
    ``"vote"``           C   as A                                                      as they vote
    ``"within-class"``   D   the K nearest of the class, from the whole bank           equal
    ``"whole-class"``    E   all of the class                                          equal
    ``"nearest"``        F   the nearest, whatever its class                           one
    ==================  ===  ========================================================  ======================

    A bank is never changed: :meth:`to` and :meth:`using` give another one.

    Args:
        embeddings: ``(M, J)``, any floating-point type; half precision is computed in float32.
        labels: M class indices, not negative.
        class_names: C names; the class indices themselves by default.
        k: neighbors that vote; all rows where the bank has fewer.
        temperature: of the vote, at least 1e-37. The smaller, the more the nearest decide.
        similarity: what the model decides with; the same as that of the explaining method.
        neighbors: one of the above.
        backend: ``"torch"``, or ``"faiss"``: a flat index on the CPU with the same results, for cosine and dot. It
            keeps a copy of the bank.
        items: where the rows are from, as positions in a dataset, ``(M,)`` ascending; 0..M-1 by default.

    Attributes:
        skipped: items of the dataset that could not be read and have no row, with the reason.

    Raises:
        TypeError: if ``embeddings`` is no floating-point tensor, or ``labels`` are no whole numbers.
        ValueError: for an empty bank, NaN or inf, labels, names or items that do not fit, or an unknown option.

    Example:
        >>> bank = MemoryBank(torch.eye(3), [0, 1, 1], k=2)
        >>> bank.classify(torch.tensor([[0.0, 1.0, 0.9]])).predicted
        tensor([1])
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor | Sequence[int],
        class_names: Sequence[str] | None = None,
        k: int = 200,
        temperature: float = 0.07,
        similarity: SimilarityLike = "cosine",
        neighbors: Neighbors = "predicted",
        backend: Backend = "torch",
        items: Tensor | Sequence[int] | None = None,
    ) -> None:
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            kind = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise TypeError(f"embeddings must be a floating-point tensor (M, J), got {kind}")
        if embeddings.dim() != 2 or not embeddings.numel():
            raise ValueError(f"embeddings must be (M, J) with at least one row, got shape {tuple(embeddings.shape)}")
        self.embeddings = embeddings.detach()
        self.labels = _whole_numbers("labels", labels, embeddings)
        self.items = _whole_numbers("items", range(len(embeddings)) if items is None else items, embeddings)
        if not (self.items.diff() > 0).all():
            raise ValueError("items must be ascending")
        n_classes = int(self.labels.max()) + 1
        self.class_names = tuple(class_names or map(str, range(n_classes)))
        if len(self.class_names) < n_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, labels go up to {n_classes - 1}")
        self.similarity = get_similarity(similarity)
        self.similarity_name = similarity if isinstance(similarity, str) else None
        self.k = k
        self.temperature = temperature
        self.neighbors = neighbors
        self.backend = backend
        self.exclude: Tensor | None = None
        self.skipped: dict[int, str] = {}
        # Shared by all that read the same rows in another way.
        self._indexes: dict[str, Any] = {}
        self._check_options()
        for block in self.embeddings.split(self._step(0)):
            if not block.isfinite().all():
                raise ValueError("embeddings contain NaN or inf")

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        rows, features = self.embeddings.shape
        return (
            f"MemoryBank({rows} x {features}, n_classes={self.n_classes}, k={self.k}, "
            f"temperature={self.temperature}, neighbors={self.neighbors!r})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryBank:
        # Captum deep-copies keyword arguments; what never changes need not be copied.
        return self

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MemoryBank:
        """The bank on another device, or with embeddings of another floating-point type."""
        other = copy.copy(self)
        other.embeddings = self.embeddings.to(device=device, dtype=dtype)
        device = other.embeddings.device
        other.labels, other.items = self.labels.to(device), self.items.to(device)
        other.similarity = copy.deepcopy(self.similarity).to(device)
        other.exclude = None if self.exclude is None else self.exclude.to(device)
        other._indexes = {}
        return other

    def using(
        self,
        *,
        k: int | None = None,
        temperature: float | None = None,
        neighbors: Neighbors | None = None,
        exclude: Tensor | Sequence[int] | None = None,
    ) -> MemoryBank:
        """The same rows, read in another way; nothing is copied.

        Args:
            k, temperature, neighbors: as for the class; None keeps the bank's own.
            exclude: rows that are no neighbors of a query, one ``(B,)`` or several ``(B, E)`` for each: leave-one-out
                where the queries are in the bank. It belongs to one batch of queries; None is no exclusion.

        Example:
            >>> attributions = fam.attribute(images, support=bank.using(exclude=rows_of_the_images))
        """
        other = copy.copy(self)
        other.k = self.k if k is None else k
        other.temperature = self.temperature if temperature is None else temperature
        other.neighbors = self.neighbors if neighbors is None else neighbors
        other.exclude = None if exclude is None else torch.as_tensor(exclude, device=self.labels.device)
        other._check_options()
        return other

    def classify(self, query: Tensor) -> Vote:
        """Find the K nearest rows and let them vote.

        Args:
            query: embeddings ``(B, J)``, on the bank's device.

        Raises:
            ValueError: if the queries do not fit the bank or hold NaN or inf, or nothing is left to compare with.
        """
        query, exclude = self._check_query(query)
        with plain_arithmetic(query.device):
            found = [
                self._search(some, None if exclude is None else exclude[start : start + _STEP_QUERIES])
                for start, some in zip(range(0, len(query), _STEP_QUERIES), query.split(_STEP_QUERIES), strict=True)
            ]
            similarities, indices = (torch.cat(pieces) for pieces in zip(*found, strict=True))
            if not similarities.isfinite().all():
                raise ValueError(
                    "query: its similarity to rows of the memory bank is NaN or inf; rescale the embeddings of both"
                )
            votes = self._votes(similarities)
            scores = votes.new_zeros(len(query), self.n_classes).scatter_add_(1, self.labels[indices], votes)
            noise = self._rounding(query, similarities, indices) * scores
            return Vote(F.first_largest(scores, noise), scores, indices, similarities)

    def support(self, query: Tensor, target: Tensor | None = None, vote: Vote | None = None) -> BankSupport:
        """The rows that stand for a class in Eq. 11, after ``neighbors``.

        Args:
            query: embeddings ``(B, J)``.
            target: the class of each query, ``(B,)``; None: the predicted one.
            vote: what :meth:`classify` gave for these queries, where it is at hand.

        Raises:
            ValueError: if a query has no row of its class to be compared with.
        """
        vote = self.classify(query) if vote is None else vote
        query, exclude = self._check_query(query)
        classes = vote.predicted if target is None else target
        indices, weights = vote.neighbor_indices, torch.ones_like(vote.similarities)
        with plain_arithmetic(query.device):
            if self.neighbors in ("within-class", "whole-class"):
                rows = [
                    self._rows_of_class(label, one, None if exclude is None else exclude[b])
                    for b, (label, one) in enumerate(zip(classes.tolist(), query.split(1), strict=True))
                ]
                indices = pad_sequence(rows, batch_first=True)
                weights = pad_sequence([weights.new_ones(len(row)) for row in rows], batch_first=True)
            elif self.neighbors == "nearest":
                indices, weights = indices[:, :1], weights[:, :1]
            elif self.neighbors != "all":
                member = self.labels[indices] == classes.unsqueeze(1)
                self._check_members(member, classes)
                if self.neighbors == "vote":
                    weights = self._votes(vote.similarities.masked_fill(~member, -torch.inf))
                weights = weights * member
            return BankSupport(self.embeddings, indices, weights / weights.sum(1, keepdim=True))

    @classmethod
    def from_dataset(
        cls,
        model: Callable[..., Any],
        dataset: Dataset[Any],
        path: str | Path | None = None,
        *,
        class_names: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        device: torch.device | str | None = None,
        on_error: OnError = "raise",
        save_every: int = 16,
        progress: bool = True,
        **options: Any,
    ) -> MemoryBank:
        """Embed a labeled dataset, one row an item.

        With a ``path`` the work survives its process: pieces are stored beside the file while it goes on, and the
        same call takes it up where it ended, without repeating or losing an item. Once the file is there, the call
        reads it. A few items are embedded again in either case, so that pieces of another model are noticed.

        Args:
            model: maps a batch of images to embeddings ``(B, J)``; in evaluation mode.
            dataset: items ``(image, label)`` or ``(image, label, boxes)``, the same at every reading.
            path: a file to make, ``.safetensors``.
            class_names: C names; those of the dataset (``class_names`` or ``classes``) by default.
            batch_size: items a batch.
            num_workers: processes that read.
            device: where model and bank are; that of the model's parameters by default.
            on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read: they are counted in a warning and
                named in ``bank.skipped``, and ``bank.items`` says which item a row is of.
            save_every: batches between two pieces.
            progress: show a progress bar.
            options: ``k``, ``temperature``, ``similarity``, ``neighbors`` and ``backend`` of the class.

        Raises:
            ValueError: for a model in training mode, NaN or inf in an embedding, or a file of another model or data.

        Example:
            >>> bank = MemoryBank.from_dataset(model.eval(), ImageFolder("train", preprocess), "bank.safetensors")
        """
        path = None if path is None else Path(path)
        if device is None and isinstance(model, nn.Module):
            device = next((parameter.device for parameter in model.parameters()), None)
        stored = files.embed_dataset(
            model,
            dataset,
            path,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            on_error=on_error,
            save_every=save_every,
            progress=progress,
        )
        names = class_names or getattr(dataset, "class_names", None) or getattr(dataset, "classes", None)
        bank = cls._from_stored(stored, {**options, **({"class_names": names} if names else {})})
        if path is not None and not path.is_file():
            bank.save(path)
            shutil.rmtree(files.piece_folder(path))
        if bank.skipped:
            index, reason = next(iter(bank.skipped.items()))
            warnings.warn(
                f"left out of the bank, because they could not be read: {len(bank.skipped)}, the first is item "
                f"{index}: {reason}",
                stacklevel=2,
            )
        return bank.to(device)

    def save(self, path: str | Path) -> None:
        """Write rows and settings to a ``.safetensors`` file, all of it or nothing.

        A similarity that was given as an object is not saved; :meth:`load` takes it again.
        """
        settings = {
            "class_names": self.class_names,
            "k": self.k,
            "temperature": self.temperature,
            "similarity": self.similarity_name,
            "neighbors": self.neighbors,
        }
        tensors = {"embeddings": self.embeddings, "labels": self.labels, "items": self.items}
        files.write(Path(path), files.Stored(tensors, {"settings": settings, "skipped": self.skipped}))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu", **options: Any) -> MemoryBank:
        """Read a bank that :meth:`save` or :meth:`from_dataset` wrote.

        Args:
            path: the file.
            device: where to put it.
            options: settings that replace those of the file, as for the class.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is broken or no memory bank.
        """
        return cls._from_stored(files.read(Path(path)), options).to(device)

    @classmethod
    def _from_stored(cls, stored: files.Stored, options: dict[str, Any]) -> MemoryBank:
        settings = {**stored.metadata.get("settings", {}), **options}
        if "similarity" in settings and settings["similarity"] is None:
            raise ValueError("similarity was an object when the bank was saved; pass it again: similarity=...")
        bank = cls(**{**stored.tensors, **settings})
        bank.skipped = {int(item): reason for item, reason in stored.metadata["skipped"].items()}
        return bank

    def _votes(self, similarities: Tensor) -> Tensor:
        """Weights exp(s / temperature) that sum to one, ``(B, K)``."""
        # Taking off the largest first keeps what a small temperature divides from overflowing.
        return ((similarities - similarities.amax(1, keepdim=True)) / self.temperature).softmax(1)

    def _rounding(self, query: Tensor, similarities: Tensor, indices: Tensor) -> Tensor:
        """Relative error of each query's votes, ``(B, 1)``, at most 1/2: a vote is never lost altogether."""
        nearest = self.embeddings[indices[:, :1]].to(query.dtype)
        magnitude = self.similarity.magnitude(query, nearest, similarities[:, :1])
        return (F.rounding_of_supports(query.shape[1], query.dtype) * magnitude / self.temperature).clamp_max(0.5)

    def _search(self, query: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """The K most similar rows but those excluded: similarities and indices, ``(B, K)``."""
        if self.backend == "faiss":
            return self._search_faiss(query, exclude)
        count = len(self) if exclude is None else len(self) - exclude.shape[1]
        return self._nearest(query, min(self.k, count), None, exclude)

    def _nearest(
        self, query: Tensor, k: int, rows: Tensor | None, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k most similar of ``rows``, or of the whole bank, by blocks."""
        best = query.new_empty(len(query), 0)
        indices = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        step = self._step(len(query))
        for start in range(0, len(self) if rows is None else len(rows), step):
            block = slice(start, start + step) if rows is None else rows[start : start + step]
            scores = self.similarity.score(*F.common_precision(query, self.embeddings[block]))
            if exclude is not None:
                _leave_out(scores, exclude - start)
            top, at = scores.topk(min(k, scores.shape[1]))
            best, indices = torch.cat([best, top], 1), torch.cat([indices, at + start], 1)
            best, order = best.topk(min(k, best.shape[1]))
            indices = indices.gather(1, order)
        return best, indices if rows is None else rows[indices]

    def _search_faiss(self, query: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        n_excluded = 0 if exclude is None else exclude.shape[1]
        cosine = isinstance(self.similarity, Cosine)
        wanted = F.unit(query) if cosine else query
        found, at = self._faiss_index().search(wanted.float().cpu().numpy(), min(self.k + n_excluded, len(self)))
        similarities, indices = torch.from_numpy(found).to(query), torch.from_numpy(at).to(query.device)
        similarities = F.within_one(similarities) if cosine else similarities
        if exclude is not None:
            similarities[(indices.unsqueeze(2) == exclude.unsqueeze(1)).any(2)] = -torch.inf
        similarities, order = similarities.topk(min(self.k, len(self) - n_excluded))
        return similarities, indices.gather(1, order)

    def _faiss_index(self) -> Any:
        if "flat" not in self._indexes:
            try:
                import faiss
            except ImportError as error:
                raise ImportError('backend="faiss" needs FAISS: pip install "captum-fam[faiss]"') from error
            index = faiss.IndexFlatIP(self.embeddings.shape[1])
            for block in self.embeddings.split(self._step(0)):
                rows = F.unit(F.widen(block)) if isinstance(self.similarity, Cosine) else block
                index.add(rows.float().cpu().numpy())
            self._indexes["flat"] = index
        return self._indexes["flat"]

    def _rows_of_class(self, label: int, query: Tensor, exclude: Tensor | None) -> Tensor:
        rows = (self.labels == label).nonzero().squeeze(1)
        if exclude is not None:
            rows = rows[~torch.isin(rows, exclude)]
        if not len(rows):
            raise ValueError(f"support: the bank has no row of class {self._name(label)} left to compare with")
        if self.neighbors == "whole-class":
            return rows
        return self._nearest(query, min(self.k, len(rows)), rows)[1][0]

    def _step(self, n_queries: int) -> int:
        """Rows a block: their similarities, and a copy of them in float32 and one rescaled."""
        return max(1, _STEP_BYTES // (4 * (n_queries + 2 * self.embeddings.shape[1])))

    def _name(self, label: int) -> str:
        return self.class_names[label] if 0 <= label < self.n_classes else str(label)

    def _check_options(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if not self.temperature >= _LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be positive, {_LEAST_TEMPERATURE} at least, got {self.temperature}")
        if self.neighbors not in get_args(Neighbors):
            raise ValueError(f"neighbors must be one of {', '.join(get_args(Neighbors))}, got {self.neighbors!r}")
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {self.backend!r}")
        if self.backend == "faiss" and not isinstance(self.similarity, Cosine | Dot):
            raise ValueError(f'backend="faiss" finds by cosine or dot, not by {self.similarity}; use backend="torch"')

    def _check_query(self, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """The query in the precision of the search, and the excluded rows, ``(B, E)``."""
        if query.dim() != 2 or not len(query):
            raise ValueError(f"query must be embeddings (B, J) of at least one query, got shape {tuple(query.shape)}")
        check_embedding_sizes(query, self.embeddings, "the memory bank")
        if not query.isfinite().all():
            raise ValueError("query contains NaN or inf")
        query = F.widen(query.detach())
        if self.exclude is None:
            return query, None
        exclude = self.exclude.reshape(len(self.exclude), -1)
        if len(exclude) != len(query):
            raise ValueError(f"exclude is for {len(exclude)} queries but there are {len(query)}; set it for each batch")
        if exclude.min() < 0 or exclude.max() >= len(self):
            raise ValueError(f"exclude must hold rows 0..{len(self) - 1}, got {exclude.min()}..{exclude.max()}")
        if exclude.shape[1] >= len(self):
            raise ValueError(f"exclude leaves nothing of the {len(self)} rows")
        return query, exclude

    def _check_members(self, member: Tensor, classes: Tensor) -> None:
        empty = (~member.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"support: none of the {member.shape[1]} nearest rows of query {empty[0]} is of class "
                f'{self._name(int(classes[empty[0]]))}; use neighbors="within-class", or a larger k'
            )


def _leave_out(scores: Tensor, columns: Tensor) -> None:
    """Set those of the columns ``(B, E)`` that exist in ``scores`` to -inf."""
    query, which = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
    scores[query, columns[query, which]] = -torch.inf


def _whole_numbers(name: str, values: Tensor | Sequence[int], embeddings: Tensor) -> Tensor:
    """One whole number a row, not negative, as int64 beside the embeddings."""
    tensor = torch.as_tensor(values, device=embeddings.device)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {tensor.dtype}")
    if tuple(tensor.shape) != (len(embeddings),):
        raise ValueError(
            f"{name} must have one entry a row: got shape {tuple(tensor.shape)} for {len(embeddings)} rows"
        )
    if tensor.min() < 0:
        raise ValueError(f"{name} must not be negative, got {int(tensor.min())}")
    return tensor.long()
