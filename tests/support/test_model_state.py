"""The state of what stands behind a forward function: equal while nothing changed, other after every change."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam._model_state import anchor, model_state

OUTER = nn.Linear(3, 3)


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_the_state_is_equal_as_long_as_nothing_changes(net: nn.Sequential) -> None:
    before = model_state(net.eval())
    net(torch.ones(1, 3, 4, 4))
    net(torch.ones(1, 3, 4, 4)).sum().backward()  # gradients are no part of what is computed
    with torch.no_grad(), torch.random.fork_rng():
        assert model_state(net) == before
    with torch.inference_mode():
        assert model_state(net) == before


def _data_in_place(net: nn.Sequential) -> None:
    net[4].weight.data.add_(1)


def _buffer(net: nn.Sequential) -> None:
    net[1].running_mean[2] = 1


def _statistics(net: nn.Sequential) -> None:
    net[1].train()(torch.ones(2, 4, 3, 3))
    net[1].eval()


def _swap(net: nn.Sequential) -> None:
    net[2] = nn.AdaptiveMaxPool2d(1).eval()


@pytest.mark.parametrize(
    "change",
    [
        _data_in_place,
        _buffer,
        _statistics,
        _swap,
        lambda net: net[1].train(),
        lambda net: setattr(net[1], "eps", 0.1),
        lambda net: setattr(net[4], "weight", nn.Parameter(net[4].weight.clone())),
        lambda net: net.append(nn.ReLU()),
        lambda net: net.double(),
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict())),
        lambda net: setattr(net[4], "forward", lambda x: x),
        lambda net: nn.utils.parametrize.register_parametrization(net[4], "weight", nn.Identity()),
    ],
)
def test_every_change_of_the_model_changes_the_state(
    change: Callable[[nn.Sequential], Any], net: nn.Sequential
) -> None:
    before = model_state(net.eval())
    change(net)
    assert model_state(net) != before


def test_every_single_weight_tensor_counts(net: nn.Sequential) -> None:
    for tensor in (*net.parameters(), *net.buffers()):
        before = model_state(net)
        tensor.data.add_(1)
        assert model_state(net) != before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_of_any_layout_and_shape_are_read(layout: torch.memory_format) -> None:
    net = nn.Conv2d(3, 4, 3).to(memory_format=layout)
    net.register_buffer("scalar", torch.tensor(1.0))
    net.register_buffer("empty", torch.zeros(0, 3))
    net.register_buffer("expanded", torch.zeros(1, 1).expand(5, 7))
    net.register_buffer("count", torch.tensor([1, 2]))
    net.register_buffer("offloaded", torch.zeros(2, 3, device="meta"))
    before = model_state(net)
    assert model_state(net) == before
    net.scalar.data.add_(1)
    assert model_state(net) != before


def test_autocast_is_part_of_the_state(net: nn.Sequential) -> None:
    states = [model_state(net)]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            states.append(model_state(net))
    assert states[0] != states[1] != states[2] != states[0]
    assert model_state(net) == states[0]


def test_models_built_in_inference_mode_have_a_state() -> None:
    with torch.inference_mode():
        net = nn.Linear(2, 3)
        before = model_state(net)
        assert model_state(net) == before
        net.weight.mul_(2)
        assert model_state(net) != before


def _outside(x: Tensor) -> Tensor:
    return OUTER(x)


def _recursive(x: Tensor, depth: int = 2) -> Tensor:
    return _recursive(x, depth - 1) if depth else OUTER(x)


def _through_torch(x: Tensor) -> Tensor:
    return torch.flatten(nn.functional.normalize(OUTER(x)), 1)


@pytest.mark.parametrize("function", [_outside, _recursive, _through_torch, functools.partial(_outside)])
def test_modules_that_functions_refer_to_are_tracked(function: Callable[[Tensor], Tensor]) -> None:
    before = model_state(function)
    assert before is not None
    assert model_state(function) == before
    OUTER.weight.data.add_(1)
    assert model_state(function) != before


def test_all_the_modules_of_a_function_are_tracked(net: nn.Sequential) -> None:
    head, scale = nn.Linear(3, 2), torch.ones(())
    pair = (head, net)

    def forward(x: Tensor) -> Tensor:
        return pair[0](pair[1](x)) * scale

    for tensor in (head.weight, net[4].bias, scale):
        before = model_state(forward)
        assert before is not None
        tensor.data.add_(1)
        assert model_state(forward) != before


def test_what_may_hide_a_module_has_no_state(net: nn.Sequential) -> None:
    held: list[nn.Module] = [net]
    by_name = {"net": net}

    class Holder:
        model = net

        def __call__(self, x: Tensor) -> Tensor:
            return self.model(x)

        def embed(self, x: Tensor) -> Tensor:
            return self.model(x)

        @classmethod
        def embed_with_class(cls, x: Tensor) -> Tensor:
            return cls.model(x)

    holder = Holder()
    for function in (
        lambda x: held[0](net(x)),
        lambda x: by_name["net"](net(x)),
        lambda x: holder(net(x)),
        lambda x: Holder.model(net(x)),
        holder,
        holder.embed,
        Holder.embed_with_class,
        functools.partial(lambda nets, x: nets[0](x), held),
        held.append,
    ):
        assert model_state(function) is None


def test_a_function_of_no_module_has_no_state() -> None:
    assert model_state(lambda x: x.mean((2, 3))) is None
    assert model_state(torch.flatten) is None


def test_a_bound_method_is_anchored_at_its_module(net: nn.Sequential) -> None:
    assert anchor(net.forward) is net
    assert anchor(net) is net
    assert anchor(_outside) is _outside
