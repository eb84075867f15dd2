"""What one pass through a model says about itself: which passes count, and what the embedding is a rescaling of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from captum_fam.attr._layer_run import run_layers
from captum_fam.attr.tokens import TokenGrid
from captum_fam.attr.way_back.where import CLASS_TOKEN, REGISTERS

IMAGES = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1


class Pooled(nn.Module):
    """The layer is the image; its mean over the positions goes through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Identity(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x).mean((2, 3)))


def way_of(net: Any, **options: Any) -> Any:
    (way,) = run_layers(net, (IMAGES,), [net.layer], tape=True, **options).ways
    return way


def pulled(way: Any, contributions: Tensor) -> Tensor:
    """Contributions at the channels of the layer."""
    (((gradient, _),),) = way.pull(contributions, is_contribution=True)
    found: Tensor = gradient.sum((2, 3))
    return found


def test_contributions_to_a_normalized_embedding_are_those_to_the_vector_before() -> None:
    contributions = torch.rand(2, 3, dtype=torch.float64)
    way = way_of(Pooled(normalize))
    torch.testing.assert_close(pulled(way, contributions), contributions)
    assert way.detected.is_rescaled
    assert not way.detected.left_graph


def test_unit_norm_false_goes_through_the_normalization() -> None:
    contributions = torch.rand(2, 3, dtype=torch.float64)
    way = way_of(Pooled(normalize), unit_norm=False)
    # The length is held, so that the way back divides by it.
    lengths = IMAGES.mean((2, 3)).norm(dim=1, keepdim=True)
    torch.testing.assert_close(pulled(way, contributions), contributions / lengths)
    assert not way.detected.is_rescaled


def test_unit_norm_true_is_auto_where_the_model_normalizes() -> None:
    contributions = torch.rand(2, 3, dtype=torch.float64)
    want = pulled(way_of(Pooled(normalize)), contributions)
    assert torch.equal(pulled(way_of(Pooled(normalize), unit_norm=True), contributions), want)


@pytest.mark.parametrize("function", [lambda z: z, lambda z: z * 3, lambda z: normalize(z) + 1])
def test_unit_norm_true_refuses_a_model_that_does_not_end_in_a_normalization(function: Any) -> None:
    assert not way_of(Pooled(function)).detected.is_rescaled
    with pytest.raises(ValueError, match=r"unit_norm=True.*\"auto\" or False"):
        way_of(Pooled(function), unit_norm=True)


def test_an_embedding_that_left_the_graph_is_found_by_its_direction_and_reported() -> None:
    contributions = torch.rand(2, 3, dtype=torch.float64)
    net = Pooled(lambda z: normalize(z).detach())
    way = way_of(net)
    assert way.detected.left_graph
    torch.testing.assert_close(pulled(way, contributions), contributions)
    with pytest.raises(ValueError, match="layer: the embedding does not depend on it"):
        way_of(net, unit_norm=False)


def test_the_passes_that_count_are_reported() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x.flip(3))
            return self.layer(x).mean((2, 3))

    detected = way_of(Last()).detected
    assert (detected.passes, detected.live) == (2, (1,))
    assert way_of(Pooled(normalize)).detected.passes == 1


def test_tokens_that_are_joined_behind_the_layer_are_reported_by_name() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()
            self.regions = nn.Module()  # a name of a module is no name of a token
            self.regions.cls_token = nn.Parameter(torch.rand(1, 1, 3, dtype=torch.float64))
            self.reg_token = nn.Parameter(torch.rand(1, 2, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.layer(x.flatten(2).transpose(1, 2))
            extra = [token.expand(len(x), -1, -1) for token in (self.regions.cls_token, self.reg_token)]
            return torch.cat([*extra, tokens], 1).mean(1)

    net = Tokens()
    way = way_of(net, places=True, token_grid=TokenGrid(size=(4, 5), prefix_tokens=0))
    assert way.detected.joined == {"regions.cls_token": CLASS_TOKEN, "reg_token": REGISTERS}
    _, constants = way.account(torch.ones(2, 3, dtype=torch.float64))
    slots = constants.slots(0, (4, 5))
    # The embedding is the mean over 23 tokens, and u = 1: each token's share is the sum of its channels over 23.
    torch.testing.assert_close(slots[:, CLASS_TOKEN], (net.regions.cls_token.sum() / 23).expand(2).detach())
    torch.testing.assert_close(slots[:, REGISTERS], (net.reg_token.sum() / 23).expand(2).detach())
