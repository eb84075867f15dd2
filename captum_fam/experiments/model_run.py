"""One model's answers to all queries, which figures of several models choose from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.figure_cells import view_photograph
from captum_fam.experiments.protocols.base import PreparedProtocol, Protocol
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table import summarize_records
from captum_fam.metrics import Result


@dataclass(frozen=True)
class ModelRun:
    """One model's answers to all queries.

    Attributes:
        label: what the figure calls the model.
        prepared: the protocol, prepared with the model.
        records: of all units.
        accuracy: with its interval; Recall@1 for retrieval.
    """

    label: str
    prepared: PreparedProtocol[Any]
    records: list[UnitRecord]
    accuracy: Result


def run_model(
    label: str, protocol: Protocol, folder: str | Path, *, device: str = "cpu", progress: bool = False
) -> ModelRun:
    """Put all queries to a model.

    Args:
        label: what the figure is to call the model.
        protocol: with ``Panel((), ())``: maps are made of the chosen queries only.
        folder: an empty one for the features, which the figure is then drawn from.
        device: of the model. Default: ``"cpu"``.
        progress: show progress bars. Default: False.

    Raises:
        ValueError: if the folder is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"folder {folder} is not empty: it may hold another model's features; give each its own")
    prepared = protocol.prepare(folder / "features", Ranks(device=device), progress)
    prepared.view = partial(view_photograph, prepared)
    units = prepared.run(range(len(protocol)))
    records = list(tqdm(units, label, len(protocol), unit=protocol.unit, disable=not progress))
    numbers = summarize_records(protocol, records, prepared.skipped, prepared.bank_skipped).model
    return ModelRun(label, prepared, records, numbers.get("recall@1", numbers["accuracy"]))
