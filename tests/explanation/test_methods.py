"""Without a method the exact map explains, with FAM beside it; several methods explain the same scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.attr.registry import METHODS
from captum_fam.explanation import Explainer, Explanation, explain
from captum_fam.similarity import EuclideanDifference
from tests.explanation.by_hand import cosines, embeddings, picture, small_model, write_pictures
from tests.explanation.networks import TwoLayers

OF_THE_SCORE = (
    "scores",
    "predicted",
    "target",
    "plain_scores",
    "support_rows",
    "support_similarities",
    "support_weights",
)


def cosines_by_hand(model: nn.Module, queries: Tensor, support: SupportSet) -> Tensor:
    """The mean cosine to the supports of each class, ``(B, 3)``, one pair after the other."""
    scores = torch.zeros(len(queries), 3, dtype=torch.float64)
    for query, z in enumerate(model(queries).tolist()):
        for row, t in enumerate(model(support.inputs).tolist()):
            product = sum(a * b for a, b in zip(z, t, strict=True))
            lengths = sum(a * a for a in z) ** 0.5 * sum(b * b for b in t) ** 0.5
            label = int(support.labels[row])
            scores[query, label] += product / lengths / support.class_counts[label]
    return scores


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("foil", [None, "others"])
def test_without_a_method_the_exact_map_explains_and_fam_stands_beside_it(
    foil: Any, batch_size: int, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    why = explain(model, many_queries, support, layer="features", foil=foil, batch_size=batch_size)
    (fam,) = why.beside
    assert (why.method, fam.method, fam.beside) == ("similarity-cam", "fam", ())
    scores = SimilarityToSupport(model, support, foil=foil)
    target = cosines_by_hand(model, many_queries, support).argmax(1)
    for one, made_by in ((why, LayerSimilarityCAM), (fam, LayerFAM)):
        expected = made_by(scores, model.features).attribute(many_queries, target=target)
        torch.testing.assert_close(one.attributions, expected)
        assert one.names == why.names
        for name in OF_THE_SCORE:
            assert torch.equal(getattr(one, name), getattr(why, name)), name
    torch.testing.assert_close(why.attributions.sum((1, 2, 3)), why.target_scores)
    assert (fam.coverage, fam.account_text(0)) == (None, "no account of the score")


@pytest.mark.parametrize(
    ("methods", "passes"), [(None, 1), (["similarity-cam", "fam", "random"], 1), (["fam", "similarity-cam"], 2)]
)
def test_the_support_is_embedded_once_and_the_maps_come_from_as_few_passes_as_can_be(
    methods: Any, passes: int, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    explainer = Explainer(model, support, layer="features", method=methods)
    explainer.explain(many_queries[:2])
    explainer.explain(many_queries[2:])
    assert sizes == [6, *[2] * passes, *[3] * passes]


def test_a_similarity_without_linear_weights_is_explained_by_fam_alone(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    with pytest.warns(UserWarning, match="EuclideanDifference has no linear weights.*fam explains alone") as issued:
        why = explain(model, many_queries, support, layer="features", similarity=EuclideanDifference())
    assert (why.method, why.beside) == ("fam", ())
    assert len([one for one in issued if "linear weights" in str(one.message)]) == 1
    assert any("no linear weights" in note for note in why.notes)


def test_a_list_of_layers_is_explained_by_the_exact_map_alone(support: SupportSet, many_queries: Tensor) -> None:
    net = TwoLayers().double().eval()
    with pytest.warns(UserWarning, match=r"fam explains one layer: .*similarity-cam explains alone"):
        why = explain(net, many_queries, support, layer=["fine", net.coarse])
    assert (why.method, why.beside) == ("similarity-cam", ())
    named = explain(net, many_queries, support, layer=["fine", "coarse"], method="similarity-cam")
    torch.testing.assert_close(why.attributions, named.attributions)
    assert repr(why) == "Explanation(5 queries, similarity-cam, layers 'fine', 'coarse')"


@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_the_first_of_several_methods_explains_and_the_others_stand_beside_it(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    methods = ["grad-cam", LayerSimilarityCAM, "mean-activation"]
    why = explain(model, many_queries, support, layer="features", method=methods, foil="runner-up", target=1)
    assert [why.method, *(one.method for one in why.beside)] == ["grad-cam", "similarity-cam", "mean-activation"]
    for one in (why, *why.beside):
        alone = explain(model, many_queries, support, layer="features", method=one.method, foil="runner-up", target=1)
        torch.testing.assert_close(one.attributions, alone.attributions)
        torch.testing.assert_close(one.plain_scores, alone.plain_scores)
        assert one.support_blind is alone.support_blind
        assert one.about == alone.about
        assert (one.coverage is None) is (alone.coverage is None)
    expected = LayerGradCam(SimilarityToSupport(model, support, foil="runner-up"), model.features)
    torch.testing.assert_close(why.attributions, expected.attribute(many_queries, target=1))


@pytest.mark.filterwarnings("ignore:more than half of a map")
def test_all_registered_methods_can_stand_beside_each_other(
    model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    names = [name for name, method in METHODS.items() if not method.needs_attention]
    why = explain(model, many_queries, support, layer="features", method=names, foil="others", batch_size=3)
    for one in (why, *why.beside):
        alone = explain(model, many_queries, support, layer="features", method=one.method, foil="others", batch_size=3)
        torch.testing.assert_close(one.attributions, alone.attributions)
        torch.testing.assert_close(one.target_scores, why.target_scores, rtol=0, atol=0)
        torch.testing.assert_close(one.coverage, alone.coverage)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ([], ValueError, "method is an empty sequence"),
        (["fam", LayerFAM], ValueError, "method has two methods of the name 'fam'"),
        (["fam", "gradcam"], ValueError, "method must be one of fam.*got 'gradcam'"),
        (["fam", 3], TypeError, "method must be a name"),
    ],
)
def test_methods_that_cannot_stand_together_are_refused(
    method: Any, error: type[Exception], message: str, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    with pytest.raises(error, match=message):
        explain(model, many_queries, support, layer="features", method=method)


def test_each_method_gets_the_arguments_that_it_takes(
    make_net: Callable[..., nn.Module], support: SupportSet, many_queries: Tensor
) -> None:
    net = make_net(head="linear-bias")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        why = explain(net, many_queries, support, layer="features", target=1, normalization="maxabs", biases="apart")
        scores = SimilarityToSupport(net, support)
        exact = LayerSimilarityCAM(scores, net.features, biases="apart").attribute(many_queries, target=1)
        fam = LayerFAM(scores, net.features, normalization="maxabs").attribute(many_queries, target=1)
    torch.testing.assert_close(why.attributions, exact)
    torch.testing.assert_close(why.beside[0].attributions, fam)
    assert (why.about["options"], why.beside[0].about["options"]) == ({"biases": "apart"}, {"normalization": "maxabs"})
    for method, words in ((None, "methods similarity-cam, fam"), ("random", "method random")):
        with pytest.raises(TypeError, match=rf"neither explain\(\) nor the {words} has an argument 'normalisation'"):
            explain(net, many_queries, support, layer="features", method=method, normalisation="none")
    with pytest.raises(TypeError, match="nor the method similarity-cam has an argument 'normalization'"):
        explain(net, many_queries, support, layer="features", method="similarity-cam", normalization="none")


def test_nobody_is_warned_of_a_map_that_nobody_asked_for(
    make_net: Callable[..., nn.Module], support: SupportSet, many_queries: Tensor
) -> None:
    net = make_net(head="linear")
    with pytest.warns(UserWarning, match="may be a classifier") as issued:
        why = explain(net, many_queries, support, layer="features")
    assert {"classifier" in str(one.message) for one in issued} == {True}  # the head is small
    assert not any("more than half of a map" in note for note in why.notes)
    assert any("more than half of a map" in note for note in why.beside[0].notes)
    with pytest.warns(UserWarning, match="more than half of a map"):
        explain(net, many_queries, support, layer="features", method=["similarity-cam", "fam"])


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        ({}, None),
        ({"foil": "others"}, "foil others"),
        ({"foil": "runner-up"}, "foil runner-up"),
        ({"foil": "gallery"}, "foil gallery"),
        ({"against": "threshold", "threshold": 0.25}, "threshold 0.25"),
        ({"against": "identity"}, "identity"),
    ],
    ids=str,
)
def test_the_plain_score_stands_beside_the_contrast(
    contrast: dict[str, Any], words: str | None, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    plain = cosines_by_hand(model, many_queries, support)
    one = plain[:, 1]
    best_other = plain[:, [0, 2]].max(1).values
    # 2 wrens, 3 jays and 1 crow are the gallery.
    mean = plain @ torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64) / 6
    expected = {
        None: one,
        "foil others": one - plain[:, [0, 2]].mean(1),
        "foil runner-up": one - best_other,
        "foil gallery": one - mean,
        "threshold 0.25": one - 0.25,
        "identity": 1 - one,
    }[words]
    why = explain(model, many_queries, support, layer="features", target=1, **contrast)
    assert why.contrast == words
    torch.testing.assert_close(why.plain_scores, one)
    torch.testing.assert_close(why.target_scores, expected)
    torch.testing.assert_close(why.attributions.sum((1, 2, 3)), expected)
    text = f"{float(expected[3]):#.3g}"
    assert why.score_text(3) == (text if words is None else f"{text} (plain score {float(one[3]):#.3g})")
    assert repr(why).endswith("layer 'features')" if words is None else f"layer 'features', {words})")
    assert why.about["against"] == contrast.get("against")
    assert why.about["threshold"] == contrast.get("threshold")


@pytest.mark.filterwarnings("ignore:the map explains")
def test_the_gallery_is_read_from_pictures(tmp_path: Path) -> None:
    photos = [picture(seed) for seed in range(3)]
    gallery = [picture(seed) for seed in range(70, 75)]
    folder = tmp_path / "gallery"
    files = write_pictures(folder, [f"{number}.png" for number in range(5)], 70)
    made = [small_model(), photos, {"jay": [picture(50), picture(51)], "wren": [picture(52)]}]
    for given, pictures in ((gallery, gallery), (folder, files)):
        why = explain(*made, foil="gallery", gallery=given, target="jay")
        z = embeddings(photos)
        plain = cosines(z, embeddings([picture(50), picture(51)])).mean(1)
        torch.testing.assert_close(why.plain_scores.double(), plain, rtol=1e-4, atol=1e-5)
        expected = plain - cosines(z, embeddings(pictures)).mean(1)
        torch.testing.assert_close(why.target_scores.double(), expected, rtol=1e-3, atol=1e-5)
        assert why.about["foil"] == "gallery"
    with pytest.raises(ValueError, match='gallery= needs foil="gallery"'):
        explain(*made, gallery=gallery)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.filterwarnings("ignore:the map explains")
def test_a_query_in_the_gallery_is_left_out_of_the_mean(batch_size: int) -> None:
    gallery = [picture(seed) for seed in range(70, 75)]
    queries = [gallery[1], picture(0), gallery[3], picture(1)]
    with pytest.warns(
        UserWarning, match="2 of 4 queries are in the gallery, as the same image; there they are left out"
    ):
        why = explain(small_model(), queries, [picture(50)], foil="gallery", gallery=gallery, batch_size=batch_size)
    for query, own in enumerate((1, None, 3, None)):
        others = [one for number, one in enumerate(gallery) if number != own]
        z = embeddings(queries[query : query + 1])
        expected = cosines(z, embeddings([picture(50)])) - cosines(z, embeddings(others)).mean()
        assert float(why.target_scores[query]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sides": "left"}, 'sides must be "query" or "both", got \'left\''),
        ({"top": 0}, "top must be a whole number of at least 1, got 0"),
        ({"against": "threshold"}, "threshold"),
        ({"against": "identity", "foil": "others"}, "exclude each other"),
        ({"sides": "both", "support": torch.ones(3, 6, dtype=torch.float64)}, 'sides="both" needs the images'),
    ],
    ids=str,
)
def test_contrasts_and_sides_that_do_not_fit_are_named(
    arguments: dict[str, Any], message: str, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    fitting: dict[str, Any] = {"support": support, "layer": "features"}
    with pytest.raises(ValueError, match=message):
        explain(model, many_queries, **{**fitting, **arguments})


@pytest.mark.filterwarnings("ignore:the map explains")
def test_both_sides_have_maps_for_each_method(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    why: Explanation = explain(model, many_queries, support, layer="features", sides="both", top=2, target=1)
    for one in (why, *why.beside):
        assert one.pairs is not None
        assert [len(pairs) for pairs in one.pairs] == [2] * 5
    for query, pairs in enumerate(why.pairs or ()):
        most_similar = why.supports_of(query)[:2]
        assert [pair.row for pair in pairs] == [used.row for used in most_similar]
        for pair, used in zip(pairs, most_similar, strict=True):
            assert pair.similarity == pytest.approx(used.similarity)
            assert float(pair.query_map.sum()) == pytest.approx(used.similarity)
            assert float(pair.support_map.sum()) == pytest.approx(used.similarity)
    assert explain(model, many_queries, support, layer="features").pairs is None
