"""The command ``captum-fam demo``: explain matches of planted scenes, in which the object's mask is known."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from captum_fam._tables import align_columns
from captum_fam.demo.network import load_demo_network
from captum_fam.demo.scene_classes import CLASSES
from captum_fam.demo.scene_episodes import Episode
from captum_fam.demo.scene_report import write_scene_report
from captum_fam.demo.scenes import PlantedScenes
from captum_fam.explanation import Explanation, explain
from captum_fam.explanation.figure_words import unit_in_words
from captum_fam.metrics import energy_proportion
from captum_fam.support import SupportSet
from captum_fam.visualization import visualize_match

_WAY = 5


@dataclass(frozen=True)
class _Method:
    """A method of the demo's table.

    Attributes:
        title: the title of the row.
        name: the name in the registry of map methods.
        foil: as for :func:`~captum_fam.explain`. Default: None, no foil.
        is_drawn: whether the figure shows the method. Default: False.
    """

    title: str
    name: str
    foil: Literal["others"] | None = None
    is_drawn: bool = False


# The scores of the first method decide which queries are matched. All methods without a foil have the same scores.
_METHODS = (
    _Method("FAM", "fam", is_drawn=True),
    _Method("SimilarityCAM", "similarity-cam"),
    _Method("SimilarityCAM with foil", "similarity-cam", "others", is_drawn=True),
    _Method("Grad-CAM of the cosine", "grad-cam", is_drawn=True),
    _Method("Grad-CAM with foil", "grad-cam", "others"),
    _Method("mean activation", "mean-activation"),
)


@dataclass(frozen=True)
class DemoRow:
    """How well the maps of one method find the object that query and support share.

    Attributes:
        title: the title of the method.
        energy: the share of the map's positive part that lies inside the object, averaged over the queries.
        standard_error: the standard error of ``energy``; NaN for a single query.
        hits: the share of queries whose map has its maximum inside the object.
        n_zero: the number of queries that ``energy`` leaves out because their map has no positive part.
        coverage: the share of the score that the map explains, averaged over the queries; None for a method that gives
            no account of the score. Default: None.
    """

    title: str
    energy: float
    standard_error: float
    hits: float
    n_zero: int
    coverage: float | None = None

    @classmethod
    def of(cls, title: str, energies: Tensor, hits: Tensor, coverages: Tensor | None = None) -> DemoRow:
        """Average the values of all queries.

        Args:
            title: the title of the method.
            energies: the share of each map's positive part inside the object, ``(n,)``; NaN for a map without a
                positive part.
            hits: whether each map has its maximum inside the object, boolean ``(n,)``; or the chance of that.
            coverages: the share of each score that the map explains, ``(n,)``; NaN for a score of zero. Default: None,
                the method gives no account of the score.

        Example:
            >>> DemoRow.of("FAM", torch.tensor([0.25, 0.75, torch.nan]), torch.tensor([True, False, False])).energy
            0.5
        """
        known = energies[~energies.isnan()]
        standard_error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else float("nan")
        n_zero = len(energies) - len(known)
        coverage = None if coverages is None else float(coverages.nanmean())
        return cls(title, float(known.mean()), standard_error, float(hits.float().mean()), n_zero, coverage)

    @property
    def cells(self) -> list[str]:
        """The cells of the row in the table: title, energy, hits and remarks."""
        remarks = [] if self.coverage is None else [f"explains {100 * self.coverage:.0f} % of the score"]
        remarks += [f"{self.n_zero} zero maps left out"] if self.n_zero else []
        numbers = [f"{self.energy:.3f} ± {self.standard_error:.3f}", f"{self.hits:.0%}"]
        return [self.title, *numbers, f"({', '.join(remarks)})" if remarks else ""]


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo; printed, it is a table, and its last line is the file of the report.

    Attributes:
        figure: the file with the figure of the first query that was matched correctly.
        report: the file with the report of right and wrong matches.
        rows: one row per method, and last a row for a constant map.
        n_matched: the number of queries that were matched correctly; the rows are averages over these queries.
        n_queries: the number of all queries.
    """

    figure: Path
    report: Path
    rows: tuple[DemoRow, ...]
    n_matched: int
    n_queries: int

    def __str__(self) -> str:
        introduction = (
            f"{self.n_queries} drawn scenes of classes that the demo's own network has never seen, {_WAY}-way 1-shot: "
            f"{self.n_matched} ({self.n_matched / self.n_queries:.0%}; chance: {1 / _WAY:.0%}) matched correctly. How "
            "much of the positive part of their maps lies inside the object that query and support share (mean ± "
            "standard error), and how many maps have their maximum inside:"
        )
        head = ["", "energy inside", "maximum inside", ""]
        table = align_columns([head, *(row.cells for row in self.rows)], "<>><")
        files = [f"figure: {self.figure}", "report of both sides of matches, for a browser:", str(self.report)]
        return "\n".join([*textwrap.wrap(introduction, 88), "", *table, "", *files])


