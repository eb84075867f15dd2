"""Finds the state dicts in what a file of weights holds: under which keys, with which prefixes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_fam._text import printable, printable_path
from captum_fam.models.weights_file import WeightsError, read_checkpoint, split_weights, weights_in_words

# Keys under which training scripts save the state dict: "embedding" in MetaOptNet, "state" in CloserLook.
_USUAL = {"state_dict", "model_state_dict", "model", "state", "embedding", "net", "network", "module", "model_state"}
# Prefixes of parameter names that DataParallel and torch.compile add.
_WRAPPERS = ("module", "_orig_mod")
_N_LISTED = 10
_DEEPEST = 3
_MOST_VISITED = 1000
_LONGEST_PREFIX = 4
# A file can be made to hold thousands of state dicts and prefixes, each of which is compared with the network.
_MOST_STATES = 16
_FEW = 16
_MOST_COMPARED = 2_000_000


@dataclass(frozen=True, eq=False)
class StateDict:
    """A state dict in a file.

    Attributes:
        where: the keys under which it lies, from the outermost to the innermost.
        tensors: the tensors by their names, without the prefixes of wrappers. The versions of the modules are in the
            attribute ``_metadata``, as in torch.
    """

    where: tuple[str, ...]
    tensors: OrderedDict[str, Tensor]

    @property
    def is_usual(self) -> bool:
        """Whether it lies where most training scripts put the one state dict of a file."""
        return _USUAL.issuperset(self.where)

    def prefixes(self, n_keys: int) -> list[str]:
        """The prefixes of names under which a network may lie.

        Args:
            n_keys: the least number of names of the network.

        Returns:
            Prefixes with their last dot that at least ``n_keys`` names have, in the order of the names. If there are
            very many, those that the fewest names share.
        """
        counts: Counter[str] = Counter()
        for name in self.tensors:
            parts = name.split(".", _LONGEST_PREFIX)[:-1]
            counts.update(".".join(parts[: i + 1]) + "." for i in range(len(parts)))
        shared = [prefix for prefix, count in counts.items() if count >= n_keys]
        most = max(_FEW, _MOST_COMPARED // max(1, len(self.tensors)))
        kept = set(sorted(shared, key=counts.__getitem__)[:most])
        return [prefix for prefix in shared if prefix in kept]

    def under(self, prefix: str) -> StateDict:
        """The part under a prefix, which is removed.

        Args:
            prefix: the prefix, with its last dot.

        Returns:
            A state dict at the same place.
        """
        inner = OrderedDict(
            (name[len(prefix) :], tensor) for name, tensor in self.tensors.items() if name.startswith(prefix)
        )
        versions = getattr(self.tensors, "_metadata", None)
        if versions is not None:
            cut = {
                f"{module}."[len(prefix) : -1]: v for module, v in versions.items() if f"{module}.".startswith(prefix)
            }
            set_versions(inner, cut)
        return StateDict(self.where, inner)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a file, and remove ``module.`` and ``_orig_mod.`` from its names.

    Args:
        path: file of a state dict, or of a dictionary that holds the state dict under any key. ``FILE#KEY`` names the
            key, if the file holds several state dicts.

    Returns:
        Tensors on the CPU. If the file has torch's versions of the modules, the result has them in the attribute
        ``_metadata``, as in torch.

    Raises:
        WeightsError: (a ``ValueError``) if there is no such file, if the file is broken or names anything but tensors
            and plain data, if it holds no state dict of tensors, or if it holds several.
        ImportError: for a file of safetensors without the library.

    Example:
        >>> torch.save({"teacher": {"module.weight": torch.ones(1)}, "epoch": 3}, "dino.pth")
        >>> list(read_state_dict("dino.pth")), list(read_state_dict("dino.pth#teacher"))
        (['weight'], ['weight'])
    """
    file, part = split_weights(path)
    source = weights_in_words(file)
    states = find_state_dicts(read_checkpoint(file), source)
    if part is not None:
        chosen = [state for state in states if is_part(part, state.where)]
        if not chosen:
            raise WeightsError(f"{source} hold no {printable(part)}, only {_places(states)}")
        states = chosen
    usual = [state for state in states if state.is_usual] or states
    # Beside the usual place there may be other things, such as a loss with weights, or a second set of the same ones.
    rivals = [state for state in states if state in usual or state.tensors.keys() == usual[0].tensors.keys()]
    if not all(is_equal(state.tensors, usual[0].tensors) for state in rivals):
        raise WeightsError(
            f"{source} hold several state dicts: {_places(rivals)}; choose one with "
            f"{printable_path(file)}#{_places(rivals[-1:])}"
        )
    return usual[0].tensors


