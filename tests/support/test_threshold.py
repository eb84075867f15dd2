"""Scores against a threshold and against the identity: for every support and similarity, and in maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, MemoryBank, SimilarityToSupport, SupportSet
from captum_fam.attr import LayerCorrespondence, LayerSimilarityShapley
from captum_fam.similarity import (
    Bilinear,
    Cosine,
    Dot,
    Euclidean,
    EuclideanDifference,
    Learned,
    Mahalanobis,
    Similarity,
    UnitEuclidean,
)
from captum_fam.support import (
    ContrastedSupport,
    LeaveOutSupport,
    Neighbors,
    ShardedMemoryBank,
    Support,
    SupportPerQuery,
    ThresholdedSupport,
    WeightedSupport,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning"),
    pytest.mark.filterwarnings("ignore:the map explains:UserWarning"),
]

J = 7
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MATRIX = random(J, J, seed=9)
SIMILARITIES: dict[str, Similarity] = {
    "cosine": Cosine(),
    "dot": Dot(),
    "bilinear": Bilinear(MATRIX),
    "euclidean": Euclidean(),
    "squared": Euclidean(squared=True),
    "mahalanobis": Mahalanobis(MATRIX @ MATRIX.T),
    "unit": UnitEuclidean(),
    "unit squared": UnitEuclidean(squared=True),
    "difference": EuclideanDifference(squared=True),
    "learned": Learned(lambda z, t: (z * t).sum(1) ** 2, n_steps=20),
}


def support_of(kind: str, rows: Tensor, similarity: Similarity) -> Support:
    left_out = torch.zeros(3, 8, dtype=torch.bool)
    left_out[0, 3] = left_out[2, 5] = True
    weights = nn.functional.one_hot(torch.tensor(LABELS)).T.double()
    kinds: dict[str, Callable[[], Support]] = {
        "set": lambda: SupportSet(rows, LABELS),
        "leave-out": lambda: LeaveOutSupport(SupportSet(rows, LABELS), left_out),
        "per query": lambda: SupportPerQuery(rows[:6].view(3, 2, J)),
        "neighbors": lambda: Neighbors([[0, 2], [1, None], [7, 3]], embeddings=rows),
        "weighted": lambda: WeightedSupport(rows, 0.3 * weights),
        "bank": lambda: MemoryBank(rows, LABELS, similarity=similarity, k=4),
        "vote": lambda: MemoryBank(rows, LABELS, similarity=similarity, k=4, neighbors="vote"),
        "shards": lambda: ShardedMemoryBank(MemoryBank(rows, LABELS, similarity=similarity, k=4)),
    }
    return kinds[kind]()


def test_a_cosine_against_a_threshold_by_hand() -> None:
    support = SupportSet(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["jay", "wren"])
    query = torch.tensor([[6.0, 8.0]])
    comparison = ThresholdedSupport(support, "threshold", 0.7).compare(query)
    torch.testing.assert_close(comparison.scores, torch.tensor([[-0.1, 0.1]]))
    assert comparison.predicted.tolist() == [1]
    torch.testing.assert_close(comparison.plain_score, torch.tensor([0.8]))
    # The cosine adds 0 and 0.8; the threshold takes 0.7 times 0.36 and 0.64, the shares of the squared length.
    torch.testing.assert_close(comparison.contributions(), torch.tensor([[-0.252, 0.352]]))
    torch.testing.assert_close(comparison.linear_weights(), torch.tensor([[-0.042, 0.044]]))
    reverse = ThresholdedSupport(support, "identity").compare(query)
    torch.testing.assert_close(reverse.scores, torch.tensor([[0.4, 0.2]]))
    assert reverse.predicted.tolist() == [1]
    torch.testing.assert_close(reverse.contributions(), torch.tensor([[0.36, -0.16]]))


def test_a_distance_against_a_threshold_by_hand() -> None:
    support, query = SupportSet(torch.tensor([[3.0, 2.0]])), torch.tensor([[1.0, 2.0]])
    comparison = ThresholdedSupport(support, "threshold", -1.0).compare(query, similarity=Euclidean(squared=True))
    # s = -4 and s(0) = -13: contributions 5 and 4 to the gain of 9, minus 12 times 1/5 and 4/5.
    torch.testing.assert_close(comparison.score, torch.tensor([-3.0]))
    torch.testing.assert_close(comparison.contributions(), torch.tensor([[5 - 2.4, 4 - 9.6]]))
    torch.testing.assert_close(comparison.explained_score, torch.tensor([-3.0]))
    apart = ThresholdedSupport(support, "identity").compare(query, similarity=Euclidean(squared=True))
    torch.testing.assert_close(apart.score, torch.tensor([4.0]))
    torch.testing.assert_close(apart.contributions(), torch.tensor([[13 / 5 - 5, 4 * 13 / 5 - 4]]))


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize("kind", ["set", "leave-out", "per query", "neighbors", "weighted", "bank", "vote", "shards"])
def test_every_support_and_similarity_is_compared_with_the_number(kind: str, name: str) -> None:
    similarity = SIMILARITIES[name]
    query, rows = random(3, J, seed=1), random(8, J, seed=2)
    support = support_of(kind, rows, similarity)
    plain = support.for_every_class().compare(query, similarity=similarity)
    itself = torch.stack([similarity.score(z[None], z[None])[0, 0] for z in query])
    model = nn.Identity().eval()
    for against, threshold, expected, all_expected in (
        ("threshold", 0.37, plain.score - 0.37, plain.class_scores - 0.37),
        ("identity", None, itself - plain.score, itself[:, None] - plain.class_scores),
    ):
        scores = SimilarityToSupport(model, support, similarity, against=against, threshold=threshold)  # type: ignore[arg-type]
        found = scores.compare(query)
        there = plain.class_scores > -torch.inf
        torch.testing.assert_close(found.scores[there], all_expected[there], **TIGHT)
        assert (found.scores[~there] == -torch.inf).all()
        torch.testing.assert_close(found.score, expected, **TIGHT)
        torch.testing.assert_close(found.explained_score, expected, **TIGHT)
        torch.testing.assert_close(found.plain_score, plain.score, **TIGHT)
        assert torch.equal(found.predicted, plain.predicted)
        assert found.with_foil.all()
        # Captum's quadrature has the precision of float32.
        loose = {"rtol": 1e-5, "atol": 1e-5} if name == "learned" else TIGHT
        torch.testing.assert_close(found.contributions().sum(1), expected, **loose)
        if similarity.has_weights:
            torch.testing.assert_close((query * found.linear_weights()).sum(1), expected, **loose)
        part = ThresholdedSupport(support, against, threshold).for_queries(1, 2)  # type: ignore[arg-type]
        torch.testing.assert_close(part.compare(query[1:2], similarity=similarity).score, expected[1:2], **TIGHT)


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear")


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "squared", "unit", "unit squared"])
def test_the_exact_map_adds_up_to_the_whole_difference(
    name: str, net: nn.Module, make_images: Callable[..., Tensor]
) -> None:
    x, images = make_images(3, seed=1), make_images(4, seed=2)
    measure = {
        "cosine": lambda z, t: (z * t).sum() / z.norm() / t.norm(),
        "dot": lambda z, t: (z * t).sum(),
        "euclidean": lambda z, t: -(z - t).norm(),
        "squared": lambda z, t: -((z - t) ** 2).sum(),
        "unit": lambda z, t: -(z / z.norm() - t / t.norm()).norm(),
        "unit squared": lambda z, t: -((z / z.norm() - t / t.norm()) ** 2).sum(),
    }[name]
    embedded, queries = net(images).detach(), net(x).detach()
    for against, threshold in (("threshold", 0.4), ("identity", None)):
        arguments: dict[str, Any] = {"against": against, "threshold": threshold}
        scores = SimilarityToSupport(net, SupportSet(images, [0, 0, 1, 1]), SIMILARITIES[name], **arguments)
        details = LayerSimilarityCAM(scores, "features").details(x, target=1)
        for index, z in enumerate(queries):
            similarity = sum(float(measure(z, t)) for t in embedded[2:]) / 2
            expected = similarity - 0.4 if against == "threshold" else float(measure(z, z)) - similarity
            assert float(details.attributions[index].sum()) == pytest.approx(expected, abs=1e-12)
            assert float(details.shares["map"][index]) == pytest.approx(expected, abs=1e-12)
        assert "zero embedding" not in details.shares


class Spots(nn.Module):
    """Two detectors, for red and for green, and average pooling: embeddings (red, green)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[..., None, None]

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


