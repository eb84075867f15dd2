"""The subcommand ``captum-fam demo``: an example that needs no download."""

from __future__ import annotations

import argparse
from pathlib import Path

from captum_fam._files import try_folder
from captum_fam.cli.options import default_out, number_reader
from captum_fam.cli.out_files import check_results_folder, report_place
from captum_fam.cli.ranges import at_least
from captum_fam.demo.photographs import FIGURES, explain_photographs
from captum_fam.demo.run import run_demo
from captum_fam.image_folders import OUTPUT_MARK


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand to its parser.

    Args:
        parser: parser of the subcommand.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser)
        >>> parser.parse_args(["--seed", "3"]).seed
        3
    """
    parser.description = (
        "Explain why the built-in few-shot network matches a query with its support, on drawn scenes in which the "
        "pixels of the shared object are known. With the extra captum-fam[demo], also photographs: mosaics of textures "
        "and a stereo pair, explained by a network trained on ImageNet. Downloads nothing."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser),
        metavar="DIR",
        help="folder of the results; default: %(default)s",
    )
    parser.add_argument(
        "--seed",
        type=number_reader(int, at_least(0)),
        default=0,
        metavar="N",
        help="seed of the scenes; default: %(default)s",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand.

    Args:
        options: the parsed options.

    Returns:
        The exit code 0.

    Raises:
        ValueError: if the folder holds other files with the names of the results.
        OSError: if the folder of the results cannot be written.
    """
    try_folder(options.out)
    report_place(options.out / "report.html")
    check_results_folder(options.out, ["demo.png", *FIGURES])
    # The mark is there before the first figure, so that a demo that was interrupted can be run again.
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / OUTPUT_MARK).touch()
    try:
        print(explain_photographs(options.out, seed=options.seed), flush=True)
    except (ImportError, FileNotFoundError) as missing:
        print(f"Photographs are left out: {missing}")
    print("", run_demo(options.out, seed=options.seed), sep="\n")
    return 0
