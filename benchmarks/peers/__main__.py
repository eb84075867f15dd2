"""captum-fam and its peers on the same model, layer and mosaics, in one run.

    pip install "captum-fam[benchmarks,weights]"
    pip install --target runs/peers-site --no-deps xaitk-saliency smqtk-core smqtk-detection smqtk-classifier \
        smqtk-dataprovider smqtk-descriptors smqtk-image-io "setuptools<82"
    PYTHONPATH=runs/peers-site python -m benchmarks.peers [--mosaics 40] [--budget 12] [NETWORK ...]

xaitk-saliency goes into a folder of its own, because it needs a setuptools that still has pkg_resources. A package that
is missing gets a line that says so. Every row is a file of ``--runs`` and is not measured again. The whole takes about
20 minutes of a quiet core.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.command_line import command, parser_for
from benchmarks.networks import NETWORKS
from benchmarks.peers import page
from benchmarks.peers.mosaics import Mosaics, mosaics_of
from benchmarks.peers.needs import needs
from benchmarks.peers.question import Row
from benchmarks.peers.results import failed, run_row
from benchmarks.peers.rows import all_rows, missing
from benchmarks.pieces import file_name, kept


def file_of(row: Row) -> str:
    """Name of the file of a row.

    Args:
        row: the row.
    """
    return file_name(f"{row.package} {row.name}") + ".json"


def main(arguments: list[str] | None = None) -> None:
    """Measure all rows and write the page.

    Args:
        arguments: of the command line. Default: None, those of this process.
    """
    parser = parser_for("benchmarks.peers", __doc__, names=NETWORKS, runs="runs/peers", out="docs/peers.md")
    parser.add_argument("--mosaics", type=int, default=40, help="at most; default: %(default)s")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of mosaics for a row; default: %(default)s")
    parser.add_argument("--only", default="", metavar="PACKAGE", help="rows of one package; default: all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [row for row in all_rows() if options.only in ("", row.package)]
    found_needs = {}
    for row in rows:
        if row.contrast == "none" or (row.name == f"{row.method}, foil" and row.method not in found_needs):
            found_needs[row.method] = kept(options.runs / "needs" / file_of(row), lambda row=row: needs(row))
            print(row.package, row.method, *found_needs[row.method].values(), sep=" | ", flush=True)
    results = {}
    for name in options.names or NETWORKS:
        folder = options.runs / f"{name}-{options.mosaics}-{options.budget:g}"
        mosaics: list[Mosaics] = []

        def measure(row: Row, name: str = name, mosaics: list[Mosaics] = mosaics) -> Any:
            if not mosaics:  # a page from kept rows needs no images
                features = options.runs / f"{name}-features"
                mosaics.append(mosaics_of(NETWORKS[name], options.shared, features, options.mosaics))
            try:
                return run_row(row, mosaics[0], options.mosaics, options.budget)
            except Exception as error:  # a package that fails on a network gets a row that says how
                return failed(error)

        found = results[NETWORKS[name].title] = {}
        for row in rows:
            found[row] = kept(folder / file_of(row), lambda row=row, measure=measure: measure(row))
            print(name, row.package, row.name, len(found[row]["mosaics"]), sep=" | ", flush=True)
    typed = f"PYTHONPATH=runs/peers-site {command(parser, options)}"
    page.write(options.out, typed, found_needs, results, missing())


if __name__ == "__main__":
    main()
