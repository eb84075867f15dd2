"""Several layers give the mean of their maps; without a layer one is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from captum_fam import SupportSet, TokenGrid
from captum_fam.attr.layer_search import find_layer
from captum_fam.explanation import explain
from tests.explanation.networks import TwoLayers


def _spread(before: int, after: int) -> Tensor:
    """Column i is what cell i gives to each finer cell, by the distance of their centers; it sums to one."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for to in range(after):
        center = min(max((to + 0.5) * before / after - 0.5, 0), before - 1)
        for i in range(before):
            matrix[to, i] = max(0.0, 1 - abs(center - i))
    return matrix / matrix.sum(0)


@pytest.mark.parametrize("foil", [None, "others"])
def test_of_several_layers_the_map_is_the_mean_on_the_finest_grid(
    foil: Any, support: SupportSet, many_queries: Tensor
) -> None:
    net = TwoLayers().double().eval()
    fine, coarse, both, again = (
        explain(net, many_queries, support, layer=layer, method="similarity-cam", target=1, foil=foil)
        for layer in ("fine", "coarse", ["fine", net.coarse], ["coarse", "fine"])
    )
    assert fine.attributions.shape[2:] == (7, 5)
    assert coarse.attributions.shape[2:] == (3, 2)
    assert both.attributions.shape == (5, 1, 7, 5)
    sums = [one.attributions.sum((1, 2, 3)) for one in (fine, coarse, both)]
    torch.testing.assert_close(sums[2], (sums[0] + sums[1]) / 2)
    torch.testing.assert_close(both.coverage, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(both.convergence_delta, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(sum(both.shares.values()), both.target_scores)  # type: ignore[union-attr]
    # What the coarse layer adds: its rows and columns, spread over the fine ones as linear interpolation does.
    rows, columns = (_spread(before, after) for before, after in ((3, 7), (2, 5)))
    spread = torch.einsum("ri,cj,bxij->bxrc", rows, columns, coarse.attributions)
    torch.testing.assert_close(both.attributions, (fine.attributions + spread) / 2)
    torch.testing.assert_close(again.attributions, both.attributions)
    assert both.about["layer"] == ["fine", "coarse"]


@pytest.mark.parametrize("method", ["fam", "grad-cam", "mean-activation"])
def test_only_accounts_of_one_score_have_a_mean_over_layers(
    method: str, support: SupportSet, many_queries: Tensor
) -> None:
    net = TwoLayers().double().eval()
    with pytest.raises(ValueError, match=f"layer is a list.*{method}.*name one layer"):
        explain(net, many_queries, support, layer=["fine", "coarse"], method=method)
    with pytest.raises(ValueError, match="layer9"):
        explain(net, many_queries, support, layer=["fine", "layer9"], method="similarity-cam")


@pytest.mark.parametrize("method", ["similarity-cam", "fam", "grad-cam", "random"])
@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_without_a_layer_the_last_one_that_explains_the_score_is_taken(
    method: str, support: SupportSet, many_queries: Tensor
) -> None:
    net = TwoLayers().double().eval()
    why = explain(net, many_queries, support, method=method)
    assert why.about["layer"] == find_layer(net, many_queries).name == "coarse"
    same = explain(net, many_queries, support, method=method, layer=net.coarse)
    torch.testing.assert_close(why.attributions, same.attributions)


@pytest.mark.filterwarnings("ignore:the map explains", "ignore:more than half of a map")
def test_without_a_layer_tokens_are_laid_out_as_they_were_found() -> None:
    net = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    net.heads = nn.Identity()
    inputs, support = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 32, 32)
    for method in ("similarity-cam", "fam", "mean-activation", "grad-cam"):
        why = explain(net, inputs, support, method=method)
        assert why.attributions.shape == (2, 1, 4, 4)
        assert why.about["options"]["token_grid"].startswith("TokenGrid(")
    given = explain(net, inputs, support, method="fam", token_grid=TokenGrid((2, 8)))
    assert given.attributions.shape == (2, 1, 2, 8)


def test_a_function_has_no_modules_to_find_a_layer_in(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    with pytest.raises(TypeError, match="name the layer"):
        explain(lambda x: model(x), queries, supports)
