"""One figure of several models: the same queries, a column of maps a model, and its accuracy above."""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from captum_fam.experiments.data.boxed_images import BoxedImages
from captum_fam.experiments.data.load import ClassFolders
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.evaluation import summarize_records
from captum_fam.experiments.example_figure import Block, Cell, cell_grid
from captum_fam.experiments.protocols.base import Example, ModelProtocol, cached
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.retrieval import Retrieval
from captum_fam.experiments.records import Record
from captum_fam.experiments.table_methods import CENTER_BOX, Foil, MapMethod, PairedScores
from captum_fam.geometry import Squash, box_areas
from captum_fam.metrics import Result
from captum_fam.visualization import MapFigure

Which = Literal["correct", "wrong", "any"]
Scale = Literal["zero", "minmax"]

_PHOTOGRAPH = 480  # pixels of the longer side
# Besides FAM: baselines whose maps have no sign to lose.
_UNSIGNED = ("mean-activation", "random", "center", CENTER_BOX, "uniform")
_TO_ONE = ("auto", "minmax", "relu")  # normalizations of FAM to [0, 1], where there is no foil
_ROLES = {"label": "true", "predicted": "predicted"}


class FigureProtocol(ModelProtocol):
    """A protocol as :func:`model_figure` takes it.

    Photographs have the pixels and shape of their files, where the model's view is a squashed one.
    """

    @property
    def header(self) -> str:
        """Above the queries: what they are, and what the percentages above the models are."""
        raise NotImplementedError

    @property
    def support_title(self) -> str:
        """Above the images that queries were compared with."""
        return "support"

    def columns(self, names: Sequence[str], supports: bool) -> list[str]:
        """Titles of what :meth:`cells` gives, of the names of the methods."""
        return [self.support_title, *names] if supports else list(names)

    def cells(
        self, record: Record, query: int, label: int, methods: Sequence[MapMethod], supports: bool, title: str = ""
    ) -> Iterator[Cell]:
        """What the model says of a query and a class, below a title."""
        example = self.example(record, query, label)
        if supports:
            yield _support_cell(example)
        for method in methods:
            if method.foil and not example.has_foil:
                yield Cell(example.image, f"{title}\nno other class to contrast with".strip())
            else:
                yield self._map_cell(method, example, title)

    def image(self, item: int, dataset: Dataset[Any] | None = None) -> Tensor:
        shown = self.dataset if dataset is None else dataset
        # A squashed photograph is whole, so that its map lies on the pixels of its file alike.
        if not isinstance(shown, BoxedImages | ClassFolders) or not isinstance(shown.geometry, Squash):
            return super().image(item, dataset)
        photograph = shown.photograph(item)
        photograph.thumbnail((_PHOTOGRAPH, _PHOTOGRAPH))
        return pil_to_tensor(photograph).float() / 255

    def title(self, label: int) -> str:
        """The name of a class without the number in front that the folders of CUB have."""
        return re.sub(r"^\d+\.", "", self.class_name(label))

    def query_cell(self, item: int, title: str) -> Cell:
        """A query with its boxes, as far as they are in sight."""
        image = self.image(item)
        view, _, *boxes = self.dataset[item]
        if not boxes:
            return Cell(image, title)
        _, height, width = image.shape
        # The image is the model's view, or the whole photograph that was squashed to it.
        shown = Squash((height, width)).map_boxes(boxes[0], view.shape[2], view.shape[1])
        return Cell(image, title, boxes=shown[box_areas(shown) > 0])

    def _map_cell(self, method: MapMethod, example: Example, title: str = "") -> Cell:
        maps = self.maps(method, example.scores_for, example.activation, example.target)
        return Cell(example.image, title, maps[0].cpu())


class FewShotFigure(FigureProtocol, FewShot):
    """:class:`FewShot` as :func:`model_figure` takes it."""

    @property
    def header(self) -> str:
        return f"{self.way}-way {self.shot}-shot\naccuracy"

    @property
    def support_title(self) -> str:
        return "support" if self.shot == 1 else f"support, 1 of {self.shot}"


