"""Models of timm as embedding models: by name, without classifier, with the layer to explain."""

from __future__ import annotations

import difflib
from http.client import HTTPException
from pathlib import Path
from typing import Any

from captum_fam._files import need
from captum_fam.models.checkpoints import Layout, WeightsError, load_weights
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.pooled_layer import OnePosition, global_average, layer_of, probe_image


def timm_names() -> list[str]:
    """All models of the installed timm.

    Returns:
        Names without the tags of weights, in alphabetical order.

    Raises:
        ImportError: if timm is not installed.
    """
    names: list[str] = _import_timm().list_models()
    return names


def load_timm(name: str, weights: str | Path | None = None, layer: str | None = None) -> EmbeddingModel:
    """Build a model of timm without its classifier.

    Args:
        name: name as in ``timm.list_models()``, with or without the tag of the weights: ``"resnet50.a1_in1k"``.
        weights: ``"DEFAULT"`` for the pretrained weights, which are downloaded once; or the path of a file with a state
            dict; None for random weights. Default: None.
        layer: dotted name of the module to explain; None for the layer that :func:`~captum_fam.find_layer` finds: the
            last feature map or the last tokens, and the input of the first block for most weights of a ViT whose
            embedding is the class token. Default: None.

    Returns:
        The model in eval mode.

    Raises:
        ImportError: if timm is not installed.
        ValueError: for an unknown model, a model in which no layer is found, or a layer without positions.
        WeightsError: (a ``ValueError``) if the weights cannot be downloaded or read, or belong to another model.
    """
    timm = _import_timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm_names())
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"model {name!r} is none of timm; {hint}")
    try:
        model: Any = timm.create_model(name, pretrained=weights == "DEFAULT", num_classes=0)
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsError(
            f"cannot download the weights of timm/{name} ({error}); give the path of a file in place of DEFAULT"
        ) from error
    layout = None
    if weights is not None and weights != "DEFAULT":
        layout = load_weights(model, weights, [_layout(model)])
    model.eval()
    config = timm.data.resolve_model_data_config(model)
    size, any_size = config["input_size"][-1], not model.pretrained_cfg.get("fixed_input_size", False)
    found_layer = layer_of(model, size, any_size, layer)
    # In a ConvNeXt a normalization follows the average.
    has_norm = isinstance(getattr(model, "head", None), timm.layers.NormMlpClassifierHead)
    heads = [None, OnePosition(model.head)] if has_norm else [None]
    pooling, head = global_average(model, found_layer, probe_image(model, size), heads)
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
        evaluation_crop=(round(size / config["crop_pct"]), size),
        layout=None if layout is None else layout.name,
    )


def _layout(model: Any) -> Layout:
    """The parameter names of timm, without the classifier."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    parts = (classifier,) if isinstance(classifier, str) else classifier
    return Layout("timm", ignored="|".join(rf"{part}\." for part in parts) or r"(?!)")


def _import_timm() -> Any:
    return need("timm", extra="models", purpose="a model of timm")