def find_state_dicts(checkpoint: Any, source: str) -> list[StateDict]:
    """Find all state dicts in the content of a file.

    Args:
        checkpoint: content of the file.
        source: the file, for messages.

    Returns:
        The state dicts, in the order of the file; at most 16, those with the most tensors.

    Raises:
        WeightsError: (a ``ValueError``) if there is none.

    Example:
        >>> [state.where for state in find_state_dicts({"net": {"weight": torch.ones(1)}, "epoch": 3}, "weights a.pth")]
        [('net',)]
    """
    found: list[StateDict] = []
    visited: set[int] = set()

    def visit(content: Mapping[Any, Any], where: tuple[str, ...]) -> None:
        if id(content) in visited or len(visited) == _MOST_VISITED or not all(isinstance(key, str) for key in content):
            return  # the state of an optimizer has numbers as keys
        visited.add(id(content))
        if content and all(isinstance(value, Tensor) for value in content.values()):
            found.append(StateDict(where, _without_wrappers(content)))
            return
        for key, value in content.items():
            if isinstance(value, Mapping) and len(where) < _DEEPEST:
                visit(value, (*where, key))

    if isinstance(checkpoint, Mapping):
        visit(checkpoint, ())
    if not found:
        raise WeightsError(f"{source} hold no state dict{_why_none(checkpoint)}")
    kept = sorted(found, key=lambda state: -len(state.tensors))[:_MOST_STATES]
    return [state for state in found if state in kept]


def _why_none(checkpoint: Any) -> str:
    """Why there is no state dict, as the end of a sentence."""
    inner = checkpoint
    while isinstance(inner, Mapping):
        keys = [key for key in inner if isinstance(key, str) and key in _USUAL and isinstance(inner[key], Mapping)]
        if not keys or inner[keys[0]] is inner:
            break
        inner = inner[keys[0]]
    if not isinstance(inner, Mapping) or not inner:
        return "; save model.state_dict()"
    strange = [key for key in inner if not isinstance(key, str)]
    if strange:
        return (
            f": its keys are no names of parameters, the first is {printable(strange[0], 60)}; save model.state_dict()"
        )
    return (
        f" of tensors: {listed([key for key, value in inner.items() if not isinstance(value, Tensor)])} are no tensors"
    )


def is_part(part: str, place: Sequence[str]) -> bool:
    """Whether a name stands for a place in a file.

    Args:
        part: one or more keys and prefixes, with dots between them.
        place: the keys and prefixes of the place.

    Returns:
        Whether the place has these keys and prefixes, one directly after another.

    Example:
        >>> is_part("teacher", ("teacher", "backbone")), is_part("state_dict", ("state_dict_ema",))
        (True, False)
    """
    return f".{part}." in f".{'.'.join(place)}."


def is_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the same tensors.

    Args:
        first: a state dict.
        second: a state dict.

    Returns:
        Whether names, dtypes and bytes are the same, so that NaN is equal to NaN.
    """
    return first is second or (
        first.keys() == second.keys()
        and all(
            tensor.dtype == second[name].dtype
            and tensor.shape == second[name].shape
            and torch.equal(_bytes_of(tensor), _bytes_of(second[name]))
            for name, tensor in first.items()
        )
    )


def _bytes_of(tensor: Tensor) -> Tensor:
    # Not all versions of torch can compare floating-point numbers of eight bits, and NaN is not equal to NaN.
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def set_versions(state: OrderedDict[str, Tensor], versions: Mapping[str, Any]) -> None:
    """Give a state dict the versions of its modules, as torch does.

    Args:
        state: the state dict, which is changed.
        versions: version by name of the module.
    """
    state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]


def unwrapped(name: str) -> str:
    """A name without the prefixes that DataParallel and torch.compile add.

    Args:
        name: name of a parameter or a module.

    Returns:
        The name.

    Example:
        >>> unwrapped("module._orig_mod.layer1.weight")
        'layer1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def listed(names: Sequence[str]) -> str:
    """The first names, for messages.

    Args:
        names: the names.

    Returns:
        At most ten names, and the number of the others.
    """
    more = f" and {len(names) - _N_LISTED} more" if len(names) > _N_LISTED else ""
    return ", ".join(printable(name, 100) for name in names[:_N_LISTED]) + more


def _places(states: Sequence[StateDict]) -> str:
    return listed([".".join(state.where) for state in states])


def _without_wrappers(content: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    state = OrderedDict((unwrapped(key), value) for key, value in content.items())
    if len(state) < len(content):
        return OrderedDict(content)  # two names would become one
    versions = getattr(content, "_metadata", None)
    if isinstance(versions, Mapping):
        set_versions(state, {unwrapped(str(module)): known for module, known in versions.items() if _is_version(known)})
    return state


def _is_version(known: Any) -> bool:
    return isinstance(known, Mapping) and isinstance(known.get("version"), int)
