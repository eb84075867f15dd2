"""Captum's methods on a similarity, and this package's methods inside Captum's tools."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    DataLoaderAttribution,
    IntegratedGradients,
    LayerActivation,
    LayerAttribution,
    LayerConductance,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from captum.attr import visualization as viz
from captum.attr._utils.stat import Count, Mean  # type: ignore[attr-defined]
from captum.attr._utils.summarizer import Summarizer
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

Method = Callable[..., Any]
ALL = [LayerFAM, LayerSimilarityCAM, LayerCorrespondence]
FOILS = [None, "others", "runner-up"]
LABELS = [0, 1, 2, 1, 0]


@pytest.fixture
def support(make_images: Callable[..., Tensor]) -> SupportSet:
    return SupportSet(make_images(5, seed=2), LABELS)


@pytest.fixture
def scores(net: nn.Module, support: SupportSet) -> SimilarityToSupport:
    return SimilarityToSupport(net, support)


def class_scores_by_hand(z: np.ndarray, supports: np.ndarray, labels: list[int]) -> np.ndarray:
    """Eq. 11 in loops: the mean cosine of each query with the supports of each class."""
    scores = np.zeros((len(z), max(labels) + 1))
    for b in range(len(z)):
        for c in range(max(labels) + 1):
            cosines = [
                z[b] @ t / np.linalg.norm(z[b]) / np.linalg.norm(t)
                for t, label in zip(supports, labels, strict=True)
                if label == c
            ]
            scores[b, c] = sum(cosines) / len(cosines)
    return scores


def foiled_by_hand(scores: np.ndarray, foil: str | None) -> np.ndarray:
    result = scores.copy()
    for b, row in enumerate(scores):
        for c in range(len(row)):
            others = [row[o] for o in range(len(row)) if o != c]
            if foil == "others":
                result[b, c] -= sum(others) / len(others)
            elif foil == "runner-up":
                result[b, c] -= max(others)
    return result


def embed(net: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return net(images).numpy()


# The scores


@pytest.mark.parametrize("foil", FOILS)
def test_scores_are_mean_cosines_less_the_foil(foil: Any, net: nn.Module, x: Tensor, support: SupportSet) -> None:
    want = foiled_by_hand(class_scores_by_hand(embed(net, x), embed(net, support.inputs), LABELS), foil)
    got = SimilarityToSupport(net, support, foil=foil)(x).detach().numpy()
    assert np.allclose(got, want, rtol=0, atol=1e-14)


def test_a_support_set_as_foil_subtracts_the_mean_of_its_class_scores(
    net: nn.Module, x: Tensor, support: SupportSet, make_images: Callable[..., Tensor]
) -> None:
    foil_images, foil_labels = make_images(3, seed=3), [0, 1, 0]
    z, t, f = (embed(net, images) for images in (x, support.inputs, foil_images))
    foil = class_scores_by_hand(z, f, foil_labels).mean(1, keepdims=True)
    want = class_scores_by_hand(z, t, LABELS) - foil
    for given in (SupportSet(foil_images, foil_labels), SupportSet(torch.from_numpy(f), foil_labels)):
        got = SimilarityToSupport(net, support, foil=given)(x).detach().numpy()
        assert np.allclose(got, want, rtol=0, atol=1e-14)
    one_class = class_scores_by_hand(z, t, LABELS) - class_scores_by_hand(z, f, [0, 0, 0])
    assert np.allclose(
        SimilarityToSupport(net, support, foil=foil_images)(x).detach().numpy(), one_class, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("foil", FOILS)
def test_prototypes_are_the_mean_embeddings_of_the_classes(
    foil: Any, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    t = embed(net, support.inputs)
    prototypes = np.stack([np.mean([v for v, y in zip(t, LABELS, strict=True) if y == c], 0) for c in range(3)])
    want = foiled_by_hand(class_scores_by_hand(embed(net, x), prototypes, [0, 1, 2]), foil)
    got = SimilarityToSupport(net, support, foil=foil, aggregate="prototype")(x).detach().numpy()
    assert np.allclose(got, want, rtol=0, atol=1e-14)
    mean_of_similarities = SimilarityToSupport(net, support, foil=foil)(x).detach().numpy()
    assert not np.allclose(got, mean_of_similarities)


def test_scores_of_a_squared_euclidean_prototype_network(net: nn.Module, x: Tensor, support: SupportSet) -> None:
    t, z = embed(net, support.inputs), embed(net, x)
    prototypes = np.stack([t[[0, 4]].mean(0), t[[1, 3]].mean(0), t[2]])
    want = -((z[:, None] - prototypes[None]) ** 2).sum(-1)
    scores = SimilarityToSupport(net, support, similarity="squared-euclidean", aggregate="prototype")
    assert np.allclose(scores(x).detach().numpy(), want)


def test_scores_are_differentiable_in_the_image_alone(scores: SimilarityToSupport, x: Tensor) -> None:
    (gradient,) = torch.autograd.grad(scores(x.requires_grad_())[:, 1].sum(), x)
    assert gradient.abs().sum() > 0
    assert not scores.support.inputs.requires_grad


def test_scores_have_the_class_names_of_the_support(net: nn.Module, support: SupportSet) -> None:
    named = SupportSet(support.inputs, ["jay", "wren", "tit", "wren", "jay"])
    assert SimilarityToSupport(net, named).class_names == ("jay", "tit", "wren")


# Captum's methods on the scores


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("foil", FOILS)
def test_grad_cam_on_the_scores_has_its_closed_form(
    foil: Any, bias: bool, make_net: Callable[..., nn.Module], x: Tensor, support: SupportSet
) -> None:
    """M_p = (<W A_p, t> - s <W A_p, z/|z|>) / (P |z|), t the mean unit support less the foil's: in loops."""
    net = make_net(head="linear-bias" if bias else "linear")
    target = [2, 0, 1]
    got = LayerGradCam(SimilarityToSupport(net, support, foil=foil), net.features).attribute(x, target=target)
    z, t = embed(net, x), embed(net, support.inputs)
    activation, weight = net.features(x).detach().numpy(), net.head.weight.detach().numpy()
    offset = net.head.bias.detach().numpy() if bias else np.zeros(4)
    units = t / np.linalg.norm(t, axis=1, keepdims=True)
    directions = np.stack([units[[0, 4]].mean(0), units[[1, 3]].mean(0), units[2]])
    plain = class_scores_by_hand(z, t, LABELS)
    for b, c in enumerate(target):
        others = [o for o in range(3) if o != c]
        direction = directions[c].copy()
        if foil == "others":
            direction -= directions[others].mean(0)
        elif foil == "runner-up":
            direction -= directions[max(others, key=lambda o: plain[b, o])]
        length = np.linalg.norm(z[b])
        score = direction @ z[b] / length
        for row in range(7):
            for column in range(5):
                moved = weight @ activation[b, :, row, column]
                value = (moved @ direction - score * (moved @ z[b]) / length) / (35 * length)
                assert got[b, 0, row, column].item() == pytest.approx(value, abs=1e-14)
        gradient = (direction - score * z[b] / length) / length
        assert got[b].sum().item() == pytest.approx(-gradient @ offset, abs=1e-13)


