"""torchvision's classification networks as embedding models: by name, without classifier, with the layer to explain.

The embedding of a convolutional network is the global average of its last feature map, so that each of its features
is one channel of the explained layer. VGG and AlexNet, which flatten that map instead, are cut there too. ConvNeXt
and MaxViT keep what follows the average up to the classifier, as in timm. ViT gives its class token; Swin the average
of its tokens.
"""

from __future__ import annotations

import difflib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from captum_fam.attr import TokenGrid
from captum_fam.attr.layer_search import FoundLayer, find_layer, measure_layer
from captum_fam.pooling import GAP


@dataclass(frozen=True)
class Backbone:
    """An embedding model and what has to be known to explain it.

    Attributes:
        name: torchvision's name.
        model: ``(B, 3, H, W)`` to embeddings ``(B, J)``, in eval mode.
        layer: dotted name of the module to explain.
        size: side of the images that the weights were made for, in pixels.
        any_size: whether images of another size will do.
        mean: of the RGB channels, that the weights expect to be taken off.
        std: that they expect to be divided by.
        token_grid: lays out the tokens of the layer, where it gives tokens.
    """

    name: str
    model: nn.Module
    layer: str
    size: int
    any_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    token_grid: TokenGrid | None = None


class WeightsError(ValueError):
    """Weights that cannot be had, or do not fit the model; the message says what to do."""


def backbone_names() -> list[str]:
    """The networks that :func:`load_backbone` knows: all classification models of the installed torchvision."""
    names: list[str] = models.list_models(module=models)
    return names


def load_backbone(name: str, weights: str | Path | None = "DEFAULT", layer: str | None = None) -> Backbone:
    """Build a network without its classifier.

    Args:
        name: as in ``torchvision.models``: ``"resnet50"``, ``"squeezenet1_0"``, ``"swin_t"``, ...
        weights: ``"DEFAULT"`` or another name of torchvision's pretrained weights, which are downloaded once; the
            path of a file with a state dict, ``.safetensors`` or what ``torch.save`` wrote, with or without the
            classifier; None: random weights.
        layer: dotted name of the module to explain; None: what :func:`~captum_fam.find_layer` finds, the one whose
            output is pooled into the embedding, and for most weights of ViT the input of the first block.

    Raises:
        ValueError: for an unknown network or layer, or a layer without positions.
        WeightsError: if the weights cannot be downloaded or read, or belong to another network.

    Example:
        >>> backbone = load_backbone("resnet50")
        >>> fam = LayerFAM(backbone.model, backbone.layer)
    """
    if name not in backbone_names():
        close = difflib.get_close_matches(name, backbone_names())
        hint = f"did you mean {' or '.join(close)}?" if close else "backbone_names() lists them"
        raise ValueError(f"model {name!r} is no classification network of torchvision; {hint}")
    pretrained = models.get_model_weights(name)
    chosen = pretrained["DEFAULT"]
    if weights in pretrained.__members__:
        chosen = pretrained[weights]
        model = _download(name, chosen)
        classifier = _remove_classifier(model)
    else:
        model = models.get_model(name, weights=None, **_WITHOUT_WEIGHTS.get(name, {}))
        classifier = _remove_classifier(model)
        if weights is not None:
            _load_weights(model, Path(weights), classifier, name, list(pretrained.__members__))
    model.eval()
    preprocessing = chosen.transforms()
    size = getattr(model, "image_size", preprocessing.crop_size[0])  # ViT is built for one
    any_size = not isinstance(model, models.VisionTransformer | models.MaxVit)
    found = layer_of(model, size, any_size, None if layer is None else _check_layer(model, layer, name))
    return Backbone(
        name=name,
        model=model,
        layer=found.name,
        size=size,
        any_size=any_size,
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        token_grid=found.token_grid,
    )


def layer_of(model: nn.Module, size: int, any_size: bool, layer: str | None = None) -> FoundLayer:
    """The layer to explain, measured on an image of colors that vary smoothly.

    Args:
        model: ``(B, 3, H, W)`` to embeddings ``(B, J)``, in eval mode.
        size: side of its images.
        any_size: whether smaller ones will do.
        layer: the dotted name of one that was chosen; None: the best one.

    Raises:
        ValueError: if there is none, or that one has no positions.
    """
    probe = probe_image(model, min(size, 224) if any_size else size)
    return find_layer(model, probe) if layer is None else measure_layer(model, probe, layer)


