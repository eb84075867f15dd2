"""The contexts, models and layers that people bring: each must give the map of the plain case, or a clear refusal."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

Method = Callable[..., Any]
METHODS: dict[str, tuple[Method, dict[str, Any]]] = {
    "fam": (LayerFAM, {}),
    "fam closed form": (LayerFAM, {"transform": "head"}),
    "fam weights": (LayerFAM, {"weighting": "weights", "normalization": "none", "support_scale": "none"}),
    "similarity-cam": (LayerSimilarityCAM, {}),
    "correspondence": (LayerCorrespondence, {}),
}
THROUGH_THE_HEAD = ["fam", "fam weights", "similarity-cam"]


class Net(nn.Module):
    """stem -> layer -> pooling -> head, in the grad mode that a subclass wraps around its forward."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.layer = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(inplace=True))
            self.head = nn.Linear(6, 4)
        self.double().eval()

    def embed(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x).relu()).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)


def like(net: Net, forward: Callable[[Any, Tensor], Tensor]) -> Net:
    """A model of the same weights with another ``forward``."""
    other = type("Other", (Net,), {"forward": forward})()
    other.load_state_dict(net.state_dict())
    return other


def explain(name: str, forward_func: Any, x: Tensor, support: Any, net: Any = None, **arguments: Any) -> Tensor:
    method, options = METHODS[name]
    net = forward_func if net is None else net
    options = {key: net.head if value == "head" else value for key, value in options.items()}
    return method(forward_func, net.layer, **options).attribute(x, support, **arguments)


@pytest.fixture
def net() -> Net:
    return Net()


# Grad modes

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("name", METHODS)
def test_the_map_is_the_same_inside_any_grad_mode(
    name: str, context: Callable[[], Any], net: Net, x: Tensor, support: Tensor
) -> None:
    want = explain(name, net, x, support)
    with context():
        got = explain(name, net, x, support)
        made_inside = explain(name, net, x.clone(), SupportSet(support.clone()))
    for one in (got, made_inside):
        assert torch.allclose(one, want, atol=1e-14)
        assert not one.is_inference()  # what follows may need a normal tensor


@torch.no_grad()
def _all_without_gradients(self: Any, x: Tensor) -> Tensor:
    return self.embed(x)


@torch.inference_mode()
def _all_in_inference_mode(self: Any, x: Tensor) -> Tensor:
    return self.embed(x)


