"""The files that ``captum-fam explain`` writes: a figure, overlays and arrays per query, and one manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL.Image import Image

from captum_fam._files import MANIFEST, sha256_of_file, versions, write_all_or_nothing, write_json
from captum_fam.cli.loading import ModelOptions
from captum_fam.explanation import Explanation, compare_figure, write_query
from captum_fam.images import UnreadableImageError, read_image
from captum_fam.models import EmbeddingModel

_THUMBNAIL_SIDE = 160  # pixels
_MAX_PICTURES = 9  # per panel of the figure


class Pictures:
    """Thumbnails of supports and foils for the figures; a file is read when it is first shown.

    Args:
        supports: files of the supports, by class.
        foil: ``"others"``, ``"runner-up"``, files of the foil by class, or None for no foil.
    """

    def __init__(self, supports: Mapping[str, Sequence[Path]], foil: str | Mapping[str, Sequence[Path]] | None) -> None:
        self.support_files = supports
        self.foil = foil
        self._thumbnails: dict[Path, Image | None] = {}

    def supports(self, target: str) -> list[Image]:
        """The supports of a class.

        Args:
            target: the class.

        Returns:
            Thumbnails of the readable files, at most nine.
        """
        return self._read(self.support_files[target])

    def foils(self, target: str, scores: Mapping[str, float]) -> tuple[str, list[Image]]:
        """The foil of a class, as a title and as pictures.

        Args:
            target: the explained class.
            scores: score of the query by class.

        Returns:
            The title of the panel, and thumbnails of the readable files, at most nine.
        """
        others = {name: score for name, score in scores.items() if name != target}
        if self.foil is None:
            return "foil", []
        if self.foil == "runner-up":
            best = max(others, key=others.__getitem__)
            return f"foil: runner-up\n{best}", self.supports(best)
        if isinstance(self.foil, str):
            return "foil: other classes", self._read([self.support_files[name][0] for name in others])
        # The first file of every class, then the second file of every class, and so on.
        rounds = zip_longest(*self.foil.values())
        files = [path for files_of_round in rounds for path in files_of_round if path]
        name = ", ".join(self.foil)
        return "foil" if name == "foil" else f"foil\n{name}", self._read(files)

    def _read(self, paths: Sequence[Path]) -> list[Image]:
        first_paths = paths[:_MAX_PICTURES]
        for path in first_paths:
            if path not in self._thumbnails:
                self._thumbnails[path] = _read_thumbnail(path)
        return [image for path in first_paths if (image := self._thumbnails[path])]


def _read_thumbnail(path: Path) -> Image | None:
    """A thumbnail; None for a file that cannot be read, which the run has reported when it embedded the supports."""
    try:
        thumbnail = read_image(path)
    except UnreadableImageError:
        return None
    thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return thumbnail


class QueryWriter:
    """Writes the queries one by one, and the manifest at the end. Entries are as in :meth:`Explanation.save`.

    Args:
        out: folder of the results.
        pictures: thumbnails of supports and foils.

    Attributes:
        queries: manifest entries of the queries that are written.
    """

    def __init__(self, out: Path, pictures: Pictures) -> None:
        self.out = out
        self.pictures = pictures
        self.queries: list[dict[str, Any]] = []
        self._about: dict[str, Any] = {}
        (out / MANIFEST).unlink(missing_ok=True)  # of an earlier run

    def write(self, explanations: Sequence[Explanation], index: int, path: Path, size: tuple[int, int]) -> str:
        """Write the files of one query, all or none.

        Args:
            explanations: explanations of a batch of queries, one per method.
            index: position of the query in the batch.
            path: path of the image file.
            size: height and width of the image in the file, in pixels.

        Returns:
            A line of text that reports the result.
        """
        with write_all_or_nothing(self.out) as scratch:
            entry = write_query(explanations, index, scratch)
            target, figure = entry["target"], f"{entry['name']}.figure.png"
            title, foils = self.pictures.foils(target, entry["scores"])
            drawing = compare_figure(explanations, index, self.pictures.supports(target), foils, title)
            drawing.save(scratch / figure)
        self.queries.append({"file": str(path), "image_size": size, **entry, "figure": figure})
        first = explanations[0]
        options = {explanation.method: explanation.about["options"] for explanation in explanations}
        self._about = {**first.about, "options": options, "classes": list(first.class_names)}
        return f"{path}: {target} {_line(explanations, index)} -> {self.out / figure}"

    def finish(self, net: EmbeddingModel, model: ModelOptions, unreadable: Mapping[Path, str]) -> None:
        """Write the manifest: the entries of :meth:`Explanation.save`, the files, the weights and the preprocessing.

        Args:
            net: the loaded model.
            model: the options that name the model.
            unreadable: reason for each file that could not be read.
        """
        foil = self.pictures.foil
        manifest = {
            **self._about,
            "model": model.model,
            "weights": _describe_weights(model.weights or "DEFAULT", net.layout),
            "preprocessing": {
                "size": net.size,
                "resize": "squash",
                "interpolation": net.interpolation,
                "mean": net.mean,
                "std": net.std,
            },
            "support_files": _paths_as_text(self.pictures.support_files),
            "foil_files": {} if foil is None or isinstance(foil, str) else _paths_as_text(foil),
            "queries": self.queries,
            "unreadable": [{"file": str(path), "error": reason} for path, reason in unreadable.items()],
            "versions": versions(),
        }
        with write_all_or_nothing(self.out) as scratch:
            write_json(scratch / MANIFEST, manifest)


def _line(explanations: Sequence[Explanation], index: int) -> str:
    """The score, the share of the score that each map explains, and the methods whose map is zero, as text."""
    accounts = [explanation for explanation in explanations if explanation.coverage is not None]
    flat = [explanation for explanation in explanations if not explanation.attributions[index].any()]
    first = accounts[0] if accounts else explanations[0]
    notes = [f"{explanation.method} {explanation.account_text(index)}" for explanation in accounts]
    notes += [f"{explanation.method} is zero everywhere" for explanation in flat]
    return first.score_text(index) + (f" ({' | '.join(notes)})" if notes else "")


def _describe_weights(weights: str, layout: str | None) -> dict[str, str]:
    """The name of the weights; for a file its path, its hash and its layout of parameter names, if that is known."""
    path = Path(weights)
    if not path.is_file():
        return {"name": weights}
    layout_entry = {} if layout is None else {"layout": layout}
    return {"file": weights, "sha256": sha256_of_file(path), **layout_entry}


def _paths_as_text(classes: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    return {name: [str(path) for path in paths] for name, paths in classes.items()}
