"""The layer found by itself: the last one whose map explains the score, with the grid of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, TokenGrid, find_layer
from captum_fam.attr.layer_search import measure_layer
from captum_fam.pooling import GAP
from tests.attr.search_models import ByHand, TakesOver, convolutions, images, randomly

pytestmark = pytest.mark.filterwarnings("ignore:the map explains:UserWarning")  # small nets with random weights


def test_the_last_layer_that_explains_95_percent_is_taken() -> None:
    """Of ten parts the first two blocks take .01 and .02, so that .97 of the score is left on the patches there."""
    net = ByHand((0.01, 0.02, 0.07, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1)).double().eval()
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.module, found.token_grid) == ("blocks.1", net.blocks[1], TokenGrid(size=(3, 5)))
    assert found.coverage == pytest.approx(0.97, abs=1e-12)


@pytest.mark.parametrize(
    ("parts", "name", "coverage"),
    [
        ((0.1, 0.3, 0.6), "joined", 1.0),
        ((0.04, 0.5, 0.46), "blocks.0", 0.96),
        ((0.0, 0.0, 0.0, 0.0, 0.03, 0.97), "blocks.4", 0.97),
        ((0.0, 1.0, 0.0), "blocks.0", 1.0),  # behind the second the patches reach nothing
    ],
)
def test_bisection_ends_where_every_layer_in_turn_would(parts: tuple[float, ...], name: str, coverage: float) -> None:
    found = find_layer(ByHand(parts).double().eval(), images(1, 12, 20))
    assert (found.name, found.coverage) == (name, pytest.approx(coverage, abs=1e-12))


def test_a_bias_behind_the_pooling_does_not_move_the_choice() -> None:
    """No layer can explain it, so that all of them explain the same, and the last is taken."""
    head = nn.Linear(8, 4).double()
    net = nn.Sequential(convolutions(6, 8), GAP(), head).double().eval()
    with torch.no_grad():
        head.bias.fill_(2.0)
    x = images(2, 20, 12)
    found = find_layer(net, x)
    with torch.no_grad():
        z = net(x[:1])
        share = 1 - (head.bias @ z[0]) / z.norm() ** 2
    assert (found.name, found.token_grid) == ("0", None)
    assert found.coverage == pytest.approx(float(share), abs=1e-12)
    assert found.coverage < 0.9


def test_what_is_found_is_what_the_map_explains_of_the_first_image() -> None:
    net = randomly(ByHand((0.5, 0.5)))
    x = images(3, 12, 20)
    found = find_layer(net, x)
    with torch.no_grad():
        embedding = net(x[:1])
    cam = LayerSimilarityCAM(net, found.name, token_grid=found.token_grid)
    assert float(cam.details(x[:1], embedding).coverage) == pytest.approx(found.coverage, abs=1e-12)
    assert find_layer(net, x[:1]) == found


def test_a_layer_that_overshoots_is_as_far_off_as_one_that_falls_short() -> None:
    """The class token takes over more than there is, and gives back: behind the first block the patches have 1.5."""
    found = find_layer(ByHand((-0.5, 1.5)).double().eval(), images(1, 12, 20))
    assert (found.name, found.coverage) == ("joined", pytest.approx(1.0))


@pytest.mark.parametrize("part", [1e-9, 1e-12])
def test_where_maps_are_rounding_noise_the_last_layer_with_an_influence_is_taken(part: float) -> None:
    """A class token that is a constant but for a part too small to see, as LayerScale makes it at first."""
    net = ByHand((part, part, part)).double().eval()
    with torch.no_grad():
        net.cls_token.fill_(1.0)
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.coverage) == ("blocks.1", 0)


# Candidates


def test_the_outermost_of_the_modules_that_made_a_tensor_names_it() -> None:
    net = nn.Sequential(nn.Sequential(convolutions(6, 8), nn.Identity()), nn.Identity(), GAP()).double().eval()
    assert find_layer(net, images(1, 20, 12)).name == "0"


def test_a_branch_beside_a_shortcut_is_no_candidate() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.branch = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (x + self.branch(x)).mean((2, 3))

    assert find_layer(Net().double().eval(), images(1, 7, 9)).name == "stem"


def test_without_any_other_layer_the_branch_that_explains_most_is_taken() -> None:
    """Of two streams of the same colors, one counts three times as much."""

    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(3, 6, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([3**0.5 * self.first(x).mean((2, 3)), self.second(x).mean((2, 3))], 1)

    net = Streams().double().eval()
    net.second.weight.data.copy_(net.first.weight)
    found = find_layer(net, images(1, 7, 9))
    assert (found.name, found.coverage) == ("first", pytest.approx(0.75))


def test_a_layer_that_runs_several_times_is_no_candidate() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3))

    assert find_layer(Net().double().eval(), images(1, 9, 7)).name == "second"


def test_windows_in_the_batch_are_no_candidate() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inside = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            halves = torch.cat(self.stem(x).chunk(2, 3))
            return torch.cat(self.inside(halves).chunk(2), 3).mean((2, 3))

    assert find_layer(Windows().double().eval(), images(1, 8, 12)).name == "stem"


def test_adaptive_pooling_belongs_to_the_head() -> None:
    """PCB: six stripes, each embedded by itself."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.pool = convolutions(6, 8), nn.AdaptiveAvgPool2d((6, 1))
            self.embed = nn.ModuleList(nn.Linear(8, 4, bias=False) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            stripes = self.pool(self.backbone(x)).squeeze(3).unbind(2)
            parts = [embed(stripe) for embed, stripe in zip(self.embed, stripes, strict=True)]
            return torch.cat([nn.functional.normalize(part, dim=1) for part in parts], 1)

    found = find_layer(Parts().double().eval(), images(1, 48, 24))
    assert (found.name, found.coverage) == ("backbone", pytest.approx(1.0))
    assert measure_layer(Parts().double().eval(), images(1, 48, 24), "pool").coverage == pytest.approx(1.0)


def test_stages_of_blocks_are_looked_into_and_blocks_are_not() -> None:
    """Behind the last stage of a class-token model nothing is left, within it there is."""

    class Stage(nn.Module):
        def __init__(self, *parts: float) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(TakesOver(part, 0)) for part in parts))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.blocks(tokens)

    net = ByHand(()).double().eval()
    net.blocks.extend([Stage(0.0, 0.01), Stage(0.02, 0.97)])
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.coverage) == ("blocks.1.blocks.0", pytest.approx(0.97, abs=1e-12))


