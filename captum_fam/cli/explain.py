"""The subcommand ``captum-fam explain``: explains why image files match, for any embedding model."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from captum_fam._text import printable_path
from captum_fam.attr.registry import MapMethod, get_method, list_methods
from captum_fam.cli.loading import MapOptions, ModelOptions, RunOptions
from captum_fam.cli.options import add_fields, default_out, names_of, number_reader, option, read_fields
from captum_fam.cli.ranges import at_least
from captum_fam.cli.shards import Shard, shard, shard_of_process
from captum_fam.image_files import FoundFiles, check_output_apart, find_classes, find_queries
from captum_fam.image_folders import skipped_in_words
from captum_fam.support.threshold import Against

Foil = Literal["others", "runner-up", "gallery"]
FOILS = get_args(Foil)
Classes = FoundFiles[str, list[Path]]

DEFAULT_METHODS = ("similarity-cam", "fam")
"""The default of ``explain()``, which is not loaded before the options are checked."""


@dataclass(frozen=True)
class OutputOptions:
    """The options for what is written.

    Attributes:
        figures: whether figures and overlays are drawn. Default: True.
        table: format of the table of results. Default: ``"csv"``.
        shard: the part of the queries that this process explains; None for the part of this process among those of
            torchrun, which is all queries without torchrun. Default: None.
    """

    figures: bool = option(
        "draw a figure and overlays per query, and write an .npz per query; --no-figures writes one .npz of all maps "
        "at the size of the layer, which is much faster",
        True,
    )
    table: Literal["csv", "parquet"] = option("format of the table of queries, scores and coverage", "csv")
    shard: Shard | None = option(
        "explain one of N parts of the queries, for N processes that share --out; default: all, or the part of the "
        "process under torchrun",
        None,
        metavar="I/N",
        parse=shard,
    )


@dataclass(frozen=True)
class ExplainJob:
    """The options of the subcommand, read and checked; only the checks that need the model are left.

    Attributes:
        queries: name of each query, by the path of its file.
        supports: files of the supports, by class; None for another kind of support.
        gallery: files of the gallery, by class; None for another kind of support.
        bank: file of a memory bank; None for another kind of support.
        top: how many neighbors in the gallery or bank; None for the number of the bank, or 5 of a gallery.
        foil: ``"others"``, ``"runner-up"``, ``"gallery"``, or files of the foil by class; None for no foil.
        target: the class to explain; None for the predicted class of each query.
        methods: the methods that compute the maps.
        model: the options that name the model.
        run: the options for the work through the images.
        output: the options for what is written.
        out: folder of the results.
        against: ``"threshold"`` or ``"identity"``, what scores are compared with; None for nothing. Default: None.
        threshold: the threshold; None without one. Default: None.
        maps: the options for all maps. Default: no filter.
    """

    queries: FoundFiles[Path, str]
    supports: Classes | None
    gallery: Classes | None
    bank: Path | None
    top: int | None
    foil: Foil | Classes | None
    target: str | None
    methods: tuple[MapMethod, ...]
    model: ModelOptions
    run: RunOptions
    output: OutputOptions
    out: Path
    against: Against | None = None
    threshold: float | None = None
    maps: MapOptions = field(default_factory=MapOptions)
    skipped: Mapping[Path, str] = field(init=False)

    def __post_init__(self) -> None:
        found = [self.queries, self.supports, self.gallery, self.foil]
        parts = [part.skipped for part in found if isinstance(part, FoundFiles)]
        object.__setattr__(self, "skipped", {path: reason for part in parts for path, reason in part.items()})

    @property
    def shard(self) -> Shard:
        """The part of the queries of this process."""
        return self.output.shard or shard_of_process()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand to its parser.

    Args:
        parser: parser of the subcommand.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser)
        >>> options = parser.parse_args(["query.jpg", "--support", "wren.jpg", "robin.jpg"])
        >>> [str(path) for path in options.support]
        ['wren.jpg', 'robin.jpg']
    """
    parser.description = (
        "Explain why query images match their support in the embeddings of a network: images of one class or several, "
        "the nearest images of a gallery, or the nearest rows of a memory bank."
    )
    parser.epilog = (
        "examples: captum-fam explain query.jpg --support wrens/*.jpg --foil jays/ | "
        "captum-fam explain photos/ --support birds/ --foil others --methods fam,similarity-cam | "
        "captum-fam explain query.jpg --gallery photos/ --top 5 --foil gallery --model hf/facebook/dinov2-small | "
        "captum-fam explain face.jpg --support id.jpg --against threshold --threshold 0.4 | "
        "captum-fam explain query.jpg --support same/ --model my_model.py:build. "
        "Writes per query a figure, the overlays and the maps (.npz), and for all queries a table and manifest.json. "
        "Exit code: 0 if all queries are explained; 1 if some images could not be read, and all others are done; 2 for "
        "wrong options."
    )
    files: dict[str, Any] = {"nargs": "+", "type": Path}
    parser.add_argument(
        "queries", **files, metavar="QUERY", help="images, or folders of images; must come before the support"
    )
    supports = parser.add_mutually_exclusive_group(required=True)
    supports.add_argument(
        "--support",
        **files,
        metavar="IMAGE_OR_FOLDER",
        help="images, or a folder of images, of one class; or several classes, as a folder of class folders or as "
        "several folders: then the predicted class is explained",
    )
    supports.add_argument(
        "--gallery",
        **files,
        metavar="FOLDER",
        help="a folder of images, or of class folders, in which the nearest images of each query are searched; they "
        "are embedded once, and the embeddings are kept beside --out",
    )
    supports.add_argument(
        "--bank", type=Path, metavar="FILE", help="a memory bank that MemoryBank.save wrote (.safetensors)"
    )
    parser.add_argument(
        "--top",
        type=number_reader(int, at_least(1)),
        metavar="K",
        help="how many nearest images of the gallery or rows of the bank; default: 5 of a gallery, the k of the bank",
    )
    parser.add_argument(
        "--foil",
        nargs="+",
        metavar="FOIL",
        help="explain why this class and not the foil: 'others', 'runner-up', 'gallery' for the mean similarity to all "
        "images of the gallery, bank or support, or images or folders of the foil; fam then leaves out its min-max "
        "normalization, which would erase the sign",
    )
    parser.add_argument(
        "--against",
        choices=get_args(Against),
        help="explain the score minus --threshold, or what makes the images differ: the similarity of the query to "
        "itself minus the score",
    )
    parser.add_argument(
        "--threshold",
        type=number_reader(float),
        metavar="T",
        help="the threshold of --against threshold, in the unit of the similarity: negative values of the map are what "
        "the query has and the support lacks",
    )
    parser.add_argument("--target", metavar="CLASS", help="explain this class instead of the predicted class")
    parser.add_argument(
        "--methods",
        type=names_of(list_methods(), "method"),
        default=DEFAULT_METHODS,
        metavar="NAME,NAME,...",
        help=f"methods that compute the maps: {', '.join(list_methods())}; default: {','.join(DEFAULT_METHODS)}",
    )
    add_fields(parser, MapOptions)
    add_fields(parser, ModelOptions)
    add_fields(parser, RunOptions)
    add_fields(parser, OutputOptions)
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser),
        metavar="DIR",
        help="folder of the results; default: %(default)s",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand.

    Args:
        options: the parsed options.

    Returns:
        The exit code: 1 if an image could not be read, else 0.

    Raises:
        ValueError: as :func:`read_job` and :func:`~captum_fam.cli.explain_run.explain_files`.
    """
    from captum_fam.cli.explain_run import explain_files

    job = read_job(options)
    n_explained, n_unreadable = explain_files(job)
    skipped = f"; left out: {skipped_in_words(job.skipped)}" if job.skipped else ""
    print(f"{n_explained} explained, {n_unreadable} unreadable{skipped}: {job.out}")
    return 1 if n_unreadable else 0


def read_job(options: argparse.Namespace) -> ExplainJob:
    """Read and check the options.

    Args:
        options: the parsed options.

    Returns:
        The job.

    Raises:
        ValueError: for files that do not exist or do not form classes, results that would lie beside the images, a foil
            that needs another class, an unknown target, or options that do not belong together.
    """
    if not any(os.path.lexists(path) for path in options.queries):
        raise ValueError(f"QUERY {printable_path(options.queries[0])}: no such file or folder")
    queries = find_queries(options.queries)
    supports = find_classes(options.support, "--support") if options.support else None
    gallery = find_classes(options.gallery, "--gallery") if options.gallery else None
    classes = supports or gallery
    if options.top is not None and supports is not None:
        raise ValueError("--top is for --gallery and --bank; all images of --support are used")
    methods = tuple(get_method(name) for name in options.methods)
    positional = [method.name for method in methods if method.needs_images]
    if positional and supports is None:
        raise ValueError(
            f"--methods {','.join(positional)}: compares positions of images, and needs them as --support; the rows of "
            "a gallery or bank are embeddings"
        )
    foil = _read_foil(options.foil, None if classes is None else len(classes), has_gallery=supports is None)
    _check_against(options, foil, positional)
    output = read_fields(OutputOptions, options)
    if output.shard is not None and shard_of_process().count > 1:
        raise ValueError("--shard: torchrun gives each process a part already; leave out one of the two")
    for found in (queries, classes, foil):
        if isinstance(found, FoundFiles):
            check_output_apart(options.out, found.folders)
    return ExplainJob(
        queries,
        supports,
        gallery,
        options.bank,
        options.top,
        foil,
        options.target if classes is None else class_name(options.target, list(classes)),
        methods,
        read_fields(ModelOptions, options),
        read_fields(RunOptions, options),
        output,
        options.out,
        options.against,
        options.threshold,
        read_fields(MapOptions, options),
    )


def class_name(target: str | None, classes: Sequence[str]) -> str | None:
    """The class that ``--target`` gives by name, or by number in the order of the classes.

    Args:
        target: the word on the command line; None for the predicted classes.
        classes: names of the classes.

    Returns:
        The name of the class; None for None.

    Raises:
        ValueError: for an unknown class.

    Example:
        >>> class_name("1", ["jay", "wren"])
        'wren'
    """
    if target is None or target in classes:
        return target
    if target.isdecimal() and int(target) < len(classes):
        return classes[int(target)]
    close = difflib.get_close_matches(target, classes) or classes[:5]
    raise ValueError(
        f"--target {target} is none of the {len(classes)} classes of the support, such as {', '.join(close)}"
    )


def _read_foil(words: Sequence[str] | None, n_classes: int | None, has_gallery: bool) -> Foil | Classes | None:
    """The foil of the words of ``--foil``; the number of classes of a bank is not known here."""
    if not words:
        return None
    if words[0] not in FOILS:
        return find_classes([Path(word) for word in words], "--foil")
    if len(words) > 1:
        raise ValueError(f"--foil {words[0]} takes no files or other words, got {' '.join(words[1:])}")
    if n_classes == 1 and not (words[0] == "gallery" and has_gallery):
        other = "; or search in --gallery" if words[0] == "gallery" else ""
        raise ValueError(
            f"--foil {words[0]} needs supports of at least two classes; give a folder of class folders{other}"
        )
    return cast(Foil, words[0])


def _check_against(options: argparse.Namespace, foil: object, positional: Sequence[str]) -> None:
    """Check the options of a comparison with a number."""
    if options.against is None and options.threshold is not None:
        raise ValueError("--threshold belongs to --against threshold")
    if options.against == "threshold" and options.threshold is None:
        raise ValueError("--against threshold needs --threshold T, a number in the unit of the similarity")
    if options.against != "threshold" and options.threshold is not None:
        raise ValueError(f"--threshold belongs to --against threshold, got --against {options.against}")
    if options.against is not None and foil is not None:
        raise ValueError("--against and --foil exclude each other; leave one of them out")
    if options.against is not None and positional:
        raise ValueError(
            f"--against: {','.join(positional)} compares positions, among which a number has no place; leave it out of "
            "--methods"
        )
