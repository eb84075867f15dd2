"""The page of the comparison, and the sentences that follow from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.pages import interval, markdown_table, write_page
from benchmarks.peers.needs import COLUMNS
from benchmarks.peers.ours import PACKAGE
from benchmarks.peers.question import Row
from benchmarks.peers.results import MEASURES, Result
from benchmarks.peers.rows import versions
from captum_fam import metrics

# A row on fewer mosaics has no place in a sentence about who is best.
FEWEST = 10
Results = Mapping[Row, Result]

NOTE = (
    "Every package explains the same mosaics, those of `captum-fam evaluate mosaic`: four photographs of different "
    "classes side by side, and five supports of one of these classes. The model, the layer and the supports are the "
    "same; the explained score is the mean cosine of the mosaic to the supports, with *foil* minus the mean score of "
    "the other three classes, with *gallery* minus the mean cosine to all images of other classes. Each package is "
    "called as its documentation shows, with the score as its target, and its maps are measured as it gives them; "
    "*smoothed* maps went through the mean filter of `captum_fam.functional.smooth_maps` and stand in sentences of "
    "their own. "
    "Chance is .25 for energy and hit, and .5 for AUROC; the rows without support are the floor. n counts the mosaics: "
    "a slow method explains fewer, and one class of each."
)
COSTS = (
    "Sum over score: the sum of the map over the explained score, median [quartiles] over the maps. Only a map with "
    "1.00 [1.00, 1.00] is an account of the score; *scaled* is a map whose largest value is always one. Time: CPU time "
    "of one map over a bare `no_grad` pass of the same image, and of the maps of all four classes of an image; one "
    "thread. Memory: the most that tensors held at once, over that of the bare pass; arrays of numpy, which grad-cam "
    "and xaitk-saliency also use, are not in it. Methods that take the supports as images embed them in every call."
)
RIVALS = (
    "PAIR-X itself is not on PyPI and needs numpy below 2. Its rows are its recipe, written anew with the rules of "
    "zennit: relevance of the cosine at a layer on both sides, cells that are each other's nearest neighbors, and the "
    "product of both relevances; its maps are averaged over the pairs with the five supports. xaitk-saliency takes "
    "pixels and has no contrast; its maps are averaged over the supports too. Both have no row with foil. The slow "
    "methods of grad-cam and FinerCAM have a row with foil only."
)
NEEDS = (
    "What a call needs and leaves, tried on a small network with a batch norm: `yes` is the map of a plain call, else "
    "the cell has the error. Compiled is `torch.compile` after a first pass. In training mode, after a call and after "
    "a call that raises (with supports that do not fit), the model is compared with what it was before: hooks, "
    "modules, modes, `requires_grad`, `.grad`, weights, and the random numbers of torch."
)


def write(
    path: Path,
    command: str,
    needs: Mapping[str, Mapping[str, str]],
    results: Mapping[str, Results],
    missing: Mapping[str, str],
) -> None:
    """Write the page.

    Args:
        path: the file.
        command: the command that writes it.
        needs: what each method needs and leaves.
        results: results by the title of the network.
        missing: how to install what is not there.
    """
    sections = [COSTS, "", RIVALS, "", f"Packages: {versions()}."]
    sections += [f"{name} is not installed and has no rows: `{how}`." for name, how in missing.items()]
    short = ["## In short", ""]
    for name, rows in results.items():
        short += [f"- {name}. {sentence}" for sentence in duels(rows)]
    sections = [*short, "", *sections]
    for name, rows in results.items():
        sections += ["", f"## {name}", ""]
        sections += [*markdown_table({label(row): cells(row, result) for row, result in rows.items()}), ""]
        sections += [f"- {sentence}" for sentence in sentences(rows)]
    table = {method: {name: f"{one[name]}" for name in COLUMNS} for method, one in needs.items()}
    packages = {row.method: row.package for rows in results.values() for row in rows}
    named = {f"{packages[method]}: {method}": one for method, one in table.items() if method in packages}
    sections += ["", "## What each needs, and what it leaves", "", NEEDS, "", *markdown_table(named)]
    sections += ["", "The rows that leave the model as it was in every case, and give the map in every case: "]
    sections[-1] += (", ".join(name for name, one in named.items() if _is_clean(one)) or "none") + "."
    write_page(path, "captum-fam and its peers", command, sections, note=NOTE, seed="mosaics of seed 0")


def label(row: Row) -> str:
    """A row as the table names it.

    Args:
        row: the row.
    """
    return f"{row.package}: {row.name}"


def cells(row: Row, result: Result) -> dict[str, str]:
    """The cells of a row.

    Args:
        row: the row.
        result: its numbers.
    """
    if result["error"]:
        return {"energy": result["error"]}
    found = {name: interval(_mean(result, name)) for name in MEASURES}
    four = result["four_ratio"]
    return found | {
        "n": str(len(result["mosaics"])),
        "sum over score": "scaled" if _is_scaled(result) else _median(result),
        "s": f"{result['seconds']:.2f}",
        "time / bare": f"{result['ratio']:.2f}",
        "four maps / bare": "–" if four is None else f"{four:.2f}",
        "memory / bare": f"{result['mib_ratio']:.2f}",
        "supports": row.supports,
    }


def duels(rows: Results) -> Iterator[str]:
    """Who is best by each measure, of the maps as the methods give them, and of the smoothed ones.

    Args:
        rows: results of a network.
    """
    judged = _judged(rows)
    for smoothed in (False, True):
        for measure in MEASURES:
            order = sorted(
                (row for row in judged if row.smoothed == smoothed), key=lambda row: -_ranked(judged[row], measure)
            )
            ours = next((row for row in order if row.package == PACKAGE), None)
            others = next((row for row in order if row.package not in (PACKAGE, "no support")), None)
            if ours and others:
                which = f"{measure}, smoothed" if smoothed else measure
                yield f"Best by {which}: {_duel(measure, rows, *sorted((ours, others), key=order.index))}"


def _judged(rows: Results) -> Results:
    return {row: result for row, result in rows.items() if len(result["mosaics"]) >= FEWEST}


def sentences(rows: Results) -> Iterator[str]:
    """Who adds up, who is cheapest, and who explained too few mosaics.

    Args:
        rows: results of a network.
    """
    adding = [label(row) for row, result in rows.items() if result["mosaics"] and _adds_up(result)]
    yield f"Maps that add up to the score: {'; '.join(adding) or 'none'}."
    single = [row for row, result in rows.items() if row.package != "no support" and not result["error"]]
    for unit, key in (("time", "ratio"), ("memory", "mib_ratio")):
        cheap = sorted(single, key=lambda row: rows[row][key])[:3]  # type: ignore[literal-required]
        words = "; ".join(f"{label(row)} {rows[row][key]:.2f}" for row in cheap)  # type: ignore[literal-required]
        yield f"Least {unit} for one map, in bare passes: {words}."
    judged = _judged(rows)
    few = [label(row) for row, result in rows.items() if result["mosaics"] and row not in judged]
    if few:
        yield f"On fewer than {FEWEST} mosaics, and so in no sentence about the best: {'; '.join(few)}."


def _duel(measure: str, rows: Results, first: Row, second: Row) -> str:
    """The best row of this package and the best of all others, compared on the mosaics that both explained."""
    difference = []
    for number, pair in enumerate(zip(rows[first]["mosaics"], rows[second]["mosaics"], strict=False)):
        one, other = (values[measure] for values in pair)
        if len(one) != len(other):  # a slow row explains one class of each mosaic
            one, other = (values if len(values) == 1 else [values[number % len(values)]] for values in (one, other))
        difference.append(sum(one) / len(one) - sum(other) / len(other))
    mean, half_width, n = metrics.summarize(torch.tensor(difference, dtype=torch.float64))[:3]
    verdict = "ahead" if mean > half_width else "not separated from it"
    rest = "the other packages" if first.package == PACKAGE else PACKAGE
    one, other = (f"{label(row)} ({_mean(rows[row], measure).value:.3f})" for row in (first, second))
    return (
        f"{one}. The best of {rest} is {other}; the first is {verdict}: {mean:+.3f} ± "
        f"{half_width:.3f} on the {n} mosaics that both explained."
    )


def _mean(result: Result, measure: str) -> metrics.Result:
    """Mean over mosaics of the means within each."""
    values = [torch.tensor(one[measure], dtype=torch.float64) for one in result["mosaics"]]
    groups = torch.cat([torch.full((len(one),), number) for number, one in enumerate(values)])
    return metrics.summarize(torch.cat(values), groups)


def _ranked(result: Result, measure: str) -> float:
    """The mean, below all others where no map has a value."""
    mean = _mean(result, measure).value
    return -math.inf if math.isnan(mean) else mean


def _all(result: Result, measure: str) -> torch.Tensor:
    return torch.tensor([value for one in result["mosaics"] for value in one[measure]], dtype=torch.float64)


def _is_scaled(result: Result) -> bool:
    return bool((_all(result, "peak") - 1).abs().max() < 1e-3)


def _adds_up(result: Result) -> bool:
    return not _is_scaled(result) and bool((_all(result, "coverage") - 1).abs().max() < 1e-2)


def _median(result: Result) -> str:
    low, middle, high = torch.quantile(_all(result, "coverage"), torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return f"{_short(middle)} [{_short(low)}, {_short(high)}]"


def _short(number: float) -> str:
    """Two decimals, or three digits for large numbers; no minus before zero."""
    text = f"{number:.2f}" if abs(number) < 100 else f"{number:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


def _is_clean(cells: Mapping[str, str]) -> bool:
    return all(cells[name] == ("yes" if name in COLUMNS[:4] else "nothing") for name in COLUMNS[:6]) and cells[
        COLUMNS[6]
    ] in ("nothing", "no error")
