"""What a map explains of the score, in numbers and in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn

from captum_fam import SupportSet
from captum_fam.attr.registry import METHODS
from captum_fam.explanation import explain
from captum_fam.explanation.batch import join_shares


def test_contributions_of_fam_sum_to_the_score_where_they_are_not_divided_by_it(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    options = {"support_scale": "none", "normalization": "none"}
    explanation = explain(model, many_queries, support, layer="features", method="fam", **options)
    assert explanation.contributions is not None
    torch.testing.assert_close(explanation.contributions.sum(1), explanation.target_scores)
    assert explanation.convergence_delta is None


def test_the_similarity_cam_map_sums_to_the_score(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    explanation = explain(model, many_queries, support, layer="features", method="similarity-cam", foil="others")
    torch.testing.assert_close(explanation.attributions.sum((1, 2, 3)), explanation.target_scores)
    torch.testing.assert_close(explanation.convergence_delta, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(explanation.coverage, torch.ones(5, dtype=torch.float64))
    assert explanation.account_text(2) == "explains 100 % of the score"


@pytest.mark.filterwarnings("ignore:the map explains")
def test_shares_are_what_the_bias_behind_the_pooling_owns_and_what_the_map_shows(
    make_net: Callable[..., nn.Module], support: SupportSet, many_queries: Tensor
) -> None:
    net = make_net(head="linear-bias")
    why = explain(net, many_queries, support, layer="features", method="similarity-cam", target=1)
    assert why.shares is not None
    assert why.coverage is not None
    units = nn.functional.normalize(net(support.inputs)[2:5])
    bias = ((units @ net.head.bias).mean() / net(many_queries).norm(dim=1)).detach()
    torch.testing.assert_close(why.shares["bias"], bias)
    torch.testing.assert_close(why.shares["map"], why.attributions.sum((1, 2, 3)))
    torch.testing.assert_close(sum(why.shares.values()), why.target_scores)
    torch.testing.assert_close(why.coverage, 1 - bias / why.target_scores)
    torch.testing.assert_close(why.convergence_delta, -bias)
    percent = 100 * float(bias[3] / why.target_scores[3])
    assert why.account_text(3) == f"explains {100 - percent:.0f} % of the score; bias {percent:.0f} %"


@pytest.mark.filterwarnings("ignore:the map explains")
def test_a_distance_is_explained_and_what_the_zero_embedding_has_in_the_same_numbers(
    make_net: Callable[..., nn.Module], support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    """-|z - t|^2 = (2 z t - z^2) - t^2, of which the map shows the first, less what the head's bias has of it."""
    net = make_net(head="linear-bias")
    z, own = net(many_queries).detach(), net(support.inputs).detach()[2:5]
    start = -own.square().sum(1).mean().expand(5)
    explained = (2 * z @ own.T - z.square().sum(1, keepdim=True)).mean(1)
    for method in ("similarity-cam", "shapley"):
        why = explain(
            net, many_queries, support, layer="features", method=method, target=1, similarity="squared-euclidean"
        )
        assert why.shares is not None
        assert why.coverage is not None
        torch.testing.assert_close(why.target_scores, explained + start)
        torch.testing.assert_close(why.shares["zero embedding"], start)
        torch.testing.assert_close(sum(why.shares.values()), why.target_scores)
        sums = why.attributions.sum((1, 2, 3))
        torch.testing.assert_close(why.coverage, sums / explained)
        if method == "similarity-cam":
            torch.testing.assert_close(why.convergence_delta, sums - explained)
        numbers = [f"{float(one[0]):#.3g}" for one in (explained + start, explained, start)]
        more = "more" if float(explained[0]) > 0 else "less"
        said = f"{numbers[0]}, which is {numbers[1].strip('-')} {more} than an embedding of zeros has ({numbers[2]})"
        assert why.score_text(0) == said
        assert why.account_text(0).startswith(
            f"explains {100 * float(why.coverage[0]):.0f} % of the difference of {numbers[1]} from an embedding of "
            "zeros; "
        )
        assert why.figure(0).axes[-1].get_title().replace("\n", " ") == f"{method} score {said} {why.account_text(0)}"
        why.save(tmp_path)
        entry = json.loads((tmp_path / "manifest.json").read_text())["queries"][0]["methods"][method]
        assert entry["account"] == f"score {said}; {why.account_text(0)}"


def test_parts_of_an_account_that_others_do_not_have_are_zero_there() -> None:
    one = {"map": torch.tensor([1.0]), "rest": torch.tensor([2.0])}
    other = {"map": torch.tensor([3.0]), "bias": torch.tensor([5.0]), "rest": torch.tensor([6.0])}
    both = join_shares([one, other, one], torch.cat)
    assert both is not None
    assert {name: share.tolist() for name, share in both.items()} == {
        "map": [1, 3, 1],
        "bias": [0, 5, 0],
        "rest": [2, 6, 2],
    }
    assert list(both) == ["map", "bias", "rest"]
    assert join_shares([None, None], torch.cat) is None


def test_methods_without_an_account_say_so(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    without_attention = {name for name, method in METHODS.items() if not method.needs_attention}
    for name in without_attention - {"similarity-cam", "shapley"}:
        why = explain(model, many_queries, support, layer="features", method=name, foil="others")
        assert why.coverage is why.shares is None
        assert why.account_text(1) == "no account of the score"
        (title,) = (ax.get_title() for ax in why.figure(1).axes if "no account" in ax.get_title())
        knows_the_support = name in ("fam", "grad-cam", "correspondence")
        assert ("foil: others" in title) is ("score 0" in title or "score -0" in title) is knows_the_support
        assert why.support_blind is not knows_the_support


def test_a_method_of_captum_with_a_delta_says_that(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    why = explain(model, many_queries, support, layer=model.features, method=LayerIntegratedGradients)
    assert why.convergence_delta is not None
    assert why.coverage is None
    assert why.account_text(2) == f"convergence delta {float(why.convergence_delta[2]):#.3g}"
