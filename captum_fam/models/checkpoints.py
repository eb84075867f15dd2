"""Reads weights from files of many repositories, which differ in containers, prefixes and parameter names."""

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

# Keys under which training scripts save the state dict: "embedding" in MetaOptNet, "state" in CloserLook.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "state", "embedding")
# Prefixes of parameter names that DataParallel and torch.compile add.
_WRAPPERS = ("module", "_orig_mod")
_N_LISTED = 10


class WeightsError(ValueError):
    """Weights that cannot be found, downloaded or read, or that do not fit the model; the message names the remedy.

    Example:
        >>> try:
        ...     weights = read_state_dict("no-such.pth")
        ... except WeightsError as error:
        ...     print(error)
        weights no-such.pth: no such file
    """


@dataclass(frozen=True)
class Layout:
    r"""How a repository names the parameters of a network.

    Attributes:
        name: name of the repository, for messages.
        rules: pairs of a regular expression and its replacement, applied one after another to each key. Default: none.
        part: prefix of the keys of the network, which is removed; other keys are ignored. Default: no prefix.
        ignored: regular expression for keys, without the prefix, that the embedding does not need. Default: none.
        negative_slope: slope of the authors' LeakyReLUs for negative inputs, 0 for ReLU; None for the slope in the
            network of this package. Default: None.
        normalization: mean and standard deviation of the authors' images, the same for all channels; None for the
            values in the registration. Default: None.

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
        """The name in the network of a key of the file.

        Args:
            key: key of the state dict.

        Returns:
            The name of the parameter; None if the key is no part of the network.
        """
        name = key.removeprefix(self.part)
        if not key.startswith(self.part) or re.match(self.ignored, name):
            return None
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


OWN_LAYOUT = Layout("captum-fam")
"""The layout of files that this package writes: the names of the network itself."""


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of ``.safetensors``, or of ``torch.save`` in the zip format or in the format before torch 1.6.

    No code of the file is run. ``torch.load(weights_only=True)`` reads most files. Files that it refuses are read by
    :func:`~captum_fam.models.inert_pickle.load_inert`, which turns objects of lemniscate into records without code.

    Args:
        path: the file.

    Returns:
        The content of the file, with all tensors on the CPU.

    Raises:
        WeightsError: (a ``ValueError``) if there is no such file, if the file is broken, or if it names anything but
            tensors and plain data; the message says what is wrong.
        ImportError: for a file of ``.safetensors`` without the library.

    Example:
        >>> torch.save({"epoch": 3}, "checkpoint.pth")
        >>> read_checkpoint("checkpoint.pth")
        {'epoch': 3}
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
    except Exception as error:  # a broken file can raise any exception
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"weights {path} cannot be read: {reason}") from error
    try:
        return load_inert(path)
    except ValueError as error:
        raise WeightsError(f"weights {path} cannot be read: {error}") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a file, and remove ``module.`` and ``_orig_mod.`` from its names.

    Args:
        path: file of a state dict, or of a dictionary that holds the state dict under any of the usual keys.

    Returns:
        Tensors on the CPU. If the file has torch's versions of the modules, the result has them in the attribute
        ``_metadata``, as in torch.

    Raises:
        WeightsError: (a ``ValueError``) if there is no such file, if the file is broken or names anything but tensors
            and plain data, or if it holds no state dict of tensors.
        ImportError: for a file of ``.safetensors`` without the library.

    Example:
        >>> read_state_dict("moco_v1_200ep_pretrain.pth.tar").keys()
        odict_keys(['encoder_q.conv1.weight', ...])
    """
    return find_state_dict(read_checkpoint(path), path)


