"""The validation images of ILSVRC 2012 (ImageNet) with their boxes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from captum_fam._progress import progress_bar
from captum_fam.experiments.data.boxed_images import BoxedImages, ImageRecord
from captum_fam.geometry import Geometry
from captum_fam.image_folders import list_images, own_record


class ImageNetBoxes(BoxedImages):
    """Validation images of ILSVRC 2012 with all boxes of their class.

    The items are the image files in the folder, sorted by file name, without hidden folders and folders of results of
    this package. An image with a missing or broken annotation stays in the list, and raises an error when it is read.
    :meth:`check` reports annotated images without a file.

    Args:
        images: folder of the images, flat or with class folders.
        boxes: folder of the XML files of ILSVRC (one file per image, also in folders below), or the file
            ``LOC_val_solution.csv``.
        classes: WordNet ids in the order of the class indices; None for the sorted ids in the annotations. For the
            whole validation set these are the 1,000 classes in the order of torchvision's models. Default: None.
        geometry: as in :class:`~captum_fam.experiments.data.BoxedImages`. Default: None.
        transform: as in :class:`~captum_fam.experiments.data.BoxedImages`. Default: None.
        inclusive: whether ``xmax`` and ``ymax`` are the last pixels inside the box, to which one is added, instead of
            the edges of the box. Default: False.
        progress: show a progress bar while XML files are read. Default: False.

    Raises:
        FileNotFoundError: if ``images`` or ``boxes`` is missing, or holds no image or no annotation.
        ValueError: for a CSV file without the expected columns, or two images with the same name.

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
        files = list_images(images, deep=True).files if images.is_dir() else ()
        if not files:
            raise FileNotFoundError(f"{images}: no images in this folder or below it")
        if boxes.is_dir():
            annotations = _read_xml_folder(boxes, progress)
        elif boxes.is_file():
            annotations = _read_csv(boxes)
        else:
            raise FileNotFoundError(f"{boxes}: neither a folder of XML files nor a CSV file")
        if own_record(images) is not None:  # an evaluation has drawn its figures beside the images
            files = tuple(path for path in files if path.parent != images or path.stem in annotations)
        paths = _by_stem(files)
        names = list(classes or sorted({note.wnid for note in annotations.values() if note.defect is None}))
        label_of = {name: label for label, name in enumerate(names)}

        missing = _Annotation("", [], None, "no annotation")
        records = [_record(paths[stem], annotations.get(stem, missing), label_of, inclusive) for stem in sorted(paths)]
        absent = [images / f"{stem}.JPEG" for stem in sorted(annotations.keys() - paths.keys())]
        super().__init__(records, names, geometry, transform, absent)


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Image files by the name that their annotations have."""
    paths: dict[str, Path] = {}
    for path in files:
        if paths.setdefault(path.stem, path) is not path:
            raise ValueError(f"{path} and {paths[path.stem]} have one name, and an annotation belongs to one image")
    return paths


class _Annotation(NamedTuple):
    """The annotation of an image: WordNet id, boxes as corners, size of the image, and the reason if it is unusable."""

    wnid: str
    boxes: list[list[float]]
    size: tuple[int, int] | None = None
    defect: str | None = None


def _record(path: Path, annotation: _Annotation, label_of: dict[str, int], inclusive: bool) -> ImageRecord:
    label = label_of.get(annotation.wnid, -1)
    defect = annotation.defect
    if defect is None and label < 0:
        defect = f"class {annotation.wnid} is none of the {len(label_of)} classes"
    boxes = torch.tensor(annotation.boxes, dtype=torch.float32).reshape(-1, 4)
    if inclusive:
        boxes[:, 2:] += 1
    return ImageRecord(path, label, boxes, annotation.size, defect)


def _annotation(objects: list[tuple[str, list[float]]], size: tuple[int, int] | None = None) -> _Annotation:
    wnids = {wnid for wnid, _ in objects}
    if len(wnids) != 1:
        return _Annotation("", [], size, f"expected boxes of one class, got {', '.join(sorted(wnids)) or 'no box'}")
    return _Annotation(wnids.pop(), [box for _, box in objects], size)


def _read_xml_folder(folder: Path, progress: bool) -> dict[str, _Annotation]:
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise FileNotFoundError(f"{folder}: no XML files in this folder or below it")
    return {path.stem: _read_xml(path) for path in progress_bar(files, desc="boxes", unit="xml", shown=progress)}


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type. ILSVRC files have none, and it could declare entities that fill the memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a DOCTYPE is not allowed")


def _read_xml(path: Path) -> _Annotation:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
        size = (int(_text(root, "size/width")), int(_text(root, "size/height")))
        objects = [
            (_text(item, "name"), [float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
            for item in root.iter("object")
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
    """Read groups of five words, a WordNet id and the four numbers of a box."""
    words = text.split()
    try:
        objects = [
            (wnid, [float(value) for value in (x0, y0, x1, y1)])
            for wnid, x0, y0, x1, y1 in (words[start : start + 5] for start in range(0, len(words), 5))
        ]
    except ValueError:
        return _Annotation("", [], None, f"expected groups of a WordNet id and four numbers, got {text!r}")
    return _annotation(objects)
