"""The layer found by itself: the last one whose map explains the score, with the grid of its tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import captum_fam
from captum_fam import FoundLayer, LayerSimilarityCAM, SimilarityToSupport, TokenGrid, Views, find_layer
from captum_fam.attr.layer_search import measure_layer
from captum_fam.pooling import GAP

pytestmark = pytest.mark.filterwarnings("ignore:the map explains:UserWarning")  # small nets with random weights

Build = Callable[[], nn.Module]


def images(count: int, *size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomly(net: nn.Module) -> Any:
    """All parameters random, in float64: no bias is zero and no class token a constant."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.4 * noise)
    return net.double().eval()


def convolutions(*channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip((3, *channels), channels, strict=False)
        )
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class TakesOver(nn.Module):
    """A block in which the class token adds a part of the patches' mean to itself; nothing else happens."""

    def __init__(self, part: float, class_token: int) -> None:
        super().__init__()
        self.part, self.class_token = part, class_token

    def forward(self, tokens: Tensor) -> Tensor:
        before, token, behind = tokens.split([self.class_token, 1, tokens.shape[1] - self.class_token - 1], 1)
        patches = torch.cat([before, behind], 1)
        taken = token + self.part * patches.mean(1, keepdim=True)
        return torch.cat([before, taken, behind], 1)


class ByHand(nn.Module):
    """Patches of 4 x 4 and a class token, zero at first, that takes over a part of their mean in every block.

    Behind block k the patches still have what the later blocks take, in the units of the sum of all parts.
    """

    def __init__(self, parts: tuple[float, ...], class_token: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.joined = nn.Identity()
        self.blocks = nn.ModuleList(TakesOver(part, class_token) for part in parts)
        self.norm = nn.Identity()
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        tokens, token = self.patches(x).flatten(2).transpose(1, 2), self.cls_token.expand(len(x), -1, -1)
        before, behind = tokens.split([self.class_token, tokens.shape[1] - self.class_token], 1)
        tokens = self.joined(torch.cat([before, token, behind] if self.class_token else [token, tokens], 1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, self.class_token]


# The rule, by hand


def test_the_last_layer_that_explains_95_percent_is_taken() -> None:
    """Of ten parts the first two blocks take .01 and .02, so that .97 of the score is left on the patches there."""
    net = ByHand((0.01, 0.02, 0.07, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1)).double().eval()
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.module, found.token_grid) == ("blocks.1", net.blocks[1], TokenGrid(size=(3, 5)))
    assert found.coverage == pytest.approx(0.97, abs=1e-12)


@pytest.mark.parametrize(
    ("parts", "name", "coverage"),
    [
        ((0.1, 0.3, 0.6), "joined", 1.0),
        ((0.04, 0.5, 0.46), "blocks.0", 0.96),
        ((0.0, 0.0, 0.0, 0.0, 0.03, 0.97), "blocks.4", 0.97),
        ((0.0, 1.0, 0.0), "blocks.0", 1.0),  # behind the second the patches reach nothing
    ],
)
def test_bisection_ends_where_every_layer_in_turn_would(parts: tuple[float, ...], name: str, coverage: float) -> None:
    found = find_layer(ByHand(parts).double().eval(), images(1, 12, 20))
    assert (found.name, found.coverage) == (name, pytest.approx(coverage, abs=1e-12))


def test_a_bias_behind_the_pooling_does_not_move_the_choice() -> None:
    """No layer can explain it, so that all of them explain the same, and the last is taken."""
    head = nn.Linear(8, 4).double()
    net = nn.Sequential(convolutions(6, 8), GAP(), head).double().eval()
    with torch.no_grad():
        head.bias.fill_(2.0)
    x = images(2, 20, 12)
    found = find_layer(net, x)
    with torch.no_grad():
        z = net(x[:1])
        share = 1 - (head.bias @ z[0]) / z.norm() ** 2
    assert (found.name, found.token_grid) == ("0", None)
    assert found.coverage == pytest.approx(float(share), abs=1e-12)
    assert found.coverage < 0.9


def test_what_is_found_is_what_the_map_explains_of_the_first_image() -> None:
    net = randomly(ByHand((0.5, 0.5)))
    x = images(3, 12, 20)
    found = find_layer(net, x)
    with torch.no_grad():
        embedding = net(x[:1])
    cam = LayerSimilarityCAM(net, found.name, token_grid=found.token_grid)
    assert float(cam.details(x[:1], embedding).coverage) == pytest.approx(found.coverage, abs=1e-12)
    assert find_layer(net, x[:1]) == found


def test_a_layer_that_overshoots_is_as_far_off_as_one_that_falls_short() -> None:
    """The class token takes over more than there is, and gives back: behind the first block the patches have 1.5."""
    found = find_layer(ByHand((-0.5, 1.5)).double().eval(), images(1, 12, 20))
    assert (found.name, found.coverage) == ("joined", pytest.approx(1.0))


@pytest.mark.parametrize("part", [1e-9, 1e-12])
def test_where_maps_are_rounding_noise_the_last_layer_with_an_influence_is_taken(part: float) -> None:
    """A class token that is a constant but for a part too small to see, as LayerScale makes it at first."""
    net = ByHand((part, part, part)).double().eval()
    with torch.no_grad():
        net.cls_token.fill_(1.0)
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.coverage) == ("blocks.1", 0)


