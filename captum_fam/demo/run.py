"""What ``captum-fam demo`` does: explain matches on planted scenes, where the truth is known to the pixel."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam.demo.network import load_demo_network
from captum_fam.demo.scenes import CLASSES, Episode, PlantedScenes
from captum_fam.explanation import Explanation, explain
from captum_fam.support import SupportSet

# In the table: title, method and foil. Those in the figure are marked.
_ROWS: tuple[tuple[str, str, Any, bool], ...] = (
    ("FAM", "fam", None, True),
    ("SimilarityCAM", "similarity-cam", None, False),
    ("SimilarityCAM with foil", "similarity-cam", "others", True),
    ("Grad-CAM of the cosine", "grad-cam", None, True),
    ("Grad-CAM with foil", "grad-cam", "others", False),
    ("mean activation", "mean-activation", None, False),
)


@dataclass(frozen=True)
class Row:
    """How well one method's maps find the object that query and support share.

    Attributes:
        title: the method in words.
        energy: mean over queries of the share of the map's positive part that lies inside the object.
        standard_error: of ``energy``.
        hits: share of queries whose map has its maximum inside the object.
        n_zero: queries left out because their map has no positive part.
        coverage: mean over queries of what the map explains of the score; None for methods without an account of it.
    """

    title: str
    energy: float
    standard_error: float
    hits: float
    n_zero: int
    coverage: float | None = None

    def __str__(self) -> str:
        numbers = f"{self.title:26}{self.energy:>10.3f} ± {self.standard_error:.3f}{self.hits:>13.0%}"
        said = [] if self.coverage is None else [f"explains {100 * self.coverage:.0f} % of the score"]
        said += [f"{self.n_zero} zero maps left out"] if self.n_zero else []
        return f"{numbers}   ({', '.join(said)})" if said else numbers


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        figure: the file with the first query that was matched correctly.
        rows: one a method, the constant map last.
        n_matched: queries matched correctly, over which the rows are taken.
        n_queries: all queries.
    """

    figure: Path
    rows: tuple[Row, ...]
    n_matched: int
    n_queries: int

    def __str__(self) -> str:
        introduction = (
            f"{self.n_queries} queries of classes the network has never seen, 5-way 1-shot: {self.n_matched} "
            f"({self.n_matched / self.n_queries:.0%}) matched correctly. What their maps show of the object that query "
            "and support share:"
        )
        lines = [
            *textwrap.wrap(introduction, 88),
            "",
            f"{'':26}{'energy inside':>16}{'maximum inside':>17}",
            *map(str, self.rows),
            "",
            f"figure: {self.figure}",
        ]
        return "\n".join(lines)


def run_demo(out: str | Path = "captum-fam-demo", *, seed: int = 0, episodes: int = 24) -> DemoResult:
    """Explain the matches of the built-in network, measure the maps, and draw the first.

    Every query shares with the support of its class one object and nothing else; the foil is the supports of the
    other four classes. Queries that the network matches with another class are counted, and not explained.

    Args:
        out: folder of the figure ``demo.png``.
        seed: of the scenes.
        episodes: of five classes, one support and one query each.

    Returns:
        The :class:`DemoResult`; printed, it is a table.
    """
    network = load_demo_network()
    scenes = PlantedScenes("novel", seed=seed)
    energies: dict[str, list[Tensor]] = {title: [] for title, *_ in _ROWS}
    hits: dict[str, list[Tensor]] = {title: [] for title, *_ in _ROWS}
    coverages: dict[str, list[Tensor]] = {title: [] for title, *_ in _ROWS}
    areas: list[Tensor] = []
    figure: Path | None = None
    for number in range(episodes):
        episode = scenes.episode(way=5, shot=1, query=1, seed=number)
        support = SupportSet(episode.support_images, episode.support_labels)
        explained = {
            title: explain(
                network,
                episode.query_images,
                support,
                layer="features",
                method=method,
                target=episode.query_labels,
                foil=foil,
            )
            for title, method, foil, _ in _ROWS
        }
        matched = (explained["FAM"].predicted == episode.query_labels).nonzero().flatten()
        masks = torch.stack([scene.mask for scene in episode.query])[matched]
        areas.append(masks.float().mean((1, 2)))
        for title, one in explained.items():
            maps = one.maps[matched, 0]
            energies[title].append(_energy_inside(maps, masks))
            hits[title].append(masks.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True)).squeeze(1))
            if one.coverage is not None:
                coverages[title].append(one.coverage[matched])
        if figure is None and len(matched):
            figure = _draw(explained, episode, int(matched[0]), Path(out))
    if figure is None:
        raise RuntimeError("the demo's network matched no query correctly; its weights are not those it shipped with")
    rows = [
        _row(title, torch.cat(energies[title]), torch.cat(hits[title]), torch.cat(coverages[title] or [torch.empty(0)]))
        for title in energies
    ]
    area = torch.cat(areas)
    rows.append(_row("constant map (area)", area, area, torch.empty(0)))
    return DemoResult(figure, tuple(rows), len(area), 5 * episodes)


def _energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive part of each map ``(B, H, W)`` inside its mask; NaN where there is none."""
    positive = maps.relu()
    return (positive * masks).sum((1, 2)) / positive.sum((1, 2))


def _row(title: str, energy: Tensor, hits: Tensor, coverage: Tensor) -> Row:
    known = energy[~energy.isnan()]
    error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else float("nan")
    explained = float(coverage.nanmean()) if len(coverage) else None
    return Row(title, float(known.mean()), error, float(hits.float().mean()), len(energy) - len(known), explained)


def _draw(explained: dict[str, Explanation], episode: Episode, index: int, out: Path) -> Path:
    from captum_fam.visualization import visualize_match

    label = int(episode.query_labels[index])
    mask = episode.query[index].mask
    maps, scores, notes = {}, {}, {}
    for title in (title for title, *_, drawn in _ROWS if drawn):
        one = explained[title]
        share = float(_energy_inside(one.maps[index], mask[None]))
        said = f"{title}\n{share:.0%} inside the object"
        maps[said] = one.maps[index]
        scores[said] = float(one.target_scores[index])
        notes[said] = one.account_text(index)
    path = out / "demo.png"
    visualize_match(
        episode.query_images[index],
        maps,
        supports=[scene.image for scene in episode.support if scene.label == episode.classes[label]],
        foils=[scene.image for scene in episode.support if scene.label != episode.classes[label]],
        scores=scores,
        notes=notes,
        scale="own",
        mask=mask,
        titles={
            "query": f"query\noutlined: the shared object\n{mask.float().mean():.0%} of the image",
            "supports": f"support\n{CLASSES[episode.classes[label]]}",
            "foils": "foil: other classes",
        },
    ).save(path)
    return path
