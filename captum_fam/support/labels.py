"""Labels of any kind as class indices and class names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_fam._text import printable

Labels = Sequence[int] | Sequence[str] | Tensor | np.ndarray[Any, Any]
"""Labels of supports: names, or whole numbers of any type and size; a list, a tensor or an array."""

LabelRows = Sequence[Sequence[int | None]] | Sequence[Sequence[str | None]] | Tensor | np.ndarray[Any, Any]
"""Labels of K supports for each of B queries, ``(B, K)``; None stands for an entry that is no support."""

_KINDS = "whole numbers or names"


def encode_labels(
    labels: object, class_names: Sequence[str] | None, count: int, name: str = "labels"
) -> tuple[Tensor, tuple[str, ...]]:
    """Convert labels of any kind to class indices 0..C-1 and C class names.

    =============  ==============================  ======================================================
    labels         ``class_names``                 class indices and names
    =============  ==============================  ======================================================
    names          None                            the different names in alphabetical order
    names          C names, all labels among them  the order of ``class_names``
    whole numbers  None                            the different numbers, ascending; their text is the name
    whole numbers  C names                         the labels are indices 0..C-1 of ``class_names``
    =============  ==============================  ======================================================

    Numbers that are 0..C-1 already keep their values in both cases. The cost depends on the number of labels, never on
    the size of a number.

    Args:
        labels: one label per support: a list, a tuple, a tensor or an array ``(count,)``. Numbers may be of any integer
            type, negative, and of any size.
        class_names: C different names; names without a label are allowed. Default: None, the names follow from the
            labels.
        count: the number of supports.
        name: the name of the argument, for the message. Default: ``"labels"``.

    Returns:
        Class indices, int64 ``(count,)`` on the CPU, and C names.

    Raises:
        TypeError: for labels that are neither all whole numbers nor all names, or for names that are no text.
        ValueError: for another number of labels than ``count``, an index that is out of range, or a name that
            ``class_names`` lacks or has twice.

    Example:
        >>> encode_labels([20, 10_000_000, 20], None, 3)
        (tensor([0, 1, 0]), ('20', '10000000'))
        >>> encode_labels(["wren", "jay"], ["wren", "jay", "tit"], 2)
        (tensor([0, 1]), ('wren', 'jay', 'tit'))
    """
    names = None if class_names is None else check_class_names(class_names)
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim != 1:
        raise ValueError(f"{name} must have one entry per support, ({count},), got shape {tuple(labels.shape)}")
    values = _as_array(labels, name)
    if len(values) != count:
        raise ValueError(f"{name} must have one entry per support: got {len(values)} {name} for {count} supports")
    is_named = values.dtype == object and count > 0 and isinstance(values[0], str)
    if names is not None and not is_named:
        return _check_indices(values, names, name), names
    if names is None:
        different, indices = np.unique(values, return_inverse=True)
        return torch.from_numpy(indices.astype(np.int64)), tuple(map(str, different.tolist()))
    return _look_up(values, names, name), names


def encode_label_rows(
    labels: object, class_names: Sequence[str] | None, is_support: Tensor
) -> tuple[Tensor, tuple[str, ...]]:
    """Convert labels of K supports for each of B queries, as :func:`encode_labels` does.

    Args:
        labels: ``(B, K)``: a tensor, an array or nested lists.
        class_names: as for :func:`encode_labels`.
        is_support: False for entries that are no support, boolean ``(B, K)``: their labels are not read.

    Returns:
        Class indices, int64 ``(B, K)`` on the CPU, zero for entries that are no support; and C names.

    Raises:
        TypeError: for labels that are neither all whole numbers nor all names.
        ValueError: for labels of another shape, or that ``class_names`` does not fit.

    Example:
        >>> encode_label_rows([["wren", "jay"], ["jay", None]], None, torch.tensor([[True, True], [True, False]]))
        (tensor([[1, 0],
                [0, 0]]), ('jay', 'wren'))
    """
    flat = _flatten_rows(labels, tuple(is_support.shape))
    mask = is_support.flatten().tolist()
    kept = [label for label, used in zip(flat, mask, strict=True) if used]
    indices, names = encode_labels(kept, class_names, len(kept))
    encoded = torch.zeros(is_support.shape, dtype=torch.int64)
    encoded[is_support.cpu()] = indices
    return encoded, names


def check_class_names(class_names: Sequence[Any]) -> tuple[str, ...]:
    """Check that class names are texts, and convert them to a tuple.

    A class with several names, as in ``torchvision.datasets.ImageNet.classes``, gets them in one text.

    Args:
        class_names: C texts, or C tuples of texts.

    Returns:
        C names.

    Raises:
        TypeError: for a single text, or for names that are no texts.

    Example:
        >>> check_class_names([("tench", "Tinca tinca"), "goldfish"])
        ('tench, Tinca tinca', 'goldfish')
    """
    if isinstance(class_names, str | bytes):
        raise TypeError(f"class_names must be one name per class, got the single text '{printable(class_names)}'")
    joined = [", ".join(map(str, one)) if isinstance(one, tuple | list) else one for one in class_names]
    wrong = [one for one in joined if not isinstance(one, str)]
    if wrong:
        raise TypeError(f"class_names must be texts, got {type(wrong[0]).__name__}")
    return tuple(map(str, joined))


def plain_value(value: Any) -> Any:
    """A value without the wrapper of an array or tensor of no dimension.

    Args:
        value: any value.

    Example:
        >>> plain_value(torch.tensor(3)), plain_value("jay")
        (3, 'jay')
    """
    is_wrapped = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if is_wrapped else value


def _as_array(labels: object, name: str) -> np.ndarray[Any, Any]:
    """Labels as an array of integers, or an array of Python objects that are all names or all integers."""
    if isinstance(labels, str | bytes):
        raise TypeError(f"{name} must be one index or name per support, got the single name '{printable(labels)}'")
    if isinstance(labels, Set | Mapping) or not isinstance(labels, Iterable):
        raise TypeError(f"{name} must be a list, tensor or array of {_KINDS}, got {type(labels).__name__}")
    if isinstance(labels, Tensor):
        if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"{name} must be {_KINDS}, got {labels.dtype}")
        return np.asarray(labels.detach().cpu().numpy())
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return labels
    values = [plain_value(label) for label in labels]
    kinds = sorted({type(value).__name__ for value in values})
    if any(isinstance(value, bool) or not isinstance(value, int | str) for value in values):
        raise TypeError(f"{name} must be {_KINDS}, got {', '.join(kinds)}")
    if len({isinstance(value, str) for value in values}) > 1:
        raise TypeError(f"{name} must be {_KINDS}, not both, got {', '.join(kinds)}")
    # An array of Python objects holds numbers of any size; NumPy would turn numbers beyond 64 bits into floats.
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _check_indices(values: np.ndarray[Any, Any], names: tuple[str, ...], name: str) -> Tensor:
    """Labels that are indices of class names, int64."""
    for value in (values.min(), values.max()) if len(values) else ():
        if not 0 <= int(value) < len(names):
            raise ValueError(
                f"{name} must be indices 0..{len(names) - 1} of the {len(names)} class_names, got "
                f"{printable(int(value))}; without class_names, {name} may be any whole numbers"
            )
    return torch.from_numpy(values.astype(np.int64))


def _look_up(values: np.ndarray[Any, Any], names: tuple[str, ...], name: str) -> Tensor:
    """Labels that are names, as positions in class names, int64."""
    position = {one: index for index, one in enumerate(names)}
    unknown = sorted(set(values.tolist()) - position.keys())
    if unknown:
        first = ", ".join(f"'{printable(one)}'" for one in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(f"class_names lacks the label(s) {first}{more}")
    if len(position) < len(names):
        twice = next(one for index, one in enumerate(names) if position[one] != index)
        raise ValueError(f"class_names has '{printable(twice)}' twice; with such names, {name} must be indices")
    return torch.tensor([position[value] for value in values.tolist()], dtype=torch.int64)


def _flatten_rows(labels: object, shape: tuple[int, ...]) -> list[object]:
    """The labels of all rows, one behind the other; the shape is checked."""
    if isinstance(labels, Tensor | np.ndarray):
        got = tuple(labels.shape)
        flat = list(labels.reshape(-1).tolist())
    elif isinstance(labels, list | tuple) and all(
        isinstance(row, list | tuple | Tensor | np.ndarray) for row in labels
    ):
        flat = [label for row in labels for label in row]
        got = (len(labels), *{len(row) for row in labels})
    else:
        raise TypeError(f"labels must be (B, K): a tensor, an array or nested lists, got {type(labels).__name__}")
    if got != shape:
        raise ValueError(f"labels must be {shape}, one per support, got {got}")
    return flat
