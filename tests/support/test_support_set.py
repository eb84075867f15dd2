"""Supports as data, their embeddings through time, and the scores against them."""

from __future__ import annotations

import copy
import functools
import pickle
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.embedding.forward import check_embedding, embed_images
from captum_fam.similarity import Dot
from captum_fam.support.checks import check_embedding_sizes, check_support_tensor
from tests.perturbed_products import PerturbedProducts

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear")


@pytest.fixture
def other_net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(head="linear", seed=7)


@pytest.fixture
def images(make_images: Callable[..., Tensor]) -> Tensor:
    return make_images(4, seed=2)


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """The batch sizes of the passes through ``net``."""
    passes: list[int] = []
    handle = net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    yield passes
    handle.remove()


def embedded(support: SupportSet, forward_func: Callable[..., Any], args: Any = None) -> Tensor:
    """The embeddings ``(K, J)`` of a support under a model."""
    return support.embed(forward_func, args).embeddings()


# Labels and names


def test_supports_without_labels_are_of_one_class(images: Tensor) -> None:
    support = SupportSet(images)
    assert support.labels.tolist() == [0, 0, 0, 0]
    assert support.class_names == ("0",)
    assert (len(support), support.n_classes) == (4, 1)


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 2, 1],
        (1, 0, 2, 1),
        torch.tensor([1, 0, 2, 1]),
        torch.tensor([1, 0, 2, 1], dtype=torch.int32),
        np.array([1, 0, 2, 1]),
    ],
)
def test_labels_may_be_integers_in_any_container(labels: Any, images: Tensor) -> None:
    support = SupportSet(images, labels)
    assert support.labels.tolist() == [1, 0, 2, 1]
    assert support.labels.dtype == torch.int64
    assert support.class_names == ("0", "1", "2")


@pytest.mark.parametrize("container", [list, tuple, np.array])
def test_labels_may_be_names_which_are_sorted(container: Callable[[Any], Any], images: Tensor) -> None:
    support = SupportSet(images, container(["wren", "jay", "tit", "wren"]))
    assert support.class_names == ("jay", "tit", "wren")
    assert support.labels.tolist() == [2, 0, 1, 2]


def test_class_names_give_the_order_of_names_and_the_names_of_integers(images: Tensor) -> None:
    ordered = SupportSet(images, ["wren", "jay", "tit", "wren"], class_names=["wren", "tit", "jay"])
    assert ordered.labels.tolist() == [0, 2, 1, 0]
    assert ordered.class_names == ("wren", "tit", "jay")
    assert SupportSet(images, [1, 0, 1, 0], class_names=["wren", "tit"]).class_names == ("wren", "tit")
    assert SupportSet(images, class_names=["wren"]).class_names == ("wren",)


