"""Shapley values of a layer's positions for the model's own score."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules import module as all_modules

from captum_fam import (
    LayerSimilarityCAM,
    LayerSimilarityShapley,
    MemoryBank,
    SimilarityToSupport,
    SupportSet,
    TokenGrid,
    Views,
)
from captum_fam.pooling import GAP, GMP, LSE, GeM

LABELS = (0, 0, 1, 1, 2)


class L2(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=1)


def _seeded(*modules: nn.Module) -> nn.Module:
    """The modules in a row, in float64, with weights and biases of a seed."""
    net = nn.Sequential(*modules).double().eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net


TAILS: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: _seeded(GAP()),
    "mean, linear": lambda: _seeded(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    "maximum": lambda: _seeded(GMP()),
    "log-sum-exp": lambda: _seeded(LSE(), nn.Linear(6, 4)),
    "layer norm": lambda: _seeded(GAP(), nn.Linear(6, 4), nn.LayerNorm(4)),
    "whitening": lambda: _seeded(GeM(), L2(), nn.Linear(6, 4), L2()),
    "two layers": lambda: _seeded(nn.Conv2d(6, 5, 2, padding=1), nn.GELU(), GAP(), nn.Linear(5, 7), nn.ReLU()),
}


class Net(nn.Module):
    """A layer ``features`` of 6 channels with both signs, and a tail behind it."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.features = _seeded(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.3))
        self.tail = tail
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.tail(self.features(x))
        return embedding


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    yield
    assert not all_modules._global_forward_hooks
    assert not all_modules._global_forward_pre_hooks


@pytest.fixture
def small() -> Tensor:
    """Two queries whose layer has 2 x 3 positions, ``(2, 3, 2, 3)``."""
    return torch.randn(2, 3, 2, 3, dtype=torch.float64)


