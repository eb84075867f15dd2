"""What a model does behind a layer is found by running it, and held to the embedding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from captum_fam.attr._tail import LayerTail, ModulesBehind, find_tail, given_tail
from captum_fam.pooling import GAP, GMP, GeM


def found(
    model: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor, *, at_input: bool = False, up_to_scale: bool = False
) -> tuple[LayerTail, Tensor]:
    """The tail behind the layer, and the layer's tensor."""
    kept: list[Tensor] = []
    hook: Callable[..., None] = lambda module, args, output=None: kept.append(args[0] if at_input else output)  # noqa: E731
    handle = layer.register_forward_pre_hook(hook) if at_input else layer.register_forward_hook(hook)
    with torch.no_grad(), ModulesBehind(layer, at_input) as behind:
        embedding = model(x)
    handle.remove()
    with torch.no_grad():
        return find_tail(behind.links, kept[-1], embedding, up_to_scale), kept[-1]


@pytest.fixture
def features() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU()).double()


@pytest.fixture
def head() -> nn.Module:
    return nn.Linear(6, 4).double()


class TwoLevels(nn.Module):
    """A layer inside a block, and modules behind it inside and outside that block."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(features, nn.Dropout(), nn.Conv2d(6, 6, 1).double(), nn.ReLU())
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.head = head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.pooling(self.block(x)).flatten(1))
        return embedding


def test_modules_behind_a_layer_are_the_outermost_ones_in_order(features: nn.Module, head: nn.Module) -> None:
    net = TwoLevels(features, nn.Sequential(head, nn.ReLU()))
    with ModulesBehind(features, at_input=False) as behind:
        net(torch.randn(2, 3, 5, 4).double())
    assert [link.module for link in behind.links] == [*net.block[1:], net.pooling, net.head]
    assert [link.shape for link in behind.links] == [(6, 5, 4), (6, 5, 4), (6, 5, 4), (6, 5, 4), (6,)]


def test_from_its_input_on_the_layer_is_the_first_of_them(features: nn.Module, head: nn.Module) -> None:
    net = TwoLevels(features, head)
    with ModulesBehind(net.block[2], at_input=True) as behind:
        net(torch.randn(2, 3, 5, 4).double())
    assert [link.module for link in behind.links] == [net.block[2], net.block[3], net.pooling, net.head]


def test_those_of_the_last_pass_count(features: nn.Module, head: nn.Module) -> None:
    net = TwoLevels(features, head)
    with ModulesBehind(features, at_input=False) as behind:
        for _ in range(3):
            net(torch.randn(2, 3, 5, 4).double())
    assert len(behind.links) == 5


def _pooled_by_mean(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: net[1](net[0](x).mean((2, 3)))  # type: ignore[index]


MODELS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "modules": lambda net: nn.Sequential(net[0], GeM(), net[1]),  # type: ignore[index]
    "reshaped before the head": lambda net: lambda x: net[1](nn.AdaptiveMaxPool2d(1)(net[0](x))[..., 0, 0]),  # type: ignore[index]
    "mean by a method": _pooled_by_mean,
    "mean by a function": lambda net: lambda x: net[1](adaptive_avg_pool2d(net[0](x), 1).flatten(1)),  # type: ignore[index]
    "maximum by a method": lambda net: lambda x: net[1](net[0](x).amax((2, 3))),  # type: ignore[index]
    "mean and nothing else": lambda net: lambda x: net[0](x).mean((2, 3)),  # type: ignore[index]
    "flattened": lambda net: lambda x: net[0](x).flatten(1),  # type: ignore[index]
    "convolution behind the pooling": lambda net: (
        lambda x: nn.Conv2d(6, 2, 1, dtype=torch.float64)(net[0](x).mean((2, 3), keepdim=True)).flatten(1)  # type: ignore[index]
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_tail_of_masked_activations_is_that_of_the_model(name: str, features: nn.Module, head: nn.Module) -> None:
    net = nn.Sequential(features, head)
    layer = nn.Identity()
    net[0] = nn.Sequential(features, layer)
    x = torch.randn(3, 3, 5, 4, dtype=torch.float64)
    torch.manual_seed(1)
    model = MODELS[name](net)
    if name.startswith("convolution"):  # one module, not one for each call
        convolution = nn.Conv2d(6, 2, 1, dtype=torch.float64)
        model = lambda x: convolution(net[0](x).mean((2, 3), keepdim=True)).flatten(1)  # noqa: E731
    tail, activation = found(model, layer, x)
    masked = activation * (torch.rand(3, 1, 5, 4) < 0.5)
    handle = layer.register_forward_hook(lambda module, args, output: masked)
    with torch.no_grad():
        torch.testing.assert_close(tail(masked), model(x), rtol=0, atol=1e-12)
    handle.remove()


@pytest.mark.parametrize(
    ("pooling", "is_mean"),
    [
        (nn.AdaptiveAvgPool2d(1), True),
        (GAP(), True),
        (nn.Sequential(nn.Identity(), nn.AvgPool2d((5, 4))), True),
        (nn.AvgPool2d((5, 2)), False),
        (GMP(), False),
        (GeM(1.0), False),  # it cuts negative values
        (nn.Sequential(nn.ReLU(), GAP()), False),
    ],
)
def test_a_mean_over_the_positions_is_recognized_by_what_it_does(
    pooling: nn.Module, is_mean: bool, features: nn.Module
) -> None:
    net = nn.Sequential(nn.Sequential(features, nn.ReLU()), nn.Dropout(), pooling, nn.Flatten()).eval()
    tail, activation = found(net, net[0], torch.randn(2, 3, 5, 4, dtype=torch.float64))
    assert tail.begins_with_mean is is_mean
    if is_mean:
        means = activation.mean((2, 3))
        torch.testing.assert_close(tail.from_mean(means), tail(activation), rtol=0, atol=1e-12)


def test_a_rescaling_of_each_sample_is_left_out_where_it_makes_no_difference(features: nn.Module) -> None:
    pooling = GMP()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    tail, activation = found(lambda x: normalize(pooling(features(x))), features, x, up_to_scale=True)
    assert torch.equal(tail(activation), pooling(activation))
    with pytest.raises(ValueError, match='tail="auto"'):
        found(lambda x: normalize(pooling(features(x))), features, x)


def test_the_opposite_direction_is_another_embedding(features: nn.Module) -> None:
    pooling = GMP()
    with pytest.raises(ValueError, match='tail="auto"'):
        found(lambda x: -pooling(features(x)), features, torch.randn(2, 3, 5, 4).double(), up_to_scale=True)


def test_modules_that_run_on_the_embedding_later_are_no_part_of_the_tail(features: nn.Module, head: nn.Module) -> None:
    pooling, later = GMP(), nn.Linear(4, 2).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        embedding: Tensor = head(pooling(features(x)))
        later(embedding)
        return embedding

    tail, activation = found(model, features, x)
    torch.testing.assert_close(tail(activation), model(x), rtol=0, atol=1e-12)


def test_a_module_of_two_tensors_or_a_skip_is_refused_with_the_modules_that_ran(features: nn.Module) -> None:
    class Both(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    both, pooling, x = Both(), GAP(), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\(Both -> GAP\).*Pass tail=.*Sequential\(pooling, head\)"):
        found(lambda x: pooling(both(features(x), x.repeat(1, 2, 1, 1))), features, x)
    with pytest.raises(ValueError, match=r"\(no module\)"):
        found(lambda x: features(x).mean((2, 3)) + x.mean((2, 3)).repeat(1, 2), features, x)


def test_a_given_sequence_is_looked_into_and_a_function_is_not(head: nn.Module) -> None:
    activation = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    sequence = nn.Sequential(GAP(), head)
    with torch.no_grad():
        embedding = sequence(activation)
        assert given_tail(sequence, activation, embedding, False).begins_with_mean
        assert not given_tail(lambda a: sequence(a), activation, embedding, False).begins_with_mean
