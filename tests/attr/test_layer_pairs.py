"""Pairs of positions: they add up to the maps and to the score, for every head, similarity and kind of input."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.attr import EmbeddingParts, LayerPairs, PairDecomposition
from captum_fam.similarity import Cosine, EuclideanDifference, LinearSimilarity, UnitEuclidean
from tests.attr.pair_models import CASES, make_case, pair_share, query_alone, similarities

pytestmark = pytest.mark.filterwarnings("ignore:the map :UserWarning")

every_case = pytest.mark.parametrize("case", CASES)


def pairs_of(name: str, similarity: Any = "cosine", dtype: torch.dtype = torch.float64) -> tuple[LayerPairs, Any]:
    case = make_case(name)
    case.model.to(dtype)
    pairs = LayerPairs(case.model, case.layer, similarity=similarity, **case.options)
    return pairs, pairs.run(case.inputs.to(dtype)).parts()


def check_sums(pair: PairDecomposition, query: EmbeddingParts, support: EmbeddingParts, tolerance: float) -> None:
    """The sums of the pairs, with the shares of other parts by the equations in plain loops."""
    similarity, (z,), (t,) = pair.similarity, query.embedding.tolist(), support.embedding.tolist()

    def shares(parts: list[Any], others: list[Any]) -> Tensor:
        table = [[pair_share(similarity, z, t, a, b) for b in others] for a in parts]
        return torch.tensor(table, dtype=torch.float64).view(len(parts), len(others))

    def alone(parts: list[Any]) -> Tensor:
        return torch.tensor([query_alone(similarity, z, t, a) for a in parts], dtype=torch.float64)

    positions, partners = query.positions[0].tolist(), support.positions[0].tolist()
    others, other_partners = ([part[0].tolist() for part in parts.others.values()] for parts in (query, support))
    matrix = pair.matrix().double()
    # All numbers are as exact as sums of terms of this size can be.
    size = float(matrix.abs().sum()) + abs(pair.score)

    def close(actual: Tensor, expected: Tensor) -> None:
        assert_close(actual, expected, rtol=0, atol=tolerance * size)

    close(matrix, shares(positions, partners))
    on_query = matrix.sum(1) + shares(positions, other_partners).sum(1) + alone(positions)
    close(pair.query_map.double().flatten(), on_query)
    on_support = matrix.sum(0) + shares(others, partners).sum(0)
    close(pair.support_map.double().flatten(), on_support)
    # What a distance counts from: the negative length of the support, or the score of a cosine of zero.
    zero = 0.0
    if isinstance(similarity, UnitEuclidean):
        zero = -2.0 if similarity.squared else -math.sqrt(2)
    elif not similarity.explains_whole_score:
        zero = float(similarity.score(torch.zeros_like(query.embedding), support.embedding))
    whole = on_query.sum() + shares(others, partners + other_partners).sum() + alone(others).sum() + zero
    close(whole, torch.tensor(pair.score, dtype=torch.float64))
    for named in (pair.query_shares, pair.support_shares):
        close(torch.tensor(sum(named.values())), torch.tensor(pair.score))
        assert abs(named["rest"]) <= tolerance * size
        assert next(iter(named)) == "map"
        assert list(named)[-1] == "rest"


@every_case
def test_pairs_add_up_to_both_maps_and_the_score_in_float64(case: str) -> None:
    pairs, parts = pairs_of(case)
    assert_close(parts.positions.sum(1) + sum(parts.others.values()), parts.embedding, rtol=1e-12, atol=1e-12)
    check_sums(pairs.decompose(parts[0], parts[2]), parts[0], parts[2], 1e-12)


@every_case
def test_pairs_add_up_to_both_maps_and_the_score_in_float32(case: str) -> None:
    pairs, parts = pairs_of(case, dtype=torch.float32)
    assert parts.positions.dtype == torch.float32
    check_sums(pairs.decompose(parts[0], parts[2]), parts[0], parts[2], 1e-6)


@pytest.mark.parametrize("case", ["signed head", "vit"])
@pytest.mark.parametrize("name", similarities(1))
def test_pairs_add_up_for_every_similarity_with_linear_weights(name: str, case: str) -> None:
    features = make_case(case).model(make_case(case).inputs).shape[1]
    similarity = similarities(features)[name]
    pairs, parts = pairs_of(case, similarity)
    pair = pairs.decompose(parts[1], parts[0])
    check_sums(pair, parts[1], parts[0], 1e-12)
    assert ("own length" in pair.support_shares) == (name in ("squared-euclidean", "euclidean", "mahalanobis"))
    assert ("zero embedding" in pair.query_shares) == (not similarity.explains_whole_score)


class OwnSimilarity(LinearSimilarity):
    """With weights that are not linear in the support, for supports that the batch shares."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query @ (support.abs() * support).T

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return support_weights @ (support.abs() * support)


