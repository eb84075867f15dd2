"""The subcommand ``captum-fam evaluate``: runs a protocol, from a folder of images to a table."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from captum_fam._files import lock_folder
from captum_fam.cli.loading import RunOptions
from captum_fam.cli.options import add_fields, default_out, option, read_fields
from captum_fam.cli.ranges import at_least
from captum_fam.embedding.ranks import Ranks, joined
from captum_fam.experiments import Conventions, Evaluation, Panel, evaluate, get_methods
from captum_fam.experiments.cli.loading import (
    BankOptions,
    DataOptions,
    SplitModelOptions,
    add_methods,
    load_split_model,
)
from captum_fam.experiments.measures import list_measures
from captum_fam.experiments.protocols import get_protocol, list_protocols
from captum_fam.experiments.protocols.base import Protocol
from captum_fam.experiments.table_methods import DEFAULT_METHODS
from captum_fam.similarity import get_similarity

# Options that summary.json states beside the settings on which the results depend.
_ABOUT = ("model", "weights", "head", "pooling", "layer", "resize", "data", "split")
_N_LISTED = 10  # of the images that were left out, on the terminal


@dataclass(frozen=True)
class FigureOptions:
    """The options of the figures that are drawn beside the table.

    Attributes:
        examples: rows of the figure of examples. Default: 4.
        wrong: rows of the figure of the most confident mistakes. Default: 0, no figure.
    """

    examples: int = option("rows of the figure of examples", 4, within=at_least(0))
    wrong: int = option("show the N most confident mistakes", 0, within=at_least(0))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each registered protocol, whose options are the fields of the protocol.

    Args:
        parser: parser of the subcommand.
    """
    parser.description = (
        "Run a protocol. The table has the accuracy of the model, and for each method how well its maps lie on the "
        "objects and follow the support, beside baselines that do neither. A run that was killed continues when the "
        "same command is given again. torchrun --nproc-per-node N -m captum_fam evaluate ... runs N processes."
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    for name in list_protocols():
        protocol = get_protocol(name)
        summary = protocol.summary
        _add_protocol(
            protocols.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."), protocol
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
        help=f"measures of the table: {', '.join(list_measures(protocol.gives))}; "
        f"default: {','.join(protocol.default_measures)}",
    )
    add_fields(parser, protocol)
    if protocol.takes_bank:
        add_fields(parser, BankOptions)
    if "boxes" in protocol.gives:
        add_fields(parser, Conventions)
    add_fields(parser, FigureOptions)
    add_fields(parser, RunOptions, skip=("batch_size",))  # a field of the protocol
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser),
        metavar="DIR",
        help="folder of the results; default: %(default)s",
    )
    parser.set_defaults(run=run, protocol=protocol)


def run(options: argparse.Namespace) -> int:
    """Run a protocol.

    Args:
        options: the parsed options.

    Returns:
        The exit code: 1 if an image was left out, else 0.

    Raises:
        ValueError: for options that do not fit together, see :func:`make_protocol`.
        OSError: if a file cannot be read or written, or another process works in the folder of the results.
    """
    with joined(options.device) as ranks, lock_folder(options.out, ranks.is_first):
        protocol = make_protocol(options, ranks)
        try:
            evaluation = evaluate(
                protocol,
                options.out,
                ranks=ranks,
                progress=not options.quiet,
                examples=options.examples,
                wrong=options.wrong,
                about={name: getattr(options, name) for name in _ABOUT},
            )
        except KeyboardInterrupt:
            print(
                f"\ninterrupted; the results so far are in {options.out}, the same command continues", file=sys.stderr
            )
            raise
    return 0 if evaluation is None else _report(evaluation, options.out)


def make_protocol(options: argparse.Namespace, ranks: Ranks) -> Protocol:
    """Make the protocol that the options describe.

    Args:
        options: the parsed options.
        ranks: the processes, of which the first warns of random weights.

    Returns:
        The protocol with its model, data and panel.

    Raises:
        ValueError: for options that do not fit together, such as an unknown model, method or measure.
        FileNotFoundError: for a folder or file that does not exist.
    """
    protocol: type[Protocol] = options.protocol
    # What needs neither model nor images is checked first.
    panel = Panel(get_methods(options.methods, options.foil), options.measures, read_fields(Conventions, options))
    panel.check(protocol.gives, protocol.name)
    if options.similarity is not None:
        get_similarity(options.similarity)
    images = read_fields(DataOptions, options)
    model = load_split_model(read_fields(SplitModelOptions, options), missing="warn" if ranks.is_first else "ignore")
    dataset = images.load(model)
    bank = {}
    if protocol.takes_bank:
        bank["bank"] = read_fields(BankOptions, options).load(model, images, dataset, options.backend)
    return read_fields(protocol, options, model=model, dataset=dataset, panel=panel, **bank)


def _report(evaluation: Evaluation, out: Path) -> int:
    """Print the table and the images that were left out; returns the exit code."""
    print(evaluation)
    for owner, skipped in (("", evaluation.skipped), (" of the bank", evaluation.bank_skipped)):
        for item, reason in list(skipped.items())[:_N_LISTED]:
            print(f"left out{owner}: item {item}: {reason}", file=sys.stderr)
    print(f"written to {out}")
    return 1 if evaluation.skipped or evaluation.bank_skipped else 0


def _names(text: str) -> tuple[str, ...]:
    """Names that are separated by commas; the panel refuses unknown names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
