"""The program ``captum-fam``: global options, plug-ins, and the table of subcommands.

Only the module of the subcommand that runs is imported, so that ``--help`` and ``--version`` print without delay.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from captum_fam import __version__
from captum_fam.cli.plugins import load_plugin


class Command(NamedTuple):
    """A subcommand whose module is not imported yet.

    Attributes:
        module: name of the module, which has a function ``add_options(parser)``. The function sets the default ``run``
            of the parser: a function from the parsed options to an exit code.
        help: line of ``captum-fam --help``.
    """

    module: str
    help: str


COMMANDS = {
    "demo": Command("captum_fam.cli.demo", "explain a match of the built-in few-shot network, offline"),
    "explain": Command("captum_fam.cli.explain", "explain why images match their supports"),
    "evaluate": Command(
        "captum_fam.experiments.cli.evaluate",
        "measure maps on images with boxes: few-shot, contrastive, retrieval, mosaic",
    ),
    "figure": Command(
        "captum_fam.experiments.cli.figure",
        "draw the maps of several models for the same images, with their accuracies",
    ),
    "train": Command(
        "captum_fam.experiments.cli.train",
        "train few-shot networks on episodes, or heads and networks by metric learning",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after ``captum-fam``; None for the words on the command line of the process. Default: None.

    Returns:
        The exit code: 0; 1 if a part of the work could not be done; 2 for wrong options; 130 after Ctrl-C.

    Raises:
        SystemExit: after ``--help`` and ``--version``, and for options that the parser refuses.
    """
    program_options = _program_parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            # Plug-ins come first, because the help of the command lists the registered methods, models and protocols.
            for plugin in program_options.plugin:
                load_plugin(plugin)
            options = make_parser(program_options.command).parse_args(program_options.words)
            code: int = options.run(options)
        except KeyboardInterrupt:
            print("captum-fam: interrupted", file=sys.stderr)
            return 130
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            if program_options.traceback:
                raise
            print(f"captum-fam: error: {error}", file=sys.stderr)
            return 2
    return code


def make_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a subcommand; imports the module of the subcommand.

    Args:
        command: a key of ``COMMANDS``.

    Returns:
        The parser with all options.

    Example:
        >>> make_parser("demo").parse_args([]).seed
        0
    """
    # argparse, because a shell turns --support birds/*.jpg into many words after one option. typer and click take only
    # one word per option.
    parser = argparse.ArgumentParser(prog=f"captum-fam {command}", allow_abbrev=False)
    import_module(COMMANDS[command].module).add_options(parser)
    return parser


def _program_parser() -> argparse.ArgumentParser:
    """The parser of the global options and the name of the command; the words after the name belong to the command."""
    parser = argparse.ArgumentParser(
        prog="captum-fam",
        usage="%(prog)s [-h] [--version] [--traceback] [--plugin MODULE_OR_FILE.py] COMMAND ...",
        description="Explain vision models that decide by similarity.",
        epilog="captum-fam COMMAND --help shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"captum-fam {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE.py",
        help="code of your own that registers methods, similarities, models or protocols; may be repeated",
    )
    width = max(map(len, COMMANDS))
    lines = [f"{name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    commands = parser.add_argument_group("commands", "\n".join(lines))
    commands.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    commands.add_argument("words", nargs=argparse.REMAINDER, metavar="OPTIONS", help=argparse.SUPPRESS)
    return parser


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"captum-fam: note: {message}", file=sys.stderr)
