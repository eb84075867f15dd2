"""Maps do not hang on how a processor rounds its products, and hold at any scale of the embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, MemoryBank, SimilarityToSupport, SupportSet
from captum_fam.pooling import GAP
from captum_fam.similarity import Bilinear, Mahalanobis, Similarity
from tests.perturbed_products import PerturbedProducts

pytestmark = pytest.mark.filterwarnings(
    "ignore:more than half of a map's energy:UserWarning", "ignore:the map explains:UserWarning"
)

WEIGHTINGS = ("paper", "weights", "contributions")
SCALES = ("paper", "none")
NORMALIZATIONS = ("minmax", "relu", "maxabs", "none")
MEASURES = ("cosine", "dot", "euclidean", "squared-euclidean", "bilinear", "mahalanobis")
# All normalizations of the published weights, and what cannot do without a zero of the others.
SWITCHES = [
    {"weighting": weighting, "support_scale": scale, "normalization": normalization}
    for weighting, scale, normalization in itertools.product(WEIGHTINGS, SCALES, NORMALIZATIONS)
    if weighting == "paper" or normalization == ("maxabs" if scale == "paper" else "relu")
]
directions = pytest.mark.parametrize("direction", ["up", "down"])
either_type = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])

MakeNet = Callable[..., Any]
MakeImages = Callable[..., Tensor]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(name: str, features: int) -> Similarity | str:
    matrix = torch.randn(features, features, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return {"bilinear": Bilinear(matrix), "mahalanobis": Mahalanobis(matrix @ matrix.T)}.get(name, name)


def on(direction: str | None) -> Any:
    return PerturbedProducts(direction) if direction else nullcontext()  # type: ignore[arg-type]


def family(model: SimilarityToSupport, layer: nn.Module, queries: Tensor, target: Any) -> dict[str, Any]:
    """By name, the maps of LayerFAM for many switches and the exact map, and what they compared."""
    found: dict[str, Any] = {}
    for switches in [*SWITCHES, *({**one, "transform": None} for one in SWITCHES[::3])]:
        if "transform" in switches and not isinstance(model.model.head, nn.Identity):
            continue
        details = LayerFAM(model, layer, **switches).details(queries, target=target)
        found[f"fam, {switches}"] = details.attributions, details.comparison
    details = LayerSimilarityCAM(model, layer).details(queries, target=target)
    found["similarity-cam"] = details.attributions, details.comparison
    return found


def agree(plain: dict[str, Any], other: dict[str, Any], relative: float) -> None:
    assert plain.keys() == other.keys()
    for name, (maps, comparison) in plain.items():
        moved, compared = other[name]
        size = maps.abs().flatten(1).amax(1)
        error = (moved - maps).abs().flatten(1).amax(1)
        assert (error <= relative * size).all(), (name, error, size)  # zeros stay zeros
        assert torch.equal(compared.predicted, comparison.predicted), name
        assert torch.equal(compared.scores == 0, comparison.scores == 0), name


NETS: dict[str, dict[str, Any]] = {
    "headless": {},
    "signed": {"signed": True},
    "linear": {"head": "linear", "signed": True},
    "linear, bias, l2": {"head": "linear-bias", "normalize": True},
}
FOILS = (None, "others", "runner-up", "images")


@directions
@either_type
@pytest.mark.parametrize("foil", FOILS)
@pytest.mark.parametrize("net", NETS)
def test_the_whole_family_of_maps_holds_however_products_are_rounded(
    net: str, foil: Any, dtype: torch.dtype, direction: str, make_net: MakeNet, make_images: MakeImages
) -> None:
    model = make_net(**NETS[net]).to(dtype)
    queries, images, others = (make_images(n, seed=s).to(dtype) for n, s in ((3, 1), (6, 4), (2, 7)))
    support = SupportSet(images, [0, 1, 1, 0, 0, 2])
    foil = SupportSet(others) if foil == "images" else foil

    def run() -> dict[str, Any]:
        return family(SimilarityToSupport(model, support, foil=foil), model.features, queries, None)

    plain = run()
    with PerturbedProducts(direction):  # type: ignore[arg-type]
        agree(plain, run(), 1e-9 if dtype == torch.float64 else 1e-3)


@directions
@pytest.mark.parametrize("foil", [None, "others"])
@pytest.mark.parametrize("name", MEASURES)
def test_maps_of_every_measure_hold_however_products_are_rounded(
    name: str, foil: Any, direction: str, make_net: MakeNet, make_images: MakeImages
) -> None:
    model, queries, images = make_net(signed=True), make_images(3, seed=1), make_images(6, seed=4)
    support = SupportSet(images, [0, 1, 1, 0, 0, 2])

    def run() -> dict[str, Any]:
        scores = SimilarityToSupport(model, support, measure(name, 6), foil)
        return family(scores, model.features, queries, [2, 0, 1])

    plain = run()
    with PerturbedProducts(direction):  # type: ignore[arg-type]
        agree(plain, run(), 1e-9)


# Supports that cancel


def is_empty(found: dict[str, Any], activation: Tensor) -> None:
    """Weights of one from Eq. 12, no map at all from the others, for every switch."""
    flat = activation.sum(1, keepdim=True)
    for name, (maps, comparison) in found.items():
        if "minmax" in name:
            torch.testing.assert_close(maps, flat, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert (maps == 0).all(), name
        scores = comparison.scores.gather(1, comparison.target.unsqueeze(1))
        assert comparison.scores.shape[1] == 1 or (scores == 0).all(), name


@directions
@either_type
@pytest.mark.parametrize(
    ("kind", "foil"), [("images", "others"), ("images", "runner-up"), ("images", "given"), ("embeddings", "given")]
)
@pytest.mark.parametrize("net", NETS)
def test_a_foil_that_equals_the_class_leaves_no_map(
    net: str,
    kind: str,
    foil: Any,
    dtype: torch.dtype,
    direction: str,
    make_net: MakeNet,
    make_images: MakeImages,
) -> None:
    model = make_net(**NETS[net]).to(dtype)
    queries, images = make_images(3, seed=1).to(dtype), make_images(2, seed=4).to(dtype)
    supports = images if kind == "images" else model(images).detach()
    # The same two images: three times of the first class, seven times of the second, in another order.
    first, second = (
        supports.repeat(3, *[1] * (supports.dim() - 1)),
        supports.flip(0).repeat(7, *[1] * (supports.dim() - 1)),
    )
    with on(direction):
        if foil == "given":
            scores = SimilarityToSupport(model, SupportSet(first), foil=SupportSet(second))
        else:
            scores = SimilarityToSupport(model, SupportSet(torch.cat([first, second]), [0] * 6 + [1] * 14), foil=foil)
        found = family(scores, model.features, queries, 0)
    is_empty(found, model.features(queries).detach())
    assert all((comparison.predicted == 0).all() for _, comparison in found.values())


@pytest.mark.parametrize("direction", [None, "up", "down"])
@pytest.mark.parametrize("name", MEASURES)
def test_a_foil_that_equals_the_class_leaves_no_map_of_any_measure(
    name: str, direction: str | None, make_net: MakeNet, make_images: MakeImages
) -> None:
    model, queries, images = make_net(signed=True), make_images(3, seed=1), make_images(5, seed=4)
    with on(direction):
        scores = SimilarityToSupport(
            model, SupportSet(images), measure(name, 6), SupportSet(images.flip(0).repeat(3, 1, 1, 1))
        )
        found = family(scores, model.features, queries, 0)
    is_empty(found, model.features(queries).detach())


@directions
@either_type
@pytest.mark.parametrize("cosine", [0.7, 1e-2, 1e-3])
@pytest.mark.parametrize("name", ["cosine", "dot", "bilinear"])
def test_opposite_supports_leave_no_map_however_dissimilar_they_are(
    name: str,
    cosine: float,
    dtype: torch.dtype,
    direction: str,
    make_net: MakeNet,
    make_images: MakeImages,
) -> None:
    # 1 / |s_k| makes much of the rounding of a small s_k.
    model, queries = make_net(signed=True).to(dtype), make_images(3, seed=1).to(dtype)
    if name == "bilinear":
        matrix = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        similarity: Any = Bilinear(matrix)
    else:
        matrix, similarity = torch.eye(6, dtype=torch.float64), name
    embedding = model(queries).double() @ matrix
    across = torch.randn(3, 2, 6, dtype=torch.float64)
    unit = nn.functional.normalize(embedding, dim=1).unsqueeze(1)
    across = nn.functional.normalize(across - (across * unit).sum(2, keepdim=True) * unit, dim=2)
    own = (cosine * unit + (1 - cosine**2) ** 0.5 * across).to(dtype).detach()
    for switches in SWITCHES:
        with on(direction):
            fam = LayerFAM(model, model.features, similarity=similarity, **switches)
            maps = fam.attribute(queries, support=torch.cat([own, -own.flip(1)], 1))
        is_empty({str(switches): (maps, fam.details(queries, own).comparison)}, model.features(queries).detach())


@pytest.mark.parametrize("direction", [None, "up", "down"])
@pytest.mark.parametrize("cosine", [1e-2, 1e-4, 3e-6])
def test_a_support_alone_has_its_map_however_dissimilar_it_is(cosine: float, direction: str | None) -> None:
    net = nn.Sequential(nn.Identity(), GAP())
    query = torch.tensor([3.0, 4.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 2, 3)
    support = torch.tensor([[4.0 + 5 * cosine, -3.0, 0.0]])
    with on(direction):
        maps = LayerFAM(net, net[0], normalization="maxabs").attribute(query, support)
    torch.testing.assert_close(maps, torch.full_like(maps, -1.0), rtol=0.0, atol=4 * cosine + 4e-2)


@pytest.mark.parametrize("direction", [None, "up", "down"])
@pytest.mark.parametrize("foil", [None, "runner-up"])
def test_the_first_of_equal_classes_is_explained(
    foil: Any, direction: str | None, make_net: MakeNet, make_images: MakeImages
) -> None:
    model, queries, images = make_net(head="linear"), make_images(4, seed=1), make_images(2, seed=4)
    support = SupportSet(images.repeat(3, 1, 1, 1), [0, 0, 1, 1, 2, 2])
    with on(direction):
        scores = SimilarityToSupport(model, support, foil=foil)
        for method in (LayerFAM(scores, model.features), LayerSimilarityCAM(scores, model.features)):
            details = method.details(queries)
            assert details.comparison.predicted.tolist() == details.comparison.target.tolist() == [0] * 4
            assert foil is None or (details.comparison.scores == 0).all()
        bank = MemoryBank(model(images).detach().repeat(3, 1), [2, 2, 1, 1, 0, 0])
        assert LayerFAM(model, model.features).details(queries, support=bank).comparison.predicted.tolist() == [0] * 4


# Scales


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "squared-euclidean"])
@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_maps_do_not_change_with_the_scale_of_all_embeddings(
    name: str, scale: float, make_net: MakeNet, make_images: MakeImages
) -> None:
    class Scaled(nn.Module):
        def __init__(self, net: Any, factor: float) -> None:
            super().__init__()
            self.net, self.factor = net, factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * self.net(x)

    net, queries = make_net(signed=True), make_images(3, seed=1)
    # Supports across the query, whose similarities are smaller than the bound of 1 / |s_k|, and others.
    embedding = net(queries).detach()
    across = embedding.roll(1, 1) * torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    across = across - (across * embedding).sum(1, keepdim=True) / embedding.square().sum(1, keepdim=True) * embedding
    supports = torch.stack([across, across + 1e-7 * embedding, embedding + across], 1)
    for normalization in ("minmax", "maxabs"):
        plain, scaled = (
            LayerFAM(Scaled(net, factor).eval(), net.features, similarity=name, normalization=normalization).attribute(
                queries, support=factor * supports
            )
            for factor in (1.0, scale)
        )
        torch.testing.assert_close(scaled, plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("of_query", "of_support"), [(1.0, 1e20), (1e-13, 1.0), (1e-20, 1.0), (1.0, 3e37), (1e15, 1e-15)]
)
@pytest.mark.parametrize("head", [False, True])
def test_maps_of_float32_hold_at_any_scale(of_query: float, of_support: float, head: bool) -> None:
    layers = [nn.Identity(), GAP(), *([nn.Linear(8, 6, bias=False)] if head else [])]
    net = nn.Sequential(*layers)
    queries, support = torch.rand(2, 8, 3, 5), torch.rand(4, 6 if head else 8)
    for normalization in NORMALIZATIONS[:3]:
        fam = LayerFAM(net, net[0], normalization=normalization)
        plain, scaled = fam.attribute(queries, support), fam.attribute(of_query * queries, of_support * support)
        torch.testing.assert_close(scaled / of_query, plain, rtol=1e-4, atol=1e-5)
    cam = LayerSimilarityCAM(net, net[0])
    plain, scaled = cam.attribute(queries, support), cam.attribute(of_query * queries, of_support * support)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)
    score, same = (
        SimilarityToSupport(net, s)(x) for x, s in ((queries, support), (of_query * queries, of_support * support))
    )
    torch.testing.assert_close(same, score, rtol=1e-5, atol=1e-6)


def test_half_precision_embeddings_near_its_smallest_number_are_explained() -> None:
    net = nn.Sequential(nn.Identity(), GAP())
    queries = (torch.rand(2, 8, 3, 5) * 4e-7).half()
    support = torch.rand(4, 8)
    exact = nn.functional.cosine_similarity(net(queries).double()[:, None], support.double(), dim=2, eps=0).mean(1)
    details = LayerSimilarityCAM(net, net[0]).details(queries, support)
    torch.testing.assert_close(details.comparison.scores.squeeze(1).double(), exact, rtol=1e-6, atol=0)
    assert LayerFAM(net, net[0]).attribute(queries, support).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8)])
def test_supports_that_are_no_real_numbers_are_refused_and_named(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Identity(), GAP())
    with pytest.raises(TypeError, match=f"support must .* floating-point type, got {dtype}"):
        LayerFAM(net, net[0]).attribute(torch.rand(2, 8, 3, 5), support=torch.ones(shape, dtype=dtype))
