"""Search for the additive map that is best on mosaics; docs/results/best-account.md.

    python -m benchmarks.best_account [--shared ../shared] [--runs runs/best-account] [--out docs/results] [--quick]

Maps that add up to the score are collected once per network, head and seed, and are then combined in ways that keep
the sum: layers averaged, windows, Gaussians, spreading over alike positions, mirrored and moved views. Seed 0 is for
choosing; seed 1 has other mosaics, and only what was chosen counts there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.best_account.collect import VIEWS, collect
from benchmarks.best_account.variants import variants
from benchmarks.command_line import command, parser_for
from benchmarks.networks import NETWORKS, Network, trained_head
from benchmarks.pages import interval, markdown_table, write_page
from benchmarks.pieces import kept_tensors
from captum_fam.metrics import mosaic_auroc, mosaic_energy, mosaic_hit, summarize

CHOSEN = (
    "last",
    "last, window 0.18",
    "middle, window 0.18",
    "middle + last, window 0.39",
    "middle + last, window 0.46",
)
"""Repeated on the mosaics of seed 1, the best account and what stands for it in the other tables among them."""
SIZE = 112
"""Side at which the maps are measured, in pixels; in the other tables it is that of the mosaic."""

NOTE = (
    "Every map here adds up to the explained score, the cosine to the supports of a class minus the mean of the "
    "other three classes of the mosaic (in rows so named, minus the runner-up; in rows of views, the mean of the "
    "scores of the views). Layers: `early`, `middle` and `last` are features.7, features.10 and the last of "
    "SqueezeNet, blocks.3, blocks.4 and bn2 of EfficientNet-Lite0. A window is given as the share of the side of "
    f"the mosaic, of which a bird has 0.5. Energy, hit rate and AUROC of the right cell, at {SIZE} x {SIZE} "
    "pixels; `hit, right` counts only the images that the network itself classifies correctly among the four "
    "classes. A window on the side of the support needs no row: the map of the query is a sum over the positions "
    "of the support, and moving shares among these changes nothing."
)


def measured(maps: Tensor, right: Tensor) -> dict[str, str]:
    """Energy, hit and AUROC of maps ``(B, 1, h, w)``, whose rows are the four cells of each mosaic in turn."""
    cells = torch.arange(4).repeat(len(maps) // 4)
    groups = torch.arange(len(maps) // 4).repeat_interleave(4)
    size = (SIZE, SIZE)
    hit = mosaic_hit(maps, cells, size)
    found = {
        "energy": mosaic_energy(maps, cells, size),
        "hit": hit,
        "AUROC": mosaic_auroc(maps, cells, size),
        "hit, right": hit.masked_fill(~right, torch.nan),
    }
    return {name: interval(summarize(values, groups)) for name, values in found.items()}


def collected(network: Network, with_head: bool, seed: int, count: int, shared: Path, runs: Path) -> dict[str, Tensor]:
    """The maps of a network, from an earlier run if there is one."""

    def make() -> dict[str, Tensor]:
        head = trained_head(network, "mosaic", shared, runs)[0] if with_head else None
        with tempfile.TemporaryDirectory() as folder:
            return collect(network, head, seed, count, shared, Path(folder), VIEWS if seed == 0 else VIEWS[:1])

    maps: dict[str, Tensor] = kept_tensors(
        runs / f"{network.name}{'-head' if with_head else ''}-{seed}-{count}.pt", make
    )
    return maps


def main() -> None:
    """Collect, combine, measure, write the page."""
    parser = parser_for(
        "benchmarks.best_account",
        __doc__,
        runs="runs/best-account",
        out="docs/results",
        quick="four mosaics instead of forty",
    )
    options = parser.parse_args()
    count = 4 if options.quick else 40
    sections, repeated = [], []
    for network in NETWORKS.values():
        for with_head in (False, True):
            title = f"{network.title}, {'with a trained head' if with_head else 'headless'}"
            for seed, lines in ((0, sections), (1, repeated)):
                maps = collected(network, with_head, seed, count, options.shared, options.runs)
                right = maps["right"]
                rows = {
                    name: measured(combine(maps), right) for name, combine in variants() if seed == 0 or name in CHOSEN
                }
                accuracy = interval(summarize(right.double(), torch.arange(len(right) // 4).repeat_interleave(4)))
                lines += [f"### {title}", "", f"Accuracy on the single images: {accuracy}.", ""]
                lines += [*markdown_table(rows, "account"), ""]
    write_page(
        options.out / "best-account.md",
        "The best account of the score on mosaics",
        command(parser, options),
        [
            "## The chosen ones on other mosaics (seed 1)",
            "",
            *repeated,
            "## All that was tried (seed 0)",
            "",
            *sections,
        ],
        note=NOTE,
        seed=f"{count} mosaics of each seed, {4 * count} questions",
    )


if __name__ == "__main__":
    main()
