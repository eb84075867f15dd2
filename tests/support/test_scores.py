"""The scores against a support: what they cost, what they follow, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from tests.support.passes import counted

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")


# Passes through the model


def test_a_set_that_was_embedded_costs_no_pass_in_any_number_of_calls(net: nn.Module, images: Tensor) -> None:
    support, x = SupportSet(images, [0, 1, 0, 1]).embed(net), images.flip(3)[:3]
    with counted(net) as passes:
        for _ in range(2):
            for method in (LayerFAM, LayerSimilarityCAM):
                method(net, net.features).attribute(x, support, target=1)
        SimilarityToSupport(net, support, foil="others")(x)
    assert passes == [3, 3, 3, 3, 3]


def test_images_are_embedded_in_every_call_of_a_method(net: nn.Module, images: Tensor) -> None:
    support, x = SupportSet(images, [0, 1, 0, 1]), images.flip(3)[:3]
    with counted(net) as passes:
        for _ in range(2):
            LayerFAM(net, net.features).attribute(x, support, target=1)
    assert passes == [4, 3, 4, 3]


def test_any_number_of_supports_costs_one_pass_of_the_queries(
    net: nn.Module, make_images: Callable[..., Tensor]
) -> None:
    x = make_images(2, seed=1)
    for count in (1, 5, 40):
        support = SupportSet(make_images(count, seed=3)).embed(net)
        with counted(net) as passes:
            LayerFAM(net, net.features).attribute(x, support)
        assert passes == [2]


def test_scores_embed_once_for_any_number_of_forward_passes(net: nn.Module, images: Tensor) -> None:
    with counted(net) as passes:
        scores = SimilarityToSupport(net, images, foil=SupportSet(images[:2].flip(2)))
        for _ in range(3):
            scores(images[:1])
    assert passes == [4, 2, 1, 1, 1]


# Callables


def test_scores_of_a_plain_function_embed_in_every_call(net: nn.Module, other_net: nn.Module, images: Tensor) -> None:
    nets = [net]
    scores = SimilarityToSupport(lambda x: nets[0](x), images, similarity="dot")
    before = scores(images)
    with counted(net) as passes:
        assert torch.equal(scores(images), before)
    assert passes == [4, 4]
    nets[0] = other_net
    assert torch.equal(scores(images), SimilarityToSupport(other_net, images, similarity="dot")(images))
    assert not torch.allclose(scores(images), before)


def test_scores_of_a_method_follow_its_object(net: nn.Module, images: Tensor) -> None:
    scores = SimilarityToSupport(net.forward, images, similarity="dot")
    with counted(net) as passes:
        before = scores(images)
    assert len(passes) == 0  # a method is called past the hooks of the module
    with torch.no_grad():
        net.head.weight.neg_()
    assert torch.equal(scores(images), SimilarityToSupport(net, images, similarity="dot")(images))
    assert not torch.allclose(scores(images), -before)


# Inference mode and autocast


def test_scores_refreshed_in_inference_mode_are_usable_outside(net: nn.Module, images: Tensor) -> None:
    scores = SimilarityToSupport(net, SupportSet(images, [0, 1, 0, 1]), aggregate="prototype", foil="others")
    with torch.no_grad():
        net.head.weight.neg_()
    with torch.inference_mode():
        scores(images)
    x = images.clone().requires_grad_()
    scores(x).sum().backward()
    assert x.grad is not None


def test_prototypes_and_scores_are_not_rounded_by_autocast(make_net: Callable[..., nn.Module], images: Tensor) -> None:
    net, images = make_net(head="linear").float(), images.float()
    embeddings = net(images).detach()
    scores = SimilarityToSupport(lambda x: net(x).float(), SupportSet(embeddings, [0, 1, 0, 0]), aggregate="prototype")
    want = (
        nn.functional.normalize(embeddings)
        @ nn.functional.normalize(torch.stack([embeddings[[0, 2, 3]].mean(0), embeddings[1]])).T
    )
    with torch.autocast("cpu", torch.bfloat16):
        embedded = net(images).float()
        got = scores(images)
        details = LayerFAM(lambda x: net(x).float(), net.features).details(images, scores.support)
    assert torch.allclose(got, want, atol=2e-2)  # the embedding itself is in half precision
    exact = (
        nn.functional.normalize(embedded)
        @ nn.functional.normalize(torch.stack([embeddings[[0, 2, 3]].mean(0), embeddings[1]])).T
    )
    assert torch.allclose(got, exact, atol=1e-6)
    means = nn.functional.normalize(embedded) @ nn.functional.normalize(embeddings).T
    by_class = torch.stack([means[:, [0, 2, 3]].mean(1), means[:, 1]], 1)
    assert torch.allclose(details.comparison.scores, by_class, atol=1e-6)


# What the scores refuse


def test_unknown_choices_of_scores_are_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"foil .*'other'"):
        SimilarityToSupport(net, images, foil="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"aggregate .*'median'"):
        SimilarityToSupport(net, images, aggregate="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"similarity .*'cosin'"):
        SimilarityToSupport(net, images, similarity="cosin")
    with pytest.raises(TypeError, match=r"similarity .*int"):
        SimilarityToSupport(net, images, similarity=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("foil", ["others", "runner-up"])
def test_a_foil_among_one_class_is_refused(foil: Any, net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match=f"foil='{foil}' .*two classes"):
        SimilarityToSupport(net, images, foil=foil)


def test_a_foil_of_another_length_is_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"foil .*7 features .*4"):
        SimilarityToSupport(net, images, foil=torch.ones(2, 7))


def test_a_query_of_another_length_is_refused(net: nn.Module, images: Tensor) -> None:
    scores = SimilarityToSupport(net, torch.ones(2, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"support .*7 features .*4"):
        scores(images)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: (x.mean((2, 3)), x), TypeError, r"the model must give .*tuple"),
        (lambda x: x, ValueError, r"the model must give .*\(4, 3, 7, 5\)"),
        (lambda x: x.mean(), ValueError, r"the model must give .*\(\)"),
        (lambda x: x.mean((2, 3)) / 0, ValueError, "support.*NaN"),
    ],
)
def test_a_model_that_gives_no_embedding_is_refused(
    model: Callable[[Tensor], Any], error: type[Exception], message: str, images: Tensor
) -> None:
    with pytest.raises(error, match=message):
        SimilarityToSupport(model, images)


def test_images_of_whole_numbers_are_the_model_s_business(images: Tensor) -> None:
    whole = (10 * images).abs().to(torch.uint8)
    scores = SimilarityToSupport(lambda x: x.double().flatten(1), SupportSet(whole, range(4)))
    torch.testing.assert_close(scores(whole).diagonal(), torch.ones(4, dtype=torch.float64))
