"""What Captum promises of a layer method: names, order, tuples, targets, hooks, devices."""

from __future__ import annotations

import copy
import inspect
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr import LayerActivation, LayerAttribution, LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

Method = Callable[..., Any]
ALL = [LayerFAM, LayerSimilarityCAM, LayerCorrespondence]
ADDITIVE = [LayerFAM, LayerSimilarityCAM]


@pytest.fixture
def support(make_images: Callable[..., Tensor]) -> SupportSet:
    """Five images of three classes."""
    return SupportSet(make_images(5, seed=2), [0, 1, 2, 1, 0])


class TwoBranches(nn.Module):
    """A layer ``branches`` that gives two activations, both of which go into the embedding."""

    def __init__(self, container: Callable[[Tensor, Tensor], Any] = lambda *pair: pair) -> None:
        super().__init__()
        torch.manual_seed(0)

        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fine = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
                self.coarse = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())

            def forward(self, x: Tensor) -> Any:
                return container(self.fine(x), self.coarse(x))

        self.branches = Branches()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.branches(x)
        return fine.mean((2, 3)) + 2 * coarse.mean((2, 3))


Pair = namedtuple("Pair", ["fine", "coarse"])


# Signatures


@pytest.mark.parametrize("method", ALL)
def test_attribute_keeps_its_undecorated_function(method: Method) -> None:
    assert callable(method.attribute.__wrapped__)


@pytest.mark.parametrize("method", ALL)
def test_constructor_begins_as_captums_layer_methods_do(method: Method) -> None:
    assert list(inspect.signature(method).parameters)[:3] == list(inspect.signature(LayerGradCam).parameters)[:3]


@pytest.mark.parametrize("method", ADDITIVE)
def test_attribute_takes_captums_arguments_in_captums_order(method: Method) -> None:
    captums = list(inspect.signature(LayerGradCam.attribute).parameters)
    ours = list(inspect.signature(method.attribute).parameters)
    assert ours[:2] == ["self", "inputs"]
    assert ours[2] == "support"  # where IntegratedGradients has its baselines
    shared = [name for name in ours if name in captums]
    assert shared == [name for name in captums if name != "grad_kwargs"]
    assert list(inspect.signature(captum.attr.LayerIntegratedGradients.attribute).parameters)[2:4] == [
        "baselines",
        "target",
    ]


@pytest.mark.parametrize("method", ALL)
def test_arguments_after_inputs_are_optional(method: Method) -> None:
    signature = inspect.signature(method.attribute)
    assert all(p.default is not p.empty for p in list(signature.parameters.values())[2:])


@pytest.mark.parametrize("method", ALL)
def test_methods_are_layer_attributions_and_say_whether_they_multiply_by_inputs(method: Method, net: nn.Module) -> None:
    made = method(net, net.features)
    assert isinstance(made, LayerAttribution)
    # Gradient x activation, as Captum's LayerGradientXActivation; a map without a delta has nothing to add up to.
    assert made.multiplies_by_inputs is (method is LayerSimilarityCAM)
    assert made.has_convergence_delta() is hasattr(made, "compute_convergence_delta")
    assert made.forward_func is net
    assert made.layer is net.features
    assert made.device_ids is None


@pytest.mark.parametrize(
    ("method", "name", "has_delta"),
    [
        (LayerFAM, "Layer FAM", False),
        (LayerSimilarityCAM, "Layer Similarity CAM", True),
        (LayerCorrespondence, "Layer Correspondence", False),
    ],
)
def test_names_and_convergence_deltas(method: Method, name: str, has_delta: bool, net: nn.Module) -> None:
    assert method.get_name() == name
    assert method(net, net.features).has_convergence_delta() is has_delta


# Tuples and lists


