"""Photographs that install with pip and whose truth is exact: mosaics of textures, and a stereo pair.

    pip install "captum-fam[demo]"
    python -m benchmarks.photographs [--shared ../shared] [--runs runs/photographs] [--out FILE] [--quick]

Both networks of the tables. Every row is a file of --runs and is not computed again. A few minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.command_line import command, parser_for
from benchmarks.networks import NETWORKS
from benchmarks.pages import interval, markdown_table, write_page
from benchmarks.pieces import file_name, kept
from captum_fam import SupportSet, explain
from captum_fam.attr import PairDecomposition
from captum_fam.demo.stereo_pair import (
    StereoPair,
    best_matches,
    decompose,
    floors,
    is_near,
    largest_shares,
    read_stereo_pair,
    share_near,
)
from captum_fam.demo.texture_mosaics import TEXTURE_NAMES, TextureMosaics, cut_texture_mosaics, read_textures
from captum_fam.metrics import mosaic_auroc, mosaic_energy, mosaic_hit, summarize
from captum_fam.models import EmbeddingModel, create_model

MOSAICS, QUICK_MOSAICS = 60, 6
Load = Callable[[], EmbeddingModel]
_Foil = Literal["others"] | None

METHODS: dict[str, tuple[str, _Foil, int]] = {
    "similarity-cam": ("similarity-cam", None, 1),
    "similarity-cam-foil": ("similarity-cam", "others", 1),
    "similarity-cam[smooth=3]-foil": ("similarity-cam", "others", 3),
    "fam": ("fam", None, 1),
    "fam-foil": ("fam", "others", 1),
    "grad-cam-foil": ("grad-cam", "others", 1),
    "correspondence-foil": ("correspondence", "others", 1),
    "mean-activation": ("mean-activation", None, 1),
    "center": ("center", None, 1),
    "uniform": ("uniform", None, 1),
}
"""Method, foil and window of the mean filter, by the name in the table."""

LAYERS = {
    "squeezenet": ("features.7", "features.10", "features.12"),
    "efficientnet_lite0": ("blocks.2", "blocks.4", "bn2"),
}
"""The layers whose cells are matched; the last is the one that the embedding pools."""

NOTE = (
    "The textures (brick, grass, gravel; CC0) and the stereo pair (Middlebury 2014) are read from the installed "
    "scikit-image. The network sees 5 crops of each texture from the left half of its photograph; mosaics of 2 x 2 "
    "crops come from the right half, and one of the 4 cells has the class that is explained. Three textures are easy: "
    "the table tells maps that follow the support from maps that do not, and ranks none of the former. Of the stereo "
    "pair, a match counts as right within one cell of the truth, in row and column."
)
MATCHES_NOTE = (
    "The share of cells whose best match by `LayerCorrespondence.match` is right, with the features of single cells "
    "and averaged over 3 x 3 cells. The floors know nothing of the images; the truth chooses the best shift, which "
    "moves all cells alike. Where this shift reaches 1, cells are so large that the test tells nothing."
)
PAIRS_NOTE = (
    "`LayerPairs` divides the cosine of the two embeddings among pairs of cells. The first column is the share of "
    "cells whose partner of the largest share is right; the second counts only cells that are each other's partner of "
    "the largest share. A share is large where both cells give much to the score; it does not measure how alike two "
    "cells look."
)


def measured(
    model: EmbeddingModel, task: TextureMosaics, method: str, foil: _Foil, window: int
) -> dict[str, list[float]]:
    """The measures of the maps of one method, a number for each mosaic.

    Args:
        model: the network.
        task: the mosaics.
        method: name of the method.
        foil: what is subtracted from the score.
        window: of the mean filter.
    """
    images, size = model.normalize(task.images), (task.images.shape[2], task.images.shape[3])
    support = _support(model, task)
    maps = explain(model, images, support, method=method, foil=foil, target=task.labels, smooth=window).maps
    return {
        "cell hit": mosaic_hit(maps, task.cells, size).tolist(),
        "energy in the cell": mosaic_energy(maps, task.cells, size).tolist(),
        "AUROC": mosaic_auroc(maps, task.cells, size).tolist(),
    }


def accuracy(model: EmbeddingModel, task: TextureMosaics) -> float:
    """The share of the single crops that get their class."""
    predicted = explain(model, model.normalize(task.single_images), _support(model, task), method="uniform").predicted
    return float((predicted == task.support_labels).float().mean())


def _support(model: EmbeddingModel, task: TextureMosaics) -> SupportSet:
    return SupportSet(model.normalize(task.support_images), task.support_labels, list(TEXTURE_NAMES))


def texture_section(title: str, load: Load, task: TextureMosaics, folder: Path) -> Iterator[str]:
    """Lines about the mosaics: the accuracy on single crops, then a row for each method.

    Args:
        title: the network in the title.
        load: gives the network.
        task: the mosaics.
        folder: keeps the measures.
    """
    count, _, height, width = task.images.shape
    share = kept(folder / "accuracy.json", lambda: accuracy(load(), task))
    rows = {}
    for name, how in METHODS.items():
        found = kept(folder / f"{file_name(name)}-{count}.json", lambda how=how: measured(load(), task, *how))
        rows[name] = {key: interval(summarize(torch.tensor(values)), of=count) for key, values in found.items()}
    yield f"## Textures: {title}"
    yield ""
    yield f"Accuracy on {len(task.support_labels)} single crops, 3 classes of 5 supports: {share:.3f}."
    yield f"{count} mosaics of {height} x {width} pixels; chance is 0.25 for hit and energy, 0.5 for AUROC."
    yield ""
    yield from markdown_table(rows)
    yield ""


def matched(model: EmbeddingModel, pair: StereoPair, layer: str) -> dict[str, Any]:
    """The shares of right matches at a layer, with the floors."""
    narrow, wide = (best_matches(model, pair, layer, window) for window in (1, 3))
    truth = pair.true_partners((narrow.shape[0], narrow.shape[1]))
    return {
        "cells": list(truth.shape[:2]),
        "match": share_near(narrow, truth),
        "match, 3 x 3 windows": share_near(wide, truth),
        **floors(truth),
    }


def decomposed(model: EmbeddingModel, pair: StereoPair, layer: str) -> dict[str, Any]:
    """The shares of right partners in the pair decomposition at a layer, with the floors."""
    decomposition = decompose(model, pair, layer)
    found = largest_shares(decomposition)
    truth = pair.true_partners((found.shape[0], found.shape[1]))
    n_right, n_mutual = mutual_matches(decomposition, truth)
    return {
        "largest share": share_near(found, truth),
        "mutual": n_right / n_mutual,
        "of": n_mutual,
        "best match by features": share_near(best_matches(model, pair, layer), truth),
        **floors(truth),
    }


def stereo_section(models: Mapping[str, Load], folder: Path) -> Iterator[str]:
    """Lines about the stereo pair: a row for each layer of each network, and one for the pairs at the last.

    Args:
        models: gives the network, by name.
        folder: keeps the shares.
    """
    read = cache(read_stereo_pair)
    matches, pairs = {}, {}
    for name, load in models.items():
        for layer in LAYERS[name]:
            row = f"{NETWORKS[name].title} `{layer}`"
            path = folder / name / f"match-{layer}.json"
            found = kept(path, lambda load=load, layer=layer: matched(load(), read(), layer))
            size = " x ".join(map(str, found.pop("cells")))
            matches[row] = {"cells": size, **{title: f"{share:.3f}" for title, share in found.items()}}
        path = folder / name / f"pairs-{layer}.json"
        found = kept(path, lambda load=load, layer=layer: decomposed(load(), read(), layer))
        n_mutual = found.pop("of")
        pairs[row] = {title: f"{share:.3f}" for title, share in found.items()}
        pairs[row]["mutual"] += f" of {n_mutual}"
    yield from ("## Stereo pair: best match of each cell", "", MATCHES_NOTE, "", *markdown_table(matches, "layer"))
    yield from ("", "## Stereo pair: the pair decomposition", "", PAIRS_NOTE, "", *markdown_table(pairs, "layer"))


def mutual_matches(decomposition: PairDecomposition, truth: Tensor) -> tuple[int, int]:
    """How many cells with a known truth have a mutual match in the right place, and how many have a mutual match."""
    matches = decomposition.top_matches(len(truth) * truth.shape[1], mutual=True)
    known = [match for match in matches if not truth[match.query].isnan().any()]
    return sum(bool(is_near(torch.tensor(match.support), truth[match.query])) for match in known), len(known)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing and write the page."""
    parser = parser_for(
        "benchmarks.photographs",
        __doc__,
        runs="runs/photographs",
        out="docs/results/photographs.md",
        quick="few mosaics",
    )
    options = parser.parse_args(arguments)
    task = cut_texture_mosaics(read_textures(), QUICK_MOSAICS if options.quick else MOSAICS)
    models: dict[str, Load] = {
        name: cache(partial(create_model, network.model, network.weights(options.shared)))
        for name, network in NETWORKS.items()
    }
    sections: list[str] = []
    for name, load in models.items():
        sections += texture_section(NETWORKS[name].title, load, task, options.runs / name)
    sections += stereo_section(models, options.runs)
    title = "Photographs whose truth is exact"
    write_page(options.out, title, command(parser, options), sections, note=NOTE, seed="seed 0")


if __name__ == "__main__":
    main()
