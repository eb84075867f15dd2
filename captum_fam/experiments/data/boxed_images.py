"""Photographs with classes and boxes, and a check that reports missing and broken images and boxes."""

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

from captum_fam._progress import progress_bar
from captum_fam._text import printable, printable_path
from captum_fam.geometry import Geometry, box_areas, clip_boxes
from captum_fam.images import UnreadableImageError, image_to_tensor, read_image

ProblemKind = Literal["missing", "corrupt", "annotation", "box outside", "box clipped"]

# In pixels. A box that reaches out of the image by no more is a rounding error of the annotation. It is clipped without
# a report.
_BOX_TOLERANCE = 1.0


class BoxedImage(NamedTuple):
    """One item of a data set: a photograph with its class and its boxes.

    Attributes:
        image: ``(3, H, W)``, float32 in [0, 1] unless a transform changed the range.
        label: index of the class.
        boxes: ``(n, 4)`` float32, half-open ``(x0, y0, x1, y1)`` in pixels of ``image``.
    """

    image: Tensor
    label: int
    boxes: Tensor


class Problem(NamedTuple):
    """A problem of one item of a data set.

    Attributes:
        item: position of the item in the data set; None for an annotation without an image.
        path: path of the image file.
        kind: ``"missing"`` or ``"corrupt"`` for an image, ``"annotation"`` for a missing or broken annotation, ``"box
            outside"`` for a box without area inside the image, ``"box clipped"`` for a box of which only the part
            inside the image is used.
        detail: description of the problem.
    """

    item: int | None
    path: Path
    kind: ProblemKind
    detail: str

    def __str__(self) -> str:
        return f"{printable_path(self.path)}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class DatasetReport:
    """Result of :meth:`BoxedImages.check`; ``print`` shows the list of all problems.

    Attributes:
        n_items: number of items of the data set.
        problems: all problems, in the order of the items.
    """

    n_items: int
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, for the kinds that occur."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def usable(self) -> list[int]:
        """Positions of the items that can be read, with clipped boxes or not; for ``torch.utils.data.Subset``."""
        broken = {problem.item for problem in self.problems if problem.kind != "box clipped"}
        return [item for item in range(self.n_items) if item not in broken]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or "nothing wrong"
        head = f"{self.n_items} items, {len(self.usable)} usable: {counts}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


@dataclass(frozen=True)
class ImageRecord:
    """The annotation of one photograph.

    Attributes:
        path: path of the image file.
        label: index of the class.
        boxes: ``(n, 4)`` float32, half-open ``(x0, y0, x1, y1)`` in pixels of the file.
        annotated_size: width and height of the image on which the boxes were drawn, in pixels; None if the annotation
            does not state the size. Default: None.
        defect: the reason why the annotation cannot be used; None for a good annotation. Default: None.
    """

    path: Path
    label: int
    boxes: Tensor
    annotated_size: tuple[int, int] | None = None
    defect: str | None = None


class BoxedImages(Dataset[BoxedImage]):
    """A data set of photographs with their classes and boxes, from one :class:`ImageRecord` per photograph.

    Images become RGB as by :func:`~captum_fam.images.read_image`, but an EXIF orientation is ignored: the boxes of data
    sets refer to the pixels as stored in the file, and published models were trained on these pixels. Only where the
    annotation states the size of the upright image, the image is rotated.

    Args:
        records: one record per item.
        class_names: names of the C classes, in the order of the class indices.
        geometry: resizing of the image and its boxes, :class:`~captum_fam.geometry.Squash` or
            :class:`~captum_fam.geometry.ResizeCrop`; None for the size of the file. Default: None.
        transform: function of the float32 image ``(3, H, W)`` in [0, 1], for example
            ``torchvision.transforms.Normalize``. It must not move pixels, because the boxes do not change with it.
            Default: None.
        absent: paths of annotated images without a file, which :meth:`check` reports. Default: none.

    Attributes:
        labels: index of the class of every item, ``(len,)`` int64.

    Raises:
        UnreadableImageError: by ``dataset[i]``, for an image or an annotation that is missing or broken, or a box
            without area inside the image. :class:`~captum_fam.embedding.BatchLoader` can skip and count such items.

    Example:
        >>> Image.new("RGB", (90, 60)).save("wren.png")
        >>> record = ImageRecord(Path("wren.png"), label=0, boxes=torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
        >>> dataset = BoxedImages([record], class_names=["wren"])
        >>> dataset[0].image.shape, dataset[0].boxes
        (torch.Size([3, 60, 90]), tensor([[10., 20., 30., 40.]]))
        >>> print(dataset.check())
        1 items, 1 usable: nothing wrong
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
        """The image of an item before geometry and transform.

        Args:
            index: position of the item.

        Returns:
            The image in RGB, in the size of its file.

        Raises:
            UnreadableImageError: as ``dataset[index]``.
        """
        record = self.records[index]
        image, problems = _open(record)
        for kind, detail in problems:
            if kind != "box clipped":
                raise UnreadableImageError(f"{printable_path(record.path)}: {kind}: {detail}")
        assert image is not None
        return image

    def check(self, progress: bool = False) -> DatasetReport:
        """Decode every image and compare the image with its annotation.

        Args:
            progress: show a progress bar. Default: False.

        Returns:
            A report that lists and counts all problems.
        """
        problems = [Problem(None, path, "missing", "annotated, but no such file") for path in self.absent]
        for item, record in enumerate(progress_bar(self.records, desc="check", unit="img", shown=progress)):
            problems += [Problem(item, record.path, kind, detail) for kind, detail in _open(record)[1]]
        return DatasetReport(len(self), tuple(problems))


def _open(record: ImageRecord) -> tuple[Image.Image | None, list[tuple[ProblemKind, str]]]:
    """The image on which the boxes were drawn, in RGB, and the kind and detail of each problem of the item."""
    if record.defect is not None:
        return None, [("annotation", record.defect)]
    try:
        image = read_image(record.path, upright=False)
        if record.annotated_size == (image.height, image.width) != image.size:
            image = read_image(record.path)
    except UnreadableImageError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError):
            return None, [("missing", "no such file")]
        if error.machine_error is not None:
            raise error.machine_error from None
        detail = str(error).removeprefix(f"{printable_path(record.path)}: ") if cause is None else printable(cause)
        return None, [("corrupt", detail)]
    return image, _box_problems(record, image.size)


def _box_problems(record: ImageRecord, size: tuple[int, int]) -> list[tuple[ProblemKind, str]]:
    width, height = size
    if record.annotated_size not in (None, size):
        return [("annotation", f"boxes were drawn on {record.annotated_size} pixels, the image has {size}")]
    problems: list[tuple[ProblemKind, str]] = []
    inside = clip_boxes(record.boxes, width, height)
    for box, clipped in zip(record.boxes, inside, strict=True):
        where = f"{tuple(round(x, 1) for x in box.tolist())} in an image of {width} x {height}"
        # "not > 0" instead of "<= 0", so that a NaN counts as outside.
        if not box_areas(clipped) > 0:
            problems.append(("box outside", where))
        elif (box - clipped).abs().max() > _BOX_TOLERANCE:
            problems.append(("box clipped", where))
    return problems
