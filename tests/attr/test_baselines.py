from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerAttribution
from torch import Tensor, nn

from captum_fam import LayerFAM, SimilarityToSupport, SupportSet, TokenGrid
from captum_fam.attr.baselines import (
    LayerCenterPrior,
    LayerEigenCAM,
    LayerMeanActivation,
    LayerRandom,
    LayerUniform,
)
from captum_fam.metrics import box_from_map, box_iou, centered_box

BASELINES = [LayerUniform, LayerCenterPrior, LayerRandom, LayerMeanActivation, LayerEigenCAM]
MakeNet = Callable[..., Any]
MakeImages = Callable[..., Tensor]


@pytest.mark.parametrize("baseline", BASELINES)
def test_called_like_fam_it_gives_a_map_of_the_layers_size(
    baseline: Any, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(head="linear")
    expected = LayerFAM(net, "features").attribute(queries, supports)
    assert isinstance(expected, Tensor)
    result = baseline(net, "features").attribute(queries, supports, None, None, False, False, True)
    assert result.shape == expected.shape == (2, 1, 7, 5)
    assert result.dtype == expected.dtype == torch.float64
    assert not result.requires_grad
    assert isinstance(baseline(net, net.features), LayerAttribution)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_support_changes_nothing_and_may_be_missing(
    baseline: Any, make_net: MakeNet, queries: Tensor, supports: Tensor
) -> None:
    net = make_net(signed=True)
    without = baseline(net, "features").attribute(queries)
    scores = SimilarityToSupport(net, SupportSet(supports, [0, 1, 1]), foil="others")
    assert without.equal(baseline(net, "features").attribute(queries, support=supports))
    for target in (None, 0, 1):
        assert without.equal(baseline(scores, net.features).attribute(queries, target=target))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shares_of_the_channels_sum_to_the_map(
    baseline: Any, rank: int, make_net: MakeNet, make_images: MakeImages
) -> None:
    net, images = make_net(rank=rank, signed=True), make_images(3, rank)
    method = baseline(net, "features")
    shares = method.attribute(images, attr_dim_summation=False)
    assert shares.shape == net.features(images).shape
    torch.testing.assert_close(shares.sum(1, keepdim=True), method.attribute(images))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_query_has_the_same_map_alone_and_in_a_batch(
    baseline: Any, make_net: MakeNet, make_images: MakeImages
) -> None:
    net, images = make_net(), make_images(5)
    method = baseline(net, "features")
    together = method.attribute(images)
    torch.testing.assert_close(together[3:4], method.attribute(images[3:4]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("baseline", BASELINES)
def test_layer_input_lists_and_relu_are_those_of_captum(baseline: Any, make_net: MakeNet, queries: Tensor) -> None:
    net = make_net(signed=True)
    output = baseline(net, "features").attribute(queries)
    assert baseline(net, "pooling").attribute(queries, attribute_to_layer_input=True).equal(output)
    both = baseline(net, ["features.0", "features"]).attribute(queries)
    assert isinstance(both, list)
    assert both[1].equal(output)
    assert baseline(net, "features").attribute(queries, relu_attributions=True).equal(output.relu())


@pytest.mark.parametrize("baseline", BASELINES)
def test_tokens_are_laid_out_by_the_grid(baseline: Any) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))[:, 0]

    images = torch.rand(2, 3, 12, 20)
    method = baseline(Tokens().eval(), "norm", token_grid=TokenGrid((3, 5)))
    assert method.attribute(images).shape == (2, 1, 3, 5)


def test_uniform_is_one_everywhere(make_net: MakeNet, queries: Tensor) -> None:
    assert LayerUniform(make_net(), "features").attribute(queries).equal(torch.ones(2, 1, 7, 5).double())


def test_mean_activation_is_the_mean_of_captums_layer_activation(make_net: MakeNet, queries: Tensor) -> None:
    net = make_net(signed=True)
    expected = LayerActivation(net, net.features).attribute(queries).mean(1, keepdim=True)
    torch.testing.assert_close(LayerMeanActivation(net, "features").attribute(queries), expected)


def test_center_prior_is_a_gaussian_in_units_of_each_side(make_net: MakeNet, queries: Tensor) -> None:
    result = LayerCenterPrior(make_net(), "features", sigma=0.2).attribute(queries)
    assert isinstance(result, Tensor)
    for i in range(7):
        for j in range(5):
            distance = ((i + 0.5) / 7 - 0.5) ** 2 + ((j + 0.5) / 5 - 0.5) ** 2
            assert result[0, 0, i, j].item() == pytest.approx(np.exp(-distance / (2 * 0.2**2)))
    assert result[0].equal(result[1])


def test_centered_box_is_exact_on_the_inputs_grid(make_net: MakeNet) -> None:
    images = torch.rand(2, 3, 30, 50, dtype=torch.float64)
    result = LayerCenterPrior(make_net(), "features", box=0.6).attribute(images)
    assert isinstance(result, Tensor)
    expected = centered_box((30, 50), 0.6)
    assert box_from_map(result).tolist() == [expected.tolist()] * 2
    torch.testing.assert_close(box_iou(result, expected.expand(2, 4), (30, 50)), torch.ones(2).double())


@pytest.mark.parametrize(("options", "message"), [({"sigma": 0.0}, "sigma must"), ({"box": 1.5}, "box must be in")])
def test_impossible_priors_are_refused(options: dict[str, float], message: str, make_net: MakeNet) -> None:
    with pytest.raises(ValueError, match=message):
        LayerCenterPrior(make_net(), "features", **options)  # type: ignore[arg-type]


def test_random_maps_follow_from_seed_and_query_alone(make_net: MakeNet, make_images: MakeImages) -> None:
    images = make_images(3)
    state = torch.get_rng_state()
    first = LayerRandom(make_net(seed=0), "features", seed=5).attribute(images)
    # another model, another order, another time
    again = LayerRandom(make_net(seed=1), "features", seed=5).attribute(images.flip(0))
    assert isinstance(first, Tensor)
    assert isinstance(again, Tensor)
    assert torch.get_rng_state().equal(state)
    assert again.flip(0).equal(first)
    assert not first[0].equal(first[1])
    assert not LayerRandom(make_net(), "features", seed=6).attribute(images).equal(first)  # type: ignore[union-attr]


def test_random_maps_are_uniform_in_the_unit_interval(make_net: MakeNet, make_images: MakeImages) -> None:
    values = LayerRandom(make_net(), "features").attribute(make_images(200))
    assert isinstance(values, Tensor)
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
def test_random_maps_take_queries_of_any_type(dtype: torch.dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x.float()).mean((2, 3))

    images = (torch.rand(2, 3, 5, 4) * 255).to(dtype)
    result = LayerRandom(Net(), "act").attribute(images)
    assert isinstance(result, Tensor)
    assert result.dtype == torch.float32
    assert result.shape == (2, 1, 5, 4)


def reference_eigen(activation: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """By the full decomposition, one sample at a time."""
    maps = []
    for sample in activation.double().numpy():
        matrix = sample.reshape(len(sample), -1).T
        _, _, vh = np.linalg.svd(matrix)
        projection = matrix @ vh[0]
        maps.append((projection * np.sign(projection.mean())).reshape(sample.shape[1:]))
    return np.stack(maps)


@pytest.mark.parametrize("channels", [4, 60])
@pytest.mark.parametrize("signed", [False, True])
def test_eigen_cam_is_the_projection_on_the_first_singular_vector(
    channels: int, signed: bool, make_net: MakeNet, make_images: MakeImages
) -> None:
    # 4 channels of 35 positions, and 60: both Gram matrices
    net, images = make_net(channels=channels, signed=signed), make_images(4)
    result = LayerEigenCAM(net, "features").attribute(images)
    assert isinstance(result, Tensor)
    np.testing.assert_allclose(
        result[:, 0].numpy(), reference_eigen(net.features(images).detach()), rtol=1e-8, atol=1e-10
    )


def test_eigen_cam_of_non_negative_activations_is_non_negative(make_net: MakeNet, make_images: MakeImages) -> None:
    result = LayerEigenCAM(make_net(), "features").attribute(make_images(6))
    assert isinstance(result, Tensor)
    assert result.min() >= -1e-12


def test_eigen_cam_scales_with_the_activation_and_is_zero_where_that_is(make_net: MakeNet, queries: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.layer = nn.ReLU()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.scale).mean((2, 3)) + 1

    def maps(scale: float) -> Tensor:
        result = LayerEigenCAM(Scaled(scale), "layer").attribute(queries.float())
        assert isinstance(result, Tensor)
        return result

    for scale in (1e-25, 1e25):
        torch.testing.assert_close(maps(scale) / scale, maps(1.0), rtol=1e-4, atol=1e-6)
    assert maps(0.0).equal(torch.zeros(2, 1, 7, 5))