class ContrastiveFigure(FigureProtocol, Contrastive):
    """:class:`Contrastive` as :func:`model_figure` takes it."""

    @property
    def header(self) -> str:
        return f"query\n{self.k}-NN accuracy"

    @property
    def support_title(self) -> str:
        return "nearest of the class"


class RetrievalFigure(FigureProtocol, Retrieval):
    """:class:`Retrieval` as :func:`model_figure` takes it: the retrieved image has maps too."""

    @property
    def header(self) -> str:
        return "query\nRecall@1"

    def columns(self, names: Sequence[str], supports: bool) -> list[str]:
        if not supports:
            return list(names)
        return [f"{name}\n{shown}".strip() for name in names for shown in ("query", "retrieved")]

    def cells(
        self, record: Record, query: int, label: int, methods: Sequence[MapMethod], supports: bool, title: str = ""
    ) -> Iterator[Cell]:
        cells = super().cells(record, query, label, methods, False, title)
        if not supports:
            yield from cells
            return
        retrieved = self.reverse(record, query, label)
        for method, cell in zip(methods, cells, strict=True):
            yield cell
            yield self._map_cell(method, retrieved)

    def reverse(self, record: Record, query: int, label: int) -> Example:
        """The image retrieved for a query among those of a class, explained by its similarity to the query."""
        row = (self._features.items == record["queries"]["item"][query]).nonzero()[:, 0]
        nearest = self._nearest(row, label)[0]
        _, _, other = self._nearest(nearest, int(self._features.labels[row]))

        def only(rows: Tensor) -> Tensor:
            return one_hot(rows, len(self._gallery)).to(self._gallery)

        foils: dict[Foil | None, Tensor | None] = {
            None: None,
            "others": (1 - only(nearest)) / (len(self._gallery) - 1),
            "runner-up": only(other),
        }
        scores_for = cached(
            lambda foil: PairedScores(self.model.tail, self._gallery, only(row), foils[foil], self.model.similarity)
        )
        target = torch.zeros(1, dtype=torch.int64, device=self.model.device)
        item = int(self._features.items[nearest])
        return Example(self.image(item), self._activation(nearest), scores_for, target, None)


@dataclass(frozen=True)
class ModelRun:
    """One model's answers to all queries.

    Attributes:
        label: what the figure calls the model.
        protocol: prepared; one of the classes of this module.
        records: of all units.
        accuracy: with its interval; Recall@1 for retrieval.
    """

    label: str
    protocol: FigureProtocol
    records: list[Record]
    accuracy: Result


@dataclass(frozen=True)
class Query:
    """A query of a figure, and where the records have it.

    Attributes:
        unit: the episode or batch.
        item: its position in the dataset.
        places: for each run, the record and the row in it.
        by_unit: whether the unit is an episode.
    """

    unit: int
    item: int
    places: tuple[tuple[Record, int], ...]
    by_unit: bool = False

    @property
    def name(self) -> str:
        """``"ITEM"``, or of an episode, where an item may be a query of several, ``"EPISODE:ITEM"``."""
        return f"{self.unit}:{self.item}" if self.by_unit else str(self.item)

    def column(self, name: str) -> list[Any]:
        """A column of the records, a value a run."""
        return [record["queries"][name][row] for record, row in self.places]


