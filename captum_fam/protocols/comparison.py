"""One figure of several models: the same queries, a column of maps a model, and its accuracy above."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from captum_fam.data.boxes import Squash, clip_boxes
from captum_fam.metrics import Result
from captum_fam.protocols.base import Example, ModelProtocol, cached
from captum_fam.protocols.contrastive import Contrastive
from captum_fam.protocols.evaluation import summarize_records
from captum_fam.protocols.few_shot import FewShot
from captum_fam.protocols.figures import Block, Cell, cell_grid
from captum_fam.protocols.methods import Foil, MapMethod, PairedScores
from captum_fam.protocols.ranks import Ranks
from captum_fam.protocols.retrieval import Retrieval
from captum_fam.protocols.store import Record
from captum_fam.visualization import MapFigure

Which = Literal["correct", "wrong", "any"]
Scale = Literal["zero", "minmax"]

_PHOTOGRAPH = 480  # pixels of the longer side
_ROLES = {"label": "true", "predicted": "predicted"}


class _Photographs(ModelProtocol):
    """Shows photographs with pixels and shape of their files, where the model's view is a squashed one."""

    def image(self, item: int, dataset: Dataset[Any] | None = None) -> Tensor:
        shown = self.dataset if dataset is None else dataset
        if not _is_squashed(shown):
            return super().image(item, dataset)
        with Image.open(shown.records[item].path) as opened:  # type: ignore[attr-defined]
            photograph = opened.convert("RGB")
        photograph.thumbnail((_PHOTOGRAPH, _PHOTOGRAPH))
        return pil_to_tensor(photograph).float() / 255

    def title(self, label: int) -> str:
        """The name of a class without the number in front that the folders of CUB have."""
        return re.sub(r"^\d+\.", "", self.class_name(label))

    def boxes(self, item: int, size: Sequence[int]) -> Tensor | None:
        """The boxes of an item ``(n, 4)`` in its image of the given height and width; None where there are none."""
        height, width = size
        if not _is_squashed(self.dataset):
            _, _, *boxes = self.dataset[item]
            return boxes[0] if boxes else None
        record = self.dataset.records[item]  # type: ignore[attr-defined]
        with Image.open(record.path) as opened:
            inside = clip_boxes(record.boxes, *opened.size)
            return Squash((height, width)).map_boxes(inside, *opened.size)


class FewShotFigure(_Photographs, FewShot):
    """:class:`FewShot` as :func:`model_figure` takes it."""


class ContrastiveFigure(_Photographs, Contrastive):
    """:class:`Contrastive` as :func:`model_figure` takes it."""


class RetrievalFigure(_Photographs, Retrieval):
    """:class:`Retrieval` as :func:`model_figure` takes it."""

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
    protocol: Any
    records: list[Record]
    accuracy: Result


@dataclass(frozen=True)
class Query:
    """A query of a figure, and where the records have it.

    Attributes:
        unit: the episode or batch.
        item: its position in the dataset.
        places: for each run, the record and the row in it.
    """

    unit: int
    item: int
    places: tuple[tuple[Record, int], ...]

    def column(self, name: str) -> list[Any]:
        """A column of the records, a value a run."""
        return [record["queries"][name][row] for record, row in self.places]


def run_model(
    label: str, protocol: ModelProtocol, folder: str | Path, *, device: str = "cpu", progress: bool = False
) -> ModelRun:
    """Put all queries to a model.

    Args:
        label: what the figure is to call it.
        protocol: with ``Panel((), ())``: maps are made of the chosen queries only.
        folder: for the features, which the figure is then drawn from.
        device: of the model.
        progress: show progress bars.
    """
    protocol.prepare(Path(folder) / "features", Ranks(device=device), progress)
    units = protocol.run(range(len(protocol)))
    records = list(tqdm(units, label, len(protocol), unit=protocol.unit, disable=not progress))
    own = summarize_records(protocol, records).model
    return ModelRun(label, protocol, records, own.get("recall@1", own["accuracy"]))


