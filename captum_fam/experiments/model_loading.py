"""Models of the experiments by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from captum_fam.demo.network import load_demo_network
from captum_fam.experiments.cut import cut_earlier, split_model
from captum_fam.experiments.linear_head import load_head
from captum_fam.experiments.split_model import TwoPartModel
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
    """A model by name.

    Args:
        name: as for :func:`~captum_fam.models.create_model`; ``demo``, the network of ``captum-fam demo``; or
            ``package.module:factory``, a function without arguments that returns a :class:`TwoPartModel` or an
            :class:`~captum_fam.models.EmbeddingModel`.
        weights: a file of weights; None: the pretrained ones for networks of torchvision and timm, which are
            downloaded once, random ones for those of the paper.
        head: what stands in the place of the model's: a file as for :func:`load_head`, or a
            module, of which ``torch.nn.Identity()`` leaves the pooled activation.
        pooling: before the head in place of the model's, ``"gap"``, ``"gmp"``, ``"lse"`` or ``"gem"``.
        layer: where the network is cut, as for :func:`split_model`; of a :class:`TwoPartModel` a module of its
            backbone.

    Raises:
        ValueError: for an unknown name, weights or a head that do not fit, a factory of something else, a pooling
            for which the model's own head was not trained, or a layer at which the model cannot be cut.
    """
    made: object
    if ":" in name:
        if weights is not None:
            raise ValueError(f"weights: {name} brings its own; leave them out")
        module, _, attribute = name.partition(":")
        made = getattr(importlib.import_module(module), attribute)()
    elif name == "demo":
        net = load_demo_network()
        made = TwoPartModel(net.features, net.pooling, size=84, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    else:
        made = create_model(name, weights or default_weights(name))
    model = split_model(made, layer) if isinstance(made, EmbeddingModel) else made
    if not isinstance(model, TwoPartModel):
        raise ValueError(f"model {name}: its factory gave a {type(model).__name__}, expected a TwoPartModel")
    if layer is not None and model is made:
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
        raise ValueError(f"pooling: {name} has a head, trained for the pooling that it has; give another head with it")
    model.tail.pooling = POOLINGS[pooling]()
