"""Photographs with classes and boxes, and what can be wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from captum_fam.geometry import Geometry, box_areas, clip_boxes
from captum_fam.images import UnreadableImageError, image_to_tensor

ProblemKind = Literal["missing", "corrupt", "annotation", "box outside", "box clipped"]

# Annotators' rounding: a box that sticks out by no more is clipped without a word.
_BOX_TOLERANCE = 1.0


class BoxedImage(NamedTuple):
    """One photograph.

    Attributes:
        image: ``(3, H, W)``, float32 in [0, 1] unless a transform changed it.
        label: the class index.
        boxes: ``(n, 4)`` float32, half-open ``(x0, y0, x1, y1)`` in pixels of ``image``.
    """

    image: Tensor
    label: int
    boxes: Tensor


class Problem(NamedTuple):
    """Something wrong with one item of a dataset.

    Attributes:
        item: its position; None for an annotation without an image.
        path: the file.
        kind: ``"missing"`` or ``"corrupt"`` image, missing or broken ``"annotation"``, ``"box outside"``: a box that
            has no area in its image; ``"box clipped"``: one that sticks out and is used as far as it is inside.
        detail: what was found.
    """

    item: int | None
    path: Path
    kind: ProblemKind
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class DatasetReport:
    """What :meth:`BoxedImages.check` found; ``print`` it for the whole list.

    Attributes:
        n_items: items of the dataset.
        problems: all that is wrong, in the order of the items.
    """

    n_items: int
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind that occurred."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def usable(self) -> list[int]:
        """The items that can be read, for ``torch.utils.data.Subset``; those with a clipped box among them."""
        broken = {problem.item for problem in self.problems if problem.kind != "box clipped"}
        return [item for item in range(self.n_items) if item not in broken]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or "nothing wrong"
        head = f"{self.n_items} items, {len(self.usable)} usable: {counts}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


@dataclass(frozen=True)
class ImageRecord:
    """What is known of one photograph before its file is opened.

    Attributes:
        path: the image file.
        label: the class index.
        boxes: ``(n, 4)`` float32, half-open, in pixels of the file.
        annotated_size: width and height that the boxes were drawn on, where the annotation says.
        defect: why the annotation cannot be used.
    """

    path: Path
    label: int
    boxes: Tensor
    annotated_size: tuple[int, int] | None = None
    defect: str | None = None


class BoxedImages(Dataset[BoxedImage]):
    """Photographs with their classes and boxes, an :class:`ImageRecord` per photograph.

    Images are decoded by PIL and become RGB. An EXIF orientation is ignored: boxes are drawn on the pixels as they
    are stored, and models are trained on them in that way.

    Args:
        records: the items.
        class_names: C names, in the order of the class indices.
        geometry: moves pixels and boxes alike: :class:`~captum_fam.geometry.Squash`,
            :class:`~captum_fam.geometry.ResizeCrop`, or None for the file's own size.
        transform: applied to the float32 image ``(3, H, W)`` in [0, 1], for example
            ``torchvision.transforms.Normalize``. It must leave pixels where they are: boxes do not follow.
        absent: annotated images of which there is no file; :meth:`check` names them.

    Attributes:
        labels: the class index of every item, ``(len,)`` int64.

    Raises:
        UnreadableImageError: by ``dataset[i]``, for an image or annotation that is missing or broken, or a box
            that has no area in its image. :class:`~captum_fam.embedding.BatchLoader` can skip and
            count such items.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_names: Sequence[str],
        geometry: Geometry | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        absent: Sequence[Path] = (),
    ) -> None:
        self.records = tuple(records)
        self.labels = torch.tensor([record.label for record in records], dtype=torch.int64)
        self.class_names = tuple(class_names)
        self.geometry = geometry
        self.transform = transform
        self.absent = tuple(absent)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> BoxedImage:
        record = self.records[index]
        image = self.photograph(index)
        boxes = clip_boxes(record.boxes, image.width, image.height)
        if self.geometry is not None:
            image, boxes = self.geometry(image, boxes)
        pixels = image_to_tensor(image)
        return BoxedImage(pixels if self.transform is None else self.transform(pixels), record.label, boxes)

    def photograph(self, index: int) -> Image.Image:
        """The image of an item in RGB and the size of its file: what geometry and transform are applied to.

        Raises:
            UnreadableImageError: as ``dataset[index]`` does.
        """
        record = self.records[index]
        image, problems = _open(record)
        for kind, detail in problems:
            if kind != "box clipped":
                raise UnreadableImageError(f"{record.path}: {kind}: {detail}")
        assert image is not None
        return image

    def check(self, progress: bool = False) -> DatasetReport:
        """Decode every image and compare it with its annotation.

        Args:
            progress: show a progress bar.

        Returns:
            A :class:`DatasetReport` that names and counts every problem.
        """
        problems = [Problem(None, path, "missing", "annotated, but no such file") for path in self.absent]
        for item, record in enumerate(tqdm(self.records, desc="check", unit="img", disable=not progress)):
            problems += [Problem(item, record.path, kind, detail) for kind, detail in _open(record)[1]]
        return DatasetReport(len(self), tuple(problems))


def _open(record: ImageRecord) -> tuple[Image.Image | None, list[tuple[ProblemKind, str]]]:
    """The image in RGB, pixels as stored, and what is wrong with the item."""
    if record.defect is not None:
        return None, [("annotation", record.defect)]
    try:
        with Image.open(record.path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError:
        return None, [("missing", "no such file")]
    except Exception as error:  # decoders raise whatever they trip over in a broken file
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # the machine's fault, not the file's
        return None, [("corrupt", str(error))]
    return image, _box_problems(record, image.size)


def _box_problems(record: ImageRecord, size: tuple[int, int]) -> list[tuple[ProblemKind, str]]:
    width, height = size
    if record.annotated_size not in (None, size):
        return [("annotation", f"boxes were drawn on {record.annotated_size} pixels, the image has {size}")]
    problems: list[tuple[ProblemKind, str]] = []
    inside = clip_boxes(record.boxes, width, height)
    for box, clipped in zip(record.boxes, inside, strict=True):
        where = f"{tuple(round(x, 1) for x in box.tolist())} in an image of {width} x {height}"
        # "not more than" rather than "at most", so that NaN counts as outside.
        if not box_areas(clipped) > 0:
            problems.append(("box outside", where))
        elif (box - clipped).abs().max() > _BOX_TOLERANCE:
            problems.append(("box clipped", where))
    return problems
