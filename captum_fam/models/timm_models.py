"""Models of timm as embedding models."""

from __future__ import annotations

import difflib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.attr.layer_search import FoundLayer
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.torchvision_models import OnePosition, WeightsError, layer_of, probe_image
from captum_fam.pooling import GAP


def load_timm(name: str, weights: str | Path | None = None, layer: str | None = None) -> EmbeddingModel:
    """Build a model of timm without its classifier.

    Args:
        name: as in ``timm.list_models()``, with or without the tag of its weights: ``"resnet50.a1_in1k"``.
        weights: ``"DEFAULT"``: the pretrained ones, downloaded once; a file with a state dict; None: random ones.
        layer: dotted name of the module to explain; None: what :func:`~captum_fam.find_layer` finds, the last feature
            map or tokens, and for most weights of a ViT that gives its class token the input of the first block.

    Raises:
        ImportError: without timm.
        ValueError: for an unknown model, one in which no layer is found, or a layer without positions.
        WeightsError: if the weights cannot be downloaded or read, or belong to another model.
    """
    timm = _timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models())
        raise ValueError(f"model {name!r} is none of timm; {_did_you_mean(close) or 'timm.list_models() lists them'}")
    try:
        model: Any = timm.create_model(name, pretrained=weights == "DEFAULT", num_classes=0)
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsError(
            f"cannot download the weights of timm/{name} ({error}); give the path of a file in place of DEFAULT"
        ) from error
    layout = None
    if weights not in (None, "DEFAULT"):
        classifier = model.pretrained_cfg.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else classifier
        layout = load_weights(model, weights, [Layout("timm", ignored="|".join(rf"{n}\." for n in names) or r"(?!)")])
    model.eval()
    config = timm.data.resolve_model_data_config(model)
    size, any_size = config["input_size"][-1], not model.pretrained_cfg.get("fixed_input_size", False)
    found = layer_of(model, size, any_size, layer)
    pooling, head = _pooling_and_head(model, found, probe_image(model, size))
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


@torch.no_grad()
def _pooling_and_head(model: Any, layer: FoundLayer, probe: Tensor) -> tuple[nn.Module | None, nn.Module | None]:
    """What makes the embedding of the layer: global average pooling, alone or with the norm of a ConvNeXt; or None."""
    outputs: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        embedding = model(probe)
    finally:
        handle.remove()
    pooling, activation = GAP(), outputs[0]
    pooled = pooling(activation if layer.token_grid is None else layer.token_grid(activation))
    heads: list[nn.Module | None] = [None]
    if isinstance(getattr(model, "head", None), _timm().layers.NormMlpClassifierHead):
        heads.append(OnePosition(model.head))
    for head in heads:
        made = pooled if head is None else head(pooled)
        if made.shape == embedding.shape and torch.allclose(made, embedding, rtol=1e-4, atol=1e-5):
            return pooling, head
    return None, None


def _did_you_mean(names: list[str]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else ""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError('models of timm need timm: pip install "captum-fam[models]"') from error
    return timm
