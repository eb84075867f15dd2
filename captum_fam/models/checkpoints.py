"""Reading weights from the files that people have: many containers, prefixes and names for the same network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.models.inert_pickle import load_inert
from captum_fam.models.torchvision_models import WeightsError

# Where training scripts put the state dict; "embedding" is MetaOptNet's, "state" CloserLook's.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "state", "embedding")
# Parts of a name that DataParallel and torch.compile add.
_WRAPPERS = ("module", "_orig_mod")
_SHOWN = 10


@dataclass(frozen=True)
class Layout:
    """How a repository names the parameters of a network.

    Attributes:
        name: of the repository, for messages.
        rules: pairs of a regular expression and its replacement, applied one after another to each key.
        part: the network is what lies below this prefix, which is taken off; the rest of the file is no part of it.
        ignored: a regular expression for keys, without the prefix, that the embedding has no use for.
        negative_slope: of the authors' activation functions, 0 for ReLU; None: the same as in the paper.
        normalization: mean and deviation, for all channels, of the authors' images; None: the same as in the paper.
    """

    name: str
    rules: tuple[tuple[str, str], ...] = ()
    part: str = ""
    ignored: str = r"(?!)"
    negative_slope: float | None = None
    normalization: tuple[float, float] | None = None

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
        """Our names, each with the file's name and the tensor."""
        translated = {}
        for key, value in state.items():
            name = key.removeprefix(self.part)
            if not key.startswith(self.part) or re.match(self.ignored, name):
                continue
            for pattern, replacement in self.rules:
                name = re.sub(pattern, replacement, name)
            translated[name] = key, value
        return translated


OWN_LAYOUT = Layout("captum-fam")


def read_checkpoint(path: str | Path) -> Any:
    """Read what is in a file: ``.safetensors``, or of ``torch.save`` in the zip format or the one before torch 1.6.

    No code of the file is run: it is read by ``torch.load(weights_only=True)``, and where that refuses, by
    :func:`~captum_fam.models.inert_pickle.load_inert`, which knows the classes of lemniscate as inert records.

    Raises:
        WeightsError: (a ``ValueError``) if there is no such file, it is broken, or it names anything but tensors and
            plain data; the message says what.
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

    Raises:
        WeightsError: as :func:`read_checkpoint`, or if there is no state dict of tensors in the file.

    Example:
        >>> read_state_dict("moco_v1_200ep_pretrain.pth.tar").keys()
        dict_keys(['encoder_q.conv1.weight', ...])
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
    return {".".join(part for part in key.split(".") if part not in _WRAPPERS): v for key, v in checkpoint.items()}


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], layouts: Sequence[Layout] = (OWN_LAYOUT,)
) -> Layout:
    """Load the weights of a network from a file of any of the given layouts.

    Args:
        model: gets the weights.
        weights: a file, or the state dict in it.
        layouts: how the file may name them; the one that fits best is taken.

    Returns:
        The layout that was found.

    Raises:
        WeightsError: if a parameter is missing, left over or of another shape under every layout; the message lists
            them for the layout that fits best. Counters of batch normalization may be missing, as in files of torch
            before 0.4.1.

    Example:
        >>> net = BNInception()  # for training, from the weights of ImageNet
        >>> load_weights(net.features, "bn_inception-52deb4733.pth", [IMAGENET_BN_INCEPTION])
    """
    state = weights if isinstance(weights, Mapping) else read_state_dict(weights)
    own = model.state_dict()
    fits = [_Fit(layout, layout.translate(state), own) for layout in layouts]
    best = min(fits, key=lambda fit: (not fit.found, fit.n_problems))
    if best.n_problems:
        source = "weights" if isinstance(weights, Mapping) else f"weights {weights}"
        raise WeightsError(f"{source} do not fit {type(model).__name__}, read as of {best.layout.name}: {best}")
    model.load_state_dict({name: value for name, (_, value) in best.found.items() if name in own}, strict=False)
    return best.layout


class _Fit:
    """What is wrong with a state dict, if it is of a layout."""

    def __init__(self, layout: Layout, found: Mapping[str, tuple[str, Tensor]], own: Mapping[str, Tensor]) -> None:
        self.layout = layout
        self.found = found
        self.missing = [name for name in own if name not in found and not _is_counter(name)]
        self.unexpected = [key for name, (key, _) in found.items() if name not in own and not _is_counter(name)]
        self.reshaped = [
            f"{key} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
            for name, (key, value) in found.items()
            if name in own and value.shape != own[name].shape
        ]
        self.n_problems = len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        problems = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        return "; ".join(f"{len(keys)} {what}: {_list(keys)}" for what, keys in problems.items() if keys)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        import safetensors
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'reading {path} needs safetensors: pip install "captum-fam[models]"') from error
    try:
        state: dict[str, Tensor] = load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"weights {path} cannot be read: {error}") from error
    return state


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
