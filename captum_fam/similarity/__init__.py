"""Similarities of embeddings: how similar two embeddings are, and what each feature adds to the similarity.

:class:`Similarity` describes how to write a similarity of your own; :func:`register_similarity` gives it a name.
"""

from captum_fam.similarity.base import LinearSimilarity, Similarity
from captum_fam.similarity.covariance import inverse_covariance
from captum_fam.similarity.distances import Euclidean, EuclideanDifference, Mahalanobis, MahalanobisDifference
from captum_fam.similarity.inner_products import Bilinear, Cosine, Dot
from captum_fam.similarity.learned import Learned
from captum_fam.similarity.registry import (
    SimilarityLike,
    SimilarityMaker,
    get_similarity,
    list_similarities,
    register_similarity,
    similarity_name,
)
from captum_fam.similarity.relation_head import RelationHead
from captum_fam.similarity.unit_distances import UnitEuclidean

__all__ = [
    "Bilinear",
    "Cosine",
    "Dot",
    "Euclidean",
    "EuclideanDifference",
    "Learned",
    "LinearSimilarity",
    "Mahalanobis",
    "MahalanobisDifference",
    "RelationHead",
    "Similarity",
    "SimilarityLike",
    "SimilarityMaker",
    "UnitEuclidean",
    "get_similarity",
    "inverse_covariance",
    "list_similarities",
    "register_similarity",
    "similarity_name",
]
