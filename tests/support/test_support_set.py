"""Support sets as data: labels, embeddings, copies, and what is saved."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM, SimilarityToSupport, SupportPerQuery, SupportSet
from captum_fam.support.checks import check_support_tensor
from tests.support.passes import counted, embedded

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
        ([0, 1], None, ValueError, r"labels .*2 labels .*4 supports"),
        (torch.zeros(5, dtype=torch.int64), None, ValueError, r"labels .*5 labels .*4 supports"),
        ([0, 0, 1, 1], ["jay"], ValueError, r"labels .*0\.\.0 .*got 1"),
        ([-1, 0, 1, 0], ["jay", "tit"], ValueError, r"labels .*0\.\.1 .*got -1"),
        ([0, 0, 1, 1], ["jay", "tit", "wren"], ValueError, r"class_names: 1 of the 3 .*'wren'"),
        (["jay", "tit", "jay", "wren"], ["jay", "tit"], ValueError, r"class_names .*wren"),
        ("wren", None, TypeError, r"labels .*'wren'"),
        ([0.0, 1.0, 0.0, 1.0], None, TypeError, r"labels .*float"),
        (torch.tensor([0.0, 1.7, 0.2, 1.0]), None, TypeError, r"labels .*float"),
        (["jay", 1, "jay", 1], None, TypeError, r"labels .*int, str"),
        (torch.zeros(4, 1, dtype=torch.int64), None, ValueError, r"labels .*\(4, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: Any, class_names: Any, error: type[Exception], message: str, images: Tensor
) -> None:
    with pytest.raises(error, match=message):
        SupportSet(images, labels, class_names)


def test_a_batch_size_below_one_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"batch_size .*0"):
        SupportSet(images, batch_size=0)


@pytest.mark.parametrize(
    ("support", "error", "message"),
    [
        ("birds/", TypeError, "support .*str"),
        (np.zeros((2, 3)), TypeError, "support .*ndarray"),
        (torch.zeros(3), ValueError, r"support .*\(3,\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, r"support .*\(0, 3, 4, 4\)"),
        (torch.zeros(2, 0), ValueError, r"support .*\(2, 0\)"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "support .*NaN"),
        (torch.tensor([[1.0, float("-inf")]]), ValueError, "support .*NaN"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, r"support .*torch\.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, r"support .*torch\.complex64"),
        (torch.ones(2, 3, 4, 4, dtype=torch.complex64), TypeError, r"support .*images .*torch\.complex64"),
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


def test_additional_arguments_are_never_mixed_up(net: nn.Module, images: Tensor) -> None:
    def forward(x: Tensor, factor: float) -> Tensor:
        return net(x) * factor

    support = SupportSet(images)
    assert torch.equal(embedded(support, forward, (2.0,)), 2 * net(images))
    assert torch.equal(embedded(support, forward, (3.0,)), 3 * net(images))


# Copies, precision, files, inference mode


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
        with pytest.raises(ValueError, match=r"support.*NaN"):
            forward()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_support_moves_to_a_gpu(net: nn.Module, images: Tensor) -> None:
    support = SupportSet(images, [0, 1, 1, 0])
    want = embedded(support, net)
    moved = support.cuda()
    assert moved.labels.is_cuda
    assert torch.allclose(moved.embed(net.cuda()).cpu(), want, atol=1e-10)


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


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        ([30, 7, 30, 10**9], ("7", "30", "1000000000"), [1, 0, 1, 2]),
        (np.array([3, 1, 3, 2], dtype=np.uint16), ("1", "2", "3"), [2, 0, 2, 1]),
        (torch.tensor([-3, 2, 2, -3], dtype=torch.int8), ("-3", "2"), [0, 1, 1, 0]),
        (np.array(["wren", "jay", "jay", "tit"]), ("jay", "tit", "wren"), [2, 0, 0, 1]),
    ],
)
def test_labels_of_any_kind_are_numbered_in_ascending_order(
    labels: Any, names: tuple[str, ...], indices: list[int]
) -> None:
    support = SupportSet(torch.eye(4), labels)
    assert support.class_names == names
    assert support.labels.tolist() == indices


# Zero-shot: text embeddings as supports, prompts as class names

PROMPTS = ["a photo of a wren", "a photo of a jay", "a photo of a tit"]
TEXTS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 4.0], [0.6, 0.8, 0.0]])
IMAGES = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.5]])


def test_prompts_name_their_scores_in_either_order() -> None:
    expected = {PROMPTS[0]: [1.0, 0.0], PROMPTS[1]: [0.0, 0.8], PROMPTS[2]: [0.6, 0.0]}
    for class_names in (None, PROMPTS):
        comparison = SupportSet(TEXTS, PROMPTS, class_names).compare(IMAGES)
        assert comparison.class_names == tuple(sorted(PROMPTS) if class_names is None else PROMPTS)
        for name, column in zip(comparison.class_names, comparison.scores.T.tolist(), strict=True):
            assert column == pytest.approx(expected[name], abs=1e-6)
        assert [comparison.class_names[i] for i in comparison.predicted.tolist()] == PROMPTS[:2]


def test_the_better_of_two_prompts_by_hand() -> None:
    scores = SimilarityToSupport(nn.Identity().eval(), SupportSet(TEXTS, PROMPTS, PROMPTS), foil="runner-up")
    values, predicted = scores.predict(IMAGES)
    assert predicted.tolist() == [0, 1]
    # Cosines are (1, 0, 0.6) and (0, 0.8, 0); the best other score is subtracted from each.
    assert values[0].tolist() == pytest.approx([0.4, -1.0, -0.4], abs=1e-6)
    assert values[1].tolist() == pytest.approx([-0.8, 0.8, -0.8], abs=1e-6)


def test_several_prompts_of_one_class_are_averaged() -> None:
    support = SupportSet(TEXTS, ["wren", "jay", "wren"])
    assert support.class_names == ("jay", "wren")
    assert support.compare(IMAGES).scores[0].tolist() == pytest.approx([0.0, 0.8], abs=1e-6)


# Another dtype


def test_images_of_another_dtype_than_the_queries_are_refused_and_named(net: nn.Module, images: Tensor) -> None:
    queries = images[:2]
    other = torch.float32 if images.dtype == torch.float64 else torch.float64
    with pytest.raises(TypeError, match=f"support has images of {other} but inputs of {images.dtype}"):
        LayerFAM(net, net.features).attribute(queries, SupportSet(images.to(other)))


def test_images_of_another_dtype_than_the_weights_are_refused_and_named(net: nn.Module, images: Tensor) -> None:
    other = torch.float32 if images.dtype == torch.float64 else torch.float64
    message = f"support has images of {other} but the model weights of {images.dtype}"
    for support in (SupportSet(images.to(other)), SupportPerQuery(images.to(other)[None])):
        with pytest.raises(TypeError, match=message):
            support.embed(net)
        with pytest.raises(TypeError, match=message):
            SimilarityToSupport(net, support)


def test_an_error_of_the_model_itself_is_passed_on(images: Tensor) -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        SupportSet(images).embed(Broken(2, 2, dtype=images.dtype))
