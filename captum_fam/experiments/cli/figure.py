"""The subcommand ``captum-fam figure``: Figs. 2 to 5 of the FAM paper for any models and images."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from captum_fam._files import try_file, versions, write_all_or_nothing, write_json
from captum_fam._locks import made_folders, remove_dead_scratch, scratch_folder
from captum_fam.cli.loading import RunOptions, choose_device, image_size, output_field
from captum_fam.cli.options import add_fields, default_out, option, option_fields, read_fields
from captum_fam.cli.ranges import at_least
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
# Settings of a protocol that concern tables only.
_TABLE_SETTINGS = ("methods", "measures", "conventions", "explain")


@dataclass(frozen=True)
class FigureModel(SplitModelOptions):
    """One model of the figure, from a word of ``--model``; see also :class:`SplitModelOptions`.

    Attributes:
        bank: file of the memory bank of the model. Default: None.
        label: name of the model in the figure. Default: empty.
    """

    bank: str | None = option("memory bank of the model", None)
    label: str = option("name of the model in the figure", "")


@dataclass(frozen=True)
class QueryOptions:
    """The options of the queries, which are the rows of the figure.

    Attributes:
        which: answers of the models to the queries. Default: ``"correct"``.
        queries: number of queries. Default: 6.
        seed: seed of the choice of queries, and of episodes. Default: 0.
        supports: whether the supports are shown; None shows them for protocols without a memory bank. Default: None.
        scale: value of a map that is transparent. Default: ``"zero"``.
    """

    which: Which = option(
        "queries for which all models are correct, or all are wrong (as in Fig. 4, with maps for the predicted and "
        "the true class), or any queries",
        "correct",
    )
    queries: int = option("number of queries, which are the rows", 6, within=at_least(1))
    seed: int = option("seed of the choice of queries, and of episodes", 0, within=at_least(0))
    supports: bool | None = option("show the supports; default: yes without a memory bank", None)
    scale: ClearValue = option("transparent value of a map: zero, or the smallest value as in the paper", "zero")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each protocol whose queries are single images.

    Args:
        parser: parser of the subcommand.
    """
    parser.description = (
        "Draw a grid with one row per query and one block of columns per model, with the accuracy of the model above. "
        "FIGURE.json beside the figure states how the figure was made. Every map has its own scale; red is evidence "
        "for the match, blue is evidence against it."
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    for name in list_protocols():
        protocol = get_protocol(name)
        if "cells" not in protocol.gives:  # the query of a mosaic is no single image
            description = f"Draw the maps of several models for queries of: {protocol.summary}."
            _add_protocol(
                protocols.add_parser(name, help=protocol.summary, description=description),
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
        help="one or more models, named as for captum-fam evaluate, each with its file of weights. Keys: "
        f"{', '.join(_keys())}, as for captum-fam evaluate; label is the name of the model in the figure. "
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
        help="show these queries, in the form of the entry items of FIGURE.json",
    )
    # A figure needs few episodes to choose its queries from.
    add_fields(parser, protocol, skip=("seed", "explain"), defaults={"episodes": 200})
    if protocol.takes_bank:
        add_fields(parser, BankOptions, skip=("bank",))  # a key of --model
    add_fields(parser, RunOptions, skip=("batch_size",))
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser, ".png"),
        metavar="FIGURE",
        help=f"file of the figure ({', '.join(_SUFFIXES)}); default: %(default)s",
    )
    parser.set_defaults(run=run, protocol=protocol)


def _keys() -> list[str]:
    return [field.name for field in option_fields(FigureModel) if field.name != "model"]


def parse_model(text: str) -> FigureModel:
    """Read a word of ``--model``.

    Args:
        text: ``NAME[=WEIGHTS][,KEY=VALUE...]``.

    Returns:
        The options of the model.

    Raises:
        argparse.ArgumentTypeError: for a word of another form, or an unknown key.

    Example:
        >>> model = parse_model("conv4net=best.safetensors,label=Conv4Net")
        >>> model.model, model.weights, model.label
        ('conv4net', 'best.safetensors', 'Conv4Net')
    """
    # A comma separates two entries only if a key follows; any other comma belongs to a path.
    parts = [part.partition("=") for part in re.split(rf",(?=(?:{'|'.join(_keys())})=)", text)]
    (name, _, weights), *rest = parts
    if not name or "," in name or any(equals and not value for _, equals, value in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME[=WEIGHTS][,KEY=VALUE...] with the keys {', '.join(_keys())}"
        )
    entries: dict[str, Any] = {"weights": weights or None, "label": name, **{key: value for key, _, value in rest}}
    for key, parse in (("size", image_size), ("output", output_field)):
        if key in entries:
            entries[key] = parse(entries[key])
    return FigureModel(name, **entries)


def parse_items(text: str) -> tuple[int | tuple[int, int], ...]:
    """Read positions of queries in the data set.

    Args:
        text: ``ITEM`` or ``EPISODE:ITEM``, several separated by commas.

    Returns:
        Positions, or pairs of an episode and a position.

    Raises:
        argparse.ArgumentTypeError: for a word of another form, or a query that is given twice.

    Example:
        >>> parse_items("7,3:12")
        (7, (3, 12))
    """
    items: list[int | tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\d+):)?(\d+)", part.strip(), re.ASCII)
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r}: expected ITEM, or EPISODE:ITEM for few-shot")
        item = int(match[2]) if match[1] is None else (int(match[1]), int(match[2]))
        if item in items:
            raise argparse.ArgumentTypeError(f"{part} is given twice; a query has one row")
        items.append(item)
    return tuple(items)