def choose_queries(
    runs: Sequence[ModelRun], which: Which = "correct", count: int = 6, seed: int = 0, items: Sequence[int] = ()
) -> list[Query]:
    """Queries that all models get right, or wrong, drawn at random; of an episode at most one, and no image twice.

    Args:
        runs: of the same queries.
        which: ``"correct"``: by all models; ``"wrong"``: by all, where there is something of the true class to compare
            with; or ``"any"``.
        count: how many; fewer where there are no more.
        seed: of the choice.
        items: take these instead, by their position in the dataset.

    Raises:
        ValueError: if the models were not asked the same, or there is no such query.
    """
    answers = [dict(_answers(run)) for run in runs]
    for run, those in zip(runs, answers, strict=True):
        if runs[0].protocol.by_unit and those.keys() != answers[0].keys():
            raise ValueError(
                f"models {runs[0].label} and {run.label} have other episodes, as one of them could not use images that "
                f"the other could: {len(run.protocol.skipped)} were left out, {len(runs[0].protocol.skipped)} there"
            )
    shared = [key for key in answers[0] if all(key in those for those in answers)]
    asked = [Query(*key, tuple(those[key] for those in answers)) for key in shared]
    fitting = {
        "correct": lambda query: all(query.column("correct")),
        "wrong": lambda query: not any(query.column("correct")) and _has_supports(runs, query),
        "any": lambda query: True,
    }[which]
    found = [query for query in asked if fitting(query)]
    if not found:
        said = {"correct": "right", "wrong": "wrong"}.get(which, "")
        raise ValueError(f"no query that all models get {said}, among {len(asked)}: choose another --which")
    if items:
        by_item = {query.item: query for query in reversed(found)}
        missing = [str(item) for item in items if item not in by_item]
        if missing:
            raise ValueError(f"items: {', '.join(missing)} is no query that --which {which} asks for")
        return [by_item[item] for item in items]
    random.Random(seed).shuffle(found)
    return list(_distinct(found, runs[0].protocol.by_unit))[:count]


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
        scale: of each map: ``"zero"`` is clear and the largest magnitude has the full colour; or ``"minmax"``, clear
            is the smallest value, as in the paper, which shows what differs within maps that are large everywhere.
    """
    roles = {"correct": ("label",), "any": ("predicted",), "wrong": ("predicted", "label")}[which]
    # Episodes are the same for all models, and so is the support of a class that all of them predict.
    once = supports and which == "correct" and runs[0].protocol.by_unit
    first = runs[0].protocol
    blocks = [Block(_measure(first), ("query", _support_title(first)) if once else ("",))]
    columns = tuple(_column_titles(first, roles, methods, supports and not once))
    blocks += [Block(f"{run.label}\n{format_percent(run.accuracy)}", columns) for run in runs]
    rows = []
    for query in queries:
        row = [_query_cell(first, query, which)]
        if once:
            row.append(_support_cell(first.example(*query.places[0], query.column("label")[0])))
        for run, (record, place) in zip(runs, query.places, strict=True):
            for role in roles:
                row += _cells(run.protocol, record, place, role, methods, which, supports and not once, scale)
        rows.append(row)
    return cell_grid(rows, blocks)


def format_percent(result: Result) -> str:
    """``"65.9 ± 0.8 %"``."""
    interval = "" if math.isnan(result.half_width) else f" ± {100 * result.half_width:.1f}"
    return f"{100 * result.value:.1f}{interval} %"


def _cells(
    protocol: Any,
    record: Record,
    place: int,
    role: str,
    methods: Sequence[MapMethod],
    which: Which,
    supports: bool,
    scale: Scale,
) -> Iterator[Cell]:
    """What a model says of a query and a class."""
    label = record["queries"][role][place]
    title = "" if which == "correct" else f"{_ROLES[role]}: {protocol.title(label)}"
    example = protocol.example(record, place, label)
    retrieval = isinstance(protocol, Retrieval)
    if supports and not retrieval:
        yield _support_cell(example)
    for method in methods:
        if method.foil and not example.has_foil:
            yield Cell(example.image, f"{title}\nno other class to contrast with".strip())
        else:
            yield Cell(example.image, title, _map(protocol, method, example, scale))
        if supports and retrieval:
            retrieved = protocol.reverse(record, place, label)
            yield Cell(retrieved.image, "", _map(protocol, method, retrieved, scale))


def _column_titles(protocol: Any, roles: Sequence[str], methods: Sequence[MapMethod], supports: bool) -> Iterator[str]:
    """Titles of the columns of a model, in the order of :func:`_cells`."""
    for _ in roles:
        if supports and not isinstance(protocol, Retrieval):
            yield _support_title(protocol)
        for method in methods:
            name = method.name if len(methods) > 1 else ""
            if supports and isinstance(protocol, Retrieval):
                yield from (f"{name}\nquery".strip(), f"{name}\nretrieved".strip())
            else:
                yield name


def _map(protocol: Any, method: MapMethod, example: Example, scale: Scale) -> Tensor:
    maps: Tensor = protocol.maps(method, example.scores_for, example.activation, example.target)
    return (maps - maps.min() if scale == "minmax" else maps)[0].cpu()


def _query_cell(protocol: Any, query: Query, which: Which) -> Cell:
    image = protocol.image(query.item)
    name = protocol.title(query.column("label")[0])
    title = name if which == "correct" else f"true: {name}"
    return Cell(image, title, boxes=protocol.boxes(query.item, image.shape[1:]))


def _support_cell(example: Example) -> Cell:
    if example.support is None:
        raise ValueError("supports: a memory bank has no images to show; leave them out")
    return Cell(example.support)


def _support_title(protocol: Any) -> str:
    if isinstance(protocol, Contrastive):
        return "nearest of the class"
    shot = getattr(protocol, "shot", 1)
    return "support" if shot == 1 else f"support, 1 of {shot}"


def _measure(protocol: Any) -> str:
    """What the percentages are, for the header of the queries."""
    if isinstance(protocol, FewShot):
        return f"{protocol.way}-way {protocol.shot}-shot\naccuracy"
    return "query\nRecall@1" if isinstance(protocol, Retrieval) else f"query\n{protocol.k}-NN accuracy"


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


def _distinct(queries: Sequence[Query], by_unit: bool) -> Iterator[Query]:
    units: set[int] = set()
    items: set[int] = set()
    for query in queries:
        if query.item not in items and not (by_unit and query.unit in units):
            items.add(query.item)
            units.add(query.unit)
            yield query


def _is_squashed(dataset: Any) -> bool:
    """Whether the items are whole photographs, so that a map of an item lies on its file's pixels alike."""
    return hasattr(dataset, "records") and isinstance(getattr(dataset, "geometry", None), Squash)
