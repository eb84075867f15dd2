"""Loads weights from files of many repositories, which differ in containers, prefixes and parameter names."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captum_fam._text import printable, printable_path
from captum_fam.models.state_dicts import (
    StateDict,
    find_state_dicts,
    is_equal,
    is_part,
    listed,
    set_versions,
    unwrapped,
)
from captum_fam.models.weights_file import WeightsError, read_checkpoint, split_weights, weights_in_words

# Names that classifiers have; where a network has nn.Identity under such a name, its classifier was removed.
_CLASSIFIERS = {"fc", "classifier", "head", "heads", "last_linear", "linear", "logits"}
# The moving average of a network, and the trained network that is taken in its place, as in files of MoCo.
_AVERAGES = {"encoder_k": "encoder_q"}


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


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], layouts: Sequence[Layout] = (OWN_LAYOUT,)
) -> Layout:
    """Load the weights of a network from a file of any of the given layouts.

    The state dict is found under any keys of the file (``state_dict``, ``teacher``, ``model_ema``, ...), and the
    network under any prefix of its names (``backbone.``, ``encoder_q.``, Lightning's ``model.``, ...), if exactly one
    choice fits the network. If several fit and differ, ``FILE#KEY`` names the key or the prefix, as in
    ``dino.pth#teacher``. Of MoCo's two encoders, the query encoder is taken.

    Args:
        model: network that gets the weights; it may be wrapped by DataParallel, or compiled.
        weights: path of a file, or a state dict.
        layouts: ways in which the file may name the parameters; the layout that fits best is taken. Default: the names
            in the network.

    Returns:
        The layout that fits best. If the network lies at an unusual place in the file, the place is part of the name
        of the layout: ``"captum-fam, teacher, prefix backbone."``.

    Raises:
        WeightsError: (a ``ValueError``) if the file cannot be read, or if under every layout a parameter is missing,
            unexpected, or of another shape or kind of number. The message lists these parameters for the layout that
            fits best. Counters of batch normalization may be missing, as in files of torch before 0.4.1, and weights of
            a classifier that the network has replaced by ``nn.Identity`` are ignored. Also if several choices fit, or
            if a parameter has NaN or inf.
        ImportError: for a file of safetensors without the library.

    Example:
        >>> net = torchvision.models.resnet18(num_classes=128)
        >>> load_weights(net, "moco.pth.tar", [Layout("MoCo", part="encoder_q.")]).name
        'MoCo'
    """
    if isinstance(weights, Mapping):
        content, source, file, part = weights, "weights", "", None
    else:
        path, part = split_weights(weights)
        content, source, file = read_checkpoint(path), weights_in_words(path), printable_path(path)
    network = _Network(model)
    fit = _choose(_fits(network, find_state_dicts(content, source), layouts, part), part, source, file)
    fit.check_values(source)
    model.load_state_dict(fit.state(), strict=False)
    return replace(fit.layout, name=f"{fit.layout.name}{fit.where}") if fit.where else fit.layout


def _fits(network: _Network, states: Sequence[StateDict], layouts: Sequence[Layout], part: str | None) -> list[_Fit]:
    """How each state dict fits under each layout; if none does without a prefix, under each prefix too."""
    fits = [_Fit(network, state, "", layout) for state in states for layout in layouts]
    if not any(fit.n_problems == 0 and fit.is_part(part) for fit in fits):
        for state in states:
            for prefix in state.prefixes(max(1, network.n_needed // 2)):
                fits += [_Fit(network, state, prefix, layout) for layout in layouts]
    return fits


def _choose(fits: Sequence[_Fit], part: str | None, source: str, file: str) -> _Fit:
    """The only fit without problems."""
    wanted = [fit for fit in fits if fit.is_part(part)]
    if not wanted:
        places = dict.fromkeys(".".join(fit.places) for fit in fits if fit.places)
        raise WeightsError(f"{source} hold no {printable(part)}; they hold {listed(list(places)) or 'one state dict'}")
    fitting = [fit for fit in wanted if fit.n_problems == 0]
    if not fitting:
        # A layout that knows no key of the file has only missing names, and could win by a small count: it comes last.
        best = min(wanted, key=lambda fit: (not fit.found, fit.n_problems))
        raise WeightsError(
            f"{source} do not fit {best.network.name}, read as of {best.layout.name}{best.where}: {best}"
        )
    if part is None:
        places_of_all = {fit.places for fit in fitting}
        fitting = [
            fit for fit in fitting if fit.trained_places == fit.places or fit.trained_places not in places_of_all
        ]
    best = fitting[0]
    # The names of one state dict may follow several layouts, of which the first counts.
    rivals = [
        fit
        for fit in fitting
        if (fit.place.where, fit.prefix) != (best.place.where, best.prefix) and not is_equal(fit.state(), best.state())
    ]
    if rivals:
        names = list(dict.fromkeys(".".join(fit.places) for fit in (best, *rivals)))
        how = f"choose one with {file}#{printable(names[0], 100)}" if file else "give one of them"
        raise WeightsError(f"{source} hold several networks that fit {best.network.name}: {listed(names)}; {how}")
    return best


class _Network:
    """The names of a network, without the prefixes of wrappers.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.state = model.state_dict()
        # The keys of the file have lost the prefixes of wrappers; the names of the network may still have them.
        self.keys = {unwrapped(key): key for key in self.state}
        self.n_needed = sum(not _is_counter(name) for name in self.keys)
        self.parameters = {unwrapped(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        self._removed = tuple(
            f"{unwrapped(name)}."
            for name, module in model.named_modules()
            if isinstance(module, nn.Identity) and name.rpartition(".")[2] in _CLASSIFIERS
        )

    def is_removed(self, name: str) -> bool:
        """Whether a name of a file belongs to a classifier that the network has replaced by ``nn.Identity``."""
        return name.startswith(self._removed)


class _Fit:
    """How a state dict fits a network under a layout: the keys that match, and the problems.

    Names in ``found`` and ``missing`` are names of the network without the prefixes of wrappers.

    Args:
        network: the network.
        place: the state dict.
        prefix: prefix of the names of the network in the state dict.
        layout: the layout.
    """

    def __init__(self, network: _Network, place: StateDict, prefix: str, layout: Layout) -> None:
        self.network = network
        self.place = place.under(prefix) if prefix else place
        self.prefix = prefix
        self.layout = layout
        file, keys = self.place.tensors, network.keys
        self.found = {name: key for key in file if (name := layout.rename(key)) is not None}
        self.missing = [name for name in keys if name not in self.found and not _is_counter(name)]
        self.unexpected = [
            f"{prefix}{key}"
            for name, key in self.found.items()
            if name not in keys and not _is_counter(name) and not network.is_removed(name)
        ]
        self.reshaped, self.of_other_kind = [], []
        for name, key in self.found.items():
            if name in keys:
                wanted = network.state[keys[name]]
                if file[key].shape != wanted.shape:
                    self.reshaped.append(f"{prefix}{key} {tuple(file[key].shape)} instead of {tuple(wanted.shape)}")
                elif _kind(file[key]) != _kind(wanted) and not _is_counter(name):
                    self.of_other_kind.append(f"{prefix}{key} {file[key].dtype} instead of {wanted.dtype}")
        self.n_problems = sum(map(len, (self.missing, self.unexpected, self.reshaped, self.of_other_kind)))

    @property
    def places(self) -> tuple[str, ...]:
        """The keys and prefixes under which the network lies in the file."""
        prefixes = f"{self.prefix}{self.layout.part}".split(".")
        return (*self.place.where, *filter(None, prefixes))

    @property
    def trained_places(self) -> tuple[str, ...]:
        """The places of the network of which this one is a moving average; the same places for no such average."""
        return tuple(_AVERAGES.get(place, place) for place in self.places)

    @property
    def where(self) -> str:
        """Where the network lies, as an addition to the name of the layout; empty for the usual places."""
        where = "" if self.place.is_usual else f", {printable('.'.join(self.place.where), 100)}"
        return f"{where}, prefix {printable(self.prefix, 100)}" if self.prefix else where

    def is_part(self, part: str | None) -> bool:
        """Whether the network lies under the keys and prefixes that a user has chosen."""
        return part is None or is_part(part, self.places)

    def check_values(self, source: str) -> None:
        """Refuse NaN and inf, and weights that are all zero."""
        state, n_matrices, n_zero, broken = self.state(), 0, 0, []
        for name in self.found:
            key = self.network.keys.get(name)
            if key is None or not state[key].is_floating_point():
                continue
            values = state[key].to(self.network.state[key].dtype)
            is_weight = name in self.network.parameters
            # A buffer may hold inf, such as the mask of an attention.
            if values.isnan().any() or ((is_weight or "running_" in name) and values.isinf().any()):
                broken.append(f"{self.prefix}{self.found[name]}")
            if is_weight and values.dim() > 1:
                n_matrices += 1
                n_zero += not values.any()
        if broken:
            raise WeightsError(f"{source} hold NaN or inf in {listed(broken)}; take the file of an earlier epoch")
        if n_matrices and n_zero == n_matrices:
            raise WeightsError(f"{source} are all zero: every image would have the same embedding; take another file")

    def state(self) -> dict[str, Tensor]:
        """The tensors of the file under the names of the network, with the versions of the modules."""
        keys = self.network.keys
        state = OrderedDict((keys[name], self.place.tensors[key]) for name, key in self.found.items() if name in keys)
        set_versions(state, self._versions())
        return state

    def _versions(self) -> Mapping[str, Any]:
        """The versions of the modules by which the weights were saved.

        Some modules convert the weights of an old version when they load them. Weights without versions, as in a plain
        dictionary, count as weights of the newest version.
        """
        versions: Mapping[str, Any] = self.network.state._metadata  # type: ignore[attr-defined]
        file_versions = getattr(self.place.tensors, "_metadata", None)
        if file_versions is None:
            return versions
        renamed = {}
        for module, version in file_versions.items():
            name = self.layout.rename(f"{module}." if module else "")
            if name is not None:
                renamed[name.removesuffix(".")] = version
        return {name: renamed.get(unwrapped(name), version) for name, version in versions.items()}

    def __str__(self) -> str:
        problems = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.reshaped,
            "of another kind": self.of_other_kind,
        }
        return "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys)


def _kind(tensor: Tensor) -> str:
    """The kind of the numbers."""
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _is_counter(name: str) -> bool:
    """Whether a name is that of a counter of batch normalization, which no embedding needs."""
    return name.endswith("num_batches_tracked")