@pytest.mark.parametrize("foil", FOILS)
def test_gradient_times_activation_is_grad_cam_by_channel(
    foil: Any, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    scores = SimilarityToSupport(net, support, foil=foil)
    shares = LayerGradientXActivation(scores, net.features).attribute(x, target=1)
    cam = LayerGradCam(scores, net.features).attribute(x, target=1)
    assert shares.shape == (3, 6, 7, 5)
    assert torch.allclose(shares.sum(1, keepdim=True), cam, atol=1e-14)


def test_layer_activation_on_the_scores_is_that_of_the_model(
    scores: SimilarityToSupport, net: nn.Module, x: Tensor
) -> None:
    assert torch.equal(LayerActivation(scores, net.features).attribute(x), net.features(x))


def test_integrated_gradients_add_up_to_the_difference_of_scores(scores: SimilarityToSupport, x: Tensor) -> None:
    attributions = IntegratedGradients(scores).attribute(x, target=[0, 1, 2], n_steps=200)
    both = torch.stack([scores(x), scores(torch.zeros_like(x))])[:, range(3), [0, 1, 2]]
    assert torch.allclose(attributions.flatten(1).sum(1), both[0] - both[1], atol=2e-3)


@pytest.mark.parametrize("method", [LayerIntegratedGradients, LayerConductance])
def test_layer_methods_along_a_path_add_up_too(
    method: Method, scores: SimilarityToSupport, net: nn.Module, x: Tensor
) -> None:
    _, delta = method(scores, net.features).attribute(x, target=1, n_steps=200, return_convergence_delta=True)
    assert delta.abs().max() < 5e-3


def test_saliency_is_the_gradient_of_the_score(scores: SimilarityToSupport, x: Tensor) -> None:
    got = Saliency(scores).attribute(x.clone().requires_grad_(), target=2, abs=False)
    step = torch.zeros_like(x)
    step[:, 1, 3, 2] = 1e-6
    difference = (scores(x + step) - scores(x - step))[:, 2] / 2e-6
    assert torch.allclose(got[:, 1, 3, 2], difference, atol=1e-8)


def test_occlusion_is_the_drop_of_the_score(scores: SimilarityToSupport, x: Tensor) -> None:
    got = Occlusion(scores).attribute(x, sliding_window_shapes=(3, 7, 5), target=1)
    drop = scores(x)[:, 1] - scores(torch.zeros_like(x))[:, 1]
    assert torch.allclose(got.double(), drop.reshape(3, 1, 1, 1).expand_as(got), atol=1e-6)  # Captum's is float32


def test_noise_tunnel_without_noise_is_the_method_itself(scores: SimilarityToSupport, x: Tensor) -> None:
    saliency = Saliency(scores)
    smooth = NoiseTunnel(saliency).attribute(x.clone().requires_grad_(), nt_samples=3, stdevs=0.0, target=[0, 1, 2])
    assert torch.allclose(smooth, saliency.attribute(x.clone().requires_grad_(), target=[0, 1, 2]), atol=1e-14)


def test_scores_of_a_query_do_not_depend_on_its_batch(scores: SimilarityToSupport, x: Tensor) -> None:
    assert torch.allclose(scores(x), torch.cat([scores(one[None]) for one in x]), atol=1e-14)


def test_the_input_of_the_embedding_can_be_explained_by_captums_layer_methods(
    scores: SimilarityToSupport, net: nn.Module, x: Tensor
) -> None:
    cam = LayerGradCam(scores, net.pooling).attribute(x, target=1, attribute_to_layer_input=True)
    assert torch.allclose(cam, LayerGradCam(scores, net.features).attribute(x, target=1), atol=1e-14)


# One forward function for all methods


@pytest.mark.parametrize("method", ALL)
def test_scores_as_forward_function_agree_with_the_support_given_directly(
    method: Method, scores: SimilarityToSupport, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    for target in (None, 2, [0, 1, 2]):
        got = method(scores, net.features).attribute(x, target=target)
        assert torch.allclose(got, method(net, net.features).attribute(x, support, target=target), atol=1e-14)


@pytest.mark.parametrize(
    ("method", "similarity"),
    [
        # The shares of Eq. 15 are the same for dot product and cosine.
        (LayerFAM, "squared-euclidean"),
        (LayerFAM, "euclidean"),
        (LayerSimilarityCAM, "dot"),
        (LayerSimilarityCAM, "squared-euclidean"),
        (LayerSimilarityCAM, "euclidean"),
    ],
)
def test_the_similarity_of_the_scores_is_the_one_explained(
    method: Method, similarity: str, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    scores = SimilarityToSupport(net, support, similarity=similarity)
    got = method(scores, net.features).attribute(x, target=1)
    assert torch.allclose(got, method(net, net.features, similarity=similarity).attribute(x, support, target=1))
    assert not torch.allclose(got, method(net, net.features).attribute(x, support, target=1))


@pytest.mark.parametrize("foil", [None, "others", "runner-up", "support"])
@pytest.mark.parametrize("aggregate", ["mean", "prototype"])
def test_the_exact_map_sums_to_the_score_of_the_forward_function(
    foil: Any,
    aggregate: Any,
    make_net: Callable[..., nn.Module],
    x: Tensor,
    support: SupportSet,
    make_images: Callable[..., Tensor],
) -> None:
    net = make_net(head="linear", normalize=True)
    if foil == "support":
        foil = SupportSet(make_images(3, seed=3), [1, 0, 1])
    scores = SimilarityToSupport(net, support, foil=foil, aggregate=aggregate)
    target = torch.tensor([2, 0, 1])
    attributions, delta = LayerSimilarityCAM(scores, net.features).attribute(
        x, target=target, return_convergence_delta=True
    )
    want = scores(x).gather(1, target[:, None]).squeeze(1)
    assert torch.allclose(attributions.flatten(1).sum(1), want, atol=1e-13)
    assert delta.abs().max() < 1e-13


# Inside Captum's tools


@pytest.mark.parametrize("method", ALL)
def test_noise_tunnel_around_a_map_with_a_shared_support(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(net, net.features)
    plain = made.attribute(x, support=support, target=[2, 0, 1])
    none = NoiseTunnel(made).attribute(x, nt_samples=3, stdevs=0.0, support=support, target=[2, 0, 1])
    assert torch.allclose(none, plain, atol=1e-13)
    for kind in ("smoothgrad", "smoothgrad_sq", "vargrad"):
        noisy = NoiseTunnel(made).attribute(
            x, nt_type=kind, nt_samples=6, nt_samples_batch_size=2, stdevs=0.1, support=support, target=[2, 0, 1]
        )
        assert noisy.shape == plain.shape
        assert not noisy.requires_grad
        assert not torch.allclose(noisy, plain)


@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM])
def test_noise_tunnel_takes_a_shared_support_as_a_tensor(method: Method, net: nn.Module, x: Tensor) -> None:
    made = method(net, net.features)
    for shared in (x.flip(0), net(x.flip(0)).detach()):
        got = NoiseTunnel(made).attribute(x, nt_samples=2, stdevs=0.0, support=shared)
        assert torch.allclose(got, made.attribute(x, shared), atol=1e-13)


@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM])
def test_noise_tunnel_with_a_support_per_query_raises_instead_of_mispairing(
    method: Method, net: nn.Module, x: Tensor, make_images: Callable[..., Tensor]
) -> None:
    pairs = make_images(6, seed=4).unflatten(0, (3, 2))
    made = method(net, net.features)
    assert made.attribute(x, pairs).shape == (3, 1, 7, 5)
    with pytest.raises(ValueError, match=r"each of 3 queries but inputs is a batch of 6.*NoiseTunnel"):
        NoiseTunnel(made).attribute(x, nt_samples=2, stdevs=0.0, support=pairs)


