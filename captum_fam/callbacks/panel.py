"""A fixed panel of images, with which a model is looked at again and again while it is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captum_fam._files import sha256_of
from captum_fam._warnings import warn_user
from captum_fam.callbacks.training_state import check_whole, training_paused, without_wrappers
from captum_fam.embedding import Batch, DatasetEmbedder
from captum_fam.embedding.forward import device_of, embed_images
from captum_fam.embedding.labeled_dataset import LabeledDataset, take_loader_apart
from captum_fam.explanation import Explainer, Explanation
from captum_fam.explanation.reading.arguments import for_display
from captum_fam.explanation.reading.methods import check_options, choose_methods, read_methods
from captum_fam.explanation.reading.supports import float_type_of
from captum_fam.explanation.reading.thumbnails import MOST_SHOWN
from captum_fam.functional import check_window
from captum_fam.similarity import SimilarityLike, get_similarity
from captum_fam.support import MemoryBank

if TYPE_CHECKING:
    from captum_fam.visualization import ImageLike, MapFigure


@dataclass(frozen=True, eq=False)
class PanelReading:
    """What a panel says of a model.

    Attributes:
        accuracy: the share of all queries whose class the k-NN decision finds, from 0 to 1.
        explanation: maps, scores and accounts of the queries that are shown.
        supports: for each shown query, the images of the bank that it was compared with, for figures.
        name: the name of the panel.
    """

    accuracy: float
    explanation: Explanation
    supports: tuple[Sequence[Tensor], ...]
    name: str = ""

    def __repr__(self) -> str:
        """Name, numbers and explanation in one line."""
        numbers = ", ".join(f"{name} {number:.4g}" for name, number in self.numbers.items())
        return f"PanelReading({self.name!r}, {numbers}, {self.explanation!r})"

    @property
    def numbers(self) -> dict[str, float]:
        """``knn_accuracy``, and of the shown queries the mean explained score and the mean coverage.

        These are ``panel_score`` and ``panel_coverage``. Methods that give no account of the score have no coverage.
        """
        why = self.explanation
        numbers = {"knn_accuracy": self.accuracy, "panel_score": float(why.target_scores.mean())}
        if why.coverage is not None:
            numbers["panel_coverage"] = float(why.coverage.nanmean())
        return numbers

    def figures(self) -> dict[str, MapFigure]:
        """The figure of each shown query, by the name of the query."""
        shown = enumerate(zip(self.explanation.names, self.supports, strict=True))
        return {name: self.explanation.figure(index, supports) for index, (name, supports) in shown}


class ExplanationPanel:
    """A fixed set of labeled queries, and a fixed labeled bank that they are compared with.

    A call with a model embeds both with the present weights, decides the class of each query by its K nearest images of
    the bank (:class:`~captum_fam.MemoryBank`), and explains a few of the queries. The model may be in the middle of its
    training: the training flag of every submodule, buffers, gradients and random number generators are afterwards what
    they were. No call communicates with other processes. What the user has to know is a warning of the first call, and
    stands in the ``notes`` of every explanation.

    Args:
        queries: labeled images that the model is not trained on: a pair ``(images, labels)`` of inputs ``(n, C, H, W)``
            and n labels; or a labeled data set of any kind that :meth:`MemoryBank.from_dataset
            <captum_fam.MemoryBank.from_dataset>` takes, such as a data set of torchvision, a ``DataLoader`` or a folder
            of class folders.
        bank: labeled images with the same classes, in the same forms. An image of the bank that is a query itself, by
            equal inputs of the model, is left out for this query, and a note says so. So the queries may be the bank.
        shown: which queries get maps: a number of queries, spread evenly over all; or their positions. Default: 8.
        k: how many images of the bank vote. Default: 200, or all of a smaller bank.
        temperature: the temperature of the votes, as for a bank. Default: 0.07.
        similarity: the similarity that decides. Default: ``"cosine"``.
        layer: the layer whose map is made, as for :func:`~captum_fam.explain`. Default: None, a layer is searched for
            in the first call, and kept.
        method: as for explain. Default: None, the exact map with FAM beside it.
        target: the class that is explained: ``"label"``, the class of the query, which stays the same over the
            training; or ``"predicted"``. Default: ``"label"``.
        images: the shown queries for display, as for explain. Default: None, the inputs of the model, scaled to [0, 1].
        names: the names of the shown queries. Default: None, ``query-0`` and so on, by position.
        preprocess: makes the input of the model from an image of PIL, for data sets that give such images. Default:
            None, the data sets give tensors.
        batch_size: images per pass through the model. Default: None, that of a ``DataLoader``, else 64.
        num_workers: processes that read the data sets. Default: None, that of a ``DataLoader``, else 0.
        name: stands before tags and names of files, for several panels of one run. Default: empty.
        **options: further arguments of explain, such as ``foil="others"``.

    Raises:
        TypeError, ValueError: for data sets of another kind, images without labels, queries of a class that the bank
            does not have, numbers that are out of range, or an argument that explain does not have.

    Example:
        >>> panel = ExplanationPanel((queries, labels), (images, labels), shown=2, k=3, layer="layer4")
        >>> reading = panel(model)
        >>> 0 <= reading.accuracy <= 1, list(reading.figures())
        (True, ['query-0', 'query-7'])
    """

    def __init__(
        self,
        queries: Any,
        bank: Any,
        *,
        shown: int | Sequence[int] = 8,
        k: int = 200,
        temperature: float = 0.07,
        similarity: SimilarityLike = "cosine",
        layer: nn.Module | str | None = None,
        method: Any = None,
        target: Literal["label", "predicted"] = "label",
        images: Sequence[ImageLike] | Tensor | None = None,
        names: Sequence[str] | None = None,
        preprocess: Callable[[Any], Tensor] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        name: str = "",
        **options: Any,
    ) -> None:
        if target not in ("label", "predicted"):
            raise ValueError(f'target must be "label" or "predicted", got {target!r}')
        self.name = name
        self.layer = layer
        with training_paused():  # the first item of a data set is read, and may draw random numbers
            self._queries = _Images(queries, "queries", preprocess, batch_size, num_workers)
            self._bank = _Images(bank, "bank", preprocess, batch_size, num_workers)
        if self._queries.labels is not None and self._bank.labels is not None:
            _check_classes(self._names_of(self._queries.labels), self._names_of(self._bank.labels, self._bank))
        self._voting: dict[str, Any] = {"k": k, "temperature": temperature, "similarity": similarity}
        MemoryBank(torch.ones(1, 1), [0], **self._voting)  # raises the errors of a bank before hours of training
        _check_explained(method, similarity, layer, options)
        self._target = target
        self._shown = _positions(shown, len(self._queries.dataset))
        self._names = [f"query-{position}" for position in self._shown] if names is None else names
        self._images = images
        self._options = {"method": method, **options}
        self._has_noted = False

    def __call__(self, model: Any) -> PanelReading:
        """Look at a model.

        Args:
            model: a module or a function from inputs to embeddings ``(B, J)``. A module in a wrapper of
                ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` is taken out of it.

        Raises:
            ValueError: for a sharded model, embeddings with NaN or inf, or queries of a class that the bank does not
                have.
            ValueError, TypeError: as :func:`~captum_fam.explain`.
        """
        check_whole(model)
        model = without_wrappers(model)
        with training_paused(model), torch.inference_mode(False):
            return self._read(model)

    def _read(self, model: Any) -> PanelReading:
        rows, classes = self._bank.embed(model), self._bank.dataset.class_names
        bank = MemoryBank(rows.embeddings, rows.labels, classes, **self._voting)
        queries = self._queries.embed(model)
        truth = self._names_of(queries.labels.tolist())
        _check_classes(truth, [name for name, n in zip(bank.class_names, bank.class_counts, strict=True) if n])
        own = [rows.places.get(one, []) for one in queries.hashes]
        n_own = sum(map(bool, own))
        if n_own:
            bank = bank.using(exclude=own)
            _check_rest(bank, own, truth)
        predicted = [bank.class_names[one] for one in bank.classify(queries.embeddings).predicted.tolist()]
        accuracy = sum(one == other for one, other in zip(predicted, truth, strict=True)) / len(truth)
        notes = [f"{n_own} of {len(truth)} queries are in the bank, as the same image; there they are left out"]
        shown = bank.using(exclude=[own[position] for position in self._shown]) if n_own else bank
        why = self._explain(model, shown, truth, notes if n_own else [])
        return PanelReading(accuracy, why, tuple(map(self._supports_of, why)), self.name)

    def _names_of(self, labels: Sequence[int], images: _Images | None = None) -> list[str]:
        """The names of classes of the queries, or of other images."""
        # Queries of a data set without names have the class indices of the bank.
        names = (images or self._queries).dataset.class_names or self._bank.dataset.class_names
        return [str(label) if names is None else names[label] for label in labels]

    def _explain(self, model: Any, bank: MemoryBank, truth: Sequence[str], own_notes: Sequence[str]) -> Explanation:
        """Explain the queries that are shown; what the user has to know is said once."""
        notes = list(own_notes)
        inputs = torch.stack([self._queries.dataset[position][0] for position in self._shown])
        explainer = Explainer(model, bank, layer=self.layer, batch_size=self._queries.batch_size, **self._options)
        why = explainer.noted(
            notes,
            inputs.to(device_of(model), float_type_of(model)),
            target=[truth[position] for position in self._shown] if self._target == "label" else None,
            images=self._images,
            names=self._names,
        )
        for note in [] if self._has_noted else dict.fromkeys(notes):
            warn_user(note, 4)
        self._has_noted = True
        if self.layer is None:
            self.layer = why.about["layer"]
        return replace(why, notes=(*own_notes, *why.notes))

    def _supports_of(self, why: Explanation) -> list[Tensor]:
        """The images of the bank that one query was compared with, for display."""
        rows = [one.row for one in why.supports_of() if one.weight > 0][:MOST_SHOWN]
        return [for_display(self._bank.dataset[row][0][None].float())[0] for row in rows]


@dataclass(frozen=True)
class _Rows:
    """Embeddings ``(M, J)``, class indices ``(M,)``, and a hash of each input."""

    embeddings: Tensor
    labels: Tensor
    hashes: Sequence[int]

    @property
    def places(self) -> dict[int, list[int]]:
        """The rows of each hash."""
        places: dict[int, list[int]] = {}
        for row, one in enumerate(self.hashes):
            places.setdefault(one, []).append(row)
        return places


class _Images:
    """Labeled images that are embedded again and again."""

    def __init__(
        self,
        source: Any,
        name: str,
        preprocess: Callable[[Any], Tensor] | None,
        batch_size: int | None,
        num_workers: int | None,
    ) -> None:
        if isinstance(source, Tensor | np.ndarray) or _are_several_inputs(source):
            raise TypeError(
                f"{name} must be a pair (images, labels) of one tensor (n, C, H, W) and n labels, or a labeled data "
                f"set, got {'images without labels' if not isinstance(source, tuple) else 'several tensors as images'}"
            )
        in_memory = isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor | np.ndarray)
        if in_memory:
            images, labels = source
            if len(images) != len(labels):
                raise ValueError(
                    f"{name} must have one label per image, got {len(images)} images, {len(labels)} labels"
                )
            source = list(zip(images, labels, strict=True))
        collate = None
        if isinstance(source, DataLoader):
            loader = take_loader_apart(source)
            source, collate = loader.dataset, loader.collate
            batch_size = batch_size or loader.batch_size
            num_workers = loader.num_workers if num_workers is None else num_workers
        self.dataset = LabeledDataset(source, preprocess=preprocess, collate=collate)
        # Class indices, where the data set is in memory, so that they cost nothing; else None.
        self.labels = [item[1] for item in map(self.dataset.__getitem__, range(len(source)))] if in_memory else None
        self.batch_size = batch_size or 64
        self._num_workers = num_workers or 0
        if not len(self.dataset):
            raise ValueError(f"{name} is empty, expected at least one labeled image")

    def embed(self, model: Any) -> _Rows:
        """The embeddings and labels of all images, computed by this process alone, on the device of the model."""

        def compute(batch: Batch) -> dict[str, Tensor]:
            images = batch.images.to(device_of(model), float_type_of(model))
            # Sixty bits of a hash tell all images apart, and fit into a whole number of PyTorch.
            hashes = torch.tensor([int(sha256_of(image)[:15], 16) for image in images])
            return {"embeddings": embed_images(model, images, batch_size=self.batch_size), "hashes": hashes}

        embedder = DatasetEmbedder(compute, self.dataset, batch_size=self.batch_size, num_workers=self._num_workers)
        rows = embedder.run()
        hashes = rows.column("hashes").tolist()
        return _Rows(rows.column("embeddings").to(device_of(model)), rows.labels, hashes)


def _positions(shown: int | Sequence[int], count: int) -> list[int]:
    """The positions of the queries that are shown, of ``count`` queries."""
    if isinstance(shown, int):
        if shown < 1:
            raise ValueError(f"shown must be at least one query, got {shown}")
        return sorted({round(position) for position in np.linspace(0, count - 1, min(shown, count)).tolist()})
    positions = list(shown)
    if not positions or not all(0 <= position < count for position in positions):
        raise ValueError(f"shown must be positions from 0 to {count - 1}, got {positions}")
    return positions


def _are_several_inputs(source: Any) -> bool:
    """Whether a source is ``(images, labels)`` with images of several tensors, and not two items of a data set."""
    images = source[0] if isinstance(source, tuple) and len(source) == 2 else None
    return isinstance(images, tuple | list) and all(isinstance(one, Tensor) and one.dim() > 1 for one in images)


def _check_classes(queries: Sequence[str], bank: Sequence[str]) -> None:
    """Refuse queries of a class that the bank does not have."""
    known = list(dict.fromkeys(bank))
    missing = sorted(set(queries) - set(known))
    if missing:
        raise ValueError(
            f"queries: class {missing[0]!r} has no image in the bank, whose classes are {', '.join(known[:5])}"
            f"{', ...' * (len(known) > 5)}; leave its queries out, or add images of the class"
        )


def _check_rest(bank: MemoryBank, own: Sequence[Sequence[int]], truth: Sequence[str]) -> None:
    """Refuse a query that is all images of its class in the bank."""
    classes = [bank.class_names[label] for label in bank.labels.tolist()]
    for query, (rows, name) in enumerate(zip(own, truth, strict=True)):
        if sum(classes[row] == name for row in rows) == classes.count(name):
            raise ValueError(
                f"queries: query {query} is itself the only image of class {name!r} in the bank; leave it out, or add "
                "images of the class"
            )


def _check_explained(
    method: Any, similarity: SimilarityLike, layer: nn.Module | str | None, options: Mapping[str, Any]
) -> None:
    """Refuse methods, arguments and a smoothing that explain does not have."""
    methods = choose_methods(read_methods(method), get_similarity(similarity), layer).methods
    known = inspect.signature(Explainer).parameters.keys() - {"model", "support", "class_names"}
    unknown = {name: value for name, value in options.items() if name not in known}
    check_options(methods, unknown, function="ExplanationPanel")
    check_window("smooth", options.get("smooth", 1))
    if options.get("sides", "query") != "query":
        raise ValueError(f'sides must be "query", got {options["sides"]!r}: a bank holds embeddings, which have no map')