@dataclass
class _Measured:
    """The values of one method, in one tensor per episode."""

    energies: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    coverages: list[Tensor] = field(default_factory=list)

    def add(self, explanation: Explanation, queries: Tensor, masks: Tensor) -> None:
        """Measure maps of an episode.

        Args:
            explanation: the explanation of all queries of the episode.
            queries: the positions of the n queries to measure, ``(n,)``.
            masks: the mask of the object of each of these queries, ``(n, H, W)``.
        """
        maps = explanation.maps[queries, 0]
        self.energies.append(energy_proportion(maps, masks, energy="positive"))
        maximum = maps.flatten(1).argmax(1, keepdim=True)
        self.hits.append(masks.flatten(1).gather(1, maximum).squeeze(1))
        if explanation.coverage is not None:
            self.coverages.append(explanation.coverage[queries])

    def row(self, title: str) -> DemoRow:
        """The averages over all queries."""
        coverages = torch.cat(self.coverages) if self.coverages else None
        return DemoRow.of(title, torch.cat(self.energies), torch.cat(self.hits), coverages)


def run_demo(out: str | Path = "captum-fam-demo", *, seed: int = 0, episodes: int = 24) -> DemoResult:
    """Explain matches of the built-in network on planted scenes, measure the maps, draw one match, and write a report.

    Each query shares one object, and nothing else, with the support of its class. The foil is the support of the four
    other classes. Only queries that the network matches correctly are measured.

    Args:
        out: the folder for the figure ``demo.png`` and the report ``report.html``. Default: ``captum-fam-demo``.
        seed: the seed of the scenes. Default: 0.
        episodes: the number of episodes, each of five classes with one support and one query. Default: 24.

    Returns:
        The averages, and the files of the figure and the report.

    Raises:
        RuntimeError: if the network matches no query, which means that its weights are not those of the package.

    Example:
        >>> result = run_demo("demo", episodes=1)
        >>> result.n_queries, result.figure.name
        (5, 'demo.png')
    """
    network = load_demo_network()
    scenes = PlantedScenes("novel", seed=seed)
    measured = {method: _Measured() for method in _METHODS}
    areas: list[Tensor] = []
    figure: Path | None = None
    for number in range(episodes):
        episode = scenes.episode(way=_WAY, shot=1, query=1, seed=number)
        support = SupportSet(episode.support_images, episode.support_labels)
        explanations = {
            method: explain(
                network,
                episode.query_images,
                support,
                layer="features",
                method=method.name,
                target=episode.query_labels,
                foil=method.foil,
            )
            for method in _METHODS
        }
        matched = (explanations[_METHODS[0]].predicted == episode.query_labels).nonzero().flatten()
        masks = torch.stack([scene.mask for scene in episode.query])[matched]
        areas.append(masks.float().mean((1, 2)))
        for method, explanation in explanations.items():
            measured[method].add(explanation, matched, masks)
        if figure is None and len(matched):
            figure = _draw(explanations, episode, int(matched[0]), Path(out))
    if figure is None:
        raise RuntimeError("the demo's network matched no query; its weights are not those that it was shipped with")
    area = torch.cat(areas)
    # For a constant map, the energy inside the object and the chance of a hit both equal the area of the object.
    rows = [*(measured[method].row(method.title) for method in _METHODS), DemoRow.of("constant map (area)", area, area)]
    report = write_scene_report(network, scenes, Path(out) / "report.html")
    return DemoResult(figure, report, tuple(rows), len(area), _WAY * episodes)


def _draw(explanations: dict[_Method, Explanation], episode: Episode, index: int, out: Path) -> Path:
    """Draw the maps of one query, and return the file."""
    label = episode.classes[int(episode.query_labels[index])]
    mask = episode.query[index].mask
    maps, notes, units = {}, {}, {}
    for method, explanation in explanations.items():
        if method.is_drawn:
            inside = float(energy_proportion(explanation.maps[index], mask[None], energy="positive"))
            title = f"{method.title}\n{inside:.0%} inside the object"
            maps[title] = explanation.maps[index]
            notes[title] = f"score {explanation.score_text(index)}\n{explanation.account_text(index)}"
            units[title] = unit_in_words(explanation)
    path = out / "demo.png"
    visualize_match(
        episode.query_images[index],
        maps,
        supports=[scene.image for scene in episode.support if scene.label == label],
        foils=[scene.image for scene in episode.support if scene.label != label],
        notes=notes,
        units=units,
        caption="the network of the demo, layer features, cosine of the embeddings",
        scale="own",
        mask=mask,
        titles={
            "query": f"query\noutlined: the shared object\n{mask.float().mean():.0%} of the image",
            "supports": f"support\n{CLASSES[label]}",
            "foils": "foil: other classes",
        },
    ).save(path)
    return path
