"""Explanation methods by name.

A method is anything made as ``method(scores, layer, **options)`` from a
:class:`~captum_fam.SimilarityToSupport` and a module, with ``attribute(inputs, target=...)`` that gives
``(B, N, *spatial)``: the layer methods of Captum and of this package. A new one is one more entry in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor

from captum_fam.attr import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, LayerSimilarityShapley
from captum_fam.attr.account import drop_noise
from captum_fam.attr.baselines import (
    LayerCenterPrior,
    LayerEigenCAM,
    LayerMeanActivation,
    LayerRandom,
    LayerUniform,
    SupportBlindAttribution,
)
from captum_fam.similarity import Similarity
from captum_fam.support import SimilarityToSupport

Method = Callable[..., Any]

METHODS: dict[str, Method] = {
    "fam": LayerFAM,
    "similarity-cam": LayerSimilarityCAM,
    "shapley": LayerSimilarityShapley,
    "grad-cam": LayerGradCam,
    "correspondence": LayerCorrespondence,
    "mean-activation": LayerMeanActivation,
    "eigen-cam": LayerEigenCAM,
    "random": LayerRandom,
    "center": LayerCenterPrior,
    "uniform": LayerUniform,
}


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


def without_noise(attribution: object, maps: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
    """Maps of a method; one that is only rounding noise is exactly zero, and no scale can bring it up.

    A map is noise where its largest value is within a millionth of the magnitude of the scores
    (:func:`~captum_fam.attr.account.drop_noise`). That goes for maps in the unit of the score, activation times
    gradient. Maps of :class:`~captum_fam.LayerCorrespondence` are cosines of positions, and beside one. Maps of
    :class:`~captum_fam.LayerFAM` are in the unit of the activation, and its contributions are zero where they have
    cancelled to rounding; baselines subtract nothing: these stay as they are.

    Args:
        attribution: the method that made the maps.
        maps: ``(B, N, *spatial)``.
        magnitude: gives that of the scores, ``(B,)``, where it is needed: :func:`magnitude_of_scores`.
    """
    if isinstance(attribution, LayerFAM | SupportBlindAttribution):
        return maps
    if isinstance(attribution, LayerCorrespondence):
        return drop_noise(maps, maps.new_ones(len(maps)))
    return drop_noise(maps, magnitude())


@torch.no_grad()
def magnitude_of_scores(scores: SimilarityToSupport, similarities: Tensor) -> Tensor:
    """What rounding noise of maps is relative to: the largest score of any class before the foil, ``(B,)``.

    A score less its foil will not do: of two equal scores nothing is left, and noise is large beside nothing. Nor will
    a small distance: it is the difference of two embeddings, so that the score of the zero embedding counts too.

    Args:
        scores: of the classes.
        similarities: of each query to each support, ``(B, K)``.
    """
    embedded, sizes = scores.embedded(), similarities.abs()
    if type(scores.similarity).explained is not Similarity.explained:
        vectors = embedded.embeddings.to(sizes.dtype)
        sizes = torch.maximum(sizes, scores.similarity.score(torch.zeros_like(vectors[:1]), vectors).abs())
    return embedded.class_scores(sizes).amax(1)
