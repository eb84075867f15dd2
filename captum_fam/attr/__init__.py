"""Layer attributions that explain a similarity, support-blind baselines, and the registry of map methods."""

from captum_fam.attr.attention import LayerAttention, LayerAttentionRollout
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.baselines import (
    LayerCenterPrior,
    LayerEigenCAM,
    LayerMeanActivation,
    LayerRandom,
    LayerUniform,
)
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.details import AttributionDetails
from captum_fam.attr.embedding_parts import EmbeddingParts
from captum_fam.attr.image_run import ImageRun
from captum_fam.attr.layer_correspondence import LayerCorrespondence
from captum_fam.attr.layer_fam import LayerFAM
from captum_fam.attr.layer_pairs import LayerPairs
from captum_fam.attr.layer_search import FoundLayer, find_layer
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.layer_similarity_shapley import LayerSimilarityShapley
from captum_fam.attr.pair_decomposition import PairDecomposition, PointMatch
from captum_fam.attr.registry import METHODS, MapMethod, get_method, list_methods, register_method
from captum_fam.attr.token_layer import TokenLayerAttribution
from captum_fam.attr.tokens import TokenGrid
from captum_fam.attr.views import Views

__all__ = [
    "METHODS",
    "AttributionDetails",
    "EmbeddingParts",
    "FoundLayer",
    "ImageRun",
    "LayerAttention",
    "LayerAttentionRollout",
    "LayerCall",
    "LayerCenterPrior",
    "LayerCorrespondence",
    "LayerEigenCAM",
    "LayerFAM",
    "LayerMaps",
    "LayerMeanActivation",
    "LayerPairs",
    "LayerRandom",
    "LayerSimilarityCAM",
    "LayerSimilarityShapley",
    "LayerUniform",
    "MapMethod",
    "PairDecomposition",
    "PointMatch",
    "SimilarityLayerAttribution",
    "TokenGrid",
    "TokenLayerAttribution",
    "Views",
    "find_layer",
    "get_method",
    "list_methods",
    "register_method",
]
