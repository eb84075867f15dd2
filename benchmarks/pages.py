"""Pages of docs/ that a benchmark writes: what was run, on what, and tables of results."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import machine
from captum_fam.cli.main import main as captum_fam
from captum_fam.metrics import Result


def call(command: str) -> None:
    """Run a command of captum-fam; stop where it fails."""
    code = captum_fam(shlex.split(command))
    # 1: it is done, but for images that were left out and named.
    if code > 1:
        raise SystemExit(code)


def interval(result: Result, *, of: int | None = None, digits: int = 3, sign: bool = False) -> str:
    """A mean with the half-width of its interval, as the cell of a table; a dash where no sample has a value.

    Args:
        result: the mean.
        of: number of all samples, of which the cell then says how many are left out. Default: None.
        digits: decimals. Default: 3.
        sign: whether a positive mean has a sign. Default: False.

    Example:
        >>> interval(Result(0.25, 0.125, n=4), of=5)
        '0.250 ± 0.125 (1 left out)'
    """
    cell = "–"
    if not math.isnan(result.value):
        cell = f"{result.value:{'+' if sign else ''}.{digits}f}"
        cell += "" if math.isnan(result.half_width) else f" ± {result.half_width:.{digits}f}"
    left_out = 0 if of is None else of - result.n
    return cell + (f" ({left_out} left out)" if left_out else "")


@dataclass(frozen=True)
class Results:
    """What a run found, as text.

    Attributes:
        model: the model's own numbers.
        cells: by method and measure.
    """

    model: list[str]
    cells: dict[str, dict[str, str]]


def read(folder: Path) -> Results:
    """The results of a run, each with its interval and how many explained queries it leaves out."""
    explained = json.loads((folder / "summary.json").read_text())["counts"]["explained"]
    results = Results([], defaultdict(dict))
    with (folder / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            result = Result(*(float(row[column] or "nan") for column in ("mean", "ci95")), n=int(row["n"]))
            if row["method"]:
                results.cells[row["method"]][row["measure"]] = interval(result, of=explained)
            else:
                results.model.append(f"{row['measure']} {interval(result)} (n = {row['n']})")
    return results


def markdown_table(rows: Mapping[str, Mapping[str, str]], first: str = "method") -> list[str]:
    """Rows by name and column as a table; a cell that a row does not have is a dash.

    Args:
        rows: the cells of every row, by column.
        first: title of the names.
    """
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    return [
        f"| {first} | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(cells.get(column, '–') for column in columns)} |" for name, cells in rows.items()),
    ]


def table(folder: Path) -> list[str]:
    """The results of a run: a line with the model's scores, then methods by measures."""
    results = read(folder)
    return [f"Model: {', '.join(results.model)}.", "", *markdown_table(results.cells)]


def write_page(
    path: Path,
    title: str,
    command: str,
    sections: Iterable[str],
    *,
    ran: Sequence[str] = (),
    note: str = "",
    seed: str = "seed 0 where a command names none",
) -> None:
    """Write a page, with the command that wrote it and the machine.

    Args:
        path: the file.
        title: title of the page.
        command: what a reader types to write the page again, such as ``"python -m benchmarks.cost"``.
        sections: lines below the head.
        ran: the commands that ``command`` ran.
        note: a paragraph between the head and the sections.
        seed: which seeds were used.
    """
    head = [f"# {title}", "", f"Written by `{command}`" + (", which ran" if ran else "")]
    if ran:
        head += ["", "```", *ran, "```", ""]
    head += [f"on {machine()}; {seed}. Half-widths (±) are of the 95 % interval.", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*head, *([note, ""] if note else []), *sections]).rstrip("\n") + "\n")
    print(f"written to {path}")
