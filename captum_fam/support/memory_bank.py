"""Classification by the nearest rows of a labeled bank of embeddings, and these rows as supports."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam._text import printable
from captum_fam.embedding import OnError
from captum_fam.embedding.ranks import Ranks, every_rank
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support.bank_file import StoredBank, read_bank, write_bank
from captum_fam.support.bank_making import BankMaker, split_options, stored_rows, unfinished_folder, warn_of_skipped
from captum_fam.support.base import Support
from captum_fam.support.checks import (
    as_exclusion,
    check_embedding_sizes,
    check_exclusion,
    check_query,
    count_excluded,
    whole_number,
    whole_numbers,
)
from captum_fam.support.comparison import Comparison
from captum_fam.support.gallery_rows import RowSums, TensorRows, sum_of_rows
from captum_fam.support.labels import Labels, encode_labels, plain_value
from captum_fam.support.members import Members
from captum_fam.support.neighbor_rules import RULES, Candidates, NeighborRule
from captum_fam.support.rows import BankRows
from captum_fam.support.search import Backend, ExactSearch
from captum_fam.support.target import select_class
from captum_fam.support.vote import LEAST_TEMPERATURE, Vote, vote_weights


class MemoryBank(Support):
    """A labeled bank of embeddings. It classifies a query by its K nearest rows, and these rows are the supports.

    Each of the K most similar rows votes for its class with the weight exp(s / temperature) (Wu et al., "Unsupervised
    Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018). The search is exact, and goes through the
    bank block by block, so that it needs little memory.

    ``LayerFAM.attribute(x, support=bank)`` explains the predicted class; ``target`` selects another class. The paper
    does not say which rows are the K images of the class in Eq. 11. ``neighbors`` chooses them:

    ==================  ========================================================  ======================
    ``neighbors``       rows                                                      weights
    ==================  ========================================================  ======================
    ``"predicted"``     rows of the class among the K nearest rows (default)      equal
    ``"vote"``          rows of the class among the K nearest rows                weights of their votes
    ``"all"``           the K nearest rows of any class                           equal
    ``"nearest"``       the nearest row of any class                              1
    ``"within-class"``  the K nearest rows of the class, from the whole bank      equal
    ``"whole-class"``   all rows of the class                                     equal
    ==================  ========================================================  ======================

    A bank never changes: :meth:`to` and :meth:`using` return a new bank.

    Args:
        embeddings: ``(M, J)``, any floating-point type; half precision is computed in float32.
        labels: the class of each row, ``(M,)``: names, or whole numbers of any type and size, such as identity numbers,
            as a list, a tensor or an array. The classes are the different labels in ascending order. With
            ``class_names``, whole numbers are indices of the names.
        class_names: C names in the order of the class indices; a class may have no row. Default: the different labels
            in ascending order, as texts.
        k: how many rows vote; all rows vote if the bank has fewer. Default: 200.
        temperature: the temperature of the votes, at least 1e-37. With a smaller temperature, the nearest of the K rows
            have a larger share of the votes. Default: 0.07.
        similarity: the similarity that the model decides with; it must equal that of the explaining method. Default:
            ``"cosine"``.
        neighbors: the rule that chooses the supports, one of the table above. Default: ``"predicted"``.
        backend: ``"torch"``, or ``"faiss"`` for a flat FAISS index on the CPU, which gives the same results, keeps a
            copy of the bank, and knows cosine and dot only. Default: ``"torch"``.
        items: the position of each row in the data set that the bank was made from, ``(M,)`` ascending. Default:
            0..M-1.

    Attributes:
        embeddings: ``(M, J)``.
        labels: the class index of each row, int64 ``(M,)``. Votes and targets are class indices too: the name of class
            c is ``class_names[c]``.
        items: int64 ``(M,)``.
        skipped: the items of the data set that could not be read and have no row, with the reason.
        weights: SHA-256 of the weights of the model that :meth:`from_dataset` made the rows with; None if it is not
            known.

    Raises:
        TypeError: if ``embeddings`` is no floating-point tensor, ``labels`` are neither whole numbers nor names,
            ``k`` is no whole number, or ``temperature`` no number.
        ValueError: for an empty bank, NaN or inf, labels, names or items that do not fit, or an unknown option.

    Example:
        >>> bank = MemoryBank(torch.eye(3), [0, 1, 1], k=2)
        >>> bank.classify(torch.tensor([[0.0, 1.0, 0.9]])).predicted
        tensor([1])
        >>> bank = MemoryBank(torch.eye(3), [77, 10_000_000, 10_000_000], k=2)  # identity numbers
        >>> bank.class_names, bank.classify(torch.tensor([[0.0, 1.0, 0.9]])).predicted
        (('77', '10000000'), tensor([1]))
    """

    forms_gallery = True
    similarity: Similarity

    def __init__(
        self,
        embeddings: Tensor,
        labels: Labels,
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
        indices, self.class_names = encode_labels(labels, class_names, len(embeddings))
        self.labels = indices.to(embeddings.device)
        self.items = whole_numbers("items", range(len(embeddings)) if items is None else items, embeddings)
        if not (self.items.diff() > 0).all():
            raise ValueError("items must be ascending")
        self.similarity = get_similarity(similarity)
        self.similarity_name = similarity if isinstance(similarity, str) else None
        self.k = k
        self.temperature = temperature
        self.neighbors = neighbors
        self.backend = backend
        self.exclude: Tensor | None = None
        self.skipped: dict[int, str] = {}
        self.weights: str | None = None
        self._every_class = False
        # `using` and `for_queries` return copies that share the search and the sums.
        self._rows = ExactSearch(self.embeddings, self.labels, self.similarity, backend)
        self._sums = RowSums(partial(sum_of_rows, self.embeddings), self.embeddings)
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
        # Captum deep-copies keyword arguments. A bank never changes, so that a copy would only cost memory.
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MemoryBank:
        """Move the bank to another device, or convert its embeddings to another floating-point type.

        Args:
            device: the device. Default: None, the device of this bank.
            dtype: the dtype of the embeddings. Default: None, the dtype of this bank.

        Returns:
            A new bank.
        """
        moved = copy.copy(self)
        moved.embeddings = self.embeddings.to(device=device, dtype=dtype)
        place = moved.embeddings.device
        moved.labels, moved.items = self.labels.to(place), self.items.to(place)
        moved.similarity = copy.deepcopy(self.similarity).to(place)
        moved.exclude = None if self.exclude is None else self.exclude.to(place)
        moved._rows = ExactSearch(moved.embeddings, moved.labels, moved.similarity, self.backend)
        moved._sums = RowSums(partial(sum_of_rows, moved.embeddings), moved.embeddings)
        return moved

    def using(
        self,
        *,
        k: int | None = None,
        temperature: float | None = None,
        neighbors: NeighborRule | None = None,
        exclude: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> MemoryBank:
        """A bank with the same rows and other options; the rows are shared, not copied.

        Args:
            k: how many rows vote. Default: None, the number of this bank.
            temperature: the temperature of the votes. Default: None, the temperature of this bank.
            neighbors: the rule that chooses the supports. Default: None, the rule of this bank.
            exclude: rows that are left out for each query, ``(B,)`` or ``(B, E)`` or lists of different lengths, for
                example the row of the query itself if the query is in the bank; -1 leaves nothing out. The new bank
                fits this batch of queries only. Default: None, no row is left out.

        Returns:
            A new bank.

        Raises:
            TypeError: for a ``k``, or rows to exclude, that are no whole numbers.
            ValueError: for an option out of range.

        Example:
            >>> attributions = fam.attribute(images, support=bank.using(exclude=rows_of_the_images))
        """
        bank = copy.copy(self)
        bank.k = self.k if k is None else k
        bank.temperature = self.temperature if temperature is None else temperature
        bank.neighbors = self.neighbors if neighbors is None else neighbors
        bank.exclude = None if exclude is None else as_exclusion(exclude, self.labels.device)
        bank._check_options()
        return bank

    def classify(self, query: Tensor) -> Vote:
        """Find the K nearest rows of each query and count their votes.

        Args:
            query: embeddings ``(B, J)``, on the bank's device.

        Returns:
            The predicted class, the share of the votes of each class, and the K nearest rows.

        Raises:
            ValueError: if the queries do not fit the bank or hold NaN or inf, or all rows are excluded.
        """
        query, exclude = self._check_query(query)
        # A query for which more rows are left out than for others is filled up, see ExactSearch.search.
        k = self.k if exclude is None else min(self.k, len(self) - int(count_excluded(exclude).min()))
        with plain_arithmetic(query.device):
            similarities, indices = self._rows.search(query, k, exclude)
            finite = similarities.isfinite()
            if exclude is not None:
                finite |= (indices.unsqueeze(2) == exclude.unsqueeze(1)).any(2)
            if not finite.all():
                raise ValueError(
                    "query: its similarity to rows of the memory bank is NaN or inf; rescale the embeddings of both"
                )
            votes = vote_weights(similarities, self.temperature)
            scores = votes.new_zeros(len(query), self.n_classes).scatter_add_(1, self.labels[indices], votes)
            noise = self._rounding(query, similarities, indices) * scores
            return Vote(F.first_largest(scores, noise), scores, indices, similarities)

    def support(self, query: Tensor, target: Tensor | None = None, vote: Vote | None = None) -> BankRows:
        """The rows that are the supports of a class in Eq. 11 by the rule ``neighbors``, and their weights.

        Args:
            query: embeddings ``(B, J)``.
            target: the class of each query, ``(B,)``. Default: None, the predicted class.
            vote: the result of :meth:`classify` for these queries, if it is known. Default: None, computed here.

        Returns:
            Rows and weights per query.

        Raises:
            ValueError: if the rule finds no row of the class of a query.
        """
        vote = self.classify(query) if vote is None else vote
        classes = vote.predicted if target is None else target
        with plain_arithmetic(query.device):
            indices, members = self._choose(query, vote, classes)
            return BankRows(self.embeddings, indices, members.weights(classes))

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query with the rows that the rule ``neighbors`` chooses for its class.

        The predicted class is the class with the most votes. A class without a chosen row has the score -inf.

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
        """Whether rows are left out for each query, so that the bank fits one batch of queries only."""
        return self.exclude is not None

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        if self.exclude is not None:
            check_exclusion(self.exclude, len(inputs[0]), len(self))

    def for_queries(self, start: int, stop: int) -> MemoryBank:
        """The bank with the rows that are left out for the queries ``start`` to ``stop - 1``."""
        return self if self.exclude is None else self.using(exclude=self.exclude[start:stop])

    def gallery_rows(self) -> TensorRows:
        """All rows as the rows of a gallery, without those that are left out for a query."""
        return TensorRows(self.embeddings, self.exclude, self._sums)

    def for_every_class(self) -> MemoryBank:
        """The same bank with rows of every class as supports, where ``neighbors`` chooses rows of one class."""
        bank = copy.copy(self)
        bank._every_class = True
        return bank

    def _choose(self, query: Tensor, vote: Vote, classes: Tensor) -> tuple[Tensor, Members]:
        """Apply the rule ``neighbors``: the rows of each query, ``(B, K)``, and their weights per class."""
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
        model: Any,
        dataset: Any,
        path: str | Path | None = None,
        *,
        preprocess: Callable[[Any], Tensor] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        device: torch.device | str | None = None,
        on_error: OnError = "raise",
        save_every: int = 16,
        progress: bool = True,
        **options: Any,
    ) -> MemoryBank:
        """Embed a labeled data set, one row per item.

        With a ``path``, an interrupted call can be repeated: finished rows are stored beside the file, and the next
        call continues behind them. If the file is complete already, the call reads it. In both cases a few items are
        embedded again, so that stored rows of another model or data set are refused.

        Processes that torchrun has started, or that have joined a process group of PyTorch, share the batches, and each
        gets the whole bank. Its rows are those of a single process. All of them must make the call; with a ``path``,
        they need a common file system. A bank that is too large for one machine is a
        :class:`~captum_fam.support.ShardedMemoryBank`.

        Args:
            model: maps a batch of images to embeddings ``(B, J)``, in evaluation mode; or all that
                :func:`~captum_fam.models.create_model` takes, such as an ``EmbeddingModel``.
            dataset: labeled images, the same at every reading:

                * a folder with one folder of images per class;
                * a data set of items ``(image, label)`` or ``(image, label, boxes)``, or of dictionaries, such as a
                  data set of Hugging Face;
                * a ``DataLoader``. All items of its data set are read in the order of the data set, by its collate
                  function one by one, also if the loader shuffles.

                An image is a tensor ``(C, H, W)``, an image of PIL, an array or a path. A label is a whole number or a
                name.
            path: the file to write, ``.safetensors``. Default: None, no file.
            preprocess: makes the input ``(C, H, W)`` of the model from an image. Default: None, the preprocessing of an
                ``EmbeddingModel``, or that found for the model; images that are tensors stay as they are.
            image_key: the key of the image, if items are dictionaries. Default: None, ``"pixel_values"``, ``"image"``
                or ``"img"``.
            label_key: the key of the label. Default: None, ``"label"``, ``"labels"`` or ``"target"``.
            class_names: C names. Default: None, those that the data set, or the data set behind a subset, has as
                ``class_names`` or ``classes``; else the different labels. If labels are names and no list of them is
                known, the data set is read twice.
            batch_size: items per batch. Default: None, that of a ``DataLoader``, else 64.
            num_workers: processes that read images. Default: None, that of a ``DataLoader``, else 0, this process.
            device: the device of model and bank. Default: None, the device of the model's parameters.
            on_error: ``"raise"``, or ``"skip"`` items whose image cannot be read: a warning counts them, and
                ``bank.skipped`` names them. ``bank.items`` gives the item of each row. Default: ``"raise"``.
            save_every: how many batches are written to disk at once. Default: 16.
            progress: whether to show a progress bar. Default: True.
            options: ``k``, ``temperature``, ``similarity``, ``neighbors`` and ``backend`` of the class. The default of
                ``similarity`` is that of an ``EmbeddingModel``.

        Returns:
            The bank, on ``device``.

        Raises:
            TypeError: for a model or a data set of another kind.
            ValueError: for a model in training mode, NaN or inf in an embedding, a data set without a usable item,
                items without image or label, or stored rows of another model or data set.
            ModuleNotFoundError: if ``path`` is given and safetensors is not installed.
            OSError: if the rows cannot be written.

        Example:
            >>> bank = MemoryBank.from_dataset(model.eval(), ImageFolder("train", preprocess), "bank.safetensors")
        """
        making = {
            "preprocess": preprocess,
            "image_key": image_key,
            "label_key": label_key,
            "class_names": class_names,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "device": device,
            "on_error": on_error,
            "save_every": save_every,
            "progress": progress,
        }
        maker, options = split_options(model, dataset, {**making, **options})
        with every_rank(maker.device) as ranks:
            bank = cls._make(maker, None if path is None else Path(path), ranks, options)
        if ranks.is_first:
            warn_of_skipped(bank.skipped, 1)
        return bank.to(maker.device)

    @classmethod
    def _make(cls, maker: BankMaker, path: Path | None, ranks: Ranks, options: dict[str, Any]) -> MemoryBank:
        """Read the finished bank, or finish it, together with the other processes."""
        # The file that the first process finds: a file that appears later must not divide the processes.
        if ranks.gather(path is not None and path.is_file())[0]:
            assert path is not None
            stored = read_bank(path)
            maker.check_finished(str(path), stored, len(stored.tensors["items"]) + len(stored.skipped))
            return cls._from_stored(stored, options)
        folder = None if path is None else unfinished_folder(path)
        embedder = maker.embedder(folder, ranks)
        embedder.check_stored("embeddings")
        bank = cls._from_stored(stored_rows(embedder.run()), options)
        bank.weights = maker.weights
        if path is not None:
            ranks.wait()  # until all have read the rows
            ranks.only_first(lambda: bank._save_finished(path))
        return bank

    def _save_finished(self, path: Path) -> None:
        self.save(path)
        shutil.rmtree(unfinished_folder(path))

    def save(self, path: str | Path) -> None:
        """Write rows and options to a ``.safetensors`` file, completely or not at all.

        A similarity that was given as a name is saved. A similarity that was given as an object is not: pass it to
        :meth:`load` again.

        Args:
            path: the file.

        Raises:
            ModuleNotFoundError: if safetensors is not installed.
            ValueError: if the class names are too long for a file.
            OSError: if the file cannot be written.
        """
        settings = {
            "class_names": self.class_names,
            "k": self.k,
            "temperature": self.temperature,
            "similarity": self.similarity_name,
            "neighbors": self.neighbors,
            "weights": self.weights,
        }
        tensors = {"embeddings": self.embeddings, "labels": self.labels, "items": self.items}
        write_bank(Path(path), StoredBank(tensors, settings, self.skipped))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu", **options: Any) -> MemoryBank:
        """Read a bank that :meth:`save` or :meth:`from_dataset` wrote.

        Args:
            path: the file.
            device: the device of the bank. Default: ``"cpu"``.
            options: arguments of the class, which replace the options in the file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is broken or no memory bank, or its similarity was an object and is not passed here.
            ModuleNotFoundError: if safetensors is not installed.
        """
        stored = read_bank(Path(path))
        try:
            return cls._from_stored(stored, options).to(device)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_stored(cls, stored: StoredBank, options: dict[str, Any]) -> MemoryBank:
        bank = cls(**stored.arguments(options))
        bank.skipped = dict(stored.skipped)
        bank.weights = stored.settings.get("weights")
        return bank

    def _rounding(self, query: Tensor, similarities: Tensor, indices: Tensor) -> Tensor:
        """Relative rounding error of each query's votes, ``(B, 1)``; at most 1/2, so that votes always count."""
        nearest = self.embeddings[indices[:, :1]].to(query.dtype)
        magnitude = self.similarity.magnitude(query, nearest, similarities[:, :1])
        return (F.rounding_of_supports(query.shape[1], query.dtype) * magnitude / self.temperature).clamp_max(0.5)

    def _check_options(self) -> None:
        self.k = whole_number(self.k, "k")
        self.temperature = plain_value(self.temperature)
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, int | float):
            raise TypeError(f"temperature must be a number, got {printable(self.temperature)}")
        if not self.temperature >= LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be positive, {LEAST_TEMPERATURE} at least, got {self.temperature}")
        if self.neighbors not in get_args(NeighborRule):
            raise ValueError(f"neighbors must be one of {', '.join(get_args(NeighborRule))}, got {self.neighbors!r}")

    def _check_query(self, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """The query in the precision of the search, and the excluded rows, ``(B, E)`` or None."""
        check_query(query)
        check_embedding_sizes(query, self.embeddings, "the memory bank")
        query = F.widen(query.detach())
        if self.exclude is None:
            return query, None
        return query, check_exclusion(self.exclude, len(query), len(self))
