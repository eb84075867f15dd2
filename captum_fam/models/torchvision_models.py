"""Classification networks of torchvision as embedding models: by name, without classifier, with the layer to explain.

The embedding of a convolutional network is the global average of the last feature map. So each feature of the
embedding is one channel of the explained layer. VGG and AlexNet flatten the last feature map instead; here they are cut
after the map and averaged too. ConvNeXt and MaxViT keep the modules between the average and the classifier, as in timm.
The embedding of ViT is the class token, the embedding of Swin the average of the tokens.
"""

from __future__ import annotations

import difflib
import pickle
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from captum_fam._text import first_line
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.downloads import GIVE_A_FILE, check_reachable
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.model_settings import NO_SETTINGS, ModelSettings
from captum_fam.models.pooled_layer import OnePosition, layer_of
from captum_fam.models.weights_file import WeightsError, is_there, weights_in_words
from captum_fam.pooling import GAP


def torchvision_names() -> list[str]:
    """All classification models of the installed torchvision.

    Returns:
        Names as in ``torchvision.models``, in alphabetical order.

    Example:
        >>> "resnet50" in torchvision_names()
        True
    """
    names: list[str] = models.list_models(module=models)
    return names


def load_torchvision(
    name: str, weights: str | Path | None = None, settings: ModelSettings = NO_SETTINGS
) -> EmbeddingModel:
    """Build a network of torchvision without its classifier.

    Args:
        name: name as in ``torchvision.models``: ``"resnet50"``, ``"squeezenet1_0"``, ``"swin_t"``, ...
        weights: ``"DEFAULT"`` or another name of torchvision's pretrained weights, which are downloaded once; or the
            path of a file with a state dict, with or without the classifier; None for random weights. Default: None.
        settings: settings of the user. If ``layer`` is not set, :func:`~captum_fam.find_layer` finds the layer: the
            layer whose output is pooled into the embedding, and for most weights of ViT the input of the first block.
            Default: none.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: for an unknown network or layer, a layer without positions, a size that the network does not take,
            or an output other than the embedding.
        WeightsError: (a ``ValueError``) if the weights cannot be downloaded or read, or belong to another network.
        ImportError: for a file of ``.safetensors`` without the library.

    Example:
        >>> net = load_torchvision("resnet50", "DEFAULT")
        >>> fam = LayerFAM(net.model, net.layer)
    """
    if name not in torchvision_names():
        close = difflib.get_close_matches(name, torchvision_names())
        hint = f"did you mean {' or '.join(close)}?" if close else 'list_models("torchvision") lists them'
        raise ValueError(f"model {name!r} is no classification network of torchvision; {hint}")
    settings.refuse_output(f"torchvision/{name}")
    pretrained = models.get_model_weights(name)
    default = pretrained["DEFAULT"].transforms()
    preprocessing, layout = default, None
    if weights in pretrained.__members__:
        model = _download(name, pretrained[weights])
        _remove_classifier(model)
        preprocessing = pretrained[weights].transforms()
    else:
        model = models.get_model(name, weights=None, **_WITHOUT_WEIGHTS.get(name, {}))
        classifier = _remove_classifier(model)
        if weights is not None:
            layout = _load_file(model, weights, classifier, list(pretrained.__members__))
    model.eval()
    size = getattr(model, "image_size", preprocessing.crop_size[0])  # ViT is built for one size of images
    any_size = not isinstance(model, models.VisionTransformer | models.MaxVit)
    if not any_size and settings.size not in (None, size, (size, size)):
        raise ValueError(f"size={settings.size}: torchvision/{name} takes images of {size} pixels only")
    size = settings.size or size
    found_layer = layer_of(model, size, any_size, settings.layer)
    is_pooled = settings.layer is None and found_layer.token_grid is None
    has_norm = isinstance(model, models.ConvNeXt | models.MaxVit)
    return EmbeddingModel(
        name=f"torchvision/{name}",
        model=model,
        layer=found_layer.name,
        size=size,
        any_size=any_size,
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        token_grid=found_layer.token_grid,
        pooling=GAP() if is_pooled else None,
        head=OnePosition(model.get_submodule("classifier")) if is_pooled and has_norm else None,
        interpolation=default.interpolation.value,
        evaluation_crop=(default.resize_size[0], default.crop_size[0]),
        layout=None if layout is None else layout.name,
    )


# Their random initialization takes seconds and is not needed. Their pretrained weights expect an input that the network
# transforms once more.
_INCEPTION = {"init_weights": False, "transform_input": True}
_WITHOUT_WEIGHTS: dict[str, dict[str, bool]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def _download(name: str, weights: Any) -> nn.Module:
    target = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    remedy = f"{GIVE_A_FILE}, or put the downloaded file at {target}"
    if not target.exists():
        check_reachable(weights.url, f"the weights of {name} from {weights.url}", remedy)
    try:
        model: nn.Module = models.get_model(name, weights=weights)
    except pickle.UnpicklingError as error:
        # The message of torch is left out: it advises to switch off what keeps a file from running code.
        raise WeightsError(f"{target} holds no weights of {name}; delete it, so that it is downloaded again") from error
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsError(
            f"cannot download the weights of {name} from {weights.url} ({first_line(error)}); {remedy}"
        ) from error
    return model


def _remove_classifier(model: nn.Module) -> tuple[str, ...]:
    """Remove the classifier from the network; returns the names of the removed modules."""
    if isinstance(model, models.VGG | models.AlexNet):
        model.avgpool = GAP()
    if isinstance(model, models.DenseNet):
        model.features.add_module("relu", nn.ReLU())  # the network calls a function here, which no hook can see
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


def _load_file(model: nn.Module, weights: str | Path, classifier: tuple[str, ...], pretrained: list[str]) -> Layout:
    if not is_there(weights):
        raise WeightsError(
            f"{weights_in_words(weights)}: neither a file nor the name of pretrained weights, which are "
            f"{', '.join(pretrained)}"
        )
    layout = Layout(
        "torchvision",
        # The files of DenseNet have the parameter names of an older torchvision: denselayer1.norm.1.weight.
        rules=((r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2"),),
        ignored="|".join(rf"{re.escape(part)}\." for part in classifier),
    )
    return load_weights(model, weights, [layout])