def test_what_the_query_has_and_the_reference_lacks_is_negative_by_hand() -> None:
    model = Spots().eval()
    query, reference = torch.zeros(1, 3, 2, 3), torch.zeros(1, 3, 2, 3)
    query[0, 0, 0, 0] = query[0, 1, 1, 2] = 6  # a red spot on the left, a green one on the right
    reference[0, 0, 1, 1] = 6  # a red spot only
    scores = SimilarityToSupport(model, reference, against="threshold", threshold=0.9)
    map_ = LayerSimilarityCAM(scores, model.conv).attribute(query, target=0)[0, 0]
    # The cosine is the root of 1/2, all of it at the red spot. The threshold is divided equally between the spots.
    root = 0.5**0.5
    torch.testing.assert_close(map_, torch.tensor([[root - 0.45, 0, 0], [0, 0, -0.45]]))
    reverse = SimilarityToSupport(model, reference, against="identity")
    torch.testing.assert_close(
        LayerSimilarityCAM(reverse, model.conv).attribute(query, target=0)[0, 0],
        torch.tensor([[0.5 - root, 0, 0], [0, 0, 0.5]]),
    )
    # The other way round: all of the reference is in the query, and nothing is left over there.
    back = SimilarityToSupport(model, query, against="threshold", threshold=0.6)
    torch.testing.assert_close(
        LayerSimilarityCAM(back, model.conv).attribute(reference, target=0)[0, 0],
        torch.tensor([[0, 0, 0], [0, root - 0.6, 0]]),
    )


