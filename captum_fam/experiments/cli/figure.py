"""``captum-fam figure``: the paper's Figs. 2 to 5 for any models and images."""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captum_fam.experiments.cli.protocol_options import (
    SPLITS,
    add_bank,
    add_episodes,
    add_images,
    add_methods,
    bank_settings,
    episode_settings,
    load_bank,
    load_images,
    reading_settings,
)

_SUFFIXES = (".png", ".pdf", ".svg")
# Settings of a protocol that a figure has not.
_OF_TABLES = ("methods", "measures", "conventions", "explain")
_KEYS = ("weights", "head", "pooling", "similarity", "size", "bank", "label")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "figure",
        help="draw the maps of several models for the same images, with their accuracies",
        description="Draw a grid: a row a query, a column a model, its accuracy above. FIGURE.json beside it says how "
        "it was made. Every map has its own scale; red speaks for the match, blue against it.",
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    few_shot = _add_protocol(protocols, "few-shot", "queries of N-way K-shot episodes: Fig. 2", _few_shot)
    add_episodes(few_shot, 200)
    contrastive = _add_protocol(
        protocols, "contrastive", "queries classified by their neighbors in a memory bank: Figs. 3 and 4", _contrastive
    )
    add_bank(contrastive)
    _add_protocol(protocols, "retrieval", "queries and the image each model retrieves for them: Fig. 5", _retrieval)


def _add_protocol(protocols: Any, name: str, said: str, make: Any) -> argparse.ArgumentParser:
    from captum_fam.experiments.split_model import POOLINGS

    item = "EPISODE:ITEM" if name == "few-shot" else "ITEM"
    parser: argparse.ArgumentParser = protocols.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.")
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        type=_parse_model,
        metavar="NAME[=WEIGHTS][,KEY=VALUE...]",
        help="one or more of squeezenet, demo, another name of create_model, or package.module:factory, with a file of "
        f"weights. Keys: head, a linear head as train-head or train metric makes one; pooling, {', '.join(POOLINGS)}; "
        "similarity; size of the images; label, what the figure calls the model; bank, of contrastive, a file in place "
        "of --bank-split. Example: conv4net=conv4net/best.safetensors,label=Conv4Net",
    )
    add_images(parser, SPLITS[name])
    add_methods(parser, "fam", "a column of each model for each: ")
    parser.add_argument(
        "--which",
        choices=("correct", "wrong", "any"),
        default="correct",
        help="queries that all models get right, or wrong (Fig. 4: maps for the predicted and for the true class), or "
        "any; default: %(default)s",
    )
    parser.add_argument("--queries", type=int, default=6, metavar="N", help="rows; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the choice, and of episodes; default: %(default)s")
    parser.add_argument(
        "--items",
        type=_parse_items,
        default=(),
        metavar=f"{item},{item},...",
        help="these queries, as an earlier FIGURE.json has them under items",
    )
    parser.add_argument(
        "--supports",
        action=argparse.BooleanOptionalAction,
        default=name != "contrastive",
        help="show what the queries were compared with; default: not for contrastive",
    )
    parser.add_argument(
        "--scale",
        choices=("zero", "minmax"),
        default="zero",
        help="what is left clear in a map: zero, or its smallest value as in the paper; default: %(default)s",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(f"{name}.png"),
        metavar="FIGURE",
        help=f"{', '.join(_SUFFIXES)}; default: %(default)s",
    )
    parser.set_defaults(run=_run, make=make, protocol=name)
    return parser


@dataclass(frozen=True)
class _Model:
    """A model as ``--model`` names it."""

    name: str
    weights: str | None = None
    head: str | None = None
    pooling: str | None = None
    similarity: str | None = None
    size: int | None = None
    bank: str | None = None
    label: str = ""


def _parse_model(text: str) -> _Model:
    # Commas that no key follows belong to a path.
    parts = [part.partition("=") for part in re.split(rf",(?=(?:{'|'.join(_KEYS)})=)", text)]
    (name, _, weights), *rest = parts
    if not name or "," in name or any(equals and not value for _, equals, value in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME[=WEIGHTS][,KEY=VALUE...] with the keys {', '.join(_KEYS)}"
        )
    given: dict[str, Any] = {"weights": weights or None, "label": name, **{key: value for key, _, value in rest}}
    if "size" in given:
        if not given["size"].isdecimal() or int(given["size"]) < 1:
            raise argparse.ArgumentTypeError(f"size must be a number of pixels, at least 1, got {given['size']!r}")
        given["size"] = int(given["size"])
    return _Model(name, **given)


