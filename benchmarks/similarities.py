"""Other similarities: what every method shows where the model decides by another similarity than the cosine.

    python -m benchmarks.similarities [--shared ../shared] [--runs runs/novel-classes] [--out docs/results] [--quick]

Both networks of `benchmarks.networks`, headless, on photographs of the novel classes of CUB, by three protocols. The
Mahalanobis distance and the relation head are fitted to photographs of the base classes. Images are embedded once, and
what is in --runs is not done again. Some 20 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import NETWORKS, Network
from benchmarks.novel_classes import Pairs, Photographs, accuracies, photographs, run, side_by_side, with_changes
from benchmarks.pages import Results, markdown_table, write_page
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
    "few-shot": (FewShot, "-foil", {"episodes": 10}, ("energy-positive", "swap", "coverage")),
    "retrieval": (Retrieval, "-runner-up", {}, ("energy-positive",)),
    "mosaic": (Mosaic, "-foil", {"mosaics": 24}, ("cell-energy", "cell-hit", "cell-auroc")),
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
    folder.mkdir(parents=True, exist_ok=True)
    matrix, relation = folder / "inverse-covariance.pt", folder / "relation-head.pt"
    embeddings, labels = given.base.embeddings, given.base.labels
    if not matrix.exists():
        torch.save(inverse_covariance(embeddings, labels), matrix)
    if not relation.exists():
        torch.save(train_relation_head(embeddings, labels).state_dict(), relation)
    state = torch.load(relation, weights_only=True)
    width, inputs = state["hidden.weight"].shape
    head = RelationHead(inputs // 3, width)
    head.load_state_dict(state)
    return torch.load(matrix, weights_only=True), head.eval().requires_grad_(False)


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


def section(network: Network, given: Photographs, runs: Path, protocols: dict[str, dict[str, Any]]) -> list[str]:
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
            folder = runs / network.name / f"{protocol}-{column.replace(', ', '-').replace(' ', '-')}"
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


def main(arguments: Iterable[str] | None = None, networks: dict[str, Network] | None = None) -> None:
    """Run what is missing and write the page."""
    networks = NETWORKS if networks is None else networks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(networks)}; default: all")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--data", default="{shared}/data/cub50", help="source of the photographs")
    parser.add_argument("--runs", type=Path, default=Path("runs/novel-classes"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--quick", action="store_true", help="a few photographs, episodes and mosaics, as a rehearsal")
    options = parser.parse_args(None if arguments is None else list(arguments))
    unknown = sorted(set(options.names) - set(networks))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    sizes = (6, 17) if options.quick else (20, 24)
    protocols = QUICK if options.quick else {name: {} for name in PROTOCOLS}
    lines: list[str] = []
    for name in options.names or networks:
        given = photographs(networks[name], options.shared, options.runs, options.data, sizes)
        runs = options.runs / ("similarities-quick" if options.quick else "similarities")
        lines += section(networks[name], given, runs, protocols)
    write_page(
        options.out / "similarities.md",
        "Other similarities",
        "python -m benchmarks.similarities" + (" --quick" if options.quick else ""),
        lines,
        note=NOTE.format(base=sizes[0], novel=sizes[1]),
        seed="seed 0",
    )


if __name__ == "__main__":
    main()