def test_where_no_block_will_do_all_modules_are_candidates() -> None:
    class Twice(nn.Module):
        """Its only child runs twice, what lies in it once."""

        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Module()
            self.part.conv = nn.Conv2d(3, 6, 3)
            self.part.forward = lambda x, first: self.part.conv(x) if first else x.mean((2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.part(self.part(x, True), False)

    assert find_layer(Twice().double().eval(), images(1, 9, 7)).name == "part.conv"


@pytest.mark.parametrize(("rank", "size"), [(1, (9,)), (3, (4, 3, 5))])
def test_sequences_and_volumes_have_positions(rank: int, size: tuple[int, ...], make_net: Any) -> None:
    found = find_layer(make_net(rank=rank), images(2, *size))
    assert (found.name, found.token_grid, found.coverage) == ("features", None, pytest.approx(1.0))


@pytest.mark.parametrize("size", [(8, 34, 34), (10, 40, 30), (16, 32, 32), (7, 9, 20)])
def test_volumes_may_shrink_by_convolutions_without_padding(size: tuple[int, ...]) -> None:
    """8 x 34 x 34 becomes 4 x 30 x 30, which has another aspect ratio."""
    net = nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )
    found = find_layer(net.double().eval(), images(1, *size))
    assert (found.name, found.token_grid, found.coverage) == ("3", None, pytest.approx(1.0))


def test_volumes_with_channels_in_the_last_dimension_are_no_candidates() -> None:
    """No grid lays them out, so that the convolution before is taken."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = nn.Conv3d(3, 8, 2, stride=2), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            embedding: Tensor = self.norm(self.patches(x).permute(0, 2, 3, 4, 1)).mean((1, 2, 3))
            return embedding

    assert find_layer(randomly(Net()), images(1, 6, 10, 8)).name == "patches"


# Token grids


def test_a_class_token_between_the_patches_is_found() -> None:
    """Vision Mamba puts it in the middle."""
    net = ByHand((0.03, 0.97), class_token=7).double().eval()
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.coverage) == ("blocks.0", pytest.approx(0.97, abs=1e-12))
    assert found.token_grid == TokenGrid(size=(3, 5), prefix_tokens=0, class_token=7)


class Encoder(nn.Module):
    """A transformer on 3 x 5 patches behind tokens of its own, on images of 12 x 20; the embedding is their mean."""

    def __init__(self, sequence_first: bool = False, **tokens: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        for name, count in tokens.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, count, 8)))
        self.names, self.sequence_first = list(tokens), sequence_first
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=not sequence_first, norm_first=True) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        own = [getattr(self, name).expand(len(x), -1, -1) for name in self.names]
        tokens = torch.cat([*own, tokens], 1)
        tokens = tokens.transpose(0, 1) if self.sequence_first else tokens
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(0 if self.sequence_first else 1)


@pytest.mark.parametrize(
    ("net", "grid"),
    [
        (Encoder(), TokenGrid(size=(3, 5), prefix_tokens=0)),
        (Encoder(prefix=3), TokenGrid(size=(3, 5), prefix_tokens=3)),
        (Encoder(cls_token=1, register_tokens=2), TokenGrid(size=(3, 5), prefix_tokens=3)),
        (Encoder(register_tokens=2), TokenGrid(size=(3, 5), prefix_tokens=2, registers=2)),
        (Encoder(cls_token=1, dist_token=1), TokenGrid(size=(3, 5), prefix_tokens=2, registers=0)),
        (Encoder(sequence_first=True), TokenGrid(size=(3, 5), prefix_tokens=0, sequence_first=True)),
        (Encoder(sequence_first=True, cls_token=1), TokenGrid(size=(3, 5), sequence_first=True)),
    ],
    ids=[
        "patches alone",
        "unnamed",
        "registers",
        "registers alone",
        "distilled",
        "sequence first",
        "and a class token",
    ],
)
def test_tokens_that_do_not_depend_on_the_image_are_no_patches(net: Encoder, grid: TokenGrid) -> None:
    assert measure_layer(randomly(net), images(1, 12, 20), "blocks.0").token_grid == grid


def test_a_square_grid_goes_with_images_of_other_sizes() -> None:
    net = randomly(Encoder())
    grid = find_layer(net, images(1, 16, 16)).token_grid
    assert grid == TokenGrid(prefix_tokens=0)
    assert LayerSimilarityCAM(net, "blocks.1", token_grid=grid).attribute(
        images(2, 24, 24), images(2, 24, 24)
    ).shape == (2, 1, 6, 6)


def test_queries_of_an_attention_pooling_are_no_positions() -> None:
    """As many as there are patches, as in CoCa."""

    class Pooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(15, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            queries = self.query.expand(len(tokens), -1, -1)
            pooled: Tensor = self.attention(queries, tokens, tokens)[0]
            return pooled

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.cls_token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 8))
            self.norm, self.pool, self.norm_of_pooled = nn.LayerNorm(8), Pooler(), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = self.norm(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))
            return self.norm_of_pooled(self.pool(tokens)).mean(1)

    found = find_layer(randomly(Net()), images(1, 12, 20))
    assert (found.name, found.token_grid) == ("norm", TokenGrid(size=(3, 5)))
