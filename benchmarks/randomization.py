"""Do the maps depend on what a network has learned? Both networks, made random from the top down, on CUB photographs.

    python -m benchmarks.randomization [--only NETWORK] [--queries 4] [--shared ../shared] [--runs runs/randomization]

The queries are photographs of the novel classes, the supports five others of each class, and every query is explained
for its own class. Each stage draws the weights of one more part of the network anew
(:func:`captum_fam.metrics.cascading_randomization`). What is in --runs is not computed again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.command_line import command, parser_for
from benchmarks.networks import NETWORKS, Network
from benchmarks.pages import interval, markdown_table, write_page
from benchmarks.pieces import kept
from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.experiments import TwoPartModel, get_methods, load_dataset, load_model
from captum_fam.experiments.data.episodes import EpisodeItems, EpisodeSampler
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.records import as_numbers, jsonable
from captum_fam.metrics import cascading_randomization, map_correlation, summarize

METHODS = "fam,similarity-cam,similarity-cam-foil,grad-cam-foil,correspondence,mean-activation,center"
SHOT = 5
TWO_RANDOM = "two random networks"


def parts_of(backbone: nn.Module) -> list[str]:
    """The parts of a backbone that are made random one after the other, the last first.

    Args:
        backbone: its children are the parts; the children of a child ``blocks`` count by themselves.
    """
    names = []
    for name, child in backbone.named_children():
        inner = [f"{name}.{block}" for block, _ in child.named_children()] if name == "blocks" else [name]
        names += [part for part in inner if any(True for _ in backbone.get_submodule(part).parameters())]
    return names[::-1]


def maps_of(model: TwoPartModel, queries: Tensor, target: Tensor, supports: Tensor, labels: Tensor) -> Tensor:
    """The maps of all methods for all queries, one method after the other, ``(methods * B, 1, h, w)``.

    Args:
        model: the network.
        queries: images, ``(B, 3, H, W)``.
        target: the class of each query, ``(B,)``.
        supports: images, ``(K, 3, H, W)``.
        labels: the class of each support, ``(K,)``.
    """
    activation, support = model.activation(queries), SupportSet(model.activation(supports), labels)
    scores_for = partial(SimilarityToSupport, model.tail, support, model.similarity)
    size = (queries.shape[2], queries.shape[3])
    return torch.cat(
        [method.maps(scores_for, model.tail, activation, target, size).maps for method in get_methods(METHODS)]
    )


def correlations(model: TwoPartModel, images: Tensor, episode: EpisodeItems) -> dict[str, dict[str, list[Any]]]:
    """Rank correlations with the maps of the trained network, by stage and method, one for each query.

    Args:
        model: the trained network.
        images: all images as inputs of the network, those of the queries first.
        episode: the queries and supports by class.
    """
    n_classes, count = episode.query.shape
    target = torch.arange(n_classes).repeat_interleave(count)
    labels = torch.arange(n_classes).repeat_interleave(episode.support.shape[1])
    queries, supports = images[: len(target)], images[len(target) :]
    explain = partial(maps_of, queries=queries, target=target, supports=supports, labels=labels)
    names = [f"backbone.{part}" for part in parts_of(model.backbone)]
    stages = cascading_randomization(model, explain, names)
    found = {stage.layer.removeprefix("backbone."): stage.spearman for stage in stages}
    other = cascading_randomization(model, explain, ["backbone"], seed=1)[-1]
    found[TWO_RANDOM] = map_correlation(stages[-1].maps, other.maps, "spearman")
    methods = [method.name for method in get_methods(METHODS)]
    return {
        stage: dict(zip(methods, map(jsonable, values.split(len(target))), strict=True))
        for stage, values in found.items()
    }


def measured(network: Network, shared: Path, runs: Path, queries: int) -> dict[str, dict[str, list[Any]]]:
    """The correlations of a network, kept in ``runs``.

    Args:
        network: the network.
        shared: folder of data and weights.
        runs: folder of the results.
        queries: queries of each class.
    """

    def make() -> dict[str, dict[str, list[Any]]]:
        model = load_model(network.model, network.weights(shared))
        dataset = load_dataset(str(shared / "data/cub50"), "novel", model)
        labels = labels_of(dataset)
        episode = EpisodeSampler(labels, len(labels.unique()), SHOT, queries, 1, 0).episode(0)
        items = torch.cat([episode.query.flatten(), episode.support.flatten()]).tolist()
        return correlations(model, torch.stack([dataset[item][0] for item in items]), episode)

    stages: dict[str, dict[str, list[Any]]] = kept(runs / f"{network.name}-{queries}.json", make)
    return stages


def cell(column: list[Any]) -> str:
    """A mean over queries with its interval."""
    return interval(summarize(as_numbers(column)), of=len(column), digits=2)


def main() -> None:
    """Make both networks random, and write the page."""
    parser = parser_for("benchmarks.randomization", __doc__, runs="runs/randomization", out="docs/results")
    parser.add_argument("--only", choices=tuple(NETWORKS), help="measure this network only, and write no page")
    parser.add_argument("--queries", type=int, default=4, help="queries of each of the twelve classes")
    options = parser.parse_args()
    sections: list[str] = []
    for network in NETWORKS.values():
        if options.only not in (None, network.name):
            continue
        stages = measured(network, options.shared, options.runs, options.queries)
        rows = {
            f"`{stage}`" if stage != TWO_RANDOM else f"*{stage}*": {
                name: cell(values) for name, values in columns.items()
            }
            for stage, columns in stages.items()
        }
        count = len(next(iter(stages[TWO_RANDOM].values())))
        sections += [f"## {network.title}", "", f"{count} queries.", "", *markdown_table(rows, "random down to"), ""]
    if options.only is None:
        write_page(
            options.out / "randomization.md",
            "Parameter randomization: do the maps show what a network has learned?",
            command(parser, options),
            sections,
            note="Rank correlation (Spearman, over the positions of the layer) between the map of the trained network "
            "and the map after all parts from the last down to this one have been made random: the mean over queries, "
            "which share their supports. `center` never changes. The last row compares the maps of two networks that "
            "are random throughout: what the image and the architecture give without any training. Flat maps are left "
            "out; a dash stands where the maps of all queries are flat, as those with a foil are when random weights "
            "embed all images alike.",
            seed="seed 0, and 1 for the second random network",
        )


if __name__ == "__main__":
    main()