@pytest.mark.parametrize("method", ALL)
def test_the_undecorated_attribute_runs_as_tcav_calls_it(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(net, net.features[0])
    made.layer = net.features
    got = made.attribute.__wrapped__(
        made, x, target=1, additional_forward_args=None, attribute_to_layer_input=False, support=support
    )
    assert torch.equal(got, method(net, net.features).attribute(x, support, target=1))
    of_scores = method(SimilarityToSupport(net, support), net.features[0])  # as TCAV would, which knows no support
    of_scores.layer = net.features
    got = of_scores.attribute.__wrapped__(
        of_scores, x, target=1, additional_forward_args=None, attribute_to_layer_input=False
    )
    assert torch.allclose(got, method(net, net.features).attribute(x, support, target=1))


@pytest.mark.parametrize("method", ALL)
def test_sensitivity_max_takes_a_map_as_a_tuple_of_one(
    method: Method, net: nn.Module, x: Tensor, support: SupportSet
) -> None:
    made = method(net, net.features)

    def explain(inputs: Any, **arguments: Any) -> tuple[Tensor]:
        return (made.attribute(inputs, **arguments),)

    arguments = {"support": support, "target": [2, 0, 1]}
    sensitivity = sensitivity_max(explain, x, n_perturb_samples=4, **arguments)
    assert sensitivity.shape == (3,)
    assert (sensitivity > 0).all()
    still = sensitivity_max(explain, x, perturb_func=lambda x, _: x, n_perturb_samples=4, **arguments)
    assert still.max() < 1e-12


def test_infidelity_of_a_map_on_the_scores(scores: SimilarityToSupport, net: nn.Module, x: Tensor) -> None:
    cam = LayerSimilarityCAM(scores, net.features).attribute(x, target=1)
    pixels = LayerAttribution.interpolate(cam, x.shape[2:], "bilinear").expand_as(x)

    @infidelity_perturb_func_decorator(False)
    def perturb(inputs: Tensor) -> Tensor:
        return inputs - 0.05

    got = infidelity(scores, perturb, x, pixels, target=1, n_perturb_samples=2)
    change = scores(x)[:, 1] - scores(x - 0.05)[:, 1]
    assert torch.allclose(got, (0.05 * pixels.flatten(1).sum(1) - change).square(), atol=1e-8)


def test_summarizer_takes_the_maps(scores: SimilarityToSupport, net: nn.Module, x: Tensor) -> None:
    maps = LayerFAM(scores, net.features).attribute(x, target=1)
    summarizer = Summarizer([Mean(), Count()])
    for one in maps:
        summarizer.update(one)
    assert torch.allclose(summarizer.summary["mean"], maps.mean(0))


def test_interpolate_takes_the_maps(scores: SimilarityToSupport, net: nn.Module, x: Tensor) -> None:
    maps = LayerFAM(scores, net.features).attribute(x, target=1)
    up = LayerFAM.interpolate(maps, (21, 15), "bilinear")
    assert up.shape == (3, 1, 21, 15)
    assert not up.requires_grad
    assert up.min() >= maps.min()
    assert up.max() <= maps.max()


@pytest.mark.parametrize("method", ALL)
def test_visualize_image_attr_takes_the_maps(
    method: Method, scores: SimilarityToSupport, net: nn.Module, x: Tensor
) -> None:
    maps = LayerFAM.interpolate(method(scores, net.features).attribute(x, target=1), x.shape[2:], "bilinear")
    image = x[0].permute(1, 2, 0).sigmoid().numpy()
    _, axes = viz.visualize_image_attr_multiple(
        maps[0].permute(1, 2, 0).numpy(),
        image,
        ["original_image", "blended_heat_map"],
        ["all", "all"],
        show_colorbar=True,
        use_pyplot=False,
    )
    assert len(axes) == 2
    _, axis = viz.visualize_image_attr(
        maps[0].permute(1, 2, 0).numpy(), image, method="heat_map", sign="absolute_value", use_pyplot=False
    )
    assert axis.images[0].get_array().shape == (7, 5)


@pytest.mark.parametrize("method", ALL)
def test_data_loader_attribution_refuses_the_maps_cleanly(method: Method, net: nn.Module) -> None:
    with pytest.raises(AssertionError, match="does not support"):
        DataLoaderAttribution(method(net, net.features))


# Copies and moves


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@pytest.mark.parametrize("foil", FOILS)
def test_copied_scores_are_the_same_and_stand_on_their_own(
    duplicate: Callable[[Any], Any], foil: Any, support: SupportSet, x: Tensor
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    scores = SimilarityToSupport(nn.Sequential(*layers).double().eval(), support, foil=foil)
    want = scores(x)
    copied = duplicate(scores)
    assert torch.equal(copied(x), want)
    with torch.no_grad():
        copied.model[4].weight.neg_()
    assert not torch.allclose(copied(x), want)
    assert torch.equal(scores(x), want)


@pytest.mark.parametrize("foil", [*FOILS, "support"])
def test_scores_move_to_another_precision(foil: Any, scores: SimilarityToSupport, x: Tensor) -> None:
    if foil == "support":
        foil = SupportSet(x.flip(0))
    scores = SimilarityToSupport(scores.model, scores.support, foil=foil)
    want = scores(x)
    got = scores.float()(x.float())
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), want, atol=1e-5)