def find_state_dict(checkpoint: Any, path: str | Path) -> dict[str, Tensor]:
    """Find the state dict in the content of a file, and remove ``module.`` and ``_orig_mod.`` from its names.

    Args:
        checkpoint: result of :func:`read_checkpoint`.
        path: the file, for messages.

    Returns:
        As :func:`read_state_dict`.

    Raises:
        WeightsError: (a ``ValueError``) if there is no state dict of tensors.

    Example:
        >>> dict(find_state_dict({"state_dict": {"module.weight": torch.ones(1)}, "epoch": 3}, "checkpoint.pth"))
        {'weight': tensor([1.])}
    """
    for key in _CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise WeightsError(f"weights {path} hold no state dict; save model.state_dict()")
    no_tensors = [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if no_tensors:
        raise WeightsError(f"weights {path} hold no state dict of tensors: {_list(no_tensors)} are no tensors")
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
        model: network that gets the weights; it may be wrapped by DataParallel, or compiled.
        weights: path of a file, or a state dict.
        layouts: ways in which the file may name the parameters; the layout that fits best is taken. Default: the names
            in the network.

    Returns:
        The layout that fits best.

    Raises:
        WeightsError: (a ``ValueError``) if the file cannot be read, or if under every layout a parameter is missing,
            unexpected or of another shape. The message lists these parameters for the layout that fits best. Counters
            of batch normalization may be missing, as in files of torch before 0.4.1.
        ImportError: for a file of ``.safetensors`` without the library.

    Example:
        >>> net = torchvision.models.resnet18(num_classes=128)
        >>> load_weights(net, "moco.pth.tar", [Layout("MoCo", part="encoder_q.")]).name
        'MoCo'
    """
    state = weights if isinstance(weights, Mapping) else read_state_dict(weights)
    model_state = model.state_dict()
    fits = [_Fit(layout, state, model_state) for layout in layouts]
    # A layout that knows no key of the file has only missing names, and could win by a small count: it comes last.
    best = min(fits, key=lambda fit: (not fit.found, fit.n_problems))
    if best.n_problems:
        source = "weights" if isinstance(weights, Mapping) else f"weights {weights}"
        raise WeightsError(f"{source} do not fit {type(model).__name__}, read as of {best.layout.name}: {best}")
    model.load_state_dict(best.state(), strict=False)
    return best.layout


class _Fit:
    """How a state dict fits a network under a layout: the keys that match, and the problems.

    Names in ``found`` and ``missing`` are names of the network without the prefixes of wrappers.

    Args:
        layout: the layout.
        state: state dict of the file.
        model_state: state dict of the network.
    """

    def __init__(self, layout: Layout, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
        self.layout = layout
        self._file_state = state
        self._model_state = model_state
        # The keys of the file have lost the prefixes of wrappers; the names of the network may still have them.
        self._model_keys = {_unwrapped(key): key for key in model_state}
        self.found = {name: key for key in state if (name := layout.rename(key)) is not None}
        self.missing = [name for name in self._model_keys if name not in self.found and not _is_counter(name)]
        self.unexpected = [
            key for name, key in self.found.items() if name not in self._model_keys and not _is_counter(name)
        ]
        self.reshaped = [
            f"{key} {tuple(state[key].shape)} instead of {tuple(model_state[self._model_keys[name]].shape)}"
            for name, key in self.found.items()
            if name in self._model_keys and state[key].shape != model_state[self._model_keys[name]].shape
        ]
        self.n_problems = len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def state(self) -> dict[str, Tensor]:
        """The tensors of the file under the names of the network, with the versions of the modules."""
        state = OrderedDict(
            (self._model_keys[name], self._file_state[key])
            for name, key in self.found.items()
            if name in self._model_keys
        )
        _set_versions(state, self._versions())
        return state

    def _versions(self) -> Mapping[str, Any]:
        """The versions of the modules by which the weights were saved.

        Some modules convert the weights of an old version when they load them. Weights without versions, as in a plain
        dictionary, count as weights of the newest version.
        """
        versions: Mapping[str, Any] = self._model_state._metadata  # type: ignore[attr-defined]
        file_versions = getattr(self._file_state, "_metadata", None)
        if file_versions is None:
            return versions
        renamed = {}
        for module, version in file_versions.items():
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
    return ", ".join(names[:_N_LISTED]) + (f" and {len(names) - _N_LISTED} more" if len(names) > _N_LISTED else "")
