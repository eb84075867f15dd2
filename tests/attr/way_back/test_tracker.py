"""Where the elements of a tensor stand, where the families of networks do not show it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_fam import LayerSimilarityCAM, TokenGrid

WIDTH, GRID = 4, (2, 3)


class Net(nn.Module):
    """A convolution to 2 x 3 cells of four channels, then a function of them and a linear layer with a bias."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = nn.Conv2d(3, WIDTH, 2, 2)
            self.linear = nn.Linear(WIDTH, WIDTH)
            self.wide = nn.Linear(WIDTH * 4, WIDTH)
            self.tokens = nn.Parameter(torch.randn(3, WIDTH))
        self.function = function
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.function(self, self.features(x))
        return embedding


def details(net: Net, batch: int = 2, layer: nn.Module | None = None, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 3, 4, 6, dtype=torch.float64, generator=generator)
    support = torch.rand(3, 3, 4, 6, dtype=torch.float64, generator=generator)
    cam = LayerSimilarityCAM(net, layer or net.features, **options)
    cam.has_warned = True
    return cam.details(x, support=support)


def cells(a: Tensor) -> Tensor:
    return a.flatten(2).transpose(1, 2)


def windows(net: Net, a: Tensor) -> Tensor:
    parts = a.view(len(a), WIDTH, 2, 1, 3, 1).permute(0, 2, 4, 3, 5, 1).reshape(-1, 1, WIDTH)
    return net.linear(parts).view(len(a), 6, WIDTH).mean(1)


def padded_windows(net: Net, a: Tensor) -> Tensor:
    last = F.pad(a.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 0))
    return net.linear(last).mean((1, 2))


def merged(net: Net, a: Tensor) -> Tensor:
    last = F.pad(a.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 0))
    four = torch.cat([last[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    return net.wide(four).mean((1, 2))


def unfolded(net: Net, a: Tensor) -> Tensor:
    patches = F.unfold(net.linear(cells(a)).transpose(1, 2).unflatten(2, GRID), 3, padding=1)
    return patches.mean(2)


def with_an_empty_part(net: Net, a: Tensor) -> Tensor:
    tokens = cells(a)
    return net.linear(torch.cat([tokens[:, :0], tokens], 1)).mean(1)


def rolled(net: Net, a: Tensor) -> Tensor:
    return net.linear(torch.roll(a, (1, 2), (2, 3)).permute(0, 2, 3, 1)).amax((1, 2))


def heads(net: Net, a: Tensor) -> Tensor:
    q = net.linear(cells(a)).unflatten(2, (2, 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2).mean(1)


def tokens_first(net: Net, a: Tensor) -> Tensor:
    rows = cells(a).transpose(0, 1)
    return net.linear(rows.reshape(-1, WIDTH)).view(rows.shape).mean(0)


PLACED = [windows, padded_windows, merged, unfolded, with_an_empty_part, rolled, heads, tokens_first]


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("function", PLACED, ids=lambda function: function.__name__)
def test_a_bias_is_laid_on_the_map_whatever_rearranged_its_tensor(function: Any, batch: int) -> None:
    found = details(Net(function), batch)
    assert set(found.shares) == {"map", "rest"}
    torch.testing.assert_close(found.coverage, torch.ones(batch, dtype=torch.float64))


def test_the_bias_of_a_rolled_tensor_lies_where_its_element_came_from() -> None:
    def one_cell(net: Net, a: Tensor) -> Tensor:
        return net.linear(torch.roll(a, (1, 2), (2, 3)).permute(0, 2, 3, 1))[:, 0, 0]

    net = Net(one_cell)
    positions, apart = details(net).attributions, details(net, biases="apart").attributions
    moved = (positions - apart)[:, 0]
    # Row 0, column 0 after the roll is row 1, column 1 before it.
    assert (moved[:, 1, 1] != 0).all()
    moved[:, 1, 1] = 0
    assert (moved == 0).all()


class Tokens(nn.Module):
    """Three tokens before the patches; the embedding is the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(lambda net, a: a)
        self.joined = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        patches = cells(self.net(x))
        embedding: Tensor = self.joined(torch.cat([self.net.tokens.expand(len(x), -1, -1), patches], 1)).mean(1)
        return embedding


@pytest.mark.parametrize(
    ("registers", "names"),
    [(None, {"class token", "registers"}), (2, {"class token", "registers"}), (3, {"registers"}), (0, {"class token"})],
)
def test_the_tokens_that_are_left_out_have_the_names_that_the_grid_gives(
    registers: int | None, names: set[str]
) -> None:
    model = Tokens().double().eval()
    grid = TokenGrid(size=GRID, prefix_tokens=3, registers=registers)
    x = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    cam = LayerSimilarityCAM(model, model.joined, token_grid=grid)
    cam.has_warned = True
    found = cam.details(x, support=x.flip(0))
    assert set(found.shares) == {"map", "rest"} | names


def test_tokens_that_come_first_are_explained_with_as_many_queries_as_tokens() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.layer = Net(lambda net, a: a), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            embedding: Tensor = self.layer(cells(self.net(x)).transpose(0, 1)).mean(0)
            return embedding

    model = First().double().eval()
    x = torch.rand(6, 3, 4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"gives \(6, 6, \.\.\.\) with the tokens first.*sequence_first=True"):
        LayerSimilarityCAM(model, model.layer, token_grid=TokenGrid(GRID, 0)).attribute(x, support=x)
    grid = TokenGrid(GRID, 0, sequence_first=True)
    found = LayerSimilarityCAM(model, model.layer, token_grid=grid).details(x, support=x)
    torch.testing.assert_close(found.coverage, torch.ones(6, dtype=torch.float64))
    want = LayerSimilarityCAM(model, model.net.features).attribute(x, support=x)
    torch.testing.assert_close(found.attributions, want)
