"""Embeddings are never those of another model, or of other weights."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet
from tests.support.passes import embedded

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")


# What makes embeddings stale: each change must be followed by new embeddings, equal to those of a fresh support


Change = Callable[[nn.Module], Any]


def _step(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(2, 3, 7, 5, dtype=torch.float64)).square().sum().backward()
    optimizer.step()


def _load(net: nn.Module, assign: bool = False) -> None:
    net.load_state_dict({name: -2 * value for name, value in net.state_dict().items()}, assign=assign)


def _momentum(net: nn.Module) -> None:
    """The update of a momentum encoder, an even number of times: the memory of the weights is used again."""
    for parameter in net.parameters():
        memory = parameter.data
        parameter.data = memory * 0.9 + 0.1
        parameter.data = memory.copy_(parameter.data * 0.9 + 0.1)


def _in_place_data(net: nn.Module) -> None:
    net.features[0].weight.data.mul_(-1)


def _swap_pooling(net: nn.Module) -> None:
    net.pooling = type("Max", (nn.Module,), {"forward": lambda self, a: a.amax((2, 3))})().eval()


def _patch_forward(net: nn.Module) -> None:
    net.pooling.forward = lambda activation: activation.amax((2, 3))


def _new_attribute(net: nn.Module) -> None:
    net.normalize = True


CHANGES: dict[str, Change] = {
    "optimizer step": _step,
    "load_state_dict": _load,
    "load_state_dict(assign=True)": functools.partial(_load, assign=True),
    "parameter.data assigned": _momentum,
    "parameter.data in place": _in_place_data,
    "swapped submodule": _swap_pooling,
    "patched forward": _patch_forward,
    "changed setting": _new_attribute,
    "half precision and back": lambda net: net.half().double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_embeds_its_support_anew(change: Change, net: nn.Module, images: Tensor) -> None:
    support, x = SupportSet(images[:2]), images[2:]
    scores, fam = SimilarityToSupport(net, support, similarity="dot"), LayerSimilarityCAM(net, net.features)
    before = [embedded(support, net), scores(x), fam.attribute(x, support)]
    change(net)
    after = [embedded(support, net), scores(x), fam.attribute(x, support)]
    fresh = SupportSet(images[:2])
    want = [embedded(fresh, net), SimilarityToSupport(net, fresh, similarity="dot")(x), fam.attribute(x, fresh)]
    for new, right in zip(after, want, strict=True):
        assert torch.equal(new, right)
    for old, new in zip(before[:2], after[:2], strict=True):  # a normalization leaves the map of the cosine
        assert not torch.allclose(new, old, rtol=1e-6)


def test_a_switch_to_training_mode_embeds_anew(net: nn.Module, images: Tensor) -> None:
    net.features.append(nn.Dropout(0.5).eval())
    support = SupportSet(images)
    quiet = embedded(support, net)
    assert not torch.allclose(embedded(support, net.train()), quiet)
    assert torch.equal(embedded(support, net.eval()), quiet)


def test_moving_batch_norm_statistics_are_followed(images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    support = SupportSet(images)
    embedded(support, net.train())  # moves the statistics
    assert torch.equal(embedded(support, net.eval()), net(images))
    net.train()(images * 3)
    assert torch.equal(embedded(support, net.eval()), net(images))


def test_another_autocast_mode_embeds_anew(make_net: Callable[..., nn.Module], images: Tensor) -> None:
    net, support = make_net(head="linear").float(), SupportSet(images.float())
    plain = embedded(support, net)
    with torch.autocast("cpu", torch.bfloat16):
        assert embedded(support, net).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert embedded(support, net).dtype == torch.float16
    assert torch.equal(embedded(support, net), plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda support, images: support.load_state_dict(SupportSet(images).state_dict()),
        lambda support, images: support.inputs.copy_(images),
        lambda support, images: support.inputs.data.copy_(images),
        lambda support, images: setattr(support, "inputs", images),
    ],
)
def test_exchanged_images_are_embedded_anew(change: Callable[..., Any], net: nn.Module, images: Tensor) -> None:
    support, x, others = SupportSet(images[:2].clone()), images[3:], images[2:] * 2
    scores = SimilarityToSupport(net, support, similarity="dot")
    of_foil = SimilarityToSupport(net, images, similarity="dot", foil=support)
    before = [embedded(support, net), scores(x), of_foil(x)]
    change(support, others)
    fresh = [
        net(others),
        SimilarityToSupport(net, others, similarity="dot")(x),
        SimilarityToSupport(net, images, similarity="dot", foil=others)(x),
    ]
    for old, new, right in zip(before, [embedded(support, net), scores(x), of_foil(x)], fresh, strict=True):
        assert torch.allclose(new, right, atol=1e-14)
        assert not torch.allclose(new, old)


def test_exchanged_labels_foil_and_aggregate_are_followed(net: nn.Module, images: Tensor) -> None:
    scores = SimilarityToSupport(net, SupportSet(images, [0, 1, 0, 1]))
    scores(images)
    scores.support.labels.copy_(torch.tensor([1, 0, 0, 1]))
    assert torch.equal(scores(images), SimilarityToSupport(net, SupportSet(images, [1, 0, 0, 1]))(images))
    scores.foil = "others"
    assert torch.equal(scores(images), SimilarityToSupport(net, scores.support, foil="others")(images))
    scores.aggregate = "prototype"
    want = SimilarityToSupport(net, scores.support, foil="others", aggregate="prototype")
    assert torch.equal(scores(images), want(images))
    scores.support = SupportSet(images[:2], [0, 1])
    want = SimilarityToSupport(net, scores.support, foil="others", aggregate="prototype")
    assert torch.equal(scores(images), want(images))


# One model's embeddings are never lent to another


def test_two_models_have_each_their_own_embeddings(net: nn.Module, other_net: nn.Module, images: Tensor) -> None:
    support = SupportSet(images)
    for _ in range(2):
        assert torch.equal(embedded(support, net), net(images))
        assert torch.equal(embedded(support, other_net), other_net(images))


def test_a_copied_model_is_another_model(net: nn.Module, images: Tensor) -> None:
    support = SupportSet(images)
    embedded(support, net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head.weight.neg_()
    assert torch.equal(embedded(support, twin), twin(images))
    assert torch.equal(embedded(support, net), net(images))


def test_models_that_follow_each_other_at_one_address_are_told_apart(
    make_net: Callable[..., nn.Module], images: Tensor
) -> None:
    support = SupportSet(images)
    for seed in range(8):
        net = make_net(head="linear", seed=seed)
        assert torch.equal(embedded(support, net), net(images))
        del net


def test_methods_of_one_model_are_told_apart(images: Tensor) -> None:
    class Siamese(nn.Module):
        def left(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

        def right(self, x: Tensor) -> Tensor:
            return x.amax((2, 3))

        forward = left

    net, support = Siamese(), SupportSet(images)
    for _ in range(2):
        assert torch.equal(embedded(support, net.left), net.left(images))
        assert torch.equal(embedded(support, net.right), net.right(images))
        assert torch.equal(embedded(support, net), net.left(images))
    same_name = [types.MethodType(lambda self, x, d=d: x.flatten(2).std(2) * d, net) for d in (1, 2)]
    assert torch.equal(embedded(support, same_name[1]), 2 * embedded(support, same_name[0]))


@pytest.mark.parametrize("compile_part", [torch.jit.script, lambda part: torch.jit.trace(part, torch.rand(2, 3))])
def test_the_weights_of_a_compiled_part_are_seen(compile_part: Callable[[nn.Module], nn.Module]) -> None:
    head = nn.Linear(3, 4, bias=False)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), compile_part(head)).eval()
    queries, images = torch.rand(2, 3, 7, 5), torch.rand(3, 3, 7, 5)
    scores = SimilarityToSupport(model, images)
    with torch.no_grad():
        before = scores(queries)
        head.weight.copy_(torch.rand(4, 3))
        after = scores(queries)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, SimilarityToSupport(model, images)(queries))
