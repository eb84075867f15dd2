"""LayerFAM and LayerSimilarityCAM from image to map, against the float64 loops of ``reference.py``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.pooling import GAP
from captum_fam.similarity import (
    Bilinear,
    Euclidean,
    EuclideanDifference,
    Mahalanobis,
    MahalanobisDifference,
    Similarity,
)
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

WEIGHTINGS = ("paper", "weights", "contributions")
SCALES = ("paper", "none")
NORMALIZATIONS = ("minmax", "relu", "maxabs", "none")
POOLINGS = ("gap", "gmp", "lse", "gem")

MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
MEASURES: dict[str, Similarity] = {
    "squared-euclidean": Euclidean(squared=True),
    "squared-euclidean/difference": EuclideanDifference(squared=True),
    "euclidean": Euclidean(),
    "euclidean/difference": EuclideanDifference(),
    "bilinear": Bilinear(MATRIX),
    "mahalanobis": Mahalanobis(MATRIX @ MATRIX.T),
    "mahalanobis/difference": MahalanobisDifference(MATRIX @ MATRIX.T),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tensors this small take ten times as long on several threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MakeNet = Callable[..., Any]
MakeImages = Callable[..., Tensor]

MODELS: dict[str, dict[str, object]] = {
    "gap": {},
    "gmp": {"pooling": "gmp"},
    "gem": {"pooling": "gem"},
    "lse": {"pooling": "lse"},
    "gap-linear": {"head": "linear"},
    "gap-linear-bias": {"head": "linear-bias"},
    "gap-linear-l2": {"head": "linear", "normalize": True},
    "gap-linear-bias-l2": {"head": "linear-bias", "normalize": True},
    "gmp-linear-bias-l2": {"pooling": "gmp", "head": "linear-bias", "normalize": True},
}


@pytest.fixture(params=list(MODELS))
def net(request: pytest.FixtureRequest, make_net: MakeNet) -> Any:
    """One after the other: every pooling without a head, and linear heads with bias and normalization."""
    return make_net(**MODELS[request.param])


def matrix_of(measure: str) -> np.ndarray:
    return (MATRIX if measure == "bilinear" else MATRIX @ MATRIX.T).numpy()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def head_of(net: Any) -> dict[str, np.ndarray | None]:
    """The weight and bias of the net's linear head, as the reference takes them."""
    if isinstance(net.head, nn.Identity):
        return {"head": None, "bias": None}
    return {"head": array(net.head.weight), "bias": None if net.head.bias is None else array(net.head.bias)}


