"""Maps that are only rounding noise are zero, and small maps stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.explanation import explain, write_query


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_an_identical_pair_is_zero_and_not_noise(
    dtype: torch.dtype, make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor], tmp_path: Path
) -> None:
    net, images = make_net(head="linear-bias", signed=True).to(dtype), make_images(3).to(dtype)
    raw = LayerGradCam(SimilarityToSupport(net, images[:1]), net.features).attribute(images[:1], target=0)
    assert raw.abs().max() < 1e-6
    photo = torch.rand(3, 9, 8)
    why = explain(net, images, images[:1], layer="features", method="grad-cam", images=[photo] * 3)
    assert not why.attributions[0].any()
    assert not why.maps[0].any()
    assert why.flat.tolist() == [True, False, False]
    pixels = photo.permute(1, 2, 0).double().numpy() * 255  # without a map nothing lies over the photograph
    np.testing.assert_allclose(np.asarray(why.overlay(0)), pixels, atol=1)
    title = why.figure(0, supports=()).axes[1].get_title()
    assert title == "grad-cam\nscore 1.00\nno account of the score\nzero everywhere"
    assert "zero everywhere" not in why.figure(1, supports=()).axes[1].get_title()
    why.save(tmp_path)
    entries = [
        query["methods"]["grad-cam"] for query in json.loads((tmp_path / "manifest.json").read_text())["queries"]
    ]
    assert [entry["flat"] for entry in entries] == [True, False, False]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "squared-euclidean", "euclidean"])
@pytest.mark.parametrize("method", ["fam", "similarity-cam", "shapley", "grad-cam", "correspondence"])
@pytest.mark.filterwarnings("ignore:the map explains")
def test_a_foil_of_the_same_images_leaves_nothing(
    method: str,
    similarity: str,
    make_net: Callable[..., nn.Module],
    make_images: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    net, images = make_net(head="linear-bias", signed=True).float(), make_images(7).float()
    # Another order of the same images makes another rounding.
    support, foil = SupportSet(images[:5]), SupportSet(images[:5].flip(0))
    why = explain(net, images[5:], support, layer="features", method=method, foil=foil, similarity=similarity)
    assert not why.attributions.any()
    assert why.flat.all()
    if why.coverage is not None:
        assert why.coverage.isnan().all()
        assert why.account_text(1) in ("the score is zero", "the difference from an embedding of zeros is zero")
        json.dumps(write_query([why], 0, tmp_path), allow_nan=False)


@pytest.mark.parametrize("scale", [1e-30, 1e-150, 1e30])
@pytest.mark.parametrize("method", ["similarity-cam", "grad-cam", "shapley"])
def test_small_maps_of_scores_as_small_stay(
    method: str, scale: float, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    class Times(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    plain, scaled = (
        explain(
            nn.Sequential(model.features, model.pooling, Times(one)).eval(),
            many_queries,
            support,
            layer="0",
            method=method,
            similarity="dot",
            foil="others",
        )
        for one in (1.0, scale)
    )
    assert plain.attributions.flatten(1).any(1).all()
    torch.testing.assert_close(scaled.attributions / scale / scale, plain.attributions)
    np.testing.assert_allclose(np.asarray(scaled.overlay(1)).astype(int), np.asarray(plain.overlay(1)), atol=1)


@pytest.mark.parametrize(
    "method", ["uniform", "random", "center", "mean-activation", "eigen-cam", "fam", "correspondence"]
)
@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_maps_in_units_of_their_own_are_not_small_beside_a_large_score(
    method: str, make_net: Callable[..., nn.Module], support: SupportSet, many_queries: Tensor
) -> None:
    net = make_net(head="linear")
    with torch.no_grad():
        net.head.weight.mul_(1e6)
    why = explain(net, many_queries, support, layer="features", method=method, similarity="squared-euclidean")
    assert float(why.scores.abs().amax(1).min()) > 1e8
    assert why.attributions.flatten(1).any(1).all()


def test_what_is_taken_off_a_map_is_taken_off_its_account(queries: Tensor, supports: Tensor) -> None:
    class Bias(nn.Module):
        """The embedding is a constant but for a trifle."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return 1e-9 * self.layer(x).abs().mean((2, 3)) + torch.tensor([1.0, 2.0, 2.0], dtype=x.dtype)

    with pytest.warns(UserWarning, match="the map explains 0 % of the score"):
        why = explain(Bias().eval(), queries, supports, layer="layer", method="similarity-cam")
    assert not why.attributions.any()
    assert why.coverage is not None
    assert why.shares is not None
    assert why.coverage.tolist() == [0, 0]
    assert why.shares["map"].tolist() == [0, 0]
    torch.testing.assert_close(sum(why.shares.values()), why.target_scores, rtol=0, atol=1e-15)
    torch.testing.assert_close(why.convergence_delta, -why.target_scores, rtol=0, atol=1e-15)
    title = " ".join(why.figure(1, supports=()).axes[1].get_title().split())
    assert title == "similarity-cam score 1.00 explains 0 % of the score; bias 100 % zero everywhere"
