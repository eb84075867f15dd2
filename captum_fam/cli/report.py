"""The subcommand ``captum-fam report``: one HTML file that shows both sides of matches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from captum_fam.attr.registry import list_methods
from captum_fam.cli.explain import DEFAULT_METHODS
from captum_fam.cli.loading import MapOptions, ModelOptions, RunOptions
from captum_fam.cli.options import add_fields, default_out, names_of, number_reader
from captum_fam.cli.ranges import at_least
from captum_fam.cli.reports.jobs import PageOptions, read_report_job

_FOLDERS: dict[str, Any] = {"nargs": "+", "type": Path}
_EXIT_CODES = (
    "Writes one HTML file that needs no server and no network. Exit code: 0 if all is shown; 1 if some images could "
    "not be read, and all others are shown; 2 for wrong options."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each kind of report.

    Args:
        parser: parser of the subcommand.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser)
        >>> parser.parse_args(["knn", "--gallery", "birds", "--queries", "photos", "--k", "20"]).k
        20
    """
    parser.description = (
        "Write a report of matches that a browser opens from the disk: rows of queries with their neighbors, class "
        "supports or partners. Each match shows what it comes from on both sides."
    )
    kinds = parser.add_subparsers(title="reports", metavar="REPORT", required=True)
    _add_retrieval(_kind(kinds, "retrieval", "why these images were found: the nearest images of each query"))
    _add_few_shot(_kind(kinds, "few-shot", "why this class: the support images of the predicted class"))
    _add_knn(_kind(kinds, "knn", "why this class: the nearest images that voted for it"))
    _add_pairs(_kind(kinds, "pairs", "why two images match, or why not: pairs of a CSV file"))


def _kind(kinds: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.epilog = _EXIT_CODES
    parser.set_defaults(run=run, kind=name)
    return parser


def _add_retrieval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gallery",
        **_FOLDERS,
        required=True,
        metavar="FOLDER",
        help="a folder of images, or of class folders, in which the nearest images of each query are searched; they "
        "are embedded once, and the embeddings are kept beside --out. With --neighbors, the folder that ids belong to",
    )
    parser.add_argument(
        "--queries",
        **_FOLDERS,
        metavar="IMAGE_OR_FOLDER",
        help="images, folders of images, or a folder of class folders. With --neighbors, a folder to which the paths "
        "of queries are relative, by default that of the file",
    )
    source = parser.add_mutually_exclusive_group()
    _add_bank(source)
    source.add_argument(
        "--neighbors",
        type=Path,
        metavar="FILE",
        help="the neighbors that any search engine found: JSON lines with query, ids and, if known, scores (.jsonl); "
        "or CSV rows query,id[,score]. Ids are paths, names of files, or positions in the gallery",
    )
    _add_number(parser, "--top", "K", 5, "how many neighbors a row shows")
    _add_foil(parser, ("gallery", "none"), "gallery", "the average image of the gallery")
    _add_common(parser)


def _add_knn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gallery",
        **_FOLDERS,
        required=True,
        metavar="FOLDER",
        help="a folder of class folders, or several class folders; the images are embedded once, and the embeddings "
        "are kept beside --out",
    )
    _add_queries(parser)
    _add_bank(parser)
    _add_number(parser, "--k", "K", 20, "how many of the nearest images vote for their class")
    _add_number(parser, "--top", "N", 5, "how many of them a row shows")
    _add_foil(parser, ("gallery", "none"), "gallery", "the average image of the gallery")
    _add_common(parser)


def _add_few_shot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--support",
        **_FOLDERS,
        required=True,
        metavar="FOLDER",
        help="a folder of class folders, or several class folders, or images of one class",
    )
    _add_queries(parser)
    _add_number(parser, "--top", "K", 5, "how many support images of the class a row shows, the most similar first")
    _add_foil(
        parser,
        ("others", "runner-up", "gallery", "none"),
        None,
        "the images of all other classes, those of the next best class, or the average support image; default: others, "
        "with several classes",
    )
    parser.add_argument("--target", metavar="CLASS", help="explain this class instead of the predicted class")
    _add_common(parser)


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pairs",
        type=Path,
        metavar="PAIRS.csv",
        help="rows left,right[,same] of paths that are relative to the folder of the file; a header may name the "
        "columns; same is 1 or 0, if it is known",
    )
    parser.add_argument(
        "--gallery",
        **_FOLDERS,
        metavar="FOLDER",
        help="images whose average is the foil; default: the other images of the pairs, if they are eight or more",
    )
    _add_foil(
        parser, ("gallery", "none"), None, "the average image of the gallery; default: gallery, without --against"
    )
    parser.add_argument(
        "--against",
        choices=("threshold", "identity"),
        help="explain what is above or below a threshold; or what is missing to an identical image, whose positive "
        "parts are where the difference comes from",
    )
    parser.add_argument(
        "--threshold",
        type=number_reader(float),
        metavar="TAU",
        help="the similarity from which on the system calls a pair the same",
    )
    _add_common(parser)


def _add_queries(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queries",
        **_FOLDERS,
        required=True,
        metavar="IMAGE_OR_FOLDER",
        help="images, folders of images, or a folder of class folders, whose names are the true classes",
    )


def _add_bank(parser: Any) -> None:
    parser.add_argument(
        "--bank",
        type=Path,
        metavar="FILE",
        help="a memory bank of the images of --gallery that MemoryBank.save wrote (.safetensors)",
    )


def _add_number(parser: argparse.ArgumentParser, flag: str, metavar: str, default: int, help: str) -> None:
    parser.add_argument(
        flag,
        type=number_reader(int, at_least(1)),
        default=default,
        metavar=metavar,
        help=f"{help}; default: %(default)s",
    )


def _add_foil(parser: argparse.ArgumentParser, choices: tuple[str, ...], default: str | None, words: str) -> None:
    shown = "" if default is None else "; default: %(default)s"
    parser.add_argument("--foil", choices=choices, default=default, help=f"why more similar than {words}{shown}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_fields(parser, PageOptions)
    parser.add_argument(
        "--methods",
        type=names_of(list_methods(), "method"),
        metavar="NAME,NAME,...",
        help=f"methods that compute the maps: {', '.join(list_methods())}; default: {','.join(DEFAULT_METHODS)}",
    )
    add_fields(parser, MapOptions)
    add_fields(parser, ModelOptions)
    add_fields(parser, RunOptions)
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser, ".html"),
        metavar="FILE.html",
        help="the report, which replaces an earlier report, and no other file; default: %(default)s",
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand.

    Args:
        options: the parsed options.

    Returns:
        The exit code: 1 if an image could not be read, else 0.

    Raises:
        ValueError: as :func:`~captum_fam.cli.reports.jobs.read_report_job` and
            :func:`~captum_fam.cli.reports.run.write_job_report`.
        OSError: if the report cannot be written, or another process writes it.
    """
    job = read_report_job(options)
    # Loaded after the options are checked, because it takes seconds.
    from captum_fam.cli.reports.run import write_job_report

    return write_job_report(job)