# Candidates


def test_the_outermost_of_the_modules_that_made_a_tensor_names_it() -> None:
    net = nn.Sequential(nn.Sequential(convolutions(6, 8), nn.Identity()), nn.Identity(), GAP()).double().eval()
    assert find_layer(net, images(1, 20, 12)).name == "0"


def test_a_branch_beside_a_shortcut_is_no_candidate() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.branch = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (x + self.branch(x)).mean((2, 3))

    assert find_layer(Net().double().eval(), images(1, 7, 9)).name == "stem"


def test_without_any_other_layer_the_branch_that_explains_most_is_taken() -> None:
    """Of two streams of the same colors, one counts three times as much."""

    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(3, 6, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([3**0.5 * self.first(x).mean((2, 3)), self.second(x).mean((2, 3))], 1)

    net = Streams().double().eval()
    net.second.weight.data.copy_(net.first.weight)
    found = find_layer(net, images(1, 7, 9))
    assert (found.name, found.coverage) == ("first", pytest.approx(0.75))


def test_a_layer_that_runs_several_times_is_no_candidate() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3))

    assert find_layer(Net().double().eval(), images(1, 9, 7)).name == "second"


def test_windows_in_the_batch_are_no_candidate() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inside = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            halves = torch.cat(self.stem(x).chunk(2, 3))
            return torch.cat(self.inside(halves).chunk(2), 3).mean((2, 3))

    assert find_layer(Windows().double().eval(), images(1, 8, 12)).name == "stem"


