from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, LayerIntegratedGradients
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid
from captum_fam.attr.baselines import LayerMeanActivation
from captum_fam.attr.layer_search import find_layer
from captum_fam.attr.registry import METHODS
from captum_fam.explanation import Explainer, compare_figure, explain, write_query
from captum_fam.explanation.batch import join_shares

NAMES = ("wren", "jay", "crow")


@pytest.fixture
def model(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(signed=True)


@pytest.fixture
def support(make_images: Callable[..., Tensor]) -> SupportSet:
    return SupportSet(make_images(6, seed=2), [0, 0, 1, 1, 1, 2], class_names=NAMES)


@pytest.fixture
def many_queries(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(5, seed=1)


@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        ("fam", LayerFAM),
        ("similarity-cam", LayerSimilarityCAM),
        ("grad-cam", LayerGradCam),
        ("mean-activation", LayerMeanActivation),
    ],
)
@pytest.mark.parametrize("foil", [None, "others", "runner-up"])
@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_a_named_method_gives_what_its_class_gives(
    name: str, made_by: type, foil: Any, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    explanation = explain(model, many_queries, support, layer="features", method=name, target=1, foil=foil)
    scores = SimilarityToSupport(model, support, foil=foil)
    expected = made_by(scores, model.features).attribute(many_queries, target=1)
    torch.testing.assert_close(explanation.attributions, expected)
    torch.testing.assert_close(explanation.scores, scores(many_queries))
    torch.testing.assert_close(explanation.target_scores, scores(many_queries)[:, 1])
    assert not explanation.maps.requires_grad


@pytest.mark.parametrize("name", ["fam", "similarity-cam", "correspondence"])
@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_the_maps_of_this_package_bring_their_scores_without_another_pass(
    name: str, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    explain(model, many_queries, support, layer="features", method=name)
    assert sizes.count(len(many_queries)) == 1
    assert set(sizes) == {len(many_queries), len(support)}


@pytest.mark.parametrize("foil", ["others", "runner-up", "support"])
def test_fam_with_a_foil_is_one_map_whoever_makes_it(
    foil: Any, model: nn.Module, support: SupportSet, many_queries: Tensor, make_images: Callable[..., Tensor]
) -> None:
    """Contributions z_n (t - f)_n, shares of each cosine, times the activation; nothing is scaled to [0, 1]."""
    if foil == "support":
        foil = SupportSet(make_images(2, seed=9))
    scores = SimilarityToSupport(model, support, foil=foil)
    maps = [
        explain(model, many_queries, support, layer="features", method="fam", target=1, foil=foil).attributions,
        explain(model, many_queries, support, layer="features", method=LayerFAM, target=1, foil=foil).attributions,
        LayerFAM(scores, "features").attribute(many_queries, target=1),
        LayerFAM(scores, "features", normalization="none").attribute(many_queries, target=1),
    ]
    assert all(torch.equal(one, maps[0]) for one in maps[1:])
    embeddings = model(support.inputs) if not isinstance(foil, SupportSet) else model(foil.inputs)
    own = model(support.inputs)[2:5]
    for b, query in enumerate(many_queries):
        z = model(query[None])[0]
        cosine = nn.functional.cosine_similarity(z[None], embeddings)
        if isinstance(foil, SupportSet):
            others = [(0.5, t) for t in embeddings]
        elif foil == "others":
            others = [(0.25, embeddings[0]), (0.25, embeddings[1]), (0.5, embeddings[5])]
        elif (cosine[0] + cosine[1]) / 2 > cosine[5]:
            others = [(0.5, embeddings[0]), (0.5, embeddings[1])]
        else:
            others = [(1.0, embeddings[5])]
        contributions = torch.zeros_like(z)
        for weight, t in [*((1 / 3, t) for t in own), *((-weight, t) for weight, t in others)]:
            share = z * t / (z.norm() * t.norm())
            contributions = contributions + weight * share / share.sum().abs()
        expected = (contributions[:, None, None] * model.features(query[None])[0]).sum(0)
        torch.testing.assert_close(maps[0][b, 0], expected)


def test_fam_with_a_foil_takes_the_normalization_that_is_asked_for(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    explanation = explain(
        model, many_queries, support, layer="features", target=1, foil="others", normalization="maxabs"
    )
    scores = SimilarityToSupport(model, support, foil="others")
    expected = LayerFAM(scores, model.features, normalization="maxabs").attribute(many_queries, target=1)
    torch.testing.assert_close(explanation.attributions, expected)


@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_every_name_of_the_registry_works(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    for name in METHODS:
        explanation = explain(model, many_queries, support, layer="features", method=name, foil="others")
        assert explanation.maps.shape == (5, 1, 7, 5)


def test_maps_are_the_attributions_at_the_inputs_size(support: SupportSet, many_queries: Tensor) -> None:
    model = (
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    )
    explanation = explain(model, many_queries, support, layer="1")
    assert explanation.attributions.shape == (5, 1, 3, 2)
    expected = nn.functional.interpolate(explanation.attributions, (7, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(explanation.maps, expected)


@pytest.mark.parametrize("method", ["fam", "similarity-cam", "grad-cam"])
@pytest.mark.parametrize("target", [None, 1, [0, 1, 2, 1, 0]])
def test_chunks_change_nothing(
    method: str, target: Any, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    whole, parts = (
        explain(model, many_queries, support, layer="features", method=method, target=target, batch_size=size)
        for size in (32, 2)
    )
    for field in ("maps", "scores", "predicted", "target", "contributions", "convergence_delta", "coverage"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field))
    torch.testing.assert_close(parts.shares, whole.shares)
    assert (whole.coverage is not None) is (method == "similarity-cam")


@pytest.mark.parametrize("method", ["fam", "grad-cam"])
def test_the_predicted_class_is_explained_unless_another_is_asked_for(
    method: str, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    explanation = explain(model, many_queries, support, layer="features", method=method)
    cosine = nn.functional.cosine_similarity(model(many_queries)[:, None], model(support.inputs)[None], dim=2)
    by_hand = torch.stack([cosine[:, :2].mean(1), cosine[:, 2:5].mean(1), cosine[:, 5]], 1)
    torch.testing.assert_close(explanation.scores, by_hand)
    assert torch.equal(explanation.predicted, by_hand.argmax(1))
    assert torch.equal(explanation.target, explanation.predicted)


@pytest.mark.parametrize(
    "target",
    [2, "crow", np.int64(2), torch.tensor(2), torch.tensor([2]), [2] * 5, ["crow"] * 5, torch.full((5,), 2)],
    ids=repr,
)
def test_a_class_is_given_by_index_or_name_once_or_for_each(
    target: Any, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    assert explain(model, many_queries, support, layer="features", target=target).target.tolist() == [2] * 5


def test_contributions_of_fam_sum_to_the_score_where_they_are_not_divided_by_it(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    explanation = explain(model, many_queries, support, layer="features", support_scale="none", normalization="none")
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
        said = "{} = {} explained + {} of the zero embedding".format(*numbers)
        assert why.score_text(0) == said
        assert why.account_text(0).startswith(f"explains {100 * float(why.coverage[0]):.0f} % of the {numbers[1]}; ")
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
    for name in set(METHODS) - {"similarity-cam", "shapley"}:
        why = explain(model, many_queries, support, layer="features", method=name, foil="others")
        assert why.coverage is why.shares is None
        assert why.account_text(1) == "no account of the score"
        (title,) = (ax.get_title() for ax in why.figure(1).axes if "no account" in ax.get_title())
        knows_the_support = name in ("fam", "grad-cam", "correspondence")
        assert ("with foil" in title) is ("score 0" in title or "score -0" in title) is knows_the_support
        assert why.support_blind is not knows_the_support


def test_a_method_of_captum_with_a_delta_says_that(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    why = explain(model, many_queries, support, layer=model.features, method=LayerIntegratedGradients)
    assert why.convergence_delta is not None
    assert why.coverage is None
    assert why.account_text(2) == f"convergence delta {float(why.convergence_delta[2]):#.3g}"


def test_a_layer_method_of_captums_is_summed_over_its_channels(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    explanation = explain(model, many_queries, support, layer=model.features, method=LayerGradientXActivation, target=0)
    scores = SimilarityToSupport(model, support)
    full = LayerGradientXActivation(scores, model.features).attribute(many_queries, target=0)
    assert full.shape[1] == 6
    torch.testing.assert_close(explanation.attributions, full.sum(1, keepdim=True))
    assert explanation.method == "LayerGradientXActivation"
    assert explanation.about["layer"] == "features"


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes_are_explained_too(
    rank: int, make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]
) -> None:
    inputs = make_images(2, rank=rank)
    explanation = explain(make_net(rank=rank), inputs, make_images(3, rank=rank, seed=5), layer="features")
    assert explanation.maps.shape == (2, 1, *inputs.shape[2:])


# Layers


class TwoLayers(nn.Module):
    """7 x 5 positions, then 3 x 2, then a head; a batch norm between has a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.3))
        self.coarse = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4, bias=False)
        nn.init.normal_(self.coarse[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.coarse(self.fine(x)).mean((2, 3)))


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
    with pytest.raises(ValueError, match=f"layer is a list, of which {method} has no mean"):
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
    for method in ("similarity-cam", "fam", "mean-activation"):
        why = explain(net, inputs, support, method=method)
        assert why.attributions.shape == (2, 1, 4, 4)
        assert why.about["options"]["token_grid"].startswith("TokenGrid(")
    # The whole layer, class token included, is what a method of Captum gives.
    with pytest.raises(ValueError, match="needs a method that takes token_grid"):
        explain(net, inputs, support, method="grad-cam")
    given = explain(net, inputs, support, method="fam", token_grid=TokenGrid((2, 8)))
    assert given.attributions.shape == (2, 1, 2, 8)


def test_a_function_has_no_modules_to_find_a_layer_in(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    with pytest.raises(TypeError, match="name the layer"):
        explain(lambda x: model(x), queries, supports)


# Maps that are only noise


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
    gray = np.repeat((photo.double().mean(0) * 255).round().byte().numpy()[..., None], 3, 2)
    np.testing.assert_allclose(np.asarray(why.overlay(0)).astype(int), gray, atol=1)
    title = why.figure(0).axes[1].get_title()
    assert title == "grad-cam\nscore 1.00\nno account of the score\nzero everywhere"
    assert "zero everywhere" not in why.figure(1).axes[1].get_title()
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
        assert why.account_text(1) in ("the score is zero", "the explained score is zero")
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
    title = " ".join(why.figure(1).axes[1].get_title().split())
    assert title == "similarity-cam score 1.00 explains 0 % of the score; bias 100 % zero everywhere"


def test_a_tensor_is_a_support_of_one_class_with_a_name(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    explanation = explain(model, queries, supports, layer="features", class_names=["wren"])
    assert explanation.class_names == ("wren",)
    assert explanation.target.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": torch.rand(0, 3, 7, 5)}, ValueError, "inputs must be a batch"),
        ({"inputs": [1]}, TypeError, "inputs must be a tensor"),
        ({"support": torch.rand(2, 4, 3, 7, 5)}, ValueError, "support holds one set for each of 2 queries"),
        ({"method": "gradcam"}, ValueError, "method must be one of fam"),
        ({"method": 3}, TypeError, "method must be a name"),
        ({"layer": "layer9"}, ValueError, "layer9"),
        ({"target": "owl"}, ValueError, "'owl' is none of the 3 classes wren, jay, crow"),
        ({"target": 3}, ValueError, "target 3 is none"),
        ({"target": -1}, ValueError, "target -1 is none"),
        ({"target": [0, 1]}, ValueError, "got 2 for 5 queries"),
        ({"class_names": ["a", "b"]}, ValueError, "2 names for the 3 classes"),
        ({"names": ["a"] * 5}, ValueError, "all different"),
        ({"names": ["a", "b", "c", "d", "../e"]}, ValueError, "path separator"),
        ({"images": [torch.rand(3, 4, 4)]}, ValueError, "got 1 for 5 queries"),
        ({"method": lambda scores, layer: _Returns(torch.rand(5, 4))}, ValueError, r"shape \(5, 4\)"),
        ({"method": lambda scores, layer: _Returns((torch.rand(5, 1, 2, 2),))}, ValueError, "gave a tuple"),
        ({"method": lambda scores, layer: _Returns(torch.full((5, 1, 2, 2), torch.nan))}, ValueError, "NaN"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else getattr(value, "__name__", value),
)
def test_arguments_that_do_not_fit_are_named(
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    model: nn.Module,
    support: SupportSet,
    many_queries: Tensor,
) -> None:
    fitting = {"inputs": many_queries, "support": support, "layer": "features"}
    with pytest.raises(error, match=message):
        explain(model, **{**fitting, **arguments})


class _Returns:
    """A method with a fixed answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def attribute(self, inputs: Tensor, target: object) -> object:
        return self.answer


@pytest.mark.parametrize("method", ["fam", "grad-cam", "random", LayerGradientXActivation])
def test_a_model_in_training_mode_is_pointed_out(
    method: Any, model: nn.Module, queries: Tensor, supports: Tensor
) -> None:
    with pytest.warns(UserWarning, match="training mode"):
        explain(model.train(), queries, supports, layer="features", method=method)
    model.eval().training = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(nn.DataParallel(model), queries, supports, layer=model.features, method=method)


def test_batches_that_come_one_after_the_other_are_explained_as_one(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    explainer = Explainer(model, support, layer="features", method="similarity-cam", foil="others")
    parts = [
        explainer.explain(many_queries[:2], target=["jay", "wren"], names=["a", "b"]),
        explainer.explain(many_queries[2:], target="crow"),
    ]
    assert sizes == [6, 2, 3]
    whole = explain(
        model,
        many_queries,
        support,
        layer="features",
        method="similarity-cam",
        foil="others",
        target=["jay", "wren", "crow", "crow", "crow"],
    )
    torch.testing.assert_close(torch.cat([part.maps for part in parts]), whole.maps)
    assert parts[0].names == ("a", "b")
    assert parts[0].about == whole.about


def test_an_explainer_warns_once_and_finds_its_layer_once(support: SupportSet, many_queries: Tensor) -> None:
    net = TwoLayers().double().eval()
    runs: list[int] = []
    explainer = Explainer(net, support, method="similarity-cam")
    explainer.explain(many_queries[:2])
    net.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
    explainer.explain(many_queries[2:])
    assert runs == [3]


def test_an_explanation_cannot_be_changed(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    explanation = explain(model, queries, supports, layer="features")
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.method = "other"  # type: ignore[misc]


def test_saving_writes_what_the_manifest_lists(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    photos = [torch.rand(3, 30, 40 + i) for i in range(5)]
    names = [f"bird {i}" for i in range(5)]
    explanation = explain(
        model,
        many_queries,
        support,
        layer="features",
        method="similarity-cam",
        foil="others",
        images=photos,
        names=names,
    )
    explanation.save(tmp_path / "new" / "result")
    manifest = json.loads((tmp_path / "new" / "result" / "manifest.json").read_text())
    listed = {"manifest.json"}
    for i, query in enumerate(manifest["queries"]):
        entry = query["methods"]["similarity-cam"]
        listed |= {query["arrays"], entry["overlay"]}
        assert entry["coverage"] == float(explanation.coverage[i])
        assert entry["shares"] == {name: float(share[i]) for name, share in explanation.shares.items()}
        assert entry["account"] == "explains 100 % of the score"
        assert entry["flat"] is False
        arrays = np.load(tmp_path / "new" / "result" / query["arrays"])
        np.testing.assert_array_equal(arrays["similarity-cam"], explanation.maps[i, 0])
        np.testing.assert_array_equal(arrays["similarity-cam.layer"], explanation.attributions[i, 0])
        assert arrays["similarity-cam.delta"] == explanation.convergence_delta[i]
        assert arrays["similarity-cam.coverage"] == explanation.coverage[i]
        assert {name: arrays[f"similarity-cam.shares.{name}"] for name in entry["shares"]} == entry["shares"]
        assert query["name"] == names[i]
        assert query["scores"] == dict(zip(NAMES, explanation.scores[i].tolist(), strict=True))
        assert query["target"] == NAMES[explanation.target[i]]
        overlay = Image.open(tmp_path / "new" / "result" / query["methods"]["similarity-cam"]["overlay"])
        assert overlay.size == (40 + i, 30)
    assert {path.name for path in (tmp_path / "new" / "result").iterdir()} == listed
    assert manifest["model"] == "EmbeddingNet"
    assert manifest["layer"] == "features"
    assert manifest["foil"] == "others"
    assert manifest["supports"] == {"wren": 2, "jay": 3, "crow": 1}
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_channel_contributions_are_saved(model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path) -> None:
    explanation = explain(model, queries, supports, layer="features")
    explanation.save(tmp_path)
    assert explanation.contributions is not None
    arrays = np.load(tmp_path / "query-1.npz")
    np.testing.assert_array_equal(arrays["fam.contributions"], explanation.contributions[1])


def test_a_result_that_cannot_be_finished_leaves_the_last_one_as_it_was(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = explain(model, queries, supports, layer="features")
    explanation.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("json.dumps", fail)
    with pytest.raises(OSError, match="no space left"):
        explain(model, queries * 2, supports, layer="features").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_others_in_the_folder_stay(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        explain(model, queries, supports, layer="features").save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_figure_shows_prediction_class_and_score(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    explanations = [
        explain(model, many_queries, support, layer="features", method=method, target="jay", foil="others")
        for method in ("similarity-cam", "grad-cam", "random")
    ]
    titles = [ax.get_title() for ax in compare_figure(explanations, 3, torch.rand(2, 3, 4, 4)).axes if ax.get_title()]
    score = f"score {float(explanations[0].target_scores[3]):#.3g}"
    predicted = NAMES[explanations[0].predicted[3]]
    assert titles == [
        f"query\npredicted: {predicted}",
        "support\njay\n2 of 3",
        f"similarity-cam\nwith foil\n{score}\nexplains 100 % of the score",
        f"grad-cam\nwith foil\n{score}\nno account of the score",
        "random\nno account of the score",
    ]
