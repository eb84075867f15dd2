"""A score minus the mean similarity to a gallery: for every support, similarity and form of the gallery."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, MemoryBank, SimilarityToSupport, SupportSet
from captum_fam.similarity import (
    Bilinear,
    Cosine,
    Dot,
    Euclidean,
    EuclideanDifference,
    Learned,
    LinearSimilarity,
    Mahalanobis,
    Similarity,
    UnitEuclidean,
)
from captum_fam.support import (
    Comparison,
    ContrastedSupport,
    Gallery,
    LeaveOutSupport,
    Neighbors,
    SameForAll,
    ShardedMemoryBank,
    Support,
    SupportPerQuery,
    WeightedSupport,
    gallery_rows,
)
from captum_fam.support.mean_form import MeanForm, mean_form

pytestmark = [
    pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning"),
    pytest.mark.filterwarnings("ignore:the map explains:UserWarning"),
]

J = 7
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Overlap(LinearSimilarity):
    """A similarity of the user: the dot product of absolute values."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query.abs() @ support.abs().T

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return query.sign() * (support_weights @ support.abs())


class TwiceTheCosine(Cosine):
    """A subclass with another score, which must not get the closed form of its base."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return 2 * super().score(query, support)


MATRIX = random(J, J, seed=9)
METRIC = MATRIX @ MATRIX.T
SIMILARITIES: dict[str, tuple[Similarity, Callable[[Tensor, Tensor], Tensor]]] = {
    "cosine": (Cosine(), lambda z, t: (z * t).sum() / z.norm() / t.norm()),
    "dot": (Dot(), lambda z, t: (z * t).sum()),
    "bilinear": (Bilinear(MATRIX), lambda z, t: z @ MATRIX @ t),
    "euclidean": (Euclidean(), lambda z, t: -(z - t).norm()),
    "squared": (Euclidean(squared=True), lambda z, t: -((z - t) ** 2).sum()),
    "mahalanobis": (Mahalanobis(METRIC), lambda z, t: -((z - t) @ METRIC @ (z - t))),
    "unit": (UnitEuclidean(), lambda z, t: -(z / z.norm() - t / t.norm()).norm()),
    "unit squared": (UnitEuclidean(squared=True), lambda z, t: -((z / z.norm() - t / t.norm()) ** 2).sum()),
    "difference": (EuclideanDifference(squared=True), lambda z, t: -((z - t) ** 2).sum()),
    "learned": (Learned(lambda z, t: (z * t).sum(1) ** 2, n_steps=20), lambda z, t: (z * t).sum() ** 2),
    "own": (Overlap(), lambda z, t: (z.abs() * t.abs()).sum()),
    "subclass": (TwiceTheCosine(), lambda z, t: 2 * (z * t).sum() / z.norm() / t.norm()),
}


class Nearest(Support):
    """A support of the user: the nearest of some embeddings."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings, self.class_names = embeddings, ("nearest",)

    def compare(self, query: Tensor, target: Any = None, similarity: Similarity | None = None) -> Comparison:
        measure = self.measure(similarity)
        best = measure.score(query, self.embeddings).argmax(1)
        members = SameForAll(torch.ones(len(query), 1, dtype=query.dtype), n_classes=1)
        return Comparison(query, self.embeddings[best][:, None], members, measure, self.class_names, target)


def mean_over(z: Tensor, rows: Tensor, similarity: str) -> Tensor:
    """The mean similarity to rows, one row after the other."""
    measure = SIMILARITIES[similarity][1]
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        total = total + measure(z, row)
    return total / len(rows)


