"""What all protocols share: a model, a dataset, a panel of methods and measures, and what they become when prepared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam import __version__
from captum_fam.cli.options import option, option_fields, positive
from captum_fam.embedding import BatchLoader
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.measures import Panel, Perturbable
from captum_fam.experiments.protocols.dataset_info import class_names_of, fingerprint
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import Foil, Maps, ScoresFor, TableMethod
from captum_fam.images import unnormalize
from captum_fam.support import SimilarityToSupport

BATCH_SIZE = 32
"""Images that go through a model at once, where nothing else is said."""


@dataclass(frozen=True)
class Example:
    """One query for one class, as a figure shows it.

    Attributes:
        image: ``(3, H, W)`` in [0, 1].
        activation: ``(1, N, h, w)``.
        scores_for: gives the scores on activations, for a foil.
        target: the class among those scores, ``(1,)``.
        support: an image that stands for the class, in [0, 1]; None where there is none.
        has_foil: whether there is something to tell the class from.
    """

    image: Tensor
    activation: Tensor
    scores_for: ScoresFor
    target: Tensor
    support: Tensor | None
    has_foil: bool = True


@dataclass(eq=False)
class Protocol(ABC):
    """An experiment in units that do not depend on each other: episodes, batches, mosaics.

    A protocol says what is to be done; :meth:`prepare` gives the object that does it. A new one is a dataclass that
    inherits this class, or :class:`~captum_fam.experiments.protocols.FeaturesProtocol`, under
    :func:`~captum_fam.experiments.protocols.register_protocol`.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: items ``(image, label, boxes)`` or ``(image, label)``, images as the model takes them.
        panel: methods and measures. Default: ``Panel()``.
        batch_size: images that go through the model at once. Default: 32.
        num_workers: processes that read images. Default: 0, this process reads them.

    Attributes:
        name: of the protocol; see ``register_protocol``.
        summary: the protocol in a few words.
        split: the part of a dataset that queries come from by default.
        default_measures: the measures by default.
        gives: attributes of :class:`~captum_fam.experiments.measures.MapBatch` that measures may need.
        takes_bank: whether the protocol has a memory bank, as a further argument ``bank``.
        has_positions: whether the supports are activations, whose positions a method may compare, or embeddings.
        unit: what a unit is called, and several of them ``units``.
        by_unit: whether means are taken over the queries of a unit first, and intervals over units.
        explains_label: whether maps explain the true class, or else the predicted one.

    Raises:
        ValueError: if the panel has measures that need what the protocol or the dataset does not have, or methods that
            explain a layer which the model's tail does not have, or that compare positions of supports without any.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    split: ClassVar[str] = "test"
    default_measures: ClassVar[tuple[str, ...]] = ("localization", "swap")
    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "images", "swap"})
    takes_bank: ClassVar[bool] = False
    has_positions: ClassVar[bool] = True
    unit: ClassVar[str] = "batch"
    units: ClassVar[str] = "batches"
    by_unit: ClassVar[bool] = False
    explains_label: ClassVar[bool] = False

    model: TwoPartModel
    dataset: Dataset[Any]
    panel: Panel = field(default_factory=Panel)
    _: KW_ONLY
    batch_size: int = option("images that go through the model at once", BATCH_SIZE, parse=positive)
    num_workers: int = option("processes that read images", 0)

    def __post_init__(self) -> None:
        self.panel.check(self.gives, self.name)
        _check_boxes(self.panel, self.dataset)
        self.check_methods(self.panel.methods)

    def check_methods(self, methods: Sequence[TableMethod]) -> None:
        """Refuse methods that the protocol or its model does not have what they need for.

        Args:
            methods: of the panel, or those of a figure.

        Raises:
            ValueError: for a layer that the model's tail does not have, or positions of supports without any.
        """
        for method in methods:
            method.modules(self.model.tail)
        compare = [method.name for method in methods if method.needs_images]
        if compare and not self.has_positions:
            raise ValueError(
                f"methods: {', '.join(compare)} compares with the positions of support images, which {self.name} does "
                "not have, as its supports are embeddings"
            )

    @abstractmethod
    def __len__(self) -> int:
        """Number of units."""

    @abstractmethod
    def prepare(self, folder: Path, ranks: Ranks | None = None, progress: bool = False) -> PreparedProtocol[Any]:
        """The protocol ready to run.

        Args:
            folder: for what the preparation computes; the folder of the results is its parent.
            ranks: the processes that share the work. Default: this process alone.
            progress: show progress bars. Default: False.
        """

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        return {
            "protocol": self.name,
            "version": __version__,
            **self.model.settings(),
            "dataset": fingerprint(self.dataset),
            "methods": {method.name: {"foil": method.foil, **method.options} for method in self.panel.methods},
            "measures": sorted(self.panel.measures),
            "conventions": asdict(self.panel.conventions),
            **{one.name: getattr(self, one.name) for one in option_fields(type(self)) if one.name != "num_workers"},
        }

    @property
    def figure_header(self) -> str:
        """Above the queries of a figure: what they are, and what the percentages above the models are."""
        return "query\naccuracy"

    @property
    def support_title(self) -> str:
        """Above the images of a figure that queries were compared with."""
        return "support"

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where the dataset does not know the name."""
        names = class_names_of(self.dataset)
        return str(names[label]) if label < len(names) else str(label)

    def item_name(self, item: int) -> str:
        """The file of an item, or its number where the dataset does not know the file."""
        records = getattr(self.dataset, "records", ())
        return str(records[item].path.name) if item < len(records) else str(item)


P = TypeVar("P", bound=Protocol, covariant=True)


class PreparedProtocol(ABC, Generic[P]):
    """A protocol with all that its units need.

    Args:
        protocol: what is to be done.
        model: a fast copy of the protocol's, where the work is done.

    Attributes:
        skipped: items that could not be used, with the reason, where no record names them.
        bank_skipped: the same of the dataset that a memory bank is made of.
        view: what an item of a dataset is shown as, ``(3, H, W)`` in [0, 1]. Default: as the model sees it.
    """

    def __init__(self, protocol: P, model: TwoPartModel) -> None:
        self.protocol = protocol
        self.model = model
        self.skipped: dict[int, str] = {}
        self.bank_skipped: dict[int, str] = {}
        self.view: Callable[[Dataset[Any], int], Tensor] = self.model_view

    @abstractmethod
    def run(self, units: Sequence[int]) -> Iterator[UnitRecord]:
        """The records of these units, in order."""

    @abstractmethod
    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """What it takes to draw the map of one query for one class, of which there is a support.

        Args:
            record: of the query's unit.
            query: the row of the query in the record.
            label: the class.
        """

    def has_support(self, record: UnitRecord, query: int, label: int) -> bool:
        """Whether there is an image of a class, other than the query, to compare the query with."""
        return True

    def reverse_example(self, record: UnitRecord, query: int, label: int) -> Example | None:
        """The support of a query, explained by its similarity to the query; None where that has no meaning."""
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.model.size, self.model.size

    def model_view(self, dataset: Dataset[Any], item: int) -> Tensor:
        """An item of a dataset as the model sees it, ``(3, H, W)`` in [0, 1]."""
        return unnormalize(dataset[item][0], self.model.mean, self.model.std)

    def image(self, item: int, dataset: Dataset[Any] | None = None) -> Tensor:
        """An item for display, ``(3, H, W)`` in [0, 1].

        Args:
            item: its position.
            dataset: where it lies. Default: among the queries.
        """
        return self.view(self.protocol.dataset if dataset is None else dataset, item)

    def maps(
        self,
        method: TableMethod,
        scores_for: ScoresFor,
        activation: Tensor,
        target: Tensor,
        size: tuple[int, int] | None = None,
    ) -> Maps:
        """The maps of a method, ``(B, 1, h, w)``, with what they cover of the score.

        Args:
            method: of the panel, or another.
            scores_for: gives the scores on activations, for a foil.
            activation: ``(B, N, h, w)``.
            target: the explained class of each query, ``(B,)``.
            size: height and width of the images. Default: the model's.
        """
        return method.maps(scores_for, self.model.tail, activation, target, size or self.size)

    def perturbable(
        self, images: Tensor | None, activation: Tensor, scores: SimilarityToSupport, target: Tensor
    ) -> Perturbable | None:
        """The queries for measures that mask them; None where the panel has no such measure.

        Args:
            images: as the model takes them, ``(B, 3, H, W)``, or None.
            activation: ``(B, N, h, w)``.
            scores: on activations.
            target: the class whose score is followed, ``(B,)``.
        """
        if images is None or not self.protocol.panel.needing("images"):
            return None

        @torch.no_grad()
        def score_of(activation: Tensor) -> Tensor:
            return scores(activation).gather(1, target[:, None])[:, 0]

        def score(some: Tensor) -> Tensor:
            return score_of(self.model.activation(some))

        return Perturbable(images.to(activation.device), score, score_of(activation), self.model.mean, self.model.std)


def cached(make: Callable[[Foil | None], SimilarityToSupport]) -> ScoresFor:
    """Scores that are made once per foil."""
    by_foil: dict[Foil | None, SimilarityToSupport] = {}

    def scores_for(foil: Foil | None) -> SimilarityToSupport:
        if foil not in by_foil:
            by_foil[foil] = make(foil)
        return by_foil[foil]

    return scores_for


def _check_boxes(panel: Panel, dataset: Dataset[Any]) -> None:
    need = panel.needing("boxes")
    first = next(iter(BatchLoader(dataset, batch_size=1, on_error="skip")), None) if need else None
    if first is not None and not first.boxes:
        raise ValueError(
            f"measures: {', '.join(need)} needs boxes, which the dataset {type(dataset).__name__} does not have; "
            "choose others (--measures swap), or give items (image, label, boxes)"
        )
