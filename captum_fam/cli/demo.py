"""``captum-fam demo``: the offline example."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="explain a match of the built-in few-shot network, offline",
        description="Explain why the built-in few-shot network matches a query with its support, on planted scenes "
        "whose truth is known to the pixel. Needs no download.",
    )
    parser.add_argument("--out", type=Path, default=Path("captum-fam-demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes; default: %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from captum_fam.demo.run import run_demo

    print(run_demo(options.out, seed=options.seed))
    return 0
