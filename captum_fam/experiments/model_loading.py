"""The models of the experiments by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from captum_fam.demo.network import load_demo_network
from captum_fam.experiments.cut import cut_earlier, split_model
from captum_fam.experiments.linear_head import load_head
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.models import EmbeddingModel, create_model, default_weights
from captum_fam.pooling import GAP, GMP, LSE, GeM

POOLINGS: dict[str, Callable[[], nn.Module]] = {"gap": GAP, "gmp": GMP, "lse": LSE, "gem": GeM}
"""Poolings by name."""


def load_model(
    name: str,
    weights: str | Path | None = None,
    head: str | Path | nn.Module | None = None,
    pooling: str | None = None,
    layer: str | None = None,
) -> TwoPartModel:
    """Load a model by name, cut at the layer to explain.

    Args:
        name: name as in :func:`~captum_fam.models.create_model`; ``demo`` for the network of ``captum-fam demo``; or
            ``package.module:factory``, a function without arguments that returns a :class:`TwoPartModel` or an
            :class:`~captum_fam.models.EmbeddingModel`.
        weights: file of weights; None for pretrained weights of networks of torchvision and timm, which are downloaded
            once, and random weights of the networks of the paper. Default: None.
        head: head in place of the head of the model: a file as in :func:`load_head`, or a module, such as
            ``torch.nn.Identity()`` for no head. Default: None.
        pooling: pooling before the head in place of the pooling of the model, ``"gap"``, ``"gmp"``, ``"lse"`` or
            ``"gem"``. Default: None.
        layer: layer at which the network is cut, as in :func:`split_model`; for a :class:`TwoPartModel` a module of its
            backbone. Default: None.

    Returns:
        The model in two parts, in eval mode.

    Raises:
        ValueError: for an unknown name, weights or a head that do not fit, a factory of another object, a pooling for
            which the head of the model was not trained, or a layer at which the model cannot be cut.

    Example:
        >>> load_model("demo")(torch.rand(1, 3, 84, 84)).shape
        torch.Size([1, 64])
    """
    source: object
    if ":" in name:
        if weights is not None:
            raise ValueError(f"weights: {name} makes a model with its weights; leave out the file of weights")
        module, _, attribute = name.partition(":")
        source = getattr(importlib.import_module(module), attribute)()
    elif name == "demo":
        net = load_demo_network()
        source = TwoPartModel(net.features, net.pooling, size=84, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    else:
        source = create_model(name, weights or default_weights(name))
    model = split_model(source, layer) if isinstance(source, EmbeddingModel) else source
    if not isinstance(model, TwoPartModel):
        raise ValueError(f"model {name}: its factory gave a {type(model).__name__}, expected a TwoPartModel")
    if layer is not None and model is source:
        cut_earlier(model, layer, name)
    if pooling is not None:
        _set_pooling(model, name, pooling, head is not None)
    if head is not None:
        model.tail.head = head if isinstance(head, nn.Module) else load_head(head)
    return model.eval()


def _set_pooling(model: TwoPartModel, name: str, pooling: str, with_head: bool) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if not with_head and not isinstance(model.tail.head, nn.Identity):
        raise ValueError(
            f"pooling: {name} has a head, which was trained for the pooling of the model; give another head too"
        )
    model.tail.pooling = POOLINGS[pooling]()
