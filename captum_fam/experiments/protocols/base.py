"""What all protocols share: a model, a dataset, and a panel of methods and measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam import __version__
from captum_fam._files import staged
from captum_fam.embedding.batches import BatchLoader
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.example_figure import Picture
from captum_fam.experiments.features import Features, extract
from captum_fam.experiments.measures import Panel, Perturbable
from captum_fam.experiments.records import Record
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.experiments.table_methods import Foil, MapMethod, Maps, ScoresFor
from captum_fam.images import unnormalize
from captum_fam.support import Aggregate, SimilarityToSupport, SupportSet


@dataclass(frozen=True)
class Example:
    """One query for one class.

    Attributes:
        image: ``(3, H, W)`` in [0, 1].
        activation: ``(1, N, h, w)``.
        scores_for: the scores on activations, for a foil.
        target: the class among those scores, ``(1,)``.
        support: an image that stands for the class, in [0, 1].
        has_foil: whether there is something to tell the class from.
    """

    image: Tensor
    activation: Tensor
    scores_for: ScoresFor
    target: Tensor
    support: Tensor | None
    has_foil: bool = True


class ModelProtocol:
    """An experiment in units that do not depend on each other: episodes, batches, mosaics.

    A unit becomes a record ``{"unit": u, "queries": columns, "explained": columns}``. The columns have a value a
    query: ``item`` (its position in the dataset), ``label``, ``predicted``, ``correct``, ``confidence`` and further
    ones of 0 and 1 that go into the table as the model's own numbers; and for the explained queries ``row`` (among
    the queries) and the columns of :meth:`Panel.values`. ``skipped`` may name items that could not be read.

    Args:
        model: cut in two; left as it is, a fast copy does the work.
        dataset: items ``(image, label, boxes)`` or ``(image, label)``, images as the model takes them.
        panel: methods and measures.
        batch_size: images that go through the backbone at once.
        num_workers: processes that read images.

    Raises:
        ValueError: if the panel has measures that need boxes, and the dataset has none, or methods that explain a layer
            which the model's tail does not have.
    """

    name = ""
    unit = "batch"
    units = "batches"
    by_unit = False
    """Whether means are taken over the queries of a unit first, and intervals over units."""
    explained = "predicted"
    """The column of the class that maps explain."""

    def __init__(
        self,
        model: TwoPartModel,
        dataset: Dataset[Any],
        panel: Panel | None = None,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        self.panel = panel or Panel()
        _check_boxes(self.panel, dataset)
        for method in self.panel.methods:
            method.modules(model.tail)
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._given = model
        self.model = model

    def settings(self) -> dict[str, Any]:
        """What the results depend on, for JSON."""
        model = self._given
        return {
            "protocol": self.name,
            "version": __version__,
            "weights": model.weights_hash(),
            # What the weights do not say: how it pools.
            "tail": repr(model.tail),
            "similarity": model.similarity,
            "preprocessing": {
                "size": model.size,
                "mean": list(model.mean),
                "std": list(model.std),
                "interpolation": model.interpolation,
                "geometry": repr(model.geometry),
            },
            "dataset": fingerprint(self.dataset),
            "methods": {method.name: {"foil": method.foil, **method.options} for method in self.panel.methods},
            "measures": sorted(self.panel.measures),
            "conventions": asdict(self.panel.conventions),
            "batch_size": self.batch_size,
        }

    def prepare(self, folder: Path, ranks: Ranks, progress: bool) -> None:
        """Put the model where it works."""
        self.model = self._given.fast_copy(ranks.device)

    def extract(self, folder: Path, ranks: Ranks, progress: bool, *, images: bool) -> Features:
        """Every image of the dataset through the backbone once; the ``images`` themselves are kept where asked for.

        What is left out is kept in ``skipped.json`` beside the results: units are drawn from the other items, and
        must stay the same whatever becomes of a file later.

        Raises:
            ValueError: at the first file that has become unusable since the run began.
        """
        path = folder.parent / "skipped.json"
        began = path.is_file()
        # All have looked before any writes.
        ranks.wait()
        features = extract(
            self.model,
            self.dataset,
            folder,
            ("activations", "images") if images else ("activations",),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            ranks=ranks,
            progress=progress,
            left_out=by_item(json.loads(path.read_text("utf-8"))) if began else None,
        )
        if ranks.is_first and not began:
            with staged(path.parent) as scratch:
                (scratch / path.name).write_text(json.dumps(features.skipped, indent=2) + "\n", encoding="utf-8")
        return features

    def __len__(self) -> int:
        """Number of units."""
        raise NotImplementedError

    def run(self, units: Sequence[int]) -> Iterator[Record]:
        """The records of these units, in order."""
        raise NotImplementedError

    @property
    def skipped(self) -> dict[int, str]:
        """Items that could not be used, with the reason, where no record names them."""
        return {}

    @property
    def bank_skipped(self) -> dict[int, str]:
        """Items of a memory bank's dataset that could not be used, with the reason."""
        return {}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.model.size, self.model.size

    def image(self, item: int, dataset: Dataset[Any] | None = None) -> Tensor:
        """An item of a dataset for display, ``(3, H, W)`` in [0, 1]; by default that of the queries."""
        return unnormalize((dataset or self.dataset)[item][0], self.model.mean, self.model.std)

    def class_name(self, label: int) -> str:
        """The name of a class, where the dataset knows it."""
        names = getattr(self.dataset, "class_names", ())
        return str(names[label]) if label < len(names) else str(label)

    def item_name(self, item: int) -> str:
        """The file of an item, where the dataset knows it."""
        records = getattr(self.dataset, "records", ())
        return str(records[item].path.name) if item < len(records) else str(item)

    def example(self, record: Record, query: int, label: int) -> Example:
        """What it takes to draw the map of one query for one class, where there is a support of it."""
        raise NotImplementedError

    def has_support(self, record: Record, query: int, label: int) -> bool:
        """Whether there is an image of a class, other than the query, to compare it with."""
        return True

    def picture(
        self, record: Record, query: int, classes: Mapping[str, int], methods: Sequence[MapMethod], title: str = ""
    ) -> Picture:
        """One query with supports and maps for each of the classes, as a row of a figure.

        Args:
            record: of the query.
            query: its row there.
            classes: labels by what they are to the query, such as ``"predicted"``.
            methods: whose maps to show.
            title: a further line above the query.
        """
        supports, maps = {}, {}
        for role, label in classes.items():
            if not self.has_support(record, query, label):
                title += f"\nno image of the {role} class to compare with"
                continue
            example = self.example(record, query, label)
            name = f"{role}:\n{self.class_name(label)}"
            if example.support is not None:
                supports[name] = example.support
            for method in methods:
                if method.foil and not example.has_foil:
                    continue
                shown = self.maps(
                    method, example.scores_for, example.activation, example.target, example.image.shape[1:]
                )
                maps[method.name if len(classes) == 1 else f"{method.name}\n{name}"] = shown[0]
        name = self.class_name(record["queries"]["label"][query])
        return Picture(f"{name}\n{title}".strip(), example.image, supports, maps)

    def maps(
        self,
        method: MapMethod,
        scores_for: ScoresFor,
        activation: Tensor,
        target: Tensor,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """The maps of a method, ``(B, 1, h, w)``, for images of the model's size or another."""
        return self.account(method, scores_for, activation, target, size).maps

    def account(
        self,
        method: MapMethod,
        scores_for: ScoresFor,
        activation: Tensor,
        target: Tensor,
        size: Sequence[int] | None = None,
    ) -> Maps:
        """:meth:`maps`, with what they cover of the score."""
        height, width = size or self.size
        return method.maps(scores_for, self.model.tail, activation, target, (height, width))

    def perturbable(
        self, images: Tensor | None, activation: Tensor, scores: SimilarityToSupport, target: Tensor
    ) -> Perturbable | None:
        """The queries for the measures that mask them; None where the panel has none."""
        if images is None or not self.panel.needs_images:
            return None

        def score(some: Tensor) -> Tensor:
            with torch.no_grad():
                return scores(self.model.activation(some)).gather(1, target[:, None])[:, 0]

        with torch.no_grad():
            own = scores(activation).gather(1, target[:, None])[:, 0]
        return Perturbable(images.to(activation.device), score, own, self.model.mean, self.model.std)


class FeaturesProtocol(ModelProtocol):
    """A protocol whose images all go through the backbone once, before its units run."""

    @property
    def keeps_images(self) -> bool:
        """Whether units need the images themselves."""
        return self.panel.needs_images

    def prepare(self, folder: Path, ranks: Ranks, progress: bool) -> None:
        """Every image through the backbone once."""
        super().prepare(folder, ranks, progress)
        self._features = self.extract(folder, ranks, progress, images=self.keeps_images)

    @property
    def skipped(self) -> dict[int, str]:
        """Images that could not be used; they are in no unit."""
        return self._features.skipped

    def run(self, units: Sequence[int]) -> Iterator[Record]:
        """The records of these units."""
        return map(self._run, units)

    def _run(self, unit: int) -> Record:
        raise NotImplementedError

    def _activation(self, rows: Tensor) -> Tensor:
        return self._features.activations(rows).to(self.model.device)

    def _scores_of_classes(self, support: Tensor, aggregate: Aggregate) -> ScoresFor:
        """Scores on activations of the classes whose supports are the rows ``(C, K)``."""
        n_classes, shot = support.shape
        # Activations, not embeddings: some methods compare positions.
        images = SupportSet(self._activation(support.flatten()), torch.arange(n_classes).repeat_interleave(shot))
        return cached(
            lambda foil: SimilarityToSupport(
                self.model.tail, images, self.model.similarity, foil=foil, aggregate=aggregate
            )
        )


def cached(make: Callable[[Foil | None], SimilarityToSupport]) -> ScoresFor:
    """Scores made once a foil."""
    made: dict[Foil | None, SimilarityToSupport] = {}

    def scores_for(foil: Foil | None) -> SimilarityToSupport:
        if foil not in made:
            made[foil] = make(foil)
        return made[foil]

    return scores_for


def by_item(reasons: Mapping[str, str]) -> dict[int, str]:
    """Reasons by item, whose number JSON has made text."""
    return {int(item): reason for item, reason in reasons.items()}


def fingerprint(dataset: Dataset[Any]) -> dict[str, Any]:
    """What tells one dataset from another: its length, and a hash of its labels, file names and boxes."""
    digest = hashlib.sha256()
    labels = labels_of(dataset)
    digest.update(labels.numpy().tobytes())
    for record in getattr(dataset, "records", ()):
        # Not the whole path: the same data may lie elsewhere.
        boxes = getattr(record, "boxes", torch.empty(0)).tolist()
        digest.update(f"{record.path.parent.name}/{record.path.name} {boxes}".encode())
    return {"items": len(labels), "sha256": digest.hexdigest()}


def _check_boxes(panel: Panel, dataset: Dataset[Any]) -> None:
    asked = [name for name in panel.measures if name in ("localization", "max-box")]
    first = next(iter(BatchLoader(dataset, batch_size=1, on_error="skip")), None) if asked else None
    if first is not None and not first.boxes:
        raise ValueError(
            f"measures: {', '.join(asked)} needs boxes, which the dataset {type(dataset).__name__} does not have; "
            "choose others (--measures swap), or give items (image, label, boxes)"
        )


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The class of every item, as datasets of this package and of torchvision keep them."""
    for name in ("labels", "targets"):
        if hasattr(dataset, name):
            return torch.as_tensor(getattr(dataset, name), dtype=torch.int64)
    raise ValueError(
        f"dataset {type(dataset).__name__} has neither labels nor targets: give it the class of every item"
    )
