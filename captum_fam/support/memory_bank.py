"""Nearest neighbors in a labeled bank of embeddings: exact, in bounded memory, and as supports."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam.embedding import OnError
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support.bank_file import StoredBank, make_bank, read_bank, unfinished_folder, write_bank
from captum_fam.support.base import Support
from captum_fam.support.checks import check_embedding_sizes, check_exclusion, whole_numbers
from captum_fam.support.comparison import Comparison, select_class
from captum_fam.support.members import Members
from captum_fam.support.neighbor_rules import RULES, Candidates, NeighborRule
from captum_fam.support.rows import BankRows
from captum_fam.support.search import Backend, ExactSearch
from captum_fam.support.vote import LEAST_TEMPERATURE, Vote, vote_weights

_STEP_QUERIES = 256


class MemoryBank(Support):
    """A labeled bank of embeddings that classifies by its K nearest rows, and lends them as supports.

    Every row within the K most similar votes for its class with the weight exp(s / temperature) (Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"). The search is exact and goes through
    the bank block by block.

    ``LayerFAM.attribute(x, support=bank)`` explains the predicted class, with ``target`` any other. Which rows are
    the K images of that class in Eq. 11 is not settled by the paper; ``neighbors`` chooses:

    ==================  ========================================================  ======================
    ``neighbors``       rows                                                      weight
    ==================  ========================================================  ======================
    ``"predicted"``     those of the class among the K nearest (default)          equal
    ``"vote"``          those of the class among the K nearest                    as they vote
    ``"all"``           all of the K nearest, whatever their class                equal
    ``"nearest"``       the nearest, whatever its class                           one
    ``"within-class"``  the K nearest of the class, from the whole bank           equal
    ``"whole-class"``   all of the class                                          equal
    ==================  ========================================================  ======================

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

    similarity: Similarity

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor | Sequence[int],
        class_names: Sequence[str] | None = None,
        k: int = 200,
        temperature: float = 0.07,
        similarity: SimilarityLike = "cosine",
        neighbors: NeighborRule = "predicted",
        backend: Backend = "torch",
        items: Tensor | Sequence[int] | None = None,
    ) -> None:
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            kind = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise TypeError(f"embeddings must be a floating-point tensor (M, J), got {kind}")
        if embeddings.dim() != 2 or not embeddings.numel():
            raise ValueError(f"embeddings must be (M, J) with at least one row, got shape {tuple(embeddings.shape)}")
        self.embeddings = embeddings.detach()
        self.labels = whole_numbers("labels", labels, embeddings)
        self.items = whole_numbers("items", range(len(embeddings)) if items is None else items, embeddings)
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
        self._every_class = False
        # Shared by all that read the same rows in another way.
        self._rows = ExactSearch(self.embeddings, self.similarity, backend)
        self._check_options()
        self._rows.check_finite()

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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MemoryBank:
        """The bank on another device, or with embeddings of another floating-point type."""
        other = copy.copy(self)
        other.embeddings = self.embeddings.to(device=device, dtype=dtype)
        device = other.embeddings.device
        other.labels, other.items = self.labels.to(device), self.items.to(device)
        other.similarity = copy.deepcopy(self.similarity).to(device)
        other.exclude = None if self.exclude is None else self.exclude.to(device)
        other._rows = ExactSearch(other.embeddings, other.similarity, self.backend)
        return other

    def using(
        self,
        *,
        k: int | None = None,
        temperature: float | None = None,
        neighbors: NeighborRule | None = None,
        exclude: Tensor | Sequence[int] | None = None,
    ) -> MemoryBank:
        """The same rows, read in another way; nothing is copied.

        Args:
            k: neighbors that vote. Default: those of this bank.
            temperature: of the vote. Default: that of this bank.
            neighbors: the rule. Default: that of this bank.
            exclude: rows that are no neighbors of a query, one ``(B,)`` or several ``(B, E)`` for each: leave-one-out
                where the queries are in the bank. It belongs to one batch of queries. Default: no exclusion.

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
                self._rows.search(some, self.k, None if exclude is None else exclude[start : start + _STEP_QUERIES])
                for start, some in zip(range(0, len(query), _STEP_QUERIES), query.split(_STEP_QUERIES), strict=True)
            ]
            similarities, indices = (torch.cat(pieces) for pieces in zip(*found, strict=True))
            if not similarities.isfinite().all():
                raise ValueError(
                    "query: its similarity to rows of the memory bank is NaN or inf; rescale the embeddings of both"
                )
            votes = vote_weights(similarities, self.temperature)
            scores = votes.new_zeros(len(query), self.n_classes).scatter_add_(1, self.labels[indices], votes)
            noise = self._rounding(query, similarities, indices) * scores
            return Vote(F.first_largest(scores, noise), scores, indices, similarities)

    def support(self, query: Tensor, target: Tensor | None = None, vote: Vote | None = None) -> BankRows:
        """The rows that stand for a class in Eq. 11, after ``neighbors``, and their weights.

        Args:
            query: embeddings ``(B, J)``.
            target: the class of each query, ``(B,)``; default: the predicted one.
            vote: what :meth:`classify` gave for these queries, where it is at hand.

        Raises:
            ValueError: if a query has no row of its class to be compared with.
        """
        vote = self.classify(query) if vote is None else vote
        classes = vote.predicted if target is None else target
        with plain_arithmetic(query.device):
            indices, members = self._choose(query, vote, classes)
            return BankRows(self.embeddings, indices, members.weights(classes))

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query with the rows that stand for its class, after ``neighbors``.

        The predicted class is that of the vote. A class without a row among them has the score -inf.

        Raises:
            ValueError: for queries or a similarity that do not fit the bank.
        """
        measure = self.measure(similarity)
        vote = self.classify(query)
        with plain_arithmetic(query.device):
            classes = select_class(target, vote.predicted, self.n_classes)
            indices, members = self._choose(query, vote, classes)
            rows = BankRows(self.embeddings, indices, members.weights(classes))
        return Comparison(query, rows, members, measure, self.class_names, target, vote.predicted)

    @property
    def class_counts(self) -> list[int]:
        counts: list[int] = self.labels.bincount(minlength=self.n_classes).tolist()
        return counts

    @property
    def per_query(self) -> bool:
        """Whether rows are left out for each query."""
        return self.exclude is not None

    def for_queries(self, start: int, stop: int) -> MemoryBank:
        """The bank for the queries ``start`` to ``stop - 1``, with the rows that are left out for these."""
        return self if self.exclude is None else self.using(exclude=self.exclude[start:stop])

    def for_every_class(self) -> MemoryBank:
        """The same bank, choosing rows of every class where ``neighbors`` chooses those of one."""
        other = copy.copy(self)
        other._every_class = True
        return other

    def _choose(self, query: Tensor, vote: Vote, classes: Tensor) -> tuple[Tensor, Members]:
        """The rows for each query, ``(B, K)``, and which of them stand for which class."""
        query, exclude = self._check_query(query)
        candidates = Candidates(
            query,
            vote.neighbor_indices,
            vote.similarities,
            classes,
            self._every_class,
            self.labels,
            self.class_names,
            self.k,
            self.temperature,
            exclude,
            self._rows,
        )
        return RULES[self.neighbors](candidates)

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
        """Embed a labeled data set, one row per item.

        With a ``path`` the work survives its process: rows are stored beside the file while the work goes on, and the
        same call goes on where the work ended, without repeating or losing an item. Once the file is there, the call
        reads it. A few items are embedded again in either case, so that rows of another model are noticed.

        Args:
            model: maps a batch of images to embeddings ``(B, J)``; in evaluation mode.
            dataset: items ``(image, label)`` or ``(image, label, boxes)``, the same at every reading.
            path: a file to make, ``.safetensors``.
            class_names: C names; those of the dataset (``class_names`` or ``classes``) by default.
            batch_size: items per batch.
            num_workers: processes that read.
            device: where model and bank are; that of the model's parameters by default.
            on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read: they are counted in a warning and
                named in ``bank.skipped``, and ``bank.items`` says which item a row is of.
            save_every: batches between two writes.
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
        stored = make_bank(
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
            shutil.rmtree(unfinished_folder(path))
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
        write_bank(Path(path), StoredBank(tensors, {"settings": settings, "skipped": self.skipped}))

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
        return cls._from_stored(read_bank(Path(path)), options).to(device)

    @classmethod
    def _from_stored(cls, stored: StoredBank, options: dict[str, Any]) -> MemoryBank:
        settings = {**stored.metadata.get("settings", {}), **options}
        if "similarity" in settings and settings["similarity"] is None:
            raise ValueError("similarity was an object when the bank was saved; pass it again: similarity=...")
        bank = cls(**{**stored.tensors, **settings})
        bank.skipped = {int(item): reason for item, reason in stored.metadata["skipped"].items()}
        return bank

    def _rounding(self, query: Tensor, similarities: Tensor, indices: Tensor) -> Tensor:
        """Relative error of each query's votes, ``(B, 1)``, at most 1/2: a vote is never lost altogether."""
        nearest = self.embeddings[indices[:, :1]].to(query.dtype)
        magnitude = self.similarity.magnitude(query, nearest, similarities[:, :1])
        return (F.rounding_of_supports(query.shape[1], query.dtype) * magnitude / self.temperature).clamp_max(0.5)

    def _check_options(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if not self.temperature >= LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be positive, {LEAST_TEMPERATURE} at least, got {self.temperature}")
        if self.neighbors not in get_args(NeighborRule):
            raise ValueError(f"neighbors must be one of {', '.join(get_args(NeighborRule))}, got {self.neighbors!r}")

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
        return query, check_exclusion(self.exclude, len(query), len(self))
