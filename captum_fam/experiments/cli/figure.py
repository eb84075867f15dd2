"""``captum-fam figure``: the paper's Figs. 2 to 5 for any models and images."""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from captum_fam._files import versions, write_all_or_nothing, write_json
from captum_fam.cli.loading import RunOptions, choose_device
from captum_fam.cli.options import add_fields, default_out, option, option_fields, positive, read_fields
from captum_fam.experiments import Panel, get_methods
from captum_fam.experiments.cli.loading import (
    BankOptions,
    DataOptions,
    SplitModelOptions,
    add_methods,
    load_split_model,
)
from captum_fam.experiments.figure_queries import FigureQuery, Which, choose_queries
from captum_fam.experiments.model_figure import ClearValue, check_scale, format_percent, model_figure
from captum_fam.experiments.model_run import ModelRun, run_model
from captum_fam.experiments.protocols import get_protocol, list_protocols
from captum_fam.experiments.protocols.base import Protocol

_SUFFIXES = (".png", ".pdf", ".svg")
# Settings of a protocol that a figure does not have.
_OF_TABLES = ("methods", "measures", "conventions", "explain")


@dataclass(frozen=True)
class FigureModel(SplitModelOptions):
    """One model of the figure, as a word of ``--model`` names it."""

    bank: str | None = option("memory bank of the model", None)
    label: str = option("what the figure calls the model", "")


