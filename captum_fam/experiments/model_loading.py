"""The models of the experiments by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from captum_fam.experiments.cut import cut_earlier, split_model
from captum_fam.experiments.linear_head import load_head
from captum_fam.experiments.two_part_model import AsEmbedding, TwoPartModel
from captum_fam.models import create_model, default_weights
from captum_fam.pooling import GAP, GMP, LSE, GeM

POOLINGS: dict[str, Callable[[], nn.Module]] = {"gap": GAP, "gmp": GMP, "lse": LSE, "gem": GeM}
"""Poolings by name."""


def load_model(
    name: str,
    weights: str | Path | None = None,
    head: str | Path | nn.Module | None = None,
    pooling: str | None = None,
    layer: str | None = None,
    **settings: Any,
) -> TwoPartModel:
    """Load a model by name, cut at the layer to explain.

    Args:
        name: name as in :func:`~captum_fam.models.create_model`. The factory of ``package.module:factory`` and
            ``path/to/file.py:factory`` may also return a :class:`TwoPartModel`.
        weights: file of weights; None for pretrained weights of models of libraries, which are downloaded once, for the
            weights of a factory, and for random weights of the networks of the paper; ``"none"`` for random weights.
            Default: None.
        head: head in place of the head of the model, or behind an embedding that is no pooling of the layer: a file as
            in :func:`load_head`, or a module, such as ``torch.nn.Identity()`` for no head. Default: None.
        pooling: pooling before the head in place of the pooling of the model, ``"gap"``, ``"gmp"``, ``"lse"`` or
            ``"gem"``. Default: None.
        layer: layer at which the network is cut, as in :func:`split_model`; for a :class:`TwoPartModel` a module of its
            backbone. Default: None.
        **settings: further arguments of :func:`~captum_fam.models.create_model`, such as ``size`` and ``resize``.

    Returns:
        The model in two parts, in eval mode.

    Raises:
        ValueError: for an unknown name, weights or a head that do not fit, a factory of another object, a pooling for
            which the head of the model was not trained, a pooling of a model without one, or a layer at which the model
            cannot be cut.

    Example:
        >>> load_model("demo")(torch.rand(1, 3, 84, 84)).shape
        torch.Size([1, 64])
    """
    net = create_model(name, weights or default_weights(name), **settings)
    if isinstance(net.model, TwoPartModel):
        model = net.model
        model.take(net)
        if layer is not None:
            cut_earlier(model, layer, name)
    else:
        model = split_model(net, layer)
    if pooling is not None:
        _set_pooling(model, name, pooling, head is not None)
    if head is not None:
        model.tail.head = head if isinstance(head, nn.Module) else load_head(head)
    return model.eval()


def _set_pooling(model: TwoPartModel, name: str, pooling: str, with_head: bool) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if isinstance(model.tail.pooling, AsEmbedding):
        raise ValueError(f"pooling: the embedding of {name} is no pooling of the layer at which the model is cut")
    if not with_head and not isinstance(model.tail.head, nn.Identity):
        raise ValueError(
            f"pooling: {name} has a head, which was trained for the pooling of the model; give another head too"
        )
    model.tail.pooling = POOLINGS[pooling]()
