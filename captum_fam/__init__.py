"""Explanations for vision models that decide by similarity, as Captum attributions."""

from captum_fam.attr import (
    FoundLayer,
    LayerCorrespondence,
    LayerFAM,
    LayerSimilarityCAM,
    LayerSimilarityShapley,
    TokenGrid,
    Views,
    find_layer,
)
from captum_fam.explanation import Explanation, explain
from captum_fam.support import SimilarityToSupport, SupportSet
from captum_fam.support.memory_bank import MemoryBank

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "FoundLayer",
    "LayerCorrespondence",
    "LayerFAM",
    "LayerSimilarityCAM",
    "LayerSimilarityShapley",
    "MemoryBank",
    "SimilarityToSupport",
    "SupportSet",
    "TokenGrid",
    "Views",
    "explain",
    "find_layer",
]
