"""The base classes of protocols: the description of an experiment, and the prepared experiment that does the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam import __version__
from captum_fam.cli.options import check_fields, option, option_fields
from captum_fam.cli.ranges import at_least
from captum_fam.embedding.labeled_dataset import find_class_names
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.measures import Panel, Perturbable
from captum_fam.experiments.protocols.checks import check_boxes, check_gallery, check_method_options, check_positions
from captum_fam.experiments.protocols.dataset_info import fingerprint
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table_methods import Maps, ScoresFor, TableMethod
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.images import unnormalize
from captum_fam.similarity import get_similarity
from captum_fam.support import SimilarityToSupport

BATCH_SIZE = 32
"""The default number of images per pass through the model."""


@dataclass(frozen=True)
class Example:
    """One query and one class, with everything that a figure needs to draw the maps.

    Attributes:
        image: the query, ``(3, H, W)`` in [0, 1].
        activation: the activation of the query, ``(1, N, h, w)``.
        scores_for: function from a foil to the scores of activations.
        target: index of the class among the scores, ``(1,)``.
        support: an image of the support, ``(3, H, W)`` in [0, 1]; None if there is no image.
        has_foil: whether there is another class to contrast with. Default: True.
    """

    image: Tensor
    activation: Tensor
    scores_for: ScoresFor
    target: Tensor
    support: Tensor | None
    has_foil: bool = True


@dataclass(eq=False, kw_only=True)
class Protocol(ABC):
    """An experiment in independent units: episodes, batches or mosaics.

    A protocol describes the experiment; :meth:`prepare` returns the object that does the work. A new protocol is a
    dataclass that inherits this class, or :class:`~captum_fam.experiments.protocols.FeaturesProtocol`, with the
    decorator :func:`~captum_fam.experiments.protocols.register_protocol`.

    Args:
        model: the model in two parts, which does not change: a fast copy does the work.
        dataset: items ``(image, label, boxes)`` or ``(image, label)``, with images as inputs of the model.
        panel: methods and measures. Default: ``Panel()``.
        batch_size: images per pass through the model. Default: 32.
        num_workers: number of processes that read images; with 0 this process reads the images. Default: 0.

    Attributes:
        name: name of the protocol, which ``register_protocol`` sets.
        summary: the protocol in a few words.
        split: split of a data set from which the queries come by default.
        default_measures: names of the default measures.
        gives: attributes of :class:`~captum_fam.experiments.measures.MapBatch` that the protocol provides for measures.
        takes_bank: whether the protocol has a memory bank, as the argument ``bank``.
        has_positions: whether the supports are activations, whose positions a method may compare, instead of
            embeddings.
        has_gallery: whether there are images of other classes for methods ``NAME-gallery``.
        unit: word for a unit, such as ``"episode"``.
        units: plural of ``unit``.
        by_unit: whether means are taken within each unit first, and intervals are over units.
        explains_label: whether maps explain the true class instead of the predicted class.

    Raises:
        ValueError: for a number out of its range, or an unknown choice or similarity; for classes that are too few or
            too small; for measures that need something that the protocol or the data set does not have; or for methods
            that do not fit, see :meth:`check_methods`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    split: ClassVar[str] = "test"
    default_measures: ClassVar[tuple[str, ...]] = ("localization", "swap")
    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "images", "swap"})
    takes_bank: ClassVar[bool] = False
    has_positions: ClassVar[bool] = True
    has_gallery: ClassVar[bool] = False
    unit: ClassVar[str] = "batch"
    units: ClassVar[str] = "batches"
    by_unit: ClassVar[bool] = False
    explains_label: ClassVar[bool] = False

    # KW_ONLY is no type in Python 3.10, whose get_type_hints refuses the class then.
    model: TwoPartModel = field(kw_only=False)
    dataset: Dataset[Any] = field(kw_only=False)
    panel: Panel = field(default_factory=Panel, kw_only=False)
    batch_size: int = option("images per pass through the model", BATCH_SIZE, within=at_least(1))
    num_workers: int = option("processes that read images", 0, within=at_least(0))

    def __post_init__(self) -> None:
        check_fields(self)
        get_similarity(self.model.similarity)  # refuses an unknown name
        self.panel.check(self.gives, self.name)
        check_boxes(self.panel, self.dataset)
        self.check_methods(self.panel.methods)
        self.check_labels(labels_of(self.dataset))

    def check_labels(self, labels: Tensor) -> None:
        """Check that the classes of the data set are enough for the protocol, before any image is read.

        Args:
            labels: class of every item, ``(len(dataset),)``.

        Raises:
            ValueError: for an empty data set, or by a subclass for classes that are too few or too small.
        """
        if not len(labels):
            raise ValueError(f"dataset: {self.name} needs images, and it has none")

    def check_methods(self, methods: Sequence[TableMethod]) -> None:
        """Check that the protocol and its model have everything that methods need.

        Args:
            methods: methods of the panel, or of a figure.

        Raises:
            ValueError: for options that a method does not take, a layer that the tail of the model does not have, or
                supports that the protocol does not have: positions, or a gallery.
        """
        check_method_options(methods, self.model)
        check_gallery(methods, self.name, self.has_gallery)
        if not self.has_positions:
            check_positions(methods, self.name)

    @abstractmethod
    def __len__(self) -> int:
        """Number of units."""

    @abstractmethod
    def prepare(self, folder: Path, ranks: Ranks | None = None, progress: bool = False) -> PreparedProtocol[Any]:
        """Prepare the protocol.

        Args:
            folder: folder for the files of the preparation; the folder of the results is its parent.
            ranks: the processes that share the work. Default: this process alone.
            progress: show progress bars. Default: False.

        Returns:
            The object that runs the units.
        """

    def settings(self) -> dict[str, Any]:
        """Everything on which the results depend, in types that JSON can hold."""
        return {
            "protocol": self.name,
            "version": __version__,
            **self.model.settings(),
            "dataset": fingerprint(self.dataset),
            "methods": {method.name: {"foil": method.foil, **method.options} for method in self.panel.methods},
            "measures": sorted(self.panel.measures),
            "conventions": asdict(self.panel.conventions),
            **{
                option_field.name: getattr(self, option_field.name)
                for option_field in option_fields(type(self))
                if option_field.name != "num_workers"
            },
        }

    @property
    def figure_header(self) -> str:
        """Title above the queries of a figure, with the name of the number that is above each model."""
        return "query\naccuracy"

    @property
    def support_title(self) -> str:
        """Title above the support images of a figure."""
        return "support"

    def class_name(self, label: int) -> str:
        """The name of the class with an index, or the index if the data set has no names."""
        names = find_class_names(self.dataset)
        return names[label] if label < len(names) else str(label)

    def item_name(self, item: int) -> str:
        """The file name of the item at a position, or the position if the data set has no files."""
        records = getattr(self.dataset, "records", ())
        return str(records[item].path.name) if item < len(records) else str(item)


