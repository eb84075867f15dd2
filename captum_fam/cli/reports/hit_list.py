"""The neighbors that any search engine found, as ``captum-fam report retrieval --neighbors`` reads them."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from captum_fam._text import printable
from captum_fam.cli.reports.tables import ListLine, holds_json, read_csv_list, read_json_list

_MOST_COMPARED = 10_000  # names, in the search for the closest one

HitId = str | int
"""A path, the name of a file with or without its suffix, or a position in the gallery."""


@dataclass(frozen=True)
class ListedHits:
    """The neighbors of a query in a list.

    Attributes:
        query: the query, as the list names it.
        ids: the neighbors, the most similar first.
        scores: the score of each neighbor by the engine; empty for a list without scores.
        line: the line of the query, for messages; of a CSV file the first one.
    """

    query: str
    ids: tuple[HitId, ...]
    scores: tuple[float, ...]
    line: ListLine = field(compare=False, repr=False)


def read_hit_list(path: Path) -> list[ListedHits]:
    r"""Read the neighbors of queries.

    Args:
        path: JSON lines (``.jsonl``, ``.ndjson``, ``.json``, or any file that begins with ``{``), one object per query
            with ``query``, ``ids`` and, if they are known, ``scores``; or CSV, one row per neighbor with ``query``,
            ``id`` and, if it is known, ``score``. Neighbors come in the order of their rank. -1 and null stand for no
            neighbor.

    Returns:
        The neighbors of each query, in the order of the file.

    Raises:
        ValueError: for no such file, a file without queries, missing columns, a query without a neighbor, a query or a
            neighbor that stands there twice, a score that is no finite number, or scores of some neighbors only; the
            message has the number of the line.
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("hits.csv").write_text("q.jpg,wren/1.jpg,0.9\nq.jpg,jay/4.jpg,0.7\n")
        >>> read_hit_list(Path("hits.csv"))
        [ListedHits(query='q.jpg', ids=('wren/1.jpg', 'jay/4.jpg'), scores=(0.9, 0.7))]
    """
    is_json = path.suffix.casefold() in (".jsonl", ".ndjson", ".json") or holds_json(path)
    hits = _from_json(path) if is_json else _from_csv(path)
    for one in hits:
        if not one.ids:
            one.line.refuse(f"the query {printable(one.query)} has no neighbor")
        if bool(one.scores) != bool(hits[0].scores):
            with_scores, without = (one, hits[0]) if one.scores else (hits[0], one)
            without.line.refuse(f"there are no scores, but line {with_scores.line.number} has some")
    return hits


def _from_json(path: Path) -> list[ListedHits]:
    hits: dict[str, ListedHits] = {}
    for line in read_json_list(path, ("query", "ids")):
        query, ids, scores = line.values["query"], line.values["ids"], line.values.get("scores")
        if not isinstance(query, str) or not query:
            line.refuse(f"query must be the path of an image, got {printable(query)}")
        if query in hits:
            line.refuse(f"the query {printable(query)} stands in line {hits[query].line.number} already")
        if not isinstance(ids, list):
            line.refuse(f"ids must be a list of paths or numbers, got {printable(ids)}")
        if scores is not None and (not isinstance(scores, list) or len(scores) != len(ids)):
            line.refuse(f"scores must be a list of {len(ids)} numbers, one per id, got {printable(scores)}")
        found: dict[HitId, float] = {}
        for one, score in zip(ids, [0.0] * len(ids) if scores is None else scores, strict=True):
            if one is None or (one == -1 and not isinstance(one, float)):
                continue
            if isinstance(one, bool) or not isinstance(one, str | int) or one == "":
                line.refuse(f"ids must be paths or whole numbers, got {printable(one)}")
            _add(found, one, score, line)
        hits[query] = ListedHits(query, tuple(found), () if scores is None else tuple(found.values()), line)
    return list(hits.values())


def _from_csv(path: Path) -> list[ListedHits]:
    hits: dict[str, ListedHits] = {}
    found: dict[str, dict[HitId, float]] = defaultdict(dict)
    for line in read_csv_list(path, ("query", "id"), {"score": ("score", "similarity")}):
        query, one, score = line.values["query"], line.values["id"], line.values["score"]
        first = hits.setdefault(query, ListedHits(query, (), (), line))
        if one == "-1":
            continue
        if bool(score) != bool(first.line.values["score"]):
            line.refuse(f"a score stands either in all rows of {printable(query)} or in none")
        _add(found[query], one, _number(score, line) if score else 0.0, line)
    return [
        replace(one, ids=tuple(found[query]), scores=tuple(found[query].values()) if one.line.values["score"] else ())
        for query, one in hits.items()
    ]


def _number(text: str, line: ListLine) -> float:
    try:
        return float(text)
    except ValueError:
        line.refuse(f"score must be a number, got {printable(text)}")


def _add(found: dict[HitId, float], one: HitId, score: Any, line: ListLine) -> None:
    """Add a neighbor of a query."""
    if one in found:
        line.refuse(f"the neighbor {printable(one)} of {printable(line.values['query'])} stands there twice")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        text = f"the text {json.dumps(score)}" if isinstance(score, str) else printable(score)
        line.refuse(f"the score of {printable(one)} must be a finite number, got {text}")
    found[one] = float(score)


class ImageIds:
    """The image files that ids stand for.

    An id is a path, absolute or relative to one of the folders; the name of one image, with or without its suffix; or
    the position of an image in the list of files.

    Args:
        files: the image files.
        folders: the folders to which paths are relative, the first one first.

    Example:
        >>> Path("birds/wren").mkdir(parents=True)
        >>> Path("birds/wren/1.jpg").touch()
        >>> ids = ImageIds([Path("birds/wren/1.jpg")], [Path("birds")])
        >>> [str(ids.path(one)) for one in ("wren/1.jpg", "birds/wren/1.jpg", "1", 0)] == ["birds/wren/1.jpg"] * 4
        True
    """

    def __init__(self, files: Sequence[Path], folders: Sequence[Path]) -> None:
        self._files = files
        self._folders = folders
        self._by_place = {os.path.abspath(path): path for path in files}
        self._by_name: dict[str, set[Path]] = defaultdict(set)
        for path in files:
            self._by_name[path.name].add(path)
            self._by_name[path.stem].add(path)

    def path(self, one: HitId) -> Path:
        """The file of an id.

        Args:
            one: the id.

        Raises:
            ValueError: for an id that stands for no image, or for several.
        """
        if isinstance(one, str):
            for base in (*self._folders, Path()):
                place = os.path.abspath(base / one)
                if place in self._by_place:
                    return self._by_place[place]
                if os.path.isfile(place):
                    return base / one
            named = self._by_name.get(one, set())
            if len(named) > 1:
                raise ValueError(f"{printable(one)} is the name of {len(named)} images; give a path with its folder")
            if named:
                return next(iter(named))
        if isinstance(one, int) or one.isdecimal():
            if 0 <= int(one) < len(self._files):
                return self._files[int(one)]
            raise ValueError(f"{one} is no image: the gallery has the positions 0..{len(self._files) - 1}")
        names = {path.stem: path.name for path in self._files[:_MOST_COMPARED]}
        close = difflib.get_close_matches(Path(one).stem, names, 1)
        hint = f"; did you mean {printable(names[close[0]])}?" if close else ""
        where = ", ".join(printable(os.fspath(folder)) for folder in self._folders)
        raise ValueError(f"{printable(one)} is no image in {where}{hint}")
