"""The command ``captum-fam``. Each subcommand is one module here, listed in ``COMMANDS``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from captum_fam import __version__
from captum_fam.cli import demo, explain
from captum_fam.experiments.cli import evaluate, figure, train

COMMANDS = (demo, explain, evaluate, figure, train)
"""Modules with ``add_parser(subparsers)``, whose parser sets ``run``, a function of the options to an exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 where a part of the work could not be done; 2 for options that cannot be followed; 130 after Ctrl-C.
    """
    # argparse, because a shell turns --support birds/*.jpg into many words after one option, which typer and click
    # take one word at a time.
    parser = argparse.ArgumentParser(
        prog="captum-fam", description="Explain vision models that decide by similarity.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"captum-fam {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code: int = options.run(options)
        except KeyboardInterrupt:
            print("captum-fam: interrupted", file=sys.stderr)
            return 130
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            if options.traceback:
                raise
            print(f"captum-fam: error: {error}", file=sys.stderr)
            return 2
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"captum-fam: note: {message}", file=sys.stderr)
