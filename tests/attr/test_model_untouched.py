"""Nothing of the user's is changed by an attribution, also when it fails half way, and nothing is kept."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

Method = Callable[..., Any]
METHODS: dict[str, tuple[Method, dict[str, Any]]] = {
    "fam": (LayerFAM, {}),
    "fam closed form": (LayerFAM, {"transform": "head", "weighting": "weights"}),
    "fam through a module": (LayerFAM, {"transform": "head", "weighting": "contributions"}),
    "similarity-cam": (LayerSimilarityCAM, {}),
    "correspondence": (LayerCorrespondence, {}),
}


class Net(nn.Module):
    """Convolution, batch norm, ReLU in place, dropout, pooling and a head; can be told to fail after its layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 6, 3)
            self.norm = nn.BatchNorm2d(6)
            self.layer = nn.ReLU(inplace=True)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(6, 4)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        activation = self.layer(self.norm(self.stem(x)))
        if self.fails:
            raise RuntimeError("the forward function fails")
        return self.head(self.drop(activation.mean((2, 3))))


@pytest.fixture
def net() -> Net:
    """Partly frozen, with gradients of an earlier backward pass, and one harmless module in training mode."""
    net = Net().double().eval()
    net(torch.ones(2, 3, 6, 5, dtype=torch.float64)).sum().backward()
    net.stem.requires_grad_(False)
    net.layer.train()
    return net


def make(name: str, forward_func: Any, net: Net, layer: Any = None) -> Any:
    method, options = METHODS[name]
    options = {key: net.head if value == "head" else value for key, value in options.items()}
    return method(forward_func, net.layer if layer is None else layer, **options)


def snapshot(net: Net, *tensors: Tensor) -> dict[str, Any]:
    """Everything that an attribution must leave as it was."""
    state: dict[str, Any] = {}
    for name, module in net.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        state[f"hooks {name}"] = [list(h.items()) for h in hooks]
        state[f"training {name}"] = module.training
        state[f"attributes {name}"] = sorted(vars(module))
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        state[f"tensor {name}"] = (id(value), value.data_ptr(), value.requires_grad, value.tolist())
        state[f"grad {name}"] = None if value.grad is None else (id(value.grad), value.grad.tolist())
    for i, tensor in enumerate(tensors):
        state[f"input {i}"] = (tensor.requires_grad, tensor.grad, tensor._version, tensor.is_leaf, tensor.tolist())
    state["random"] = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    state["modes"] = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch._C._len_torch_function_stack(),
    )
    return state


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_call_changes_nothing(name: str, at_input: bool, grad: bool, net: Net, x: Tensor, support: Tensor) -> None:
    with torch.set_grad_enabled(grad):
        before = snapshot(net, x, support)
        make(name, net, net).attribute(x, support, attribute_to_layer_input=at_input)
        assert snapshot(net, x, support) == before


@pytest.mark.parametrize("name", METHODS)
def test_a_call_on_a_similarity_to_support_changes_nothing(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    scores = SimilarityToSupport(net, SupportSet(support, [0, 1, 0, 1]), foil="others")
    before = snapshot(net, x, support)
    make(name, scores, net).attribute(x, target=0)
    assert snapshot(net, x, support) == before


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["fam", "similarity-cam", "correspondence"])
def test_the_callers_images_keep_their_gradient_flag_at_the_first_layers_input(
    name: str, requires_grad: bool, net: Net, x: Tensor, support: Tensor
) -> None:
    x.requires_grad_(requires_grad)
    make(name, net, net, net.stem).attribute(x, support, attribute_to_layer_input=True)
    assert x.requires_grad is requires_grad
    assert x.grad is None


