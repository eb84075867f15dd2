"""Explanation methods by name.

A method is anything made as ``method(scores, layer, **options)`` from a
:class:`~captum_fam.SimilarityToSupport` and a module, with ``attribute(inputs, target=...)`` that gives
``(B, N, *spatial)``: the layer methods of Captum and of this package. A new one is one more entry in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import LayerGradCam

from captum_fam.attr import LayerCorrespondence, LayerFAM, LayerSimilarityCAM
from captum_fam.attr.baselines import (
    LayerCentrePrior,
    LayerEigenCAM,
    LayerMeanActivation,
    LayerRandom,
    LayerUniform,
)

Method = Callable[..., Any]

METHODS: dict[str, Method] = {
    "fam": LayerFAM,
    "similarity-cam": LayerSimilarityCAM,
    "grad-cam": LayerGradCam,
    "correspondence": LayerCorrespondence,
    "mean-activation": LayerMeanActivation,
    "eigen-cam": LayerEigenCAM,
    "random": LayerRandom,
    "centre": LayerCentrePrior,
    "uniform": LayerUniform,
}

# Min-max (Eq. 12) would erase the sign that a foil brings.
WITH_FOIL: dict[str, dict[str, Any]] = {"fam": {"normalization": "none"}}
"""Options that a method takes when there is a foil, unless others are asked for."""


def get_method(method: str | Method) -> tuple[str, Method]:
    """The name of a method and what makes it; a class or another callable goes by its own name.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor callable.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)} or a layer method's class, got {method!r}")
        return method, METHODS[method]
    if callable(method):
        return getattr(method, "__name__", type(method).__name__), method
    raise TypeError(f"method must be a name or a layer method's class, got {type(method).__name__}")
