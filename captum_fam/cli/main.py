"""The program ``captum-fam``: global options, plug-ins, and the table of subcommands.

Only the module of the subcommand that runs is imported, so that ``--help`` and ``--version`` print without delay.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from captum_fam import __version__
from captum_fam.cli.advice import in_options
from captum_fam.cli.console import console_streams, say
from captum_fam.cli.parser import CommandParser
from captum_fam.cli.plugins import load_plugin
from captum_fam.cli.signals import Terminated, termination_as_exception

EXIT_CODES = """\
exit codes:
  0    all is done
  1    a part of the work could not be done, such as images that cannot be read; the last lines name it
  2    wrong options, or files that are broken or cannot be read or written
  70   a fault of captum-fam, with a traceback to report
  130  interrupted by Ctrl-C
  143  ended by SIGTERM
A pipe that is closed early, as by "| head", changes neither the work nor the code."""

_EXPECTED = (ValueError, RuntimeError, OSError, ImportError, MemoryError)
_REPORT = "If your own code is not the cause, report it with the lines above"


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
    "report": Command(
        "captum_fam.cli.report", "show both sides of matches in one HTML file, for retrieval, few-shot, k-NN and pairs"
    ),
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
        The exit code, see :data:`EXIT_CODES`.

    Raises:
        SystemExit: after ``--help`` and ``--version``, and for options that the parser refuses.
    """
    with console_streams(), termination_as_exception():
        program_options = _program_parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return _run(program_options)
            except Terminated:
                print("captum-fam: ended by SIGTERM", file=sys.stderr)
                return 143
            except KeyboardInterrupt:
                print("captum-fam: interrupted", file=sys.stderr)
                return 130
            except Exception as error:
                if program_options.traceback:
                    raise
                if isinstance(error, _EXPECTED) and not _is_own_fault(error):
                    is_memory = isinstance(error, MemoryError)
                    say("error", f"out of memory ({error})" if is_memory else in_options(str(error)))
                    return 2
                traceback.print_exc()
                say("error", f"{type(error).__name__}, which captum-fam does not expect. {_REPORT}")
                return 70


def _run(program_options: argparse.Namespace) -> int:
    """Run the command of the options."""
    # Plug-ins come first, because the help of the command lists the registered methods, models and protocols.
    for plugin in program_options.plugin:
        load_plugin(plugin)
    options = make_parser(program_options.command).parse_args(program_options.words)
    code: int = options.run(options)
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
    parser = CommandParser(prog=f"captum-fam {command}")
    import_module(COMMANDS[command].module).add_options(parser)
    return parser


def _program_parser() -> argparse.ArgumentParser:
    """The parser of the global options and the name of the command; the words after the name belong to the command."""
    parser = CommandParser(
        prog="captum-fam",
        usage="%(prog)s [-h] [--version] [--traceback] [--plugin MODULE_OR_FILE.py] COMMAND ...",
        description="Explain vision models that decide by similarity.",
        epilog=f"captum-fam COMMAND --help shows the options of a command.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


def _is_own_fault(error: Exception) -> bool:
    """Whether a module of this package lacks what another one imports.

    Errors of the code of a user, and of extras that are not installed, have a cause, and say what to do.
    """
    is_own = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "captum_fam"
    return is_own and error.__cause__ is None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    if text := in_options(str(message)):
        say("note", text)
