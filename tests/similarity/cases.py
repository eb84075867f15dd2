"""All similarities of the package by the names of the reference, and vectors to compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam.similarity import (
    Bilinear,
    Cosine,
    Dot,
    Euclidean,
    EuclideanDifference,
    Mahalanobis,
    MahalanobisDifference,
    Similarity,
)
from tests import reference
from tests.perturbed_products import PerturbedProducts

B, K, J = 3, 4, 5
_GENERATOR = torch.Generator().manual_seed(11)
SQUARE = torch.randn(J, J, generator=_GENERATOR, dtype=torch.float64)
METRIC = SQUARE @ SQUARE.T

SIMILARITIES: dict[str, Similarity] = {
    "cosine": Cosine(),
    "dot": Dot(),
    "squared-euclidean": Euclidean(squared=True),
    "squared-euclidean/difference": EuclideanDifference(squared=True),
    "euclidean": Euclidean(),
    "euclidean/difference": EuclideanDifference(),
    "bilinear": Bilinear(SQUARE),
    "mahalanobis": Mahalanobis(METRIC),
    "mahalanobis/difference": MahalanobisDifference(METRIC),
}
assert set(SIMILARITIES) == set(reference.MEASURES)
INNER_PRODUCTS = ("cosine", "dot", "bilinear")
FROM_ZERO = ("squared-euclidean", "euclidean", "mahalanobis")
WITHOUT_WEIGHTS = tuple(sorted(set(SIMILARITIES) - set(reference.LINEAR_MEASURES)))

every_similarity = pytest.mark.parametrize("name", SIMILARITIES)
every_linear_similarity = pytest.mark.parametrize("name", reference.LINEAR_MEASURES)
shared_or_not = pytest.mark.parametrize("per_query", [False, True], ids=["shared", "per-query"])
processors = pytest.mark.parametrize("processor", ["this", "up", "down"])


def draw(per_query: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Query, support, and weights of both signs, as a foil gives."""
    query = torch.randn(B, J, dtype=torch.float64)
    support = torch.randn(*((B, K, J) if per_query else (K, J)), dtype=torch.float64)
    return query, support, torch.randn(B, K, dtype=torch.float64)


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(actual: Tensor, expected: object, rtol: float = 1e-10) -> None:
    wanted = expected if isinstance(expected, Tensor) else torch.as_tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(actual, wanted, rtol=rtol, atol=rtol)


def by_pair(function: Callable[..., object], name: str, query: Tensor, support: Tensor) -> np.ndarray:
    """The reference's answer for every query and each of its supports."""
    matrix = (SQUARE if name == "bilinear" else METRIC).numpy()
    return np.array(
        [
            [function(name, z, t, matrix) for t in (support[b] if support.dim() == 3 else support).numpy()]
            for b, z in enumerate(query.numpy())
        ]
    )


def on(processor: str) -> Any:
    """This processor, or one that rounds the last place of its products up or down."""
    return nullcontext() if processor == "this" else PerturbedProducts(processor)  # type: ignore[arg-type]


def with_weights(similarity: Similarity, query: Tensor, support: Tensor, weights: Tensor) -> list[Tensor]:
    """Contributions, and the linear weights where the similarity has them."""
    found = [similarity.contributions(query, support, weights)]
    return [*found, similarity.weights(query, support, weights)] if similarity.has_weights else found
