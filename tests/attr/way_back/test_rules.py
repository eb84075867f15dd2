"""The table of what is held: each function by itself, and a rule of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_fam import LayerSimilarityCAM
from captum_fam.attr.way_back import RULES, Call, Gate, hold, hold_quotient, linear, register_rule

COUNT = 6


class Tail(nn.Module):
    """A convolution, then a function of its activation ``(B, 6, 3, 5)`` to an embedding."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = nn.Conv2d(3, COUNT, 1)
            self.norm = nn.GroupNorm(2, COUNT)
            self.instance = nn.InstanceNorm2d(COUNT, affine=True)
            self.batch = nn.BatchNorm2d(COUNT)
            self.running = nn.InstanceNorm2d(COUNT, affine=True, track_running_stats=True)
            for module in self.modules():
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.data = torch.rand_like(tensor) + 0.2
            self.features.weight.data -= 0.7  # activations of both signs
        self.function = function
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.features(x))


def images() -> tuple[Tensor, Tensor]:
    """Two queries and three supports."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 3, 5, dtype=torch.float64, generator=generator)
    return x, torch.rand(3, 3, 3, 5, dtype=torch.float64, generator=generator)


def details(tail: Tail, **options: Any) -> Any:
    x, support = images()
    return LayerSimilarityCAM(tail, tail.features, **options).details(x, support=support)


def pooled(tensor: Tensor) -> Tensor:
    return tensor.mean((2, 3))


def layer_norm_by_hand(a: Tensor) -> Tensor:
    centered = a - a.mean(1, keepdim=True)
    return centered * torch.rsqrt(centered.pow(2).mean(1, keepdim=True) + 1e-6)


def normalized_by_std(a: Tensor) -> Tensor:
    return (a - a.mean((1, 2, 3), keepdim=True)) / a.std((1, 2, 3), keepdim=True)


def by_var_mean(a: Tensor) -> Tensor:
    variance, mean = torch.var_mean(a, dim=1, keepdim=True)
    return (a - mean) / (variance + 1e-5).sqrt()


def self_attention(a: Tensor) -> Tensor:
    tokens = a.flatten(2).transpose(1, 2)
    weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
    return weights @ tokens


# Everything here adds up to the score with no rest, because what is no scale is linear.
COMPLETE: dict[str, Callable[[Tensor], Tensor]] = {
    "vector_norm": lambda a: pooled(a / torch.linalg.vector_norm(a, dim=1, keepdim=True)),
    "linalg.norm": lambda a: pooled(a / torch.linalg.norm(a, dim=1, keepdim=True)),
    "Tensor.norm": lambda a: pooled(a / a.norm(dim=1, keepdim=True)),
    "times the inverse norm": lambda a: pooled(a * a.norm(dim=1, keepdim=True).reciprocal()),
    "in-place division": lambda a: pooled(a.clone().div_(a.norm(dim=1, keepdim=True))),
    "std as a feature": lambda a: torch.cat([pooled(a), a.std((2, 3))], 1),
    "variance as a feature": lambda a: a.var((2, 3)),
    "var_mean as features": lambda a: torch.cat(torch.var_mean(a, dim=(2, 3)), 1),
    "std_mean as features": lambda a: torch.cat(torch.std_mean(a, dim=(2, 3)), 1),
    "norm as a feature": lambda a: torch.cat([pooled(a), torch.linalg.vector_norm(a, dim=(2, 3))], 1),
    "p-norm": lambda a: a.abs().norm(p=3, dim=(2, 3)),
    "global response": lambda a: pooled(a + a * (a.norm(dim=(2, 3), keepdim=True) / a.norm())),
    "normalize": lambda a: F.normalize(pooled(F.normalize(a)) * 3.0),
    "parts": lambda a: torch.cat([F.normalize(a[:, :, 0].mean(2)), F.normalize(a[:, :, 1:].mean((2, 3)))], 1),
    "layer norm by hand": lambda a: pooled(layer_norm_by_hand(a)),
    "std": lambda a: pooled(normalized_by_std(a)),
    "var_mean": lambda a: pooled(by_var_mean(a)),
    "self attention": lambda a: self_attention(a).mean(1),
    "gelu": lambda a: pooled(F.gelu(a)),
    "gelu, tanh": lambda a: pooled(F.gelu(a, approximate="tanh")),
    "silu": lambda a: pooled(F.silu(a.clone(), inplace=True)),
    "mish": lambda a: pooled(F.mish(a)),
    "elu": lambda a: pooled(F.elu(a, 0.7)),
    "selu": lambda a: pooled(F.selu(a)),
    "celu": lambda a: pooled(F.celu(a)),
    "hardswish": lambda a: pooled(F.hardswish(a.clone(), inplace=True)),
    "tanh": lambda a: torch.tanh(pooled(a)),
    "softsign": lambda a: pooled(F.softsign(a)),
    "relu6": lambda a: pooled(F.relu6(9 * a)),
    "hardtanh": lambda a: pooled(F.hardtanh(2 * a)),
    "leaky relu": lambda a: pooled(F.leaky_relu(a, 0.3)),
    "prelu": lambda a: pooled(F.prelu(a, a.new_full((COUNT,), 0.2))),
    "abs": lambda a: pooled(a.abs()),
    "signed square root": lambda a: pooled(a.sign() * a.abs().sqrt()),
    "square": lambda a: pooled(a.square()),
    "pow": lambda a: pooled(a.pow(3)),
    "float power": lambda a: pooled(a.clamp_min(0.05) ** 2.5),
    "GeM": lambda a: pooled(a.clamp(min=1e-6).pow(3)).pow(1 / 3),
    "clamp": lambda a: pooled(a.clamp(0.1, 0.4)),
    "maximum": lambda a: pooled(torch.maximum(a, a.new_full((COUNT, 1, 1), 0.2))),
    "itself twice": lambda a: pooled(a * a),
    "bilinear": lambda a: torch.einsum("bcp,bdp->bcd", a.flatten(2), a.flatten(2)).flatten(1),
    "glu": lambda a: pooled(F.glu(a, dim=1)),
    "swiglu": lambda a: pooled(F.silu(a[:, :3]) * a[:, 3:]),
    "squeeze and excitation": lambda a: pooled(a * torch.sigmoid(pooled(a))[:, :, None, None]),
    "hard sigmoid gate": lambda a: pooled(a * F.hardsigmoid(pooled(a))[:, :, None, None]),
    "shift": lambda a: pooled(2 - a + 0.5),
    "where": lambda a: pooled(torch.where(a > 0.1, a, a.new_full((), -0.2))),
    "masked_fill": lambda a: pooled(a.masked_fill(a > 0.3, 0.7)),
    "pad": lambda a: pooled(F.pad(a, (1, 0, 0, 2), value=0.3)),
    "stack": lambda a: pooled(torch.stack([a, torch.ones_like(a) * 0.1], 1).sum(1)),
    "addcmul": lambda a: pooled(torch.addcmul(a.new_full((COUNT, 1, 1), 0.3), a, a.new_full((COUNT, 1, 1), 2.0))),
    "max pooling": lambda a: a.amax((2, 3)),
}
MODULES = ["norm", "instance", "batch", "running"]


@pytest.mark.parametrize("name", COMPLETE)
def test_the_shares_of_every_function_add_up(name: str) -> None:
    found = details(Tail(COMPLETE[name]))
    size = sum(share.abs() for share in found.shares.values())
    assert (found.shares["rest"].abs() <= 1e-12 * size).all(), found.shares


@pytest.mark.parametrize("name", MODULES)
def test_the_shares_of_every_normalization_layer_add_up(name: str) -> None:
    tail = Tail(lambda a: pooled(getattr(tail, name)(a)))
    found = details(tail)
    size = sum(share.abs() for share in found.shares.values())
    assert (found.shares["rest"].abs() <= 1e-12 * size).all(), found.shares
    torch.testing.assert_close(found.coverage, torch.ones(2, dtype=torch.float64))  # the shift lies at positions


def test_a_cosine_layer_is_a_product_over_lengths_that_are_held() -> None:
    prototypes = torch.rand(4, COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    written = details(Tail(lambda a: F.cosine_similarity(pooled(a)[:, None], prototypes[None], dim=2)))
    by_hand = details(Tail(lambda a: F.normalize(pooled(a)) @ F.normalize(prototypes).T))
    torch.testing.assert_close(written.attributions, by_hand.attributions)


def test_a_gate_written_by_hand_is_held_like_the_function_of_torch() -> None:
    by_hand = details(Tail(lambda a: pooled(a * F.relu6(a + 3) / 6)))
    torch.testing.assert_close(by_hand.attributions, details(Tail(lambda a: pooled(F.hardswish(a)))).attributions)


def test_a_function_outside_the_table_keeps_its_gradient_and_has_a_rest() -> None:
    tail = Tail(lambda a: torch.exp(pooled(a)))
    found = details(tail, similarity="dot")
    assert (found.shares["rest"].abs() > 1e-3).all()
    total = sum(found.shares.values())
    torch.testing.assert_close(total, found.comparison.score)


@pytest.fixture
def table() -> Iterator[None]:
    """What a test registers is taken back."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("table")