def test_adaptive_pooling_belongs_to_the_head() -> None:
    """PCB: six stripes, each embedded by itself."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.pool = convolutions(6, 8), nn.AdaptiveAvgPool2d((6, 1))
            self.embed = nn.ModuleList(nn.Linear(8, 4, bias=False) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            stripes = self.pool(self.backbone(x)).squeeze(3).unbind(2)
            parts = [embed(stripe) for embed, stripe in zip(self.embed, stripes, strict=True)]
            return torch.cat([nn.functional.normalize(part, dim=1) for part in parts], 1)

    found = find_layer(Parts().double().eval(), images(1, 48, 24))
    assert (found.name, found.coverage) == ("backbone", pytest.approx(1.0))
    assert measure_layer(Parts().double().eval(), images(1, 48, 24), "pool").coverage == pytest.approx(1.0)


def test_stages_of_blocks_are_looked_into_and_blocks_are_not() -> None:
    """Behind the last stage of a class-token model nothing is left, within it there is."""

    class Stage(nn.Module):
        def __init__(self, *parts: float) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(TakesOver(part, 0)) for part in parts))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.blocks(tokens)

    net = ByHand(()).double().eval()
    net.blocks.extend([Stage(0.0, 0.01), Stage(0.02, 0.97)])
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.coverage) == ("blocks.1.blocks.0", pytest.approx(0.97, abs=1e-12))


def test_where_no_block_will_do_all_modules_are_candidates() -> None:
    class Twice(nn.Module):
        """Its only child runs twice, what lies in it once."""

        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Module()
            self.part.conv = nn.Conv2d(3, 6, 3)
            self.part.forward = lambda x, first: self.part.conv(x) if first else x.mean((2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.part(self.part(x, True), False)

    assert find_layer(Twice().double().eval(), images(1, 9, 7)).name == "part.conv"


@pytest.mark.parametrize(("rank", "size"), [(1, (9,)), (3, (4, 3, 5))])
def test_sequences_and_volumes_have_positions(rank: int, size: tuple[int, ...], make_net: Any) -> None:
    found = find_layer(make_net(rank=rank), images(2, *size))
    assert (found.name, found.token_grid, found.coverage) == ("features", None, pytest.approx(1.0))


# Token grids


def test_a_class_token_between_the_patches_is_found() -> None:
    """Vision Mamba puts it in the middle."""
    net = ByHand((0.03, 0.97), class_token=7).double().eval()
    found = find_layer(net, images(1, 12, 20))
    assert (found.name, found.coverage) == ("blocks.0", pytest.approx(0.97, abs=1e-12))
    assert found.token_grid == TokenGrid(size=(3, 5), prefix_tokens=0, class_token=7)


class Encoder(nn.Module):
    """A transformer on 3 x 5 patches behind tokens of its own, on images of 12 x 20; the embedding is their mean."""

    def __init__(self, sequence_first: bool = False, **tokens: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        for name, count in tokens.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, count, 8)))
        self.names, self.sequence_first = list(tokens), sequence_first
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=not sequence_first, norm_first=True) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        own = [getattr(self, name).expand(len(x), -1, -1) for name in self.names]
        tokens = torch.cat([*own, tokens], 1)
        tokens = tokens.transpose(0, 1) if self.sequence_first else tokens
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(0 if self.sequence_first else 1)


@pytest.mark.parametrize(
    ("net", "grid"),
    [
        (Encoder(), TokenGrid(size=(3, 5), prefix_tokens=0)),
        (Encoder(prefix=3), TokenGrid(size=(3, 5), prefix_tokens=3)),
        (Encoder(cls_token=1, register_tokens=2), TokenGrid(size=(3, 5), prefix_tokens=3)),
        (Encoder(register_tokens=2), TokenGrid(size=(3, 5), prefix_tokens=2, registers=2)),
        (Encoder(cls_token=1, dist_token=1), TokenGrid(size=(3, 5), prefix_tokens=2, registers=0)),
        (Encoder(sequence_first=True), TokenGrid(size=(3, 5), prefix_tokens=0, sequence_first=True)),
        (Encoder(sequence_first=True, cls_token=1), TokenGrid(size=(3, 5), sequence_first=True)),
    ],
    ids=[
        "patches alone",
        "unnamed",
        "registers",
        "registers alone",
        "distilled",
        "sequence first",
        "and a class token",
    ],
)
def test_tokens_that_do_not_depend_on_the_image_are_no_patches(net: Encoder, grid: TokenGrid) -> None:
    assert measure_layer(randomly(net), images(1, 12, 20), "blocks.0").token_grid == grid


def test_a_square_grid_goes_with_images_of_other_sizes() -> None:
    net = randomly(Encoder())
    grid = find_layer(net, images(1, 16, 16)).token_grid
    assert grid == TokenGrid(prefix_tokens=0)
    assert LayerSimilarityCAM(net, "blocks.1", token_grid=grid).attribute(
        images(2, 24, 24), images(2, 24, 24)
    ).shape == (2, 1, 6, 6)


def test_queries_of_an_attention_pooling_are_no_positions() -> None:
    """As many as there are patches, as in CoCa."""

    class Pooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(15, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            queries = self.query.expand(len(tokens), -1, -1)
            pooled: Tensor = self.attention(queries, tokens, tokens)[0]
            return pooled

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.cls_token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 8))
            self.norm, self.pool, self.norm_of_pooled = nn.LayerNorm(8), Pooler(), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = self.norm(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))
            return self.norm_of_pooled(self.pool(tokens)).mean(1)

    found = find_layer(randomly(Net()), images(1, 12, 20))
    assert (found.name, found.token_grid) == ("norm", TokenGrid(size=(3, 5)))


# Networks in use


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


class Output(nn.Module):
    """A transformers model whose embedding is a field of what it returns."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = getattr(self.model(pixel_values=x), self.field)
        return embedding.flatten(1)


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


# Around models


def test_a_model_of_views_is_looked_into() -> None:
    inner = nn.Sequential(convolutions(6, 8), GAP()).double().eval()
    net = Views(inner, ["identity", "hflip"])
    found = find_layer(net.eval(), images(1, 20, 12))
    assert (found.name, found.module) == ("model.0", inner[0])
    assert LayerSimilarityCAM(net, found.name).attribute(images(2, 20, 12), images(2, 20, 12)).shape == (2, 1, 5, 3)


def test_wrappers_are_looked_into() -> None:
    inner = nn.Sequential(convolutions(6, 8), GAP()).double().eval()
    x = images(1, 20, 12)
    assert find_layer(nn.DataParallel(inner), x).name == "module.0"
    assert find_layer(SimilarityToSupport(inner, images(2, 20, 12)).eval(), x).name == "0"


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "captum_fam"):
        find_layer(ByHand((0.01, 0.99)).double().eval(), images(1, 12, 20))
    assert "layer blocks.0 of ByHand explains 99 % of the score, by measuring" in caplog.text
    assert "TokenGrid(size=(3, 5)" in caplog.text


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    net = ByHand((0.3, 0.7)).double().eval()
    net.blocks[0].train()  # a flag of a module without an effect
    net.patches.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kept = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m))) for m in net.modules()]
    state, x = torch.get_rng_state(), images(1, 12, 20).requires_grad_()
    found = find_layer(net, x)
    assert isinstance(found, FoundLayer)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m))) for m in net.modules()] == kept
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert x.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_grad_mode_around_does_not_matter(mode: Callable[[], Any]) -> None:
    net, x = ByHand((0.01, 0.99)).double().eval(), images(1, 12, 20)
    with mode():
        assert find_layer(net, x) == find_layer(net, x)
        assert find_layer(net, x.clone()).name == "blocks.0"


