"""The table of the paper's networks in ``docs/networks.md``, computed from the registered networks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from captum_fam.models import create_model
from captum_fam.models.entry_points import declared_models

_INTRODUCTION = """# The networks of the paper

Names for `create_model` and `--model`. The explained layer is `features`; its output, the feature map, is pooled, and
goes through the head where there is one. The repositories whose files of weights are read stand in
`captum_fam/experiments/networks/layouts.py`. A network of faces, `dlib_face`, stands in [a page of its own](faces.md).

Written by `python -m captum_fam.experiments.networks.table docs/networks.md`.

"""
_COLUMNS = ("name", "images", "feature map", "embedding", "parameters")


def network_table() -> str:
    """A page in Markdown with one row per network that this package declares.

    Returns:
        The text of the page.
    """
    package = "captum_fam.experiments.networks"
    names = [name for name, points in declared_models().items() if points[0].module.startswith(package)]
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, sorted(names))]
    return _INTRODUCTION + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(name: str) -> tuple[str, ...]:
    with torch.device("meta"):  # computes shapes without arithmetic
        net = create_model(name)
        images = torch.empty(1, 3, *net.preprocessing.height_and_width)
        feature_map, embedding = net.layer_module(images), net.model(images)
    pooling = type(net.pooling).__name__
    head = [] if net.head is None else ["MLP" if len(list(net.head.children())) else "linear"]
    n_parameters = sum(parameter.numel() for parameter in net.model.parameters())
    return (
        f"`{name}`",
        f"{net.size} x {net.size}",
        " x ".join(map(str, feature_map.shape[1:])),
        f"{', '.join([pooling, *head])}: {embedding.shape[1]}",
        f"{n_parameters:,}",
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(network_table(), encoding="utf-8")