def _run(options: argparse.Namespace) -> int:
    """Draw a figure."""
    import torch
    from tqdm import tqdm

    from captum_fam._files import staged
    from captum_fam.experiments.model_figure import check_scale, choose_queries, format_percent, model_figure, run_model
    from captum_fam.experiments.table_methods import check_no_positions, get_methods
    from captum_fam.explanation import write_json

    _check(options)
    methods = get_methods(options.methods, options.foil)
    if options.protocol != "few-shot":
        check_no_positions(methods)
    check_scale(methods, options.scale)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    protocols = [options.make(options, model) for model in options.model]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the figure: the features of many images may be too much for the system's folder.
    with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".captum-fam-") as scratch:
        runs = [
            run_model(model.label, protocol, Path(scratch, str(number)), device=device, progress=True)
            for number, (model, protocol) in enumerate(zip(options.model, protocols, strict=True))
        ]
        queries = choose_queries(runs, options.which, options.queries, options.seed, options.items)
        drawn = tqdm(queries, "drawing", unit="query")
        figure = model_figure(runs, drawn, methods, which=options.which, supports=options.supports, scale=options.scale)
    with staged(options.out.parent) as folder:
        figure.save(folder / options.out.name, dpi=200)
        write_json(folder / f"{options.out.stem}.json", _about(options, runs, queries))
    for run in runs:
        print(f"{run.label}: {format_percent(run.accuracy)}")
    print(f"{len(queries)} queries: {options.out}")
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--out {options.out}: a figure is written as {', '.join(_SUFFIXES)}")
    labels = [model.label for model in options.model]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise ValueError(f"--model: several are called {twice[0]}; tell them apart by ,label=NAME")
    if options.queries < 1:
        raise ValueError(f"--queries must be at least 1, got {options.queries}")
    banks = [model.bank for model in options.model if model.bank]
    if banks and options.protocol != "contrastive":
        raise ValueError(f"--model: bank is for contrastive, {options.protocol} has none")
    if banks and options.supports:
        raise ValueError(f"--supports: the memory bank {banks[0]} has no images to show; leave one of them out")
    if options.protocol != "few-shot" and any(isinstance(item, tuple) for item in options.items):
        raise ValueError(f"--items: EPISODE:ITEM is for few-shot, {options.protocol} has no episodes; give ITEM")


def _few_shot(options: argparse.Namespace, given: _Model) -> Any:
    from captum_fam.experiments.model_figure import FewShotFigure

    model, data = _load(options, given)
    return FewShotFigure(model, data, **episode_settings(options), **_without_maps(options))


def _contrastive(options: argparse.Namespace, given: _Model) -> Any:
    from captum_fam.experiments.model_figure import ContrastiveFigure

    model, data = _load(options, given)
    bank = load_bank(options, given.bank, model, data)
    return ContrastiveFigure(model, data, bank, **bank_settings(options), **_without_maps(options))


def _retrieval(options: argparse.Namespace, given: _Model) -> Any:
    from captum_fam.experiments.model_figure import RetrievalFigure

    return RetrievalFigure(*_load(options, given), ks=(1,), **_without_maps(options))


def _load(options: argparse.Namespace, given: _Model) -> tuple[Any, Any]:
    """A model and the images as it takes them."""
    from captum_fam.experiments.split_model import load_model
    from captum_fam.models import list_models

    if given.weights is None and given.name in (*list_models(), "conv4"):
        raise ValueError(f"--model {given.name}: give its weights as {given.name}=FILE; random ones explain nothing")
    model = load_model(given.name, given.weights, given.head, given.pooling)
    model.size = given.size or model.size
    model.framing = options.geometry or model.framing
    model.similarity = given.similarity or model.similarity
    return model, load_images(options, model)


def _without_maps(options: argparse.Namespace) -> dict[str, Any]:
    """Maps are made of the chosen queries only."""
    from captum_fam.experiments.measures import Panel

    return {"panel": Panel((), ()), **reading_settings(options)}


def _about(options: argparse.Namespace, runs: Any, queries: Any) -> dict[str, Any]:
    """How the figure was made."""
    from captum_fam.explanation import versions

    names = ("protocol", "data", "split", "geometry", "methods", "foil", "which", "seed", "supports", "scale")
    first = runs[0].protocol
    return {
        **{name: getattr(options, name) for name in names},
        "models": [
            {
                **asdict(model),
                "accuracy": {
                    "mean": run.accuracy.value,
                    "ci95": None if math.isnan(run.accuracy.half_width) else run.accuracy.half_width,
                    "n": run.accuracy.n,
                },
                "settings": {name: value for name, value in run.protocol.settings().items() if name not in _OF_TABLES},
            }
            for model, run in zip(options.model, runs, strict=True)
        ],
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


def _parse_items(text: str) -> tuple[int | tuple[int, int], ...]:
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
