"""Photographs of novel classes, embedded once for any number of protocols, similarities and poolings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.command_line import command, parser_for
from benchmarks.networks import Network
from benchmarks.pages import Results, markdown_table, read, write_page
from captum_fam import SimilarityToSupport, SupportSet
from captum_fam._files import sha256_of_weights
from captum_fam.embedding.labeled_dataset import find_class_names
from captum_fam.experiments import TwoPartModel, evaluate, load_dataset, load_model
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.features import Features, extract
from captum_fam.experiments.table_methods import TableMethod


class FirstOfEach(Dataset[Any]):
    """The first images of every class of a data set.

    Args:
        dataset: items with labels, as :func:`~captum_fam.experiments.load_dataset` gives.
        count: images of a class.
    """

    def __init__(self, dataset: Dataset[Any], count: int) -> None:
        labels = labels_of(dataset)
        rows = torch.cat([(labels == label).nonzero()[:count, 0] for label in labels.unique()]).sort().values
        self.dataset, self.rows, self.labels = dataset, rows.tolist(), labels[rows]
        self.class_names = find_class_names(dataset)
        if hasattr(dataset, "records"):
            self.records = tuple(dataset.records[row] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.rows[index]]


@dataclass(frozen=True)
class Photographs:
    """A network, and the features of the photographs that it is fitted to and looked at with.

    Attributes:
        model: the network, cut at its pooled layer.
        base: features of the base classes.
        novel: features of the novel classes, with their images.
        dataset: the photographs of the novel classes.
    """

    model: TwoPartModel
    base: Features
    novel: Features
    dataset: FirstOfEach


def photographs(network: Network, shared: Path, runs: Path, data: str, sizes: tuple[int, int]) -> Photographs:
    """Load a network and embed the photographs, or read the features of an earlier run.

    Args:
        network: the network.
        shared: folder of data and weights.
        runs: folder of the features.
        data: source of the photographs, as for ``load_dataset``; ``{shared}`` stands for the shared folder.
        sizes: images per class, of the base classes and of the novel classes.
    """
    model = load_model(network.model, network.weights(shared))
    fast, source = model.fast_copy(), sha256_of_weights(model)
    datasets = {
        split: FirstOfEach(load_dataset(data.format(shared=shared), split, model), count)
        for split, count in zip(("base", "novel"), sizes, strict=True)
    }
    base, novel = (
        extract(
            fast,
            datasets[split],
            runs / f"{network.name}-{split}-{count}",
            ("activations", "images") if split == "novel" else ("activations",),
            progress=True,
            name=f"{network.name}, {split}",
            source=source,
        )
        for split, count in zip(("base", "novel"), sizes, strict=True)
    )
    return Photographs(model, base, novel, datasets["novel"])


def run(make: Callable[..., Any], model: TwoPartModel, given: Photographs, out: Path, **options: Any) -> Results:
    """Run a protocol on the novel classes, or finish it, without embedding their images again.

    Args:
        make: class of the protocol.
        model: the network with its similarity and pooling.
        given: the photographs.
        out: folder of the results.
        **options: further arguments of the protocol.
    """
    protocol = make(model, given.dataset, **options)

    def prepare(*_: object, **__: object) -> Any:
        return protocol.prepared(model.fast_copy(), given.novel)

    protocol.prepare = prepare
    evaluate(protocol, out, examples=0, progress=True)
    return read(out)


def with_changes(model: TwoPartModel, similarity: Any = None, pooling: Any = None) -> TwoPartModel:
    """A copy of a network with another similarity or pooling."""
    changed = copy.deepcopy(model)
    if similarity is not None:
        changed.similarity = similarity
    if pooling is not None:
        changed.tail.pooling = pooling
    return changed


@dataclass(frozen=True)
class Pairs:
    """Queries of five novel classes beside one support of each class, for accounts.

    Attributes:
        support: activations of the supports, ``(5, N, h, w)``.
        queries: activations of the queries, ``(B, N, h, w)``.
        target: class of each query, ``(B,)``.
    """

    support: Tensor
    queries: Tensor
    target: Tensor

    @classmethod
    def of(cls, novel: Features, queries: int = 8) -> Pairs:
        """The first images of the first five classes: one support, and the queries behind it."""
        members = [(novel.labels == label).nonzero()[: queries + 1, 0] for label in novel.labels.unique()[:5]]
        rows = torch.cat([rows[1:] for rows in members])
        target = torch.arange(len(members)).repeat_interleave(torch.tensor([len(rows) - 1 for rows in members]))
        return cls(novel.activations(torch.stack([rows[0] for rows in members])), novel.activations(rows), target)

    def scores(self, model: TwoPartModel, foil: str | None = None) -> SimilarityToSupport:
        """The scores of the queries."""
        supports = SupportSet(self.support, torch.arange(len(self.support)))
        return SimilarityToSupport(model.tail, supports, model.similarity, foil)

    def refusal(self, method: TableMethod, model: TwoPartModel) -> str | None:
        """Why a method cannot explain a network with its similarity, in the words of the package; None if it can."""
        try:
            method.maps(
                lambda foil: self.scores(model, foil),
                model.tail,
                self.queries[:2],
                self.target[:2],
                model.height_and_width,
            )
        except ValueError as error:
            return str(error)
        return None


def accuracies(results: Mapping[str, Results]) -> list[str]:
    """The model's accuracy, with a column for each similarity or pooling."""
    row = {column: found.model[0].removeprefix("accuracy ") for column, found in results.items()}
    return markdown_table({"accuracy of the model": row}, "")


