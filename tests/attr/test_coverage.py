"""What a map explains of its score, and how it is said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid
from captum_fam.attr.account import coverage_in_words, resample
from captum_fam.similarity import Euclidean


class Tokens(nn.Module):
    """Patches and a class token, one attention block, and the class token as the embedding."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.class_token = nn.Parameter(0.5 * torch.randn(1, 1, 8))
            self.joined = nn.Identity()
            self.norm = nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.block = nn.Identity()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.joined(torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1))
        normed = self.norm(tokens)
        tokens = tokens + 2 * self.attention(normed, normed, normed, need_weights=False)[0]
        embedding: Tensor = self.block(tokens)[:, 0]
        return embedding


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def support() -> Tensor:
    return torch.rand(3, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def head(linear: nn.Linear) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).double().eval()
        )


GRID = TokenGrid(size=(2, 3))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 1)
            self.branch = nn.Conv2d(4, 4, 1)
        self.out = nn.ReLU()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        activation = self.stem(x)
        embedding: Tensor = self.out(activation + 0.05 * self.branch(activation)).mean((2, 3))
        return embedding


def test_the_warning_says_where_the_score_is_and_which_layer_explains_more(x: Tensor, support: Tensor) -> None:
    net = Residual()
    cam = LayerSimilarityCAM(net, net.branch)
    message = r"the map explains -?\d+ % of the score; other paths \d+ %.*Layer 'out' explains 100 %"
    with pytest.warns(UserWarning, match=message):
        details = cam.details(x, support=support)
    assert (details.coverage < 0.5).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cam.attribute(x, support=support)  # once per object


def test_the_warning_recommends_no_layer_that_explains_no_more(x: Tensor, support: Tensor) -> None:
    net = Tokens()
    net.class_token.data *= 6
    with pytest.warns(UserWarning, match=r"class token \d+ %\. None of the layers that find_layer measured explains"):
        LayerSimilarityCAM(net, net.joined, token_grid=GRID).attribute(x, support=support)


def test_the_warning_says_where_a_rest_comes_from(x: Tensor, support: Tensor) -> None:
    class TenthOfGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient / 10

    class Net(Residual):
        def forward(self, x: Tensor) -> Tensor:
            embedding: Tensor = TenthOfGradient.apply(self.out(self.stem(x))).mean((2, 3))
            return embedding

    net = Net()
    with pytest.warns(UserWarning, match=r'10 % of the score; rest 90 %.* The "rest" is rounding, or code that'):
        LayerSimilarityCAM(net, net.out).attribute(x, support=support)


