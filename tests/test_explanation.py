from __future__ import annotations

import dataclasses
import json
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
from captum_fam.explanation import compare_figure, explain
from captum_fam.methods import METHODS

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
    signed = {"normalization": "none"} if name == "fam" and foil else {}
    expected = made_by(scores, model.features, **signed).attribute(many_queries, target=1)
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
    for field in ("maps", "scores", "predicted", "target", "contributions", "convergence_delta"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field))


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
        ({"inputs": torch.rand(0, 3, 7, 5)}, ValueError, "inputs must be a batch"),
        ({"inputs": [1]}, TypeError, "inputs must be a tensor"),
        ({"support": torch.rand(2, 4, 3, 7, 5)}, ValueError, "support has shape"),
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


def test_a_model_in_training_mode_is_pointed_out(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    with pytest.warns(UserWarning, match="training mode"):
        explain(model.train(), queries, supports, layer="features")


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
        listed |= {query["arrays"], query["methods"]["similarity-cam"]["overlay"]}
        arrays = np.load(tmp_path / "new" / "result" / query["arrays"])
        np.testing.assert_array_equal(arrays["similarity-cam"], explanation.maps[i, 0])
        np.testing.assert_array_equal(arrays["similarity-cam.layer"], explanation.attributions[i, 0])
        assert arrays["similarity-cam.delta"] == explanation.convergence_delta[i]
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

    monkeypatch.setattr("captum_fam.explanation.write_json", fail)
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
        for method in ("similarity-cam", "grad-cam")
    ]
    titles = [ax.get_title() for ax in compare_figure(explanations, 3, torch.rand(2, 3, 4, 4)).axes if ax.get_title()]
    score = f"score {float(explanations[0].target_scores[3]):.3g}"
    predicted = NAMES[explanations[0].predicted[3]]
    assert titles == [
        f"query\npredicted: {predicted}",
        "support\njay\n2 of 3",
        f"similarity-cam\nwith foil\n{score}",
        f"grad-cam\nwith foil\n{score}",
    ]