def test_a_graph_the_images_belong_to_stays_usable(net: Net, support: Tensor) -> None:
    noise = torch.zeros(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    images = noise.exp()
    LayerSimilarityCAM(net, net.stem).attribute(images, support, attribute_to_layer_input=True)
    images.sum().backward()
    assert torch.equal(noise.grad, torch.ones_like(noise))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("failure", ["forward function", "target", "support"])
def test_a_call_that_fails_changes_nothing(failure: str, name: str, net: Net, x: Tensor, support: Tensor) -> None:
    made = make(name, net, net)
    bank = SupportSet(net(support).detach())
    if failure == "forward function":
        net.fails = True
        arguments: dict[str, Any] = {"support": bank}
        error: type[Exception] = RuntimeError
    elif failure == "target":
        arguments, error = {"support": SupportSet(support), "target": (9999,) * 20}, AssertionError
    else:
        arguments, error = {"support": bank.inputs[:, :2]}, ValueError
    before = snapshot(net, x, support)
    with pytest.raises(error):
        made.attribute(x, **arguments)
    assert snapshot(net, x, support) == before


@pytest.mark.parametrize("name", METHODS)
def test_a_failure_inside_a_decorated_forward_function_leaves_the_modes(name: str, net: Net, x: Tensor) -> None:
    made = make(name, torch.inference_mode()(lambda x: net(x)), net)
    net.fails = True
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            before = snapshot(net, x)["modes"]
            with pytest.raises(RuntimeError, match="the forward function fails"):
                made.attribute(x, torch.ones(2, 4, dtype=torch.float64))
            assert snapshot(net, x)["modes"] == before


@pytest.mark.parametrize("name", METHODS)
def test_hooks_of_the_user_stay_and_are_called(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    calls: list[str] = []
    net.layer.register_forward_hook(lambda *_: calls.append("output"))
    net.layer.register_forward_pre_hook(lambda *_: calls.append("input"))
    before = snapshot(net, x)
    make(name, net, net).attribute(x, support)
    assert calls[-2:] == ["input", "output"]
    after = snapshot(net, x)
    assert {k: v for k, v in after.items() if k.startswith("hooks")} == {
        k: v for k, v in before.items() if k.startswith("hooks")
    }


@pytest.mark.parametrize("name", METHODS)
def test_training_mode_stays_and_statistics_move_only_as_by_forward_passes(
    name: str, net: Net, x: Tensor, support: Tensor
) -> None:
    net.norm.train()
    by_hand = copy.deepcopy(net)
    made = make(name, net, net)
    made.attribute(x, SupportSet(support))
    with torch.no_grad():
        by_hand(support)
        by_hand(x)
        if name == "correspondence":  # it reads the supports' activations in a pass of its own
            by_hand(support)
    assert net.norm.training
    assert net.norm.num_batches_tracked == by_hand.norm.num_batches_tracked
    assert torch.allclose(net.norm.running_mean, by_hand.norm.running_mean)
    assert torch.allclose(net.norm.running_var, by_hand.norm.running_var)


def test_a_training_step_after_an_attribution_is_the_same_as_without(net: Net, x: Tensor, support: Tensor) -> None:
    net.zero_grad(set_to_none=True)
    twin = copy.deepcopy(net)
    LayerSimilarityCAM(net, net.layer).attribute(x, support)
    LayerFAM(net, net.layer).attribute(x, support)
    for model in (net, twin):
        model(x).square().sum().backward()
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad)


@pytest.mark.parametrize("name", METHODS)
def test_no_tensor_of_a_call_outlives_it(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    seen: list[weakref.ref[Tensor]] = []
    for module in net.modules():
        module.register_forward_hook(lambda _, __, output: seen.append(weakref.ref(output)))
    made = make(name, net, net)
    bank = SupportSet(support)
    made.attribute(x, bank)
    kept = bank.embed(net)
    gc.collect()
    seen.clear()
    gc.disable()  # reference counts alone have to free the pass: cycles wait, and a GPU fills up meanwhile
    try:
        result = made.attribute(x, bank)
        alive = [ref() for ref in seen if ref() is not None and ref() is not kept]
    finally:
        gc.enable()
    assert len(seen) >= 6, "the hooks saw a pass"
    assert not alive
    before = weakref.ref(result)
    del result
    assert before() is None


@pytest.mark.parametrize("name", METHODS)
def test_the_graph_of_the_backbone_is_never_built(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    before_layer: list[bool] = []
    net.norm.register_forward_hook(lambda _, __, output: before_layer.append(output.requires_grad))
    net.stem.requires_grad_(True)
    made = make(name, net, net)
    made.has_warned = True  # with the warning that a map explains little, other layers are measured
    made.attribute(x, support)
    assert before_layer
    assert not any(before_layer)


def test_models_and_explainers_can_be_collected(x: Tensor, support: Tensor) -> None:
    net = Net().double().eval()
    bank = SupportSet(support)
    made = LayerFAM(net, net.layer)
    made.attribute(x, bank)
    scores = SimilarityToSupport(net, bank)
    scores(x)
    references = [weakref.ref(net), weakref.ref(made), weakref.ref(scores)]
    del net, made, scores
    gc.collect()
    assert [ref() for ref in references] == [None] * 3
