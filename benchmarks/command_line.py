"""The command line that the benchmarks of docs/ share, and the command that stands in their pages."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection
from pathlib import Path

_FOLDERS = ("shared", "runs", "out")


def parser_for(
    module: str,
    description: str | None,
    *,
    names: Collection[str] = (),
    runs: str,
    out: str,
    shared: bool = True,
    quick: str = "",
) -> argparse.ArgumentParser:
    """A parser with the options that most benchmarks have.

    Args:
        module: what stands behind ``python -m``.
        description: docstring of the module.
        names: what can be chosen; then the options have ``names``, a list that is empty for all. Default: nothing.
        runs: folder of what is kept.
        out: folder or file of the page.
        shared: whether the benchmark reads data or weights of the shared folder. Default: True.
        quick: what ``--quick`` leaves out. Default: there is no such option.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if names:

        def known(word: str) -> str:
            if word not in names:
                raise argparse.ArgumentTypeError(f"unknown: {word}")
            return word

        parser.add_argument("names", nargs="*", type=known, metavar="NAME", help=f"of {', '.join(names)}; default: all")
    if shared:
        parser.add_argument("--shared", type=Path, default=Path("../shared"), help="data and weights")
    parser.add_argument("--runs", type=Path, default=Path(runs), help="what is kept; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path(out), help="the page; default: %(default)s")
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """What a reader types to get the same numbers: all that differs from the defaults, but for folders.

    Args:
        parser: the parser.
        options: what it has parsed.
    """
    words = [parser.prog, *getattr(options, "names", ())]
    for name, value in vars(options).items():
        if name in ("names", *_FOLDERS) or value == parser.get_default(name):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(shlex.quote(str(value)))
    return " ".join(words)
