"""Every kind of support, as what each method of Captum and of this package explains; with any foil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, MemoryBank, SimilarityToSupport, SupportSet, explain
from captum_fam.similarity import Bilinear
from captum_fam.support import ContrastedSupport, Neighbors, Support, SupportPerQuery, WeightedSupport

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear")


@pytest.fixture
def x(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(3, seed=1)


@pytest.fixture
def gallery(net: nn.Module, make_images: Callable[..., Tensor]) -> Tensor:
    return net(make_images(8, seed=2)).detach()


def cosine(a: Tensor, b: Tensor) -> float:
    first, second = a.detach().double().numpy(), b.detach().double().numpy()
    return float(np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second))


def class_means(query: Tensor, rows: list[int], gallery: Tensor, n_classes: int = 3) -> list[float]:
    """The mean cosine to the rows of each class, written with loops; -inf for a class without rows."""
    means = []
    for label in range(n_classes):
        own = [cosine(query, gallery[row]) for row in rows if LABELS[row] == label]
        means.append(float(np.mean(own)) if own else -np.inf)
    return means


def nearest(query: Tensor, gallery: Tensor, k: int) -> list[int]:
    return sorted(range(len(gallery)), key=lambda row: -cosine(query, gallery[row]))[:k]


def kinds(gallery: Tensor, query: Tensor) -> dict[str, Support]:
    """Supports of three classes that all say the same: each of the 8 embeddings counts for its class."""
    ids = torch.arange(8).expand(len(query), -1)
    matrix = nn.functional.one_hot(torch.tensor(LABELS)).T.double()
    return {
        "set": SupportSet(gallery, LABELS),
        "bank": MemoryBank(gallery, LABELS, k=8),
        "whole-class bank": MemoryBank(gallery, LABELS, k=2, neighbors="whole-class"),
        "per query": SupportPerQuery(gallery.expand(len(query), -1, -1), torch.tensor(LABELS).expand(len(query), -1)),
        "neighbors": Neighbors(ids, embeddings=gallery, labels=torch.tensor(LABELS)),
        "weighted": WeightedSupport(gallery, matrix / matrix.sum(1, keepdim=True)),
    }


KINDS = ["set", "bank", "whole-class bank", "per query", "neighbors", "weighted"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_mean_cosine_to_the_supports_of_each_class(
    kind: str, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    scores = SimilarityToSupport(net, kinds(gallery, x)[kind])
    expected = [class_means(z, list(range(8)), gallery) for z in net(x)]
    torch.testing.assert_close(scores(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foil", [None, "others", "runner-up", "set"])
def test_a_foil_stands_on_top_of_any_support(
    kind: str, foil: str | None, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    others = gallery[:2].flip(1)
    foil_set = SupportSet(others) if foil == "set" else foil
    scores = SimilarityToSupport(net, kinds(gallery, x)[kind], foil=foil_set)  # type: ignore[arg-type]
    for query, got in zip(net(x), scores(x), strict=True):
        means = class_means(query, list(range(8)), gallery)
        for label, mean in enumerate(means):
            rest = [value for index, value in enumerate(means) if index != label]
            against = {
                None: 0.0,
                "others": np.mean(rest),
                "runner-up": np.max(rest),
                "set": np.mean([cosine(query, one) for one in others]),
            }[foil]
            assert float(got[label]) == pytest.approx(mean - against, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foil", [None, "others", "runner-up"])
def test_all_methods_explain_the_same_score_of_any_support(
    kind: str, foil: Any, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    by_set = SimilarityToSupport(net, SupportSet(gallery, LABELS), foil=foil)
    scores = SimilarityToSupport(net, kinds(gallery, x)[kind], foil=foil)
    for target in (1, None):
        chosen = scores.predict(x)[1] if target is None else target
        for method in (LayerFAM, LayerSimilarityCAM):
            expected = method(by_set, net.features).attribute(x, target=chosen)
            torch.testing.assert_close(method(scores, net.features).attribute(x, target=target), expected)
        grad_cam = LayerGradCam(scores, net.features).attribute(x, target=chosen)
        torch.testing.assert_close(grad_cam, LayerGradCam(by_set, net.features).attribute(x, target=chosen))


@pytest.mark.parametrize("neighbors", ["predicted", "vote", "within-class", "whole-class"])
def test_the_exact_map_adds_up_to_the_forward_score_of_a_bank(
    neighbors: Any, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    bank = MemoryBank(gallery, LABELS, k=5, neighbors=neighbors, temperature=0.5)
    scores = SimilarityToSupport(net, bank)
    predicted = bank.classify(net(x).detach()).predicted
    assert scores.predict(x)[1].equal(predicted)
    details = LayerSimilarityCAM(scores, net.features).details(x)
    total = sum(details.shares.values())
    torch.testing.assert_close(total, scores(x).gather(1, predicted[:, None])[:, 0].detach())


def test_captum_follows_a_nearest_neighbor_decision(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    scores = SimilarityToSupport(net, MemoryBank(gallery, LABELS, k=4))
    predicted = scores.predict(x)[1]
    # Close to the query its neighbors stay the same, and the score is smooth.
    _, delta = IntegratedGradients(scores).attribute(
        x, x * (1 + 1e-6), target=predicted, n_steps=8, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-9
    for query, row in zip(net(x), scores(x), strict=True):
        means = class_means(query, nearest(query, gallery, 4), gallery)
        best = class_means(query, [], gallery)
        for label in range(3):
            own = [cosine(query, gallery[one]) for one in range(8) if LABELS[one] == label]
            best[label] = means[label] if np.isfinite(means[label]) else max(own)
        assert row.tolist() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("neighbors", ["predicted", "vote", "within-class", "whole-class"])
def test_a_path_away_from_the_query_is_followed(neighbors: Any, net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    scores = SimilarityToSupport(net, MemoryBank(gallery, LABELS, k=2, neighbors=neighbors))
    predicted = scores.predict(x)[1]
    start = x * 0.1 + 0.5
    attributions = IntegratedGradients(scores).attribute(x, start, target=predicted, n_steps=200)
    gained = (scores(x) - scores(start)).gather(1, predicted[:, None])[:, 0]
    # Where rows join or leave the neighbors, the mean jumps: the sum over the steps is close, and not exact.
    torch.testing.assert_close(attributions.flatten(1).sum(1), gained, rtol=0, atol=5e-3)


@pytest.mark.parametrize("excluded", [False, True])
def test_a_class_without_a_neighbor_is_stood_for_by_its_nearest_row(
    excluded: bool, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    rows = [nearest(query, gallery, 1)[0] for query in net(x)]
    bank = MemoryBank(gallery, LABELS, k=1)
    scores = SimilarityToSupport(net, bank.using(exclude=rows) if excluded else bank)(x)
    for query, row, got in zip(net(x), rows, scores, strict=True):
        kept = [one for one in range(8) if not excluded or one != row]
        best = [max(cosine(query, gallery[one]) for one in kept if LABELS[one] == label) for label in range(3)]
        assert got.tolist() == pytest.approx(best, abs=1e-12)


def test_without_scores_a_class_without_a_neighbor_has_no_map(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    bank = MemoryBank(gallery, LABELS, k=1)
    comparison = bank.compare(net(x).detach())
    assert comparison.scores.isfinite().sum(1).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"queries 0, 1 .*within-class"):
        LayerFAM(net, net.features).attribute(x, support=bank, target=(comparison.predicted + 1) % 3)


def test_a_class_of_no_row_at_all_has_no_score(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    scores = SimilarityToSupport(net, MemoryBank(gallery, LABELS, ["ant", "bee", "cat", "dog"], k=2))(x)
    assert scores[:, :3].isfinite().all()
    assert scores[:, 3].tolist() == [-torch.inf] * 3


def test_hits_of_one_class_only_have_no_foil(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    hits = Neighbors(torch.tensor([[0, 3], [0, 1], [1, 2]]), embeddings=gallery, labels=torch.tensor(LABELS))
    with pytest.raises(ValueError, match=r"foil.* query 0 "):
        SimilarityToSupport(net, hits, foil="others")(x)


@pytest.mark.parametrize("neighbors", ["all", "nearest"])
def test_rows_that_are_the_same_for_every_class_have_no_foil(
    neighbors: Any, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    scores = SimilarityToSupport(net, MemoryBank(gallery, LABELS, k=4, neighbors=neighbors), foil="others")
    with pytest.raises(ValueError, match=r"foil.* every class"):
        scores(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fam", "similarity-cam", "grad-cam", "uniform"])
def test_explain_takes_any_support_batch_by_batch(
    kind: str, method: str, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    # The predicted class of a bank is that of its vote.
    expected = explain(net, x, SupportSet(gallery, LABELS), layer="features", method=method, target=1)
    why = explain(net, x, kinds(gallery, x)[kind], layer="features", method=method, target=1, batch_size=2)
    torch.testing.assert_close(why.maps, expected.maps)
    torch.testing.assert_close(why.scores, expected.scores)
    assert why.class_names == ("0", "1", "2")


def test_a_bank_that_leaves_rows_out_is_explained_batch_by_batch(net: nn.Module, gallery: Tensor, x: Tensor) -> None:
    rows = [nearest(query, gallery, 1)[0] for query in net(x)]
    why = explain(net, x, MemoryBank(gallery, LABELS, k=3).using(exclude=rows), layer="features", batch_size=2)
    for query, row, scores in zip(net(x), rows, why.scores, strict=True):
        kept = [one for one in nearest(query, gallery, 4) if one != row][:3]
        means = class_means(query, kept, gallery)
        for label, score in enumerate(scores.tolist()):
            others = [cosine(query, gallery[one]) for one in range(8) if LABELS[one] == label and one != row]
            assert score == pytest.approx(means[label] if np.isfinite(means[label]) else max(others), abs=1e-12)


def test_images_per_query_are_explained_as_pairs(net: nn.Module, x: Tensor, make_images: Callable[..., Tensor]) -> None:
    pairs = make_images(6, seed=5).unflatten(0, (3, 2))
    why = explain(net, x, pairs, layer="features", method="similarity-cam", batch_size=2)
    for index, query in enumerate(x):
        alone = explain(net, query[None], pairs[index], layer="features", method="similarity-cam")
        torch.testing.assert_close(why.maps[index], alone.maps[0])


def test_neighbors_are_fetched_where_the_gallery_is_not_in_memory(gallery: Tensor) -> None:
    asked: list[int] = []

    def fetch(ids: Tensor) -> Tensor:
        asked.extend(ids.tolist())
        return gallery[ids]

    hits = Neighbors(torch.tensor([[2, 0], [7, 1]]), fetch=fetch)
    assert asked == [2, 0, 7, 1]
    scores = hits.compare(gallery[[2, 7]]).scores
    expected = [(1 + cosine(gallery[2], gallery[0])) / 2, (1 + cosine(gallery[7], gallery[1])) / 2]
    assert scores[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: Neighbors(torch.tensor([1, 2]), embeddings=g), r"ids must be \(B, K\).*\(2,\)"),
        (lambda g: Neighbors(torch.tensor([[1, 2]])), "either embeddings.*or fetch"),
        (lambda g: Neighbors(torch.tensor([[1, 2]]), fetch=lambda ids: g[:1]), r"fetch must give \(n, J\) for 2 ids"),
        (lambda g: SupportPerQuery(g), r"embeddings \(B, K, J\)"),
        (lambda g: SupportPerQuery(g[None], torch.zeros(2, 8).int()), r"labels must be \(1, 8\)"),
        (lambda g: WeightedSupport(g, torch.ones(2, 3)), r"class_weights must be \(C, K\).*\(2, 3\).*8 embeddings"),
        (lambda g: WeightedSupport(g, torch.ones(2, 8), torch.ones(8)), "foil_weights must be"),
        (lambda g: WeightedSupport(g, torch.ones(2, 8), torch.ones(3, 8)), r"foil_weights must be.*\(3, 8\)"),
        (lambda g: WeightedSupport(g, torch.ones(2, 8), -torch.ones(2, 8)), "foil_weights must be.*not negative"),
        (lambda g: WeightedSupport(g, torch.full((2, 8), torch.nan)), "class_weights must be finite"),
        (lambda g: WeightedSupport(g, torch.ones(2, 8), class_names=["a"]), "class_names has 1 names for 2"),
        (lambda g: WeightedSupport(g[:, None], torch.ones(2, 8)), r"embeddings must be \(K, J\)"),
        (lambda g: Neighbors(torch.tensor([[1, 8]]), embeddings=g), r"ids must be -1 or positions .*0\.\.7, got 8"),
        (lambda g: Neighbors(torch.tensor([[1, -2]]), embeddings=g), r"ids must be -1 or positions .*0\.\.7, got -2"),
        (lambda g: Neighbors(torch.tensor([[1, 2], [-1, -1]]), embeddings=g), "ids: query 1 has no hit"),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[Tensor], Any], message: str, gallery: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        make(gallery)


def test_supports_of_another_batch_are_refused(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    support = SupportPerQuery(gallery[:4].unflatten(0, (2, 2)))
    with pytest.raises(ValueError, match=r"support .*2 queries .*batch of 3"):
        LayerFAM(net, net.features).attribute(x, support=support)


def test_prototypes_are_one_support_per_class(gallery: Tensor) -> None:
    prototypes = SupportSet(gallery, LABELS).prototypes()
    expected = torch.stack([gallery[[row for row, own in enumerate(LABELS) if own == c]].mean(0) for c in range(3)])
    torch.testing.assert_close(prototypes.embeddings(), expected)
    assert prototypes.labels.tolist() == [0, 1, 2]


def test_images_are_to_be_embedded_before_they_are_compared(make_images: Callable[..., Tensor]) -> None:
    for support in (SupportSet(make_images(2)), SupportPerQuery(make_images(2)[:, None])):
        with pytest.raises(ValueError, match=r"support holds images.*support\.embed\(model\)"):
            support.compare(torch.ones(2, 4))


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("fetched", [False, True])
def test_an_id_of_minus_one_is_no_hit(labeled: bool, fetched: bool, gallery: Tensor) -> None:
    ids = np.array([[2, 0, -1], [7, -1, -1]])
    source: dict[str, Any] = {"fetch": lambda some: gallery[some].numpy()} if fetched else {"embeddings": gallery}
    hits = Neighbors(ids, **source, labels=LABELS if labeled else None)
    first, second = hits.compare(gallery[[2, 7]]).scores
    other = cosine(gallery[2], gallery[0])
    assert first.tolist() == pytest.approx([other, -np.inf, 1] if labeled else [(1 + other) / 2])
    assert second.tolist() == pytest.approx([-np.inf, 1, -np.inf] if labeled else [1])


def test_a_search_that_finds_too_few_says_minus_one_as_faiss_does(gallery: Tensor) -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(nn.functional.normalize(gallery[:2]).float().numpy())
    _, ids = index.search(nn.functional.normalize(gallery[:1]).float().numpy(), 5)
    assert (ids == -1).sum() == 3
    score = Neighbors(ids, embeddings=gallery[:2]).compare(gallery[:1]).scores
    assert float(score) == pytest.approx((1 + cosine(gallery[0], gallery[1])) / 2)


@pytest.mark.parametrize("foil", ["others", "runner-up"])
def test_a_support_with_a_foil_takes_no_second_one(foil: Any, net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    contrasted = ContrastedSupport(SupportSet(gallery, LABELS), foil)
    weighted = WeightedSupport(gallery, torch.ones(3, 8), torch.ones(3, 8))
    for support in (contrasted, weighted):
        for second in ("others", "runner-up", gallery[:2]):
            with pytest.raises(ValueError, match=r"foil: the support, a .*Support, has a foil, .* already"):
                SimilarityToSupport(net, support, foil=second)(x)


@pytest.mark.parametrize("foil", [3, np.ones((2, 4)), MemoryBank(torch.eye(4), [0, 1, 2, 3])])
def test_a_foil_of_another_type_is_named(foil: Any, net: nn.Module, gallery: Tensor) -> None:
    with pytest.raises(TypeError, match=f"foil must be .*got {type(foil).__name__}"):
        SimilarityToSupport(net, SupportSet(gallery, LABELS), foil=foil)
    with pytest.raises(TypeError, match=f"foil must be .*got {type(foil).__name__}"):
        ContrastedSupport(SupportSet(gallery, LABELS), foil)


def test_a_bank_of_another_metric_of_the_same_class_is_refused(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    bank = MemoryBank(gallery, LABELS, similarity="euclidean")
    with pytest.raises(ValueError, match="similarity of the support is Euclidean"):
        LayerFAM(net, net.features, similarity="squared-euclidean").attribute(x, support=bank)
    swap = Bilinear(torch.eye(gallery.shape[1]).flip(0).double())
    with pytest.raises(ValueError, match="similarity of the support is Bilinear"):
        SimilarityToSupport(net, MemoryBank(gallery, LABELS, similarity=swap), Bilinear(swap.matrix * 2))
    SimilarityToSupport(net, MemoryBank(gallery, LABELS, similarity=swap), Bilinear(swap.matrix.clone()))


@pytest.mark.parametrize("count", [2, 8])
def test_exclusions_of_another_number_of_queries_are_refused(
    count: int, net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    bank = MemoryBank(gallery, LABELS).using(exclude=list(range(count)))
    for batch_size in (2, 32):
        with pytest.raises(ValueError, match=f"exclude is for {count} queries but there are 3"):
            explain(net, x, bank, layer="features", batch_size=batch_size)


def test_a_support_that_forgets_the_target_is_refused(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    class Forgetful(SupportSet):
        def compare(self, query: Tensor, target: Any = None, similarity: Any = None) -> Any:
            return super().compare(query, None, similarity)

    support = Forgetful(gallery, LABELS)
    other = (SimilarityToSupport(net, support).predict(x)[1] + 1) % 3
    with pytest.raises(ValueError, match=r"compare\(\) of Forgetful does not follow its target"):
        LayerFAM(net, net.features).attribute(x, support=support, target=other)


def test_a_target_without_any_row_is_refused_by_methods_of_captum_too(
    net: nn.Module, x: Tensor, gallery: Tensor
) -> None:
    bank = MemoryBank(gallery, LABELS, ["ant", "bee", "cat", "dog"])
    for method in ("grad-cam", "fam", "uniform"):
        with pytest.raises(ValueError, match=r"queries 0, 1, 2 .*class dog"):
            explain(net, x, bank, layer="features", method=method, target="dog")


def test_supports_made_in_inference_mode_are_usable_outside(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    with torch.inference_mode():
        pairs = SupportPerQuery(gallery[:6].clone().unflatten(0, (3, 2)))
        weighted = WeightedSupport(gallery.clone(), torch.ones(1, 8, dtype=torch.float64))
        hits = Neighbors(torch.tensor([[0], [1], [2]]), fetch=lambda ids: gallery[ids].clone())
    for support in (pairs, weighted, hits):
        scores = SimilarityToSupport(net, support)
        assert LayerGradCam(scores, net.features).attribute(x, target=0).isfinite().all()


def test_images_of_pairs_that_change_in_place_are_embedded_anew(
    net: nn.Module, x: Tensor, make_images: Callable[..., Tensor]
) -> None:
    pairs = SupportPerQuery(make_images(6, seed=5).unflatten(0, (3, 2)))
    scores = SimilarityToSupport(net, pairs)
    before = scores(x)
    pairs.inputs.mul_(-1)
    assert torch.equal(scores(x), SimilarityToSupport(net, pairs)(x))
    assert not torch.allclose(scores(x), before)


def test_scores_are_no_embedding_model(net: nn.Module, x: Tensor, gallery: Tensor) -> None:
    with pytest.raises(TypeError, match="model is a SimilarityToSupport"):
        explain(SimilarityToSupport(net, SupportSet(gallery, LABELS)), x, gallery)
