"""The subcommand ``captum-fam explain``: explains why image files match, for any embedding model of the package."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tqdm import tqdm

from captum_fam.attr.registry import MapMethod, get_method, list_methods
from captum_fam.cli.explain_files import Pictures, QueryWriter
from captum_fam.cli.image_files import ImageReader, find_classes, find_queries
from captum_fam.cli.loading import ModelOptions, RunOptions, choose_device
from captum_fam.cli.options import add_fields, default_out, names_of, read_fields
from captum_fam.explanation import Explainer
from captum_fam.models import EmbeddingModel
from captum_fam.support import SupportSet

Foil = Literal["others", "runner-up"]
Classes = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class ExplainJob:
    """The options of the subcommand, read and checked; only the checks that need the model are left.

    Attributes:
        queries: name of each query, by the path of its file.
        supports: files of the supports, by class.
        foil: ``"others"``, ``"runner-up"``, or files of the foil by class; None for no foil.
        target: the class to explain; None for the predicted class of each query.
        methods: the methods that compute the maps.
        model: the options that name the model.
        run: the options for the work through the images.
        out: folder of the results.
    """

    queries: Mapping[Path, str]
    supports: Classes
    foil: Foil | Classes | None
    target: str | None
    methods: tuple[MapMethod, ...]
    model: ModelOptions
    run: RunOptions
    out: Path


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
        "Explain why query images match their support in the embeddings of a network. Images are squashed to a square, "
        "so that nothing is cut off."
    )
    parser.epilog = (
        "examples: captum-fam explain query.jpg --support wrens/*.jpg --foil jays/ | "
        "captum-fam explain photos/ --support birds/ --foil others --methods fam,similarity-cam. "
        "Writes a figure, the overlays and the maps (.npz) per query, and one manifest.json. Exit code: 0 if all "
        "queries are explained; 1 if some images could not be read, and all others are done; 2 for wrong options."
    )
    files: dict[str, Any] = {"nargs": "+", "type": Path}
    parser.add_argument(
        "queries", **files, metavar="QUERY", help="images, or folders of images; must come before --support"
    )
    parser.add_argument(
        "--support",
        **files,
        required=True,
        metavar="IMAGE_OR_FOLDER",
        help="images, or a folder of images, of one class; or several classes, as a folder of class folders or as "
        "several folders: then the predicted class is explained",
    )
    parser.add_argument(
        "--foil",
        nargs="+",
        metavar="FOIL",
        help="explain why this class and not the foil: 'others', 'runner-up', or images or folders of the foil; fam "
        "then leaves out its min-max normalization, which would erase the sign",
    )
    parser.add_argument("--target", metavar="CLASS", help="explain this class instead of the predicted class")
    parser.add_argument(
        "--methods",
        type=names_of(list_methods(), "method"),
        default=("fam",),
        metavar="NAME,NAME,...",
        help=f"methods that compute the maps: {', '.join(list_methods())}; default: fam",
    )
    add_fields(parser, ModelOptions)
    add_fields(parser, RunOptions)
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
        ValueError: as :func:`read_job` and :func:`explain_files`.
    """
    job = read_job(options)
    n_explained, n_unreadable = explain_files(job)
    print(f"{n_explained} explained, {n_unreadable} unreadable: {job.out}")
    return 1 if n_unreadable else 0


def read_job(options: argparse.Namespace) -> ExplainJob:
    """Read and check the options.

    Args:
        options: the parsed options.

    Returns:
        The job.

    Raises:
        ValueError: for files that do not exist or do not form classes, a foil that needs another class, or an unknown
            target.
    """
    queries = find_queries(options.queries)
    supports = find_classes(options.support, "--support")
    return ExplainJob(
        queries,
        supports,
        _read_foil(options.foil, len(supports)),
        _class_name(options.target, list(supports)),
        tuple(get_method(name) for name in options.methods),
        read_fields(ModelOptions, options),
        read_fields(RunOptions, options),
        options.out,
    )


def explain_files(job: ExplainJob) -> tuple[int, int]:
    """Explain every query and write the results; the manifest is written last.

    Args:
        job: the queries, supports, methods and model.

    Returns:
        The number of explained queries, and the number of images that could not be read, supports included.

    Raises:
        ValueError: for a model that cannot be loaded, a method that cannot explain the model, or a class without
            readable images.
    """
    net = job.model.load()
    _check_tokens(job, net)
    device = choose_device(job.run.device)
    net.model.to(device)
    reader = ImageReader(net, device, job.run.batch_size, job.run.quiet)
    explainers = _make_explainers(job, net, reader)
    writer = QueryWriter(job.out, Pictures(job.supports, job.foil))
    with tqdm(total=len(job.queries), desc="explaining", unit="image", disable=job.run.quiet or None) as progress:
        for batch in reader.batches(job.queries):
            names = [job.queries[path] for path in batch.paths]
            explanations = [
                explainer.explain(batch.inputs, target=job.target, images=batch.photos, names=names)
                for explainer in explainers
            ]
            for index, (path, size) in enumerate(zip(batch.paths, batch.sizes, strict=True)):
                tqdm.write(writer.write(explanations, index, path, size))
                progress.update()
    writer.finish(net, job.model, reader.unreadable)
    return len(writer.queries), len(reader.unreadable)


def _make_explainers(job: ExplainJob, net: EmbeddingModel, reader: ImageReader) -> list[Explainer]:
    """One explainer per method, with the support and the foil of the job."""
    keep_images = any(method.needs_images for method in job.methods)
    support = reader.support_set(job.supports, "--support", keep_images)
    foil = job.foil
    foil_support: Foil | SupportSet | None = (
        foil if foil is None or isinstance(foil, str) else reader.support_set(foil, "--foil", keep_images)
    )
    # A layer of tokens needs a token grid. Methods that take no token grid were refused for such a layer before.
    grid: dict[str, Any] = {"token_grid": net.token_grid} if net.token_grid else {}
    return [
        Explainer(
            net.model,
            support,
            layer=net.layer,
            method=method.name,
            similarity=net.similarity,
            foil=foil_support,
            **grid,
        )
        for method in job.methods
    ]


def _check_tokens(job: ExplainJob, net: EmbeddingModel) -> None:
    refused = [method.name for method in job.methods if not method.takes_tokens]
    if net.token_grid and refused:
        raise ValueError(
            f"--methods {','.join(refused)}: cannot explain the tokens of {net.name}; choose another method"
        )


def _read_foil(words: Sequence[str] | None, n_classes: int) -> Foil | Classes | None:
    if not words:
        return None
    if words[0] not in ("others", "runner-up"):
        return find_classes([Path(word) for word in words], "--foil")
    if len(words) > 1:
        raise ValueError(f"--foil {words[0]} takes no files or other words, got {' '.join(words[1:])}")
    if n_classes < 2:
        raise ValueError(f"--foil {words[0]} needs supports of at least two classes; give a folder of class folders")
    return cast(Foil, words[0])


def _class_name(target: str | None, classes: Sequence[str]) -> str | None:
    """The class that ``--target`` gives by name, or by number in the order of the classes."""
    if target is None or target in classes:
        return target
    if target.isdecimal() and int(target) < len(classes):
        return classes[int(target)]
    close = difflib.get_close_matches(target, classes) or classes[:5]
    raise ValueError(
        f"--target {target} is none of the {len(classes)} classes of the support, such as {', '.join(close)}"
    )