@pytest.mark.parametrize(
    ("labels", "class_names", "error", "message"),
    [
        ([0, 1], None, ValueError, r"labels must have one entry per support: got 2 labels for 4 supports"),
        (torch.zeros(5), None, ValueError, r"got 5 labels for 4 supports"),
        ([0, 2, 0, 2], None, ValueError, r"every class index 0\.\.2 at least once, got \[0, 2\].*names as labels"),
        ([-1, 0, 1, 0], None, ValueError, r"at least once, got \[-1, 0, 1\]"),
        ([0, 0, 1, 1], ["jay"], ValueError, r"every class index 0\.\.0"),
        ([0, 0, 1, 1], ["jay", "tit", "wren"], ValueError, r"every class index 0\.\.2 at least once, got \[0, 1\]"),
        (["jay", "tit", "jay", "wren"], ["jay", "tit"], ValueError, r"class_names lacks the label\(s\) wren"),
        ("wren", None, TypeError, r"labels must be one index or name for each support, got the single name 'wren'"),
        ([0.0, 1.0, 0.0, 1.0], None, TypeError, r"labels must be integers or names.*got float"),
        (torch.tensor([0.0, 1.7, 0.2, 1.0]), None, TypeError, r"labels must be integers or names.*got float"),
        (["jay", 1, "jay", 1], None, TypeError, r"labels must be integers or names, not both, got int, str"),
        (torch.zeros(4, 1, dtype=torch.int64), None, TypeError, r"labels must be integers or names.*got list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: Any, class_names: Any, error: type[Exception], message: str, images: Tensor
) -> None:
    with pytest.raises(error, match=message):
        SupportSet(images, labels, class_names)


def test_a_batch_size_below_one_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SupportSet(images, batch_size=0)


@pytest.mark.parametrize(
    ("support", "error", "message"),
    [
        ("birds/", TypeError, "support must be a tensor or a Support .*, got str"),
        (np.zeros((2, 3)), TypeError, "got ndarray"),
        (torch.zeros(3), ValueError, r"images \(K, C, H, W\) or embeddings \(K, J\), got shape \(3,\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, r"support is empty: got shape \(0, 3, 4, 4\)"),
        (torch.zeros(2, 0), ValueError, r"support is empty: got shape \(2, 0\)"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "support contains NaN or inf"),
        (torch.tensor([[1.0, float("-inf")]]), ValueError, "support contains NaN or inf"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, r"support must hold real.*\(K, J\) of a.*got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, r"support must hold real numbers.*got torch.complex64"),
        (torch.ones(2, 3, 4, 4, dtype=torch.complex64), TypeError, r"support must hold.*images of.*torch.complex64"),
    ],
)
def test_a_support_that_is_none_is_refused(support: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SupportSet(support)
    with pytest.raises(error, match=message):
        check_support_tensor(support)


def test_what_prints_says_what_is_held(images: Tensor) -> None:
    assert "images (4, 3, 7, 5), n_classes=2" in repr(SupportSet(images, [0, 1, 0, 1]))
    assert "embeddings (2, 8), n_classes=1" in repr(SupportSet(torch.ones(2, 8)))


# Embeddings


def test_embeddings_are_taken_as_they_are(net: nn.Module) -> None:
    embeddings = torch.randn(3, 4, dtype=torch.float64)
    support = SupportSet(embeddings)
    assert support.holds_embeddings
    with counted(net) as passes:
        assert torch.equal(embedded(support, net), embeddings)
    assert passes == []


def test_images_are_embedded_in_chunks_without_a_graph(net: nn.Module, images: Tensor) -> None:
    support = SupportSet(images, batch_size=3)
    assert not support.holds_embeddings
    with counted(net) as passes:
        embeddings = embedded(support, net)
    assert passes == [3, 1]
    assert not embeddings.requires_grad
    assert torch.allclose(embeddings, net(images), atol=1e-15)


def test_a_support_with_a_graph_is_detached_and_can_be_copied(net: nn.Module, images: Tensor) -> None:
    embeddings = net(images)
    assert embeddings.requires_grad
    copied = copy.deepcopy(SupportSet(embeddings))
    assert not copied.inputs.requires_grad
    assert torch.equal(copied.inputs, embeddings)


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


def test_additional_arguments_are_never_mixed_up(net: nn.Module, images: Tensor) -> None:
    def forward(x: Tensor, factor: float) -> Tensor:
        return net(x) * factor

    support = SupportSet(images)
    assert torch.equal(embedded(support, forward, (2.0,)), 2 * net(images))
    assert torch.equal(embedded(support, forward, (3.0,)), 3 * net(images))


# Copies, precision, files


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copied_support_is_equal_and_embeds_alike(
    duplicate: Callable[[Any], Any], net: nn.Module, images: Tensor
) -> None:
    support = SupportSet(images, ["jay", "tit", "jay", "tit"], batch_size=3)
    copied = duplicate(support)
    assert torch.equal(copied.inputs, support.inputs)
    assert torch.equal(copied.labels, support.labels)
    assert (copied.class_names, copied.batch_size) == (support.class_names, 3)
    assert torch.equal(embedded(copied, net), embedded(support, net))


def test_a_support_moves_to_another_precision(net: nn.Module, images: Tensor) -> None:
    support = SupportSet(images, [0, 1, 1, 0])
    embedded(support, net)
    moved = support.to(torch.float32)
    assert moved.inputs.dtype == torch.float32
    assert moved.labels.dtype == torch.int64
    assert torch.equal(embedded(moved, net.float()), net(images.float()))


def test_the_state_of_a_support_goes_round(images: Tensor) -> None:
    support, other = SupportSet(images, [0, 1, 1, 0]), SupportSet(images * 0 + 1, [1, 0, 1, 0])
    assert set(support.state_dict()) == {"inputs", "labels", "_extra_state"}
    other.load_state_dict(support.state_dict())
    assert torch.equal(other.inputs, images)
    assert other.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("way", ["torch", "safetensors"])
@pytest.mark.parametrize("nested", [False, True])
def test_class_names_go_round_with_the_state(
    nested: bool, way: str, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    names = ("Zaunkönig", 'a "jay", blue')
    support, other = SupportSet(images, [0, 1, 1, 0], names), SupportSet(images * 0 + 1, [1, 0, 1, 0])
    source, target = (SimilarityToSupport(net, one) if nested else one for one in (support, other))
    if way == "torch":
        torch.save(source.state_dict(), tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(source.state_dict(), tmp_path / "state")
        state = safetensors.load_file(tmp_path / "state")
    target.load_state_dict(state)
    assert other.class_names == names
    assert target.class_names == names
    assert copy.deepcopy(other).class_names == names


def test_a_state_without_class_names_is_refused_unless_told_otherwise(images: Tensor) -> None:
    support, other = SupportSet(images, ["wren", "jay", "jay", "wren"]), SupportSet(images, [1, 1, 0, 0], ["a", "b"])
    state = {name: support.state_dict()[name] for name in ("inputs", "labels")}
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    assert other.class_names == ("a", "b")
    assert other.labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_that_does_not_fit_leaves_the_class_names(strict: bool, images: Tensor) -> None:
    support = SupportSet(images, ["wren", "jay", "jay", "wren"])
    five = SupportSet(torch.cat([images, images[:1]]), ["kea", "emu", "emu", "owl", "kea"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        support.load_state_dict(five.state_dict(), strict=strict)
    assert support.class_names == ("jay", "wren")
    nameless = {name: SupportSet(images, [0, 1, 2, 2]).state_dict()[name] for name in ("inputs", "labels")}
    with pytest.raises(RuntimeError, match="2 names for 3 classes"):
        support.load_state_dict(nameless, strict=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_a_state_made_useless_are_refused_whatever_the_measure(value: float) -> None:
    support = SupportSet(torch.rand(3, 6), [0, 1, 2])
    state = support.state_dict()
    state["inputs"] = state["inputs"].clone()
    state["inputs"][1, 2] = value

    def bounded(a: Tensor, b: Tensor) -> Tensor:
        return 1 / (1 + (a - b).norm(dim=-1))

    scores = SimilarityToSupport(nn.Flatten(), support, bounded)
    support.load_state_dict(state)
    for forward in (lambda: scores(torch.rand(2, 6)), lambda: embedded(support, nn.Flatten())):
        with pytest.raises(ValueError, match="support: its embeddings contain NaN or inf"):
            forward()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_support_moves_to_a_gpu(net: nn.Module, images: Tensor) -> None:
    support = SupportSet(images, [0, 1, 1, 0])
    want = embedded(support, net)
    moved = support.cuda()
    assert moved.labels.is_cuda
    assert torch.allclose(moved.embed(net.cuda()).cpu(), want, atol=1e-10)


# Inference mode


def test_a_support_made_in_inference_mode_is_usable_outside(net: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        of_images, of_embeddings = SupportSet(images.clone(), [0, 1, 0, 1]), SupportSet(net(images), [0, 1, 0, 1])
    assert not any(t.is_inference() for s in (of_images, of_embeddings) for t in (s.inputs, s.labels))
    of_images.load_state_dict(of_images.state_dict())
    for support in (of_images, of_embeddings):
        for similarity in ("cosine", "dot", "squared-euclidean"):
            for aggregate in ("mean", "prototype"):
                for foil in (None, "others", support):
                    with torch.inference_mode():
                        scores = SimilarityToSupport(net, support, similarity, foil, aggregate)
                    x = images.clone().requires_grad_()
                    scores(x).sum().backward()
                    assert x.grad is not None


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
    with pytest.raises(ValueError, match=r'foil must be "others", "runner-up", a SupportSet or None, got \'other\''):
        SimilarityToSupport(net, images, foil="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'aggregate must be "mean" or "prototype", got \'median\''):
        SimilarityToSupport(net, images, aggregate="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"similarity must be one of cosine, dot, .* got 'cosin'"):
        SimilarityToSupport(net, images, similarity="cosin")
    with pytest.raises(TypeError, match="similarity must be a name, a Similarity or a callable, got int"):
        SimilarityToSupport(net, images, similarity=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("foil", ["others", "runner-up"])
def test_a_foil_among_one_class_is_refused(foil: Any, net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match=f"foil='{foil}' needs a support of at least two classes, got one"):
        SimilarityToSupport(net, images, foil=foil)


def test_a_foil_of_another_length_is_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="foil embeds to 7 features but the query to 4; encode both"):
        SimilarityToSupport(net, images, foil=torch.ones(2, 7))


def test_a_query_of_another_length_is_refused(net: nn.Module, images: Tensor) -> None:
    scores = SimilarityToSupport(net, torch.ones(2, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="support embeds to 7 features but the query to 4; encode both"):
        scores(images)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: (x.mean((2, 3)), x), TypeError, r"tensor of embeddings \(B, J\), got tuple; wrap it"),
        (lambda x: x, ValueError, r"embeddings of shape \(B, J\), got \(4, 3, 7, 5\); pool or flatten"),
        (lambda x: x.mean(), ValueError, r"embeddings of shape \(B, J\), got \(\)"),
        (lambda x: x.mean((2, 3)) / 0, ValueError, "support: its embeddings contain NaN or inf"),
    ],
)
def test_a_model_that_gives_no_embedding_is_refused(
    model: Callable[[Tensor], Any], error: type[Exception], message: str, images: Tensor
) -> None:
    with pytest.raises(error, match=message):
        SimilarityToSupport(model, images)


def test_embeddings_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match="support is on meta but the query's embedding on cpu; move one of them"):
        check_embedding_sizes(torch.ones(2, 4), torch.ones(3, 4, device="meta"))


def test_embed_images_equals_the_model(net: nn.Module, images: Tensor) -> None:
    assert torch.allclose(embed_images(net, images, batch_size=3), net(images), atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_embeddings_that_are_no_real_numbers_are_refused_and_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"the bank must have embeddings of a floating-point type, got {dtype}"):
        check_embedding_sizes(torch.rand(2, 3), torch.ones(2, 4, 3, dtype=dtype), "the bank")
    with pytest.raises(TypeError, match=f"forward_func must return embeddings of a floating-point type, got {dtype}"):
        check_embedding(torch.ones(2, 3, dtype=dtype))


def test_images_of_whole_numbers_are_the_model_s_business(images: Tensor) -> None:
    whole = (10 * images).abs().to(torch.uint8)
    scores = SimilarityToSupport(lambda x: x.double().flatten(1), SupportSet(whole, range(4)))
    torch.testing.assert_close(scores(whole).diagonal(), torch.ones(4, dtype=torch.float64))


# Ties


def tied(direction: str | None, run: Callable[[], Any]) -> Any:
    """What another processor makes of it: products whose last place is up, or down."""
    with PerturbedProducts(direction) if direction else nullcontext():  # type: ignore[arg-type]
        return run()


directions = pytest.mark.parametrize("direction", [None, "up", "down"])


def test_scores_that_differ_by_rounding_are_ties_by_hand() -> None:
    support = SupportSet(torch.eye(3), [0, 1, 2])
    # The dot products with the rows of the identity are the query itself.
    query = torch.tensor([[0.5, 0.5 + 1e-7, 0.2], [0.5 - 1e-7, 0.1, 0.5], [0.1, 0.2, 0.3], [0.1, 0.4, 0.4]])
    contrast = support.compare(query, torch.tensor([0, 0, 2, 2]), Dot()).against(runner_up=True)
    assert contrast.predicted.tolist() == [0, 0, 2, 1]
    assert (contrast.scores[[0, 1, 3], [0, 0, 1]] == 0).all()
    torch.testing.assert_close(contrast.scores[2], torch.tensor([-0.2, -0.1, 0.1]))
    assert contrast.support_weights.tolist() == [[1, -1, 0], [1, 0, -1], [0, -1, 1], [0, -1, 1]]


def test_what_rounding_is_relative_to_can_be_more_than_the_scores() -> None:
    class OfLargeTerms(Dot):
        def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
            return torch.ones_like(scores)

    support, query = SupportSet(torch.eye(3), [0, 1, 2]), torch.tensor([[1e-6, 1.2e-6, 1.1e-6]])
    assert support.compare(query, similarity=Dot()).predicted.tolist() == [1]
    assert support.compare(query, similarity=OfLargeTerms()).predicted.tolist() == [0]


@directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "squared-euclidean"])
@pytest.mark.parametrize("aggregate", ["mean", "prototype"])
def test_the_first_of_equal_classes_is_predicted_and_its_contrast_is_exactly_zero(
    aggregate: Any, similarity: str, dtype: torch.dtype, direction: str | None
) -> None:
    few = torch.randn(3, 33, dtype=dtype)
    # Class 0 is far off; 1, 2 and 3 hold the same images once, twice in another order, and five times.
    rows = torch.cat([-few.mean(0, keepdim=True), few, few.flip(0).repeat(2, 1), few.repeat(5, 1)])
    labels = [0] + [1] * 3 + [2] * 6 + [3] * 15
    query = few.mean(0) + 0.1 * torch.randn(4, 33, dtype=dtype)

    def run() -> list[Tensor]:
        found = []
        for foil in (None, "runner-up", SupportSet(few.repeat(7, 1))):
            scores = SimilarityToSupport(nn.Identity(), SupportSet(rows, labels), similarity, foil, aggregate)
            found.extend(scores.predict(query))
            assert torch.equal(scores(query), found[-2])
        return found

    plain, first, contrast, second, given, third = tied(direction, run)
    assert first.tolist() == second.tolist() == third.tolist() == [1] * 4
    assert (contrast[:, 1:] == 0).all()
    assert (given[:, 1:] == 0).all()
    assert (contrast[:, 0] < 0).all()
    torch.testing.assert_close(contrast[:, 0], plain[:, 0] - plain[:, 1])


@directions
def test_a_contrast_that_is_zero_keeps_its_gradient(direction: str | None) -> None:
    support = SupportSet(torch.randn(2, 5, dtype=torch.float64), [0, 1])
    foil = SupportSet(support.inputs[:1].repeat(3, 1))
    query = torch.randn(3, 5, dtype=torch.float64).requires_grad_()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        scores = SimilarityToSupport(nn.Identity(), support, "dot", foil)(query)
        return scores, *(torch.autograd.grad(scores[:, c].sum(), query, retain_graph=True)[0] for c in range(2))

    scores, zero, other = tied(direction, run)
    assert (scores[:, 0] == 0).all()
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-14)
    torch.testing.assert_close(other, (support.inputs[1] - support.inputs[0]).expand(3, -1))


def test_small_but_real_differences_are_no_ties() -> None:
    rows = torch.rand(1, 512).repeat(3, 1)
    rows[1] *= 1 + 1e-4
    rows[2] *= 1 + 2e-4
    scores = SimilarityToSupport(nn.Identity(), SupportSet(rows, [0, 1, 2]), "dot", "runner-up")
    contrast, predicted = scores.predict(torch.rand(4, 512))
    assert predicted.tolist() == [2] * 4
    assert (contrast != 0).all()