@dataclass(frozen=True)
class QueryOptions:
    """Which queries are the rows, and what is drawn of each."""

    which: Which = option(
        "queries that all models get right, or wrong (Fig. 4: maps for the predicted and for the true class), or any",
        "correct",
    )
    queries: int = option("rows", 6, parse=positive)
    seed: int = option("of the choice, and of episodes", 0)
    supports: bool | None = option("show what the queries were compared with; default: where there is no bank", None)
    scale: ClearValue = option("what is left clear in a map: zero, or its smallest value as in the paper", "zero")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of the subcommand: protocols whose queries are single images are subcommands."""
    parser.description = (
        "Draw a grid: one row per query, one column per model, its accuracy above. FIGURE.json beside it says how it "
        "was made. Every map has its own scale; red speaks for the match, blue against it."
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    for name in list_protocols():
        protocol = get_protocol(name)
        if "cells" not in protocol.gives:  # a mosaic is no photograph that a reader could look at
            description = f"Draw the maps of several models for queries of: {protocol.summary}."
            _add_protocol(
                protocols.add_parser(name, help=protocol.summary, description=description, allow_abbrev=False),
                protocol,
            )


def _add_protocol(parser: argparse.ArgumentParser, protocol: type[Protocol]) -> None:
    item = "EPISODE:ITEM" if protocol.by_unit else "ITEM"
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        type=parse_model,
        metavar="NAME[=WEIGHTS][,KEY=VALUE...]",
        help="one or more of those that captum-fam evaluate takes, with a file of weights. Keys: "
        f"{', '.join(_keys())}, as for captum-fam evaluate; label is what the figure calls the model. "
        "Example: conv4net=conv4net/best.safetensors,label=Conv4Net",
    )
    add_fields(parser, DataOptions, defaults={"split": protocol.split})
    add_methods(parser, "fam")
    add_fields(parser, QueryOptions)
    parser.add_argument(
        "--items",
        type=parse_items,
        default=(),
        metavar=f"{item},{item},...",
        help="these queries, as an earlier FIGURE.json has them under items",
    )
    # Few episodes have enough queries to choose from.
    add_fields(parser, protocol, skip=("seed", "explain"), defaults={"episodes": 200})
    if protocol.takes_bank:
        add_fields(parser, BankOptions, skip=("bank",))  # each model has its own
    add_fields(parser, RunOptions, skip=("batch_size",))
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser, ".png"),
        metavar="FIGURE",
        help=f"{', '.join(_SUFFIXES)}; default: %(default)s",
    )
    parser.set_defaults(run=run, protocol=protocol)


def _keys() -> list[str]:
    return [field.name for field in option_fields(FigureModel) if field.name != "model"]


def parse_model(text: str) -> FigureModel:
    """A word of ``--model``.

    Raises:
        ArgumentTypeError: for a word of another form, or an unknown key.
    """
    # Commas that no key follows belong to a path.
    parts = [part.partition("=") for part in re.split(rf",(?=(?:{'|'.join(_keys())})=)", text)]
    (name, _, weights), *rest = parts
    if not name or "," in name or any(equals and not value for _, equals, value in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME[=WEIGHTS][,KEY=VALUE...] with the keys {', '.join(_keys())}"
        )
    given: dict[str, Any] = {"weights": weights or None, "label": name, **{key: value for key, _, value in rest}}
    if "size" in given:
        given["size"] = positive(given["size"])
    return FigureModel(name, **given)


def parse_items(text: str) -> tuple[int | tuple[int, int], ...]:
    """Positions of queries in the data, ``ITEM`` or ``EPISODE:ITEM``, with commas between.

    Raises:
        ArgumentTypeError: for a word of another form, or a query that is given twice.
    """
    items: list[int | tuple[int, int]] = []
    for part in text.split(","):
        found = re.fullmatch(r"(?:(\d+):)?(\d+)", part.strip(), re.ASCII)
        if found is None:
            raise argparse.ArgumentTypeError(f"{part!r}: expected ITEM or, of few-shot, EPISODE:ITEM")
        item = int(found[2]) if found[1] is None else (int(found[1]), int(found[2]))
        if item in items:
            raise argparse.ArgumentTypeError(f"{part} is given twice; a query has one row")
        items.append(item)
    return tuple(items)


def run(options: argparse.Namespace) -> int:
    """Draw a figure."""
    shown = read_fields(QueryOptions, options)
    supports = not options.protocol.takes_bank if shown.supports is None else shown.supports
    _check(options, supports)
    methods = get_methods(options.methods, options.foil)
    check_scale(methods, shown.scale)
    protocols = [make_figure_protocol(options, model) for model in options.model]
    for protocol in protocols:
        protocol.check_methods(methods)  # its panel has none
    for protocol in protocols:
        protocol.check_methods(methods)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the figure: the features of many images may be too much for the system's folder.
    with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".captum-fam-") as scratch:
        runs = [
            run_model(
                model.label,
                protocol,
                Path(scratch, str(number)),
                device=choose_device(options.device),
                progress=not options.quiet,
            )
            for number, (model, protocol) in enumerate(zip(options.model, protocols, strict=True))
        ]
        queries = choose_queries(runs, shown.which, shown.queries, shown.seed, options.items)
        drawn = tqdm(queries, "drawing", unit="query", disable=options.quiet or None)
        figure = model_figure(runs, drawn, methods, which=shown.which, supports=supports, scale=shown.scale)
    with write_all_or_nothing(options.out.parent) as folder:
        figure.save(folder / options.out.name, dpi=200)
        write_json(folder / f"{options.out.stem}.json", _about(options, supports, runs, queries))
    for run in runs:
        print(f"{run.label}: {format_percent(run.accuracy)}")
    print(f"{len(queries)} queries: {options.out}")
    return 0


def make_figure_protocol(options: argparse.Namespace, model: FigureModel) -> Protocol:
    """The protocol of one model, without methods: maps are made of the chosen queries only.

    Raises:
        ValueError, FileNotFoundError: for options that cannot be followed.
    """
    protocol: type[Protocol] = options.protocol
    images = read_fields(DataOptions, options)
    two_part = load_split_model(model, images.geometry, remedy=f"{model.model}=FILE")
    dataset = images.load(two_part)
    bank = {}
    if protocol.takes_bank:
        source = read_fields(BankOptions, options, bank=model.bank)
        bank["bank"] = source.load(two_part, images, dataset, options.backend)
    return read_fields(protocol, options, model=two_part, dataset=dataset, panel=Panel((), ()), **bank)


def _check(options: argparse.Namespace, supports: bool) -> None:
    """Refuse what no model is needed to refuse."""
    protocol: type[Protocol] = options.protocol
    if options.out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--out {options.out}: a figure is written as {', '.join(_SUFFIXES)}")
    labels = [model.label for model in options.model]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise ValueError(f"--model: several are called {twice[0]}; tell them apart by ,label=NAME")
    banks = [model.bank for model in options.model if model.bank]
    if banks and not protocol.takes_bank:
        raise ValueError(f"--model: bank={banks[0]} is for protocols with a memory bank, {protocol.name} has none")
    if banks and supports:
        raise ValueError(f"--supports: the memory bank {banks[0]} has no images to show; leave one of them out")
    if not protocol.by_unit and any(isinstance(item, tuple) for item in options.items):
        raise ValueError(f"--items: EPISODE:ITEM is for episodes, {protocol.name} has none; give ITEM")


def _about(
    options: argparse.Namespace, supports: bool, runs: Sequence[ModelRun], queries: Sequence[FigureQuery]
) -> dict[str, Any]:
    """How the figure was made."""
    names = ("data", "split", "geometry", "methods", "foil", "which", "seed", "scale")
    first = runs[0].prepared.protocol
    return {
        "protocol": first.name,
        **{name: getattr(options, name) for name in names},
        "supports": supports,
        "models": [_about_model(model, run) for model, run in zip(options.model, runs, strict=True)],
        "items": ",".join(query.name for query in queries),
        "queries": [
            {
                "item": query.item,
                "file": first.item_name(query.item),
                first.unit: query.unit,
                "label": first.class_name(query.column("label")[0]),
                "predicted": {
                    run.label: first.class_name(predicted)
                    for run, predicted in zip(runs, query.column("predicted"), strict=True)
                },
            }
            for query in queries
        ],
        "versions": versions(),
    }


def _about_model(model: FigureModel, run: ModelRun) -> dict[str, Any]:
    accuracy = run.accuracy
    settings = run.prepared.protocol.settings()
    return {
        **asdict(model),
        "accuracy": {
            "mean": accuracy.value,
            "ci95": None if math.isnan(accuracy.half_width) else accuracy.half_width,
            "n": accuracy.n,
        },
        "settings": {name: value for name, value in settings.items() if name not in _OF_TABLES},
    }
