"""Hooks for the time of one run: what layers give, which modules run, and that nothing stays behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam.attr.layer_hooks import active_run, hook_layer, observe_layers, run_without_graph, watch_modules


class Twice(nn.Module):
    """A layer that runs twice, one that runs once and one that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last, self.unused = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.shared(self.shared(x))
        embedding: Tensor = self.last(x if scale is None else x * scale)
        return embedding


@pytest.fixture
def net() -> Twice:
    return Twice().eval()


def has_hooks(net: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_layer_is_observed_in_each_of_its_runs(net: Twice) -> None:
    x, scale = torch.rand(3, 2), torch.rand(3, 1)
    runs, (last,), none = observe_layers(net, [net.shared, net.last, net.unused], (x, scale))
    first, second = runs
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    with torch.no_grad():
        assert torch.equal(first, net.shared(x))
        assert torch.equal(second, net.shared(first))
        assert torch.equal(last, net.last(second * scale))
    assert none == []
    assert not second.requires_grad
    assert not has_hooks(net)


def test_hooks_are_taken_off_when_the_model_fails(net: Twice) -> None:
    with pytest.raises(RuntimeError):
        observe_layers(net, [net.shared], (torch.rand(3, 7),))
    assert not has_hooks(net)


@pytest.mark.parametrize("everything", [False, True], ids=["given modules", "all modules"])
def test_modules_are_watched_as_they_start_and_finish(net: Twice, everything: bool) -> None:
    seen: list[tuple[str, nn.Module]] = []
    with watch_modules(
        None if everything else net.modules(),
        before=lambda module, args: seen.append(("starts", module)),
        after=lambda module, args, output: seen.append(("ends", module)),
    ):
        net(torch.rand(1, 2))
    each = [(word, module) for module in (net.shared, net.shared, net.last) for word in ("starts", "ends")]
    assert seen == [("starts", net), *each, ("ends", net)]
    seen.clear()
    net(torch.rand(1, 2))
    assert not seen


def test_other_threads_are_not_watched(net: Twice) -> None:
    seen: list[nn.Module] = []
    with watch_modules(None, after=lambda module, args, output: seen.append(module)):
        thread = threading.Thread(target=net, args=(torch.rand(1, 2),))
        thread.start()
        thread.join()
    assert not seen


def test_scripted_modules_are_passed_over() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2))
    net = nn.Sequential(scripted, nn.ReLU())
    seen: list[nn.Module] = []
    with watch_modules(net.modules(), after=lambda module, args, output: seen.append(module)):
        net(torch.rand(1, 2))
    assert seen == [net[1], net]


def zeros(module: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(tensor) for tensor in tensors)


@pytest.mark.parametrize("at_input", [False, True])
def test_a_layer_gives_what_stands_in_its_place(net: Twice, at_input: bool) -> None:
    with run_without_graph() as run, hook_layer(net.last, at_input, run, zeros):
        exchanged = net(torch.rand(3, 2))
    assert torch.equal(exchanged, net.last.bias.expand(3, 1) if at_input else torch.zeros(3, 1))
    assert not has_hooks(net)


def test_a_hook_acts_in_its_own_run_alone(net: Twice) -> None:
    x = torch.rand(3, 2)
    with run_without_graph() as run, hook_layer(net.last, False, run, zeros):
        with active_run():  # an explanation inside of the model that is explained
            inner = net(x)
        outer = net(x)
    assert torch.equal(inner, net(x))
    assert torch.equal(outer, torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("output", "at_input", "message"),
    [({"a": 1}, False, "gives a dict"), (("a", 1), False, "gives a str"), (None, True, "no positional input")],
)
def test_a_layer_of_something_else_than_tensors_is_refused(output: Any, at_input: bool, message: str) -> None:
    class Odd(nn.Module):
        def forward(self) -> Any:
            return output

    layer = Odd()
    with run_without_graph() as run, hook_layer(layer, at_input, run, zeros), pytest.raises(ValueError, match=message):
        layer()