def side_by_side(
    results: Mapping[str, Results], measure: str, methods: Sequence[str], notes: Mapping[tuple[str, str], str]
) -> list[str]:
    """One measure of the methods that have it, with a column for each similarity or pooling.

    Args:
        results: by the title of the column.
        measure: the measure.
        methods: rows.
        notes: what stands in a cell that has no number, by column and method.
    """
    rows = {}
    for method in methods:
        if any(measure in found.cells.get(method, {}) for found in results.values()):
            cells = {
                column: notes.get((column, method)) or found.cells.get(method, {}).get(measure)
                for column, found in results.items()
            }
            rows[method] = {column: cell for column, cell in cells.items() if cell}
    return markdown_table(rows)


Protocols = Mapping[str, Mapping[str, Any]]
"""The protocols of a page by name, with options in place of the usual ones."""


@dataclass(frozen=True)
class Page:
    """A page of docs/results about the photographs of novel classes, and the benchmark that writes it.

    Attributes:
        name: name of the benchmark and of the page.
        title: title of the page.
        description: docstring of the benchmark.
        note: what stands above the tables; ``{base}`` and ``{novel}`` are the photographs of a class.
        section: from a network, its photographs, a folder of results and protocols to the lines about the network.
        protocols: names of the protocols.
        quick: the protocols of a rehearsal.
    """

    name: str
    title: str
    description: str | None
    note: str
    section: Callable[[Network, Photographs, Path, Protocols], list[str]]
    protocols: Collection[str]
    quick: Protocols

    def write(self, arguments: Sequence[str] | None, networks: Mapping[str, Network]) -> None:
        """Run what is missing and write the page.

        Args:
            arguments: words of the command line; None for those of the process.
            networks: the networks by name.
        """
        parser = parser_for(
            f"benchmarks.{self.name}",
            self.description,
            names=networks,
            runs="runs/novel-classes",
            out="docs/results",
            quick="a few photographs, episodes and mosaics, as a rehearsal",
        )
        parser.add_argument("--data", default="{shared}/data/cub50", help="source of the photographs")
        options = parser.parse_args(arguments)
        sizes = (6, 17) if options.quick else (20, 24)
        folder = options.runs / (f"{self.name}-quick" if options.quick else self.name)
        protocols = self.quick if options.quick else {name: {} for name in self.protocols}
        lines: list[str] = []
        for name in options.names or networks:
            given = photographs(networks[name], options.shared, options.runs, options.data, sizes)
            lines += self.section(networks[name], given, folder, protocols)
        write_page(
            options.out / f"{self.name}.md",
            self.title,
            command(parser, options),
            lines,
            note=self.note.format(base=sizes[0], novel=sizes[1]),
            seed="seed 0",
        )
