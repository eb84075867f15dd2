"""The validation images of ILSVRC 2012 with their boxes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_fam.experiments.data.boxed_images import BoxedImages, ImageRecord
from captum_fam.geometry import Geometry

_SUFFIXES = (".jpeg", ".jpg", ".png")


class ImageNetBoxes(BoxedImages):
    """ILSVRC 2012 validation images with all boxes of their class.

    The items are the images that are there, by file name. Those of which the annotation is missing or broken stay in
    the list and raise when they are read; annotated images that are not there are named by :meth:`check`.

    Args:
        images: the folder of the images, flat or in class folders.
        boxes: the folder of the ILSVRC XML files (one per image, also in a folder below it), or the file
            ``LOC_val_solution.csv``.
        classes: the WordNet ids in the order of the class indices. None: those of the annotations, sorted, which for
            the whole validation set are the 1,000 in the order of torchvision's models.
        geometry: :class:`~captum_fam.geometry.Squash`, :class:`~captum_fam.geometry.ResizeCrop` or None.
        transform: applied to the float32 image in [0, 1]; see :class:`~captum_fam.experiments.data.BoxedImages`.
        inclusive: False reads ``xmax`` and ``ymax`` as the box's edges; True as its last pixel, and adds one.
        progress: show a progress bar while XML files are read.

    Raises:
        FileNotFoundError: if ``images`` or ``boxes`` is missing, or holds no image or annotation.
        ValueError: for a CSV file of another form.

    Example:
        >>> val = ImageNetBoxes("val", "LOC_val_solution.csv", geometry=Squash(224))
        >>> image, label, boxes = val[0]  # (3, 224, 224), int, (n, 4)
    """

    def __init__(
        self,
        images: str | Path,
        boxes: str | Path,
        classes: Sequence[str] | None = None,
        geometry: Geometry | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        inclusive: bool = False,
        progress: bool = False,
    ) -> None:
        images, boxes = Path(images), Path(boxes)
        paths = {path.stem: path for path in images.rglob("*") if path.suffix.lower() in _SUFFIXES}
        if not paths:
            raise FileNotFoundError(f"{images}: no images in this folder or below it")
        if boxes.is_dir():
            annotations = _read_xml_folder(boxes, progress)
        elif boxes.is_file():
            annotations = _read_csv(boxes)
        else:
            raise FileNotFoundError(f"{boxes}: neither a folder of XML files nor a CSV file")
        names = list(classes or sorted({found.wnid for found in annotations.values() if found.defect is None}))
        label_of = {name: label for label, name in enumerate(names)}

        nothing = _Annotation("", [], None, "no annotation")
        records = [_record(paths[stem], annotations.get(stem, nothing), label_of, inclusive) for stem in sorted(paths)]
        absent = [images / f"{stem}.JPEG" for stem in sorted(annotations.keys() - paths.keys())]
        super().__init__(records, names, geometry, transform, absent)


class _Annotation(NamedTuple):
    wnid: str
    boxes: list[list[float]]
    size: tuple[int, int] | None = None
    defect: str | None = None


def _record(path: Path, found: _Annotation, label_of: dict[str, int], inclusive: bool) -> ImageRecord:
    label = label_of.get(found.wnid, -1)
    defect = found.defect
    if defect is None and label < 0:
        defect = f"class {found.wnid} is none of the {len(label_of)} classes"
    boxes = torch.tensor(found.boxes, dtype=torch.float32).reshape(-1, 4)
    if inclusive:
        boxes[:, 2:] += 1
    return ImageRecord(path, label, boxes, found.size, defect)


def _annotation(objects: list[tuple[str, list[float]]], size: tuple[int, int] | None = None) -> _Annotation:
    wnids = {wnid for wnid, _ in objects}
    if len(wnids) != 1:
        return _Annotation("", [], size, f"expected boxes of one class, got {', '.join(sorted(wnids)) or 'no box'}")
    return _Annotation(wnids.pop(), [box for _, box in objects], size)


def _read_xml_folder(folder: Path, progress: bool) -> dict[str, _Annotation]:
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise FileNotFoundError(f"{folder}: no XML files in this folder or below it")
    return {path.stem: _read_xml(path) for path in tqdm(files, desc="boxes", unit="xml", disable=not progress)}


class _NoDoctype(ElementTree.TreeBuilder):
    """Stops at a document type: ILSVRC files have none, and entities are declared in one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a DOCTYPE is not allowed")


def _read_xml(path: Path) -> _Annotation:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
        size = (int(_text(root, "size/width")), int(_text(root, "size/height")))
        objects = [
            (_text(one, "name"), [float(_text(one, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
            for one in root.iter("object")
        ]
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return _Annotation("", [], None, f"{path.name}: {error}")
    return _annotation(objects, size)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no <{path}>")
    return text.strip()


def _read_csv(path: Path) -> dict[str, _Annotation]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not {"ImageId", "PredictionString"} <= set(rows.fieldnames):
            raise ValueError(f"{path}: expected the columns ImageId and PredictionString, got {rows.fieldnames}")
        return {row["ImageId"]: _read_prediction(row["PredictionString"] or "") for row in rows}


def _read_prediction(text: str) -> _Annotation:
    """Groups of five words: a WordNet id and a box."""
    words = text.split()
    try:
        objects = [
            (wnid, [float(value) for value in (x0, y0, x1, y1)])
            for wnid, x0, y0, x1, y1 in (words[start : start + 5] for start in range(0, len(words), 5))
        ]
    except ValueError:
        return _Annotation("", [], None, f"expected groups of a WordNet id and four numbers, got {text!r}")
    return _annotation(objects)