def double(numbers: Sequence[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def even(count: int) -> list[float]:
    return [1 / count] * count


def fam_by_loops(
    net: Any,
    queries: Tensor,
    embeddings: Tensor | Sequence[Tensor],
    pooling: str = "gap",
    support_weights: Sequence[Sequence[float]] | None = None,
    **switches: Any,
) -> Tensor:
    """The reference's maps of a batch; ``embeddings`` are ``(K, J)`` for all, or a list of one such a query."""
    maps = []
    for b, activation in enumerate(array(net.features(queries))):
        own = array(embeddings[b] if not isinstance(embeddings, Tensor) or embeddings.dim() == 3 else embeddings)
        weights = even(len(own)) if support_weights is None else support_weights[b]
        maps.append(reference.fam(activation, pooling, own, weights, **head_of(net), **switches))
    return torch.from_numpy(np.stack(maps)).unsqueeze(1)


def cam_by_loops(
    net: Any,
    queries: Tensor,
    embeddings: Tensor,
    pooling: str = "gap",
    support_weights: Sequence[Sequence[float]] | None = None,
    **switches: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, explained scores and the bias's shares of a batch."""
    found = [
        reference.similarity_cam(
            activation,
            pooling,
            array(embeddings),
            even(len(embeddings)) if support_weights is None else support_weights[b],
            **head_of(net),
            **switches,
        )
        for b, activation in enumerate(array(net.features(queries)))
    ]
    maps, scores, shares = zip(*found, strict=True)
    return torch.from_numpy(np.stack(maps)).unsqueeze(1), double(scores), double(shares)


def agree(actual: Tensor, expected: Tensor, relative: float = 1e-10) -> None:
    """Equal to ``relative`` of the largest value of each sample's map."""
    assert actual.shape == expected.shape
    assert not actual.requires_grad
    error = (actual.double() - expected).abs().flatten(1).amax(1)
    assert (error <= relative * expected.abs().flatten(1).amax(1)).all(), error


# Eq. 11-15, no head


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_published_map_of_a_headless_net(
    pooling: str, rank: int, make_net: MakeNet, make_images: MakeImages
) -> None:
    net = make_net(pooling, rank=rank)
    queries, supports = make_images(3, rank, seed=1), make_images(4, rank, seed=2)
    actual = LayerFAM(net, net.features, transform=None).attribute(queries, supports)
    assert actual.shape[2:] == queries.shape[2:]
    agree(actual, fam_by_loops(net, queries, net(supports), pooling))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["gap", "gmp", "lse"])
def test_auto_finds_that_there_is_no_head(pooling: str, rank: int, make_net: MakeNet, make_images: MakeImages) -> None:
    net = make_net(pooling, rank=rank)
    queries, supports = make_images(3, rank, seed=1), make_images(4, rank, seed=2)
    actual = LayerFAM(net, net.features).attribute(queries, supports)
    agree(actual, fam_by_loops(net, queries, net(supports), pooling))


@pytest.mark.parametrize("signed", [False, True], ids=["relu", "leaky"])
@pytest.mark.parametrize("transform", ["auto", None], ids=["auto", "none"])
def test_every_switch_without_a_head(
    transform: Any, signed: bool, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(signed=signed)
    for weighting, scale, normalization in itertools.product(WEIGHTINGS, SCALES, NORMALIZATIONS):
        switches = {"weighting": weighting, "support_scale": scale, "normalization": normalization}
        fam = LayerFAM(net, net.features, transform=transform, **switches)
        agree(fam.attribute(queries, supports), fam_by_loops(net, queries, net(supports), **switches))


# Eq. 16-18, a head


@pytest.mark.parametrize("head", ["linear", "linear-bias"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_switch_with_a_linear_head(
    head: str, count: int, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(head=head, signed=True)
    for weighting, scale, normalization in itertools.product(WEIGHTINGS, SCALES, NORMALIZATIONS):
        switches = {"weighting": weighting, "support_scale": scale, "normalization": normalization}
        expected = fam_by_loops(net, queries, net(supports[:count]), **switches)
        transforms: list[Any] = ["auto", net.head]
        if weighting != "contributions":
            transforms.append(net.head.weight)
        for transform in transforms:
            fam = LayerFAM(net, net.features, transform=transform, **switches)
            agree(fam.attribute(queries, supports[:count]), expected)


@pytest.mark.parametrize("pooling", ["gap", "gmp", "lse"])
@pytest.mark.parametrize("normalization", ["minmax", "none"])
@pytest.mark.parametrize("weighting", ["paper", "weights"])
def test_auto_follows_every_pooling_and_leaves_a_final_normalization_out(
    weighting: str, normalization: str, pooling: str, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    switches: dict[str, Any] = {"weighting": weighting, "normalization": normalization}
    for head, normalize in itertools.product([None, "linear", "linear-bias"], [False, True]):
        net = make_net(pooling, head, normalize, signed=True)
        actual = LayerFAM(net, net.features, **switches).attribute(queries, supports)
        agree(actual, fam_by_loops(net, queries, net(supports), pooling, **switches))


@pytest.mark.parametrize("pooling", ["gap", "gmp", "gem"])
def test_auto_gives_the_contributions_of_any_homogeneous_pooling(
    pooling: str, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    for head in (None, "linear-bias"):
        net = make_net(pooling, head, normalize=True)
        actual = LayerFAM(net, net.features, weighting="contributions").attribute(queries, supports)
        expected = fam_by_loops(net, queries, net(supports), pooling, weighting="contributions")
        agree(actual, expected, 1e-10 if pooling != "gem" else 1e-6)  # GeM cuts at 1e-6: dead positions have no slope


def test_the_head_by_hand_moves_the_weight_to_the_channel_it_reads() -> None:
    # Z = (2, 1), Z' = W Z = (3, 1), support (1, 3): c' = (3, 3) / (sqrt(10) sqrt(10)), shares (1/2, 1/2).
    net = nn.Sequential(nn.Identity(), GAP(), nn.Linear(2, 2, bias=False)).double()
    weight = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    net[2].weight.data.copy_(weight)
    query = torch.tensor([[[[4.0, 0.0, 2.0]], [[1.0, 2.0, 0.0]]]], dtype=torch.float64)
    support = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    fam = LayerFAM(net, net[0], normalization="none")
    # C = W^T c' = (1/2, 1): the map is A^1 / 2 + A^2.
    torch.testing.assert_close(fam.attribute(query, support).flatten(), torch.tensor([3.0, 2.0, 1.0]).double())
    # Eq. 12 leaves (0, 1): the map is A^2.
    torch.testing.assert_close(
        LayerFAM(net, net[0]).attribute(query, support).flatten(), torch.tensor([1.0, 2.0, 0.0]).double()
    )


def test_a_bias_free_relu_head_is_its_jacobian_at_the_query(make_net: MakeNet, queries: Tensor) -> None:
    net = make_net()
    net.head = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)).double()
    support = torch.randn(3, 4, dtype=torch.float64)
    first, second = array(net.head[0].weight), array(net.head[2].weight)
    z, embedding, activation = array(net.pooling(net.features(queries))), array(net(queries)), net.features(queries)
    for scale in SCALES:
        expected = []
        for b in range(len(queries)):
            cotangent = reference.support_sum("cosine", embedding[b], array(support), even(3), scale)
            open_units = (first @ z[b] > 0).astype(float)
            expected.append(first.T @ (open_units * (second.T @ np.array(cotangent))))
        for transform in ("auto", net.head):
            details = LayerFAM(net, net.features, transform=transform, support_scale=scale).details(queries, support)
            channels = details.contributions[0][0]
            torch.testing.assert_close(channels, torch.from_numpy(np.array(expected)), rtol=1e-10, atol=1e-12)
            maps = [
                reference.weighted_map(a, reference.normalize(list(c), "minmax"))
                for a, c in zip(array(activation), expected, strict=True)
            ]
            agree(details.attributions, torch.from_numpy(np.stack(maps)).unsqueeze(1))


# The supports


@pytest.mark.parametrize("transform", ["auto", "head"])
@pytest.mark.parametrize("kind", ["images", "embeddings"])
def test_every_query_can_have_its_own_supports(
    kind: str, transform: str, make_net: MakeNet, make_images: MakeImages, queries: Tensor
) -> None:
    net = make_net(head="linear-bias")
    images = make_images(6, seed=4).unflatten(0, (2, 3))
    embeddings = net(images.flatten(0, 1)).detach().unflatten(0, (2, 3))
    fam = LayerFAM(net, net.features, transform=net.head if transform == "head" else "auto")
    actual = fam.attribute(queries, images if kind == "images" else embeddings)
    agree(actual, fam_by_loops(net, queries, embeddings))
    assert not torch.allclose(actual, fam.attribute(queries, embeddings.flip(0)))


LABELS = [0, 1, 1, 0, 0, 2]


def weights_of_class(target: int, foil: str | None = None) -> list[float]:
    """The weight of each support of LABELS in the mean similarity of one class, less the mean of the others."""
    own = [(label == target) / LABELS.count(target) for label in LABELS]
    if foil is None:
        return own
    return [w - (label != target) / LABELS.count(label) / 2 for w, label in zip(own, LABELS, strict=True)]


@pytest.mark.parametrize("scale", SCALES)
def test_supports_of_several_classes_explain_the_class_asked_for(
    scale: Any, make_net: MakeNet, make_images: MakeImages
) -> None:
    net, queries, images = make_net(head="linear"), make_images(3, seed=1), make_images(6, seed=4)
    support = SupportSet(images, LABELS)
    fam = LayerFAM(net, net.features, support_scale=scale)
    target = [2, 0, 1]
    expected = fam_by_loops(
        net, queries, net(images), support_weights=[weights_of_class(t) for t in target], support_scale=scale
    )
    agree(fam.attribute(queries, support, target), expected)
    agree(
        LayerFAM(SimilarityToSupport(net, support), net.features, support_scale=scale).attribute(
            queries, target=torch.tensor(target)
        ),
        expected,
    )


def test_without_a_target_the_class_of_largest_mean_similarity_is_explained(
    make_net: MakeNet, make_images: MakeImages
) -> None:
    net, queries, images = make_net(head="linear"), make_images(8, seed=1), make_images(6, seed=4)
    embeddings = array(net(images))
    predicted = []
    for z in array(net(queries)):
        similarities = [reference.score("cosine", z, t) for t in embeddings]
        means = [
            np.mean([s for s, label in zip(similarities, LABELS, strict=True) if label == target])
            for target in range(3)
        ]
        predicted.append(int(np.argmax(means)))
    assert len(set(predicted)) > 1
    actual = LayerFAM(net, net.features).attribute(queries, SupportSet(images, LABELS))
    agree(actual, fam_by_loops(net, queries, net(images), support_weights=[weights_of_class(p) for p in predicted]))


def test_a_prototype_is_one_support_at_the_mean_embedding(make_net: MakeNet, make_images: MakeImages) -> None:
    net, queries, images = make_net(head="linear"), make_images(3, seed=1), make_images(6, seed=4)
    scores = SimilarityToSupport(net, SupportSet(images, LABELS), aggregate="prototype")
    mean = array(net(images))[[label == 1 for label in LABELS]].mean(0, keepdims=True)
    actual = LayerFAM(scores, net.features).attribute(queries, target=1)
    agree(actual, fam_by_loops(net, queries, torch.from_numpy(mean)))


def test_a_foil_goes_through_the_same_equations_with_negative_weights(
    make_net: MakeNet, make_images: MakeImages
) -> None:
    net, queries, images = make_net(head="linear-bias"), make_images(2, seed=1), make_images(6, seed=4)
    scores = SimilarityToSupport(net, SupportSet(images, LABELS), foil="others")
    weights = [weights_of_class(1, "others")] * 2
    for scale, normalization in itertools.product(SCALES, NORMALIZATIONS):
        switches: dict[str, Any] = {"support_scale": scale, "normalization": normalization}
        actual = LayerFAM(scores, net.features, **switches).attribute(queries, target=1)
        agree(actual, fam_by_loops(net, queries, net(images), support_weights=weights, **switches))


def test_contributions_sum_to_the_score_or_to_the_mean_sign(make_net: MakeNet, queries: Tensor) -> None:
    net, support = make_net(signed=True), torch.randn(5, 6, dtype=torch.float64)
    similarities = double([[reference.score("cosine", z, t) for t in array(support)] for z in array(net(queries))])
    assert set(similarities.sign().flatten().tolist()) == {-1.0, 1.0}
    for scale, total in (("none", similarities.mean(1)), ("paper", similarities.sign().mean(1))):
        details = LayerFAM(net, net.features, support_scale=scale).details(queries, support)
        torch.testing.assert_close(details.contributions[0][0].sum(1), total, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(details.comparison.scores.squeeze(1), similarities.mean(1))


@pytest.mark.parametrize("head", ["linear", "linear-bias"])
def test_readings_r2_and_r3_sum_to_the_score_less_the_share_of_the_bias(
    head: str, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(head=head, signed=True)
    _, scores, shares = cam_by_loops(net, queries, net(supports))
    z = net.pooling(net.features(queries)).detach()
    for weighting in ("weights", "contributions"):
        fam = LayerFAM(net, net.features, weighting=weighting, support_scale="none")
        c = fam.details(queries, supports).contributions[0][0]
        total = (z * c if weighting == "weights" else c).sum(1)
        torch.testing.assert_close(total, scores - shares, rtol=1e-10, atol=1e-12)


# Other measures


@pytest.mark.parametrize("measure", ["dot", *MEASURES])
@pytest.mark.parametrize("scale", SCALES)
def test_fam_of_every_measure(measure: str, scale: str, make_net: MakeNet, queries: Tensor, supports: Tensor) -> None:
    net = make_net(signed=True)
    similarity = MEASURES.get(measure, measure)
    for weighting in ("paper",) if measure.endswith("/difference") else WEIGHTINGS:
        switches: dict[str, Any] = {"weighting": weighting, "support_scale": scale}
        expected = fam_by_loops(net, queries, net(supports), measure=measure, matrix=matrix_of(measure), **switches)
        for transform in ("auto", None):
            fam = LayerFAM(net, net.features, similarity=similarity, transform=transform, **switches)
            agree(fam.attribute(queries, supports), expected)


@pytest.mark.parametrize("measure", ["dot", *(name for name in MEASURES if not name.endswith("/difference"))])
def test_similarity_cam_of_every_measure(measure: str, make_net: MakeNet, queries: Tensor, supports: Tensor) -> None:
    net = make_net(signed=True)
    maps, scores, _ = cam_by_loops(net, queries, net(supports), measure=measure, matrix=matrix_of(measure))
    cam = LayerSimilarityCAM(net, net.features, similarity=MEASURES.get(measure, measure))
    actual, delta = cam.attribute(queries, supports, return_convergence_delta=True)
    agree(actual, maps)
    torch.testing.assert_close(actual.flatten(1).sum(1), scores, rtol=1e-10, atol=1e-10)
    assert delta.abs().max() <= 1e-10


def test_a_learned_metric_is_split_by_integrated_gradients(
    make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(head="linear", signed=True)
    embedding, others = array(net(queries)), array(net(supports))
    # A sum over features: integrated gradients give each feature its own term.
    expected = torch.from_numpy(np.tanh(embedding[:, None] * others).mean(1) @ array(net.head.weight))
    fam = LayerFAM(
        net,
        net.features,
        similarity=lambda z, t: torch.tanh(z * t).sum(1),
        support_scale="none",
        normalization="none",
    )
    details = fam.details(queries, supports)
    torch.testing.assert_close(details.contributions[0][0], expected, rtol=1e-6, atol=1e-8)


def test_dead_channels_get_the_top_weight_from_the_difference_split_alone(make_net: MakeNet) -> None:
    net = make_net()
    with torch.no_grad():
        net.features[0].bias[[1, 4]] = -1e3
    query, support = torch.rand(1, 3, 7, 5, dtype=torch.float64), torch.rand(2, 3, 7, 5, dtype=torch.float64)
    dead = net.features(query).flatten(2).amax(2)[0] == 0
    assert dead[[1, 4]].all()
    assert not dead.all()

    def weights(similarity: Similarity) -> Tensor:
        fam = LayerFAM(net, net.features, similarity=similarity, transform=None)
        c = fam.details(query, support).contributions[0][0][0]
        return (c - c.min()) / (c.max() - c.min())

    assert weights(EuclideanDifference(squared=True))[[1, 4]].tolist() == [1.0, 1.0]
    assert weights(Euclidean(squared=True))[[1, 4]].max() < 1


# The exact map


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_exact_map_of_a_headless_net(pooling: str, rank: int, make_net: MakeNet, make_images: MakeImages) -> None:
    net = make_net(pooling, rank=rank)
    queries, supports = make_images(3, rank, seed=1), make_images(4, rank, seed=2)
    maps, scores, _ = cam_by_loops(net, queries, net(supports), pooling)
    actual, delta = LayerSimilarityCAM(net, net.features).attribute(queries, supports, return_convergence_delta=True)
    agree(actual, maps)
    torch.testing.assert_close(delta, maps.flatten(1).sum(1) - scores, rtol=0, atol=1e-12)
    # The delta tells LSE, which is not homogeneous, from the rest.
    assert (delta.abs().max() <= 1e-6) == (pooling != "lse")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pooling", ["gap", "gmp", "gem"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "l2"])
def test_the_exact_map_of_a_bias_free_head_sums_to_the_similarity(
    normalize: bool, pooling: str, dtype: torch.dtype, make_net: MakeNet, make_images: MakeImages
) -> None:
    net = make_net(pooling, "linear", normalize, signed=pooling != "gem")
    queries, supports = make_images(5, seed=1), make_images(3, seed=2)
    maps, scores, _ = cam_by_loops(net, queries, net(supports), pooling)
    net, queries, supports = net.to(dtype), queries.to(dtype), supports.to(dtype)
    cam = LayerSimilarityCAM(net, net.features)
    actual, delta = cam.attribute(queries, supports, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-6
    torch.testing.assert_close(actual.double().flatten(1).sum(1), scores, rtol=0, atol=2e-6)
    agree(actual, maps, 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("pooling", ["gap", "gmp", "gem"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "l2"])
def test_the_delta_of_a_biased_head_is_what_the_bias_owns(
    normalize: bool, pooling: str, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(pooling, "linear-bias", normalize)
    maps, _, shares = cam_by_loops(net, queries, net(supports), pooling)
    actual, delta = LayerSimilarityCAM(net, net.features).attribute(queries, supports, return_convergence_delta=True)
    agree(actual, maps)
    assert shares.abs().min() > 1e-2
    torch.testing.assert_close(delta, -shares, rtol=0, atol=1e-6)


def test_dead_channels_of_gem_leave_the_sum_complete(make_net: MakeNet, queries: Tensor, supports: Tensor) -> None:
    net = make_net("gem", "linear")
    with torch.no_grad():
        net.features[0].bias[:3] = -1e3
    _, delta = LayerSimilarityCAM(net, net.features).attribute(queries, supports, return_convergence_delta=True)
    assert 0 < delta.abs().max() <= 1e-5  # GeM pools a dead channel to 1e-6, which no position owns


@pytest.mark.parametrize("foil", [None, "others"])
def test_maps_of_scores_sum_to_the_scores(foil: Any, make_net: MakeNet, make_images: MakeImages) -> None:
    net, queries, images = make_net(head="linear"), make_images(3, seed=1), make_images(6, seed=4)
    scores = SimilarityToSupport(net, SupportSet(images, LABELS), foil=foil)
    cam = LayerSimilarityCAM(scores, net.features)
    for target in range(3):
        maps, total, _ = cam_by_loops(net, queries, net(images), support_weights=[weights_of_class(target, foil)] * 3)
        actual, delta = cam.attribute(queries, target=target, return_convergence_delta=True)
        agree(actual, maps)
        assert delta.abs().max() <= 1e-12
        torch.testing.assert_close(actual.flatten(1).sum(1), scores(queries)[:, target], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(total, scores(queries)[:, target], rtol=1e-10, atol=1e-12)


def test_maps_with_a_runner_up_or_given_foil_sum_to_the_difference(make_net: MakeNet, make_images: MakeImages) -> None:
    net, queries, images = make_net(head="linear"), make_images(3, seed=1), make_images(6, seed=4)
    support = SupportSet(images, LABELS)
    plain = SimilarityToSupport(net, support)(queries)
    other = SimilarityToSupport(net, make_images(4, seed=5))(queries)
    for target in range(3):
        rest = plain[:, [c for c in range(3) if c != target]].amax(1)
        for foil, subtracted in (("runner-up", rest), (make_images(4, seed=5), other[:, 0])):
            cam = LayerSimilarityCAM(SimilarityToSupport(net, support, foil=foil), net.features)
            total = cam.attribute(queries, target=target).flatten(1).sum(1)
            torch.testing.assert_close(total, plain[:, target] - subtracted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM])
def test_the_map_is_the_sum_over_the_channels(method: Any, net: Any, queries: Tensor, supports: Tensor) -> None:
    explain = method(net, net.features)
    each = explain.attribute(queries, supports, attr_dim_summation=False)
    assert each.shape == (2, 6, 7, 5)
    agree(each.sum(1, keepdim=True), explain.attribute(queries, supports))


def test_fam_without_summation_is_the_weighted_activation_of_each_channel(
    make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net()
    each = LayerFAM(net, net.features).attribute(queries, supports, attr_dim_summation=False)
    for b, activation in enumerate(array(net.features(queries))):
        z = reference.pool(activation, "gap")
        c = reference.on_channels("cosine", z, z, array(net(supports)), even(3), None)
        expected = [w * a for w, a in zip(reference.normalize(c, "minmax"), activation, strict=True)]
        torch.testing.assert_close(each[b], torch.from_numpy(np.stack(expected)), rtol=1e-10, atol=1e-12)


# Precision


@pytest.mark.parametrize("head", [None, "linear-bias"])
@pytest.mark.parametrize("scale", SCALES)
def test_float32_agrees_with_the_float64_reference(
    scale: Any, head: str | None, make_net: MakeNet, make_images: MakeImages
) -> None:
    net = make_net(head=head)
    queries, supports = make_images(3, seed=1).float(), make_images(4, seed=2).float()
    expected = fam_by_loops(net, queries.double(), net(supports.double()), support_scale=scale)
    single = make_net(head=head).float()
    for transform in ("auto", None if head is None else single.head):
        fam = LayerFAM(single, single.features, transform=transform, support_scale=scale)
        actual = fam.attribute(queries, supports)
        assert actual.dtype == torch.float32
        agree(actual, expected, 1e-5)


def of_half_precision(net: Any, queries: Tensor, supports: Tensor, weighting: str) -> Tensor:
    """The reference on the very numbers that the half-precision net computed."""
    head = head_of(net)["head"]
    maps = []
    for activation, embedding in zip(array(net.features(queries)), array(net(queries)), strict=True):
        z = reference.pool(activation, "gap")
        c = reference.on_channels("cosine", z, embedding, array(net(supports)), even(len(supports)), head, weighting)
        maps.append(reference.weighted_map(activation, reference.normalize(c, "minmax")))
    return torch.from_numpy(np.stack(maps)).unsqueeze(1)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("head", [None, "linear-bias"])
@pytest.mark.parametrize("weighting", ["paper", "weights"])
def test_half_precision_is_accumulated_in_float32(
    weighting: Any, head: str | None, autocast: bool, make_net: MakeNet, make_images: MakeImages
) -> None:
    # So many channels that a sum kept in bfloat16 would be off by percents.
    dtype = torch.float32 if autocast else torch.bfloat16
    net = make_net(head=head, channels=200).to(dtype)
    if autocast and head is not None:
        net.head.weight.data = net.head.weight.data.bfloat16().float()  # as autocast rounds it
    queries, supports = make_images(3, seed=1).to(dtype), make_images(30, seed=2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert net.features(queries).dtype == torch.bfloat16
        expected = of_half_precision(net, queries, supports, weighting)
        closed = LayerFAM(net, net.features, transform=None if head is None else net.head, weighting=weighting)
        auto = LayerFAM(net, net.features, weighting=weighting)
        actual, followed = closed.attribute(queries, supports), auto.attribute(queries, supports)
    assert actual.dtype == followed.dtype == torch.float32
    agree(actual, expected, 1e-5)
    agree(followed, expected, 2e-2)  # the way back through the head is in bfloat16, as the head is


# Degenerate cases


def fixed_activation_net(bias: Sequence[float]) -> nn.Sequential:
    """A headless net whose activation is the constant ``bias`` of each channel, whatever it is given."""
    layer = nn.Conv2d(3, len(bias), 1).double()
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return nn.Sequential(layer, GAP())


@pytest.mark.parametrize("transform", ["auto", None], ids=["auto", "none"])
@pytest.mark.parametrize(
    ("support", "expected"),
    [
        ([[0.0, 0.0, 1.0]], [1.0, 1.0, 1.0]),  # s_k = 0 with no feature in common: c is constant
        ([[0.0, 0.0, 0.0]], [1.0, 1.0, 1.0]),  # a zero vector
        ([[3.0, 4.0, 0.0], [-3.0, -4.0, 0.0]], [1.0, 1.0, 1.0]),  # opposite supports cancel
        ([[4.0, -3.0, 0.0]], [1.0, 0.0, 0.5]),  # s_k = 0 by cancellation: c = (12, -12, 0) / (25 * 1e-6)
        ([[0.0, 5.0, 0.0], [4.0, -3.0, 0.0]], [1.0, 0.0, 0.5]),  # such a support outweighs all others
        ([[-4.0, -3.0, 0.0]], [0.0, 0.0, 1.0]),  # s_k < 0: the channel that hinders least counts most
    ],
    ids=["disjoint", "zero", "opposite", "orthogonal", "one-orthogonal", "dissimilar"],
)
def test_degenerate_supports_have_a_defined_map(
    support: list[list[float]], expected: list[float], transform: Any, queries: Tensor
) -> None:
    net = fixed_activation_net([3.0, 4.0, 0.0])
    embeddings = torch.tensor(support, dtype=torch.float64)
    each = LayerFAM(net, net[0], transform=transform).details(queries, embeddings)
    weights = LayerFAM(net, net[0], transform=transform).attribute(queries, embeddings)
    value = sum(w * a for w, a in zip(expected, [3.0, 4.0, 0.0], strict=True))
    torch.testing.assert_close(weights, torch.full_like(weights, value), rtol=1e-5, atol=1e-5)
    assert all(c.isfinite().all() for c in each.contributions[0])


@pytest.mark.parametrize("transform", ["auto", None], ids=["auto", "none"])
def test_one_channel_gives_its_activation(transform: Any, make_net: MakeNet, queries: Tensor, supports: Tensor) -> None:
    net = make_net(channels=1)
    actual = LayerFAM(net, net.features, transform=transform).attribute(queries, supports)
    agree(actual, net.features(queries).detach())


@pytest.mark.parametrize("switches", [{}, {"support_scale": "none"}, {"weighting": "contributions"}])
def test_one_support_equals_its_copies(switches: dict[str, Any], net: Any, queries: Tensor, supports: Tensor) -> None:
    for method in (LayerFAM(net, net.features, **switches), LayerSimilarityCAM(net, net.features)):
        once = method.attribute(queries, supports[:1])
        agree(method.attribute(queries, supports[:1].repeat(7, 1, 1, 1)), once.double(), 1e-9)


def test_with_one_support_its_factor_cancels_in_the_published_map(net: Any, queries: Tensor, supports: Tensor) -> None:
    printed, plain = (
        LayerFAM(net, net.features, support_scale=scale).attribute(queries, supports[:1]) for scale in SCALES
    )
    agree(printed, plain, 1e-9)


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "squared-euclidean"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_dead_query_among_others_gives_a_map_of_zeros(
    normalization: Any, measure: str, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net()
    with torch.no_grad():
        net.features[0].bias.zero_()
    batch = torch.cat([queries, torch.zeros_like(queries[:1])])
    fam = LayerFAM(net, net.features, similarity=measure, normalization=normalization).attribute(batch, supports)
    cam, delta = LayerSimilarityCAM(net, net.features, similarity=measure).attribute(
        batch, supports, return_convergence_delta=True
    )
    for maps in (fam, cam):
        assert maps.isfinite().all()
        assert (maps[2] == 0).all()
        assert maps[:2].any()
    assert delta.abs().max() <= 1e-12


def test_a_flat_activation_gives_a_flat_map(make_images: MakeImages) -> None:
    net = fixed_activation_net([1.0, 0.5, 2.0])
    queries, support = make_images(2, seed=1), torch.rand(3, 3, dtype=torch.float64)
    for method in (LayerFAM(net, net[0]), LayerSimilarityCAM(net, net[0])):
        maps = method.attribute(queries, support)
        assert maps.isfinite().all()
        torch.testing.assert_close(maps, maps[:1, :, :1, :1].expand_as(maps))


# Near duplicates


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(array(a).ravel(), array(b).ravel())[0, 1])


def test_maps_for_near_duplicate_supports_agree_where_grad_cam_on_the_cosine_does_not() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        GAP(),
    ).eval()
    fam, cam = LayerFAM(net, net[3]), LayerSimilarityCAM(net, net[3])
    found: dict[str, list[float]] = {"fam": [], "similarity-cam": [], "grad-cam": []}
    for _ in range(6):
        query = torch.rand(1, 3, 25, 21)
        first, second = (query + 1e-3 * torch.randn_like(query) for _ in range(2))
        found["fam"].append(correlation(fam.attribute(query, first), fam.attribute(query, second)))
        found["similarity-cam"].append(correlation(cam.attribute(query, first), cam.attribute(query, second)))
        gradients = [
            LayerGradCam(SimilarityToSupport(net, one), net[3]).attribute(query, target=0) for one in (first, second)
        ]
        found["grad-cam"].append(correlation(*gradients))
    assert min(found["fam"]) >= 0.99
    assert min(found["similarity-cam"]) >= 0.99
    assert np.mean(found["grad-cam"]) < 0.7


# Memory


@pytest.mark.parametrize("measure", ["cosine", "dot", *MEASURES])
@pytest.mark.parametrize("classes", [1, 20])
def test_a_large_shared_support_makes_no_tensor_of_queries_by_supports_by_features(
    classes: int, measure: str, largest_tensor: Callable[[], Any], make_net: MakeNet, make_images: MakeImages
) -> None:
    batch, count, features = 8, 200, 64
    net = make_net(channels=features)
    square = torch.randn(features, features, dtype=torch.float64)
    similarity = MEASURES.get(measure, measure)
    if measure == "bilinear":
        similarity = Bilinear(square)
    elif measure.startswith("mahalanobis"):
        similarity = type(MEASURES[measure])(square @ square.T)
    queries, embeddings = make_images(batch), torch.rand(count, features, dtype=torch.float64)
    support = SupportSet(embeddings, [k % classes for k in range(count)])
    methods: list[Any] = [
        LayerFAM(net, net.features, similarity=similarity, transform=transform) for transform in ("auto", None)
    ]
    if not measure.endswith("/difference"):
        methods.append(LayerFAM(net, net.features, similarity=similarity, weighting="contributions"))
        methods.append(LayerSimilarityCAM(net, net.features, similarity=similarity))
    for method in methods:
        with largest_tensor() as seen:
            method.attribute(queries, support)
        # What is seen is the activation and the batch of similarities at least.
        assert batch * features * 7 * 5 <= seen.numel < batch * count * features


def test_a_map_that_truly_is_zero_is_no_error(make_net):
    net = make_net()
    x = torch.rand(1, 3, 5, 4, dtype=torch.float64)
    unused = (net(x) == 0).double()
    assert unused.any()
    before_relu = net.features[0]
    assert LayerSimilarityCAM(net, before_relu).attribute(x, support=unused).count_nonzero() == 0


def test_half_precision_keeps_the_shares_of_a_large_map():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight.mul_(50)
    x, support = torch.rand(2, 3, 112, 96), torch.rand(3, 8)
    exact = LayerSimilarityCAM(net, net[1]).attribute(x, support=support)
    net.half()
    maps, delta = LayerSimilarityCAM(net, net[1]).attribute(
        x.half(), support=support.half(), return_convergence_delta=True
    )
    assert (maps - exact).norm() < 2e-3 * exact.norm()
    assert delta.abs().max() < 2e-3


def test_the_last_step_to_an_embedding_of_one_number_is_followed():
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1).double()
            self.head = nn.Linear(4, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x).mean((2, 3))) ** 2

    net = Squared()
    x, support = torch.rand(2, 3, 3, 5).double(), torch.ones(1, 1).double()
    fam = LayerFAM(net, net.features, similarity="dot", weighting="weights", normalization="none", support_scale="none")
    found = fam.details(x, support=support).contributions[0][0]
    # y² = y * y, the second factor held: half of the derivative, and with it all of the score.
    linear = net.head(net.features(x).mean((2, 3)))
    assert torch.allclose(found, linear * net.head.weight)
