"""The weights of face-api's face network: a manifest in JSON, and the numbers of all tensors one after another."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_fam._text import printable
from captum_fam.models.weights_file import WeightsError

Floats = NDArray[np.float64]

_N_SHOWN = 3


def face_state(
    numbers: bytes, manifest: bytes, convolutions: Mapping[str, Sequence[int]], head: Sequence[int]
) -> dict[str, Tensor]:
    r"""The weights of the network as PyTorch lays them out.

    A tensor of the file is float32, or uint8 numbers :math:`q` that stand for :math:`\min + q \cdot \mathrm{scale}`
    with the two numbers of the manifest. Each convolution :math:`w * x + b` is followed by a scale and a shift for
    each channel; both are multiplied into the convolution, in float64:

    .. math:: s (w * x + b) + c = (s w) * x + (s b + c)

    Args:
        numbers: content of the file of numbers.
        manifest: content of the file of names, shapes and quantizations.
        convolutions: shape of the filters of each convolution as in PyTorch, ``(out, in, height, width)``, by its name
            in the file.
        head: shape of the linear layer as in PyTorch, ``(out, in)``.

    Returns:
        float32 tensors by name: ``NAME.weight`` and ``NAME.bias`` of each convolution, ``fc.weight`` of the head.

    Raises:
        WeightsError: (a ``ValueError``) if the manifest is none, if its names and shapes are not those of the network,
            if the numbers are too few or too many, or if one of them is NaN or infinite.

    Example:
        >>> entries = [
        ...     {
        ...         "name": "fc",
        ...         "shape": [1, 2],
        ...         "dtype": "float32",
        ...         "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0},
        ...     }
        ... ]
        >>> face_state(b"\x00\x04", json.dumps([{"weights": entries}]).encode(), {}, head=(2, 1))
        {'fc.weight': tensor([[-1.],
                [ 1.]])}
    """
    try:
        arrays = _arrays(numbers, _entries(manifest), _shapes(convolutions, head))
        state = {}
        for name in convolutions:
            scale = arrays[f"{name}/scale/weights"]
            # From (height, width, in, out), as TensorFlow has them, to (out, in, height, width).
            filters = arrays[f"{name}/conv/filters"].transpose(3, 2, 0, 1)
            state[f"{name}.weight"] = _tensor(filters * scale[:, None, None, None], name)
            bias = arrays[f"{name}/conv/bias"] * scale + arrays[f"{name}/scale/biases"]
            state[f"{name}.bias"] = _tensor(bias, name)
        return state | {"fc.weight": _tensor(arrays["fc"].T, "fc")}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"weights of face-api's network: {error}") from error


def _shapes(convolutions: Mapping[str, Sequence[int]], head: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shapes in the file, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (n_out, n_in, height, width) in convolutions.items():
        shapes[f"{name}/conv/filters"] = (height, width, n_in, n_out)
        for part in ("conv/bias", "scale/weights", "scale/biases"):
            shapes[f"{name}/{part}"] = (n_out,)
    return shapes | {"fc": tuple(reversed(head))}


def _entries(manifest: bytes) -> list[dict[str, Any]]:
    """The entries of the manifest, in the order of the numbers."""
    groups = json.loads(manifest)
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        raise ValueError("the manifest must be a list of one group of tensors")
    entries = groups[0].get("weights")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("the manifest has no list of tensors under the key weights")
    return entries


def _arrays(
    numbers: bytes, entries: Sequence[Mapping[str, Any]], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, Floats]:
    names = Counter(str(entry.get("name")) for entry in entries)
    if names != Counter(expected.keys()):
        unknown = [name for name, count in names.items() if name not in expected or count > 1]
        missing = [name for name in expected if name not in names]
        raise ValueError(f"the tensors are not those of the network: {_listed(unknown or missing)}")
    arrays, start = {}, 0
    for entry in entries:
        name = str(entry["name"])
        if entry.get("shape") != list(expected[name]):
            raise ValueError(f"{name} has the shape {printable(entry.get('shape'))}, expected {list(expected[name])}")
        values, n_bytes = _values(numbers, start, math.prod(expected[name]), entry)
        arrays[name] = values.reshape(expected[name])
        start += n_bytes
    if start != len(numbers):
        raise ValueError(f"the file of numbers has {len(numbers)} bytes, the manifest {start}")
    return arrays


def _values(numbers: bytes, start: int, count: int, entry: Mapping[str, Any]) -> tuple[Floats, int]:
    """The ``count`` numbers that begin at the byte ``start``, and how many bytes they take."""
    name, quantization = entry["name"], entry.get("quantization")
    if entry.get("dtype") != "float32":
        raise ValueError(f"{name} is of {printable(entry.get('dtype'))}, expected float32")
    n_bytes = count * (4 if quantization is None else 1)
    if len(numbers) - start < n_bytes:
        raise ValueError(f"the file of numbers ends within {name}")
    if quantization is None:
        return np.frombuffer(numbers, "<f4", count, start).astype(np.float64), n_bytes
    if not isinstance(quantization, dict) or quantization.get("dtype") != "uint8":
        raise ValueError(f"{name} is quantized in another way than to uint8: {printable(quantization)}")
    scale, least = (_number(quantization.get(key), f"{key} of {name}") for key in ("scale", "min"))
    return least + scale * np.frombuffer(numbers, np.uint8, count, start).astype(np.float64), n_bytes


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{what} must be a finite number, got {printable(value)}")
    return float(value)


def _tensor(values: Floats, name: str) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has numbers that are NaN or infinite")
    return tensor


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 60) for name in names[:_N_SHOWN])
    return f"{shown}, and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else shown
