"""Captum's side of the house: layer attributions of a similarity, and the maps that know nothing of it."""

from captum_fam.attr.baselines import (
    LayerCenterPrior,
    LayerEigenCAM,
    LayerMeanActivation,
    LayerRandom,
    LayerUniform,
)
from captum_fam.attr.layer_correspondence import LayerCorrespondence
from captum_fam.attr.layer_fam import LayerFAM
from captum_fam.attr.layer_search import FoundLayer, find_layer
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.layer_similarity_shapley import LayerSimilarityShapley
from captum_fam.attr.tokens import TokenGrid
from captum_fam.attr.views import Views

__all__ = [
    "FoundLayer",
    "LayerCenterPrior",
    "LayerCorrespondence",
    "LayerEigenCAM",
    "LayerFAM",
    "LayerMeanActivation",
    "LayerRandom",
    "LayerSimilarityCAM",
    "LayerSimilarityShapley",
    "LayerUniform",
    "TokenGrid",
    "Views",
    "find_layer",
]