def run_model(
    label: str, protocol: FigureProtocol, folder: str | Path, *, device: str = "cpu", progress: bool = False
) -> ModelRun:
    """Put all queries to a model.

    Args:
        label: what the figure is to call it.
        protocol: with ``Panel((), ())``: maps are made of the chosen queries only.
        folder: an empty one for the features, which the figure is then drawn from.
        device: of the model.
        progress: show progress bars.

    Raises:
        ValueError: if the folder is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"folder {folder} is not empty: it may hold another model's features; give each its own")
    protocol.prepare(folder / "features", Ranks(device=device), progress)
    units = protocol.run(range(len(protocol)))
    records = list(tqdm(units, label, len(protocol), unit=protocol.unit, disable=not progress))
    own = summarize_records(protocol, records).model
    return ModelRun(label, protocol, records, own.get("recall@1", own["accuracy"]))


def choose_queries(
    runs: Sequence[ModelRun],
    which: Which = "correct",
    count: int = 6,
    seed: int = 0,
    items: Sequence[int | tuple[int, int]] = (),
) -> list[Query]:
    """Queries that all models get right, or wrong, drawn at random; of an episode at most one, and no image twice.

    Args:
        runs: of the same queries.
        which: ``"correct"``: by all models; ``"wrong"``: by all, where there is something of the true class to compare
            with; or ``"any"``.
        count: how many; fewer where there are no more.
        seed: of the choice.
        items: take these instead, by their position in the dataset; of episodes as ``(episode, position)``, where
            the position alone will do for a query of one episode only.

    Raises:
        ValueError: if the models were not asked the same episodes, there is no such query, or ``items`` has one that
            is a query of several episodes or has one twice.

    Warns:
        UserWarning: if the models could use different images, so that their accuracies are of different queries.
    """
    answers = [dict(_answers(run)) for run in runs]
    for run, those in zip(runs, answers, strict=True):
        if runs[0].protocol.by_unit and those.keys() != answers[0].keys():
            raise ValueError(
                f"models {runs[0].label} and {run.label} have other episodes, as one of them could not use images that "
                f"the other could: {len(run.protocol.skipped)} were left out, {len(runs[0].protocol.skipped)} there"
            )
    shared = [key for key in answers[0] if all(key in those for those in answers)]
    if any(len(those) > len(shared) for those in answers):
        counts = ", ".join(f"{run.label} {len(those)}" for run, those in zip(runs, answers, strict=True))
        warnings.warn(
            f"the accuracies are of different queries, as models could not use images that others could: {counts}; "
            f"the figure is drawn from the {len(shared)} that all have",
            stacklevel=2,
        )
    by_unit = runs[0].protocol.by_unit
    asked = [Query(*key, tuple(those[key] for those in answers), by_unit) for key in shared]
    fitting: Callable[[Query], bool] = {
        "correct": lambda query: all(query.column("correct")),
        "wrong": lambda query: not any(query.column("correct")) and _has_supports(runs, query),
        "any": lambda query: True,
    }[which]
    found = [query for query in asked if fitting(query)]
    if not found:
        said = {"correct": "right", "wrong": "wrong"}.get(which, "")
        raise ValueError(f"no query that all models get {said}, among {len(asked)}: choose another --which")
    if items:
        named = [_named(asked, item) for item in items]
        unfit = [name for name, query in named if query is None or not fitting(query)]
        if unfit:
            raise ValueError(f"items: {', '.join(unfit)} is no query that --which {which} asks for")
        return _each_once([query for _, query in named if query is not None])
    random.Random(seed).shuffle(found)
    return list(_distinct(found))[:count]


def check_scale(methods: Sequence[MapMethod], scale: Scale) -> None:
    """Refuse signed maps for ``"minmax"``, which would lose where their zero is.

    Raises:
        ValueError: for a method with a foil, or any but FAM with a normalization to [0, 1] and unsigned baselines.
    """
    signed = [method.name for method in methods if not _is_unsigned(method)]
    if signed and scale == "minmax":
        raise ValueError(
            f"scale minmax: {', '.join(signed)} is signed, and would lose what speaks against the match; use zero"
        )


def model_figure(
    runs: Sequence[ModelRun],
    queries: Sequence[Query],
    methods: Sequence[MapMethod],
    *,
    which: Which = "correct",
    supports: bool = True,
    scale: Scale = "zero",
) -> MapFigure:
    """The paper's Figs. 2, 3 and 5, and for ``"wrong"`` Fig. 4, where each model has a map for either class.

    Args:
        runs: blocks of columns.
        queries: rows.
        methods: columns of each block.
        which: as for :func:`choose_queries`: for ``"correct"`` maps explain the true class, which is the predicted
            one; for ``"any"`` the predicted one; for ``"wrong"`` both.
        supports: show what the query was compared with; retrieved images have maps too.
        scale: of each map: ``"zero"`` is clear and the largest magnitude has the full color; or ``"minmax"``, clear
            is the smallest value, as in the paper, which shows what differs within maps that are large everywhere.

    Raises:
        ValueError: for ``"minmax"`` and signed maps, see :func:`check_scale`; or if there are no supports to show.
    """
    check_scale(methods, scale)
    roles = {"correct": ("label",), "any": ("predicted",), "wrong": ("predicted", "label")}[which]
    # Episodes are the same for all models, and so is the support of a class that all of them predict.
    once = supports and which == "correct" and runs[0].protocol.by_unit
    each = supports and not once
    first = runs[0].protocol
    blocks = [Block(first.header, ("query", first.support_title) if once else ("",))]
    names = [method.name if len(methods) > 1 else "" for method in methods]
    columns = tuple(first.columns(names, each)) * len(roles)
    blocks += [Block(f"{run.label}\n{format_percent(run.accuracy)}", columns) for run in runs]
    rows = []
    for query in queries:
        label = query.column("label")[0]
        row = [first.query_cell(query.item, f"{'' if which == 'correct' else 'true: '}{first.title(label)}")]
        if once:
            row.append(_support_cell(first.example(*query.places[0], label)))
        for run, (record, place) in zip(runs, query.places, strict=True):
            for role in roles:
                shown = record["queries"][role][place]
                title = "" if which == "correct" else f"{_ROLES[role]}: {run.protocol.title(shown)}"
                row += run.protocol.cells(record, place, shown, methods, each, title)
        rows.append([_scaled(cell, scale) for cell in row])
    return cell_grid(rows, blocks)


def format_percent(result: Result) -> str:
    """``"65.9 ± 0.8 %"``."""
    interval = "" if math.isnan(result.half_width) else f" ± {100 * result.half_width:.1f}"
    return f"{100 * result.value:.1f}{interval} %"


def _scaled(cell: Cell, scale: Scale) -> Cell:
    return cell if cell.map is None or scale == "zero" else replace(cell, map=cell.map - cell.map.min())


def _support_cell(example: Example) -> Cell:
    if example.support is None:
        raise ValueError("supports: a memory bank has no images to show; leave them out")
    return Cell(example.support)


def _has_supports(runs: Sequence[ModelRun], query: Query) -> bool:
    """Whether all models have something of the true class to compare the query with."""
    return all(
        run.protocol.has_support(record, row, record["queries"]["label"][row])
        for run, (record, row) in zip(runs, query.places, strict=True)
    )


def _answers(run: ModelRun) -> Iterator[tuple[tuple[int, int], tuple[Record, int]]]:
    for record in run.records:
        for row, item in enumerate(record["queries"].get("item", ())):
            yield (record["unit"], item), (record, row)


def _named(asked: Sequence[Query], item: int | tuple[int, int]) -> tuple[str, Query | None]:
    """An item as it is written, and the query that it names."""
    if isinstance(item, tuple):
        unit, position = item
        return f"{unit}:{position}", next((q for q in asked if (q.unit, q.item) == item), None)
    matching = [query for query in asked if query.item == item]
    if len(matching) > 1:
        raise ValueError(
            f"items: {item} is a query of {len(matching)} episodes; say of which, as {matching[0].name} or "
            f"{matching[1].name} (episode:item)"
        )
    return str(item), matching[0] if matching else None


def _each_once(queries: list[Query]) -> list[Query]:
    names = [query.name for query in queries]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"items: {', '.join(twice)} is given twice; a query has one row")
    return queries


def _is_unsigned(method: MapMethod) -> bool:
    normalized = method.base == "fam" and method.options.get("normalization", "auto") in _TO_ONE
    return method.foil is None and (normalized or method.base in _UNSIGNED)


def _distinct(queries: Sequence[Query]) -> Iterator[Query]:
    units: set[int] = set()
    items: set[int] = set()
    for query in queries:
        if query.item not in items and not (query.by_unit and query.unit in units):
            items.add(query.item)
            units.add(query.unit)
            yield query
