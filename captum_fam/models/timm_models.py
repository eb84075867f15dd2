"""Models of timm as embedding models."""

from __future__ import annotations

import difflib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.attr import TokenGrid
from captum_fam.backbones import WeightsError, last_feature_map
from captum_fam.models.checkpoints import Layout, load_weights
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.pooling import GAP


def load_timm(name: str, weights: str | Path | None = None, layer: str | None = None) -> EmbeddingModel:
    """Build a model of timm without its classifier.

    Args:
        name: as in ``timm.list_models()``, with or without the tag of its weights: ``"resnet50.a1_in1k"``.
        weights: ``"DEFAULT"``: the pretrained ones, downloaded once; a file with a state dict; None: random ones.
        layer: dotted name of the module to explain; None: the last feature map, for a ViT that gives its class token
            the input of the last attention.

    Raises:
        ImportError: without timm.
        ValueError: for an unknown model, or one whose last feature map is not found: name a layer.
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
    size = config["input_size"][-1]
    where, grid, pooling = _find_layer(model, size, layer)
    return EmbeddingModel(
        name=f"timm/{name}",
        model=model,
        layer=where,
        size=size,
        any_size=not model.pretrained_cfg.get("fixed_input_size", False),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        token_grid=grid,
        pooling=pooling,
        interpolation=config["interpolation"] if config["interpolation"] in ("bicubic", "bilinear") else "bilinear",
        evaluation_crop=(round(size / config["crop_pct"]), size),
        layout=None if layout is None else layout.name,
    )


def _find_layer(model: Any, size: int, layer: str | None) -> tuple[str, TokenGrid | None, nn.Module | None]:
    """The layer to explain, how its tokens are laid out, and GAP if that makes the embedding of it."""
    probe = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if layer is None:
        layer = _last_layer(model, probe)
    elif layer not in dict(model.named_modules()):
        raise ValueError(f"layer {layer!r} is no module of {type(model).__name__}; model.named_modules() lists them")
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        with torch.no_grad():
            embedding = model(probe)
    finally:
        handle.remove()
    (activation,) = outputs
    if activation.dim() == 3:
        return layer, TokenGrid(prefix_tokens=getattr(model, "num_prefix_tokens", 0)), None
    channels_last = activation.shape[-1] == model.num_features != activation.shape[1]
    grid = TokenGrid() if channels_last else None
    pooled = GAP()(activation if grid is None else grid(activation))
    makes_embedding = pooled.shape == embedding.shape and torch.allclose(pooled, embedding, rtol=1e-4, atol=1e-5)
    return layer, grid, GAP() if makes_embedding else None


@torch.no_grad()
def _last_layer(model: Any, probe: Tensor) -> str:
    if model.forward_features(probe).dim() == 4:
        return last_feature_map(model, probe)
    if not hasattr(model, "blocks"):
        raise ValueError(f"the last layer of {type(model).__name__} is not found; name one with layer=...")
    last = f"blocks.{len(model.blocks) - 1}"
    # After the last attention the other tokens do not reach the class token.
    return f"{last}.norm1" if getattr(model, "global_pool", None) == "token" else last


def _did_you_mean(names: list[str]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else ""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError('models of timm need timm: pip install "captum-fam[models]"') from error
    return timm