def run(options: argparse.Namespace) -> int:
    """Draw a figure.

    Args:
        options: the parsed options.

    Returns:
        The exit code 0.

    Raises:
        ValueError: for options that do not fit together, or queries that do not exist.
        OSError: if a file cannot be read or written.
    """
    query_options = read_fields(QueryOptions, options)
    supports = not options.protocol.takes_bank if query_options.supports is None else query_options.supports
    _check(options, supports)
    methods = get_methods(options.methods, options.foil)
    check_scale(methods, query_options.scale)
    about_file = options.out.with_suffix(".json")
    for file in (options.out, about_file):
        try_file(file)
    protocols = [make_figure_protocol(options, model) for model in options.model]
    for protocol in protocols:
        protocol.check_methods(methods)  # The protocol has not checked them, because its panel is empty.
        _check_items(protocol, options.items)
    folder = options.out.parent
    # The scratch folder is beside the figure, because the temporary folder of the system may be too small for the
    # features of many images.
    with made_folders(folder), scratch_folder(folder) as scratch:
        remove_dead_scratch(folder)
        runs = [
            run_model(
                model.label,
                protocol,
                scratch / str(number),
                device=choose_device(options.device),
                progress=not options.quiet,
            )
            for number, (model, protocol) in enumerate(zip(options.model, protocols, strict=True))
        ]
        which = query_options.which
        queries = choose_queries(runs, which, query_options.queries, query_options.seed, options.items)
        bar = tqdm(queries, "drawing", unit="query", disable=options.quiet or None)
        figure = model_figure(runs, bar, methods, which=which, supports=supports, scale=query_options.scale)
    with write_all_or_nothing(folder) as scratch:
        figure.save(scratch / options.out.name, dpi=200)
        write_json(scratch / about_file.name, _about(options, supports, runs, queries))
    for model_run in runs:
        print(f"{model_run.label}: {format_percent(model_run.accuracy)}")
    print(f"{len(queries)} queries: {options.out}")
    return 0


def make_figure_protocol(options: argparse.Namespace, model: FigureModel) -> Protocol:
    """Make the protocol of a model, without methods, because maps are computed for the chosen queries only.

    Args:
        options: the parsed options.
        model: the options of the model.

    Returns:
        The protocol with its model and data, and an empty panel.

    Raises:
        ValueError: for options that do not fit together.
        FileNotFoundError: for a folder or file that does not exist.
    """
    protocol: type[Protocol] = options.protocol
    images = read_fields(DataOptions, options)
    two_part = load_split_model(model, remedy=f"{model.model}=FILE")
    dataset = images.load(two_part)
    bank = {}
    if protocol.takes_bank:
        source = read_fields(BankOptions, options, bank=model.bank)
        bank["bank"] = source.load(two_part, images, dataset, options.backend)
    return read_fields(protocol, options, model=two_part, dataset=dataset, panel=Panel((), ()), **bank)


def _check(options: argparse.Namespace, supports: bool) -> None:
    """Check the options as far as no model is needed."""
    protocol: type[Protocol] = options.protocol
    if options.out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--out {options.out}: the file of a figure must end with {', '.join(_SUFFIXES)}")
    labels = [model.label for model in options.model]
    duplicates = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if duplicates:
        raise ValueError(f"--model: several models are called {duplicates[0]}; give other names by ,label=NAME")
    banks = [model.bank for model in options.model if model.bank]
    if banks and not protocol.takes_bank:
        raise ValueError(f"--model: bank={banks[0]} is for protocols with a memory bank, but {protocol.name} has none")
    if banks and supports:
        raise ValueError(
            f"--supports: the memory bank {banks[0]} has no images to show; leave out one of the two options"
        )
    if not protocol.by_unit and any(isinstance(item, tuple) for item in options.items):
        raise ValueError(f"--items: EPISODE:ITEM is for episodes, but {protocol.name} has none; give ITEM")


def _check_items(protocol: Protocol, items: Sequence[int | tuple[int, int]]) -> None:
    """Check that the data set has the items of ``--items``, and the protocol their episodes."""
    n_items = len(protocol.dataset)  # type: ignore[arg-type]
    for name in items:
        unit, item = name if isinstance(name, tuple) else (0, name)
        if item >= n_items:
            raise ValueError(f"--items: {item} is no query; the data set has {n_items} items")
        if unit >= len(protocol):
            raise ValueError(f"--items: {unit} is no {protocol.unit}; {protocol.name} has {len(protocol)}")


def _about(
    options: argparse.Namespace, supports: bool, runs: Sequence[ModelRun], queries: Sequence[FigureQuery]
) -> dict[str, Any]:
    """The content of FIGURE.json: how the figure was made."""
    names = ("data", "split", "methods", "foil", "which", "seed", "scale")
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
        "settings": {name: value for name, value in settings.items() if name not in _TABLE_SETTINGS},
    }
