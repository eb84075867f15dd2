"""A memory bank as the support: every query is compared with rows of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, MemoryBank
from captum_fam.similarity import Bilinear, EuclideanDifference

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

B, M, K, C = 5, 60, 12, 4
READINGS = ["predicted", "all", "vote", "within-class", "whole-class", "nearest"]


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear-bias", normalize=True)


@pytest.fixture
def x(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(B, seed=1)


@pytest.fixture
def bank(net: nn.Module, make_images: Callable[..., Tensor]) -> MemoryBank:
    embeddings = net(make_images(M, seed=2)).detach() * torch.linspace(0.5, 2, M, dtype=torch.float64)[:, None]
    return MemoryBank(embeddings, torch.arange(M) % C, ["ant", "bee", "cat", "dog"], k=K, temperature=0.2)


def chosen_rows(bank: MemoryBank, z: Tensor, label: int, neighbors: str) -> dict[int, float]:
    """Row -> weight in Eq. 11 for one query, sorted and counted in plain Python."""
    cosines = [float(torch.dot(z, t) / (z.norm() * t.norm())) for t in bank.embeddings]
    ranked = sorted(range(len(cosines)), key=lambda row: -cosines[row])
    members = [row for row in ranked if int(bank.labels[row]) == label]
    nearest = ranked[:K]
    of_class = [row for row in nearest if row in members]
    rows = {
        "predicted": of_class,
        "all": nearest,
        "vote": of_class,
        "within-class": members[:K],
        "whole-class": members,
        "nearest": ranked[:1],
    }[neighbors]
    weights = [math.exp(cosines[row] / 0.2) if neighbors == "vote" else 1.0 for row in rows]
    return {row: weight / math.fsum(weights) for row, weight in zip(rows, weights, strict=True)}


def predicted_class(bank: MemoryBank, z: Tensor) -> int:
    votes = [0.0] * C
    for row in chosen_rows(bank, z, 0, "all"):
        t = bank.embeddings[row]
        votes[int(bank.labels[row])] += math.exp(float(torch.dot(z, t) / (z.norm() * t.norm())) / 0.2)
    return votes.index(max(votes))


# Without Eq. 12 a map is linear in the supports: that of several is the weighted sum of those of one.
LINEAR: list[tuple[Any, dict[str, Any]]] = [
    (LayerFAM, {"normalization": "none"}),
    (LayerFAM, {"normalization": "none", "support_scale": "none", "weighting": "contributions"}),
    (LayerFAM, {"normalization": "none", "support_scale": "none", "weighting": "weights"}),
    (LayerSimilarityCAM, {}),
]


@pytest.mark.parametrize("neighbors", READINGS)
@pytest.mark.parametrize(("method", "options"), LINEAR)
def test_the_map_is_the_weighted_sum_of_the_maps_of_the_chosen_rows(
    net: nn.Module, x: Tensor, bank: MemoryBank, neighbors: Any, method: Any, options: dict[str, Any]
) -> None:
    explainer = method(net, net.features, **options)
    maps = explainer.attribute(x, support=bank.using(neighbors=neighbors))
    assert maps.shape == (B, 1, 7, 5)
    for b, z in enumerate(net(x).detach()):
        rows = chosen_rows(bank, z, predicted_class(bank, z), neighbors)
        expected = sum(
            weight * explainer.attribute(x[b : b + 1], support=bank.embeddings[row : row + 1])
            for row, weight in rows.items()
        )
        torch.testing.assert_close(maps[b : b + 1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("neighbors", ["predicted", "all", "within-class", "whole-class", "nearest"])
def test_the_published_map_is_that_of_the_chosen_rows_as_supports(
    net: nn.Module, x: Tensor, bank: MemoryBank, neighbors: Any
) -> None:
    fam = LayerFAM(net, net.features)
    maps = fam.attribute(x, support=bank.using(neighbors=neighbors))
    for b, z in enumerate(net(x).detach()):
        rows = list(chosen_rows(bank, z, predicted_class(bank, z), neighbors))
        expected = fam.attribute(x[b : b + 1], support=bank.embeddings[rows])
        torch.testing.assert_close(maps[b : b + 1], expected, rtol=1e-9, atol=1e-12)


def test_any_class_can_be_explained(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    fam = LayerFAM(net, net.features)
    of_class = bank.using(neighbors="within-class")
    for target in (2, [0, 1, 2, 3, 0], torch.tensor([3, 3, 0, 1, 2])):
        maps = fam.attribute(x, support=of_class, target=target)
        for b, z in enumerate(net(x).detach()):
            label = target if isinstance(target, int) else int(target[b])
            rows = list(chosen_rows(bank, z, label, "within-class"))
            expected = fam.attribute(x[b : b + 1], support=bank.embeddings[rows])
            torch.testing.assert_close(maps[b : b + 1], expected, rtol=1e-9, atol=1e-12)


def test_the_details_tell_votes_and_classes(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    comparison = LayerFAM(net, net.features).details(x, support=bank).comparison
    vote = bank.classify(net(x).detach())
    for b, z in enumerate(net(x).detach()):
        for label in range(C):
            rows = [row for row in vote.neighbor_indices[b].tolist() if bank.labels[row] == label]
            cosines = nn.functional.cosine_similarity(z[None], bank.embeddings[rows])
            expected = cosines.mean() if rows else torch.tensor(-torch.inf)
            assert float(comparison.scores[b, label]) == pytest.approx(float(expected), abs=1e-12)
    assert comparison.predicted.tolist() == [predicted_class(bank, z) for z in net(x).detach()]
    assert comparison.target.equal(comparison.predicted)
    assert comparison.class_names == ("ant", "bee", "cat", "dog")
    shares = (comparison.support_weights * comparison.explained).sum(1)
    for b, z in enumerate(net(x).detach()):
        rows = chosen_rows(bank, z, int(comparison.predicted[b]), "predicted")
        cosines = torch.cosine_similarity(z[None], bank.embeddings[list(rows)])
        assert shares[b].item() == pytest.approx(cosines.mean().item())


def test_the_exact_map_sums_to_the_mean_similarity(
    make_net: Callable[..., nn.Module], x: Tensor, bank: MemoryBank
) -> None:
    net = make_net(head="linear")
    _, delta = LayerSimilarityCAM(net, net.features).attribute(x, support=bank, return_convergence_delta=True)
    assert delta.abs().max() < 1e-10


def test_leave_one_out_compares_no_image_with_itself(net: nn.Module, x: Tensor) -> None:
    fam = LayerFAM(net, net.features)
    embeddings = net(x).detach()
    bank = MemoryBank(embeddings, [0] * B, k=1)
    maps = fam.attribute(x, support=bank.using(exclude=range(B)))
    rest = torch.cat([embeddings[:2], embeddings[3:]])
    expected = fam.attribute(x[2:3], support=MemoryBank(rest, [0] * (B - 1), k=1))
    torch.testing.assert_close(maps[2:3], expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(maps[2], fam.attribute(x, support=bank)[2])


@pytest.mark.parametrize("similarity", ["dot", "euclidean", Bilinear(torch.rand(4, 4)), EuclideanDifference()])
def test_other_measures_find_and_explain(net: nn.Module, x: Tensor, bank: MemoryBank, similarity: Any) -> None:
    other = MemoryBank(bank.embeddings, bank.labels, k=K, similarity=similarity)
    fam = LayerFAM(net, net.features, similarity=similarity)
    maps = fam.attribute(x, support=other)
    support = other.support(net(x).detach())
    for b in range(B):
        rows = support.indices[b][support.weights[b] > 0]
        expected = fam.attribute(x[b : b + 1], support=bank.embeddings[rows])
        torch.testing.assert_close(maps[b : b + 1], expected, rtol=1e-9, atol=1e-12)


def test_a_bank_in_half_precision_explains_in_that_of_the_model(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    half = bank.to(dtype=torch.float16)
    wide = MemoryBank(half.embeddings.double(), bank.labels, k=K, temperature=0.2)
    maps = LayerFAM(net, net.features).attribute(x, support=half)
    assert maps.dtype == torch.float64
    torch.testing.assert_close(maps, LayerFAM(net, net.features).attribute(x, support=wide))
    single = LayerFAM(net.float(), net.features).attribute(x.float(), support=bank)
    torch.testing.assert_close(
        single.double(), LayerFAM(net.double(), net.features).attribute(x, support=bank), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM])
def test_the_supports_of_the_batch_are_never_in_memory_together(
    net: nn.Module, x: Tensor, bank: MemoryBank, method: Any, largest_tensor: Any
) -> None:
    explainer = method(net, net.features)
    everything = bank.using(k=M, neighbors="all")
    with largest_tensor() as largest:
        explainer.attribute(x, support=everything)
    assert largest.numel < B * M * 4


def test_captums_tools_take_a_bank(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    fam = LayerFAM(net, net.features)
    quiet = NoiseTunnel(fam).attribute(x, nt_samples=3, stdevs=0.0, support=bank)
    torch.testing.assert_close(quiet, fam.attribute(x, support=bank), rtol=1e-9, atol=1e-12)

    def explain(inputs: Any, support: MemoryBank) -> tuple[Tensor]:
        return (fam.attribute(inputs[0] if isinstance(inputs, tuple) else inputs, support=support),)

    assert sensitivity_max(explain, x, n_perturb_samples=2, support=bank).shape == (B,)


def test_a_bank_of_another_measure_is_refused(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    with pytest.raises(ValueError, match=r"similarity of the support is Cosine\(\) but the map explains Dot\(\)"):
        LayerFAM(net, net.features, similarity="dot").attribute(x, support=bank)


def test_a_bank_of_another_model_is_refused(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match="embeds to 9 features but the query to 4"):
        LayerFAM(net, net.features).attribute(x, support=MemoryBank(torch.rand(7, 9), [0] * 7))


def test_a_target_that_captum_refuses_is_refused(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    with pytest.raises(AssertionError, match="out of range for 4 classes"):
        LayerFAM(net, net.features).attribute(x, support=bank, target=4)


def test_a_class_without_neighbors_is_no_silent_map(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    lonely = MemoryBank(bank.embeddings, bank.labels, k=1)
    other = (lonely.classify(net(x).detach()).predicted + 1) % C
    with pytest.raises(ValueError, match=r'quer(y|ies) 0.*of class \w+ among the 1 nearest rows; .*"within-class"'):
        LayerFAM(net, net.features).attribute(x, support=lonely, target=other)


def test_a_bank_has_no_positions_to_match(net: nn.Module, x: Tensor, bank: MemoryBank) -> None:
    with pytest.raises(ValueError, match=r"support must be images .*, got a MemoryBank"):
        LayerCorrespondence(net, net.features).attribute(x, support=bank)
