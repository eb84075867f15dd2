"""Which maps are only noise, by the unit that a method's maps have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.attr.baselines import LayerUniform
from captum_fam.attr.registry import magnitude_of_scores, without_noise
from captum_fam.similarity import Euclidean


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net()


@pytest.mark.parametrize(
    ("made_by", "kept"),
    [
        (LayerSimilarityCAM, [False, True]),
        (LayerGradCam, [False, True]),
        (LayerCorrespondence, [True, True]),
        (LayerFAM, [True, True]),
        (LayerUniform, [True, True]),
    ],
)
def test_only_maps_in_the_unit_of_the_score_are_small_beside_it(
    made_by: Any, kept: list[bool], net: nn.Module, supports: Tensor
) -> None:
    method = made_by(SimilarityToSupport(net, supports), net.features)
    maps = torch.tensor([1e-3, 0.1]).view(2, 1, 1, 1).expand(2, 1, 3, 4)
    found = without_noise(method, maps, lambda: torch.full((2,), 1e4))
    assert [bool(one.all()) for one in found] == kept
    assert [bool(one.any()) for one in found] == kept


def test_a_correspondence_of_noise_is_noise_whatever_the_score(net: nn.Module, supports: Tensor) -> None:
    method = LayerCorrespondence(SimilarityToSupport(net, supports), net.features)
    maps = torch.full((1, 1, 2, 2), 1e-7)
    assert not without_noise(method, maps, lambda: torch.full((1,), 1e-9)).any()


@pytest.mark.parametrize("foil", [None, "others", "runner-up", "support"])
def test_the_magnitude_of_scores_is_that_before_the_foil(
    foil: Any, net: nn.Module, queries: Tensor, supports: Tensor, make_images: Callable[..., Tensor]
) -> None:
    foil = SupportSet(make_images(4, seed=7)) if foil == "support" else foil
    scores = SimilarityToSupport(net, SupportSet(supports, [0, 1, 1]), foil=foil)
    embedded = scores.embedded().embeddings
    cosines = nn.functional.cosine_similarity(net(queries)[:, None], embedded[None], dim=2)
    expected = torch.stack([cosines[:, 0].abs(), cosines[:, 1:3].abs().mean(1)], 1).amax(1)
    torch.testing.assert_close(magnitude_of_scores(scores, cosines), expected.detach())


@pytest.mark.parametrize("similarity", ["euclidean", "squared-euclidean", Euclidean(rule="difference")])
def test_the_magnitude_of_a_distance_has_a_part_that_does_not_shrink_with_it(
    similarity: Any, net: nn.Module, supports: Tensor
) -> None:
    scores = SimilarityToSupport(net, supports[:1], similarity=similarity)
    length = net(supports[:1]).norm().detach()
    expected = length**2 if similarity == "squared-euclidean" else length
    found = magnitude_of_scores(scores, torch.tensor([[-1e-12]], dtype=torch.float64))
    torch.testing.assert_close(found, expected.view(1))
    far = torch.tensor([[-1e3 * float(expected)]], dtype=torch.float64)
    torch.testing.assert_close(magnitude_of_scores(scores, far), -far[0])