P = TypeVar("P", bound=Protocol, covariant=True)


class PreparedProtocol(ABC, Generic[P]):
    """A protocol that is ready to run its units.

    Args:
        protocol: description of the experiment.
        model: fast copy of the model of the protocol, on the device of the work.

    Attributes:
        skipped: reason for each item that could not be used and that is not in the records of the units, by position.
        bank_skipped: reason for each item of the data set of a memory bank that could not be used, by position.
        view: function from a data set and a position to the image for display, ``(3, H, W)`` in [0, 1]. Default:
            :meth:`model_view`.
    """

    def __init__(self, protocol: P, model: TwoPartModel) -> None:
        self.protocol = protocol
        self.model = model
        self.skipped: dict[int, str] = {}
        self.bank_skipped: dict[int, str] = {}
        self.view: Callable[[Dataset[Any], int], Tensor] = self.model_view

    @abstractmethod
    def run(self, units: Sequence[int]) -> Iterator[UnitRecord]:
        """Run units.

        Args:
            units: numbers of the units.

        Yields:
            The record of each unit, in the order of ``units``.
        """

    @abstractmethod
    def example(self, record: UnitRecord, query: int, label: int) -> Example:
        """Everything that a figure needs to draw the map of a query for a class with a support.

        Args:
            record: record of the unit of the query.
            query: row of the query in the record.
            label: the class.
        """

    def has_support(self, record: UnitRecord, query: int, label: int) -> bool:
        """Whether there is an image of a class to compare the query with; arguments as for :meth:`example`."""
        return True

    def reverse_example(self, record: UnitRecord, query: int, label: int) -> Example | None:
        """The support of a query, explained by its similarity to the query; arguments as for :meth:`example`.

        Returns:
            The example of the support; None for a protocol whose support is not a single image.
        """
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.model.height_and_width

    def model_view(self, dataset: Dataset[Any], item: int) -> Tensor:
        """The input of the model for an item, as an image for display.

        Args:
            dataset: data set of the item.
            item: position of the item.

        Returns:
            ``(3, H, W)`` in [0, 1].
        """
        return unnormalize(dataset[item][0], self.model.mean, self.model.std)

    def image(self, item: int, dataset: Dataset[Any] | None = None) -> Tensor:
        """The image of an item for display, by :attr:`view`.

        Args:
            item: position of the item.
            dataset: data set of the item. Default: the data set of the queries.

        Returns:
            ``(3, H, W)`` in [0, 1].
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
        """Compute the maps of a method.

        Args:
            method: method of the panel, or another method.
            scores_for: function from a foil to the scores of activations.
            activation: ``(B, N, h, w)``.
            target: the explained class of each query, ``(B,)``.
            size: height and width of the images, in pixels. Default: the size of the model.

        Returns:
            Maps ``(B, 1, h, w)``, with the share of the score that they cover.
        """
        return method.maps(scores_for, self.model.tail, activation, target, size or self.size)

    def perturbable(
        self, images: Tensor | None, activation: Tensor, scores: SimilarityToSupport, target: Tensor
    ) -> Perturbable | None:
        """The queries for measures that mask the images.

        Args:
            images: inputs of the model, ``(B, 3, H, W)``; None if no measure masks images.
            activation: ``(B, N, h, w)``.
            scores: scores of activations.
            target: class whose score is measured, ``(B,)``.

        Returns:
            The images with their scores; None if the panel has no measure that masks images.
        """
        if images is None or not self.protocol.panel.needing("images"):
            return None

        @torch.no_grad()
        def score_of(activation: Tensor) -> Tensor:
            return scores(activation).gather(1, target[:, None])[:, 0]

        def score(masked_images: Tensor) -> Tensor:
            return score_of(self.model.activation(masked_images))

        return Perturbable(images.to(activation.device), score, score_of(activation), self.model.mean, self.model.std)