def test_pairs_add_up_for_a_similarity_with_score_and_weights_only() -> None:
    pairs, parts = pairs_of("signed head", OwnSimilarity())
    pair = pairs.decompose(parts[0], parts[1])
    z, t = parts.embedding[0], parts.embedding[1]
    assert_close(torch.tensor(pair.score, dtype=torch.float64), (z * t.abs() * t).sum())
    # The scale |t| of each feature is held.
    expected = torch.einsum("qj,j,pj->qp", parts.positions[0], t.abs(), parts.positions[1])
    assert_close(pair.matrix(), expected, rtol=1e-12, atol=1e-14)
    bias = {"query": parts.others["bias"][0], "support": parts.others["bias"][1]}
    on_query = expected.sum(1) + parts.positions[0] @ (t.abs() * bias["support"])
    assert_close(pair.query_map.flatten(), on_query, rtol=1e-12, atol=1e-14)
    on_support = expected.sum(0) + parts.positions[1] @ (t.abs() * bias["query"])
    assert_close(pair.support_map.flatten(), on_support, rtol=1e-12, atol=1e-14)
    assert "own length" not in pair.support_shares


def test_a_mean_and_a_linear_head_have_the_closed_form() -> None:
    case = make_case("signed head")
    head = case.model.head
    head.bias.data.zero_()
    pairs = LayerPairs(case.model, case.layer)
    parts = pairs.run(case.inputs).parts()
    activation, embedding = case.model.features(case.inputs).detach(), case.model(case.inputs).detach()
    for q in range(activation.shape[2] * activation.shape[3]):
        first = head.weight @ activation[0].flatten(1)[:, q] / 35
        for p in (0, 17, 34):
            second = head.weight @ activation[2].flatten(1)[:, p] / 35
            share = first @ second / (embedding[0].norm() * embedding[2].norm())
            assert_close(pairs.decompose(parts[0], parts[2]).rows(q, q + 1)[0, p], share.detach())


@every_case
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_the_map_of_the_query_is_that_of_similarity_cam(case: str, similarity: str) -> None:
    given = make_case(case)
    pairs, parts = pairs_of(case, similarity)
    cam = LayerSimilarityCAM(given.model, given.layer, similarity=similarity, **given.options)
    details = cam.details(given.inputs, support=parts.embedding[[1, 2, 0]].unsqueeze(1))
    for query, support in enumerate((1, 2, 0)):
        pair = pairs.decompose(parts[query], parts[support])
        assert_close(pair.query_map, details.attributions[query, 0], rtol=1e-10, atol=1e-12)
        assert_close(pair.score, details.comparison.score[query].item())
        assert_close(pair.query_coverage, details.coverage[query].item())
        for name, share in pair.query_shares.items():
            assert_close(share, details.shares[name][query].item(), rtol=1e-9, atol=1e-12)


@every_case
def test_the_map_of_the_support_is_that_of_similarity_cam_with_the_roles_exchanged(case: str) -> None:
    given = make_case(case)
    pairs, parts = pairs_of(case)
    cam = LayerSimilarityCAM(given.model, given.layer, **given.options)
    details = cam.details(given.inputs[1:2], support=parts.embedding[:1])
    pair = pairs.decompose(parts[0], parts[1])
    assert_close(pair.support_map, details.attributions[0, 0], rtol=1e-10, atol=1e-12)
    assert_close(pair.support_coverage, details.coverage[0].item())


def test_a_pair_of_an_image_with_itself_is_symmetric() -> None:
    pairs, parts = pairs_of("whitening")
    pair = pairs.decompose(parts[1], parts[1])
    assert_close(pair.matrix(), pair.matrix().T)
    assert_close(pair.query_map, pair.support_map)
    assert_close(pair.score, 1.0)