@pytest.mark.parametrize("method", ADDITIVE)
def test_one_tensor_comes_back_for_a_layer_of_one_tensor_also_when_inputs_is_a_tuple(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(net, net.features)
    plain, of_tuple = made.attribute(x, support, target=1), made.attribute((x,), support, target=1)
    assert plain.shape == (3, 1, 7, 5)
    assert torch.equal(plain, of_tuple)


@pytest.mark.parametrize("container", [lambda *pair: pair, lambda *pair: list(pair), Pair])
@pytest.mark.parametrize("method", ADDITIVE)
def test_a_tuple_comes_back_for_a_layer_of_two_tensors(
    method: Method, container: Callable[[Tensor, Tensor], Any], make_images: Callable[..., Tensor]
) -> None:
    net, x, support = TwoBranches(container), make_images(2), make_images(3, seed=2)
    maps = method(net, net.branches).attribute(x, support)
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(2, 1, 7, 5), (2, 1, 3, 2)]
    for got, branch in zip(maps, (net.branches.fine, net.branches.coarse), strict=True):
        assert torch.allclose(got, method(net, branch).attribute(x, support), atol=1e-14)


@pytest.mark.parametrize("layers", [["features.0", "features.1"], ["features.1", "features.0"]])
@pytest.mark.parametrize("method", ADDITIVE)
def test_a_list_of_layers_gives_a_list_equal_to_each_layer_alone(
    method: Method, layers: list[str], net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    together = method(net, layers).attribute(x, support, target=2)
    assert isinstance(together, list)
    for name, got in zip(layers, together, strict=True):
        assert torch.allclose(got, method(net, name).attribute(x, support, target=2), atol=1e-14)


def test_a_list_of_layers_gives_a_list_of_deltas(net: nn.Module, x: Tensor, support: SupportSet) -> None:
    layers = [net.features[0], net.features[1]]
    maps, deltas = LayerSimilarityCAM(net, layers).attribute(x, support, target=2, return_convergence_delta=True)
    for layer, m, d in zip(layers, maps, deltas, strict=True):
        alone, delta = LayerSimilarityCAM(net, layer).attribute(x, support, target=2, return_convergence_delta=True)
        assert torch.allclose(m, alone)
        assert torch.allclose(d, delta)
        assert d.shape == (3,)


@pytest.mark.parametrize("method", ADDITIVE)
def test_without_summation_the_channels_add_up_to_the_map(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(net, net.features)
    channels = made.attribute(x, support, target=0, attr_dim_summation=False)
    assert channels.shape == (3, 6, 7, 5)
    assert torch.allclose(channels.sum(1, keepdim=True), made.attribute(x, support, target=0), atol=1e-14)


@pytest.mark.parametrize(
    ("method", "options"),
    [(LayerFAM, {"normalization": "none"}), (LayerSimilarityCAM, {}), (LayerCorrespondence, {})],
)
def test_relu_attributions_cuts_the_map_at_zero(
    method: Method, options: dict[str, Any], net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(SimilarityToSupport(net, support, foil="others"), net.features, **options)
    plain = made.attribute(x, target=1)
    assert plain.min() < 0 < plain.max()
    assert torch.equal(made.attribute(x, target=1, relu_attributions=True), plain.clamp_min(0))


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("grad", [True, False])
def test_results_are_detached(method: Method, grad: bool, net: nn.Module, x: Tensor, support: SupportSet) -> None:
    with torch.set_grad_enabled(grad):
        maps = method(net, net.features).attribute(x.requires_grad_(), support, target=1)
    assert not maps.requires_grad
    assert maps.grad_fn is None
    maps.numpy()


# Arguments of the forward function


@pytest.mark.parametrize("method", ADDITIVE)
def test_additional_forward_args_reach_the_forward_function(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    def forward(x: Tensor, offset: Tensor, factor: float) -> Tensor:
        return net(x) * factor + offset

    embeddings = net(support.inputs).detach()
    offset = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    got = method(forward, net.features).attribute(x, embeddings, additional_forward_args=(offset, 2.0))
    want = method(lambda x: net(x) * 2.0 + offset, net.features).attribute(x, embeddings)
    assert torch.allclose(got, want)
    assert not torch.allclose(got, method(net, net.features).attribute(x, embeddings))


@pytest.mark.parametrize("method", ALL)
def test_additional_forward_args_that_are_no_tensors_embed_the_support_too(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    def forward(x: Tensor, shift: float) -> Tensor:
        return net(x) + shift

    got = method(forward, net.features).attribute(x, support, target=1, additional_forward_args=0.5)
    want = method(lambda x: net(x) + 0.5, net.features).attribute(x, support, target=1)
    assert torch.equal(got, want)


@pytest.mark.parametrize("method", ADDITIVE)
def test_a_model_of_two_inputs_is_explained_with_supports_as_embeddings(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return net(left) + right.mean((2, 3))[:, :1]

    embeddings = net(support.inputs).detach()
    got = method(forward, net.features).attribute((x, x.flip(0)), embeddings)
    want = method(lambda left: net(left) + x.flip(0).mean((2, 3))[:, :1], net.features).attribute(x, embeddings)
    assert torch.allclose(got, want)


@pytest.mark.parametrize("method", ALL)
def test_the_input_of_a_layer_is_explained_as_the_output_of_the_one_before(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    got = method(net, net.pooling).attribute(x, support, target=1, attribute_to_layer_input=True)
    assert torch.allclose(got, method(net, net.features).attribute(x, support, target=1), atol=1e-14)


# Targets

TARGETS: dict[str, Any] = {
    "int": 1,
    "scalar tensor": torch.tensor(2),
    "1-element tensor": torch.tensor([1]),
    "1-d tensor": torch.tensor([2, 0, 1]),
    "list of ints": [0, 2, 1],
    "tuple": (2,),
    "list of tuples": [(1,), (0,), (2,)],
}


def _of_sample(target: Any, i: int) -> Any:
    if isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1):
        return target[i : i + 1]
    return target


@pytest.mark.parametrize("foil", [None, "others", "runner-up"])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", ALL)
def test_a_batch_is_explained_as_each_of_its_samples_alone(
    method: Method, target: Any, foil: Any, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(SimilarityToSupport(net, support, foil=foil), net.features)
    batch = made.attribute(x, target=target)
    for i in range(len(x)):
        assert torch.allclose(batch[i : i + 1], made.attribute(x[i : i + 1], target=_of_sample(target, i)), atol=1e-13)


@pytest.mark.parametrize("method", ALL)
def test_targets_of_every_form_select_the_same_class(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(net, net.features)
    want = made.attribute(x, support, target=1)
    for same in (torch.tensor(1), torch.tensor([1]), torch.tensor([1, 1, 1]), [1, 1, 1], (1,), [(1,)] * 3):
        assert torch.equal(made.attribute(x, support, target=same), want)
    assert not torch.allclose(made.attribute(x, support, target=0), want)


def test_the_map_of_a_class_is_that_of_its_images_alone(net: nn.Module, x: Tensor, support: SupportSet) -> None:
    fam = LayerFAM(net, net.features)
    assert torch.allclose(
        fam.attribute(x, support, target=1), fam.attribute(x, support.inputs[support.labels == 1]), atol=1e-14
    )


@pytest.mark.parametrize("method", ALL)
def test_without_a_target_the_predicted_class_is_explained(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    predicted = SimilarityToSupport(net, support)(x).argmax(1)
    assert len(predicted.unique()) > 1, "the test needs queries of different classes"
    made = method(net, net.features)
    assert torch.equal(made.attribute(x, support), made.attribute(x, support, target=predicted))


BAD_TARGETS: dict[str, Any] = {
    "out of range": 9,
    "20 indices": (9999,) * 20,
    "short list": [0, 1],
    "long list": [0, 1, 2, 0],
    "long list of tuples": [(0,), (1,), (2,), (0,)],
    "one out of range": [0, 1, 9],
    "short tensor": torch.tensor([0, 1]),
    "tensor out of range": torch.tensor([0, 1, 3]),
    "2-d tensor": torch.tensor([[0], [1], [2]]),
    "float": 1.0,
    "list of floats": [0.0, 1.0, 2.0],
    "tensor of floats": torch.tensor([0.0, 1.0, 2.0]),
    "name": "wren",
    "empty tuple": (),
    "empty list": [],
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS)
@pytest.mark.parametrize("method", ALL)
def test_a_bad_target_raises_captums_assertion_error(
    method: Method, target: Any, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    with pytest.raises(AssertionError, match=r"(?i)target"):
        method(net, net.features).attribute(x, support, target=target)


# Captum's own generators, in spirit: hooks are removed in three modes

SPECIFICATIONS: list[dict[str, Any]] = [
    {"method": LayerFAM, "layer": "features"},
    {"method": LayerFAM, "layer": "features.0", "weighting": "weights", "normalization": "none"},
    {"method": LayerFAM, "layer": "pooling", "transform": "head", "weighting": "contributions", "at_input": True},
    {"method": LayerFAM, "layer": ["features.0", "features.1"]},
    {"method": LayerSimilarityCAM, "layer": "features"},
    {"method": LayerSimilarityCAM, "layer": ["features.0", "features.1"]},
    {"method": LayerCorrespondence, "layer": "features"},
]


class Raising(nn.Module):
    def forward(self, *_: Any) -> Tensor:
        raise RuntimeError("this layer always fails")


def _assert_no_hooks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, kind), f"{kind} left on {name}"


@pytest.mark.parametrize("specification", SPECIFICATIONS, ids=str)
@pytest.mark.parametrize("mode", ["normal", "bad target", "raising layer"])
def test_hooks_are_removed(
    mode: str, specification: dict[str, Any], net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    options = copy.deepcopy(specification)
    method, layer = options.pop("method"), options.pop("layer")
    at_input = options.pop("at_input", False)
    if "transform" in options:
        options["transform"] = net.get_submodule(options["transform"])
    scores = SimilarityToSupport(net, support)
    made = method(scores, layer, **options)
    if mode == "raising layer":
        raising = Raising()
        for name in [layer] if isinstance(layer, str) else layer:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, raising)
        embeddings = torch.ones(2, 4, dtype=torch.float64)  # nothing runs before the hooked pass
        with pytest.raises(RuntimeError, match="this layer always fails"):
            method(net, layer, **options).attribute(x, embeddings, attribute_to_layer_input=at_input)
    elif mode == "bad target":
        with pytest.raises(AssertionError):
            made.attribute(x, target=(9999,) * 20, attribute_to_layer_input=at_input)
    else:
        made.attribute(x, target=0, attribute_to_layer_input=at_input)
    _assert_no_hooks(scores)


# The layer


@pytest.mark.parametrize("method", ALL)
def test_the_layer_is_read_at_call_time(method: Method, net: nn.Module, x: Tensor, support: SupportSet) -> None:
    made = method(net, net.features[0])
    made.layer = net.features[1]  # what TCAV does between layers
    want = method(net, net.features[1]).attribute(x, support, target=1)
    assert torch.equal(made.attribute(x, support, target=1), want)
    made.layer = "features.1"
    assert torch.equal(made.attribute(x, support, target=1), want)


@pytest.mark.parametrize("method", ALL)
def test_a_layer_may_be_named(method: Method, net: nn.Module, x: Tensor, support: SupportSet) -> None:
    named = method(net, "features.1")
    assert named.layer is net.features[1]
    of_scores = method(SimilarityToSupport(net, support), "features.1")
    assert of_scores.layer is net.features[1]
    assert torch.allclose(of_scores.attribute(x, target=1), named.attribute(x, support, target=1))


@pytest.mark.parametrize("method", ALL)
def test_in_place_activation_functions_do_not_reach_the_activation(method: Method) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    in_place = nn.Sequential(*layers).double().eval()
    out_of_place = copy.deepcopy(in_place)
    out_of_place[1].inplace = False
    x, support = torch.randn(2, 3, 8, 6).double(), torch.randn(3, 3, 8, 6).double()
    for index, at_input in ((0, False), (1, True), (1, False)):
        got = method(in_place, in_place[index]).attribute(x, support, attribute_to_layer_input=at_input)
        want = method(out_of_place, out_of_place[index]).attribute(x, support, attribute_to_layer_input=at_input)
        assert torch.equal(got, want)


def test_a_layer_that_runs_twice_is_explained_in_its_last_call(net: nn.Module, x: Tensor, support: SupportSet) -> None:
    other, embeddings = x.flip(0) * 2, net(support.inputs).detach()

    def siamese(x: Tensor) -> Tensor:
        net(other)
        return net(x)

    for method in ADDITIVE:
        assert torch.equal(
            method(siamese, net.features).attribute(x, embeddings), method(net, net.features).attribute(x, embeddings)
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("method", ALL)
def test_scripted_modules_around_the_layer_are_passed_through(
    method: Method, make_net: Callable[..., nn.Module], x: Tensor, support: SupportSet
) -> None:
    for options in ({"head": "linear-bias"}, {"head": "linear-bias", "normalize": True}):
        net = make_net(**options)
        want = method(net, net.features[1]).attribute(x, support, target=1)
        net.features[0] = torch.jit.script(net.features[0])
        net.head = torch.jit.script(net.head)
        assert torch.allclose(method(net, net.features[1]).attribute(x, support, target=1), want, atol=1e-14)


# Devices


@pytest.mark.parametrize("method", ALL)
def test_data_parallel_is_passed_through(method: Method, net: nn.Module, x: Tensor, support: SupportSet) -> None:
    parallel = nn.DataParallel(net)  # without devices it runs its module
    want = method(net, net.features).attribute(x, support, target=1)
    for forward_func, ids in ((parallel, None), (parallel, [0]), (parallel.forward, [0])):
        got = method(forward_func, net.features, ids).attribute(x, support, target=1)
        assert torch.equal(got, want)
    scores = SimilarityToSupport(parallel, support)
    assert torch.allclose(method(scores, net.features).attribute(x, target=1), want)


def _replica(module: nn.Module) -> nn.Module:
    """What DataParallel makes on another device: another object with the same hooks."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else _replica(child)
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter)
    return replica


@pytest.mark.parametrize("transform", [None, "weight", "auto"])
def test_a_replica_of_the_layer_is_recorded_as_the_layer(
    transform: Any, make_net: Callable[..., nn.Module], x: Tensor, support: SupportSet
) -> None:
    net = make_net(head=None if transform is None else "linear")
    transform = net.head.weight if transform == "weight" else transform
    want = LayerFAM(net, net.features, transform=transform).attribute(x, support, target=1)
    got = LayerFAM(lambda x: _replica(net)(x), net.features, transform=transform).attribute(x, support, target=1)
    assert torch.allclose(got, want, atol=1e-14)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ALL)
def test_data_parallel_on_a_gpu_agrees_with_the_cpu(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    want = method(net, net.features).attribute(x, support, target=1)
    on_gpu = copy.deepcopy(net).cuda()
    parallel = nn.DataParallel(on_gpu)
    support = copy.deepcopy(support).cuda()
    for forward_func, ids in ((on_gpu, None), (parallel, None), (parallel.forward, parallel.device_ids)):
        got = method(forward_func, on_gpu.features, ids).attribute(x.cuda(), support, target=1)
        assert got.is_cuda
        assert torch.allclose(got.cpu(), want, atol=1e-10)


# Neighbors that must stay interchangeable


def test_classes_can_be_swapped_for_captums_on_one_forward_function(
    net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    scores = SimilarityToSupport(net, support)
    shapes = {
        method: method(scores, net.features).attribute(x, target=1).shape
        for method in (LayerFAM, LayerSimilarityCAM, LayerCorrespondence, LayerGradCam)
    }
    assert set(shapes.values()) == {(3, 1, 7, 5)}
    assert LayerActivation(scores, net.features).attribute(x).shape == (3, 6, 7, 5)
