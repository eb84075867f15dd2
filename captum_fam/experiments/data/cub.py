"""The data set CUB-200-2011, read from the files of its authors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from captum_fam.experiments.data.boxed_images import BoxedImages, ImageRecord
from captum_fam.geometry import Geometry

CUBSplit = Literal["all", "train", "test", "base", "val", "novel", "retrieval-train", "retrieval-test"]


class CUB200(BoxedImages):
    """The photographs of birds in CUB-200-2011, with one box per image; a part of the data set works too.

    The splits, for C classes sorted by name and counted from zero:

    ============================================  ============================================================
    ``"all"``                                     every image
    ``"train"``, ``"test"``                       the flag in the data set; both splits have all classes
    ``"base"``, ``"val"``, ``"novel"``            few-shot: classes i with i % 2 == 0, i % 4 == 1, i % 4 == 3
                                                  (Chen et al., "A Closer Look at Few-shot Classification")
    ``"retrieval-train"``, ``"retrieval-test"``   metric learning: the first C / 2 classes, all other classes
    ============================================  ============================================================

    Labels are the class indices 0..C-1 of the whole data set in every split.

    Args:
        root: the folder of ``images.txt``, ``image_class_labels.txt``, ``classes.txt``, ``bounding_boxes.txt``,
            ``train_test_split.txt`` and ``images/``.
        split: name of a split in the table above. Default: ``"all"``.
        geometry: as in :class:`~captum_fam.experiments.data.BoxedImages`. Default: None.
        transform: as in :class:`~captum_fam.experiments.data.BoxedImages`. Default: None.

    Raises:
        FileNotFoundError: if a table is missing.
        ValueError: for a line that cannot be read, tables that do not fit together, or an unknown split.

    Example:
        >>> novel = CUB200("CUB_200_2011", "novel", Squash(84, "bicubic"))
        >>> image, label, boxes = novel[0]  # (3, 84, 84), int, (1, 4)
    """

    def __init__(
        self,
        root: str | Path,
        split: CUBSplit = "all",
        geometry: Geometry | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if split not in get_args(CUBSplit):
            raise ValueError(f"split must be one of {', '.join(get_args(CUBSplit))}, got {split!r}")
        root = Path(root)
        classes = _table(root / "classes.txt", 1)
        paths = _table(root / "images.txt", 1)
        class_ids = _table(root / "image_class_labels.txt", 1, paths)
        boxes = _table(root / "bounding_boxes.txt", 4, paths)
        flags = _table(root / "train_test_split.txt", 1, paths)

        names = sorted(name for (name,) in classes.values())
        label_of = {class_id: names.index(name) for class_id, (name,) in classes.items()}
        records = []
        for image_id, (path,) in paths.items():
            (class_id,), (flag,) = class_ids[image_id], flags[image_id]
            if class_id not in label_of:
                raise ValueError(f"image_class_labels.txt: class {class_id} of image {image_id} is not in classes.txt")
            label = label_of[class_id]
            if _belongs(label, flag == "1", split, len(names)):
                records.append(ImageRecord(root / "images" / path, label, _box(image_id, boxes[image_id])))
        super().__init__(records, names, geometry, transform)


def _belongs(label: int, is_training: bool, split: CUBSplit, n_classes: int) -> bool:
    return {
        "all": True,
        "train": is_training,
        "test": not is_training,
        "base": label % 2 == 0,
        "val": label % 4 == 1,
        "novel": label % 4 == 3,
        "retrieval-train": label < n_classes // 2,
        "retrieval-test": label >= n_classes // 2,
    }[split]


def _box(image_id: str, values: list[str]) -> Tensor:
    try:
        x, y, width, height = map(float, values)
    except ValueError as error:
        raise ValueError(f"bounding_boxes.txt: image {image_id} has no numbers in {' '.join(values)!r}") from error
    return torch.tensor([[x, y, x + width, y + height]])


def _table(path: Path, n_columns: int, like: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
    """Read a table of ``images.txt`` and the like: the columns by the id at the start of the line, in file order.

    With ``like`` the table must have the ids of the table ``images.txt``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; root must be the folder of CUB-200-2011 that holds images.txt")
    table: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        key, *columns = line.split()
        if len(columns) != n_columns or key in table:
            raise ValueError(f"{path}, line {number}: expected a new id and {n_columns} column(s), got {line!r}")
        table[key] = columns
    if like is not None and table.keys() != like.keys():
        differing = sorted(table.keys() ^ like.keys())
        raise ValueError(f"{path} and images.txt do not list the same images: {', '.join(differing[:5])} ...")
    return table