def test_the_state_of_scores_goes_round(
    scores: SimilarityToSupport, make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor], x: Tensor
) -> None:
    state = scores.state_dict()
    assert {key for key in state if not key.startswith("model.")} == {
        "support.inputs",
        "support.labels",
        "support._extra_state",
    }
    other = SimilarityToSupport(
        make_net(head="linear-bias", seed=9), SupportSet(make_images(5, seed=7), [2, 1, 0, 0, 1])
    )
    assert not torch.allclose(other(x), scores(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), scores(x))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("foil", FOILS)
def test_scores_move_to_a_gpu_and_back(foil: Any, net: nn.Module, support: SupportSet, x: Tensor) -> None:
    scores = SimilarityToSupport(net, support, foil=foil)
    want = scores(x)
    assert torch.allclose(scores.cuda()(x.cuda()).cpu(), want, atol=1e-10)
    for method in ALL:
        assert method(scores, net.features).attribute(x.cuda(), target=1).is_cuda
    assert torch.allclose(scores.cpu()(x), want)


# DataParallel


def test_scores_inside_data_parallel_are_refused_with_the_remedy(scores: SimilarityToSupport, net: nn.Module) -> None:
    for method in ALL:
        with pytest.raises(TypeError, match=r"SimilarityToSupport\(DataParallel\(model\), support\)"):
            method(nn.DataParallel(scores), net.features)