def test_fam_takes_the_number_in_the_scale_of_its_shares_by_hand() -> None:
    model = Spots().eval()
    query, reference = torch.zeros(1, 3, 2, 3), torch.zeros(2, 3, 2, 3)
    query[0, 0, 0, 0] = query[0, 1, 1, 2] = 6
    reference[0, 0, 1, 1], reference[1, 1, 0, 0] = 6, 12
    scores = SimilarityToSupport(model, reference, against="threshold", threshold=0.9)
    details = LayerFAM(scores, model.conv).details(query, target=0)
    # Each cosine is the root of 1/2. Eq. 15 divides by it, for the supports and for the number alike.
    each = (0.5 * 0.5**0.5 - 0.9 * 0.5) / 0.5**0.5
    assert details.contributions is not None
    torch.testing.assert_close(details.contributions[0][0], torch.full((1, 2), each))
    plain = LayerFAM(scores, model.conv, support_scale="none").details(query, target=0)
    torch.testing.assert_close(plain.contributions[0][0].sum(1), plain.comparison.score)  # type: ignore[index, union-attr]


def test_shapley_gives_the_number_to_the_empty_set(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images = make_images(2, seed=1), make_images(2, seed=2)
    plain = LayerSimilarityShapley(SimilarityToSupport(net, images), net.features).details(x)
    scores = SimilarityToSupport(net, images, against="threshold", threshold=0.3)
    against = LayerSimilarityShapley(scores, net.features).details(x)
    torch.testing.assert_close(against.attributions, plain.attributions)
    torch.testing.assert_close(against.shares["empty"], plain.shares["empty"] - 0.3)
    torch.testing.assert_close(sum(against.shares.values()), against.comparison.score)  # type: ignore[union-attr]
    apart = LayerSimilarityShapley(SimilarityToSupport(net, images, against="identity"), net.features).details(x)
    torch.testing.assert_close(apart.attributions, -plain.attributions)
    torch.testing.assert_close(apart.shares["empty"], 1 - plain.shares["empty"])


def test_methods_of_captum_explain_the_number(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images = make_images(3, seed=1), make_images(2, seed=2)
    scores = SimilarityToSupport(net, images, against="threshold", threshold=0.3)
    plain = SimilarityToSupport(net, images)
    maps = [LayerGradCam(one, net.features).attribute(x, target=0) for one in (scores, plain)]
    torch.testing.assert_close(*maps)  # a number has no gradient
    apart = SimilarityToSupport(net, images, against="identity")
    torch.testing.assert_close(LayerGradCam(apart, net.features).attribute(x, target=0), -maps[1])
    baseline = make_images(3, seed=7)
    found = IntegratedGradients(apart).attribute(x, baseline, target=0, n_steps=300).flatten(1).sum(1)
    torch.testing.assert_close(found, (apart(x) - apart(baseline))[:, 0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="compares positions, among which a number has no place"):
        LayerCorrespondence(scores, net.features).attribute(x)


def test_a_score_that_equals_the_threshold_leaves_exactly_nothing(
    net: nn.Module, make_images: Callable[..., Tensor]
) -> None:
    x = make_images(3, seed=1).float()
    net = net.float()
    support = SupportPerQuery(x[:, None])
    for arguments in ({"against": "threshold", "threshold": 1.0}, {"against": "identity"}):
        scores = SimilarityToSupport(net, support, **arguments)  # type: ignore[arg-type]
        assert (scores(x) == 0).all()
        assert (LayerSimilarityCAM(scores, "features").attribute(x) == 0).all()
        assert (LayerFAM(scores, "features").attribute(x) == 0).all()


def test_a_query_of_zeros_has_no_place_for_the_number() -> None:
    comparison = ThresholdedSupport(SupportSet(torch.eye(2)), "threshold", 0.5).compare(torch.zeros(1, 2))
    assert comparison.score.tolist() == [-0.5]
    assert comparison.contributions().tolist() == [[0, 0]]
    assert comparison.linear_weights().tolist() == [[0, 0]]


def test_copies_states_and_autocast(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images = make_images(2, seed=1), make_images(3, seed=2)
    scores = SimilarityToSupport(net, images, against="threshold", threshold=np.float32(0.25))  # type: ignore[arg-type]
    assert scores.threshold == 0.25
    assert torch.equal(copy.deepcopy(scores)(x), scores(x))
    scores.threshold = 0.5
    assert torch.equal(scores(x), SimilarityToSupport(net, images, against="threshold", threshold=0.5)(x))
    with torch.no_grad():
        net.head.weight.add_(0.1)  # type: ignore[union-attr]
    assert torch.equal(scores(x), SimilarityToSupport(net, images, against="threshold", threshold=0.5)(x))
    half = SimilarityToSupport(nn.Identity().eval(), random(3, J).bfloat16(), against="identity")
    with torch.autocast("cpu", torch.bfloat16):
        assert half(random(2, J, seed=1).bfloat16()).dtype == torch.float32


def test_arguments_that_do_not_belong_together_are_refused() -> None:
    rows, model = random(4, J), nn.Identity().eval()
    two = SupportSet(rows, [0, 0, 1, 1])
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"against": "threshold"}, ValueError, 'against="threshold" needs threshold='),
        ({"threshold": 0.5}, ValueError, 'threshold= needs against="threshold", got against=None'),
        ({"against": "identity", "threshold": 0.5}, ValueError, "got against='identity'"),
        ({"against": "mean"}, ValueError, 'against must be "threshold", "identity" or None'),
        ({"against": "threshold", "threshold": torch.nan}, ValueError, "threshold must be finite"),
        (
            {"against": "threshold", "threshold": 10**400},
            ValueError,
            "threshold must be finite as a float, got integer",
        ),
        ({"against": "threshold", "threshold": True}, TypeError, "threshold must be a number, got bool"),
        ({"against": "threshold", "threshold": "0.5"}, TypeError, "threshold must be a number, got str"),
        ({"against": "identity", "foil": "others"}, ValueError, "exclude each other"),
        ({"against": "threshold", "threshold": 0.5, "foil": "gallery"}, ValueError, "exclude each other"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            SimilarityToSupport(model, two, **arguments)
    for contrasted in (ContrastedSupport(two, "others"), ThresholdedSupport(two, "identity")):
        with pytest.raises(ValueError, match=r"against='identity': the support, a .*Support, has .* already"):
            ThresholdedSupport(contrasted, "identity")
        with pytest.raises(ValueError, match=r"foil: the support, a .*Support, has a foil, .* already"):
            ContrastedSupport(contrasted, "others")
        with pytest.raises(ValueError, match="already"):
            SimilarityToSupport(model, contrasted, against="identity")
    with pytest.raises(ValueError, match='against must be "threshold" or "identity", got None'):
        ThresholdedSupport(two, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"support must be a Support .*got Tensor"):
        ThresholdedSupport(rows, "identity")  # type: ignore[arg-type]


def test_contrasts_are_named_where_a_support_is_printed() -> None:
    two, model = SupportSet(torch.eye(3)[:2], ["jay", "wren"]), nn.Identity().eval()
    named = "SupportSet(embeddings (2, 3), n_classes=2)"
    assert (
        repr(ThresholdedSupport(two, "threshold", 0.3))
        == f"ThresholdedSupport({named}, against='threshold', threshold=0.3)"
    )
    assert repr(ThresholdedSupport(two, "identity")) == f"ThresholdedSupport({named}, against='identity')"
    assert repr(ContrastedSupport(two, "others")) == f"ContrastedSupport({named}, 'others')"
    words: list[tuple[dict[str, Any], str]] = [
        ({"against": "threshold", "threshold": 0.3}, "against='threshold', threshold=0.3"),
        ({"against": "identity"}, "against='identity'"),
        ({"foil": "others", "aggregate": "prototype"}, "foil='others', aggregate='prototype'"),
    ]
    for options, text in words:
        assert repr(SimilarityToSupport(model, two, **options)).splitlines()[1].strip() == text
    assert "against" not in repr(SimilarityToSupport(model, two))


def test_shapley_values_against_a_number_leave_the_number_to_the_share_of_the_empty_set() -> None:
    net = nn.Sequential(nn.Conv2d(3, J, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(J, 5)).double()
    x, support = random(2, 3, 6, 5, seed=1), SupportSet(random(3, 5, seed=2))

    def of(**against: Any) -> Any:
        return LayerSimilarityShapley(SimilarityToSupport(net.eval(), support, "dot", **against), net[1]).details(x)

    plain, identity, threshold = of(), of(against="identity"), of(against="threshold", threshold=0.3)
    torch.testing.assert_close(identity.attributions, -plain.attributions, **TIGHT)
    torch.testing.assert_close(threshold.attributions, plain.attributions, **TIGHT)
    own = net(x).detach().square().sum(1)
    torch.testing.assert_close(identity.shares["empty"], own - plain.shares["empty"], **TIGHT)
    torch.testing.assert_close(threshold.shares["empty"], plain.shares["empty"] - 0.3, **TIGHT)


def test_no_score_against_the_identity_is_minus_zero() -> None:
    vector = torch.ones(1, 5)
    found = ThresholdedSupport(SupportSet(vector), "identity").compare(vector)
    for values in (found.score, found.scores, found.contributions(), found.linear_weights()):
        assert not values.any()
        assert not values.signbit().any()
