"""What a map method of a third party gives is looked at before it is anyone's map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import explain
from captum_fam.attr import LayerCall, LayerMaps, SimilarityLayerAttribution


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net()


def method_that_gives(make: Callable[[Tensor], Any]) -> Any:
    class Mine(SimilarityLayerAttribution):
        """Gives what the test makes of the activation."""

        def map_layers(self, call: LayerCall) -> LayerMaps:
            made: LayerMaps = make(call.activations[0][0])
            return made

    return Mine


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda a: LayerMaps([(a.sum(1).flatten(1),)]), ValueError, r"map_layers of Mine gave .*shape \(3, \d+\)"),
        (lambda a: LayerMaps([(a[:1],)]), ValueError, r"shape \(1, .*B = 3"),
        (lambda a: LayerMaps([a]), TypeError, "tuple of tensors per layer, got Tensor"),
        (lambda a: LayerMaps([]), TypeError, "each of 1 layers"),
        (lambda a: a, TypeError, "must return LayerMaps"),
        (lambda a: LayerMaps([(a * torch.nan,)]), ValueError, "the map that is made of it, contains NaN"),
    ],
)
def test_what_is_no_map_of_the_batch_is_refused(
    make: Callable[[Tensor], Any], error: type[Exception], message: str, net: nn.Module, queries: Tensor
) -> None:
    method = method_that_gives(make)
    x = torch.cat([queries, queries])[:3]
    with pytest.raises(error, match=message):
        method(net, net.features).attribute(x, support=queries)
    with pytest.raises(error, match=message):
        explain(net, x, queries, layer="features", method=method)


def test_a_map_is_detached(net: nn.Module, queries: Tensor) -> None:
    method = method_that_gives(lambda a: LayerMaps([(a.clone().requires_grad_() * 2,)]))
    assert not method(net, net.features).attribute(queries, support=queries).requires_grad


def test_a_method_without_maps_says_so(net: nn.Module, queries: Tensor) -> None:
    class Nothing(SimilarityLayerAttribution):
        """No map_layers."""

    with pytest.raises(NotImplementedError, match="Nothing does not define map_layers"):
        Nothing(net, net.features).attribute(queries, support=queries)