def test_threads_do_not_disturb_each_other() -> None:
    net, x = ByHand((0.01, 0.02, 0.97)).double().eval(), images(1, 12, 20)
    found: list[str] = []

    def work() -> None:
        for _ in range(3):
            with torch.no_grad():
                net(x)
            found.append(find_layer(net, x).name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["blocks.1"] * 12


def test_the_model_runs_a_few_times_only() -> None:
    def passes(net: nn.Module, x: Tensor) -> int:
        count = []
        handle = net.register_forward_pre_hook(lambda *_: count.append(1))
        find_layer(net, x)
        handle.remove()
        return len(count)

    convolutional = nn.Sequential(convolutions(6, 8, 8, 8, 8, 8), GAP()).double().eval()
    assert passes(convolutional, images(1, 70, 90)) == 2
    deep = ByHand((0.01,) * 20 + (0.8,)).double().eval()
    assert passes(deep, images(1, 12, 20)) <= 10


def test_on_the_meta_device_the_last_layer_is_taken_unmeasured() -> None:
    with torch.device("meta"):
        net = nn.Sequential(convolutions(6, 8), GAP(), nn.Linear(8, 4)).eval()
        found = find_layer(net, torch.rand(1, 3, 20, 12))
    assert found.name == "0"
    assert found.coverage != found.coverage


# What is refused


def test_a_function_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"model must be a torch\.nn\.Module.*got function; pass the module that embeds"
    ):
        find_layer(lambda x: x.mean((2, 3)), images(1, 7, 5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs must be a tensor of images"):
        find_layer(nn.Identity(), [images(1, 7, 5)])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8), (0, 3, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs must be a batch of images \(B, C, H, W\), got shape"):
        find_layer(nn.Identity().eval(), torch.zeros(shape))


def test_a_model_without_positions_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 5, 4)).double().eval()
    with pytest.raises(ValueError, match=r"model Sequential has no module with positions.*; name a layer"):
        find_layer(net, images(1, 7, 5))


def test_a_model_that_is_all_run_several_times_is_told_of_views() -> None:
    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(convolutions(6, 8), GAP())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.net(x.flip(-1))

    with pytest.raises(ValueError, match=r"\(net\.0 and others run several times: for views of one image pass a Views"):
        find_layer(Mirrored().double().eval(), images(1, 20, 12))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_is_told_to_come_as_it_was() -> None:
    net = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval())
    with pytest.raises(ValueError, match="no module was called: a scripted, traced or exported model"):
        find_layer(net, images(1, 7, 5))


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model is in training mode \(BatchNorm2d\).*call model\.eval\(\) first"):
        find_layer(nn.Sequential(convolutions(6, 8), GAP()), images(1, 20, 12, dtype=torch.float32))


def test_hooks_are_gone_even_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(99, 4)).double().eval()
    with pytest.raises(RuntimeError):
        find_layer(net, images(1, 5, 5))
    assert not any(module._forward_hooks for module in net.modules())


# A layer that was chosen


def test_a_chosen_layer_is_measured() -> None:
    net = ByHand((0.4, 0.6)).double().eval()
    found = measure_layer(net, images(1, 12, 20), "blocks.0")
    assert (found.name, found.token_grid) == ("blocks.0", TokenGrid(size=(3, 5)))
    assert found.coverage == pytest.approx(0.6, abs=1e-12)
    assert measure_layer(net, images(1, 12, 20), net.patches).token_grid is None
    assert measure_layer(net, images(1, 12, 20), "norm").coverage == 0  # no position has an influence there


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("1", "layer '1' of Sequential gives no tensor with positions of the image; name another"),
        ("0.0.3", "layer '0.0.3' is no submodule of Sequential"),
    ],
)
def test_a_chosen_layer_without_positions_is_refused(layer: str, message: str) -> None:
    net = nn.Sequential(convolutions(6, 8), GAP()).double().eval()
    with pytest.raises(ValueError, match=message):
        measure_layer(net, images(1, 20, 12), layer)


def test_find_layer_is_public() -> None:
    assert captum_fam.find_layer is captum_fam.attr.find_layer is find_layer
    assert captum_fam.FoundLayer is FoundLayer