def test_a_map_of_a_small_difference_does_not_cry_wolf() -> None:
    """A foil leaves a small score of two large parts, of which the map holds one and the bias the other."""
    linear = nn.Linear(4, 3)
    net = head(linear)
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    support = net(x.flip(0)).detach()
    scores = SimilarityToSupport(net, SupportSet(torch.stack([support[0], -support[1]]), [0, 1]), foil="others")
    with torch.no_grad():
        linear.bias.copy_(-0.8 * (net(x) - linear.bias).mean(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        details = LayerSimilarityCAM(scores, net[1]).details(x, target=0)
    assert details.shares["bias"].abs().max() > details.comparison.score.abs().min()


def test_the_parts_add_up_to_the_score_whatever_the_layer(x: Tensor, support: Tensor) -> None:
    net = Tokens()
    for layer, grid in ((net.patches, None), (net.joined, GRID), (net.norm, GRID)):
        cam = LayerSimilarityCAM(net, layer, token_grid=grid)
        cam.has_warned = True
        details = cam.details(x, support=support)
        torch.testing.assert_close(sum(details.shares.values()), details.comparison.score)
        torch.testing.assert_close(details.coverage * details.comparison.score, details.shares["map"])
        torch.testing.assert_close(details.attributions.flatten(1).sum(1), details.shares["map"])
        names = {"map", "class token", "rest"} | ({"other paths"} if layer is net.norm else set())
        assert set(details.shares) - {"bias"} == names


def test_score_map_delta_and_coverage_of_a_distance_say_the_same_thing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    support = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    details = LayerSimilarityCAM(net, net[1], similarity=Euclidean(squared=True)).details(x, support=support)
    z = net(x).detach()
    score = -(z[:, None] - support).square().sum(2).mean(1)
    zero = -support.square().sum(1).mean().expand(2)
    torch.testing.assert_close(details.comparison.score, score)
    torch.testing.assert_close(details.shares["zero embedding"], zero)
    torch.testing.assert_close(details.shares["map"], score - zero)
    torch.testing.assert_close(details.comparison.explained_score, score - zero)
    torch.testing.assert_close(details.coverage, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(details.convergence_delta, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [0, [1, 0], torch.tensor([1, 1])])
def test_the_delta_can_be_computed_for_given_attributions(target: Any) -> None:
    net = head(nn.Linear(4, 3))
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    scores = SimilarityToSupport(net, SupportSet(torch.rand(4, 3, 6, 5).double(), [0, 0, 1, 1]))
    cam = LayerSimilarityCAM(scores, net[1])
    cam.has_warned = True
    attributions, delta = cam.attribute(x, target=target, return_convergence_delta=True)
    torch.testing.assert_close(cam.compute_convergence_delta(attributions, None, x, target), delta)
    torch.testing.assert_close(cam.compute_convergence_delta(attributions + 1, None, x, target), delta + 12)
    assert cam.has_convergence_delta()
    assert cam.multiplies_by_inputs
    embedding = net(x[:1]).detach()
    alone = LayerSimilarityCAM(net, net[1])
    alone.has_warned = True
    attributions, delta = alone.attribute(x, support=embedding, return_convergence_delta=True)
    torch.testing.assert_close(alone.compute_convergence_delta(attributions, None, x, support=embedding), delta)
    with pytest.raises(ValueError, match="attributions must be tensors of a batch of 2"):
        cam.compute_convergence_delta(attributions[:1], None, x, target)


def test_each_of_several_layers_has_an_account_of_its_own() -> None:
    net = head(nn.Linear(4, 3))
    x, support = torch.rand(2, 3, 6, 5, dtype=torch.float64), torch.rand(3, 3, 6, 5, dtype=torch.float64)
    both = LayerSimilarityCAM(net, [net[0], net[1]]).details(x, support=support)
    for i in range(2):
        alone = LayerSimilarityCAM(net, net[i]).details(x, support=support)
        torch.testing.assert_close(both.attributions[i], alone.attributions)
        torch.testing.assert_close(both.coverage[i], alone.coverage)
        assert both.shares[i].keys() == alone.shares.keys()


def test_resampling_keeps_the_sum() -> None:
    maps = torch.rand(2, 1, 5, 7, dtype=torch.float64)
    for grid in ((5, 7), (3, 7), (10, 14), (2, 21), (1, 1), (13, 4)):
        found = resample(maps, grid)
        assert found.shape == (2, 1, *grid)
        torch.testing.assert_close(found.sum((1, 2, 3)), maps.sum((1, 2, 3)))
    # By hand: one cell over two, whose halves are of two cells of three.
    torch.testing.assert_close(resample(torch.tensor([[[3.0, 6.0, 9.0]]]), (2,)), torch.tensor([[[6.0, 12.0]]]))
    constant = torch.full((1, 1, 4, 4), 0.25)
    torch.testing.assert_close(resample(constant, (2, 2)), torch.full((1, 1, 2, 2), 1.0))


@pytest.mark.parametrize(
    ("coverage", "shares", "words"),
    [
        (1.0, {"map": 0.9, "rest": 1e-8}, "explains 100 % of the score"),
        (0.12, {"map": 0.12, "bias": 0.03, "registers": 0.85}, "explains 12 % of the score; registers 85 %, bias 3 %"),
        (float("nan"), {"map": 0.0, "rest": 0.0}, "the score is zero"),
    ],
)
def test_the_account_of_one_query_in_words(coverage: float, shares: dict[str, float], words: str) -> None:
    assert coverage_in_words(coverage, shares) == words


@pytest.mark.parametrize("frozen", [False, True])
def test_a_class_token_that_is_joined_behind_the_layer_has_a_share_of_its_own(
    frozen: bool, x: Tensor, support: Tensor
) -> None:
    net = Tokens().requires_grad_(not frozen)
    cam = LayerSimilarityCAM(net, net.patches)
    cam.has_warned = True
    details = cam.details(x, support=support)
    assert set(details.shares) == {"map", "class token", "rest"}
    torch.testing.assert_close(details.shares["rest"], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not hasattr(x, "_captum_fam")