def probe_image(model: nn.Module, size: int) -> Tensor:
    """Smooth random colors, ``(1, 3, size, size)``, on the device of the model; always the same."""
    coarse = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0), device="cpu")
    image = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return image.to(next((parameter.device for parameter in model.parameters()), image.device))


class OnePosition(nn.Module):
    """A head of feature maps applied to their average: ``(B, N) -> (B, J)``.

    Args:
        head: takes ``(B, N, h, w)`` and begins with global average pooling, or works position by position.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Tensor) -> Tensor:
        embedding: Tensor = self.head(pooled[:, :, None, None])
        return embedding


# Their random initialisation takes seconds; their pretrained weights go with the input transformed once more.
_INCEPTION = {"init_weights": False, "transform_input": True}
_WITHOUT_WEIGHTS: dict[str, dict[str, bool]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def _download(name: str, weights: Any) -> nn.Module:
    try:
        model: nn.Module = models.get_model(name, weights=weights)
    except (OSError, RuntimeError, HTTPException) as error:
        target = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise WeightsError(
            f"cannot download the weights of {name} from {weights.url} ({error}); give a file with "
            f"--weights FILE (weights=... in Python), or put that download at {target}"
        ) from error
    return model


def _remove_classifier(model: nn.Module) -> tuple[str, ...]:
    """Cut the network before its classifier; gives the names of the modules that went."""
    if isinstance(model, models.VGG | models.AlexNet):
        model.avgpool = GAP()
    if isinstance(model, models.DenseNet):
        model.features.add_module("relu", nn.ReLU())  # in the forward it is a function, which no hook can see
    name = next(name for name in ("fc", "classifier", "head", "heads") if hasattr(model, name))
    if isinstance(model, models.ConvNeXt | models.MaxVit):
        last = len(model.classifier) - 1
        model.classifier[last] = nn.Identity()
        return (f"classifier.{last}",)
    setattr(model, name, GAP() if isinstance(model, models.SqueezeNet) else nn.Identity())
    auxiliary = [name for name in ("aux1", "aux2", "AuxLogits") if hasattr(model, name)]
    for part in auxiliary:
        setattr(model, part, None)
    return name, *auxiliary


def _check_layer(model: nn.Module, layer: str, name: str) -> str:
    known = dict(model.named_modules())
    if layer not in known or not layer:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"layer {layer!r} is no module of {name}; it has {children}, and what lies in them")
    return layer


def _load_weights(model: nn.Module, path: Path, classifier: tuple[str, ...], name: str, pretrained: list[str]) -> None:
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file, and none of the pretrained ones {', '.join(pretrained)}")
    state, metadata = _read_state(path)
    own = model.state_dict()
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{name}." for name in classifier))}
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    ordered = OrderedDict(state)
    # Modules bring old checkpoints up to date by the version noted here.
    ordered._metadata = metadata or own._metadata  # type: ignore[attr-defined]
    report = None if shapes else model.load_state_dict(ordered, strict=False)
    problems = {"of another shape": shapes}
    if report is not None:
        # Checkpoints older than torch 0.4.1 have no counters.
        missing = [key for key in report.missing_keys if not key.endswith("num_batches_tracked")]
        problems = {"missing": missing, "unexpected": report.unexpected_keys}
    if any(problems.values()):
        said = "; ".join(f"{len(keys)} {what}: {_shorten(keys)}" for what, keys in problems.items() if keys)
        raise WeightsError(f"weights {path} do not belong to {name}: {said}")


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file, without the prefixes of DataParallel and torch.compile, and torch's metadata."""
    try:
        loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise WeightsError(f"weights {path} cannot be read as a plain state dict of tensors ({reason})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"weights {path} hold no state dict of tensors; save model.state_dict()")
    metadata = getattr(loaded, "_metadata", None)
    state = dict(loaded)
    while prefix := next((p for p in ("module.", "_orig_mod.") if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        metadata = metadata and {key.removeprefix(prefix): value for key, value in metadata.items()}
    # torchvision's own files of DenseNet have the names of an older one: denselayer1.norm.1.weight.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): v for key, v in state.items()}, metadata


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(f'reading {path} needs safetensors: pip install "captum-fam[models]"') from error
    return load_file(path)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
