"""Transformers cut at their tokens: by a trace, by replacing the output of a layer, and at an earlier module."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid, find_layer
from captum_fam.attr import get_method
from captum_fam.experiments.cut import split_model
from captum_fam.experiments.replaced_cut import FromLayer, UpToLayer, cut_by_replacing
from captum_fam.experiments.table_methods import get_methods
from captum_fam.experiments.traced_cut import BypassError, CutError, cut_by_tracing
from captum_fam.models import EmbeddingModel
from captum_fam.pooling import GAP

Size = int | tuple[int, int]


class Output(nn.Module):
    """A model of transformers as a module from images to embeddings."""

    def __init__(self, model: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.read = read

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.model(pixel_values=images))


def timm_vit(size: Size = 64, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=size, depth=3, num_classes=0, **options)


def transformers_model(name: str, read: Callable[[Any], Tensor], **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=16, image_size=64, **options
    )
    extra = {"add_pooling_layer": False} if name == "ViT" else {}
    return Output(getattr(transformers, f"{name}Model")(config, **extra), read)


def open_clip_tower() -> nn.Module:
    tower = pytest.importorskip("open_clip.transformer")
    return tower.VisionTransformer(64, 16, 32, 3, 2, 2.0, output_dim=20)


def first_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def pooler_output(output: Any) -> Tensor:
    return output.pooler_output


class Columns(nn.Module):
    """Tokens first, as in old CLIP models; the class token gathers the patches."""

    def __init__(self, is_wrapped: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.join = nn.Identity()
        self.block = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0)
        self.is_wrapped = is_wrapped

    def forward(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).permute(2, 0, 1)
        if len(images) > 100:  # torch.fx does not trace this
            return images
        tokens = self.join(torch.cat([self.token.expand(1, len(images), 6), patches]))
        return self.block(tokens)[0]


MODELS: dict[str, tuple[Callable[[], nn.Module], Size]] = {
    "timm, the class token": (timm_vit, 64),
    "timm, the average of oblong images": (lambda: timm_vit((64, 32), global_pool="avg"), (64, 32)),
    "DINOv2": (lambda: transformers_model("Dinov2", pooler_output), 64),
    "DINOv2 with registers": (lambda: transformers_model("Dinov2WithRegisters", pooler_output), (48, 64)),
    "ViT": (lambda: transformers_model("ViT", first_token, intermediate_size=64), 64),
    "SigLIP": (lambda: transformers_model("SiglipVision", pooler_output, intermediate_size=64), 64),
    "open_clip": (open_clip_tower, 64),
    "tokens first": (Columns, (24, 32)),
}


def make_net(name: str) -> EmbeddingModel:
    """A model with its card, as create_model gives it; in float64."""
    make, size = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        height, width = (size, size) if isinstance(size, int) else size
        found = find_layer(model, torch.rand(1, 3, height, width))
    return EmbeddingModel(name, model, found.name, size=size, token_grid=found.token_grid)


@pytest.mark.parametrize("name", MODELS)
def test_a_measured_map_of_tokens_is_that_of_the_uncut_model(name: str) -> None:
    net = make_net(name)
    model = split_model(net).fast_copy()
    height, width = model.height_and_width
    queries = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(1))
    supports = torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(2))
    labels, target = [0, 1, 1, 2, 2], torch.tensor([2, 0, 1])
    cam = LayerSimilarityCAM(
        SimilarityToSupport(net.model, SupportSet(supports, labels)), net.layer, token_grid=net.token_grid
    )
    expected = cam.details(queries, target=target)
    activation = model.activation(queries)
    scores = SimilarityToSupport(model.tail, SupportSet(model.activation(supports), labels))
    (method,) = get_methods("similarity-cam")
    made = method.maps(lambda _: scores, model.tail, activation, target, (height, width))
    torch.testing.assert_close(made.maps, expected.attributions, rtol=1e-4, atol=1e-6)
    assert made.account is not None
    torch.testing.assert_close(made.account.sums / made.account.scores, expected.coverage, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(queries), net.model(queries), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm, the class token", "tokens first", "DINOv2"])
@pytest.mark.parametrize(
    "method", ["fam", "grad-cam", "mean-activation", "eigen-cam", "center", "uniform", "center-box"]
)
def test_every_method_of_a_table_explains_tokens(name: str, method: str) -> None:
    net = make_net(name)
    model = split_model(net).fast_copy()
    height, width = model.height_and_width
    queries, supports = torch.rand(5, 3, height, width).split([2, 3])
    scores = SimilarityToSupport(model.tail, SupportSet(model.activation(supports), [0, 1, 1]))
    (chosen,) = get_methods(method)
    made = chosen.maps(lambda _: scores, model.tail, model.activation(queries), torch.tensor([1, 0]), (height, width))
    if method in ("uniform", "center-box"):
        assert made.maps.shape[2:] == ((height, width) if method == "center-box" else net_grid(net, queries).shape[2:])
        return
    whole = SimilarityToSupport(net.model, SupportSet(supports, [0, 1, 1]))
    attribution = get_method(method).create(whole, net.layer_module, token_grid=net.token_grid)
    expected = attribution.attribute(queries, target=torch.tensor([1, 0])).detach()
    torch.testing.assert_close(made.maps, expected, rtol=1e-3, atol=1e-6)


def net_grid(net: EmbeddingModel, images: Tensor) -> Tensor:
    """The activation of the layer of a model as a grid, ``(B, N, h, w)``."""
    kept: list[Tensor] = []
    handle = net.layer_module.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        net.model(images)
    handle.remove()
    assert net.token_grid is not None
    return net.token_grid(kept[0])


def test_a_layer_behind_the_cut_is_explained_on_its_own_grid() -> None:
    net = make_net("timm, the class token")
    model = split_model(net).fast_copy()
    queries, supports = torch.rand(5, 3, 64, 64).split([2, 3])
    scores = SimilarityToSupport(model.tail, SupportSet(model.activation(supports), [0, 1, 1]))
    whole = SimilarityToSupport(net.model, SupportSet(supports, [0, 1, 1]))
    for method in ("similarity-cam", "grad-cam"):
        (chosen,) = get_methods(f"{method}[layers=rest.model.blocks.1]")
        made = chosen.maps(lambda _: scores, model.tail, model.activation(queries), torch.tensor([1, 0]), (64, 64))
        attribution = get_method(method).create(whole, net.model.blocks[1], token_grid=net.token_grid)
        expected = attribution.attribute(queries, target=torch.tensor([1, 0])).detach()
        torch.testing.assert_close(made.maps, expected, rtol=1e-3, atol=1e-6)


def test_another_layer_of_tokens_may_be_named() -> None:
    net = make_net("ViT")
    model = split_model(net, "model.layers.1" if hasattr(net.model.model, "layers") else "model.encoder.layer.1")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert model.backbone(images).shape == (2, 17, 32)
        torch.testing.assert_close(model(images), net.model(images))
    assert model.tail.token_grids["activation"] == TokenGrid()


class Shortcut(nn.Module):
    """Two residual branches, the first inside a block; ``kind`` says what goes around the block."""

    def __init__(self, kind: str = "nothing") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.outer = nn.ReLU()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        if images.mean() < -100:  # torch.fx does not trace this
            return images
        stem = self.stem(images)
        pooled = self.outer(stem + self.inner(stem)).mean((2, 3))
        if self.kind == "the image":
            return pooled + 1e-6 * images.mean((2, 3)).sum(1, keepdim=True)
        return nn.functional.layer_norm(pooled, (4,))


def test_a_layer_beside_a_shortcut_is_replaced_by_what_everything_passes() -> None:
    net = EmbeddingModel("short", Shortcut().eval(), "inner", size=15)
    with pytest.warns(UserWarning, match="goes around layer 'inner', and the model is cut at 'stem' instead"):
        model = split_model(net)
    images = torch.rand(2, 3, 15, 15)
    with torch.no_grad():
        torch.testing.assert_close(model.activation(images), net.model.stem(images))
        torch.testing.assert_close(model(images), net.model(images))
    with pytest.raises(ValueError, match=r"cannot be cut at layer 'inner': .*choose the whole block"):
        split_model(net, "inner")


def test_a_small_part_of_the_image_that_goes_around_every_layer_is_noticed() -> None:
    net = EmbeddingModel("around", Shortcut("the image").eval(), "outer", size=15)
    with pytest.raises(ValueError, match=r"model around cannot be cut at layer 'outer': .*other tensors"):
        split_model(net)


def test_the_parts_of_a_replaced_cut_know_the_size_of_the_image() -> None:
    model = Columns().eval()
    probe = torch.rand(2, 3, 24, 32)
    first, second = cut_by_replacing(model, "join", probe, sequence_first=True)
    images = torch.rand(3, 3, 40, 16)
    with torch.no_grad():
        activation = first(images)
        assert activation.shape == (3, 11, 6)
        torch.testing.assert_close(second(activation), model(images))
        with pytest.raises(ValueError, match=r"activation has shape \(3, 9, 6\), which no image gave so far"):
            second(activation[:, :9])


def test_a_layer_that_gives_a_tuple_of_one_tensor_is_cut() -> None:
    class Tupled(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.relu(),)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.tupled = nn.Conv2d(3, 4, 3), Tupled()

        def forward(self, images: Tensor) -> Tensor:
            (activation,) = self.tupled(self.stem(images))
            return activation.mean((2, 3)).exp()

    net = EmbeddingModel("tupled", Model().eval(), "tupled", size=9)
    model = split_model(net)
    images = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        assert model.activation(images).shape == (2, 4, 7, 7)
        torch.testing.assert_close(model(images), net.model(images))


def test_hooks_of_the_parts_are_gone_after_errors_and_act_in_one_thread() -> None:
    model = Shortcut().eval()
    first, second = cut_by_replacing(model, "stem", torch.rand(2, 3, 15, 15))
    assert isinstance(first, UpToLayer)
    assert isinstance(second, FromLayer)
    with pytest.raises(RuntimeError, match="channels"):
        first(torch.rand(2, 5, 15, 15))
    images = torch.rand(2, 3, 15, 15)
    with torch.no_grad():
        activation, embedding = first(images), model(images)
        elsewhere: list[Tensor] = []

        def run_elsewhere(*_: object) -> None:
            handle.remove()
            thread = threading.Thread(target=lambda: elsewhere.append(model(images).detach()))
            thread.start()
            thread.join()

        # Another thread runs the model while the hook of the part is there.
        handle = model.stem.register_forward_pre_hook(run_elsewhere)
        torch.testing.assert_close(first(images), activation)
        torch.testing.assert_close(elsewhere, [embedding])
    assert not model.stem._forward_hooks


def test_a_trace_says_why_it_fails() -> None:
    with pytest.raises(CutError, match=r"torch\.fx does not trace the modules around it"):
        cut_by_tracing(Shortcut(), "inner")
    residual = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    first, second = cut_by_tracing(residual, "0")
    images = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(second(first(images)), residual(images))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = residual

        def forward(self, images: Tensor) -> Tensor:
            return images + self.inner(images)

    with pytest.raises(BypassError, match="other tensors"):
        cut_by_tracing(Residual(), "inner")


def test_a_pooled_layer_that_is_not_traced_is_still_pooled() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return images if images.mean() < -100 else self.stem(images).mean((2, 3))

    net = EmbeddingModel("pooled", Model().eval(), "stem", size=9, pooling=GAP())
    model = split_model(net)
    assert isinstance(model.backbone, UpToLayer)
    assert model.tail.rest is None
    images = torch.rand(2, 3, 12, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.model(images))
