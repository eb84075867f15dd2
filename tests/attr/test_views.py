"""Embeddings made of several passes: which passes count, and views whose maps are laid back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, normalize

from captum_fam import (
    LayerCorrespondence,
    LayerFAM,
    LayerSimilarityCAM,
    SimilarityToSupport,
    SupportSet,
    Views,
    find_layer,
)
from captum_fam.attr import LayerMeanActivation

METHODS = [LayerFAM, LayerSimilarityCAM, LayerCorrespondence, LayerMeanActivation]


class Net(nn.Module):
    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
            self.head = nn.Linear(6, 4, bias=False) if linear else nn.Identity()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.features(x).mean((2, 3)))
        return embedding


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def support() -> Tensor:
    return torch.rand(4, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def mirrored(net: Net) -> Callable[[Tensor], Tensor]:
    return lambda images: net(images) + net(images.flip(3))


@pytest.mark.parametrize("method", METHODS)
def test_several_passes_that_count_are_refused_with_the_remedies(
    method: Any, net: Net, x: Tensor, support: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"Sequential ran 2 times.*Views"):
        method(mirrored(net), net.features).attribute(x, support=support)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [True, False])
def test_a_pass_that_the_embedding_does_not_depend_on_does_not_count(
    method: Any, first: bool, net: Net, x: Tensor, support: Tensor
) -> None:
    def forward(images: Tensor) -> Tensor:
        if first:
            net(images.flip(3))
        embedding = net(images)
        if not first:
            net(images.flip(3))
        return embedding

    want = method(net, net.features).attribute(x, support=support)
    torch.testing.assert_close(method(forward, net.features).attribute(x, support=support), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_runs_in_a_chain_is_explained_at_its_last_pass(method: Any, x: Tensor, support: Tensor) -> None:
    shared = nn.ReLU()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, other = nn.Conv2d(3, 5, 3, padding=1).double(), nn.Conv2d(5, 5, 3, padding=1).double()
    chained = nn.Sequential(one, shared, other, shared, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    last = nn.Sequential(one, nn.ReLU(), other, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    want = method(last, last[3]).attribute(x, support=support)
    torch.testing.assert_close(method(chained, shared).attribute(x, support=support), want, rtol=1e-12, atol=0)


def test_weight_sharing_branches_are_refused(net: Net, x: Tensor, support: Tensor) -> None:
    def gated(images: Tensor) -> Tensor:
        first = net.features(images)
        return (first * net.features(images.flip(2)).sigmoid()).mean((2, 3))

    # The second branch is a gate and held: no gradient comes back to it, and the first branch is the one that counts.
    details = LayerSimilarityCAM(gated, net.features).details(x, support=gated(support))
    torch.testing.assert_close(details.coverage, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="ran 2 times"):
        LayerFAM(lambda im: torch.cat([net(im), net(im.flip(2))], 1), net.features).attribute(x, support=support)


def test_the_map_of_a_mirrored_embedding_is_the_sum_of_both_maps_laid_back(
    net: Net, x: Tensor, support: Tensor
) -> None:
    views = Views(net, ["identity", "hflip"], combine="sum")
    embeddings = mirrored(net)(support)
    torch.testing.assert_close(views(support), embeddings)
    details = LayerSimilarityCAM(views, net.features).details(x, support=embeddings)
    z = mirrored(net)(x)
    weight = (normalize(embeddings).mean(0) / z.norm(dim=1, keepdim=True))[:, :, None, None] / 35
    plain = (net.features(x) * weight).sum(1, keepdim=True)
    back = (net.features(x.flip(3)) * weight).sum(1, keepdim=True).flip(3)
    torch.testing.assert_close(details.attributions, plain + back)
    score = cosine_similarity(z[:, None], embeddings[None], dim=2).mean(1)
    torch.testing.assert_close(details.attributions.flatten(1).sum(1), score)
    torch.testing.assert_close(details.coverage, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("normalization", [None, "before", "after"])
def test_views_are_explained_whatever_their_combination(
    combine: Any, normalization: Any, x: Tensor, support: Tensor
) -> None:
    net = Net(linear=True)
    views = Views(net, ["identity", "hflip", "vflip"], combine, normalization)
    embeddings = [net(x), net(x.flip(3)), net(x.flip(2))]
    if normalization == "before":
        embeddings = [normalize(one) for one in embeddings]
    want = sum(embeddings) / (3 if combine == "mean" else 1)
    torch.testing.assert_close(views(x), normalize(want) if normalization == "after" else want)
    scores = SimilarityToSupport(views, SupportSet(support, [0, 0, 1, 1]), foil="others")
    for model in (views, scores):
        arguments = {} if model is scores else {"support": support}
        details = LayerSimilarityCAM(model, net.features).details(x, **arguments)
        torch.testing.assert_close(details.shares["rest"], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
        assert LayerFAM(model, net.features).attribute(x, **arguments).shape == (3, 1, 5, 7)


def test_a_view_of_another_size_is_laid_back_with_its_whole_share(net: Net, x: Tensor, support: Tensor) -> None:
    double = (lambda images: interpolate(images, scale_factor=2.0), lambda maps: maps)
    views = Views(net, ["identity", double])
    details = LayerSimilarityCAM(views, net.features).details(x, support=support)
    assert details.attributions.shape == (3, 1, 5, 7)
    torch.testing.assert_close(details.coverage, torch.ones(3, dtype=torch.float64))


def test_biases_of_views_are_laid_back_too(x: Tensor, support: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 4, 1).double(), nn.Conv2d(4, 4, 3, padding=1).double()
    net = nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    views = Views(net, ["identity", "hflip"])
    details = LayerSimilarityCAM(views, net[0]).details(x, support=support)
    torch.testing.assert_close(details.coverage, torch.ones(3, dtype=torch.float64))
    # A symmetric image has a symmetric map, the bias at the mirrored positions included.
    symmetric = x + x.flip(3)
    maps = LayerSimilarityCAM(views, net[0]).attribute(symmetric, support=support)
    torch.testing.assert_close(maps, maps.flip(3))


@pytest.mark.parametrize(
    ("views", "options", "error", "message"),
    [
        (["sideways"], {}, ValueError, "views: 'sideways' is unknown"),
        ([], {}, ValueError, "views is empty"),
        ([3], {}, TypeError, "views: expected a name or a pair"),
        (["identity"], {"combine": "max"}, ValueError, "combine must be"),
        (["identity"], {"normalize": "never"}, ValueError, "normalize must be"),
    ],
)
def test_views_that_do_not_fit_are_refused(
    views: Any, options: dict[str, Any], error: type[Exception], message: str, net: Net
) -> None:
    with pytest.raises(error, match=message):
        Views(net, views, **options)


def test_views_of_a_model_in_eval_mode_are_in_eval_mode(net: Net, x: Tensor) -> None:
    views = Views(net, ["identity", "hflip"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerSimilarityCAM(views, net.features).attribute(x, support=views(x))
    assert find_layer(views, x).module is net.features


def test_an_operation_in_place_that_the_way_back_needs_is_named(x: Tensor) -> None:
    class Relu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1).double()

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.relu_(self.features(images)).add_(1).mean((2, 3))

    net = Relu().eval()
    with pytest.raises(ValueError, match=r"layer: .*overwrites a tensor"):
        LayerFAM(net, net.features).attribute(x, support=torch.ones(1, 4).double())