def test_a_rule_of_the_user_is_followed() -> None:
    tail = Tail(lambda a: pooled(torch.sinh(a)))
    assert (details(tail).shares["rest"].abs() > 1e-4).any()
    register_rule(torch.sinh, hold_quotient)
    torch.testing.assert_close(details(tail).shares["rest"], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_rule_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="rule must be callable, got int"):
        register_rule("sinh", 3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("function", [torch.sinh, torch.Tensor.sinh_], ids=["a new tensor", "in place"])
def test_a_rule_of_the_user_may_give_any_linear_form(function: Callable[[Tensor], Tensor]) -> None:
    def twice(call: Call) -> Tensor:
        return linear(call.args[0], lambda value: (call.on(value), lambda gradient: 2 * gradient))

    register_rule(torch.sinh, twice)
    tail = Tail(lambda a: pooled(function(a.clone())))
    found = details(tail, similarity="dot")
    x, support = images()
    with torch.no_grad():
        weights = tail(support).mean(0) / 15  # of the mean support, over 3 x 5 positions
        want = torch.einsum("bnhw,n->bhw", 2 * tail.features(x), weights)
    torch.testing.assert_close(found.attributions, want.unsqueeze(1))


@pytest.mark.usefixtures("table")
def test_the_gate_of_a_rule_says_which_factor_of_a_product_is_held() -> None:
    def product(a: Tensor) -> Tensor:
        return pooled(torch.sinh(a[:, :, :1, :1]) * a)

    register_rule(torch.sinh, hold, Gate.SCALE)
    held = details(Tail(product)).attributions
    by_hand = details(Tail(lambda a: pooled(torch.sinh(a[:, :, :1, :1]).detach() * a))).attributions
    torch.testing.assert_close(held, by_hand)
    # Without a level both factors share the product in halves, and one half of it lies on the first position.
    register_rule(torch.sinh, hold_quotient)
    halves = details(Tail(product))
    want = held / 2
    want[:, :, 0, 0] += held.sum((2, 3)) / 2
    torch.testing.assert_close(halves.attributions, want)
    torch.testing.assert_close(halves.shares["rest"], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_values_of_the_model_are_those_without_explanation() -> None:
    for function in COMPLETE.values():
        tail = Tail(function)
        x = torch.rand(2, 3, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        query = LayerSimilarityCAM(tail, tail.features).details(x, support=torch.ones(1, tail(x).shape[1]).double())
        assert torch.equal(query.comparison.query, tail(x).detach())
