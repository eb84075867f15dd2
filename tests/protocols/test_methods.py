"""Methods by name, with foils and options, and scores of pairs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.protocols.methods import DEFAULT_METHODS, METHOD_NAMES, PairedScores, get_methods
from tests.protocols.runs import make_model


def test_names_carry_foil_and_options() -> None:
    plain, foil, options = get_methods(
        "fam, grad-cam-foil,fam[weighting=weights,normalization=maxabs]-foil", "runner-up"
    )
    assert (plain.base, plain.foil, dict(plain.options)) == ("fam", None, {})
    assert (foil.base, foil.foil) == ("grad-cam", "runner-up")
    assert dict(options.options) == {"normalization": "maxabs", "weighting": "weights"}


def test_a_runner_up_is_one_whatever_the_foil() -> None:
    foil, runner_up = get_methods("fam-foil,fam-runner-up", "others")
    assert (foil.foil, runner_up.foil) == ("others", "runner-up")


def test_fam_keeps_the_sign_of_a_foil() -> None:
    (method,) = get_methods("fam-foil")
    assert method.options["normalization"] == "none"


def test_numbers_in_options_are_numbers() -> None:
    (method,) = get_methods("centre[sigma=0.2]")
    assert method.options["sigma"] == 0.2


def test_a_box_on_the_grid_of_the_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"centre\[box=0.6\].*use centre-box"):
        get_methods("fam,centre[box=0.6]")
    with pytest.raises(ValueError, match="centre-box has no options"):
        get_methods("centre-box[share=0.5]")


def test_a_method_that_is_named_twice_is_made_once() -> None:
    assert len(get_methods("fam,grad-cam,fam")) == 2


@pytest.mark.parametrize("name", ["grad-cam++", "fam-foil-foil", "fam[", "fam[normalization]", "FAM"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="method"):
        get_methods(name)


@pytest.mark.parametrize("name", sorted({*DEFAULT_METHODS, *METHOD_NAMES}))
def test_every_method_gives_one_finite_map_a_query(name: str) -> None:
    model = make_model(head=True)
    activation = torch.rand(3, 12, 5, 7)
    support = SupportSet(torch.rand(4, 12, 5, 7), [0, 0, 1, 1])
    (method,) = get_methods(name)
    maps = method.maps(
        lambda foil: SimilarityToSupport(model.tail, support, foil=foil),
        model.tail.activation,
        activation,
        torch.tensor([0, 1, 1]),
        (20, 28),
    )
    assert maps.shape[:2] == (3, 1)
    assert maps.shape[2:] in ((5, 7), (20, 28))
    assert maps.isfinite().all()
    assert not maps.requires_grad


def test_a_foiled_map_of_the_exact_method_is_the_difference_of_two() -> None:
    model = make_model(head=True)
    activation = torch.rand(2, 12, 5, 7)
    support = SupportSet(torch.rand(3, 12, 5, 7), [0, 1, 2])
    target = torch.tensor([2, 0])

    def maps(name: str, classes: torch.Tensor) -> torch.Tensor:
        (method,) = get_methods(name)
        scores = lambda foil: SimilarityToSupport(model.tail, support, foil=foil)  # noqa: E731
        return method.maps(scores, model.tail.activation, activation, classes, (20, 28))

    others = [maps("similarity-cam", (target + step) % 3) for step in (1, 2)]
    expected = maps("similarity-cam", target) - (others[0] + others[1]) / 2
    torch.testing.assert_close(maps("similarity-cam-foil", target), expected, rtol=1e-4, atol=1e-6)


def test_paired_scores_explain_each_query_by_its_own_supports() -> None:
    model = make_model(head=True)
    activation = torch.rand(3, 12, 5, 7)
    embeddings = torch.randn(6, 6)
    weights = torch.tensor(
        [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.3, 0.5, 0.0]]
    )
    scores = PairedScores(model.tail, embeddings, weights)
    with torch.no_grad():
        cosines = normalize(model.tail(activation)) @ normalize(embeddings).T
        torch.testing.assert_close(scores(activation), cosines @ weights.T)
    together = LayerFAM(scores, model.tail.activation).attribute(activation, target=torch.arange(3))
    for query, rows in ((0, [0, 1]), (1, [2])):
        own = LayerFAM(model.tail, model.tail.activation)
        alone = own.attribute(activation[query : query + 1], support=embeddings[rows])
        torch.testing.assert_close(together[query : query + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_foil_of_paired_scores_is_subtracted_query_by_query() -> None:
    model = make_model(head=True)
    activation = torch.rand(2, 12, 5, 7)
    embeddings = torch.randn(4, 6)
    classes, foils = torch.eye(4)[:2], torch.eye(4)[2:]
    target = torch.arange(2)

    def cam(weights: torch.Tensor, foil: torch.Tensor | None = None) -> torch.Tensor:
        scores = PairedScores(model.tail, embeddings, weights, foil)
        return LayerSimilarityCAM(scores, model.tail.activation).attribute(activation, target=target)

    torch.testing.assert_close(cam(classes, foils), cam(classes) - cam(foils), rtol=1e-4, atol=1e-6)
