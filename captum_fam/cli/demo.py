"""``captum-fam demo``: the offline example."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_fam.cli.options import default_out
from captum_fam.demo.run import run_demo


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of the subcommand."""
    parser.description = (
        "Explain why the built-in few-shot network matches a query with its support, on planted scenes whose truth is "
        "known to the pixel. Needs no download."
    )
    parser.add_argument("--out", type=Path, default=default_out(parser), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the scenes; default: %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    print(run_demo(options.out, seed=options.seed))
    return 0
