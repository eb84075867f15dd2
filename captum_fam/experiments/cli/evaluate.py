"""``captum-fam evaluate``: the protocols, from a folder of images to a table."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from captum_fam.cli.loading import RunOptions
from captum_fam.cli.options import add_fields, default_out, option, read_fields
from captum_fam.experiments import Conventions, Evaluation, Panel, evaluate, get_methods
from captum_fam.experiments.cli.loading import (
    BankOptions,
    DataOptions,
    SplitModelOptions,
    add_methods,
    load_split_model,
)
from captum_fam.experiments.distributed import Ranks, joined
from captum_fam.experiments.measures import list_measures
from captum_fam.experiments.protocols import get_protocol, list_protocols
from captum_fam.experiments.protocols.base import Protocol
from captum_fam.experiments.table_methods import DEFAULT_METHODS

# What summary.json names besides what the results depend on.
_ABOUT = ("model", "weights", "head", "pooling", "layer", "data", "split", "geometry")
_LISTED = 10  # images that were left out, on the terminal


@dataclass(frozen=True)
class FigureOptions:
    """The pictures beside the table."""

    examples: int = option("rows of the figure of examples", 4)
    wrong: int = option("show the N most confident mistakes", 0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of the subcommand: each registered protocol is a subcommand, its fields are options."""
    parser.description = (
        "Run a protocol: the model's accuracy, and for every method how well its maps lie on the objects and follow "
        "the support, beside baselines that look at neither. A run that is killed goes on when the same command is "
        "given again; torchrun --nproc-per-node N -m captum_fam evaluate ... shares it among processes."
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    for name in list_protocols():
        protocol = get_protocol(name)
        summary = protocol.summary
        _add_protocol(
            protocols.add_parser(
                name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
            ),
            protocol,
        )


def _add_protocol(parser: argparse.ArgumentParser, protocol: type[Protocol]) -> None:
    add_fields(parser, SplitModelOptions, defaults={"model": MISSING})
    add_fields(parser, DataOptions, defaults={"split": protocol.split})
    add_methods(parser, ",".join(DEFAULT_METHODS))
    parser.add_argument(
        "--measures",
        type=_names,
        default=protocol.default_measures,
        metavar="NAME,NAME,...",
        help=f"{', '.join(list_measures(protocol.gives))}; default: {','.join(protocol.default_measures)}",
    )
    add_fields(parser, protocol)
    if protocol.takes_bank:
        add_fields(parser, BankOptions)
    if "boxes" in protocol.gives:
        add_fields(parser, Conventions)
    add_fields(parser, FigureOptions)
    add_fields(parser, RunOptions, skip=("batch_size",))  # a protocol has its own
    parser.add_argument("--out", type=Path, default=default_out(parser), metavar="DIR", help="default: %(default)s")
    parser.set_defaults(run=run, protocol=protocol)


def run(options: argparse.Namespace) -> int:
    """Run a protocol."""
    with joined(options.device) as ranks:
        try:
            evaluation = evaluate(
                make_protocol(options, ranks),
                options.out,
                ranks=ranks,
                progress=not options.quiet,
                examples=options.examples,
                wrong=options.wrong,
                about={name: getattr(options, name) for name in _ABOUT},
            )
        except KeyboardInterrupt:
            print(f"\ninterrupted; what is done is in {options.out}, the same command goes on", file=sys.stderr)
            raise
    return 0 if evaluation is None else _report(evaluation, options.out)


def make_protocol(options: argparse.Namespace, ranks: Ranks) -> Protocol:
    """The protocol that the options describe.

    Args:
        options: as the parser gives them.
        ranks: of which the first warns of random weights.

    Raises:
        ValueError, FileNotFoundError: for options that cannot be followed.
    """
    protocol: type[Protocol] = options.protocol
    images = read_fields(DataOptions, options)
    model = load_split_model(
        read_fields(SplitModelOptions, options), images.geometry, missing="warn" if ranks.is_first else "ignore"
    )
    dataset = images.load(model)
    bank = {}
    if protocol.takes_bank:
        bank["bank"] = read_fields(BankOptions, options).load(model, images, dataset, options.backend)
    panel = Panel(get_methods(options.methods, options.foil), options.measures, read_fields(Conventions, options))
    return read_fields(protocol, options, model=model, dataset=dataset, panel=panel, **bank)


def _report(evaluation: Evaluation, out: Path) -> int:
    """Print the table and what was left out; gives the exit code."""
    print(evaluation)
    for where, skipped in (("", evaluation.skipped), (" of the bank", evaluation.bank_skipped)):
        for item, reason in list(skipped.items())[:_LISTED]:
            print(f"left out{where}: item {item}: {reason}", file=sys.stderr)
    print(f"written to {out}")
    return 1 if evaluation.skipped or evaluation.bank_skipped else 0


def _names(text: str) -> tuple[str, ...]:
    """The protocol's panel refuses unknown ones."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
