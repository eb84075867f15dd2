"""Queries are explained by any method, in batches, and arguments that do not fit are named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from PIL import Image
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.attr.baselines import LayerMeanActivation
from captum_fam.attr.registry import METHODS
from captum_fam.explanation import Explainer, explain
from tests.explanation.networks import TwoLayers


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
        model, many_queries, support, layer="features", method="fam", target=1, foil="others", normalization="maxabs"
    )
    scores = SimilarityToSupport(model, support, foil="others")
    expected = LayerFAM(scores, model.features, normalization="maxabs").attribute(many_queries, target=1)
    torch.testing.assert_close(explanation.attributions, expected)


@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_every_name_of_the_registry_works(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    for name in (name for name, method in METHODS.items() if not method.needs_attention):
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


def test_a_tensor_is_a_support_of_one_class_with_a_name(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    explanation = explain(model, queries, supports, layer="features", class_names=["wren"])
    assert explanation.class_names == ("wren",)
    assert explanation.target.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": torch.rand(0, 3, 7, 5)}, ValueError, "inputs .*batch"),
        ({"inputs": [1]}, TypeError, "inputs .*tensor"),
        ({"support": torch.rand(2, 4, 3, 7, 5, dtype=torch.float64)}, ValueError, "support .*2 queries"),
        ({"method": "gradcam"}, ValueError, "method .*fam"),
        ({"method": 3}, TypeError, "method .*name"),
        ({"layer": "layer9"}, ValueError, "layer9"),
        ({"target": "owl"}, ValueError, "target 'owl' .*wren, jay, crow"),
        ({"target": 3}, ValueError, "target 3 "),
        ({"target": -1}, ValueError, "target -1 "),
        ({"target": [0, 1]}, ValueError, "target .*2 for 5"),
        ({"class_names": ["a", "b"]}, ValueError, "class_names .*2 names .*3 classes"),
        ({"target": 1.0}, ValueError, "target 1.0 "),
        ({"target": [0, None, 1, 1, 1]}, ValueError, "target None "),
        ({"class_names": "abc"}, TypeError, "class_names must be one name per class, got the single text 'abc'"),
        ({"names": ["a", "b", "c", "d", "a"]}, ValueError, "names .*different, got 'a' twice"),
        ({"names": ["a", "b"]}, ValueError, "names .*2 for 5"),
        ({"names": "abcde"}, TypeError, "names must be one name per query, got the single text 'abcde'"),
        ({"names": ["a", "b", "c", "d", 5]}, TypeError, "names must be texts, got int, str"),
        ({"images": [3] * 5}, TypeError, "images must be .*got a list of int"),
        ({"images": 3}, TypeError, "images must be a sequence.*got int"),
        ({"images": "q.jpg"}, ValueError, "images .*1 for 5"),
        ({"images": ["q.jpg"] * 5}, ValueError, "q.jpg: no such file"),
        ({"names": ["a", "b", "c", "d", "../e"]}, ValueError, "names .*separator"),
        ({"images": [torch.rand(3, 4, 4)]}, ValueError, "images .*1 for 5"),
        ({"method": lambda scores, layer: _Returns(torch.rand(5, 4))}, ValueError, r"shape \(5, 4\)"),
        ({"method": lambda scores, layer: _Returns((torch.rand(5, 1, 2, 2),))}, ValueError, "layer.*tuple"),
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


def test_names_are_checked_before_the_model_runs(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    explainer = Explainer(model, support.embed(model), layer="features")
    runs: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
    with pytest.raises(ValueError, match="names"):
        explainer.explain(many_queries, names=["a"] * 5)
    assert runs == []


@pytest.mark.parametrize("method", ["fam", "grad-cam", "random", LayerGradientXActivation])
def test_the_weights_of_supports_are_those_of_the_target(
    method: Any, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    """Two wrens, three jays, one crow; the weight of a support of the foil is negative."""
    explained = {"layer": "features", "method": method, "foil": "others"}
    for target, weights in (
        ("wren", [1 / 2, 1 / 2, *[-1 / 6] * 3, -1 / 2]),
        ("crow", [*[-1 / 4] * 2, *[-1 / 6] * 3, 1]),
    ):
        why = explain(model, many_queries, support, target=target, **explained)
        assert why.support_weights is not None
        for row in why.support_weights.tolist():
            assert row == pytest.approx(weights)


def test_files_are_images_for_display(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    files = [tmp_path / f"{index}.png" for index in range(5)]
    for index, file in enumerate(files):
        Image.new("RGB", (40 + index, 30), "white").save(file)
    given = [str(files[0]), files[1], files[2].read_bytes(), Image.open(files[3]), torch.rand(3, 30, 44)]
    why = explain(model, many_queries, support, layer="features", images=given)
    assert [why.overlay(index).size for index in range(5)] == [(40 + index, 30) for index in range(5)]
    alone = explain(model, many_queries[:1], support, layer="features", images=files[2])
    assert alone.overlay().size == (42, 30)


def test_an_output_that_is_no_embedding_names_what_explain_takes(queries: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3).double()

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return self.layer(x).mean((2, 3)), 1

    net = Two().eval()
    with pytest.raises(TypeError, match=r"the model must give .*\(2, 4\), int; .*output=INDEX of explain") as error:
        explain(net, queries, queries + 1, layer="layer")
    assert "forward_func" not in str(error.value)
    assert len(explain(net, queries, queries + 1, layer="model.layer", output=0)) == 2
