"""Writing what a panel says: to TensorBoard, to loggers of images, and to a folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from captum_fam._files import write_all_or_nothing
from captum_fam.callbacks.panel import PanelReading

TABLE = "panel.csv"
"""The file with one line per reading, in the folder of the figures."""


def takes_images(writer: object) -> bool:
    """Whether :func:`write_figures` can write figures to something.

    Args:
        writer: any writer or logger.

    Example:
        >>> takes_images("runs/panel"), takes_images(print)
        (True, False)
    """
    return isinstance(writer, str | Path) or hasattr(writer, "add_image") or hasattr(writer, "log_image")


def write_figures(reading: PanelReading, writer: Any, step: int) -> None:
    """Write the figures of a reading.

    Args:
        reading: the reading.
        writer: a ``SummaryWriter`` of TensorBoard; a logger with ``log_image(key, images, step)``, as Lightning's
            ``WandbLogger``; or a folder, which gets ``STEP-QUERY.png`` per query, and a line in ``panel.csv``.
        step: the step, such as the number of finished epochs.

    Raises:
        OSError: if the files cannot be written.
        ValueError: for images outside [0, 1], which cannot be drawn.

    Example:
        >>> from captum_fam.callbacks import ExplanationPanel
        >>> panel = ExplanationPanel((queries, labels), (images, labels), shown=1, layer="layer4")
        >>> write_figures(panel(model), "panel", step=3)
        >>> sorted(path.name for path in Path("panel").iterdir())
        ['0003-query-0.png', 'panel.csv']
    """
    figures = reading.figures()
    if isinstance(writer, str | Path):
        folder = Path(writer, reading.name)
        with write_all_or_nothing(folder) as scratch:
            for name, figure in figures.items():
                figure.save(scratch / f"{step:04d}-{name}.png", dpi=100)
            _write_table(scratch / TABLE, folder / TABLE, {"step": step, **reading.numbers})
        return
    for name, figure in figures.items():
        tag = tag_of(reading, f"maps/{name}")
        if hasattr(writer, "add_image"):
            writer.add_image(tag, np.asarray(figure.as_image()), step, dataformats="HWC")
        else:
            writer.log_image(tag, [figure.as_image()], step)


def tag_of(reading: PanelReading, name: str) -> str:
    """The tag of a figure or number of a reading, with the name of the panel in front.

    Args:
        reading: the reading.
        name: the name of the figure or number.
    """
    return f"{reading.name}/{name}" if reading.name else name


def _write_table(path: Path, old: Path, row: Mapping[str, float]) -> None:
    """Write a table with one more row, in the place of a row of the same step: a run may be continued."""
    rows: list[Mapping[str, Any]] = []
    if old.exists():
        with old.open(newline="", encoding="utf-8") as file:
            rows = [one for one in csv.DictReader(file) if one["step"] != str(row["step"])]
    names = dict.fromkeys(name for one in [*rows, row] for name in one)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(names), restval="")
        table.writeheader()
        table.writerows([*rows, row])