def test_a_score_of_zero_has_no_coverage() -> None:
    pairs, parts = pairs_of("headless")
    empty = EmbeddingParts(
        torch.zeros(1, 6).double(), torch.zeros(1, 35, 6).double(), (7, 5), {}, torch.zeros(1, 35, 6).double()
    )
    pair = pairs.decompose(parts[0], empty)
    assert pair.score == 0
    assert pair.query_coverage != pair.query_coverage
    assert not pair.matrix().any()
    assert not pair.query_map.any()


# What a run leaves as it was


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the forward function fails")


def state_of(model: nn.Module) -> Any:
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    flags = [(value.requires_grad, value.grad is None) for value in model.parameters()]
    return hooks, flags, [module.training for module in model.modules()]


def test_a_run_leaves_the_model_as_it_was() -> None:
    case = make_case("signed head")
    case.model.features[0].weight.requires_grad_(False)
    case.model.head.train()
    before, values, random = state_of(case.model), copy.deepcopy(case.model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        pairs = LayerPairs(case.model, case.layer)
        parts = pairs.run(case.inputs).parts()
        pairs.decompose(parts[0], parts[1]).top_matches(3)
    assert state_of(case.model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, values[name]) for name, value in case.model.state_dict().items())
    assert not parts.positions.requires_grad


def test_a_model_that_fails_is_left_clean() -> None:
    case = make_case("signed head")
    case.model.head = Failing()
    before = state_of(case.model)
    with pytest.raises(RuntimeError, match="forward function fails"):
        LayerPairs(case.model, case.layer).run(case.inputs)
    assert state_of(case.model) == before


def test_the_graph_goes_with_the_run() -> None:
    case = make_case("vit")
    run = LayerPairs(case.model, case.layer, **case.options).run(case.inputs)
    parts = run.parts()
    leaf = weakref.ref(run._run.ways[0].starts[0].tensors[0])
    detached = run.detach()
    gc.disable()
    try:
        del run
        assert leaf() is None
    finally:
        gc.enable()
    assert detached.parts() is parts


# Options and errors


def test_a_similarity_to_support_gives_model_and_similarity() -> None:
    case = make_case("signed head")
    pairs = LayerPairs(SimilarityToSupport(case.model, SupportSet(case.inputs), "dot"), "features")
    parts = pairs.run(case.inputs).parts()
    pair = pairs.decompose(parts[0], parts[1])
    assert_close(pair.score, float(parts.embedding[0] @ parts.embedding[1]))


def test_half_precision_adds_up_too() -> None:
    case = make_case("signed head")
    pairs = LayerPairs(case.model.bfloat16(), case.layer)
    parts = pairs.run(case.inputs.bfloat16()).parts()
    assert parts.positions.dtype == torch.float32
    assert_close(parts.positions.sum(1) + sum(parts.others.values()), parts.embedding, rtol=1e-5, atol=1e-6)
    assert parts.others["rest"].abs().max() < 0.05 * parts.embedding.abs().max()


def test_a_similarity_without_weights_is_refused() -> None:
    case = make_case("headless")
    with pytest.raises(ValueError, match="similarity EuclideanDifference has contributions but no linear weights"):
        LayerPairs(case.model, case.layer, similarity=EuclideanDifference())


def test_errors_name_what_came_and_what_was_expected() -> None:
    case = make_case("headless")
    pairs = LayerPairs(case.model, case.layer)
    with pytest.raises(TypeError, match="layer must be one module or name, got list"):
        LayerPairs(case.model, [case.layer])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs is an empty batch"):
        pairs.run(case.inputs[:0])
    with pytest.raises(ValueError, match="no spatial dimension"):
        LayerPairs(case.model, "head").run(case.inputs)
    parts = pairs.run(case.inputs).parts()
    with pytest.raises(ValueError, match="support holds the parts of 2 images; pass those of one"):
        pairs.decompose(parts[0], parts[:2])
    _, others = pairs_of("signed head")
    with pytest.raises(ValueError, match="support embeds to 4 features but the query to 6"):
        PairDecomposition(parts[0], others[0], Cosine())


def test_a_layer_of_two_tensors_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.two(x)
            return (first + second).mean((2, 3))

    run = LayerPairs(Net().eval(), "two").run(torch.rand(2, 3, 4, 5))
    with pytest.raises(ValueError, match="layer gives 2 tensors; pairs are made of the positions of one"):
        run.parts()
