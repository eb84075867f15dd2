"""Photographs that install with pip and whose truth is exact: mosaics of textures, and a stereo pair.

    pip install "captum-fam[demo]"
    python -m benchmarks.photographs [--shared ../shared] [--quick] [--out docs/results/photographs.md]

Both networks of the tables. A few minutes on one thread, or one with ``--quick``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.networks import NETWORKS, Network
from benchmarks.pages import markdown_table, write_page
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
    "squeezenet": ("features.5", "features.10", "features.12"),
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


def model_of(network: Network, shared: Path) -> EmbeddingModel:
    """The network that the options of the command line name."""
    options = dict(zip(*[iter(shlex.split(network.options(shared)))] * 2, strict=True))
    return create_model(options["--model"], options.get("--weights"))


def texture_section(model: EmbeddingModel, title: str, task: TextureMosaics) -> Iterator[str]:
    """Lines about the mosaics: the accuracy on single crops, then a row for each method."""
    support = SupportSet(model.normalize(task.support_images), task.support_labels, list(TEXTURE_NAMES))
    singles = explain(model, model.normalize(task.single_images), support, method="uniform")
    accuracy = (singles.predicted == task.support_labels).float()
    images, size = model.normalize(task.images), (task.images.shape[2], task.images.shape[3])
    rows = {}
    for name, (method, foil, window) in METHODS.items():
        maps = explain(model, images, support, method=method, foil=foil, target=task.labels, smooth=window).maps
        rows[name] = {
            "cell hit": _cell(mosaic_hit(maps, task.cells, size)),
            "energy in the cell": _cell(mosaic_energy(maps, task.cells, size)),
            "AUROC": _cell(mosaic_auroc(maps, task.cells, size)),
        }
    yield f"## Textures: {title}"
    yield ""
    yield f"Accuracy on {len(accuracy)} single crops, 3 classes of 5 supports: {float(accuracy.mean()):.3f}."
    yield f"{len(images)} mosaics of {size[0]} x {size[1]} pixels; chance is 0.25 for hit and energy, 0.5 for AUROC."
    yield ""
    yield from markdown_table(rows)
    yield ""


def _cell(values: Tensor) -> str:
    found = summarize(values)
    left_out = len(values) - found.n
    return f"{found.value:.3f} ± {found.half_width:.3f}" + (f" ({left_out} left out)" if left_out else "")


def stereo_section(models: dict[str, EmbeddingModel], pair: StereoPair, with_pairs: bool) -> Iterator[str]:
    """Lines about the stereo pair: a row for each layer of each network."""
    rows = {}
    for name, model in models.items():
        for layer in LAYERS[name]:
            narrow, wide = (best_matches(model, pair, layer, window) for window in (1, 3))
            truth = pair.true_partners((narrow.shape[0], narrow.shape[1]))
            rows[f"{NETWORKS[name].title} `{layer}`"] = {
                "cells": f"{truth.shape[0]} x {truth.shape[1]}",
                "match": f"{share_near(narrow, truth):.3f}",
                "match, 3 x 3 windows": f"{share_near(wide, truth):.3f}",
                **{title: f"{share:.3f}" for title, share in floors(truth).items()},
            }
    yield "## Stereo pair: best match of each cell"
    yield ""
    yield MATCHES_NOTE
    yield ""
    yield from markdown_table(rows, "layer")
    if not with_pairs:
        return
    rows = {}
    for name, model in models.items():
        layer = LAYERS[name][-1]
        decomposition = decompose(model, pair, layer)
        found = largest_shares(decomposition)
        truth = pair.true_partners((found.shape[0], found.shape[1]))
        n_right, n_mutual = mutual_matches(decomposition, truth)
        rows[f"{NETWORKS[name].title} `{layer}`"] = {
            "largest share": f"{share_near(found, truth):.3f}",
            "mutual": f"{n_right / n_mutual:.3f} of {n_mutual}",
            "best match by features": f"{share_near(best_matches(model, pair, layer), truth):.3f}",
            **{title: f"{share:.3f}" for title, share in floors(truth).items()},
        }
    yield ""
    yield "## Stereo pair: the pair decomposition"
    yield ""
    yield PAIRS_NOTE
    yield ""
    yield from markdown_table(rows, "layer")


def mutual_matches(decomposition: PairDecomposition, truth: Tensor) -> tuple[int, int]:
    """How many cells with a known truth have a mutual match in the right place, and how many have a mutual match."""
    matches = decomposition.top_matches(len(truth) * truth.shape[1], mutual=True)
    known = [match for match in matches if not truth[match.query].isnan().any()]
    return sum(bool(is_near(torch.tensor(match.support), truth[match.query])) for match in known), len(known)


def main(argv: list[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/photographs.md"))
    parser.add_argument("--quick", action="store_true", help="few mosaics, and no pair decomposition")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    task = cut_texture_mosaics(read_textures(), QUICK_MOSAICS if options.quick else MOSAICS)
    models = {name: model_of(network, options.shared) for name, network in NETWORKS.items()}
    sections = [line for name, model in models.items() for line in texture_section(model, NETWORKS[name].title, task)]
    sections += stereo_section(models, read_stereo_pair(), not options.quick)
    command = f"python -m benchmarks.photographs{' --quick' if options.quick else ''}"
    write_page(options.out, "Photographs whose truth is exact", command, sections, note=NOTE, seed="seed 0")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