def _backbone_without_gradients(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        embedding = self.embed(x)
    return nn.functional.normalize(embedding, dim=1)


def _backbone_in_inference_mode(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        embedding = self.embed(x)
    return nn.functional.normalize(embedding.clone(), dim=1)


def _layer_alone_without_gradients(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        activation = self.layer(self.stem(x).relu())
    return self.head(activation.mean((2, 3)))


def _normalized_in_place(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        embedding = self.embed(x)
        embedding /= embedding.norm(dim=1, keepdim=True)
        return embedding


def _with_matrix_transposes(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        positions = self.layer(self.stem(x).relu()).flatten(2).mT  # an attribute, no call
        return self.head(positions.mean(1).T.T)


def _added_to_an_earlier_sum(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        before = self.stem(x).relu()
        total = torch.zeros_like(before[:, :6])
        total += self.layer(before)
        return self.head(total.mean((2, 3)))


def _gathered_in_place(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        pooled, embedding = torch.zeros(len(x), 6, dtype=x.dtype), torch.zeros(len(x), 4, dtype=x.dtype)
        activation = self.layer(self.stem(x).relu())
        pooled.add_(activation.mean((2, 3)))
        embedding[:, :2] = self.head(pooled)[:, :2]
        embedding[:, 2:].copy_(self.head(pooled)[:, 2:])
        return embedding


FORWARDS = [
    _all_without_gradients,
    _all_in_inference_mode,
    _backbone_without_gradients,
    _backbone_in_inference_mode,
    _layer_alone_without_gradients,
    _normalized_in_place,
    _with_matrix_transposes,
    _added_to_an_earlier_sum,
    _gathered_in_place,
]


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("name", METHODS)
def test_the_map_is_the_same_whatever_grad_mode_the_forward_function_sets(
    name: str, forward: Callable[[Any, Tensor], Tensor], net: Net, x: Tensor, support: Tensor
) -> None:
    want = explain(name, net, x, support)
    wrapped = like(net, forward)
    for context in (nullcontext, torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(explain(name, wrapped, x, support), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_built_in_inference_mode_is_explained(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    want = explain(name, net, x, support)
    with torch.inference_mode():
        built = Net()
        assert built.head.weight.is_inference()
        assert torch.allclose(explain(name, built, x, support), want, atol=1e-14)
    assert torch.allclose(explain(name, built, x, support), want, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_models_are_explained(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    want = explain(name, net, x, support)
    assert torch.allclose(explain(name, net.requires_grad_(False), x, support), want, atol=1e-14)


class _Doubled(torch.autograd.Function):
    """An operation of its own: no call of torch that a mode could see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


@pytest.mark.parametrize("name", THROUGH_THE_HEAD)
def test_autograd_functions_of_the_user_are_followed(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        pooled = _Doubled.apply(self.layer(self.stem(x).relu())).mean((2, 3))
        return nn.functional.normalize(_Doubled.apply(self.head(pooled / 4) + self.head.bias))

    def plain(self: Any, x: Tensor) -> Tensor:
        pooled = 2 * self.layer(self.stem(x).relu()).mean((2, 3))
        return nn.functional.normalize(2 * (self.head(pooled / 4) + self.head.bias))

    want = explain(name, like(net, plain), x, support)
    for context in (nullcontext, torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(explain(name, like(net, forward), x, support), want, atol=1e-13)


# Normalized outputs: the normalization belongs to the similarity


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional": lambda z: nn.functional.normalize(z, dim=1),
    "divided by its norm": lambda z: z / z.norm(dim=1, keepdim=True),
    "divided by linalg.norm": lambda z: z / torch.linalg.vector_norm(z, dim=-1, keepdim=True),
    "square root of the sum of squares": lambda z: z * z.square().sum(1, keepdim=True).add(1e-12).rsqrt(),
    "in place": lambda z: z.div_(z.norm(dim=1, keepdim=True)),
    "module": Normalize(),
    "twice": lambda z: nn.functional.normalize(nn.functional.normalize(z)),
    "with a temperature": lambda z: 10 * nn.functional.normalize(z),
    "as columns": lambda z: nn.functional.normalize(z.unsqueeze(-1), dim=1).squeeze(-1),
}


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("normalize", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
@pytest.mark.parametrize("name", THROUGH_THE_HEAD)
def test_a_normalized_output_leaves_the_map_as_it_is(
    name: str, normalize: Callable[[Tensor], Tensor], headless: bool, net: Net, x: Tensor, support: Tensor
) -> None:
    if headless:
        net.head = nn.Identity()
    want = explain(name, net, x, support)
    got = explain(name, lambda x: normalize(net(x)), x, support, net)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-13)


def test_a_normalized_output_keeps_the_map_complete(net: Net, x: Tensor, support: Tensor) -> None:
    net.head.bias.data.zero_()
    for normalize in NORMALIZATIONS.values():
        maps, delta = LayerSimilarityCAM(lambda x, n=normalize: n(net(x)), net.layer).attribute(
            x, support, return_convergence_delta=True
        )
        assert delta.abs().max() < 1e-12
        cosine = nn.functional.normalize(net(x)) @ nn.functional.normalize(net(support)).T
        assert torch.allclose(maps.flatten(1).sum(1), cosine.mean(1), atol=1e-12)


def test_centering_before_the_normalization_is_part_of_the_model(net: Net, x: Tensor, support: Tensor) -> None:
    center = net(support).mean(0).detach()

    def forward(x: Tensor) -> Tensor:
        return nn.functional.normalize(net(x) - center)

    got = LayerSimilarityCAM(forward, net.layer).attribute(x, support)
    want = LayerSimilarityCAM(lambda x: net(x) - center, net.layer).attribute(x, support)
    assert torch.allclose(got, want, atol=1e-13)


# Half precision


@pytest.mark.parametrize("name", METHODS)
def test_autocast_gives_the_map_to_the_precision_of_its_type(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    net, x, support = net.float(), x.float(), support.float()
    want = explain(name, net, x, support)
    with torch.autocast("cpu", torch.bfloat16):
        got = explain(name, net, x, support)
        banked = explain(name, net, x, SupportSet(support, [0, 1, 0, 1]), target=1)
    assert got.dtype == banked.dtype == torch.float32
    assert torch.isfinite(banked).all()
    assert torch.corrcoef(torch.stack([got.flatten(), want.flatten()]))[0, 1] > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_models_give_maps_in_float32(
    name: str, dtype: torch.dtype, net: Net, x: Tensor, support: Tensor
) -> None:
    want = explain(name, net, x, support)
    half = copy.deepcopy(net).to(dtype)
    got = explain(name, half, x.to(dtype), support.to(dtype))
    assert got.dtype == torch.float32
    assert torch.corrcoef(torch.stack([got.flatten().double(), want.flatten()]))[0, 1] > 0.999


def test_in_half_precision_the_map_sums_to_the_score_in_float32(net: Net, x: Tensor, support: Tensor) -> None:
    net.head = nn.Identity()
    half, x, support = net.bfloat16(), x.bfloat16(), support.bfloat16()
    _, delta = LayerSimilarityCAM(half, half.layer).attribute(x, support, return_convergence_delta=True)
    assert delta.dtype == torch.float32
    assert delta.abs().max() < 1e-2  # the pooling itself rounds to three digits
    with torch.autocast("cpu", torch.bfloat16):
        plain = Net().float()
        plain.head = nn.Identity()
        maps, delta = LayerSimilarityCAM(lambda x: plain(x).float(), plain.layer).attribute(
            x.float(), support.float(), return_convergence_delta=True
        )
        # The scores themselves must not be rounded to half precision.
        z, t = (nn.functional.normalize(plain(images).double()) for images in (x.float(), support.float()))
    assert torch.allclose(maps.flatten(1).sum(1) - delta, (z @ t.T).mean(1).float(), atol=1e-6)


# Compiled models

RUNS_COMPILED_MODELS_EAGERLY = hasattr(torch.compiler, "set_stance")
needs_torch_2_6 = pytest.mark.skipif(not RUNS_COMPILED_MODELS_EAGERLY, reason="compiled models need torch 2.6")


@pytest.mark.skipif(RUNS_COMPILED_MODELS_EAGERLY, reason="a refusal of torch before 2.6")
@pytest.mark.parametrize("name", METHODS)
def test_a_torch_that_cannot_explain_a_compiled_model_refuses_it(
    name: str, net: Net, x: Tensor, support: Tensor
) -> None:
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    with pytest.raises(ValueError, match="did not run in forward_func"):
        explain(name, compiled, x, support, net)


@needs_torch_2_6
@pytest.mark.parametrize("name", METHODS)
def test_models_that_torch_compile_has_run_are_explained(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    want = explain(name, net, x, support)
    compiled = torch.compile(net, backend="eager")
    compiled(x)  # from here on the compiled code passes over new hooks
    assert torch.allclose(explain(name, compiled, x, support, net), want, atol=1e-14)
    for _ in range(2):
        compiled(x)
        with torch.inference_mode():
            assert torch.allclose(explain(name, compiled, x, support, net), want, atol=1e-14)


@needs_torch_2_6
@pytest.mark.parametrize("name", METHODS)
def test_models_compiled_in_place_are_explained(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    want = explain(name, net, x, support)
    net.compile(backend="eager")
    net(x)
    assert torch.allclose(explain(name, net, x, support), want, atol=1e-14)


@needs_torch_2_6
@pytest.mark.parametrize("name", METHODS)
def test_compiled_parts_and_functions_are_explained(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    want = explain(name, net, x, support)
    forward = torch.compile(lambda x: net(x), backend="eager")
    forward(x)
    assert torch.allclose(explain(name, forward, x, support, net), want, atol=1e-14)
    layer = net.layer
    net.layer = torch.compile(layer, backend="eager")
    net(x)
    method, _ = METHODS[name]
    if name != "fam closed form":
        _, options = METHODS[name]
        for one in (layer, net.layer):
            assert torch.allclose(method(net, one, **options).attribute(x, support), want, atol=1e-14)


@pytest.mark.unperturbed
@needs_torch_2_6
def test_compiling_goes_on_as_before_after_an_explanation(net: Net, x: Tensor, support: Tensor) -> None:
    compilations: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(1)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        compiled(x)
        LayerFAM(compiled, net.layer).attribute(x, net(support))
        assert len(compilations) == 1, "the explanation compiles nothing"
        assert torch.equal(compiled(x), net(x))
        torch.compile(lambda x: net(x) * 2, backend=backend)(x)
    assert len(compilations) == 2, "and the compiler is on again"


@needs_torch_2_6
@pytest.mark.slow
def test_scores_can_be_compiled(net: Net, x: Tensor, support: Tensor) -> None:
    scores = SimilarityToSupport(net, SupportSet(support, [0, 1, 0, 1]))
    want = scores(x)
    compiled = torch.compile(scores, backend="eager")
    assert torch.allclose(compiled(x), want)
    with torch.no_grad():
        net.head.weight.neg_()
    assert torch.allclose(compiled(x), scores(x))


@needs_torch_2_6
def test_where_nothing_is_compiled_the_compiler_is_not_imported() -> None:
    code = """
import sys, torch
from captum_fam import LayerFAM
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
LayerFAM(net, net[0]).attribute(torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


# Layers of every shape


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM, LayerCorrespondence])
def test_layers_of_three_four_and_five_dimensions_are_explained(
    method: Method, rank: int, make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]
) -> None:
    net, x, support = make_net(rank=rank), make_images(3, rank, seed=1), make_images(4, rank, seed=2)
    made = method(net, net.features)
    got = made.attribute(x, support)
    assert got.shape == (3, 1, *x.shape[2:])
    assert torch.allclose(method(net, net.features).attribute(x[1:2], support), got[1:2], atol=1e-14)
    assert torch.allclose(made.attribute(x, SupportSet(support)), got, atol=1e-14)
    if method is not LayerCorrespondence:
        pairs = support.expand(3, *support.shape)
        assert torch.allclose(made.attribute(x, pairs), got, atol=1e-14)
        embeddings = net(support).detach()
        assert torch.allclose(made.attribute(x, embeddings), got, atol=1e-14)
        assert torch.allclose(made.attribute(x, embeddings.expand(3, 4, -1)), got, atol=1e-14)


@pytest.mark.parametrize("size", [(11, 7), (1, 9), (3, 1), (1, 1), (8, 13)])
@pytest.mark.parametrize("name", METHODS)
def test_odd_and_oblong_sizes_are_explained(name: str, size: tuple[int, int], net: Net) -> None:
    generator = torch.Generator().manual_seed(0)
    x, support = (torch.randn(count, 3, *size, generator=generator, dtype=torch.float64) for count in (2, 3))
    got = explain(name, net, x, support)
    assert got.shape == (2, 1, *size)
    assert torch.isfinite(got).all()


def test_supports_may_have_another_size_than_the_query(net: Net, x: Tensor, make_images: Callable[..., Tensor]) -> None:
    larger = torch.randn(2, 3, 12, 9, dtype=torch.float64)
    assert torch.allclose(
        LayerFAM(net, net.layer).attribute(x, larger), LayerFAM(net, net.layer).attribute(x, net(larger).detach())
    )


def test_channels_last_memory_is_as_good_as_any(net: Net, x: Tensor, support: Tensor) -> None:
    for name in METHODS:
        want = explain(name, net, x, support)
        got = explain(name, copy.deepcopy(net).to(memory_format=torch.channels_last), x, support)
        assert torch.allclose(got, want, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_one_pass_of_the_queries_serves_every_method(name: str, net: Net, x: Tensor, support: Tensor) -> None:
    labeled = SupportSet(support, [0, 1, 2, 0])
    # Correspondence reads the positions of the supports, the others their embeddings.
    bank = labeled if name == "correspondence" else labeled.embed(net)
    passes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    method, options = METHODS[name]
    made = method(net, net.layer, **{key: net.head if value == "head" else value for key, value in options.items()})
    made.has_warned = True  # with the warning that a map explains little, other layers are measured
    made.attribute(x, bank)
    assert passes == ([4, 3, 4] if name == "correspondence" else [3])


# The warning that most of a map is blind to the support


def test_fam_warns_once_that_its_map_is_blind_and_says_what_to_use(
    make_net: Callable[..., nn.Module], x: Tensor, support: Tensor
) -> None:
    net = make_net(head="linear", channels=12)
    fam = LayerFAM(net, net.features)
    with pytest.warns(UserWarning, match=r"more than half.*LayerSimilarityCAM"):
        fam.attribute(x, support)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fam.attribute(x, support)
    with pytest.warns(UserWarning, match="more than half"):
        LayerFAM(net, net.features).attribute(x, support)


def test_the_share_that_is_warned_of_is_more_than_half(
    make_net: Callable[..., nn.Module], x: Tensor, support: Tensor
) -> None:
    """The map is a sum of c_n A_n and b sum A_n with b = -min c / (max c - min c): compare their energies."""
    seen = set()
    for seed in range(12):
        net = make_net(head="linear", seed=seed)
        for one in x:
            fam = LayerFAM(net, net.features)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                details = fam.details(one[None], support)
            (c,) = details.contributions[0]
            activation = net.features(one[None])
            low, span = c.min(), c.max() - c.min()
            aware = ((c / span)[..., None, None] * activation).sum(1).abs().sum()
            blind = (-low / span * activation.sum(1)).abs().sum()
            assert bool(caught) is bool(blind > aware)
            seen.add(bool(caught))
    assert seen == {True, False}, "the test needs models on both sides of one half"


def test_headless_relu_networks_are_not_warned_of(
    make_net: Callable[..., nn.Module], x: Tensor, support: Tensor
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pooling in ("gap", "gmp"):
            net = make_net(pooling, channels=16)
            LayerFAM(net, net.features).attribute(x, support)


@pytest.mark.parametrize("normalization", ["none", "maxabs", "relu"])
def test_other_normalizations_are_not_warned_of(
    normalization: Any, make_net: Callable[..., nn.Module], x: Tensor, support: Tensor
) -> None:
    net = make_net(head="linear", channels=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerFAM(net, net.features, normalization=normalization).attribute(x, support)


@pytest.mark.parametrize(
    "call",
    [
        lambda fam, x, support: fam.attribute(x, support),
        lambda fam, x, support: fam.details(x, support),
        lambda fam, x, support: fam.attribute.__wrapped__(fam, x, support),
        pytest.param(
            lambda fam, x, support: NoiseTunnel(fam).attribute(x, nt_samples=2, support=support),
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="needs warnings that skip files, Python 3.12"),
        ),
    ],
)
def test_the_warning_points_at_the_line_of_the_caller(
    call: Callable[..., Any], make_net: Callable[..., nn.Module], x: Tensor, support: Tensor
) -> None:
    net = make_net(head="linear", channels=12)
    with pytest.warns(UserWarning, match="more than half") as caught:
        call(LayerFAM(net, net.features), x, support)
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, call.__code__.co_firstlineno)]


@pytest.mark.parametrize("normalize", [pytest.param("scripted", marks=pytest.mark.unperturbed), "keywords"])
def test_a_pooled_layer_is_the_vector_before_a_normalization_that_no_torch_call_shows(
    normalize: str, x: Tensor, support: Tensor
) -> None:
    class Unit(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            z = z.flatten(1)
            return z / torch.linalg.vector_norm(z, dim=1, keepdim=True)

    class Keywords(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            length = torch.linalg.vector_norm(x=z, dim=1, keepdim=True)
            return torch.flatten(input=torch.div(input=z, other=length), start_dim=1)

    last = torch.jit.script(Unit()) if normalize == "scripted" else Keywords()
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), last).to(x.dtype).eval()
    cam = LayerSimilarityCAM(net, net[2])
    maps, delta = cam.attribute(x, support=support, return_convergence_delta=True)
    similarity = torch.cosine_similarity(net(x).unsqueeze(1), net(support), dim=2).mean(1)
    torch.testing.assert_close(maps.flatten(1).sum(1), similarity.detach(), atol=1e-6, rtol=0)
    assert delta.abs().max() < 1e-6
