"""The list of pairs of ``captum-fam report pairs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from captum_fam._text import printable
from captum_fam.cli.reports.tables import ListLine, read_csv_list

_SAME = {
    **dict.fromkeys(("1", "true", "yes", "same"), True),
    **dict.fromkeys(("0", "false", "no", "different"), False),
}
_REPEATED = "repeated pair"


@dataclass(frozen=True)
class ListedPair:
    """A pair of images in a list.

    Attributes:
        left: file of the left image.
        right: file of the right image.
        same: whether both show the same, by the list; None if the list does not say it.
        line: the number of the line, counted from one.
    """

    left: Path
    right: Path
    same: bool | None
    line: int


@dataclass(frozen=True)
class PairList:
    """The pairs of a list.

    Attributes:
        pairs: the different pairs, in the order of the list.
        repeated: why each further line of a pair is left out, by file and line.
    """

    pairs: tuple[ListedPair, ...]
    repeated: Mapping[Path, str]


def read_pair_list(path: Path) -> PairList:
    r"""Read a CSV file with the columns ``left``, ``right`` and, if it is known, ``same`` or ``label``.

    A header may name the columns. Paths are relative to the folder of the file. ``same`` is 1, true, yes or same; or 0,
    false, no or different.

    Args:
        path: the file.

    Raises:
        ValueError: for a file without pairs, missing columns, another word for ``same``, an image paired with itself,
            or a pair that two lines call same and different; the message has the number of the line.
        OSError: if the file cannot be read.

    Example:
        >>> _ = Path("pairs.csv").write_text("left,right,same\na.jpg,b.jpg,1\na.jpg,/photos/c.jpg,0\n")
        >>> [(str(pair.right), pair.same) for pair in read_pair_list(Path("pairs.csv")).pairs]
        [('b.jpg', True), ('/photos/c.jpg', False)]
    """
    pairs: dict[tuple[Path, Path], ListedPair] = {}
    repeated: dict[Path, str] = {}
    for line in read_csv_list(path, ("left", "right"), {"same": ("same", "label")}):
        left, right = (path.parent / line.values[side] for side in ("left", "right"))
        pair = ListedPair(left, right, _same(line), line.number)
        if left == right:
            line.refuse(f"left and right are the same file, {printable(line.values['left'])}")
        first = pairs.setdefault((left, right), pair)
        if first.same != pair.same:
            line.refuse(f"same is another than in line {first.line}, which has the same pair")
        if first is not pair:
            repeated[Path(f"{path} line {line.number}")] = _REPEATED
    return PairList(tuple(pairs.values()), repeated)


def _same(line: ListLine) -> bool | None:
    word = line.values["same"].casefold()
    if word and word not in _SAME:
        hint = "; a header names the columns left,right,same" if line.number == 1 else ""
        line.refuse(f"same must be 1 or 0, true or false, yes or no, same or different, got {printable(word)}{hint}")
    return _SAME.get(word)
