"""The files that ``captum-fam explain`` writes: per query a figure, overlays and arrays, and one manifest."""

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
_SHOWN = 9  # pictures per panel of the figure


class Pictures:
    """Thumbnails of supports and foils for the figures, read when first shown.

    Args:
        supports: files by class.
        foil: ``"others"``, ``"runner-up"``, files by class, or None.
    """

    def __init__(self, supports: Mapping[str, Sequence[Path]], foil: str | Mapping[str, Sequence[Path]] | None) -> None:
        self.support_files = supports
        self.foil = foil
        self._thumbnails: dict[Path, Image | None] = {}

    def supports(self, target: str) -> list[Image]:
        """Of the explained class."""
        return self._read(self.support_files[target])

    def foils(self, target: str, scores: Mapping[str, float]) -> tuple[str, list[Image]]:
        """What the class is contrasted with, in words and pictures.

        Args:
            target: the explained class.
            scores: of every class.
        """
        others = {name: score for name, score in scores.items() if name != target}
        if self.foil is None:
            return "foil", []
        if self.foil == "runner-up":
            best = max(others, key=others.__getitem__)
            return f"foil: runner-up\n{best}", self.supports(best)
        if isinstance(self.foil, str):
            return "foil: other classes", self._read([self.support_files[name][0] for name in others])
        first_of_each_class_first = zip_longest(*self.foil.values())
        files = [path for paths in first_of_each_class_first for path in paths if path]
        name = ", ".join(self.foil)
        return "foil" if name == "foil" else f"foil\n{name}", self._read(files)

    def _read(self, paths: Sequence[Path]) -> list[Image]:
        shown = paths[:_SHOWN]
        for path in shown:
            if path not in self._thumbnails:
                self._thumbnails[path] = _read_thumbnail(path)
        return [image for path in shown if (image := self._thumbnails[path])]


def _read_thumbnail(path: Path) -> Image | None:
    """None for a file that cannot be read: the run has named it when it was to be embedded."""
    try:
        thumbnail = read_image(path)
    except UnreadableImageError:
        return None
    thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return thumbnail


class QueryWriter:
    """Writes queries one by one, and at the end the manifest, whose entries are those of :meth:`Explanation.save`.

    Args:
        out: the folder of the results.
        pictures: of supports and foils.

    Attributes:
        queries: the entries of the queries that are written.
    """

    def __init__(self, out: Path, pictures: Pictures) -> None:
        self.out = out
        self.pictures = pictures
        self.queries: list[dict[str, Any]] = []
        self._about: dict[str, Any] = {}
        (out / MANIFEST).unlink(missing_ok=True)  # it would speak of another run

    def write(self, explanations: Sequence[Explanation], index: int, path: Path, size: tuple[int, int]) -> str:
        """Write the files of one query, all or none; gives the line that says so.

        Args:
            explanations: of a batch, one per method.
            index: of the query in the batch.
            path: of its file.
            size: height and width of the file's image.
        """
        with write_all_or_nothing(self.out) as scratch:
            entry = write_query(explanations, index, scratch)
            target, figure = entry["target"], f"{entry['name']}.figure.png"
            title, foils = self.pictures.foils(target, entry["scores"])
            drawing = compare_figure(explanations, index, self.pictures.supports(target), foils, title)
            drawing.save(scratch / figure)
        self.queries.append({"file": str(path), "image_size": size, **entry, "figure": figure})
        first = explanations[0]
        options = {one.method: one.about["options"] for one in explanations}
        self._about = {**first.about, "options": options, "classes": list(first.class_names)}
        return f"{path}: {target} {_line(explanations, index)} -> {self.out / figure}"

    def finish(self, net: EmbeddingModel, model: ModelOptions, unreadable: Mapping[Path, str]) -> None:
        """Write the manifest: what :meth:`Explanation.save` writes, with the files, the weights and the preprocessing.

        Args:
            net: the model as it was loaded.
            model: the options that named it.
            unreadable: the reason for each file that could not be read.
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
            "support_files": _as_text(self.pictures.support_files),
            "foil_files": {} if foil is None or isinstance(foil, str) else _as_text(foil),
            "queries": self.queries,
            "unreadable": [{"file": str(path), "error": reason} for path, reason in unreadable.items()],
            "versions": versions(),
        }
        with write_all_or_nothing(self.out) as scratch:
            write_json(scratch / MANIFEST, manifest)


def _line(explanations: Sequence[Explanation], index: int) -> str:
    """The score, what maps explain of it, and which are flat, in words."""
    first = next((one for one in explanations if one.coverage is not None), explanations[0])
    notes = [f"{one.method} {one.account_text(index)}" for one in explanations if one.coverage is not None]
    notes += [f"{one.method} is zero everywhere" for one in explanations if not one.attributions[index].any()]
    return first.score_text(index) + (f" ({' | '.join(notes)})" if notes else "")


def _describe_weights(weights: str, layout: str | None) -> dict[str, str]:
    """The name; of a file its hash too, and whose naming of the parameters it had, where that is known."""
    path = Path(weights)
    if not path.is_file():
        return {"name": weights}
    known = {} if layout is None else {"layout": layout}
    return {"file": weights, "sha256": sha256_of_file(path), **known}


def _as_text(classes: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    return {name: [str(path) for path in paths] for name, paths in classes.items()}
