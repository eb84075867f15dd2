"""The options of ``captum-fam report``, read and checked; only the checks that need the model are left."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from captum_fam._text import printable_path
from captum_fam.attr.registry import MapMethod, get_method
from captum_fam.cli.explain import Classes, class_name
from captum_fam.cli.loading import MapOptions, ModelOptions, RunOptions
from captum_fam.cli.options import option, read_fields
from captum_fam.cli.ranges import at_least
from captum_fam.cli.reports.hit_list import ListedHits, read_hit_list
from captum_fam.cli.reports.pair_list import ListedPair, read_pair_list
from captum_fam.cli.reports.queries import LabeledQueries, find_labeled_queries, queries_of_hits
from captum_fam.image_files import FoundFiles, find_class_folders, find_classes
from captum_fam.image_folders import list_images

Kind = Literal["retrieval", "knn", "few-shot", "pairs"]


@dataclass(frozen=True)
class PageOptions:
    """The options for the page.

    Attributes:
        wrong_first: whether rows with a wrong prediction come first. Default: False.
        max_rows: how many rows the report has at most. Default: 100.
        matches: how many matches of cells a pair of images has where its maps have more cells than the page can show
            all matches of; 0 for no matches. Default: 16.
        title: the title; None for one by the kind of the report. Default: None.
        seed: the seed of the sample, where there are more queries than rows. Default: 0.
    """

    wrong_first: bool = option(
        "put wrong predictions first; needs true classes: queries in folders with the names of the classes, or the "
        "column same of pairs with --threshold",
        False,
    )
    max_rows: int = option(
        "how many rows the report has at most; of more queries, a sample is shown", 100, within=at_least(1)
    )
    matches: int = option(
        "how many matches of cells a pair of images has, where its maps have more than 32x32 cells; smaller maps have "
        "all. Use 0 for a first look with a deep transformer, whose matches take most of the time: the page then shows "
        "maps only",
        16,
        within=at_least(0),
        metavar="N",
    )
    title: str | None = option("title of the report", None, metavar="TEXT")
    seed: int = option("seed of the sample", 0, within=at_least(0))


@dataclass(frozen=True)
class ReportJob:
    """What all reports have in common.

    Attributes:
        kind: the kind of the report.
        foil: the named foil; None for no foil.
        methods: the methods that compute the maps; None for the default.
        page: the options for the page.
        maps: the options for all maps.
        model: the options that name the model.
        run: the options for the work through the images.
        out: the file of the report.
        skipped: why files and folders are left out, by path.
    """

    kind: Kind
    foil: str | None
    methods: tuple[MapMethod, ...] | None
    page: PageOptions
    maps: MapOptions
    model: ModelOptions
    run: RunOptions
    out: Path
    skipped: Mapping[Path, str]


@dataclass(frozen=True)
class GalleryJob(ReportJob):
    """A report of the nearest images in a gallery.

    Attributes:
        queries: the queries with their true classes.
        gallery: files of the gallery, by class.
        bank: file of a memory bank of the gallery; None to embed the gallery.
        hits: the neighbors that a search engine found; None to search.
        k: how many of the nearest images vote, for k-NN; None for a report of all neighbors alike.
        top: how many neighbors a row shows.
    """

    queries: LabeledQueries
    gallery: Classes
    bank: Path | None
    hits: Mapping[Path, ListedHits] | None
    k: int | None
    top: int


@dataclass(frozen=True)
class FewShotJob(ReportJob):
    """A report of class supports.

    Attributes:
        queries: the queries with their true classes.
        support: files of the support, by class.
        target: the class to explain; None for the predicted classes.
        top: how many supports a row shows.
    """

    queries: LabeledQueries
    support: Classes
    target: str | None
    top: int


@dataclass(frozen=True)
class PairsJob(ReportJob):
    """A report of pairs.

    Attributes:
        pairs: the pairs.
        source: the file with the list of pairs.
        gallery: files of the gallery, by class; None for the other images of the pairs.
        against: what the score is contrasted with besides a foil; None for nothing.
        threshold: the similarity from which on a pair counts as the same; None if it is not known.
    """

    pairs: tuple[ListedPair, ...]
    source: Path
    gallery: Classes | None
    against: Literal["threshold", "identity"] | None
    threshold: float | None


def read_report_job(options: argparse.Namespace) -> ReportJob:
    """Read and check the options.

    Args:
        options: the parsed options.

    Returns:
        The job.

    Raises:
        ValueError: for files that do not exist or do not form classes, a broken list, missing true classes, or options
            that do not belong together.
        OSError: if a list cannot be read.
    """
    reader = {"retrieval": _read_gallery, "knn": _read_gallery, "few-shot": _read_few_shot, "pairs": _read_pairs}
    return reader[options.kind](options)


def _common(options: argparse.Namespace, foil: str | None, skipped: Iterable[Mapping[Path, str]]) -> dict[str, Any]:
    """The options that all reports have."""
    return {
        "kind": options.kind,
        "foil": None if foil == "none" else foil,
        "methods": None if options.methods is None else tuple(map(get_method, options.methods)),
        "page": read_fields(PageOptions, options),
        "maps": read_fields(MapOptions, options),
        "model": read_fields(ModelOptions, options),
        "run": read_fields(RunOptions, options),
        "out": options.out,
        "skipped": {path: reason for part in skipped for path, reason in part.items()},
    }


def _read_gallery(options: argparse.Namespace) -> GalleryJob:
    is_retrieval = options.kind == "retrieval"
    listed = options.neighbors if is_retrieval else None
    hits = None
    if listed is None:
        gallery = find_classes(options.gallery, "--gallery")
        if not options.queries:
            raise ValueError("--queries is missing: the images whose neighbors are searched")
        queries = find_labeled_queries(options.queries, gallery)
    else:
        gallery = _files_of_any_depth(options.gallery)
        folders = [*(options.queries or ()), listed.parent]
        queries, hits = queries_of_hits(read_hit_list(listed), folders, gallery)
    positional = [name for name in options.methods or () if get_method(name).needs_images]
    if positional:
        raise ValueError(
            f"--methods {','.join(positional)}: compares positions of images, which report few-shot and report pairs "
            "have; neighbors of a gallery are embeddings"
        )
    if not is_retrieval and len(gallery) < 2:
        raise ValueError("--gallery: neighbors vote for classes; give a folder of class folders, or several folders")
    if options.wrong_first:
        queries.require_truth()
    return GalleryJob(
        **_common(options, options.foil, [gallery.skipped, queries.skipped]),
        queries=queries,
        gallery=gallery,
        bank=options.bank,
        hits=hits,
        k=None if is_retrieval else options.k,
        top=options.top,
    )


def _files_of_any_depth(folders: Sequence[Path]) -> Classes:
    """The images of folders, by the name of the folder inside that holds them; ids of a list may lie at any depth."""
    found: Classes = FoundFiles()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"--gallery {printable_path(folder)} is no folder; with --neighbors, ids belong to folders"
            )
        classes = find_class_folders(folder, deep=True)
        images = list_images(folder)
        found.folders.append(folder)
        found.skipped |= classes.skipped
        for name, files in {folder.resolve().name: list(images.files), **classes}.items():
            if files:
                found.setdefault(name, []).extend(files)
    if not found:
        raise ValueError(f"--gallery {printable_path(folders[0])} holds no images (.jpg, .png, .webp and others)")
    return found


def _read_few_shot(options: argparse.Namespace) -> FewShotJob:
    support = find_classes(options.support, "--support")
    queries = find_labeled_queries(options.queries, support)
    if options.foil in ("others", "runner-up") and len(support) == 1:
        raise ValueError(
            f"--foil {options.foil} needs supports of at least two classes; give a folder of class folders"
        )
    if options.wrong_first:
        queries.require_truth()
    foil = options.foil or ("others" if len(support) > 1 else None)
    return FewShotJob(
        **_common(options, foil, [support.skipped, queries.skipped]),
        queries=queries,
        support=support,
        target=class_name(options.target, list(support)),
        top=options.top,
    )


def _read_pairs(options: argparse.Namespace) -> PairsJob:
    if options.against is not None and options.foil not in (None, "none"):
        raise ValueError(f"--against {options.against} and --foil {options.foil} exclude each other; leave out one")
    if options.against == "threshold" and options.threshold is None:
        raise ValueError("--against threshold needs --threshold TAU, the similarity from which on pairs are the same")
    foil = options.foil or ("gallery" if options.against is None else None)
    if options.gallery and foil != "gallery":
        raise ValueError("--gallery is the foil of pairs; leave it out, or choose --foil gallery without --against")
    listed = read_pair_list(options.pairs)
    if options.wrong_first:
        if options.threshold is None:
            raise ValueError("--wrong-first needs --threshold TAU, the similarity from which on pairs are the same")
        unknown = next((pair for pair in listed.pairs if pair.same is None), None)
        if unknown is not None:
            raise ValueError(
                f"--wrong-first needs the column same of each pair, 1 or 0; {printable_path(options.pairs)} line "
                f"{unknown.line} has none"
            )
    gallery = find_classes(options.gallery, "--gallery") if options.gallery else None
    return PairsJob(
        **_common(options, foil, [listed.repeated, {} if gallery is None else gallery.skipped]),
        pairs=listed.pairs,
        source=options.pairs,
        gallery=gallery,
        against=options.against,
        threshold=options.threshold,
    )
