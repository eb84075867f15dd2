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
        gate: whether the tensor is the gate of what it multiplies.
        factor: ``(B, 1)``, what the embedding was rescaled by, sample by sample, since it was last computed.
        where: the positions of the elements.
    """

    gate: Gate = Gate.NONE
    factor: Tensor | None = None
    where: Where | None = None


_NOTHING = Note()


def note_of(value: object) -> Note:
    """The note that a tensor carries; an empty note for everything else."""
    note = getattr(value, "_captum_fam", None) if isinstance(value, Tensor) else None
    return note if isinstance(note, Note) else _NOTHING


def has_note(tensor: Tensor) -> bool:
    """Whether the tensor was made on the way back, by a function that was followed."""
    return isinstance(getattr(tensor, "_captum_fam", None), Note)


def mark(tensor: Tensor, what: object) -> None:
    """Let a tensor carry a note, or the mark of a run. It ends with the tensor: no table has to be kept."""
    tensor._captum_fam = what  # type: ignore[attr-defined]


def is_marked(tensor: Tensor, what: object) -> bool:
    """Whether a tensor carries this very mark."""
    return getattr(tensor, "_captum_fam", None) is what


def tensors_among(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors among the arguments of a call, also those in a list."""
    for value in (*args, *kwargs.values()):
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Tensor):
                yield one


def layer_tensors_among(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors among the arguments that depend on the layer: weights do not require a gradient on the way back."""
    return (tensor for tensor in tensors_among(args, kwargs) if tensor.requires_grad)


def gate_of_result(name: str, before: list[Note]) -> Gate:
    """The gate level of what a function gives.

    Args:
        name: of the function of torch.
        before: the notes of the arguments that depend on the layer.
    """
    entry = find_rule(name)
    if entry is not None and entry.gate is not None:
        return entry.gate
    # expand_as and its like take only the shape of their second tensor.
    levels = [note.gate for note in (before[:1] if name.endswith("_as") else before)]
    if not levels:
        return Gate.NONE
    lowest = min(levels)
    if name in ("mul", "matmul", "bmm", "einsum"):
        # A gate times a constant is a gate; what a gate multiplied is as it was.
        return lowest if len(levels) == 1 or lowest >= Gate.WEIGHT else Gate.NONE
    if is_rearranging(name) or name in _ELEMENTWISE_WITH_CONSTANT:
        return lowest
    # Attention weights that were pooled are weights; activations that went through a convolution are features.
    return lowest if lowest >= Gate.WEIGHT and name in _LINEAR else Gate.NONE
