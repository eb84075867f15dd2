"""GAP, GMP, LSE, GeM and attention pooling against loops, their limits, and the property that makes maps complete."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from captum_fam import LayerSimilarityCAM
from captum_fam import functional as F
from captum_fam.pooling import GAP, GMP, LSE, AttentionPooling, GeM
from tests import reference

POOLINGS: dict[str, nn.Module] = {"gap": GAP(), "gmp": GMP(), "lse": LSE(sharpness=2.0), "gem": GeM()}
SIZES = [(9,), (4, 3), (2, 3, 2)]


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES, ids=["1-d", "2-d", "3-d"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_equals_the_loops_of_the_reference(kind: str, size: tuple[int, ...]) -> None:
    activation = torch.randn(2, 5, *size, dtype=torch.float64)
    expected = np.stack([reference.pool(one.numpy(), kind) for one in activation])
    torch.testing.assert_close(POOLINGS[kind](activation), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=["1-d", "2-d", "3-d"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_gradient_equals_the_slope_of_the_reference(kind: str, size: tuple[int, ...]) -> None:
    activation = torch.randn(2, 5, *size, dtype=torch.float64)
    activation[0, 0].fill_(0.5)  # ties of the maximum
    activation[0, 1].fill_(0.0)  # a dead channel
    leaf = activation.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(POOLINGS[kind](leaf).sum(), leaf)
    expected = np.stack([reference.pool_slope(one.numpy(), kind) for one in activation])
    torch.testing.assert_close(gradient, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_poolings_by_hand() -> None:
    activation = double([[[1.0, 3.0]]])
    assert GAP()(activation).item() == 2
    assert GMP()(activation).item() == 3
    assert GeM(exponent=2)(activation).item() == pytest.approx(math.sqrt(5))
    assert LSE(sharpness=1)(activation).item() == pytest.approx(math.log((math.e + math.e**3) / 2))


def test_each_channel_and_sample_is_pooled_on_its_own() -> None:
    activation = double([[[1, 3], [5, 5]], [[0, 0], [2, 4]]])
    assert GAP()(activation).tolist() == [[2, 5], [0, 3]]
    assert GMP()(activation).tolist() == [[3, 5], [0, 4]]


@pytest.mark.parametrize("pooling", [GAP(), GMP(), GeM()], ids=["gap", "gmp", "gem"])
def test_gap_gmp_and_gem_are_homogeneous_of_degree_one(pooling: nn.Module) -> None:
    activation = (torch.rand(2, 3, 4, 5, dtype=torch.float64) + 0.1).requires_grad_()
    pooled = pooling(activation)
    torch.testing.assert_close(pooling(2.5 * activation), 2.5 * pooled)
    (gradient,) = torch.autograd.grad(pooled.sum(), activation)
    torch.testing.assert_close((gradient * activation).flatten(2).sum(2), pooled)  # Euler


def test_lse_is_not_homogeneous() -> None:
    activation = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert (LSE()(2 * activation) - 2 * LSE()(activation)).abs().min() > 1e-2


def test_lse_lies_between_gap_and_gmp_and_tends_to_them() -> None:
    activation = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    average, largest = GAP()(activation), GMP()(activation)
    assert ((average < LSE()(activation)) & (LSE()(activation) < largest)).all()
    torch.testing.assert_close(LSE(1e-6)(activation), average, rtol=1e-5, atol=0)
    torch.testing.assert_close(LSE(1e5)(activation), largest, rtol=1e-4, atol=0)


def test_gem_of_exponent_one_is_gap_and_of_a_large_one_gmp() -> None:
    activation = torch.rand(2, 3, 7, 5, dtype=torch.float64) + 0.1
    torch.testing.assert_close(GeM(1)(activation), GAP()(activation))
    torch.testing.assert_close(GeM(5000)(activation), GMP()(activation), rtol=1e-3, atol=0)


def test_gem_cuts_negative_activations() -> None:
    assert GeM(2)(double([[[-5.0, 1.0]]])).item() == pytest.approx(math.sqrt(0.5))
    assert GeM()(double([[[-5.0, 0.0]]])).item() == pytest.approx(F.EPSILON)


@pytest.mark.parametrize("exponent", [3.0, 8.0, 40.0])
@pytest.mark.parametrize("scale", [3e-6, 1e-3, 1.0, 1e4])
def test_gem_and_its_gradient_stay_right_where_powers_leave_float32(exponent: float, scale: float) -> None:
    activation = (scale * torch.rand(2, 3, 4, 5)).clamp_min(2e-6)
    leaf, exact = activation.clone().requires_grad_(), activation.double().requires_grad_()
    pooled = GeM(exponent)(leaf)
    expected = np.stack([reference.pool(one.numpy(), "gem", exponent=exponent) for one in exact.detach()])
    torch.testing.assert_close(pooled.double(), torch.from_numpy(expected), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(pooled.sum(), leaf)
    slope = np.stack([reference.pool_slope(one.numpy(), "gem", exponent=exponent) for one in exact.detach()])
    torch.testing.assert_close(gradient.double(), torch.from_numpy(slope), rtol=1e-4, atol=1e-6)


def test_lse_of_large_activations_does_not_overflow() -> None:
    assert LSE()(torch.full((1, 1, 3, 3), 1e4)).item() == pytest.approx(1e4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", POOLINGS)
def test_half_precision_is_pooled_in_float32(kind: str, dtype: torch.dtype) -> None:
    activation = torch.rand(2, 3, 40, 30).to(dtype)
    pooled = POOLINGS[kind](activation)
    assert pooled.dtype == dtype
    exact = POOLINGS[kind](activation.double())
    torch.testing.assert_close(pooled.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_sharpness_or_exponent_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"sharpness .*{value}"):
        LSE(value)
    with pytest.raises(ValueError, match=f"exponent .*{value}"):
        GeM(value)


def test_modules_show_their_parameter() -> None:
    assert repr(LSE(5.0)) == "LSE(sharpness=5.0)"
    assert repr(GeM(2.5)) == "GeM(exponent=2.5)"


@pytest.mark.parametrize("size", SIZES, ids=["1-d", "2-d", "3-d"])
def test_attention_pooling_is_a_mean_weighted_by_the_softmax_of_the_query(size: tuple[int, ...]) -> None:
    activation = torch.randn(2, 5, *size, dtype=torch.float64)
    pooling = AttentionPooling(5).double()
    nn.init.normal_(pooling.query)
    query = pooling.query.tolist()
    for image, pooled in zip(activation.flatten(2).tolist(), pooling(activation).tolist(), strict=True):
        positions = list(zip(*image, strict=True))
        weights = [math.exp(sum(q * a for q, a in zip(query, one, strict=True)) / math.sqrt(5)) for one in positions]
        for channel, value in enumerate(pooled):
            expected = sum(w * one[channel] for w, one in zip(weights, positions, strict=True)) / sum(weights)
            assert value == pytest.approx(expected, rel=1e-12)


def test_attention_pooling_begins_as_gap_and_keeps_the_type() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):
        activation = torch.rand(2, 3, 4, 5).to(dtype)
        pooled = AttentionPooling(3)(activation)
        assert pooled.dtype == dtype
        torch.testing.assert_close(pooled, GAP()(activation.double()).to(dtype))


def test_the_exact_map_of_attention_pooling_holds_its_weights_and_adds_up() -> None:
    features, pooling, head = nn.Conv2d(3, 4, 3), AttentionPooling(4), nn.Linear(4, 3, bias=False)
    nn.init.normal_(pooling.query)
    net = nn.Sequential(features, pooling, head).double().eval()
    queries, support = torch.randn(2, 3, 7, 5, dtype=torch.float64), torch.randn(3, 3, 7, 5, dtype=torch.float64)
    cam = LayerSimilarityCAM(net, features, similarity="dot")
    details = cam.details(queries, support=support)
    with torch.no_grad():
        activation = features(queries)
        logits = torch.einsum("bnhw,n->bhw", activation, pooling.query) / 2
        weights = logits.flatten(1).softmax(1).view_as(logits)
        u = net(support).mean(0) @ head.weight
        expected = weights * torch.einsum("bnhw,n->bhw", activation, u)
        score = net(queries) @ net(support).mean(0)
    torch.testing.assert_close(details.attributions, expected[:, None])
    torch.testing.assert_close(details.attributions.sum((1, 2, 3)), score)


def test_attention_pooling_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 3, \*spatial\).*got \(2, 4, 5, 5\)"):
        AttentionPooling(3)(torch.rand(2, 4, 5, 5))
    assert repr(AttentionPooling(3)) == "AttentionPooling(channels=3)"
