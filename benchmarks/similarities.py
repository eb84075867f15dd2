"""Other similarities: what every method shows where the model decides by another similarity than the cosine.

    python -m benchmarks.similarities [--shared ../shared] [--runs runs/novel-classes] [--out docs/results] [--quick]

Both networks of `benchmarks.networks`, headless, on photographs of the novel classes of CUB, by three protocols. The
Mahalanobis distance and the relation head are fitted to photographs of the base classes. Images are embedded once, and
what is in --runs is not done again. Some 20 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import NETWORKS, Network
from benchmarks.novel_classes import Page, Pairs, Photographs, Protocols, accuracies, run, side_by_side, with_changes
from benchmarks.pages import Results, markdown_table
from benchmarks.pieces import file_name, kept_tensors
from captum_fam import LayerSimilarityCAM
from captum_fam.experiments import FewShot, Mosaic, Panel, Retrieval, TwoPartModel, get_methods
from captum_fam.experiments.relation_training import train_relation_head
from captum_fam.similarity import (
    EuclideanDifference,
    Learned,
    Mahalanobis,
    MahalanobisDifference,
    RelationHead,
    get_similarity,
    inverse_covariance,
)

TWINS = {"euclidean, naive": "euclidean", "squared, naive": "squared", "mahalanobis, naive": "mahalanobis"}
"""The same score with contributions that sum to the score itself: no method but FAM sees a difference."""
MAPS = "fam,fam{f},similarity-cam,similarity-cam{f},similarity-cam[smooth=5]{f},grad-cam,grad-cam{f}"
FLOORS = "mean-activation,center,uniform"
PROTOCOLS: dict[str, tuple[Any, str, dict[str, Any], tuple[str, ...]]] = {
    "few-shot": (FewShot, "-foil", {"episodes": 6}, ("energy-positive", "swap", "coverage")),
    "retrieval": (Retrieval, "-runner-up", {}, ("energy-positive",)),
    "mosaic": (Mosaic, "-foil", {"mosaics": 16}, ("cell-energy", "cell-hit", "cell-auroc")),
}
"""By name: class, the foil, options, and the measures that are shown."""
MEASURES = {"few-shot": ("localization", "swap"), "retrieval": ("localization",), "mosaic": ()}
QUICK = {"few-shot": {"episodes": 2}, "retrieval": {}, "mosaic": {"mosaics": 3}}
TITLES = {
    "few-shot": "Few-shot, 5-way 1-shot",
    "retrieval": "Retrieval: every photograph against the others",
    "mosaic": "2 x 2 mosaics, five supports",
}


def fitted(given: Photographs, folder: Path) -> tuple[Tensor, RelationHead]:
    """The matrix of the Mahalanobis distance and the relation head of the base classes, kept in a folder."""
    embeddings, labels = given.base.embeddings, given.base.labels
    matrix = kept_tensors(folder / "inverse-covariance.pt", lambda: inverse_covariance(embeddings, labels))
    state = kept_tensors(folder / "relation-head.pt", lambda: train_relation_head(embeddings, labels).state_dict())
    width, inputs = state["hidden.weight"].shape
    head = RelationHead(inputs // 3, width)
    head.load_state_dict(state)
    return matrix, head.eval().requires_grad_(False)


def similarities(matrix: Tensor, head: RelationHead) -> dict[str, Any]:
    """All similarities by the titles of their columns."""
    return {
        "cosine": "cosine",
        "dot": "dot",
        "euclidean": "euclidean",
        "euclidean, naive": EuclideanDifference(),
        "squared": "squared-euclidean",
        "squared, naive": EuclideanDifference(squared=True),
        "mahalanobis": Mahalanobis(matrix),
        "mahalanobis, naive": MahalanobisDifference(matrix),
        "relation head": Learned(head),
    }


def sums(models: dict[str, TwoPartModel], pairs: Pairs) -> list[str]:
    """What contributions and the exact map of each similarity sum to, as means over the queries."""
    rows: dict[str, dict[str, str]] = {}
    for name, model in models.items():
        similarity = get_similarity(model.similarity)
        scores = pairs.scores(model)
        with torch.no_grad():
            query, support = model.tail(pairs.queries), model.tail(pairs.support)
        support = support[pairs.target][:, None]
        ones = query.new_ones(len(query), 1)
        score = similarity.score(query, support)[:, 0]
        values = {
            "score": score,
            "score of zeros": similarity.score(torch.zeros_like(query), support)[:, 0],
            "contributions sum to": similarity.contributions(query, support, ones).sum(1),
        }
        row = {title: f"{float(value.mean()):.4g}" for title, value in values.items()}
        if similarity.has_weights:
            cam = LayerSimilarityCAM(scores, model.tail.activation)
            cam.has_warned = True
            details = cam.details(pairs.queries, target=pairs.target)
            assert isinstance(details.attributions, Tensor)
            total = details.attributions.flatten(1).sum(1)
            row["exact map sums to"] = f"{float(total.mean()):.4g}"
            row["of what it explains"] = f"{float(total.sum() / (score - values['score of zeros']).sum()):.3f}"
        else:
            row["exact map sums to"] = "refused, as above"
        rows[name] = row
    return markdown_table(rows, "similarity")


def section(network: Network, given: Photographs, runs: Path, protocols: Protocols) -> list[str]:
    """What was found on one network."""
    named = similarities(*fitted(given, runs / network.name))
    models = {name: with_changes(given.model, similarity) for name, similarity in named.items()}
    pairs = Pairs.of(given.novel)
    lines = [f"## {network.title}", ""]
    for protocol, options in protocols.items():
        make, foil, usual, measures = PROTOCOLS[protocol]
        names = [method.name for method in get_methods(f"{MAPS.format(f=foil)},{FLOORS}")]
        found: dict[str, Results] = {}
        notes: dict[tuple[str, str], str] = {}
        reasons: dict[str, int] = {}
        for column, model in models.items():
            chosen = []
            for method in get_methods(names):
                refusal = pairs.refusal(method, model)
                if refusal is not None:
                    number = reasons.setdefault(refusal, len(reasons) + 1)
                    notes[column, method.name] = f"refused ({number})"
                elif column in TWINS and method.base != "fam":
                    notes[column, method.name] = f"as {TWINS[column]}"
                else:
                    chosen.append(method)
            panel = Panel(tuple(chosen), MEASURES[protocol])
            folder = runs / network.name / file_name(f"{protocol} {column}")
            found[column] = run(make, model, given, folder, panel=panel, **{**usual, **options})
        lines += [f"### {TITLES[protocol]}", ""]
        lines += [*accuracies(found), ""]
        for measure in measures:
            lines += [f"`{measure}`:", "", *side_by_side(found, measure, names, notes), ""]
        lines += [f"({number}) {reason}." for reason, number in reasons.items()] + [""]
    queries = len(pairs.queries)
    return [
        *lines,
        "### What the maps sum to",
        "",
        f"Means over {queries} queries of five classes, without a foil, for the true class. An exact map explains what "
        "the score gains over that of the zero embedding. FAM's contributions sum to the same or, by the naive rule, "
        "to the score; its map, weighted after min-max, sums to neither, nor does Grad-CAM's.",
        "",
        *sums(models, pairs),
        "",
    ]


NOTE = (
    "{base} photographs of each base class are what the Mahalanobis distance (the inverse of the covariance within "
    "classes, shrunk by Ledoit and Wolf's amount) and the relation head (two layers on query, support and their "
    "product, 600 episodes) were fitted to; queries and supports are {novel} photographs of each novel class. `naive`: "
    "the score of the column to the left, and contributions that sum to it, `-(z - t)²`; a method without FAM's "
    "contributions gives the same map. `-foil`: minus the mean of the other classes; in retrieval `-runner-up`: minus "
    "the nearest image of another class. Only correct queries are explained, so that a column with another accuracy "
    "has other queries."
)


def main(arguments: Sequence[str] | None = None, networks: Mapping[str, Network] = NETWORKS) -> None:
    """Run what is missing and write the page."""
    page = Page("similarities", "Other similarities", __doc__, NOTE, section, PROTOCOLS, QUICK)
    page.write(arguments, networks)


if __name__ == "__main__":
    main()
