"""What is known of a tensor on the way back: its gate level, a rescaling of its samples, its positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_fam.attr.way_back.call import Gate
from captum_fam.attr.way_back.table import find_rule
from captum_fam.attr.way_back.tracker import is_rearranging
from captum_fam.attr.way_back.where import Where

_ELEMENTWISE_WITH_CONSTANT = frozenset(
    "add sub rsub div neg masked_fill where dropout contiguous clone type type_as to float half bfloat16 double".split()
)
_LINEAR = frozenset(
    "linear conv1d conv2d conv3d mean sum pad interpolate upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d "
    "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d amax amin".split()
)


@dataclass(frozen=True)
class Note:
    """What is known of a tensor that depends on the layer.

    Attributes:
        gate: the gate level of the tensor as a factor of a product. Default: no gate.
        factor: ``(B, 1)``, the tensor divided by the vector that was rescaled to it. Default: None, no rescaling.
        where: the positions of the elements. Default: None, not known.
    """

    gate: Gate = Gate.NONE
    factor: Tensor | None = None
    where: Where | None = None


_NOTHING = Note()


def note_of(value: object) -> Note:
    """The note of a tensor; an empty note for a tensor without a note and for other objects."""
    note = getattr(value, "_captum_fam", None) if isinstance(value, Tensor) else None
    return note if isinstance(note, Note) else _NOTHING


def has_note(tensor: Tensor) -> bool:
    """Whether a tensor has a note: the recorder has followed the function that made the tensor."""
    return isinstance(getattr(tensor, "_captum_fam", None), Note)


def mark(tensor: Tensor, what: object) -> None:
    """Attach a note or the mark of a run to a tensor, as an attribute that ends with the tensor."""
    tensor._captum_fam = what  # type: ignore[attr-defined]


def is_marked(tensor: Tensor, what: object) -> bool:
    """Whether a tensor has this mark, compared by identity."""
    return getattr(tensor, "_captum_fam", None) is what


def tensors_among(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, also tensors in a list or tuple."""
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Tensor):
                yield item


def layer_tensors_among(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments that depend on the layer: all others are detached on the way back."""
    return (tensor for tensor in tensors_among(args, kwargs) if tensor.requires_grad)


def gate_of_result(name: str, before: list[Note]) -> Gate:
    """The gate level of the result of a function.

    Args:
        name: plain name of the function of torch.
        before: the notes that the arguments that depend on the layer had before the call.

    Example:
        >>> gate_of_result("sigmoid", [Note()]), gate_of_result("mul", [Note(Gate.WEIGHT), Note()])
        (<Gate.WEIGHT: 3>, <Gate.NONE: 0>)
    """
    entry = find_rule(name)
    if entry is not None and entry.gate is not None:
        return entry.gate
    # Functions such as expand_as use only the shape of the second tensor.
    levels = [note.gate for note in (before[:1] if name.endswith("_as") else before)]
    if not levels:
        return Gate.NONE
    lowest = min(levels)
    if name in ("mul", "matmul", "bmm", "einsum"):
        # A gate times a constant is a gate, and so is a product of weights. The product of a gate and a feature is a
        # feature.
        return lowest if len(levels) == 1 or lowest >= Gate.WEIGHT else Gate.NONE
    if is_rearranging(name) or name in _ELEMENTWISE_WITH_CONSTANT:
        return lowest
    # Behind a linear function, weights are still weights (pooled attention weights), but activations are features.
    return lowest if lowest >= Gate.WEIGHT and name in _LINEAR else Gate.NONE
