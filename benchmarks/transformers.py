"""Transformers layer by layer: where the score is, and at which layer a map lies best.

    python -m benchmarks.transformers [--quick]
    python -m benchmarks.transformers --model timm/vit_small_patch14_dinov2 --weights FILE --data ../shared/data/cub50

Without --model it is the class-token ViT of docs/results/planted.md, on planted scenes of novel classes; its weights
are made by `python -m benchmarks.planted train`. --model takes any ViT of `create_model`, such as timm/, hf/ or
open_clip/ names, or a factory of your own. What is in --runs is not done again. Some ten minutes on one core for the
small network.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.command_line import command, parser_for
from benchmarks.novel_classes import Pairs
from benchmarks.pages import markdown_table, read, write_page
from benchmarks.pieces import file_name
from benchmarks.planted_vit import planted_vit
from benchmarks.transformer_layers import Layers, in_words, layers_of, names_in_tail
from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.experiments import (
    FewShot,
    Mosaic,
    Panel,
    TwoPartModel,
    evaluate,
    get_methods,
    load_dataset,
    split_model,
)
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.data.labels import labels_of
from captum_fam.models import create_model

PLANTED = "the class-token ViT of [planted.md](planted.md)"
PARTS = {"map": "patches", "class token": "class token", "registers": "registers", "bias": "biases", "rest": "rest"}
BY_LAYER = ("similarity-cam", "fam", "grad-cam")
FLOORS = ("attention", "attention-rollout", "mean-activation", "center", "uniform")


def methods_of(model: TwoPartModel, layers: Layers) -> dict[str, str]:
    """The methods of the tables, with the names of their rows: at every layer, and the baselines at the first."""
    names = names_in_tail(model, layers)
    last = layers.blocks[-1]
    rows = [
        *((method, layer, "", "-foil") for method in BY_LAYER for layer in names),
        ("similarity-cam", layers.first, ",smooth=3", "-foil"),
        ("mean-activation", last, "", ""),
    ]
    return {
        **{
            f"{method}[layers={names[layer]}{more}]{foil}": f"{method}[layers={layer}{more}]{foil}"
            for method, layer, more, foil in rows
        },
        **{name: name for name in FLOORS},
    }


def accounts(model: TwoPartModel, layers: Layers, dataset: Dataset[Any], episodes: int, seed: int = 0) -> list[str]:
    """The parts of the score at every layer: their sums over the queries, over the sum of the scores.

    Args:
        model: the network, cut at the input of its first block.
        layers: its layers.
        dataset: images with labels.
        episodes: 5-way 1-shot episodes with five queries of each class; the true class is explained.
        seed: of the episodes.
    """
    sampler = EpisodeSampler(labels_of(dataset), 5, 1, 5, episodes, seed)
    modules, names = dict(model.tail.named_modules()), names_in_tail(model, layers)
    sums: dict[str, dict[str, float]] = {layer: defaultdict(float) for layer in (layers.first, *layers.blocks)}
    largest = 0.0
    for number in range(episodes):
        episode = sampler.episode(number)
        support, queries = (
            model.activation(torch.stack([dataset[int(row)][0] for row in rows.flatten()]))
            for rows in (episode.support, episode.query)
        )
        target = torch.arange(5).repeat_interleave(5)
        for foil in (None, "others"):
            scores = SimilarityToSupport(model.tail, SupportSet(support, torch.arange(5)), model.similarity, foil)
            for layer, parts in sums.items():
                cam = LayerSimilarityCAM(scores, modules[names[layer]], token_grid=model.tail.token_grids[names[layer]])
                cam.has_warned = True  # that a late map explains little is what the table shows
                details = cam.details(queries, target=target)
                assert isinstance(details.shares, dict)
                largest = max(largest, float(details.shares["rest"].abs().max()))
                for part, values in details.shares.items():
                    parts[PARTS.get(part, part) + (", foil" if foil else "")] += float(values.sum())
    titles = list(dict.fromkeys(name for parts in sums.values() for name in parts if not name.startswith("rest")))
    titles.sort(key=lambda name: name.endswith(", foil"))
    rows = {}
    for layer, parts in sums.items():
        totals = {
            foil: sum(v for name, v in parts.items() if name.endswith(", foil") is foil) for foil in (False, True)
        }
        rows[in_words(layer, layers)] = {
            name: f"{round(parts[name] / totals[name.endswith(', foil')], 3) + 0.0:.3f}" for name in titles
        }
    return [
        *markdown_table(rows, "layer"),
        "",
        f"What no part accounts for is at most {largest:.0e} for every query.",
    ]


def tables(model: TwoPartModel, layers: Layers, dataset: Dataset[Any], runs: Path, quick: bool) -> list[str]:
    """The mosaics, and the boxes where the data set has them."""
    methods, refused = [], {}
    pairs = _pairs(model, dataset)
    names = methods_of(model, layers)
    for method in get_methods(list(names)):
        refusal = pairs.refusal(method, model)
        if refusal is None:
            methods.append(method)
        else:
            refused[names[method.name]] = refusal.partition(";")[0]
    protocols = {
        "2 x 2 mosaics, five supports": (Mosaic, {"mosaics": 4 if quick else 30}, ()),
        "Few-shot, 5-way 1-shot: boxes": (
            FewShot,
            {"episodes": 2, "query": 3} if quick else {"episodes": 20, "query": 10},
            ("localization",),
        ),
    }
    lines: list[str] = []
    for title, (make, options, measures) in protocols.items():
        folder = runs / make.name
        try:
            protocol = make(model, dataset, Panel(tuple(methods), measures), **options)
        except ValueError as error:
            lines += [f"## {title}", "", f"Left out: {error}.", ""]
            continue
        evaluate(protocol, folder, examples=0, progress=True)
        found = read(folder)
        shown = ("cell-energy", "cell-hit", "cell-auroc") if make is Mosaic else ("energy-positive", "lift", "iou")
        rows = {
            names[name]: {column: cells[column] for column in (*shown, "coverage") if column in cells}
            for name, cells in found.cells.items()
        }
        lines += [f"## {title}", "", f"Model: {', '.join(found.model)}.", "", *markdown_table(rows)]
        lines += ["", _best(rows, shown), ""]
    return [*lines, *(f"`{name}` is not in the tables: {reason}." for name, reason in refused.items())]


def _pairs(model: TwoPartModel, dataset: Dataset[Any]) -> Pairs:
    """An image of each of two classes as a query of itself, to ask methods whether they can explain it."""
    labels = labels_of(dataset)
    rows = [int((labels == label).nonzero()[0, 0]) for label in labels.unique()[:2]]
    activation = model.activation(torch.stack([dataset[row][0] for row in rows]))
    return Pairs(activation, activation, torch.arange(2))


def _best(rows: dict[str, dict[str, str]], columns: Sequence[str]) -> str:
    """The layer at which each map is best, by every column; a map without a positive value is not compared."""
    parts = []
    for method in BY_LAYER:
        maps = {
            re.search(r"layers=([^],]*)", row)[1]: cells
            for row, cells in rows.items()
            if row.startswith(f"{method}[") and "smooth" not in row and not any("–" in cells[one] for one in columns)
        }
        best = {column: max(maps, key=lambda layer: float(maps[layer][column].split()[0])) for column in columns}
        told = ", ".join(f"{column} {maps[layer][column].split()[0]} at `{layer}`" for column, layer in best.items())
        parts.append(f"{method}-foil: {told}")
    return f"Best layers: {'; '.join(parts)}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the page."""
    parser = parser_for(
        "benchmarks.transformers",
        __doc__,
        runs="runs/transformers",
        out="docs/results",
        shared=False,
        quick="a few episodes and mosaics, as a rehearsal",
    )
    parser.add_argument("--model", help="a ViT of create_model; default: the class-token ViT of planted.md")
    parser.add_argument("--weights", help="file of its weights")
    parser.add_argument("--size", type=int, help="side of its images, in pixels; default: the model's")
    parser.add_argument("--planted", type=Path, default=Path("runs/planted"), help="weights of the default model")
    parser.add_argument("--data", default="scenes:480", help="images, as for captum-fam evaluate; default: %(default)s")
    parser.add_argument("--split", default="novel", help="split of CUB or of the scenes; default: %(default)s")
    options = parser.parse_args(arguments)
    if options.model is None:
        net = planted_vit(options.planted)
    else:
        sized = {} if options.size is None else {"size": options.size}
        net = create_model(options.model, options.weights, **sized)
    layers = layers_of(net)
    model = split_model(net, layers.first)
    dataset = load_dataset(options.data, options.split, model)
    name = options.model or "planted"
    runs = options.runs / (file_name(name) + ("-quick" if options.quick else ""))
    episodes = 2 if options.quick else 20
    title = PLANTED if options.model is None else f"`{options.model}`"
    sections = [
        "## Where the score is",
        "",
        f"{episodes} episodes, 5-way 1-shot with five queries of each class; the true class is explained.",
        "",
        *accounts(model, layers, dataset, episodes),
        "",
        *tables(model, layers, dataset, runs, options.quick),
    ]
    page = "transformers.md" if options.model is None else f"transformers-{runs.name}.md"
    write_page(
        options.out / page,
        "Transformers by layer",
        command(parser, options),
        sections,
        note=f"The network is {title}, cut at the input of its first block, `{layers.first}`; images are "
        f"`{options.data}`, split {options.split}. A mosaic has images of the usual size as its cells, for which the "
        "position embedding is interpolated; a network that takes images of one size only sees a mosaic of that size, "
        "whose cells are smaller than the images that it was trained on. `-foil`: minus the mean of the other classes. "
        "`attention` and `attention-rollout` are what the class token (or the mean of the tokens) attends to, in the "
        "last block and over all blocks; they know nothing of the support, as the rows below them.",
        seed="seed 0",
    )


if __name__ == "__main__":
    main()