@pytest.fixture
def images() -> Tensor:
    """Five supports, ``(5, 3, 2, 3)``."""
    return torch.randn(5, 3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def by_all_orders(score: Callable[[Tensor], float], activation: Tensor) -> Tensor:
    """The mean over all orders of the positions of what each adds to the score when it comes: ``(*spatial)``."""
    n_positions = activation[0].numel()

    def kept(positions: frozenset[int]) -> Tensor:
        masked = torch.zeros_like(activation).flatten(1)
        for position in positions:
            masked[:, position] = activation.flatten(1)[:, position]
        return masked.view_as(activation)

    sizes = range(n_positions + 1)
    subsets = [frozenset(one) for size in sizes for one in itertools.combinations(range(n_positions), size)]
    with torch.no_grad():
        value = {positions: score(kept(positions)) for positions in subsets}
    added = [0.0] * n_positions
    for order in itertools.permutations(range(n_positions)):
        there: frozenset[int] = frozenset()
        for position in order:
            added[position] += value[there | {position}] - value[there]
            there |= {position}
    return (torch.tensor(added, dtype=torch.float64) / math.factorial(n_positions)).view(activation.shape[1:])


def cosine(a: Tensor, b: Tensor) -> float:
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


# The values


@pytest.mark.parametrize("tail", TAILS)
def test_the_map_is_the_mean_over_all_720_orders_of_2_x_3_positions(tail: str, small: Tensor, images: Tensor) -> None:
    net = Net(TAILS[tail]())
    supports = net(images).detach()

    def score(activation: Tensor) -> float:
        embedding = net.tail(activation[None])[0]
        return sum(cosine(embedding, support) for support in supports) / len(supports)

    found = LayerSimilarityShapley(net, net.features).details(small, images)
    assert found.attributions.shape == (2, 1, 2, 3)
    for query, activation in enumerate(net.features(small).detach()):
        expected = by_all_orders(score, activation)
        torch.testing.assert_close(found.attributions[query, 0], expected, rtol=0, atol=1e-12)
    assert not found.standard_error.any()


@pytest.mark.parametrize("foil", [None, "others", "runner-up", "own"])
@pytest.mark.parametrize("target", [0, 1])
def test_with_a_foil_it_is_of_the_difference_with_the_weights_of_the_whole_query(
    foil: str | None, target: int, small: Tensor, images: Tensor
) -> None:
    net = Net(TAILS["whitening"]())
    own = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    scores = SimilarityToSupport(
        net,
        SupportSet(images, LABELS),
        foil=SupportSet(own) if foil == "own" else foil,  # type: ignore[arg-type]
    )
    supports, others = net(images).detach(), net(own).detach()

    def of_class(embedding: Tensor, label: int) -> float:
        cosines = [
            cosine(embedding, one) for one, own_label in zip(supports, LABELS, strict=True) if own_label == label
        ]
        return sum(cosines) / len(cosines)

    found = LayerSimilarityShapley(scores, "features").attribute(small, target=target)
    for query, activation in enumerate(net.features(small).detach()):
        rivals = [label for label in range(3) if label != target]
        whole = net(small[query : query + 1])[0].detach()
        best = max(rivals, key=lambda label: of_class(whole, label))

        def score(activation: Tensor, best: int = best, rivals: list[int] = rivals) -> float:
            embedding = net.tail(activation[None])[0]
            less = {
                None: lambda: 0.0,
                "others": lambda: sum(of_class(embedding, label) for label in rivals) / 2,
                "runner-up": lambda: of_class(embedding, best),
                "own": lambda: sum(cosine(embedding, one) for one in others) / 2,
            }
            return of_class(embedding, target) - less[foil]()

        torch.testing.assert_close(found[query, 0], by_all_orders(score, activation), rtol=0, atol=1e-12)


def test_of_a_mean_with_a_linear_head_and_a_dot_product_it_is_the_additive_map(
    make_net: Callable[..., nn.Module], x: Tensor, support: Tensor
) -> None:
    net = make_net(head="linear", signed=True)
    found = LayerSimilarityShapley(net, net.features, similarity="dot", n_permutations=4).details(x, support)
    with torch.no_grad():
        pull = net(support).mean(0) @ net.head.weight
        expected = torch.einsum("bnhw,n->bhw", net.features(x), pull) / 35
    torch.testing.assert_close(found.attributions[:, 0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.standard_error, torch.zeros_like(found.standard_error), rtol=0, atol=1e-12)
    cam = LayerSimilarityCAM(net, net.features, similarity="dot").attribute(x, support)
    torch.testing.assert_close(found.attributions, cam, rtol=0, atol=1e-12)


def test_many_orders_of_35_positions_come_near_to_the_values_within_their_standard_error(x: Tensor) -> None:
    net = Net(TAILS["layer norm"]())
    support = torch.randn(4, 3, 7, 5, dtype=torch.float64)
    truth = LayerSimilarityShapley(net, net.features, n_permutations=2048, seed=1).attribute(x[:1], support)
    errors = {}
    for count in (16, 256):
        found = LayerSimilarityShapley(net, net.features, n_permutations=count).details(x[:1], support)
        errors[count] = float(found.standard_error.square().mean().sqrt())
        assert 0.5 < float((found.attributions - truth).square().mean().sqrt()) / errors[count] < 2
    assert 3 < errors[16] / errors[256] < 5.3


# The account


@pytest.mark.parametrize("n_permutations", [4, 6, 64])
@pytest.mark.parametrize("tail", TAILS)
def test_the_map_sums_to_the_score_less_that_of_no_position(tail: str, n_permutations: int, x: Tensor) -> None:
    net = Net(TAILS[tail]())
    support = torch.randn(5, 3, 7, 5, dtype=torch.float64)
    shapley = LayerSimilarityShapley(net, net.features, n_permutations=n_permutations)
    found = shapley.details(x, SupportSet(support, LABELS), target=1)
    with torch.no_grad():
        nothing = normalize(net.tail(torch.zeros(1, 6, 7, 5, dtype=torch.float64))) @ normalize(net(support[2:4])).T
    empty = nothing.mean().expand(3)
    torch.testing.assert_close(found.shares["empty"], empty, rtol=0, atol=1e-12)
    sums = found.attributions.sum((1, 2, 3))
    torch.testing.assert_close(sums, found.comparison.score - empty, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.shares["map"], sums, rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(found.shares.values()), found.comparison.score, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.coverage, sums / found.comparison.score, rtol=0, atol=1e-12)
    assert list(found.shares) == ["map", "empty", "rest"]
    assert float(found.convergence_delta.abs().max()) < 1e-12


def test_without_a_bias_no_position_has_no_score_and_the_map_is_all_of_it(x: Tensor) -> None:
    net = Net(TAILS["mean"]())
    found = LayerSimilarityShapley(net, net.features).details(x, torch.randn(2, 3, 7, 5, dtype=torch.float64))
    assert not found.shares["empty"].any()
    torch.testing.assert_close(found.coverage, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_distance_starts_from_minus_the_distance_of_no_position(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["mean, linear"]())
    found = LayerSimilarityShapley(net, net.features, similarity="euclidean").details(small, images)
    with torch.no_grad():
        bias = net.tail[2].bias  # type: ignore[index,union-attr]
        empty = -torch.stack([(bias - one).square().sum().sqrt() for one in net(images)]).mean()
    torch.testing.assert_close(found.shares["empty"], empty.expand(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(found.shares.values()), found.comparison.score, rtol=0, atol=1e-12)


def test_the_convergence_delta_can_be_had_with_the_map_and_of_a_map(x: Tensor) -> None:
    net = Net(TAILS["two layers"]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    shapley = LayerSimilarityShapley(net, net.features, n_permutations=4)
    assert shapley.has_convergence_delta()
    map_, delta = shapley.attribute(x, support, return_convergence_delta=True)
    assert delta.shape == (3,)
    assert float(delta.abs().max()) < 1e-12
    again = shapley.compute_convergence_delta(map_ + 1 / 35, None, x, support=support)
    torch.testing.assert_close(again, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"attributions must be .*batch of 3"):
        shapley.compute_convergence_delta(map_[:2], None, x, support=support)


def test_negative_values_are_cut_after_the_delta_was_taken(x: Tensor) -> None:
    net = Net(TAILS["mean"]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    shapley = LayerSimilarityShapley(net, net.features, n_permutations=4)
    plain = shapley.attribute(x, support)
    cut, delta = shapley.attribute(x, support, relu_attributions=True, return_convergence_delta=True)
    assert (plain < 0).any()
    assert torch.equal(cut, plain.relu())
    assert float(delta.abs().max()) < 1e-12


# Orders, batches, precision


@pytest.mark.parametrize("tail", ["mean", "whitening"])
def test_the_map_of_a_query_is_the_same_in_any_batch(tail: str, x: Tensor) -> None:
    net = Net(TAILS[tail]())
    support = SupportSet(torch.randn(5, 3, 7, 5, dtype=torch.float64), LABELS)
    shapley = LayerSimilarityShapley(net, net.features, n_permutations=4)
    together = shapley.attribute(x, support, target=[0, 1, 2])
    for query in range(3):
        alone = shapley.attribute(x[query : query + 1], support, target=query)
        torch.testing.assert_close(alone[0], together[query], rtol=0, atol=1e-12)


def test_a_seed_gives_one_map_and_leaves_torchs_generator_alone(x: Tensor) -> None:
    net = Net(TAILS["maximum"]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)

    def map_of(seed: int) -> Tensor:
        found: Tensor = LayerSimilarityShapley(net, net.features, n_permutations=4, seed=seed).attribute(x, support)
        return found

    state = torch.random.get_rng_state()
    first = map_of(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(map_of(3), first)
    assert not torch.allclose(map_of(4), first)


@pytest.mark.parametrize("max_batch", [1, 5, 1000])
@pytest.mark.parametrize("tail", ["mean, linear", "whitening"])
def test_how_many_masked_activations_are_held_makes_no_difference(tail: str, max_batch: int, x: Tensor) -> None:
    net = Net(TAILS[tail]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    few = LayerSimilarityShapley(net, net.features, n_permutations=4, max_batch=max_batch).attribute(x, support)
    default = LayerSimilarityShapley(net, net.features, n_permutations=4).attribute(x, support)
    torch.testing.assert_close(few, default, rtol=0, atol=1e-12)


def test_no_more_masked_activations_than_max_batch_go_through_the_tail_at_once(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["maximum"]())
    sizes: list[int] = []

    def tail(activation: Tensor) -> Tensor:
        sizes.append(len(activation))
        embedding: Tensor = net.tail(activation)
        return embedding

    LayerSimilarityShapley(net, net.features, tail=tail, max_batch=7).attribute(small, images)
    assert sum(size == 7 for size in sizes) == 2 * (64 // 7)
    assert max(sizes) == 7


def test_means_of_sets_are_those_of_masked_activations(x: Tensor) -> None:
    net = Net(TAILS["layer norm"]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    by_means = LayerSimilarityShapley(net, net.features, n_permutations=6).details(x, support)
    # A function shows nothing of what it begins with.
    by_masks = LayerSimilarityShapley(net, net.features, tail=lambda a: net.tail(a), n_permutations=6).details(
        x, support
    )
    torch.testing.assert_close(by_means.attributions, by_masks.attributions, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_means.standard_error, by_masks.standard_error, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tail", ["mean, linear", "whitening"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_half_and_single_precision_give_the_map_of_double_precision(
    tail: str, dtype: torch.dtype, tolerance: float, small: Tensor, images: Tensor
) -> None:
    net = Net(TAILS[tail]())
    expected = LayerSimilarityShapley(net, net.features).attribute(small, images)
    net.to(dtype)
    found = LayerSimilarityShapley(net, net.features).details(small.to(dtype), images.to(dtype))
    assert found.attributions.dtype == found.standard_error.dtype == torch.float32
    torch.testing.assert_close(found.attributions.double(), expected, rtol=0, atol=tolerance)


def test_under_autocast_the_map_still_sums_to_the_score(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["layer norm"]()).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = LayerSimilarityShapley(net, net.features).details(small.float(), images.float())
    assert found.attributions.dtype == torch.float32
    assert float(found.convergence_delta.abs().max()) < 0.02


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_map_is_the_same_and_detached_in_every_grad_mode(
    mode: Callable[[], Any], small: Tensor, images: Tensor
) -> None:
    net = Net(TAILS["layer norm"]())
    expected = LayerSimilarityShapley(net, net.features).attribute(small, images)
    with mode():
        found = LayerSimilarityShapley(net, net.features).attribute(small, images)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not found.is_inference()


# Supports


def test_every_query_may_have_supports_of_its_own(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["maximum"]())
    own = torch.stack([images[:2], images[3:]])
    found = LayerSimilarityShapley(net, net.features).attribute(small, own)
    for query in range(2):
        alone = LayerSimilarityShapley(net, net.features).attribute(small[query : query + 1], own[query])
        torch.testing.assert_close(found[query : query + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("neighbors", ["predicted", "vote", "all", "within-class"])
def test_the_neighbors_of_the_whole_query_are_the_supports_for_every_set(
    neighbors: Any, small: Tensor, images: Tensor
) -> None:
    net = Net(TAILS["whitening"]())
    with torch.no_grad():
        embeddings = net(images)
    bank = MemoryBank(embeddings, LABELS, k=3, neighbors=neighbors)
    found = LayerSimilarityShapley(net, net.features).details(small, bank)
    for query, activation in enumerate(net.features(small).detach()):
        rows = bank.support(net(small).detach()).indices[query].tolist()
        weights = found.comparison.support_weights[query].tolist()

        def score(activation: Tensor, rows: list[int] = rows, weights: list[float] = weights) -> float:
            embedding = net.tail(activation[None])[0]
            return sum(w * cosine(embedding, embeddings[row]) for w, row in zip(weights, rows, strict=True))

        expected = by_all_orders(score, activation)
        torch.testing.assert_close(found.attributions[query, 0], expected, rtol=0, atol=1e-12)


# Layers


class Tokens(nn.Module):
    """A class token and 2 x 3 patches of 4 numbers, ``embed``; then attention, of which the class token is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Identity()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.double().eval()

    def behind(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.attention(tokens, tokens, tokens)[0][:, 0]
        return embedding

    def forward(self, tokens: Tensor) -> Tensor:
        return self.behind(self.embed(tokens))


def test_the_positions_of_a_token_grid_are_the_players_and_dropped_tokens_always_stay() -> None:
    net = Tokens()
    tokens = torch.randn(2, 7, 4, dtype=torch.float64)
    support = torch.randn(3, 4, dtype=torch.float64)
    shapley = LayerSimilarityShapley(net, net.embed, tail=net.behind, token_grid=TokenGrid((2, 3)))
    found = shapley.attribute(tokens, support)
    assert found.shape == (2, 1, 2, 3)
    for query, own in enumerate(tokens):

        def score(patches: Tensor, own: Tensor = own) -> float:
            embedding = net.behind(torch.cat([own[:1], patches.flatten(1).T])[None])[0].detach()
            return sum(cosine(embedding, one) for one in support) / 3

        expected = by_all_orders(score, own[1:].T.view(4, 2, 3))
        torch.testing.assert_close(found[query, 0], expected, rtol=0, atol=1e-12)


def test_the_input_of_a_layer_is_explained_by_a_tail_that_begins_with_the_layer(x: Tensor) -> None:
    net = Net(TAILS["mean, linear"]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    of_input = LayerSimilarityShapley(net, net.tail, n_permutations=4).attribute(
        x, support, attribute_to_layer_input=True
    )
    of_output = LayerSimilarityShapley(net, net.features, n_permutations=4).attribute(x, support)
    torch.testing.assert_close(of_input, of_output, rtol=0, atol=1e-12)


def test_one_and_three_spatial_dimensions(
    make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]
) -> None:
    for rank, shape in ((1, (9,)), (3, (4, 3, 5))):
        net = make_net("gmp", "linear-bias", rank=rank)
        found = LayerSimilarityShapley(net, net.features, n_permutations=4).details(
            make_images(2, rank, 1), make_images(3, rank, 2)
        )
        assert found.attributions.shape == found.standard_error.shape == (2, 1, *shape)
        assert float(found.convergence_delta.abs().max()) < 1e-12


def test_a_tail_is_found_behind_any_forward_function(x: Tensor) -> None:
    net = Net(TAILS["mean"]())
    support = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    expected = LayerSimilarityShapley(net, net.features, n_permutations=4).attribute(x, support)
    for forward in (lambda images: normalize(net(images)), net.forward, nn.DataParallel(net)):
        found = LayerSimilarityShapley(forward, net.features, n_permutations=4).attribute(x, support)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# What is left alone


def test_nothing_of_the_model_is_changed(x: Tensor) -> None:
    net = Net(TAILS["two layers"]())
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    LayerSimilarityShapley(net, net.features, n_permutations=4).attribute(x, torch.randn(2, 3, 7, 5).double())
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("where", ["features", "tail"])
def test_no_hook_is_left_after_an_error_in_the_model(where: str, small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["mean"]())
    support = net(images).detach()

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    layer = net.features
    setattr(net, where, nn.Sequential(layer, Broken()) if where == "features" else Broken())
    with pytest.raises(RuntimeError, match="broken"):
        LayerSimilarityShapley(net, layer).attribute(small, support)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in net.modules())


def test_modules_that_another_thread_runs_meanwhile_are_no_part_of_the_tail(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["mean, linear"]())
    expected = LayerSimilarityShapley(net, net.features).attribute(small, images)
    other, ran = Net(TAILS["maximum"]()), []

    def forward(x: Tensor) -> Tensor:
        activation = net.features(x)
        thread = threading.Thread(target=lambda: ran.append(other(x)))
        thread.start()
        thread.join()
        embedding: Tensor = net.tail(activation)
        return embedding

    found = LayerSimilarityShapley(forward, net.features).attribute(small, images)
    assert ran
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_bar_of_all_sets_is_shown_only_where_it_is_asked_for(
    small: Tensor, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net(TAILS["mean"]())
    LayerSimilarityShapley(net, net.features).attribute(small, images)
    assert not capsys.readouterr().err
    LayerSimilarityShapley(net, net.features, show_progress=True).attribute(small, images)
    shown = capsys.readouterr().err
    assert "Layer Similarity Shapley: 100%" in shown
    assert "128/128" in shown  # two queries, 2^6 sets each


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_permutations": 2}, "n_permutations must be .*at least 4, got 2"),
        ({"n_permutations": 7}, "n_permutations must be even.*got 7"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"tail": "pooling"}, "tail must be \"auto\" .*got 'pooling'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    net = Net(TAILS["mean"]())
    with pytest.raises(ValueError, match=message):
        LayerSimilarityShapley(net, net.features, **options)


def test_several_layers_are_refused() -> None:
    net = Net(TAILS["mean"]())
    with pytest.raises(TypeError, match="layer must be one module"):
        LayerSimilarityShapley(net, [net.features, net.tail])  # type: ignore[arg-type]


def test_a_tail_that_goes_round_the_layer_is_refused_and_what_to_pass_is_said(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["mean"]())

    def residual(x: Tensor) -> Tensor:
        return net.tail(net.features(x)) + x.mean((2, 3)).repeat(1, 2)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"tail=\"auto\".*\(Sequential\).*Pass tail=.*\(2, 6, 2, 3\)|\(2, 6, 2, 3\)"):
        LayerSimilarityShapley(residual, net.features).attribute(small, images)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (GMP(), "tail gives other embeddings"),
        (nn.Sequential(nn.Flatten()), r"tail gives \(2, 36\) .* embeddings are \(2, 6\)"),
        (lambda activation: None, "tail gives NoneType"),
    ],
)
def test_a_tail_that_makes_other_embeddings_than_the_model_is_refused(
    tail: Any, message: str, small: Tensor, images: Tensor
) -> None:
    net = Net(TAILS["mean"]())
    with pytest.raises(ValueError, match=message):
        LayerSimilarityShapley(net, net.features, tail=tail).attribute(small, images)


def test_a_tail_with_no_number_for_no_position_is_refused(small: Tensor, images: Tensor) -> None:
    class Divide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.norm(dim=1, keepdim=True)

    net = Net(_seeded(GAP(), Divide()))
    with pytest.raises(ValueError, match="tail gives NaN or inf"):
        LayerSimilarityShapley(net, net.features).attribute(small, images)


def test_a_tail_that_mixes_the_samples_of_a_batch_is_refused(small: Tensor, images: Tensor) -> None:
    net = Net(_seeded(GAP(), nn.BatchNorm1d(6)))
    net.train()
    with (
        pytest.warns(UserWarning, match="training mode"),
        pytest.raises(ValueError, match=r"another batch.*model\.eval\(\)"),
    ):
        LayerSimilarityShapley(net, net.features).attribute(small, net(images).detach())


def test_several_views_of_the_input_are_refused(small: Tensor, images: Tensor) -> None:
    net = Net(TAILS["mean"]())
    with pytest.raises(ValueError, match="gives 2 tensors to the embedding"):
        LayerSimilarityShapley(Views(net, ["identity", "hflip"]).eval(), net.features).attribute(small, images)
