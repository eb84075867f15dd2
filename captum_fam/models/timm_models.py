"""Models of timm as embedding models: by name, without classifier, with the layer to explain."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from captum_fam._files import need
from captum_fam._text import first_line
from captum_fam.found_preprocessing import evaluation_crop_of
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.downloads import GIVE_A_FILE, hub
from captum_fam.models.efficientnet_names import efficientnet_pytorch_layout
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.model_settings import NO_SETTINGS, ModelSettings
from captum_fam.models.pooled_layer import OnePosition, global_average, layer_of, probe_image

_REMEDY = f"{GIVE_A_FILE}, or load the model once with a network and copy the cache of Hugging Face (HF_HOME)"


def timm_names() -> list[str]:
    """All models of the installed timm.

    Returns:
        Names without the tags of weights, in alphabetical order.

    Raises:
        ImportError: if timm is not installed.
    """
    names: list[str] = _import_timm().list_models()
    return names


def load_timm(name: str, weights: str | Path | None = None, settings: ModelSettings = NO_SETTINGS) -> EmbeddingModel:
    """Build a model of timm without its classifier.

    Args:
        name: name as in ``timm.list_models()``, with or without the tag of the weights: ``"resnet50.a1_in1k"``; or a
            model on a hub, ``hf-hub:NAME``.
        weights: ``"DEFAULT"`` for the pretrained weights, which are downloaded once; or the path of a file with a state
            dict; None for random weights. Default: None.
        settings: settings of the user. If ``layer`` is not set, :func:`~captum_fam.find_layer` finds the layer: the
            last feature map or the last tokens, and the input of the first block for most weights of a ViT whose
            embedding is the class token. A network for one size of images is made for the ``size`` that is set.
            Default: none.

    Returns:
        The model in eval mode.

    Raises:
        ImportError: if timm is not installed.
        ValueError: for an unknown model, a model in which no layer is found, a layer without positions, a size for
            which the model cannot be made, or an output other than the embedding.
        WeightsError: (a ``ValueError``) if the weights cannot be downloaded or read, or belong to another model.

    Example:
        >>> load_timm("resnet18").layer
        'layer4'
    """
    timm = _import_timm()
    settings.refuse_output(f"timm/{name}")
    is_on_hub = name.startswith(("hf-hub:", "hf_hub:"))
    if not is_on_hub and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm_names())
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"model {name!r} is no model of timm; {hint}")
    model: Any
    if weights == "DEFAULT" or is_on_hub:
        with hub(f"timm/{name}", _REMEDY):
            model = _make(name, weights == "DEFAULT", settings)
    else:
        model = _make(name, False, settings)
    layout = None
    if weights is not None and weights != "DEFAULT":
        layout = load_weights(model, weights, _layouts(name, model))
    model.eval()
    config = timm.data.resolve_model_data_config(model)
    side, any_size = config["input_size"][-1], not model.pretrained_cfg.get("fixed_input_size", False)
    size = settings.size or side
    channels = config["input_size"][0]
    found_layer = layer_of(model, size, any_size, settings.layer, channels)
    # In a ConvNeXt a normalization follows the average.
    has_norm = isinstance(getattr(model, "head", None), timm.layers.NormMlpClassifierHead)
    heads = [None, OnePosition(model.head)] if has_norm else [None]
    pooling, head = global_average(model, found_layer, probe_image(model, size, channels), heads)
    return EmbeddingModel(
        name=f"timm/{name}",
        model=model,
        layer=found_layer.name,
        size=size,
        any_size=any_size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        token_grid=found_layer.token_grid,
        pooling=pooling,
        head=head,
        interpolation=config["interpolation"] if config["interpolation"] in ("bicubic", "bilinear") else "bilinear",
        evaluation_crop=evaluation_crop_of(model),
        layout=None if layout is None else layout.name,
    )


def _make(name: str, pretrained: bool, settings: ModelSettings) -> Any:
    """The network without its classifier, for images of the size that is set."""
    timm = _import_timm()
    is_fixed = settings.size is not None and getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=0, **({"img_size": settings.size} if is_fixed else {})
        )
    except (TypeError, AssertionError, ValueError) as error:
        if not is_fixed:
            raise
        raise ValueError(
            f"size={settings.size}: timm/{name} cannot be made for this size ({first_line(error)})"
        ) from error


def _layouts(name: str, model: Any) -> list[Layout]:
    """The parameter names of timm, without the classifier, and those of another port of the network."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    parts = (classifier,) if isinstance(classifier, str) else classifier
    layouts = [Layout("timm", ignored="|".join(rf"{part}\." for part in parts) or r"(?!)")]
    # timm's networks without "tf_" pad images in another way: weights of the port would load, and mean less.
    if name.startswith("tf_efficientnet_"):
        layouts.append(efficientnet_pytorch_layout([len(stage) for stage in model.blocks]))
    return layouts


def _import_timm() -> Any:
    return need("timm", extra="models", purpose="a model of timm")
