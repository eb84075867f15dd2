"""Reading weights from the files that people have: many containers, prefixes and names for the same network."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam._files import need
from captum_fam.models.inert_pickle import load_inert

# Where training scripts put the state dict; "embedding" is MetaOptNet's, "state" CloserLook's.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "state", "embedding")
# Parts of a name that DataParallel and torch.compile add.
_WRAPPERS = ("module", "_orig_mod")
_SHOWN = 10


class WeightsError(ValueError):
    """Weights that cannot be had, or do not fit the model; the message says what to do."""


@dataclass(frozen=True)
class Layout:
    r"""How a repository names the parameters of a network.

    Attributes:
        name: of the repository, for messages.
        rules: pairs of a regular expression and its replacement, applied one after another to each key.
        part: the network is what lies below this prefix, which is removed; the rest of the file is no part of it.
        ignored: a regular expression for keys, without the prefix, that the embedding has no use for. Default: none.
        negative_slope: of the authors' LeakyReLUs, 0 for ReLU; None (default): that of the network here.
        normalization: mean and deviation, for all channels, of the authors' images; None (default): as registered.

    Example:
        >>> Layout("MoCo", rules=((r"^fc\.", "head."),), part="encoder_q.").rename("encoder_q.fc.weight")
        'head.weight'
    """

    name: str
    rules: tuple[tuple[str, str], ...] = ()
    part: str = ""
    ignored: str = r"(?!)"
    negative_slope: float | None = None
    normalization: tuple[float, float] | None = None

    def rename(self, key: str) -> str | None:
        """The name here of a parameter of the file; None for what is no part of the network."""
        name = key.removeprefix(self.part)
        if not key.startswith(self.part) or re.match(self.ignored, name):
            return None
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


OWN_LAYOUT = Layout("captum-fam")


def read_checkpoint(path: str | Path) -> Any:
    """Read what is in a file: ``.safetensors``, or of ``torch.save`` in the zip format or the one before torch 1.6.

    No code of the file is run: ``torch.load(weights_only=True)`` reads the file, and where that refuses,
    :func:`~captum_fam.models.inert_pickle.load_inert`, which knows the classes of lemniscate as inert records.

    Raises:
        WeightsError: (a ``ValueError``) if there is no such file, it is broken, or it names anything but tensors and
            plain data; the message says what.
        ImportError: for ``.safetensors`` without the library.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass
    except Exception as error:  # a broken file fails in as many ways as there are formats
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"weights {path} cannot be read: {reason}") from error
    try:
        return load_inert(path)
    except ValueError as error:
        raise WeightsError(f"weights {path} cannot be read: {error}") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a file, under any of the usual keys, without ``module.`` and ``_orig_mod.`` in its names.

    Returns:
        Tensors on the CPU. Where the file has torch's versions of the modules, they are kept as torch keeps them, in
        the attribute ``_metadata``.

    Raises:
        WeightsError: as :func:`read_checkpoint`, or if there is no state dict of tensors in the file.
        ImportError: as :func:`read_checkpoint`.

    Example:
        >>> read_state_dict("moco_v1_200ep_pretrain.pth.tar").keys()
        odict_keys(['encoder_q.conv1.weight', ...])
    """
    return find_state_dict(read_checkpoint(path), path)


def find_state_dict(checkpoint: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in what :func:`read_checkpoint` gave."""
    for key in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise WeightsError(f"weights {path} hold no state dict; save model.state_dict()")
    strange = [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"weights {path} hold no state dict of tensors: {_list(strange)} are none")
    state = OrderedDict((_unwrapped(key), value) for key, value in checkpoint.items())
    versions = getattr(checkpoint, "_metadata", None)
    if isinstance(versions, Mapping):
        _set_versions(state, {_unwrapped(module): version for module, version in versions.items()})
    return state


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], layouts: Sequence[Layout] = (OWN_LAYOUT,)
) -> Layout:
    """Load the weights of a network from a file of any of the given layouts.

    Args:
        model: gets the weights; it may itself be wrapped by DataParallel or compiled.
        weights: a file, or the state dict in it.
        layouts: how the file may name them; the one that fits best is taken.

    Returns:
        The layout that was found.

    Raises:
        WeightsError: if a parameter is missing, left over or of another shape under every layout; the message lists
            them for the layout that fits best. Counters of batch normalization may be missing, as in files of torch
            before 0.4.1.
        ImportError: for ``.safetensors`` without the library.

    Example:
        >>> net = torchvision.models.resnet18(num_classes=128)
        >>> load_weights(net, "moco.pth.tar", [Layout("MoCo", part="encoder_q.")]).name
        'MoCo'
    """
    state = weights if isinstance(weights, Mapping) else read_state_dict(weights)
    own = model.state_dict()
    fits = [_Fit(layout, state, own) for layout in layouts]
    best = min(fits, key=lambda fit: (not fit.found, fit.n_problems))
    if best.n_problems:
        source = "weights" if isinstance(weights, Mapping) else f"weights {weights}"
        raise WeightsError(f"{source} do not fit {type(model).__name__}, read as of {best.layout.name}: {best}")
    model.load_state_dict(best.state(), strict=False)
    return best.layout


class _Fit:
    """What is wrong with a state dict, if it is of a layout."""

    def __init__(self, layout: Layout, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        self.layout = layout
        # The network's names without wrappers, as those of the file are, and its names to the letter.
        self._own_names = {_unwrapped(name): name for name in own}
        self._own = own
        self._file = state
        self.found = {name: key for key in state if (name := layout.rename(key)) is not None}
        self.missing = [name for name in self._own_names if name not in self.found and not _is_counter(name)]
        self.unexpected = [
            key for name, key in self.found.items() if name not in self._own_names and not _is_counter(name)
        ]
        self.reshaped = [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[self._own_names[name]].shape)}"
            for name, key in self.found.items()
            if name in self._own_names and state[key].shape != own[self._own_names[name]].shape
        ]
        self.n_problems = len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def state(self) -> dict[str, Tensor]:
        """The tensors of the file under the names of the network, with the versions of its modules."""
        state = OrderedDict(
            (self._own_names[name], self._file[key]) for name, key in self.found.items() if name in self._own_names
        )
        _set_versions(state, self._versions())
        return state

    def _versions(self) -> Mapping[str, Any]:
        """Some modules bring old weights up to date by these; of a plain dictionary all are taken for new."""
        versions: Mapping[str, Any] = self._own._metadata  # type: ignore[attr-defined]
        theirs = getattr(self._file, "_metadata", None)
        if theirs is None:
            return versions
        renamed = {}
        for module, version in theirs.items():
            name = self.layout.rename(f"{module}." if module else "")
            if name is not None:
                renamed[name.removesuffix(".")] = version
        return {name: renamed.get(_unwrapped(name), version) for name, version in versions.items()}

    def __str__(self) -> str:
        problems = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        return "; ".join(f"{len(keys)} {what}: {_list(keys)}" for what, keys in problems.items() if keys)


def _set_versions(state: OrderedDict[str, Tensor], versions: Mapping[str, Any]) -> None:
    state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = need("safetensors", extra="models", purpose=f"reading {path}")
    try:
        state: dict[str, Tensor] = need("safetensors.torch", extra="models", purpose=f"reading {path}").load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"weights {path} cannot be read: {error}") from error
    return state


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
