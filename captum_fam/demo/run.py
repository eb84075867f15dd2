"""What ``captum-fam demo`` does: explain matches on planted scenes, where the truth is known to the pixel."""

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
from captum_fam.demo.scenes import PlantedScenes
from captum_fam.explanation import Explanation, explain
from captum_fam.metrics import energy_proportion
from captum_fam.support import SupportSet
from captum_fam.visualization import visualize_match

_WAY = 5


@dataclass(frozen=True)
class _Method:
    """A method of the demo's table.

    Attributes:
        title: in words.
        name: in the registry of map methods.
        foil: as for :func:`~captum_fam.explain`.
        is_drawn: whether the figure shows the method.
    """

    title: str
    name: str
    foil: Literal["others"] | None = None
    is_drawn: bool = False


# The first tells which queries are matched; all methods explain the same scores, apart from the foil.
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
        title: the method in words.
        energy: mean over queries of the share of the map's positive part that lies inside the object.
        standard_error: of ``energy``; NaN for a single query.
        hits: share of queries whose map has its maximum inside the object.
        n_zero: queries left out of ``energy`` because their map has no positive part.
        coverage: mean over queries of what the map explains of the score; None for methods without an account of it.
    """

    title: str
    energy: float
    standard_error: float
    hits: float
    n_zero: int
    coverage: float | None = None

    @classmethod
    def of(cls, title: str, energies: Tensor, hits: Tensor, coverages: Tensor | None = None) -> DemoRow:
        """The row of a method from one value per query.

        Args:
            title: the method in words.
            energies: ``(n,)``, NaN for a map without a positive part.
            hits: boolean ``(n,)``, or the chance of a hit.
            coverages: ``(n,)``, NaN where the score is zero; None for a method without an account of the score.

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
        """The row as the table shows it: title, energy, hits and remarks."""
        remarks = [] if self.coverage is None else [f"explains {100 * self.coverage:.0f} % of the score"]
        remarks += [f"{self.n_zero} zero maps left out"] if self.n_zero else []
        numbers = [f"{self.energy:.3f} ± {self.standard_error:.3f}", f"{self.hits:.0%}"]
        return [self.title, *numbers, f"({', '.join(remarks)})" if remarks else ""]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        figure: the file with the first query that was matched correctly.
        rows: one per method, the constant map last.
        n_matched: queries matched correctly, over which the rows are taken.
        n_queries: all queries.
    """

    figure: Path
    rows: tuple[DemoRow, ...]
    n_matched: int
    n_queries: int

    def __str__(self) -> str:
        introduction = (
            f"{self.n_queries} queries of classes the network has never seen, {_WAY}-way 1-shot: {self.n_matched} "
            f"({self.n_matched / self.n_queries:.0%}) matched correctly. What their maps show of the object that query "
            "and support share:"
        )
        head = ["", "energy inside", "maximum inside", ""]
        table = align_columns([head, *(row.cells for row in self.rows)], "<>><")
        return "\n".join([*textwrap.wrap(introduction, 88), "", *table, "", f"figure: {self.figure}"])


@dataclass
class _Measured:
    """The values of one method, in batches of queries."""

    energies: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    coverages: list[Tensor] = field(default_factory=list)

    def add(self, explanation: Explanation, queries: Tensor, masks: Tensor) -> None:
        """Measure the maps of these queries, whose objects have the masks ``(n, H, W)``."""
        maps = explanation.maps[queries, 0]
        self.energies.append(energy_proportion(maps, masks, energy="positive"))
        maximum = maps.flatten(1).argmax(1, keepdim=True)
        self.hits.append(masks.flatten(1).gather(1, maximum).squeeze(1))
        if explanation.coverage is not None:
            self.coverages.append(explanation.coverage[queries])

    def row(self, title: str) -> DemoRow:
        """The means over all queries."""
        coverages = torch.cat(self.coverages) if self.coverages else None
        return DemoRow.of(title, torch.cat(self.energies), torch.cat(self.hits), coverages)


def run_demo(out: str | Path = "captum-fam-demo", *, seed: int = 0, episodes: int = 24) -> DemoResult:
    """Explain the matches of the built-in network, measure the maps, and draw the first.

    Every query shares with the support of its class one object and nothing else; the foil is the supports of the
    other four classes. Queries that the network matches with another class are counted, and not explained.

    Args:
        out: folder of the figure ``demo.png``. Default: ``captum-fam-demo``.
        seed: of the scenes. Default: 0.
        episodes: of five classes, one support and one query per class. Default: 24.

    Returns:
        The numbers and the figure; printed, they are a table.

    Raises:
        RuntimeError: if the network matches no query, as only weights do that were not shipped with the package.

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
    # A constant map has as much energy inside as the object has area, and as large a chance of a hit.
    rows = [*(measured[method].row(method.title) for method in _METHODS), DemoRow.of("constant map (area)", area, area)]
    return DemoResult(figure, tuple(rows), len(area), _WAY * episodes)


def _draw(explanations: dict[_Method, Explanation], episode: Episode, index: int, out: Path) -> Path:
    """Draw the maps of one query, and return the file."""
    label = episode.classes[int(episode.query_labels[index])]
    mask = episode.query[index].mask
    maps, scores, notes = {}, {}, {}
    for method, explanation in explanations.items():
        if method.is_drawn:
            inside = float(energy_proportion(explanation.maps[index], mask[None], energy="positive"))
            title = f"{method.title}\n{inside:.0%} inside the object"
            maps[title] = explanation.maps[index]
            scores[title] = float(explanation.target_scores[index])
            notes[title] = explanation.account_text(index)
    path = out / "demo.png"
    visualize_match(
        episode.query_images[index],
        maps,
        supports=[scene.image for scene in episode.support if scene.label == label],
        foils=[scene.image for scene in episode.support if scene.label != label],
        scores=scores,
        notes=notes,
        scale="own",
        mask=mask,
        titles={
            "query": f"query\noutlined: the shared object\n{mask.float().mean():.0%} of the image",
            "supports": f"support\n{CLASSES[label]}",
            "foils": "foil: other classes",
        },
    ).save(path)
    return path
