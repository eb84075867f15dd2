"""Models of timm as embedding models."""

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
    """All models of the installed timm, without the tags of their weights.

    Raises:
        ImportError: without timm.
    """
    found: list[str] = _import_timm().list_models()
    return found


def load_timm(name: str, weights: str | Path | None = None, layer: str | None = None) -> EmbeddingModel:
    """Build a model of timm without its classifier.

    Args:
        name: as in ``timm.list_models()``, with or without the tag of its weights: ``"resnet50.a1_in1k"``.
        weights: ``"DEFAULT"``: the pretrained ones, downloaded once; a file with a state dict; None (default): random
            ones.
        layer: dotted name of the module to explain; None (default): what :func:`~captum_fam.find_layer` finds, the
            last feature map or tokens, and for most weights of a ViT that gives its class token the input of the first
            block.

    Raises:
        ImportError: without timm.
        ValueError: for an unknown model, one in which no layer is found, or a layer without positions.
        WeightsError: if the weights cannot be downloaded or read, or belong to another model.
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
    found = layer_of(model, size, any_size, layer)
    # A ConvNeXt normalizes the average.
    has_norm = isinstance(getattr(model, "head", None), timm.layers.NormMlpClassifierHead)
    heads = [None, OnePosition(model.head)] if has_norm else [None]
    pooling, head = global_average(model, found, probe_image(model, size), heads)
    return EmbeddingModel(
        name=f"timm/{name}",
        model=model,
        layer=found.name,
        size=size,
        any_size=any_size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        token_grid=found.token_grid,
        pooling=pooling,
        head=head,
        interpolation=config["interpolation"] if config["interpolation"] in ("bicubic", "bilinear") else "bilinear",
        evaluation_crop=(round(size / config["crop_pct"]), size),
        layout=None if layout is None else layout.name,
    )


def _layout(model: Any) -> Layout:
    """Timm's own names, of which the classifier is left out."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    parts = (classifier,) if isinstance(classifier, str) else classifier
    return Layout("timm", ignored="|".join(rf"{part}\." for part in parts) or r"(?!)")


def _import_timm() -> Any:
    return need("timm", extra="models", purpose="a model of timm")
