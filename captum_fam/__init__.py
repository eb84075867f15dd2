"""Explanations for vision models that decide by similarity, as Captum attributions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers and editors see the types; a test holds this block equal to the table below
    from captum_fam.attr import FoundLayer as FoundLayer
    from captum_fam.attr import LayerCorrespondence as LayerCorrespondence
    from captum_fam.attr import LayerFAM as LayerFAM
    from captum_fam.attr import LayerPairs as LayerPairs
    from captum_fam.attr import LayerSimilarityCAM as LayerSimilarityCAM
    from captum_fam.attr import LayerSimilarityShapley as LayerSimilarityShapley
    from captum_fam.attr import TokenGrid as TokenGrid
    from captum_fam.attr import Views as Views
    from captum_fam.attr import find_layer as find_layer
    from captum_fam.attr import register_method as register_method
    from captum_fam.explanation import BatchExplainer as BatchExplainer
    from captum_fam.explanation import Explainer as Explainer
    from captum_fam.explanation import Explanation as Explanation
    from captum_fam.explanation import explain as explain
    from captum_fam.explanation import explain_pairs as explain_pairs
    from captum_fam.models import EmbeddingModel as EmbeddingModel
    from captum_fam.models import create_model as create_model
    from captum_fam.models import register_model as register_model
    from captum_fam.similarity import register_similarity as register_similarity
    from captum_fam.support import Comparison as Comparison
    from captum_fam.support import MemoryBank as MemoryBank
    from captum_fam.support import Neighbors as Neighbors
    from captum_fam.support import SimilarityToSupport as SimilarityToSupport
    from captum_fam.support import Support as Support
    from captum_fam.support import SupportPerQuery as SupportPerQuery
    from captum_fam.support import SupportSet as SupportSet

__version__ = "0.1.0"

# The module of each public name. A module is imported when a name of it is first used: most modules import torch,
# which takes seconds, and `captum-fam --help` should print at once.
_HOMES = {
    "BatchExplainer": "captum_fam.explanation",
    "Comparison": "captum_fam.support",
    "EmbeddingModel": "captum_fam.models",
    "Explainer": "captum_fam.explanation",
    "Explanation": "captum_fam.explanation",
    "FoundLayer": "captum_fam.attr",
    "LayerCorrespondence": "captum_fam.attr",
    "LayerFAM": "captum_fam.attr",
    "LayerPairs": "captum_fam.attr",
    "LayerSimilarityCAM": "captum_fam.attr",
    "LayerSimilarityShapley": "captum_fam.attr",
    "MemoryBank": "captum_fam.support",
    "Neighbors": "captum_fam.support",
    "SimilarityToSupport": "captum_fam.support",
    "Support": "captum_fam.support",
    "SupportPerQuery": "captum_fam.support",
    "SupportSet": "captum_fam.support",
    "TokenGrid": "captum_fam.attr",
    "Views": "captum_fam.attr",
    "create_model": "captum_fam.models",
    "explain": "captum_fam.explanation",
    "explain_pairs": "captum_fam.explanation",
    "find_layer": "captum_fam.attr",
    "register_method": "captum_fam.attr",
    "register_model": "captum_fam.models",
    "register_similarity": "captum_fam.similarity",
}
_MODULES = (
    "attr",
    "callbacks",
    "explanation",
    "functional",
    "metrics",
    "models",
    "pooling",
    "similarity",
    "support",
    "visualization",
)

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name or module when it is first used (PEP 562), and keep the name for later uses."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Public names and modules for tab completion, whether they are imported already or not."""
    return sorted({*globals(), *_HOMES, *_MODULES})
