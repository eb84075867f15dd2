"""The arguments of an explanation: checking them, and converting them to the one form that is worked with."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_fam._text import first_line, printable
from captum_fam.support.labels import plain_value

INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""The interpolation of a map for inputs of so many dimensions."""

_CHANNELS = (1, 3, 4)


def check_inputs(inputs: Tensor) -> None:
    """Check that a tensor is a batch of queries.

    Args:
        inputs: queries ``(B, C, *spatial)``.

    Raises:
        ValueError: for another number of dimensions, or an empty batch.
    """
    if inputs.dim() not in INTERPOLATION or not len(inputs):
        raise ValueError(f"inputs must be a batch of queries (B, C, H, W), got shape {tuple(inputs.shape)}")


@contextmanager
def misfits_named(images: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None) -> Iterator[None]:
    """Name the images that do not fit a model, where the model fails: only the model knows what it takes.

    Args:
        images: images as the model takes them, ``(C, *spatial)``, each with words for its place.
        dtype: the type of the weights of the model; None if it is not known.

    Raises:
        TypeError: for images of another type than the weights, after an error of the model.
        ValueError: for images whose axes look wrong, after an error of the model.

    Example:
        >>> with misfits_named([("left: image 0", torch.zeros(3, 8, 8))], torch.float32):
        ...     pass
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        channels: int | None = None
        for place, image in images:
            shape = tuple(image.shape)
            channels = shape[0] if channels is None else channels
            if dtype is not None and image.dtype != dtype:
                raise TypeError(
                    f"{place} has values of {image.dtype} but the model weights of {dtype}; convert one of them "
                    f"({first_line(error)})"
                ) from error
            if image.dim() == 2:
                axes = "is a signal (C, L) to the model; a batch of one image is image[None], (1, C, H, W)"
            elif image.dim() == 3 and shape[-1] in _CHANNELS and shape[0] not in _CHANNELS:
                axes = "has its channels last; pass images.permute(0, 3, 1, 2), (B, C, H, W)"
            elif shape[0] != channels:
                axes = f"has {shape[0]} channels, and the first image {channels}; both go through the same model"
            else:
                continue
            raise ValueError(f"{place}, of shape {shape}, {axes} ({first_line(error)})") from error
        raise


def check_at_least(name: str, number: Any, least: int) -> int:
    """Check that an argument is a whole number that is large enough.

    Args:
        name: the name of the argument, for the message.
        number: a whole number of Python, NumPy or PyTorch.
        least: the smallest number that the argument may be.

    Returns:
        The number as a number of Python.

    Raises:
        ValueError: for anything else.

    Example:
        >>> check_at_least("batch_size", torch.tensor(32), 1)
        32
    """
    try:
        whole = None if isinstance(number, bool) else operator.index(number)
    except TypeError:  # no whole number
        whole = None
    if whole is None or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
    return whole


def check_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Check the names of queries.

    Args:
        names: the names; None for ``query-0``, ``query-1``, ...
        count: the number of queries.

    Returns:
        One name per query.

    Raises:
        TypeError: for a single text, or names that are no texts.
        ValueError: for another number of names, two equal names, or a name that is no file name.

    Example:
        >>> check_names(None, 2)
        ('query-0', 'query-1')
    """
    if names is None:
        return tuple(f"query-{index}" for index in range(count))
    if isinstance(names, str):
        raise TypeError(f"names must be one name per query, got the single text '{printable(names)}'")
    if len(names) != count:
        raise ValueError(f"names must be one per query: got {len(names)} for {count} queries")
    if any(not isinstance(name, str) for name in names):
        raise TypeError(f"names must be texts, got {', '.join(sorted({type(name).__name__ for name in names}))}")
    twice = next((name for name, number in Counter(names).items() if number > 1), None)
    if twice is not None:
        raise ValueError(f"names become file names and must be all different, got '{printable(twice)}' twice")
    if any(not name or Path(name).name != name for name in names):
        raise ValueError("names become file names: they must not be empty or hold a path separator")
    return tuple(names)


def class_indices(target: Any, classes: tuple[str, ...], inputs: Tensor) -> Tensor | None:
    """The class index of each query, from one class for all queries or one per query, by index or name.

    Args:
        target: an index or a name, or one for each query; None for the predicted classes.
        classes: names of the classes.
        inputs: queries ``(B, ...)``, whose device the result gets.

    Returns:
        int64 ``(B,)``; None for None.

    Raises:
        ValueError: for an unknown class, or another number of classes than queries.

    Example:
        >>> class_indices("jay", ("jay", "wren"), torch.rand(2, 3, 8, 8))
        tensor([0, 0])
    """
    if target is None:
        return None
    targets = [target] if np.ndim(target) == 0 else list(target)
    targets = targets * len(inputs) if len(targets) == 1 else targets
    if len(targets) != len(inputs):
        raise ValueError(
            f"target must be one class for all or one per query: got {len(targets)} for {len(inputs)} queries"
        )
    return torch.tensor([_class_index(label, classes) for label in targets], device=inputs.device)


def _class_index(target: Any, classes: tuple[str, ...]) -> int:
    if isinstance(target, str) and target in classes:
        return classes.index(target)
    index = plain_value(target)
    if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(classes):
        return index
    first_classes = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ValueError(f"target {target!r} is none of the {len(classes)} classes {first_classes}")


def for_display(inputs: Tensor) -> Tensor:
    """Queries as figures show them: signals as they are, whose axis has their units, and images scaled to [0, 1].

    Args:
        inputs: queries ``(B, C, *spatial)``.

    Returns:
        The same shape.

    Example:
        >>> for_display(torch.tensor([[[2.0, 4.0]]])), for_display(torch.tensor([[[[2.0, 4.0]]]]))
        (tensor([[[2., 4.]]]), tensor([[[[0., 1.]]]]))
    """
    return inputs.detach() if inputs.dim() == 3 else stretch(inputs)


def stretch(inputs: Tensor) -> Tensor:
    """Each query scaled to [0, 1] by its smallest and largest value, for display.

    Args:
        inputs: queries ``(B, ...)``.

    Returns:
        The same shape; zeros for a query whose values are all equal.

    Example:
        >>> stretch(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([[0.0000, 1.0000, 0.5000]])
    """
    flat = inputs.detach().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return ((flat - low) / span).view_as(inputs)
