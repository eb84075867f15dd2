"""The answers of a model to all queries, among which a figure of several models chooses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from captum_fam._progress import progress_bar
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.figure_cells import view_photograph
from captum_fam.experiments.protocols.base import PreparedProtocol, Protocol
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table import summarize_records
from captum_fam.metrics import Result


@dataclass(frozen=True)
class ModelRun:
    """The answers of a model to all queries.

    Attributes:
        label: name of the model in the figure.
        prepared: the protocol, prepared with the model.
        records: records of all units.
        accuracy: accuracy with its interval; Recall@1 for retrieval.
    """

    label: str
    prepared: PreparedProtocol[Any]
    records: list[UnitRecord]
    accuracy: Result


def run_model(
    label: str, protocol: Protocol, folder: str | Path, *, device: str = "cpu", progress: bool = False
) -> ModelRun:
    """Run a protocol with a model, without any maps.

    Args:
        label: name of the model in the figure.
        protocol: protocol with ``Panel((), ())``, because maps are computed for the chosen queries only.
        folder: empty folder for the features, which the figure also needs.
        device: device of the model. Default: ``"cpu"``.
        progress: show progress bars. Default: False.

    Returns:
        The answers of the model.

    Raises:
        ValueError: if the folder is not empty, or no image could be read.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"folder {folder} is not empty: it may hold the features of another model; give one folder per model"
        )
    prepared = protocol.prepare(folder / "features", Ranks(device=device), progress)
    prepared.view = partial(view_photograph, prepared)
    units = prepared.run(range(len(protocol)))
    records = list(progress_bar(units, label, len(protocol), unit=protocol.unit, shown=progress))
    numbers = summarize_records(protocol, records, prepared.skipped, prepared.bank_skipped).model
    return ModelRun(label, prepared, records, numbers.get("recall@1", numbers["accuracy"]))
