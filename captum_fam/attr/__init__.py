"""Captum's side of the house: layer attributions of a similarity."""

from captum_fam.attr.layer_correspondence import LayerCorrespondence
from captum_fam.attr.layer_fam import LayerFAM
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.tokens import TokenGrid

__all__ = ["LayerCorrespondence", "LayerFAM", "LayerSimilarityCAM", "TokenGrid"]
