"""The layer that is found in networks that people use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.families import Output
from captum_fam import LayerSimilarityCAM, TokenGrid, find_layer
from captum_fam.pooling import GAP
from tests.attr.search_models import convolutions, images, randomly

pytestmark = pytest.mark.filterwarnings("ignore:the map explains:UserWarning")  # small nets with random weights

Build = Callable[[], nn.Module]


Size = tuple[int, int]


def check(net: nn.Module, size: Size, layer: str, grid: TokenGrid | None, positions: Size) -> None:
    """The layer, its grid, and that a map of it is made."""
    found = find_layer(net.eval(), images(1, *size, dtype=torch.float32))
    assert (found.name, found.token_grid) == (layer, grid)
    x, support = images(2, *size, seed=1, dtype=torch.float32), images(3, *size, seed=2, dtype=torch.float32)
    with torch.no_grad():
        embeddings = net(support)
    cam = LayerSimilarityCAM(net, found.name, token_grid=found.token_grid)
    assert cam.attribute(x, embeddings).shape == (2, 1, *positions)


def without(net: Any, **parts: nn.Module) -> Any:
    for name, part in parts.items():
        setattr(net, name, part)
    return net


SMALL_SWIN: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
SMALL_CONVNEXT = [
    torchvision.models.convnext.CNBlockConfig(8, 16, 1),
    torchvision.models.convnext.CNBlockConfig(16, None, 1),
]


@pytest.mark.parametrize(
    ("build", "layer", "grid", "positions"),
    [
        (lambda: without(torchvision.models.resnet18(), fc=nn.Identity()), "layer4", None, (2, 3)),
        (lambda: without(torchvision.models.squeezenet1_1(), classifier=GAP()), "features", None, (3, 5)),
        (
            lambda: without(torchvision.models.ConvNeXt(SMALL_CONVNEXT), classifier=nn.Flatten()),
            "features",
            None,
            (8, 12),
        ),
        (
            lambda: without(torchvision.models.SwinTransformer(**SMALL_SWIN, window_size=[4, 4]), head=nn.Identity()),
            "permute",
            None,
            (8, 12),
        ),
    ],
    ids=["resnet18", "squeezenet", "convnext", "swin"],
)
def test_torchvision(build: Build, layer: str, grid: TokenGrid | None, positions: Size) -> None:
    check(build(), (64, 96), layer, grid, positions)


def test_torchvisions_class_token_leaves_most_to_the_input_of_the_first_block() -> None:
    net = torchvision.models.VisionTransformer(16, 4, num_layers=4, num_heads=2, hidden_dim=12, mlp_dim=24)
    net.heads = nn.Identity()
    check(randomly(net).float(), (16, 16), "encoder.dropout", TokenGrid(), (4, 4))


VIT: dict[str, Any] = {"img_size": (64, 96), "depth": 3, "embed_dim": 48, "num_heads": 3}
PATCHES = TokenGrid(size=(4, 6), prefix_tokens=0)
WITH_CLASS_TOKEN = TokenGrid(size=(4, 6))


@pytest.mark.parametrize(
    ("name", "options", "layer", "grid", "positions"),
    [
        ("resnet18", {}, "layer4", None, (2, 3)),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, "stages", None, (2, 3)),
        ("vit_tiny_patch16_224", VIT, "pos_drop", WITH_CLASS_TOKEN, (4, 6)),
        ("deit3_small_patch16_224", VIT, "pos_drop", WITH_CLASS_TOKEN, (4, 6)),
        ("eva02_tiny_patch14_224", {**VIT, "patch_size": 16}, "blocks.2", WITH_CLASS_TOKEN, (4, 6)),
        (
            "vit_small_patch14_reg4_dinov2",
            {**VIT, "patch_size": 16},
            "pos_drop",
            TokenGrid(size=(4, 6), prefix_tokens=5),
            (4, 6),
        ),
        ("vit_base_patch16_siglip_224", VIT, "norm", PATCHES, (4, 6)),
        ("xcit_nano_12_p16_224", {"img_size": (64, 96), "depth": 3}, "blocks.2", PATCHES, (4, 6)),
        ("cait_xxs24_224", {**VIT, "num_heads": 4}, "blocks", PATCHES, (4, 6)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (64, 96), "window_size": (2, 3), "embed_dim": 12, "depths": (1, 1, 1, 1)},
            "norm",
            TokenGrid(prefix_tokens=0),
            (2, 3),
        ),
        ("maxvit_tiny_tf_224", {"img_size": 64, "depths": (1, 1, 1, 1)}, "stages", None, (2, 2)),
    ],
)
def test_timm(name: str, options: dict[str, Any], layer: str, grid: TokenGrid | None, positions: Size) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=0, **options).eval()
    if "patch1" in name or name.startswith("cait"):
        # LayerScale of 1e-5 and tokens of 1e-6 leave nothing to measure.
        net = randomly(net).float()
    check(net, (64, 64) if positions == (2, 2) else (64, 96), layer, grid, positions)


SIDE = {"image_size": 64}
HF: dict[str, Any] = {**SIDE, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 16}


@pytest.mark.parametrize(
    ("model", "options", "layer", "grid"),
    [
        (
            "CLIPVision",
            {**HF, "intermediate_size": 48, "projection_dim": 32},
            "vision_model.pre_layrnorm",
            TokenGrid(),
        ),
        (
            "SiglipVision",
            {**HF, "intermediate_size": 48},
            "post_layernorm",
            TokenGrid(prefix_tokens=0),
        ),
        ("Dinov2", {**HF, "mlp_ratio": 2}, "embeddings", TokenGrid()),
        ("Dinov2WithRegisters", {**HF, "mlp_ratio": 2}, "embeddings", TokenGrid(prefix_tokens=5)),
        ("ViT", {**HF, "intermediate_size": 48}, "embeddings", TokenGrid()),
        (
            "Swin",
            {
                "image_size": 64,
                "patch_size": 4,
                "embed_dim": 8,
                "depths": [1, 1],
                "num_heads": [2, 2],
                "window_size": 4,
            },
            "layernorm",
            TokenGrid(prefix_tokens=0),
        ),
        ("ConvNext", {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}, "encoder.stages.3", None),
        (
            "ResNet",
            {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
            "encoder.stages.3",
            None,
        ),
    ],
)
def test_transformers(model: str, options: dict[str, Any], layer: str, grid: TokenGrid | None) -> None:
    transformers = pytest.importorskip("transformers")
    with_projection, field = ("WithProjection", "image_embeds") if model == "CLIPVision" else ("", "pooler_output")
    config = getattr(transformers, f"{model}Config")(**options)
    net = randomly(Output(getattr(transformers, f"{model}Model{with_projection}")(config), field)).float()
    side = {"layernorm": 8, "encoder.stages.3": 2}.get(layer, 4)
    check(net, (64, 64), f"model.{layer}", grid, (side, side))


def test_the_vision_towers_of_open_clip() -> None:
    pytest.importorskip("open_clip")
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    vit = VisionTransformer((64, 96), 16, width=32, layers=3, heads=4, mlp_ratio=2, output_dim=16)
    check(randomly(vit).float(), (64, 96), "ln_pre", WITH_CLASS_TOKEN, (4, 6))
    resnet = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=4, image_size=64, width=8)
    check(resnet, (64, 64), "layer4", None, (2, 2))


def test_faces() -> None:
    facenet_pytorch = pytest.importorskip("facenet_pytorch")
    check(facenet_pytorch.InceptionResnetV1(pretrained=None), (128, 160), "block8", None, (2, 3))


def test_backbones_in_a_sequence_as_self_supervised_learning_has_them() -> None:
    resnet = torchvision.models.resnet18()
    net = nn.Sequential(nn.Sequential(*list(resnet.children())[:-1]), nn.Flatten(), nn.Linear(512, 8))
    check(net, (64, 96), "0.7", None, (2, 3))


def test_few_shot_networks_that_flatten_their_map() -> None:
    net = nn.Sequential(convolutions(6, 6, 6, 6), nn.Flatten())
    check(net, (64, 96), "0", None, (4, 6))
