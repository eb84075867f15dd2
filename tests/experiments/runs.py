"""Small protocols for the tests, also as a script for processes of their own: ``runs.py NAME,... OUT``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_fam.demo.scenes import PlantedScenes
from captum_fam.embedding.ranks import joined
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.evaluation import evaluate
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.protocols.retrieval import Retrieval
from captum_fam.experiments.records import Column, MethodColumns, UnitRecord
from captum_fam.experiments.table_methods import get_methods
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.pooling import GAP

NAMES = ("few-shot", "contrastive", "retrieval", "mosaic")
SIDE = 32


def make_model(head: bool = False, seed: int = 0) -> TwoPartModel:
    """Two convolutions, batch normalization and ReLU, an 8 x 8 map of 12 channels; random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(12)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), norm, nn.ReLU())
        linear = nn.Linear(12, 6) if head else None
    return TwoPartModel(backbone, GAP(), linear, size=SIDE).eval()


def make_scenes(model: TwoPartModel, length: int = 130, split: str = "novel") -> ScenesWithBoxes:
    """Scenes of 24 classes; the length is no multiple of the batch size, so that the last batch is shorter."""
    return ScenesWithBoxes(PlantedScenes(split, length=length, size=SIDE, seed=3), model)  # type: ignore[arg-type]


def make_panel(methods: str = "fam,grad-cam-foil,mean-activation,uniform", *measures: str) -> Panel:
    return Panel(get_methods(methods), measures or ("localization", "faithfulness", "swap"))  # type: ignore[arg-type]


def make_protocol(name: str) -> Any:
    """A protocol on 130 scenes, with batches of 16: the last one has two."""
    model = make_model()
    scenes = make_scenes(model)
    if name == "few-shot":
        return FewShot(model, scenes, make_panel(), query=4, episodes=9, batch_size=16)
    if name == "contrastive":
        return Contrastive(model, scenes, make_panel(), bank=scenes, k=12, batch_size=16)
    if name == "retrieval":
        return Retrieval(model, scenes, make_panel(), batch_size=16)
    return Mosaic(model, scenes, make_panel("fam,grad-cam-foil", "swap"), shot=2, mosaics=7, batch_size=16)


def query_columns(record: UnitRecord) -> dict[str, Column]:
    """The columns of the queries of a record by name."""
    columns = vars(record.queries)
    return {name: column for name, column in columns.items() if name != "numbers"} | record.queries.numbers


def method_columns(explained: Mapping[str, MethodColumns]) -> dict[str, Column]:
    """The columns of all methods, each by ``"METHOD.NAME"``."""
    flat: dict[str, Column] = {}
    for method, columns in explained.items():
        flags = {"nan": columns.nan, "empty": columns.empty, "no-positive": columns.no_positive}
        for kept in (flags, *columns.kept.values()):
            flat |= {f"{method}.{name}": column for name, column in kept.items()}
    return flat


def main() -> None:
    """Run protocols, as one of several processes if the environment says so."""
    torch.set_num_threads(1)
    names, out = sys.argv[1].split(","), Path(sys.argv[2])
    with joined("cpu") as ranks:
        for name in names:
            evaluate(make_protocol(name), out / name, ranks=ranks, examples=0)


if __name__ == "__main__":
    main()
