"""What queries are compared with: support sets, memory banks, and the scores against them."""

from captum_fam.support.support_set import (
    Aggregate,
    EmbeddedSupport,
    SimilarityToSupport,
    SupportSet,
    as_support_set,
    check_embedding,
    check_embedding_sizes,
    embed_images,
    plain_arithmetic,
)

__all__ = [
    "Aggregate",
    "EmbeddedSupport",
    "SimilarityToSupport",
    "SupportSet",
    "as_support_set",
    "check_embedding",
    "check_embedding_sizes",
    "embed_images",
    "plain_arithmetic",
]
