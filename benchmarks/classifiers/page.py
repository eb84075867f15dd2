"""The page of the benchmark: one table per network and source, and one for the images of the slow methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.classifiers.networks import Classifier
from benchmarks.classifiers.pieces import OF_MOSAICS, OF_PHOTOGRAPHS, WITH_CAM, Piece
from benchmarks.pages import interval, markdown_table, write_page

NOTE = """\
The rows in three groups:

- `photographs`: the supports are up to five other photographs of the class, compared by cosine. `rows`: the support is
  the row of the class in the classifier, compared by the dot product. `-foil` subtracts the mean similarity to all
  other photographs, or to all other rows; `-runner-up` that to the row with the largest logit beside the class.
  `[smooth=5]` is a mean filter that keeps the sum of the map.
- Five baselines, which look at no class.
- CAM, Grad-CAM, Grad-CAM++, Layer-CAM, Score-CAM and Ablation-CAM by the code of the library in parentheses, for the
  logit of the class, at the same layer: the one whose output is pooled. torchcam's maps are not scaled to [0, 1].
  Ablation-CAM runs on what follows that layer, which gives the same map. Score-CAM needs a pass for each channel, so it
  explains a few photographs only, and no mosaics; a second table has all methods on these photographs.

For a linear classifier without a bias that follows global average pooling, the additive map with the row of the class
as support is CAM: both are the row times the activation at each position, up to one factor per image. Cosine changes
that factor only. Grad-CAM is the same map again: its weights are the row over the number of positions, and the ReLU
behind SqueezeNet's classifier multiplies them by the share of positions that pass it. So these rows agree below, and
others differ by what a library cuts off below zero, and by the foil.

`energy` is the share of the min-max scaled map in the boxes of the class, `energy-positive` that of the positive part,
`iou` that of the box of the map at 0.2 of its range with the best of the boxes. `drop` and `increase` are average drop
and increase in confidence of the classifier's probability of the class when the image is multiplied by the map. All
explained photographs are classified correctly. In a mosaic, `cell-energy` is the share of the positive part in the
cell of the class, `cell-hit` how often that cell has the most (chance 0.25), `cell-auroc` the same by rank (chance
0.5); its intervals are over mosaics. `with-cam` is the correlation with CAM's map, at the size of the image. `n` is
the number of maps."""


@dataclass(frozen=True)
class Section:
    """The results of one network on one source.

    Attributes:
        title: title of the section.
        facts: sentence below the title.
        pieces: the measures by method.
    """

    title: str
    facts: str
    pieces: dict[str, Piece]

    def lines(self) -> list[str]:
        """The section as lines of Markdown."""
        fewest = min(self.pieces.values(), key=lambda piece: len(piece.shown)).shown
        most = max(len(piece.shown) for piece in self.pieces.values())
        lines = [f"## {self.title}", "", self.facts, "", *self._table(None)]
        if len(fewest) < most:
            lines += ["", f"All methods on the {len(fewest)} maps of the slow ones:", "", *self._table(fewest)]
        return [*lines, ""]

    def _table(self, among: list[list[int]] | None) -> list[str]:
        return markdown_table({name: _cells(piece, among) for name, piece in self.pieces.items()})


def write(path: Path, command: str, classifiers: list[Classifier], sections: list[Section]) -> None:
    """Write the page.

    Args:
        path: the file.
        command: the command that wrote it.
        classifiers: the networks.
        sections: their results.
    """
    rows = " ".join(
        f"For {one.title} the rows are those of `{one.last}`, {tuple(one.rows.shape)}; they leave out {one.left_out}."
        for one in classifiers
    )
    write_page(
        path,
        "Networks with a classifier",
        command,
        [line for section in sections for line in section.lines()],
        note=f"{NOTE}\n\n{rows}",
        seed="seed 0",
    )


def _cells(piece: Piece, among: list[list[int]] | None) -> dict[str, str]:
    results = piece.results(among)
    names = [name for name in (*OF_PHOTOGRAPHS, *OF_MOSAICS, WITH_CAM) if name in results]
    maps = sum(among is None or rows in among for rows in piece.shown)
    return {**{name: interval(results[name], of=maps) for name in names}, "n": str(maps)}
