"""Scores that differ by rounding only are ties, and small differences are none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.similarity import Dot
from tests.perturbed_products import PerturbedProducts


def tied(direction: str | None, run: Callable[[], Any]) -> Any:
    """What another processor makes of it: products whose last place is up, or down."""
    with PerturbedProducts(direction) if direction else nullcontext():  # type: ignore[arg-type]
        return run()


directions = pytest.mark.parametrize("direction", [None, "up", "down"])


def test_scores_that_differ_by_rounding_are_ties_by_hand() -> None:
    support = SupportSet(torch.eye(3), [0, 1, 2])
    # The dot products with the rows of the identity are the query itself.
    query = torch.tensor([[0.5, 0.5 + 1e-7, 0.2], [0.5 - 1e-7, 0.1, 0.5], [0.1, 0.2, 0.3], [0.1, 0.4, 0.4]])
    contrast = support.compare(query, torch.tensor([0, 0, 2, 2]), Dot()).against(runner_up=True)
    assert contrast.predicted.tolist() == [0, 0, 2, 1]
    assert (contrast.scores[[0, 1, 3], [0, 0, 1]] == 0).all()
    torch.testing.assert_close(contrast.scores[2], torch.tensor([-0.2, -0.1, 0.1]))
    assert contrast.support_weights.tolist() == [[1, -1, 0], [1, 0, -1], [0, -1, 1], [0, -1, 1]]


def test_what_rounding_is_relative_to_can_be_more_than_the_scores() -> None:
    class OfLargeTerms(Dot):
        def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
            return torch.ones_like(scores)

    support, query = SupportSet(torch.eye(3), [0, 1, 2]), torch.tensor([[1e-6, 1.2e-6, 1.1e-6]])
    assert support.compare(query, similarity=Dot()).predicted.tolist() == [1]
    assert support.compare(query, similarity=OfLargeTerms()).predicted.tolist() == [0]


@directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "squared-euclidean"])
@pytest.mark.parametrize("aggregate", ["mean", "prototype"])
def test_the_first_of_equal_classes_is_predicted_and_its_contrast_is_exactly_zero(
    aggregate: Any, similarity: str, dtype: torch.dtype, direction: str | None
) -> None:
    few = torch.randn(3, 33, dtype=dtype)
    # Class 0 is far off; 1, 2 and 3 hold the same images once, twice in another order, and five times.
    rows = torch.cat([-few.mean(0, keepdim=True), few, few.flip(0).repeat(2, 1), few.repeat(5, 1)])
    labels = [0] + [1] * 3 + [2] * 6 + [3] * 15
    query = few.mean(0) + 0.1 * torch.randn(4, 33, dtype=dtype)

    def run() -> list[Tensor]:
        found = []
        for foil in (None, "runner-up", SupportSet(few.repeat(7, 1))):
            scores = SimilarityToSupport(nn.Identity(), SupportSet(rows, labels), similarity, foil, aggregate)
            found.extend(scores.predict(query))
            assert torch.equal(scores(query), found[-2])
        return found

    plain, first, contrast, second, given, third = tied(direction, run)
    assert first.tolist() == second.tolist() == third.tolist() == [1] * 4
    assert (contrast[:, 1:] == 0).all()
    assert (given[:, 1:] == 0).all()
    assert (contrast[:, 0] < 0).all()
    torch.testing.assert_close(contrast[:, 0], plain[:, 0] - plain[:, 1])


@directions
def test_a_contrast_that_is_zero_keeps_its_gradient(direction: str | None) -> None:
    support = SupportSet(torch.randn(2, 5, dtype=torch.float64), [0, 1])
    foil = SupportSet(support.inputs[:1].repeat(3, 1))
    query = torch.randn(3, 5, dtype=torch.float64).requires_grad_()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        scores = SimilarityToSupport(nn.Identity(), support, "dot", foil)(query)
        return scores, *(torch.autograd.grad(scores[:, c].sum(), query, retain_graph=True)[0] for c in range(2))

    scores, zero, other = tied(direction, run)
    assert (scores[:, 0] == 0).all()
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-14)
    torch.testing.assert_close(other, (support.inputs[1] - support.inputs[0]).expand(3, -1))


def test_small_but_real_differences_are_no_ties() -> None:
    rows = torch.rand(1, 512).repeat(3, 1)
    rows[1] *= 1 + 1e-4
    rows[2] *= 1 + 2e-4
    scores = SimilarityToSupport(nn.Identity(), SupportSet(rows, [0, 1, 2]), "dot", "runner-up")
    contrast, predicted = scores.predict(torch.rand(4, 512))
    assert predicted.tolist() == [2] * 4
    assert (contrast != 0).all()