def test_a_replica_of_scores_refuses_to_run(scores: SimilarityToSupport, x: Tensor) -> None:
    """It could not tell that the weights have changed since the support was embedded."""
    with pytest.raises(TypeError, match=r"SimilarityToSupport\(DataParallel\(model\), support\)"):
        scores._replicate_for_data_parallel()(x)


def test_scores_around_data_parallel_agree(scores: SimilarityToSupport, net: nn.Module, x: Tensor) -> None:
    parallel = SimilarityToSupport(nn.DataParallel(net), scores.support)
    assert torch.equal(parallel(x), scores(x))
    assert torch.equal(
        LayerGradCam(parallel, net.features).attribute(x, target=1),
        LayerGradCam(scores, net.features).attribute(x, target=1),
    )


# The near-duplicate test of the design: Grad-CAM on the cosine breaks down where the contribution maps do not


def test_near_duplicate_supports_give_the_same_map(make_net: Callable[..., nn.Module], x: Tensor) -> None:
    net = make_net(channels=16)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype)

    def correlation(method: Method) -> float:
        maps = []
        for one in noise:
            scores = [SimilarityToSupport(net, near[None]) for near in x + 1e-3 * one]
            pairs = zip(scores, x, strict=True)
            maps.append(torch.cat([method(s, net.features).attribute(q[None], target=0).flatten(1) for s, q in pairs]))
        return min(torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(*maps, strict=True))

    assert correlation(LayerFAM) > 0.99
    assert correlation(LayerSimilarityCAM) > 0.99
    assert correlation(LayerGradCam) < 0.5
