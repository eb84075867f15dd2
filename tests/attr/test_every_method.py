"""Captum's methods on a similarity: those that work, with their completeness, and those that are refused."""

from __future__ import annotations

from typing import Any

import captum
import pytest
import torch
from captum.attr import LRP, DeepLift, DeepLiftShap, IntegratedGradients, LayerDeepLift, NoiseTunnel
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, MemoryBank, SimilarityToSupport, SupportSet
from captum_fam.similarity import Bilinear


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
        return nn.Sequential(*layers).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 8, 7, generator=torch.Generator().manual_seed(1))


def scores_of(net: nn.Sequential, **options: Any) -> SimilarityToSupport:
    images = torch.rand(6, 3, 8, 7, generator=torch.Generator().manual_seed(2))
    return SimilarityToSupport(net, SupportSet(images, [0, 0, 1, 1, 2, 2]), **options)


@pytest.mark.parametrize("foil", [None, "others"])
@pytest.mark.parametrize("similarity", ["dot", Bilinear(torch.arange(25.0).view(5, 5) / 10)])
def test_deep_lift_of_a_linear_similarity_adds_up(similarity: Any, foil: Any, net: nn.Sequential, x: Tensor) -> None:
    scores, baseline = scores_of(net, similarity=similarity, foil=foil), torch.zeros_like(x)
    attributions, delta = DeepLift(scores).attribute(x, baseline, target=1, return_convergence_delta=True)
    difference = (scores(x) - scores(baseline))[:, 1].detach()
    torch.testing.assert_close(attributions.flatten(1).sum(1).detach(), difference, rtol=1e-4, atol=1e-5)
    assert delta.abs().max() < 1e-5


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_deep_lift_of_another_similarity_is_refused_with_the_reason(
    similarity: str, net: nn.Sequential, x: Tensor
) -> None:
    scores = scores_of(net, similarity=similarity)
    for method, arguments in (
        (DeepLift(scores), (x, 0 * x)),
        (DeepLiftShap(scores), (x, torch.rand(3, 3, 8, 7))),
        (LayerDeepLift(scores, net[1]), (x, 0 * x)),
    ):
        with pytest.raises(TypeError, match=r'DeepLift cannot follow .*similarity="dot"'):
            method.attribute(*arguments, target=1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in scores.modules())
    scores(x)


def test_lrp_is_refused_with_the_reason_and_leaves_the_model_as_it_was(net: nn.Sequential, x: Tensor) -> None:
    scores = scores_of(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(TypeError, match=r"LRP has no rule for a similarity.*LayerSimilarityCAM"):
        LRP(scores).attribute(x, target=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(hasattr(module, "rule") for module in net)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Pooled(nn.Module):
    """A network of modules that LRP has rules for."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 3, bias=False)
            self.relu = nn.ReLU()
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.linear = nn.Linear(6, classes, bias=False) if classes else nn.Identity()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = torch.flatten(self.pool(self.relu(self.conv(x))), 1)
        return self.linear(pooled) if isinstance(self.linear, nn.Linear) else pooled


def test_lrp_adds_up_on_the_linear_form_that_the_refusal_names(x: Tensor) -> None:
    net, whole = Pooled(), Pooled(3)
    images, labels = torch.rand(6, 3, 8, 7), torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.no_grad():
        units = nn.functional.normalize(net(images))
        whole.linear.weight.copy_(torch.stack([units[labels == c].mean(0) for c in range(3)]))
        scores = SimilarityToSupport(net, SupportSet(images, labels))
        torch.testing.assert_close(whole(x) / net(x).norm(dim=1, keepdim=True), scores(x))
    relevance = LRP(whole).attribute(x, target=0).detach()
    torch.testing.assert_close(relevance.flatten(1).sum(1), whole(x)[:, 0].detach(), rtol=1e-3, atol=1e-4)


def test_integrated_gradients_add_up_on_the_cosine(net: nn.Sequential, x: Tensor) -> None:
    scores = scores_of(net, foil="runner-up")
    _, delta = IntegratedGradients(scores).attribute(x, 0.1 * x, target=2, n_steps=200, return_convergence_delta=True)
    assert delta.abs().max() < 2e-2


METHODS = [LayerFAM, LayerSimilarityCAM, LayerCorrespondence]


@pytest.mark.parametrize("method", METHODS)
def test_repeated_inputs_without_a_target_are_refused(method: Any, net: nn.Sequential, x: Tensor) -> None:
    scores = scores_of(net)
    tunnel, noise = NoiseTunnel(method(scores, net[1])), {"nt_samples": 3, "stdevs": 0.1}
    with pytest.raises(ValueError, match=r"target is None.*class of 3 .*target=scores\(inputs\)\.argmax\(1\)"):
        tunnel.attribute(x, **noise)
    target = scores(x).argmax(1)
    assert tunnel.attribute(x, target=target, **noise).shape == (2, 1, 6, 5)
    # A call by hand takes the predicted class.
    torch.testing.assert_close(
        method(scores, net[1]).attribute(x), method(scores, net[1]).attribute(x, target=target), rtol=1e-5, atol=1e-6
    )


def test_repeated_inputs_need_no_target_for_one_class(net: nn.Sequential, x: Tensor) -> None:
    tunnel = NoiseTunnel(LayerFAM(net, net[1]))
    support = torch.rand(3, 3, 8, 7)
    assert tunnel.attribute(x, nt_samples=2, stdevs=0.1, support=support).shape == (2, 1, 6, 5)
    bank = MemoryBank(net(support).detach(), [0, 1, 1], k=1)
    with pytest.raises(ValueError, match="target is None"):
        tunnel.attribute(x, nt_samples=2, stdevs=0.1, support=bank)


@pytest.mark.skipif(captum.__version__.startswith("0.7."), reason="Captum 0.7 fails on a standard deviation per input")
def test_noise_on_any_of_several_inputs_needs_a_target(x: Tensor) -> None:
    def forward(images: Tensor, shift: Tensor) -> Tensor:
        return layer(images).mean((2, 3)) + shift

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3).eval()
    tunnel = NoiseTunnel(LayerFAM(forward, layer, transform=None))
    support, inputs = SupportSet(torch.rand(3, 4), [0, 1, 2]), (x, torch.rand(2, 4))
    assert tunnel.attribute(inputs, nt_samples=3, stdevs=(0.0, 0.0), support=support).shape == (2, 1, 6, 5)
    with pytest.raises(ValueError, match="target is None"):
        tunnel.attribute(inputs, nt_samples=3, stdevs=(0.0, 0.1), support=support)