def test_a_cosine_minus_the_mean_cosine_by_hand() -> None:
    support = SupportSet(torch.eye(3)[:2], ["jay", "wren"])
    query = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
    gallery = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    comparison = SimilarityToSupport(nn.Identity().eval(), support, foil="gallery", gallery=gallery).compare(query)
    # Means: (0.6 + 0 + 0.8 + 0) / 4 = 0.35 and (0 + 0.8 + 0.6 + 0.8) / 4 = 0.55.
    torch.testing.assert_close(comparison.scores, torch.tensor([[0.25, 0.45], [-0.55, 0.05]]))
    torch.testing.assert_close(comparison.plain_score, torch.tensor([0.8, 0.6]))
    assert comparison.predicted.tolist() == [1, 1]
    # Contributions: 0.6 * (0 - 1/4), 0.8 * (1 - 1/4), 0 for the first query.
    torch.testing.assert_close(comparison.contributions()[0], torch.tensor([-0.15, 0.6, 0.0]))


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize("kind", ["set", "leave-out", "per query", "neighbors", "weighted", "own", "bank", "all"])
def test_every_support_and_similarity_has_the_mean_subtracted(kind: str, name: str) -> None:
    similarity, _ = SIMILARITIES[name]
    query, rows, gallery = random(3, J, seed=1), random(8, J, seed=2), random(5, J, seed=3)
    per_class = nn.functional.one_hot(torch.tensor(LABELS)).T.double()
    left_out = torch.zeros(3, 8, dtype=torch.bool)
    left_out[0, 3] = left_out[2, 5] = True
    supports: dict[str, Callable[[], Support]] = {
        "set": lambda: SupportSet(rows, LABELS),
        "leave-out": lambda: LeaveOutSupport(SupportSet(rows, LABELS), left_out),
        "per query": lambda: SupportPerQuery(rows[:6].view(3, 2, J)),
        "neighbors": lambda: Neighbors([[0, 2], [1, None], [7, 3]], embeddings=rows),
        "weighted": lambda: WeightedSupport(rows, 0.3 * per_class),
        "own": lambda: Nearest(rows),
        "bank": lambda: MemoryBank(rows, LABELS, similarity=similarity, k=4),
        "all": lambda: MemoryBank(rows, LABELS, similarity=similarity, k=4, neighbors="all"),
    }
    if kind in ("neighbors", "per query", "own", "bank", "all") and name == "own":
        pytest.skip("this similarity of the user takes shared supports only")
    support = supports[kind]()
    plain = support.for_every_class().compare(query, similarity=similarity)
    found = SimilarityToSupport(nn.Identity().eval(), support, similarity, "gallery", gallery=gallery).compare(query)
    means = torch.stack([mean_over(z, gallery, name) for z in query])
    tight = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.scores, plain.class_scores - means[:, None], **tight)
    torch.testing.assert_close(found.score, plain.score - means, **tight)
    torch.testing.assert_close(found.plain_score, plain.score, **tight)
    assert torch.equal(found.predicted, plain.predicted)
    assert found.with_foil.all()
    # Captum's quadrature has the precision of float32.
    if name == "subclass":
        return  # its contributions are those of the cosine
    loose = {"rtol": 1e-5, "atol": 1e-5} if name == "learned" else tight
    torch.testing.assert_close(found.contributions().sum(1), found.explained_score, **loose)
    if similarity.has_weights:
        torch.testing.assert_close((query * found.linear_weights()).sum(1), found.explained_score, **loose)


def test_without_a_gallery_the_supports_are_the_gallery() -> None:
    query, rows = random(3, J, seed=1), random(8, J, seed=2)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, [1, 4]] = mask[2, 0] = True
    kept = [[2, 3, 0, 5, 6, 7], list(range(8)), list(range(1, 8))]
    weights = nn.functional.one_hot(torch.tensor(LABELS)).T.double()
    bank = MemoryBank(rows, LABELS, k=3)
    cases: list[tuple[Support, list[list[int]]]] = [
        (SupportSet(rows, LABELS), [list(range(8))] * 3),
        (WeightedSupport(rows, weights), [list(range(8))] * 3),
        (bank, [list(range(8))] * 3),
        (ShardedMemoryBank(bank), [list(range(8))] * 3),
        (LeaveOutSupport(SupportSet(rows, LABELS), mask), kept),
        (bank.using(exclude=[[1, 4], [], [0]]), kept),
        (ShardedMemoryBank(bank).using(exclude=[[1, 4], [], [0]]), kept),
    ]
    for support, used in cases:
        means = torch.stack([mean_over(z, rows[own], "cosine") for z, own in zip(query, used, strict=True)])
        for part in (slice(0, 3), slice(1, 3)):
            found = ContrastedSupport(support, "gallery").for_queries(part.start, part.stop).compare(query[part])
            plain = support.for_queries(part.start, part.stop).compare(query[part])
            torch.testing.assert_close(found.score, plain.score - means[part], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "squared", "mahalanobis", "euclidean", "unit squared", "bilinear"])
