"""Labeled data sets of any kind as items ``(image, class index)``: class folders, dictionaries, subsets, loaders."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from captum_fam._text import printable
from captum_fam.embedding.labeled_folder import ClassFolderImages
from captum_fam.images import UnreadableImageError, as_rgb, read_image

# Keys of items that are dictionaries; of several, the first is taken.
_IMAGE_KEYS = ("pixel_values", "image", "img")
_LABEL_KEYS = ("label", "labels", "target")

Preprocess = Callable[[Any], Tensor]


class LabeledDataset(Dataset[Any]):
    """A data set with items ``(image, class index)`` or ``(image, class index, boxes)``, from a source of any kind.

    Items of the source are tuples ``(image, label)`` or ``(image, label, boxes)``, or dictionaries, as those of a data
    set of Hugging Face. An image is a tensor, an image of PIL, an array or a path. A label is a whole number or a name.
    Names are numbered in the order of ``class_names``; if the source has no list of names, all its labels are read
    first, and the names are in alphabetical order.

    Args:
        source: a folder with one folder of images per class, or a data set with a length: one of PyTorch, a subset, a
            data set of Hugging Face, or a list of items.
        preprocess: makes the input of the model from an image of PIL in mode RGB. Default: None, images are tensors.
        on_tensors: whether ``preprocess`` gets images that are tensors too. Default: False, tensors stay as they are.
        class_names: C names. Default: None, the ``class_names`` or ``classes`` of the source, of the data set behind a
            subset, or of the label of a data set of Hugging Face.
        image_key: the key of the image in items that are dictionaries. Default: None, ``"pixel_values"``, ``"image"``
            or ``"img"``.
        label_key: the key of the label. Default: None, ``"label"``, ``"labels"`` or ``"target"``.
        collate: makes a batch of a list of items, in the place of the items themselves. Default: None, no such step.

    Attributes:
        class_names: C names; None if labels are numbers without names.

    Raises:
        TypeError: for a source without positions or length, and items that hold no image or no label.
        ValueError: for items without the keys, images of PIL without ``preprocess``, and parts with other classes.

    Example:
        >>> dataset = LabeledDataset([{"img": torch.zeros(3, 8, 8), "label": name} for name in ("wren", "jay")])
        >>> dataset.class_names, dataset[0][1]
        (('jay', 'wren'), 1)
    """

    def __init__(
        self,
        source: Any,
        *,
        preprocess: Preprocess | None = None,
        on_tensors: bool = False,
        class_names: Sequence[str] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.source = ClassFolderImages(source) if isinstance(source, str | Path) else _check_source(source)
        self._preprocess = preprocess
        self._on_tensors = on_tensors
        self._keys = (image_key, label_key)
        self._collate = collate
        self._numbers: dict[str, int] | None = None
        at, first = self._first_readable()
        key = _key_in(first, "label_key", label_key, _LABEL_KEYS) if isinstance(first, Mapping) else None
        names = class_names or find_class_names(self.source, key)
        self.class_names = tuple(names) if names else None
        # The first item that can be read shows what the data set gives, before hours of work.
        if first is not None and isinstance(self._parts(first, at).label, str):
            self.class_names = self.class_names or self._names_of_all()
            self._numbers = {name: number for number, name in enumerate(self.class_names)}
        if first is not None:
            self._item(first, at)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._item(self._read(index), index)

    @property
    def records(self) -> Sequence[Any]:
        """The records of the source, each with its ``path``; empty for a source without records."""
        return getattr(self.source, "records", ())

    def _read(self, index: int) -> Any:
        item = self.source[index]
        return item if self._collate is None else self._collate([item])

    def _first_readable(self) -> tuple[int, Any]:
        """The first item that can be read, behind its position; None if there is none."""
        for index in range(len(self)):
            try:
                return index, self._read(index)
            except (OSError, UnreadableImageError):
                continue
        return 0, None

    def _item(self, item: Any, index: int) -> tuple[Any, ...]:
        image, label, *rest = self._parts(item, index)
        return (self._tensor(image, index), self._number(label, index), *rest[0])

    def _parts(self, item: Any, index: int) -> _Parts:
        """Image, label and all that follows of an item; with ``collate``, of a batch of one item."""
        if isinstance(item, Mapping):
            image_key, label_key = self._keys
            image = item[_key_in(item, "image_key", image_key, _IMAGE_KEYS)]
            parts = _Parts(image, item[_key_in(item, "label_key", label_key, _LABEL_KEYS)], ())
        elif isinstance(item, tuple | list) and len(item) >= 2:
            parts = _Parts(item[0], item[1], tuple(item[2:]))
        else:
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise TypeError(
                f"dataset: an item must be (image, label) or a dictionary with an image and a label, item {index} is "
                f"a {type(item).__name__}{size}"
            )
        return parts if self._collate is None else _Parts(parts.image[0], parts.label[0], ())

    def _tensor(self, image: Any, index: int) -> Any:
        if isinstance(image, Tensor):
            return self._preprocess(image) if self._preprocess is not None and self._on_tensors else image
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            image = Image.fromarray(image)
        elif isinstance(image, np.ndarray):
            return torch.from_numpy(image)
        elif isinstance(image, str | Path):
            image = read_image(image)
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"dataset: an image must be a tensor, an image of PIL, an array or a path, the image of item {index} "
                f"is a {type(image).__name__}"
            )
        if self._preprocess is None:
            raise ValueError(
                f"dataset: the image of item {index} is no tensor but a picture; pass preprocess=, the function from "
                "an image of PIL to the input of the model, or give the data set a transform"
            )
        return self._preprocess(as_rgb(image, f"the image of item {index}"))

    def _number(self, label: Any, index: int) -> int:
        if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
            label = label.item()
        if self._numbers is not None and isinstance(label, str):
            if label not in self._numbers:
                raise ValueError(
                    f"dataset: the label of item {index}, '{printable(label)}', is none of the class names"
                )
            return self._numbers[label]
        try:
            number = operator.index(label)
        except TypeError as error:
            kind = f"of shape {tuple(label.shape)}" if hasattr(label, "shape") else printable(label)
            raise TypeError(
                f"dataset: a label must be a whole number or a name, that of item {index} is {kind}"
            ) from error
        if not -(2**63) <= number < 2**63:
            raise ValueError(
                f"dataset: the label of item {index}, {number}, is too large for a class index (int64); number the "
                "classes from 0, or give their names as texts"
            )
        return number

    def _names_of_all(self) -> tuple[str, ...]:
        """The different labels of all items that can be read, in alphabetical order."""
        labels = _column(self.source, self._keys[1])
        if labels is None:
            labels = []
            for index in range(len(self)):
                try:
                    labels.append(self._parts(self._read(index), index).label)
                except (OSError, UnreadableImageError):
                    continue
        return tuple(sorted(set(map(str, labels))))


class _Parts(NamedTuple):
    image: Any
    label: Any
    rest: tuple[Any, ...]


class LoaderParts(NamedTuple):
    """How a ``DataLoader`` reads its data set.

    Attributes:
        dataset: the data set.
        batch_size: items per batch.
        num_workers: the number of processes that read.
        collate: the loader's own function that makes a batch of items; None for PyTorch's.
    """

    dataset: Dataset[Any]
    batch_size: int
    num_workers: int
    collate: Callable[[list[Any]], Any] | None


def take_loader_apart(loader: DataLoader[Any]) -> LoaderParts:
    """Take the data set out of a ``DataLoader``, to read all its items in the order of the data set.

    The order of the loader is not used: shuffled batches have no positions, which resuming needs. ``drop_last`` is not
    used either.

    Args:
        loader: the loader.

    Raises:
        TypeError: for a loader of an ``IterableDataset``.
        ValueError: for a loader whose sampler leaves out or repeats items.

    Example:
        >>> dataset = [(torch.zeros(3, 8, 8), 0)] * 5
        >>> take_loader_apart(DataLoader(dataset, batch_size=2, shuffle=True)).batch_size
        2
    """
    _check_source(loader.dataset)
    sampler = loader.sampler
    is_plain = type(loader.batch_sampler).__name__ in ("BatchSampler", "NoneType")
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not is_plain or not whole:
        kind = type(loader.batch_sampler if whole else sampler).__name__
        raise ValueError(
            f"dataset: the DataLoader draws its items by a {kind}, which may leave out or repeat items; pass the data "
            "set itself, or a Subset of it"
        )
    own = None if loader.collate_fn is default_collate or loader.batch_size is None else loader.collate_fn
    return LoaderParts(loader.dataset, loader.batch_size or 64, loader.num_workers, own)


def find_class_names(source: Any, label_key: str | None = None) -> tuple[str, ...]:
    """The names of the classes of a data set, as far as they are known without reading its items.

    Args:
        source: a data set with ``class_names`` or ``classes``; a subset or chain of such data sets; or a data set of
            Hugging Face.
        label_key: the key of the label, for a data set of Hugging Face. Default: None.

    Returns:
        Names in the order of the class indices; empty for a data set without names.

    Raises:
        ValueError: for a chain of data sets with different classes, in which one class index means several classes.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 1]))
        >>> images.classes = ["jay", "wren"]
        >>> find_class_names(Subset(images, [2]))
        ('jay', 'wren')
    """
    if isinstance(source, ConcatDataset):
        different = {find_class_names(part, label_key) for part in source.datasets}
        if len(different) > 1:
            raise ValueError(
                "dataset: the parts of the ConcatDataset have different classes, so that equal labels mean different "
                "classes; give all parts the same list of classes, or make one bank of each"
            )
        return different.pop()
    names = getattr(source, "class_names", None) or getattr(source, "classes", None)
    if names is None and isinstance(source, Subset):
        return find_class_names(source.dataset, label_key)
    features = getattr(source, "features", None)
    if names is None and isinstance(features, Mapping) and label_key in features:
        names = getattr(features[label_key], "names", None)
    if names is None or callable(names):
        return ()
    return tuple(", ".join(name) if isinstance(name, tuple | list) else str(name) for name in names)


def _check_source(source: Any) -> Any:
    if isinstance(source, IterableDataset):
        raise TypeError(
            f"dataset: {type(source).__name__} is an IterableDataset, whose items have no positions, so that no item "
            "can be named, resumed or shared; pass a data set with a length and positions"
        )
    if isinstance(source, Mapping):
        keys = ", ".join(map(repr, list(source)[:5]))
        raise TypeError(
            f"dataset: got a dictionary with the keys {keys}; pass one of its data sets, as in data['train']"
        )
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise TypeError(
            "dataset must be a folder of class folders, a data set with a length and positions, or a DataLoader of "
            f"one, got {type(source).__name__}"
        )
    return source


def _key_in(item: Mapping[str, Any], argument: str, given: str | None, usual: Sequence[str]) -> str:
    for key in usual if given is None else (given,):
        if key in item:
            return key
    expected = f"none of {', '.join(usual)}" if given is None else f"no {given!r}"
    raise ValueError(
        f"dataset: its items have the keys {', '.join(map(printable, item))}, and {expected}; name the right one with "
        f"{argument}="
    )


def _column(source: Any, label_key: str | None) -> list[Any] | None:
    """The labels of all items without reading images; None if they are not known."""
    if isinstance(source, Subset):
        inner = _column(source.dataset, label_key)
        return None if inner is None else [inner[index] for index in source.indices]
    for key in _LABEL_KEYS if label_key is None else (label_key,):
        if key in (getattr(source, "column_names", None) or ()):
            return list(source[key])
    return None
