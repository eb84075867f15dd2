"""The files that ``captum-fam explain`` writes: figures, overlays, arrays, a table and one manifest."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL.Image import Image

from captum_fam._files import (
    MANIFEST,
    check_same_settings,
    need,
    sha256_of_file,
    versions,
    write_all_or_nothing,
    write_json,
)
from captum_fam._text import printable_path
from captum_fam.cli.advice import in_options
from captum_fam.cli.class_files import paths_as_text
from captum_fam.cli.explain import ExplainJob
from captum_fam.cli.explain_supports import JobSupport
from captum_fam.explanation import Explanation, compare_figure, query_entry, write_query
from captum_fam.explanation.reading.thumbnails import MOST_SHOWN, thumbnail_of
from captum_fam.explanation.saved.saving import file_stem
from captum_fam.image_folders import OUTPUT_MARK
from captum_fam.images import UnreadableImageError, read_image
from captum_fam.models import EmbeddingModel
from captum_fam.models.weights_file import is_there, split_weights

_MOST_NEIGHBORS = 10  # in the table
_SHARDS = "shards.json"


class Thumbnails:
    """Thumbnails of image files for the figures; a file is read when it is first shown."""

    def __init__(self) -> None:
        self._read: dict[Path, Image | None] = {}

    def of(self, paths: Sequence[Path]) -> list[Image]:
        """The thumbnails of the first nine files, without those that cannot be read.

        Args:
            paths: image files.
        """
        first_paths = paths[:MOST_SHOWN]
        for path in first_paths:
            if path not in self._read:
                self._read[path] = _read_thumbnail(path)
        return [image for path in first_paths if (image := self._read[path])]


def _read_thumbnail(path: Path) -> Image | None:
    """A thumbnail; None for a file that cannot be read, which the run has reported when it embedded the supports."""
    try:
        return thumbnail_of(read_image(path))
    except UnreadableImageError:
        return None


class QueryWriter:
    """Writes the queries batch by batch, and the table and the manifest at the end.

    It is a context. With figures, the files of each query are there as soon as they are made. The table, the manifest
    and, without figures, the file of all maps appear together at the end, or not at all.

    Args:
        job: the job.
        support: the support of the job.

    Attributes:
        n_written: the number of queries that are written.
    """

    def __init__(self, job: ExplainJob, support: JobSupport) -> None:
        self.n_written = 0
        self._job = job
        self._manifest, self._table, self._all_maps = _names_of_all(job)
        self._support = support
        self._thumbnails = Thumbnails()
        self._queries: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._about: dict[str, Any] = {}
        self._stack = ExitStack()
        self._scratch = Path()
        self._maps: zipfile.ZipFile | None = None

    def __enter__(self) -> QueryWriter:
        self._scratch = self._stack.enter_context(write_all_or_nothing(self._job.out))
        if self._job.shard.count > 1:
            check_same_settings(self._job.out / _SHARDS, self._settings(), "shards of another run")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)

    def write(
        self, explanations: Sequence[Explanation], files: Sequence[Path], sizes: Sequence[tuple[int, int]]
    ) -> list[str]:
        """Write the files of a batch of queries, those of each query all or none.

        Args:
            explanations: explanations of the batch, one per method.
            files: the file of each query.
            sizes: height and width of the image in each file, in pixels.

        Returns:
            A line of text for each query that reports the result.
        """
        if not self.n_written:
            self._claim_folder()
        lines = []
        for index, (path, size) in enumerate(zip(files, sizes, strict=True)):
            written = self._draw(explanations, index) if self._job.output.figures else self._keep(explanations, index)
            supports = self._support.entry(explanations[0], index)
            entry = {"file": str(path), "image_size": size, **written, **({"supports": supports} if supports else {})}
            self._queries.append(entry)
            self._rows.append(_row(explanations, index, entry))
            where = self._job.out / entry.get("figure", self._all_maps)
            lines.append(
                f"{printable_path(path)}: {entry['target']} {_line(explanations, index)} -> {printable_path(where)}"
            )
        first = explanations[0]
        options = {explanation.method: explanation.about["options"] for explanation in explanations}
        notes = [note for explanation in explanations for note in explanation.notes]
        notes = [*self._support.notes, *self._about.get("notes", ()), *filter(None, map(in_options, notes))]
        notes = list(dict.fromkeys(notes))
        self._about = {**first.about, "options": options, "classes": list(first.class_names), "notes": notes}
        self.n_written += len(lines)
        return lines

    def finish(self, net: EmbeddingModel, unreadable: Mapping[Path, str]) -> None:
        """Write the table, and the manifest: the entries of :meth:`Explanation.save`, files, weights and preprocessing.

        Args:
            net: the loaded model.
            unreadable: reason for each file that could not be read.
        """
        job, foil = self._job, self._job.foil
        if not self.n_written:
            self._claim_folder()
        if not job.output.figures:
            self._open_maps()  # a shard without queries has an empty file
        _write_table(self._scratch / self._table, self._rows)
        manifest = {
            **self._about,
            "model": job.model.model,
            "weights": describe_weights(job.model.weights or "DEFAULT", net.layout),
            "preprocessing": net.preprocessing.describe(),
            **self._support.describe(),
            "foil_files": {} if foil is None or isinstance(foil, str) else paths_as_text(foil),
            "shard": f"{job.shard.number}/{job.shard.count}",
            "table": self._table,
            "queries": self._queries,
            "unreadable": [{"file": str(path), "error": reason} for path, reason in unreadable.items()],
            "left_out": [{"file": str(path), "reason": reason} for path, reason in job.skipped.items()],
            "versions": versions(),
        }
        write_json(self._scratch / self._manifest, manifest)

    def _open_maps(self) -> zipfile.ZipFile:
        """The file of all maps, opened when it is first needed."""
        if self._maps is None:
            file = zipfile.ZipFile(self._scratch / self._all_maps, "w", zipfile.ZIP_DEFLATED)
            self._maps = self._stack.enter_context(file)
        return self._maps

    def _claim_folder(self) -> None:
        """Mark the folder as results and remove what an earlier run says of it, not before there is a result."""
        # The mark is there before the first file, so that results are never read as images.
        (self._job.out / OUTPUT_MARK).touch()
        earlier = [self._job.out / name for name in (self._manifest, self._table, self._all_maps)]
        if self._job.shard.count == 1:
            # Files of shards only: a query may be called wren-1-of-2.
            of_shards = re.compile(r"(manifest|maps|results)-\d+-of-\d+\.\w+")
            earlier += [self._job.out / _SHARDS]
            earlier += [path for path in self._job.out.iterdir() if of_shards.fullmatch(path.name)]
        for path in earlier:
            path.unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        """What all shards of a run have in common, as JSON gives it back."""
        job, foil = self._job, self._job.foil
        settings = {
            "shards": job.shard.count,
            "methods": [method.name for method in job.methods],
            "foil": foil if foil is None or isinstance(foil, str) else paths_as_text(foil),
            "target": job.target,
            "smooth": job.maps.smooth,
            "model": vars(job.model),
            "batch_size": job.run.batch_size,
            "queries": [str(path) for path in job.queries],
            **self._support.describe(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def _draw(self, explanations: Sequence[Explanation], index: int) -> dict[str, Any]:
        """Write overlays, arrays and the figure of one query; returns the entry of the manifest."""
        with write_all_or_nothing(self._job.out) as scratch:
            entry = write_query(explanations, index, scratch)
            target, figure = entry["target"], f"{entry['name']}.figure.png"
            supports = self._thumbnails.of(self._support.files(explanations[0], index, target))
            title, foils = self._foils(explanations[0], index, target, entry["scores"])
            drawing = compare_figure(explanations, index, supports, foils, title)
            drawing.save(scratch / figure)
        return {**entry, "figure": figure}

    def _keep(self, explanations: Sequence[Explanation], index: int) -> dict[str, Any]:
        """Add the maps of one query to the file of all maps; returns the entry of the manifest."""
        maps = self._open_maps()
        entry = query_entry(explanations, index)
        for explanation in explanations:
            with maps.open(f"{_as_utf8(entry['name'])}.{explanation.method}.npy", "w") as file:
                np.lib.format.write_array(file, explanation.attributions[index, 0].cpu().numpy())
        return {**entry, "arrays": self._all_maps}

    def _foils(
        self, why: Explanation, index: int, target: str, scores: Mapping[str, float | None]
    ) -> tuple[str, list[Image]]:
        """The foil of a query, as a title and as pictures."""
        foil = self._job.foil
        others = {name: score for name, score in scores.items() if name != target and score is not None}
        if foil is None or (foil == "runner-up" and not others):
            return "foil", []
        if foil == "runner-up":
            best = max(others, key=others.__getitem__)
            return f"foil: runner-up\n{best}", self._thumbnails.of(self._support.class_files(best))
        if isinstance(foil, str):
            firsts = [files[0] for name in others if (files := self._support.class_files(name))]
            return "foil: other classes", self._thumbnails.of(firsts)
        # The first file of every class, then the second file of every class, and so on.
        rounds = zip_longest(*foil.values())
        files = [path for files_of_round in rounds for path in files_of_round if path]
        name = ", ".join(foil)
        return "foil" if name == "foil" else f"foil\n{name}", self._thumbnails.of(files)


def _names_of_all(job: ExplainJob) -> tuple[str, str, str]:
    """The names of the manifest, of the table and of the file of all maps."""
    stem, dot, suffix = MANIFEST.partition(".")
    return (
        job.shard.file_name(stem, dot + suffix),
        job.shard.file_name("results", f".{job.output.table}"),
        job.shard.file_name("maps", ".npz"),
    )


def names_of_results(job: ExplainJob) -> list[str]:
    """The names of the files that a job may write, replace or remove.

    Args:
        job: the job.
    """
    endings = [".npz", ".figure.png", *(f".{method.name}.png" for method in job.methods)] if job.output.figures else []
    of_queries = [f"{file_stem(name)}{ending}" for name in job.queries.values() for ending in endings]
    return [*_names_of_all(job), *of_queries]


def _line(explanations: Sequence[Explanation], index: int) -> str:
    """The score, the share of the score that each map explains, and the methods whose map is zero, as text."""
    accounts = [explanation for explanation in explanations if explanation.coverage is not None]
    flat = [explanation for explanation in explanations if not explanation.attributions[index].any()]
    first = accounts[0] if accounts else explanations[0]
    notes = [f"{explanation.method} {explanation.account_text(index)}" for explanation in accounts]
    notes += [f"{explanation.method} is zero everywhere" for explanation in flat]
    return first.score_text(index) + (f" ({' | '.join(notes)})" if notes else "")


def _row(explanations: Sequence[Explanation], index: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one query in the table."""
    row: dict[str, Any] = {
        "name": _as_utf8(entry["name"]),
        "file": _as_utf8(entry["file"]),
        "predicted": _as_utf8(entry["predicted"]),
        "target": _as_utf8(entry["target"]),
        "score": float(explanations[0].target_scores[index]),
    }
    for explanation in explanations:
        if explanation.coverage is not None:
            coverage = float(explanation.coverage[index])
            row[f"{explanation.method}.coverage"] = None if np.isnan(coverage) else coverage
        row[f"{explanation.method}.flat"] = bool(explanation.flat[index])
    for number, hit in enumerate(entry.get("supports", ())[:_MOST_NEIGHBORS], start=1):
        row[f"neighbor.{number}"] = _as_utf8(str(hit.get("file", hit.get("row"))))
        row[f"neighbor.{number}.similarity"] = hit["similarity"]
    return row


def _as_utf8(text: str) -> str:
    r"""A text in UTF-8: bytes of a file name that are no UTF-8 become escapes, such as ``\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per query; missing values stay empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ["name"]
    rows = [{column: row.get(column) for column in columns} for row in rows]
    if path.suffix == ".parquet":
        pyarrow = need("pyarrow", extra="parquet", purpose="--table parquet")
        parquet = need("pyarrow.parquet", extra="parquet", purpose="--table parquet")
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def describe_weights(weights: str, layout: str | None) -> dict[str, str]:
    """The weights for a manifest.

    Args:
        weights: the value of ``--weights``.
        layout: the layout of the parameter names in a file; None if it is not known.

    Returns:
        The name of the weights; for a file its path, its hash and its layout.

    Example:
        >>> describe_weights("DEFAULT", None)
        {'name': 'DEFAULT'}
    """
    if not is_there(weights):
        return {"name": weights}
    path, part = split_weights(weights)
    part_entry = {} if part is None else {"part": part}
    layout_entry = {} if layout is None else {"layout": layout}
    return {"file": str(path), **part_entry, "sha256": sha256_of_file(path), **layout_entry}