def test_rows_are_left_out_of_the_mean_of_each_query(name: str) -> None:
    similarity, _ = SIMILARITIES[name]
    query, gallery = random(4, J, seed=1), random(3, J, seed=3)
    support = SupportSet(random(2, J, seed=2), ["jay", "wren"])
    # A row may be named twice, and two of three rows may be left out.
    own = Gallery(gallery).without([[1], [], [0, 2], [2, 2]])
    used = [[0, 2], [0, 1, 2], [1], [0, 1]]
    means = torch.stack([mean_over(z, gallery[rows], name) for z, rows in zip(query, used, strict=True)])
    plain = support.compare(query, similarity=similarity)
    found = SimilarityToSupport(nn.Identity().eval(), support, similarity, own).compare(query)
    torch.testing.assert_close(found.scores, plain.scores - means[:, None], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((query * found.linear_weights()).sum(1), found.explained_score, rtol=1e-12, atol=1e-12)
    part = ContrastedSupport(support, own).for_queries(2, 4).compare(query[2:], similarity=similarity)
    torch.testing.assert_close(part.scores, found.scores[2:])


@pytest.mark.parametrize("source", [Gallery, SupportSet, MemoryBank, ShardedMemoryBank, Tensor, "mean"])
def test_all_forms_of_a_gallery_say_the_same(source: Any) -> None:
    query, rows, support = random(3, J, seed=1), random(5, J, seed=3), SupportSet(random(4, J, seed=2), [0, 0, 1, 1])
    forms: dict[Any, Callable[[], Any]] = {
        Gallery: lambda: Gallery(rows),
        SupportSet: lambda: SupportSet(rows, [0, 1, 1, 1, 1]),
        MemoryBank: lambda: MemoryBank(rows, [0, 0, 0, 0, 1]),
        ShardedMemoryBank: lambda: ShardedMemoryBank(MemoryBank(rows, [0, 0, 0, 0, 1])),
        Tensor: lambda: rows,
        "mean": lambda: (rows / rows.norm(dim=1, keepdim=True)).mean(0),
    }
    scores = SimilarityToSupport(nn.Identity().eval(), support, foil="gallery", gallery=forms[source]())
    plain = support.compare(query).scores
    means = torch.stack([mean_over(z, rows, "cosine") for z in query])
    torch.testing.assert_close(scores(query), plain - means[:, None], rtol=1e-12, atol=1e-12)
    assert torch.equal(copy.deepcopy(scores)(query), scores(query))


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear")


def test_maps_add_up_for_every_similarity(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images, others = make_images(3, seed=1), make_images(4, seed=2), make_images(3, seed=3)
    for name, (_, measure) in SIMILARITIES.items():
        if name in ("bilinear", "mahalanobis", "difference", "learned", "subclass"):
            continue  # embeddings of another length, or no exact weights
        similarity = SIMILARITIES[name][0]
        scores = SimilarityToSupport(net, SupportSet(images, [0, 0, 1, 1]), similarity, "gallery", gallery=others)
        details = LayerSimilarityCAM(scores, "features").details(x, target=1)
        z, t, g = (net(part).detach() for part in (x, images, others))
        for query in range(3):
            expected, start = 0.0, 0.0
            for rows, sign in ((t[2:], 1.0), (g, -1.0)):
                for row in rows:
                    expected += sign * float(measure(z[query], row)) / len(rows)
                    start += sign * float(-row.norm() if name == "euclidean" else 0.0) / len(rows)
                    start += sign * float(-row.square().sum() if name == "squared" else 0.0) / len(rows)
            assert details.comparison is not None
            assert float(details.comparison.score[query]) == pytest.approx(expected, abs=1e-12)
            assert float(details.attributions[query].sum()) == pytest.approx(expected - start, abs=1e-12), name


def test_methods_of_captum_explain_the_contrast(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images = make_images(3, seed=1), make_images(4, seed=2)
    scores = SimilarityToSupport(net, SupportSet(images, [0, 0, 1, 1]), foil="gallery")
    assert LayerGradCam(scores, net.features).attribute(x, target=1).shape[:2] == (3, 1)
    baseline = make_images(3, seed=7)
    maps = IntegratedGradients(scores).attribute(x, baseline, target=1, n_steps=300)
    gain = (scores(x) - scores(baseline))[:, 1]
    torch.testing.assert_close(maps.flatten(1).sum(1), gain, rtol=1e-3, atol=1e-4)
    # Two classes of two images: the gallery is half the class, half the other.
    others = SimilarityToSupport(net, SupportSet(images, [0, 0, 1, 1]), foil="others")
    torch.testing.assert_close(scores(x), others(x) / 2, rtol=1e-10, atol=1e-12)
    exact = [LayerSimilarityCAM(one, net.features).attribute(x, target=1) for one in (scores, others)]
    torch.testing.assert_close(exact[0], exact[1] / 2, rtol=1e-10, atol=1e-12)


def test_fam_is_signed_and_leaves_out_min_max(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images = make_images(3, seed=1), make_images(4, seed=2)
    scores = SimilarityToSupport(net, SupportSet(images, [0, 0, 1, 1]), foil="gallery")
    fam = LayerFAM(scores, net.features, transform=None if net.head is None else net.head, support_scale="none")
    contributions = fam.details(x, target=0).contributions
    assert contributions is not None
    comparison = scores.compare_quietly(x, target=0)
    torch.testing.assert_close(contributions[0][0], comparison.contributions() @ net.head.weight)  # type: ignore[union-attr]


def test_a_gallery_that_equals_the_class_leaves_exactly_nothing(
    net: nn.Module, make_images: Callable[..., Tensor]
) -> None:
    x, images = make_images(2, seed=1).float(), make_images(3, seed=2).float()
    net = net.float()
    scores = SimilarityToSupport(net, SupportSet(images), foil="gallery", gallery=images.flip(0))
    assert (scores(x) == 0).all()
    assert (LayerSimilarityCAM(scores, "features").attribute(x) == 0).all()
    one = SimilarityToSupport(net, SupportSet(images[:1]), foil="gallery", gallery=images[:1])
    assert (LayerFAM(one, "features").attribute(x) == 0).all()


def test_a_change_of_model_or_gallery_is_seen(net: nn.Module, make_images: Callable[..., Tensor]) -> None:
    x, images, others = make_images(2, seed=1), make_images(3, seed=2), make_images(4, seed=3)
    scores = SimilarityToSupport(net, SupportSet(images), foil="gallery", gallery=SupportSet(others))

    def expected() -> Tensor:
        fresh = SimilarityToSupport(net, SupportSet(images), foil="gallery", gallery=others)
        return fresh(x)

    assert torch.equal(scores(x), expected())
    with torch.no_grad():
        net.head.weight.mul_(-1.5).add_(0.1)  # type: ignore[union-attr]
    assert torch.equal(scores(x), expected())
    others = make_images(4, seed=5)
    scores.foil.source.inputs.copy_(others)  # type: ignore[union-attr]
    assert torch.equal(scores(x), expected())
    state = scores.state_dict()
    assert torch.equal(state["foil.source.inputs"], others)


def test_the_mean_of_a_bank_is_one_pass_in_blocks_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_rows, "BLOCK_BYTES", 8 * J * 3)
    rows, query = random(10, J, seed=2), random(2, J, seed=1)
    bank = MemoryBank(rows, [0] * 10, k=2)
    blocks: list[int] = []
    rows_of_bank = bank.gallery_rows()
    form = mean_form(Cosine())
    assert form is not None
    lift = type(form).lift

    def counted(self: MeanForm, block: Tensor) -> Tensor:
        blocks.append(len(block))
        return lift(self, block)

    monkeypatch.setattr(type(form), "lift", counted)
    first = rows_of_bank.total(form)
    assert blocks == [3, 3, 3, 1]
    assert bank.using(k=3).for_every_class().gallery_rows().total(mean_form(Cosine())) is first  # type: ignore[arg-type]
    assert blocks == [3, 3, 3, 1]
    monkeypatch.undo()
    found = ContrastedSupport(bank, "gallery").compare(query)
    means = torch.stack([mean_over(z, rows, "cosine") for z in query])
    torch.testing.assert_close(found.score, bank.compare(query).score - means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_in_half_precision_and_autocast_are_summed_in_float32(dtype: torch.dtype) -> None:
    rows, query = random(50, J, seed=2).to(dtype), random(3, J, seed=1).float()
    bank = MemoryBank(rows, torch.arange(50) % 3, k=5)
    means = torch.stack([mean_over(z.double(), rows.double(), "cosine") for z in query])
    scores = SimilarityToSupport(nn.Identity().eval(), bank, foil="gallery")
    plain = SimilarityToSupport(nn.Identity().eval(), bank)
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(query)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(query).double() - means[:, None], rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        inside = MemoryBank(rows.clone(), torch.arange(50) % 3, k=5)
        ContrastedSupport(inside, "gallery").compare(query)
    leaf = query.clone().requires_grad_()
    ContrastedSupport(inside, "gallery").compare(leaf).scores.sum().backward()
    assert leaf.grad is not None


def test_prototypes_are_compared_with_the_mean_over_all_supports() -> None:
    query, rows = random(3, J, seed=1), random(8, J, seed=2)
    scores = SimilarityToSupport(nn.Identity().eval(), SupportSet(rows, LABELS), None, "gallery", "prototype")
    plain = SimilarityToSupport(nn.Identity().eval(), SupportSet(rows, LABELS), aggregate="prototype")
    means = torch.stack([mean_over(z, rows, "cosine") for z in query])
    torch.testing.assert_close(scores(query), plain(query) - means[:, None], rtol=1e-12, atol=1e-12)


def test_what_is_no_gallery_is_refused() -> None:
    rows, model = random(4, J), nn.Identity().eval()
    two = SupportSet(rows, [0, 0, 1, 1])
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        (
            {"support": Neighbors([[0, 1]], embeddings=rows), "foil": "gallery"},
            ValueError,
            "Neighbors holds no gallery",
        ),
        ({"support": SupportPerQuery(rows[None]), "foil": "gallery"}, ValueError, "pass gallery="),
        ({"support": Nearest(rows), "foil": "gallery"}, ValueError, "Nearest holds no gallery"),
        ({"support": SupportSet(rows), "foil": "gallery"}, ValueError, "their own mean"),
        ({"support": two, "gallery": rows}, ValueError, 'needs foil="gallery", got foil=None'),
        ({"support": two, "foil": "others", "gallery": rows}, ValueError, "got foil='others'"),
        ({"support": two, "foil": "gallery", "gallery": "photos"}, TypeError, "gallery must be a tensor"),
        ({"support": two, "foil": "gallery", "gallery": rows * torch.nan}, ValueError, "gallery contains NaN"),
        ({"support": two, "foil": "gallery", "gallery": SupportPerQuery(rows[None])}, ValueError, "holds no gallery"),
        ({"support": two, "foil": "mean"}, ValueError, 'foil must be "others", "runner-up", "gallery"'),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            SimilarityToSupport(model, **arguments)

    def compare(gallery: Any, similarity: Similarity) -> None:
        SimilarityToSupport(model, two, similarity, "gallery", gallery=gallery).compare(rows)

    for narrow in (rows[:, :6], rows[0, :6], MemoryBank(rows[:, :6], [0] * 4)):
        with pytest.raises(ValueError, match="gallery embeds to 6 features but the support to 7"):
            SimilarityToSupport(model, two, foil="gallery", gallery=narrow)
        with pytest.raises(ValueError, match="gallery embeds to 6 features but the query to 7"):
            Gallery(narrow).contrast(rows, Cosine())
    with pytest.raises(ValueError, match="length is at most 1"):
        compare(torch.full((J,), 2.0), Cosine())
    for similarity in (Euclidean(squared=True), Mahalanobis(METRIC)):
        with pytest.raises(ValueError, match="does not follow from the mean vector"):
            compare(rows[0], similarity)
    with pytest.raises(ValueError, match="needs all embeddings of the gallery"):
        compare(rows[0], Euclidean())
    with pytest.raises(ValueError, match="needs all embeddings on every rank"):
        compare(ShardedMemoryBank(MemoryBank(rows, [0] * 4)), Euclidean())
    with pytest.raises(ValueError, match="left_out leaves nothing of the 4 rows for query 1"):
        compare(Gallery(rows).without([[0], [0, 1, 2, 3], [], []]), Cosine())
    for contrasted in (ContrastedSupport(two, "others"), ContrastedSupport(two, Gallery(rows))):
        with pytest.raises(ValueError, match="foil: the support, a ContrastedSupport, has a foil, a gallery or"):
            ContrastedSupport(contrasted, Gallery(rows))
        with pytest.raises(ValueError, match="foil: the comparison has a foil, a gallery or a threshold already"):
            contrasted.compare(rows).against(runner_up=True)
    with pytest.raises(ValueError, match="gallery holds images but embeddings are needed"):
        Gallery(torch.rand(2, 3, 4, 5)).contrast(rows, Cosine())
    with pytest.raises(TypeError, match='"gallery", a SupportSet or a Gallery, got Tensor'):
        ContrastedSupport(two, rows)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"support must be a Support .*got Tensor"):
        ContrastedSupport(rows, "others")  # type: ignore[arg-type]


def test_rows_that_cannot_be_left_out_are_named_by_their_argument() -> None:
    rows = random(4, J)
    wrong: list[tuple[Any, type[Exception], str]] = [
        ([[4], [0]], ValueError, r"left_out must hold rows 0..3, or -1 for none, got 0..4"),
        ([[0], [1], [2]], ValueError, "left_out is for 3 queries but there are 2"),
        ([], ValueError, "left_out is for 0 queries but there are 2"),
        ([[0.5], [1]], TypeError, "left_out must be whole numbers"),
        (3, ValueError, r"left_out must be rows \(B,\) or \(B, E\)"),
    ]
    for left_out, error, message in wrong:
        with pytest.raises(error, match=message):
            Gallery(rows, left_out).contrast(rows[:2], Cosine())
    with pytest.raises(ValueError, match="exclude is for 0 queries but there are 2"):
        MemoryBank(rows, [0, 1, 0, 1], k=2).using(exclude=[]).compare(rows[:2])
    mean = Gallery(rows[0] / 9)
    for make in (lambda: Gallery(rows[0], [[0], [0]]), lambda: mean.without([[0], [0]])):
        with pytest.raises(ValueError, match="left_out: nothing can be left out of a mean vector; pass the embeddings"):
            make()
    assert mean.without([[], [-1]]).contrast(rows[:2], Cosine()).baseline is not None
    gallery = Gallery(torch.rand(3, 3, 4, 5), [[0], [1]])
    gallery.check_queries((torch.rand(2, 3, 4, 5),), None)
    with pytest.raises(ValueError, match="left_out is for 2 queries but there are 3"):
        gallery.check_queries((torch.rand(3, 3, 4, 5),), None)


def value_of(gallery: Gallery, query: Tensor, similarity: Similarity) -> Tensor:
    contrast = gallery.contrast(query, similarity)
    assert contrast.baseline is not None
    return contrast.baseline.score + contrast.constant


@pytest.mark.parametrize("sharded", [False, True])
def test_what_changes_in_place_is_seen_by_the_mean_that_is_kept(sharded: bool) -> None:
    query, rows, others = random(2, J, seed=1), random(9, J, seed=2), random(9, J, seed=3)
    bank = MemoryBank(rows.clone(), [0, 1, 2] * 3, k=2)
    gallery = Gallery(ShardedMemoryBank(bank) if sharded else bank)
    metric, cosine, tight = Mahalanobis(METRIC), Cosine(), {"rtol": 1e-11, "atol": 1e-11}
    first = value_of(gallery, query, metric)
    metric.factor.mul_(2)
    torch.testing.assert_close(value_of(gallery, query, metric), 4 * first, **tight)
    # An equal object of the old values must not get the sum of the new ones.
    torch.testing.assert_close(value_of(gallery, query, Mahalanobis(METRIC)), first, **tight)
    metric.load_state_dict(Mahalanobis(METRIC).state_dict())
    torch.testing.assert_close(value_of(gallery, query, metric), first, **tight)
    value_of(gallery, query, cosine)
    bank.embeddings.copy_(others)
    means = torch.stack([mean_over(z, others, "cosine") for z in query])
    torch.testing.assert_close(value_of(gallery, query, cosine), means, **tight)
    moved = bank.to(dtype=torch.float32)
    value_of(Gallery(moved), query, cosine)
    moved.embeddings.copy_(rows)
    means = torch.stack([mean_over(z, rows.float().double(), "cosine") for z in query])
    torch.testing.assert_close(value_of(Gallery(moved), query, cosine), means, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("as_bank", [False, True])
def test_squared_distances_keep_their_digits_in_float32(as_bank: bool, dtype: torch.dtype) -> None:
    query, rows = random(2, J, seed=1).float(), random(40, J, seed=2)
    rows[7] *= 1e5
    rows = rows.to(dtype)
    source = MemoryBank(rows, torch.arange(40) % 2, k=3, similarity="squared-euclidean") if as_bank else rows
    for left_out, kept in (([[7], [7]], [*range(7), *range(8, 40)]), ([[0, 7], [7, 0]], [*range(1, 7), *range(8, 40)])):
        means = torch.stack([mean_over(z.double(), rows[kept].double(), "squared") for z in query])
        found = value_of(Gallery(source, left_out), query, Euclidean(squared=True))
        torch.testing.assert_close(found.double(), means, rtol=1e-5, atol=0)
    far, near = (100 + random(300, J, seed=3)).to(dtype), (100 + random(1, J, seed=4)).float()
    means = torch.stack([mean_over(z.double(), far.double(), "squared") for z in near])
    torch.testing.assert_close(value_of(Gallery(far), near, Euclidean(squared=True)).double(), means, rtol=1e-6, atol=0)


def test_a_score_of_zero_is_zero_everywhere() -> None:
    support, generator = torch.empty(1, 512), torch.Generator().manual_seed(0)
    support.normal_(generator=generator)
    for scale in (1, 3, 1e-3):
        for copies in (1, 3, 7):
            found = ContrastedSupport(SupportSet(support), Gallery(support.repeat(copies, 1))).compare(scale * support)
            assert found.scores.tolist() == [[0.0]]
            assert found.score.tolist() == found.explained_score.tolist() == [0.0]
    query, rows = random(4, J, seed=1), random(8, J, seed=2)
    for foil in ("others", "runner-up", "gallery", SupportSet(rows[:3])):
        for target in (0, [2, 1, 0, 1]):
            found = ContrastedSupport(SupportSet(rows, LABELS), foil).compare(query, target)  # type: ignore[arg-type]
            expected = found.scores.gather(1, found.target[:, None])[:, 0]
            assert torch.allclose(found.score, expected, rtol=0, atol=1e-14)
            assert torch.equal(found.score == 0, expected == 0)


class PlainDot(Dot):
    """The dot product without a closed form for a gallery: a subclass is compared with all rows."""


@pytest.mark.parametrize("weighting", ["paper", "weights", "contributions"])
def test_a_gallery_is_one_support_of_fam(weighting: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, J, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x, rows, gallery = random(2, 3, 6, 8, seed=1), random(3, J, seed=2), random(5, J, seed=3)
    z = net(x).detach()

    def maps(similarity: Similarity, foil: Any, **gallery_: Any) -> Tensor:
        scores = SimilarityToSupport(net, SupportSet(rows), similarity, foil, **gallery_)
        attributions: Tensor = LayerFAM(scores, net[1], weighting=weighting).attribute(x)
        return attributions

    closed, all_rows = maps(Dot(), "gallery", gallery=gallery), maps(PlainDot(), "gallery", gallery=gallery)
    # Eq. 15 by hand: the shares of the supports, each divided by its score, minus those of the mean of the gallery.
    factor = torch.ones_like(z) if weighting == "weights" else z
    shares = torch.zeros_like(z)
    for row in rows:
        shares += factor * row / (z @ row).abs()[:, None] / len(rows)
    mean = gallery.mean(0)
    shares -= factor * mean / (z @ mean).abs()[:, None]
    expected = torch.einsum("bn,bnhw->bhw", shares, net[:2](x).detach())[:, None]
    torch.testing.assert_close(closed, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(all_rows, closed, rtol=1e-9, atol=1e-12)
    # As a set, every image has its own factor.
    assert not torch.allclose(maps(Dot(), SupportSet(gallery)), closed, rtol=1e-2)


@pytest.mark.parametrize("name", ["cosine", "squared", "unit squared", "mahalanobis", "bilinear"])
def test_both_forms_of_a_gallery_give_one_map_of_fam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, J, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x, rows, gallery = random(2, 3, 6, 8, seed=1), random(3, J, seed=2), random(5, J, seed=3)
    similarity, _ = SIMILARITIES[name]
    left_out = [[1], [0, 4]]
    for chosen in (gallery, Gallery(gallery, left_out)):
        scores = SimilarityToSupport(net, SupportSet(rows), similarity, "gallery", gallery=chosen)
        closed = LayerFAM(scores, net[1]).attribute(x)
        monkeypatch.setattr("captum_fam.support.gallery.mean_form", lambda _: None)
        torch.testing.assert_close(LayerFAM(scores, net[1]).attribute(x), closed, rtol=1e-9, atol=1e-12)
        monkeypatch.undo()
