"""What a model decides with: how similar two embeddings are, and what each feature adds to it."""

from captum_fam.similarity.base import (
    Bilinear,
    Cosine,
    Dot,
    Euclidean,
    Learned,
    Mahalanobis,
    Similarity,
    SimilarityLike,
    get_similarity,
)

__all__ = [
    "Bilinear",
    "Cosine",
    "Dot",
    "Euclidean",
    "Learned",
    "Mahalanobis",
    "Similarity",
    "SimilarityLike",
    "get_similarity",
]
