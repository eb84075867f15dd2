"""Transformers layer by layer: where the score is, and at which layer a map lies best.

    python -m benchmarks.transformers [--quick]
    python -m benchmarks.transformers --model timm/vit_small_patch14_dinov2 --weights FILE --data ../shared/data/cub50

Without --model it is the class-token ViT of docs/results/planted.md, on planted scenes of novel classes; its weights
are made by `python -m benchmarks.planted train`. --model takes any ViT of `create_model`, such as timm/, hf/ or
open_clip/ names, or a factory of your own. What is in --runs is not done again. Some ten minutes on one core for the
small network.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.novel_classes import Pairs
from benchmarks.pages import markdown_table, read, write_page
from benchmarks.planted_training import SIZE, load
from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid
from captum_fam.attr.layer_measurement import Measurement
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
from captum_fam.experiments.two_part_model import probe_images
from captum_fam.models import EmbeddingModel, create_model

PLANTED = "the class-token ViT of [planted.md](planted.md)"
PARTS = {"map": "patches", "class token": "class token", "registers": "registers", "bias": "biases", "rest": "rest"}
BY_LAYER = ("similarity-cam", "fam", "grad-cam")
FLOORS = ("attention", "attention-rollout", "mean-activation", "center", "uniform")


@dataclass(frozen=True)
class Layers:
    """The layers of a transformer that the tables compare, by their names in the network.

    Attributes:
        first: what gives the input of the first block.
        blocks: the blocks, in order.
    """

    first: str
    blocks: tuple[str, ...]


class AnySize(nn.Module):
    """torchvision's ViT for images of any size: its position embedding is interpolated, as DINOv2 does.

    Args:
        vit: the network, whose head is an identity.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to class tokens ``(B, N)``."""
        patches = self.vit.conv_proj(images)
        tokens = torch.cat([self.vit.class_token.expand(images.shape[0], -1, -1), patches.flatten(2).mT], 1)
        encoder = self.vit.encoder
        places = places_for(encoder.pos_embedding, (patches.shape[2], patches.shape[3]))
        return encoder.ln(encoder.layers(encoder.dropout(tokens + places)))[:, 0]


def places_for(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position embedding of a class token and a square grid, for another grid.

    Args:
        embedding: ``(1, 1 + side * side, N)``.
        grid: rows and columns.

    Returns:
        ``(1, 1 + rows * columns, N)``.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if grid == (side, side):
        return embedding
    square = embedding[:, 1:].mT.unflatten(2, (side, side))
    larger = nn.functional.interpolate(square, grid, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], larger.flatten(2).mT], 1)


def planted_vit(folder: Path) -> EmbeddingModel:
    """The class-token network of the account's page, as an embedding model.

    Args:
        folder: folder of the weights.

    Raises:
        FileNotFoundError: if it is not trained; the message names the command.
    """
    if not (folder / "vit.pt").exists():
        raise FileNotFoundError(f"{folder / 'vit.pt'}: make it by python -m benchmarks.planted train --net vit")
    net, _ = load("vit", folder)
    middle, spread = (0.5,) * 3, (0.25,) * 3
    return EmbeddingModel(
        "vit", AnySize(net).eval(), "vit.encoder.dropout", SIZE, mean=middle, std=spread, token_grid=TokenGrid()
    )


def layers_of(net: EmbeddingModel) -> Layers:
    """Find the blocks of a transformer, and the module that gives the input of the first.

    The blocks are the most siblings of one class that give tokens of one number; the module is the last to give as many
    tokens before any of their parts runs.

    Raises:
        ValueError: for a model without such blocks.
    """
    outputs = Measurement(net.model, probe_images(net.size, len(net.mean))).outputs
    tokens = [one for one in outputs if one.layout.token_grid is not None and len(one.layout.positions) == 1]
    siblings: dict[tuple[str, type, tuple[int, ...]], list[str]] = defaultdict(list)
    for one in tokens:
        parent, _, name = one.name.rpartition(".")
        if re.search(r"\d+$", name) and next(one.module.children(), None) is not None:
            siblings[parent, type(one.module), one.layout.positions].append(one.name)
    (_, _, positions), blocks = max(siblings.items(), key=lambda item: len(item[1]), default=(("", nn.Module, ()), []))
    if not blocks:
        raise ValueError(f"model {net.name}: no blocks that give tokens were found; name a ViT")
    before: list[str] = []
    for one in outputs:
        if one.name.startswith(f"{blocks[0]}.") or one.name == blocks[0]:
            break
        if one.layout.positions == positions and one.layout.token_grid is not None:
            before.append(one.name)
    if not before:
        raise ValueError(f"model {net.name}: no module gives the {positions[0]} tokens that enter {blocks[0]}")
    return Layers(before[-1], tuple(blocks))


def names_in_tail(model: TwoPartModel, layers: Layers) -> dict[str, str]:
    """The names of the layers in the tail of the model, which is cut at the input of the first block."""
    known = [name for name, _ in model.tail.named_modules()]
    names = {layer: next(name for name in known if name.endswith(f".{layer}")) for layer in layers.blocks}
    return {layers.first: "activation", **names}


def in_words(layer: str, layers: Layers) -> str:
    """The layer in words."""
    if layer == layers.first:
        return f"input of the first block, `{layer}`"
    return f"behind block {layers.blocks.index(layer)}, `{layer}`"


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


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a ViT of create_model; default: the class-token ViT of planted.md")
    parser.add_argument("--weights", help="file of its weights")
    parser.add_argument("--size", type=int, help="side of its images, in pixels; default: the model's")
    parser.add_argument("--planted", type=Path, default=Path("runs/planted"), help="weights of the default model")
    parser.add_argument("--data", default="scenes:480", help="images, as for captum-fam evaluate; default: %(default)s")
    parser.add_argument("--split", default="novel", help="split of CUB or of the scenes; default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/transformers"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--quick", action="store_true", help="a few episodes and mosaics, as a rehearsal")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    if options.model is None:
        net = planted_vit(options.planted)
    else:
        sized = {} if options.size is None else {"size": options.size}
        net = create_model(options.model, options.weights, **sized)
    layers = layers_of(net)
    model = split_model(net, layers.first)
    dataset = load_dataset(options.data, options.split, model)
    name = options.model or "planted"
    runs = options.runs / (re.sub(r"\W+", "-", name).strip("-") + ("-quick" if options.quick else ""))
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
        shlex.join(["python", "-m", "benchmarks.transformers", *given]),
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
