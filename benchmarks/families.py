"""Embedding-model families with random weights, small enough for a processor, built without a download.

What people compare images with: image models of timm, torchvision, transformers, open_clip, lightly and
facenet_pytorch, and the heads of retrieval, re-identification and face verification, written out here. `FAMILIES`
names two layers of each, the last one with positions and an early one, and says what else may hold a part of the
score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from captum_fam import TokenGrid

CLASS_TOKEN, REGISTERS, BIAS = "class token", "registers", "bias"


@dataclass(frozen=True)
class Place:
    """A layer to explain.

    Attributes:
        layer: its dotted name.
        grid: lays its tokens out as ``(B, N, h, w)``; None where it gives that already.
        beside: what holds a part of the score and lies nowhere on the image: tokens at this layer or behind it, and
            biases that act where no position owns them, behind the pooling.
    """

    layer: str
    grid: TokenGrid | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """An embedding model, ``(B, 3, *size) -> (B, J)``.

    Attributes:
        name: the package it comes from, "heads" for those of this file, a slash, and its own name.
        build: makes it, with the weights that its package starts from.
        size: height and width of its images.
        last: the last layer that has positions and on which all of the score depends.
        early: the first stage, or the input of the first block.
        precision: the widest that it computes in, whatever its weights.
        unseen: what part of it no function mode sees; empty where there is none.
    """

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    last: Place
    early: Place
    precision: torch.dtype = torch.float64
    unseen: str = ""

    @property
    def places(self) -> dict[str, Place]:
        return {"last": self.last, "early": self.early}


# ---- heads and small networks of the places where people compare embeddings


def convolutions(*channels: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Stages of 3 x 3 convolution, batch norm and activation function, each of half the resolution."""
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), activation())
            for before, after in zip((3, *channels), channels, strict=False)
        )
    )


class GlobalAverage(nn.Module):
    """``(B, N, h, w) -> (B, N)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class UnitLength(nn.Module):
    """Division by the Euclidean length, written as a division instead of ``normalize``."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


class GeneralizedMean(nn.Module):
    """GeM pooling as in cnnimageretrieval-pytorch: a clamp, a power, an average pooling and a root."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.clamp(min=1e-6).pow(self.p), x.shape[-2:]).pow(1.0 / self.p).flatten(1)


class Normalize(nn.Module):
    """L2 normalization by torch's function."""

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=1)


class Parts(nn.Module):
    """PCB: horizontal stripes, each pooled, embedded by itself, and concatenated.

    Args:
        lengths: divide each part by its own length.
    """

    def __init__(self, channels: int, parts: int = 3, features: int = 16, lengths: bool = False) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((parts, 1))
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, features, bias=False), nn.BatchNorm1d(features)) for _ in range(parts)
        )
        self.lengths = lengths

    def forward(self, x: Tensor) -> Tensor:
        stripes = self.pool(x).squeeze(3).unbind(2)
        parts = [embed(stripe) for embed, stripe in zip(self.embed, stripes, strict=True)]
        if self.lengths:
            parts = [normalize(part, dim=1) for part in parts]
        return torch.cat(parts, 1)


class IResidual(nn.Module):
    """Block of ArcFace's residual network: the norm comes first, the activation is a PReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.PReLU(after),
            nn.Conv2d(after, after, 3, 2, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return self.path(x) + self.shortcut(x)


class OmniScale(nn.Module):
    """OSNet's block: streams of growing receptive field, each multiplied by the same small gate of its own mean."""

    def __init__(self, channels: int, streams: int = 3) -> None:
        super().__init__()

        def light(depth: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, channels, 1, bias=False),
                    nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
            return nn.Sequential(*layers)

        self.streams = nn.ModuleList(light(depth + 1) for depth in range(streams))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        paths = [stream(x) for stream in self.streams]
        mixed = sum((path * self.gate(path) for path in paths), start=torch.zeros_like(x))
        return torch.relu(self.project(mixed) + x)


class SqueezeExcitation(nn.Module):
    """Channels multiplied by a sigmoid of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class AttentionPooling(nn.Module):
    """A learned query attends to the positions, by torch's ``MultiheadAttention``."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.query_token = nn.Parameter(torch.randn(1, 1, channels))
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query = self.query_token.expand(len(x), -1, -1)
        pooled: Tensor = self.attention(query, tokens, tokens, need_weights=False)[0]
        return pooled[:, 0]


class Scripted(nn.Module):
    """A bias and a normalization in TorchScript, which no function mode sees."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x + self.bias, dim=1)


def _here(head: Callable[[], nn.Module], channels: Sequence[int] = (16, 24, 32)) -> Callable[[], nn.Module]:
    """Three convolutional stages (0.0, 0.1, 0.2) and a head (1)."""
    return lambda: nn.Sequential(convolutions(*channels), head())


def _arcface() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16)),
        nn.Sequential(IResidual(16, 24), IResidual(24, 32), IResidual(32, 48)),
        nn.Sequential(nn.BatchNorm2d(48), nn.Dropout(0.4), nn.Flatten(), nn.Linear(48 * 6 * 4, 32), nn.BatchNorm1d(32)),
    )


def _osnet() -> nn.Module:
    return nn.Sequential(
        convolutions(16, 32),
        nn.Sequential(OmniScale(32), nn.AvgPool2d(2), OmniScale(32)),
        nn.Sequential(GlobalAverage(), nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU()),
    )


# ---- packages


class Output(nn.Module):
    """A transformers model whose embedding is a field of what it returns."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = getattr(self.model(pixel_values=x), self.field)
        return embedding.flatten(1)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=0, **options)
        return model

    return build


def _focalnet() -> nn.Module:
    from timm.models.focalnet import FocalNet

    model: nn.Module = FocalNet(num_classes=0, embed_dim=24, depths=(1, 1, 1, 1))
    return model


def _mixer(block: str, mlp: str, mlp_ratio: float | tuple[float, float]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from timm.models import mlp_mixer

        model: nn.Module = mlp_mixer.MlpMixer(
            num_classes=0,
            img_size=(64, 96),
            num_blocks=3,
            embed_dim=64,
            mlp_ratio=mlp_ratio,
            block_layer=getattr(mlp_mixer, block),
            mlp_layer=getattr(mlp_mixer, mlp),
        )
        return model

    return build


def _torchvision(name: str, classifier: str, keep: int = 0, **options: Any) -> Callable[[], nn.Module]:
    """A network, or an architecture in a small size, with the first ``keep`` modules of its classifier."""

    def build() -> nn.Module:
        import torchvision

        model: nn.Module = getattr(torchvision.models, name)(**options)
        setattr(model, classifier, nn.Sequential(*list(getattr(model, classifier).children())[:keep]))
        return model

    return build


def _swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    model: nn.Module = SwinTransformer(**_WINDOWS, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
    model.head = nn.Identity()
    return model


def _squeezenet() -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.squeezenet1_1()
    model.classifier = nn.AdaptiveAvgPool2d(1)
    return model


def _vgg() -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    model: nn.Module = VGG(make_layers([16, "M", 24, "M", 32, 32, "M"], batch_norm=True), init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d((2, 3))
    model.classifier = nn.Sequential(nn.Linear(32 * 6, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 32))
    return model


def _transformers(model: str, config: str, field: str = "pooler_output", **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return Output(getattr(transformers, model)(getattr(transformers, config)(**options)), field)

    return build


def _open_clip_vit(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from open_clip.transformer import VisionTransformer

        size = {"image_size": (64, 96), "patch_size": 16, "width": 64, "layers": 3, "heads": 4, "mlp_ratio": 2}
        model: nn.Module = VisionTransformer(**size, output_dim=32, **options)
        return model

    return build


def _open_clip_resnet() -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet(layers=[1, 1, 1, 1], output_dim=32, heads=8, image_size=64, width=16)


def _facenet() -> nn.Module:
    from facenet_pytorch import InceptionResnetV1

    return InceptionResnetV1(pretrained=None)


def _lightly(head: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from lightly.models.modules import heads

        return nn.Sequential(convolutions(16, 24, 32), nn.Sequential(GlobalAverage(), getattr(heads, head)(**options)))

    return build


# ---- the table

FAMILIES: dict[str, Family] = {}


def _add(
    name: str,
    build: Callable[[], nn.Module],
    last: str | Place,
    early: str | Place,
    size: tuple[int, int] = (64, 96),
    head_bias: bool = False,
    **properties: Any,
) -> None:
    """Channels come first at a layer given by its name alone; ``head_bias``: biases stand behind the pooling."""

    def placed(place: str | Place) -> Place:
        place = Place(place) if isinstance(place, str) else place
        return replace(place, beside=(*place.beside, BIAS)) if head_bias else place

    FAMILIES[name] = Family(name, build, size, placed(last), placed(early), **properties)


def _tokens(layer: str, height: int, width: int, *before: str, joining: tuple[str, ...] = ()) -> Place:
    """Tokens ``(B, T, N)``: some stand ``before`` the patches, others are ``joining`` them behind the layer."""
    prefix = {CLASS_TOKEN: 1, REGISTERS: 4}
    grid = TokenGrid(size=(height, width), prefix_tokens=sum(prefix[token] for token in before))
    return Place(layer, grid, before + joining)


def _channels_last(layer: str, joining: tuple[str, ...] = ()) -> Place:
    """A grid ``(B, h, w, N)``."""
    return Place(layer, TokenGrid(), joining)


# Small sizes: 4 x 6 patches for 64 x 96 pixels of 16, and for 56 x 84 of 14.
_VIT: dict[str, Any] = {"img_size": (64, 96), "depth": 3, "embed_dim": 96, "num_heads": 3}
_VIT_14: dict[str, Any] = {**_VIT, "img_size": (56, 84)}
_SWIN: dict[str, Any] = {
    "img_size": (64, 96),
    "window_size": (2, 3),
    "embed_dim": 24,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
}
_WINDOWS: dict[str, Any] = {
    "patch_size": [4, 4],
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 3],
}
_HF: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}

for _name, _last, _early in (
    ("resnet18", "layer4", "layer1"),
    ("nf_regnet_b0", "final_act", "stages.0"),
    ("efficientnet_b0", "bn2", "blocks.0"),
    ("regnety_002", "s4", "s1"),
    ("densenet121", "features", "features.denseblock1"),
    ("resnest14d", "layer4", "layer1"),
    ("skresnet18", "layer4", "layer1"),
    ("ecaresnet26t", "layer4", "layer1"),
    ("lambda_resnet26t", "stages.3", "stages.0"),
    ("pvt_v2_b0", "stages", "stages.0"),
    ("mobilevit_xxs", "final_conv", "stages.0"),
    ("mobilevitv2_050", "stages", "stages.0"),
):
    _add(f"timm/{_name}", _timm(_name), _last, _early)
# Biases of a pooled context, and of tokens pooled in the order of rows, own no position.
for _name, _last in (("gcresnet33ts", "final_conv"), ("nextvit_small", "norm")):
    _add(f"timm/{_name}", _timm(_name), _last, Place("stages.0", beside=(BIAS,)))
_add("timm/coatnet_nano_rw", _timm("coatnet_nano_rw_224", img_size=(64, 96)), "norm", "stages.0")
_add("timm/gcvit_xxtiny", _timm("gcvit_xxtiny", img_size=(64, 96)), "stages", "stages.0")
_add("timm/starnet", _timm("starnet_s1", depths=(1, 1, 1, 1)), "norm", "stages.0")
_add("timm/focalnet", _focalnet, "norm", "layers.0")

# A norm or another layer with a bias behind the pooling.
for _name, _last, _early in (
    ("mobilenetv3_small_100", "blocks", "blocks.0"),
    ("mobilenetv4_conv_small", "blocks", "blocks.0"),
    ("ghostnetv2_100", "blocks", "blocks.0"),
    ("convnext_atto", "norm_pre", "stages.0"),
    ("convnextv2_atto", "norm_pre", "stages.0"),
    ("edgenext_xx_small", "norm_pre", "stages.0"),
    ("poolformer_s12", "stages", "stages.0"),
):
    _add(f"timm/{_name}", _timm(_name), _last, _early, head_bias=True)
_add(
    "timm/efficientvit_b0",
    _timm("efficientvit_b0"),
    last="head.in_conv",
    early="stages.0",
    head_bias=True,
    precision=torch.float32,  # its attention
)
_add(
    "timm/caformer_s18",
    _timm("caformer_s18"),
    last="stages",
    early="stages.0",
    head_bias=True,
)
_add(
    "timm/davit_tiny",
    _timm("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192), num_heads=(1, 2, 4, 8), window_size=2),
    last="norm_pre",
    early="stages.0",
    size=(64, 128),
    head_bias=True,
)
_add(
    "timm/maxvit_tiny_tf",
    _timm("maxvit_tiny_tf_224", img_size=64, depths=(1, 1, 1, 1)),
    last="stages",
    early="stages.0",
    size=(64, 64),
    head_bias=True,
)

# Tokens without a class token.
_add("timm/efficientformer_l1", _timm("efficientformer_l1"), _tokens("norm", 7, 7), "stages.0", size=(224, 224))
_add("timm/levit_128s", _timm("levit_128s"), _tokens("stages", 4, 4), "stem", size=(224, 224))
for _name, _block, _mlp, _ratio in (
    ("mixer", "MixerBlock", "Mlp", (0.5, 4.0)),
    ("gmixer", "MixerBlock", "GluMlp", (1.0, 4.0)),
    ("gmlp", "SpatialGatingBlock", "GatedMlp", 6),
):
    # Layers across the tokens have hidden units that belong to no position, and biases there.
    _across = (BIAS,) if _block == "MixerBlock" else ()
    _add(
        f"timm/{_name}",
        _mixer(_block, _mlp, _ratio),
        last=_tokens("norm", 4, 6),
        early=_tokens("stem", 4, 6, joining=_across),
    )
_add(
    "timm/siglip",
    _timm("vit_base_patch16_siglip_224", **_VIT),
    last=_tokens("norm", 4, 6),
    early=_tokens("pos_drop", 4, 6),
    head_bias=True,
)
_add(
    "timm/hiera_tiny",
    _timm("hiera_tiny_224", img_size=(64, 96), stages=(1, 1, 1, 1), embed_dim=24),
    last=_tokens("blocks.3", 2, 3),
    early=_tokens("patch_embed", 16, 24),
    head_bias=True,
)
for _name, _options, _last, _early in (
    ("swin_tiny_patch4_window7_224", _SWIN, "norm", "layers.0"),
    ("swinv2_tiny_window8_256", _SWIN, "norm", "layers.0"),
):
    _add(f"timm/{_name}", _timm(_name, **_options), _channels_last(_last), _channels_last(_early))
_add(
    "timm/twins_svt_small",
    _timm("twins_svt_small"),
    last=_tokens("norm", 2, 3),
    early=_tokens("pos_block.0", 16, 24),  # its windows reach beyond the image
)
_add(
    "timm/mambaout_femto",
    _timm("mambaout_femto"),
    last=_channels_last("stages"),
    early=_channels_last("stages.0"),
    head_bias=True,
)
_add(
    "timm/sequencer2d_s",
    _timm("sequencer2d_s"),
    last=_channels_last("norm"),
    early=_channels_last("stages.0"),
    unseen="an LSTM is one fused call",
)

# A class token and registers. Behind the last attention the patches do not reach the class token.
for _name, _options, _before, _size, _head_bias in (
    ("vit_tiny_patch16_224", _VIT, (CLASS_TOKEN,), (64, 96), False),
    ("deit3_small_patch16_224", _VIT, (CLASS_TOKEN,), (64, 96), False),
    ("vit_small_patch16_dinov3", _VIT, (CLASS_TOKEN, REGISTERS), (64, 96), False),
    ("vit_small_patch14_reg4_dinov2", _VIT_14, (CLASS_TOKEN, REGISTERS), (56, 84), False),
    ("eva02_tiny_patch14_224", _VIT_14, (CLASS_TOKEN,), (56, 84), True),
    ("beit_base_patch16_224", _VIT, (CLASS_TOKEN,), (64, 96), True),
):
    _add(
        f"timm/{_name}",
        _timm(_name, **_options),
        last=_tokens("blocks.1", 4, 6, *_before),
        early=_tokens("pos_drop", 4, 6, *_before),
        size=_size,
        head_bias=_head_bias,
    )
_add(
    "timm/pit_ti",
    _timm("pit_ti_224", img_size=(64, 96)),
    last=_tokens("transformers.2.blocks.2", 2, 3, CLASS_TOKEN),
    early=_tokens("transformers.0.norm", 7, 11, CLASS_TOKEN),
)

# A class token that joins the patches in the middle.
_JOINING = (CLASS_TOKEN,)
_add(
    "timm/cait_xxs24",
    _timm("cait_xxs24_224", **{**_VIT, "num_heads": 4}),
    last=_tokens("blocks", 4, 6, joining=_JOINING),
    early=_tokens("pos_drop", 4, 6, joining=_JOINING),
    head_bias=True,
)
_add(
    "timm/xcit_nano",
    _timm("xcit_nano_12_p16_224", img_size=(64, 96), depth=3),
    last=_tokens("blocks.2", 4, 6, joining=_JOINING),
    early=_tokens("pos_drop", 4, 6, joining=_JOINING),
    head_bias=True,
)
_add(
    "timm/volo_d1",
    _timm("volo_d1_224", img_size=(64, 96)),
    last=_channels_last("network.4", _JOINING),
    early=_channels_last("network.0", _JOINING),
)

_add("torchvision/resnet18", _torchvision("resnet18", "fc"), "layer4", "layer1")
_add("torchvision/squeezenet1_1", _squeezenet, "features", "features.2")
_add(
    "torchvision/densenet121",
    _torchvision("DenseNet", "classifier", growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16),
    last="features",
    early="features.denseblock1",
)
_add("torchvision/efficientnet_b0", _torchvision("efficientnet_b0", "classifier"), "features", "features.1")
_add("torchvision/regnet_y_400mf", _torchvision("regnet_y_400mf", "fc"), "trunk_output", "stem")
_add(
    "torchvision/convnext_tiny",
    _torchvision("convnext_tiny", "classifier", keep=2),
    last="features",
    early="features.1",
    head_bias=True,
)
_add(
    "torchvision/mobilenet_v3_small",
    _torchvision("mobilenet_v3_small", "classifier", keep=2),
    last="features",
    early="features.1",
    head_bias=True,
)
_add("torchvision/vgg", _vgg, "features", "features.3", size=(32, 48), head_bias=True)
_add(
    "torchvision/maxvit",
    _torchvision(
        "MaxVit",
        "classifier",
        keep=5,
        input_size=(64, 64),
        stem_channels=16,
        partition_size=2,
        block_channels=[16, 24, 32],
        block_layers=[1, 1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
    ),
    last="blocks.2",
    early="stem",
    size=(64, 64),
    head_bias=True,
)
_add(
    "torchvision/swin",
    _torchvision("SwinTransformer", "head", **_WINDOWS),
    last=_channels_last("norm"),
    early=_channels_last("features.0"),
)
_add("torchvision/swin_v2", _swin_v2, last=_channels_last("norm"), early=_channels_last("features.0"))
_add(
    "torchvision/vit",
    _torchvision(
        "VisionTransformer",
        "heads",
        image_size=64,
        patch_size=16,
        num_layers=3,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
    ),
    last=_tokens("encoder.layers.encoder_layer_1", 4, 4, CLASS_TOKEN),
    early=_tokens("encoder.dropout", 4, 4, CLASS_TOKEN),
    size=(64, 64),
)

_add(
    "transformers/clip",
    _transformers(
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        field="image_embeds",
        **_HF,
        intermediate_size=128,
        image_size=64,
        patch_size=16,
        projection_dim=32,
    ),
    last=_tokens("model.vision_model.encoder.layers.1", 4, 4, CLASS_TOKEN),
    early=_tokens("model.vision_model.pre_layrnorm", 4, 4, CLASS_TOKEN),
    size=(64, 64),
    head_bias=True,
)
_add(
    "transformers/siglip",
    _transformers(
        "SiglipVisionModel", "SiglipVisionConfig", **_HF, intermediate_size=128, image_size=64, patch_size=16
    ),
    last=_tokens("model.post_layernorm", 4, 4),
    early=_tokens("model.embeddings", 4, 4),
    size=(64, 64),
    head_bias=True,
)
_add(
    "transformers/dinov2",
    _transformers("Dinov2Model", "Dinov2Config", **_HF, mlp_ratio=2, image_size=56, patch_size=14),
    last=_tokens("model.encoder.layer.1", 4, 6, CLASS_TOKEN),
    early=_tokens("model.embeddings", 4, 6, CLASS_TOKEN),
    size=(56, 84),
)
_add(
    "transformers/dinov2_with_registers",
    _transformers(
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        **_HF,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        use_swiglu_ffn=True,
    ),
    last=_tokens("model.encoder.layer.1", 4, 6, CLASS_TOKEN, REGISTERS),
    early=_tokens("model.embeddings", 4, 6, CLASS_TOKEN, REGISTERS),
    size=(56, 84),
)
_add(
    "transformers/vit",
    _transformers(
        "ViTModel",
        "ViTConfig",
        **_HF,
        intermediate_size=128,
        image_size=(64, 96),
        patch_size=16,
        attn_implementation="eager",
    ),
    last=_tokens("model.layers.1", 4, 6, CLASS_TOKEN),
    early=_tokens("model.embeddings", 4, 6, CLASS_TOKEN),
    head_bias=True,
)
_add(
    "transformers/swin",
    _transformers(
        "SwinModel",
        "SwinConfig",
        image_size=(64, 96),
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    last=_tokens("model.layernorm", 8, 12),
    early=_tokens("model.embeddings.norm", 16, 24),
)
_add(
    "transformers/convnext",
    _transformers("ConvNextModel", "ConvNextConfig", hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1]),
    last="model.encoder.stages.3",
    early="model.encoder.stages.0",
    head_bias=True,
)
_add(
    "transformers/resnet",
    _transformers("ResNetModel", "ResNetConfig", embedding_size=16, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 1, 1]),
    last="model.encoder.stages.3",
    early="model.encoder.stages.0",
)

_add(
    "open_clip/vit",
    _open_clip_vit(),
    last=_tokens("transformer.resblocks.1", 4, 6, CLASS_TOKEN),
    early=_tokens("ln_pre", 4, 6, CLASS_TOKEN),
)
_add(
    "open_clip/vit_pooled",
    _open_clip_vit(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=4),
    last=_tokens("transformer.resblocks.2", 4, 6, CLASS_TOKEN),
    early=_tokens("ln_pre", 4, 6, CLASS_TOKEN),
    head_bias=True,
)
_add("open_clip/resnet", _open_clip_resnet, "layer4", "layer1", size=(64, 64), head_bias=True)

_add("facenet_pytorch/inception_resnet_v1", _facenet, "block8", "conv2d_4b", size=(128, 160), head_bias=True)
_add(
    "lightly/simclr",
    _lightly("SimCLRProjectionHead", input_dim=32, hidden_dim=48, output_dim=16),
    last="0.2",
    early="0.0",
    head_bias=True,
)
_add(
    "lightly/dino",
    _lightly("DINOProjectionHead", input_dim=32, hidden_dim=48, bottleneck_dim=16, output_dim=64),
    last="0.2",
    early="0.0",
    head_bias=True,
)

_add("heads/arcface", _arcface, "1.2", "0", size=(48, 32), head_bias=True)
_add("heads/pcb", _here(lambda: Parts(32)), "0.2", "0.0", size=(96, 48), head_bias=True)
_add("heads/pcb_l2", _here(lambda: Parts(32, lengths=True)), "0.2", "0.0", size=(96, 48), head_bias=True)
_add("heads/osnet", _osnet, "1", "0.0", size=(96, 48), head_bias=True)
_add(
    "heads/gem_l2_whiten_l2",
    _here(lambda: nn.Sequential(GeneralizedMean(), UnitLength(), nn.Linear(32, 24), UnitLength())),
    last="0.2",
    early="0.0",
    head_bias=True,
)
_add(
    "heads/gem_l2_linear_l2",
    _here(lambda: nn.Sequential(GeneralizedMean(), UnitLength(), nn.Linear(32, 24, bias=False), UnitLength())),
    last="0.2",
    early="0.0",
)
_add("heads/attention_pooling", _here(lambda: AttentionPooling(32)), "0.2", "0.0", head_bias=True)
_add("heads/squeeze_excitation", _here(lambda: nn.Sequential(SqueezeExcitation(32), GlobalAverage())), "0.2", "0.0")
_add(
    "heads/scripted",
    _here(lambda: nn.Sequential(GlobalAverage(), torch.jit.script(Scripted(32)))),
    last="0.2",
    early="0.0",
    head_bias=True,
    unseen="a TorchScript module",
)


# ---- random weights and images


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every weight random and of a size that counts, and put the model in evaluation mode.

    As they are built, biases, tokens and positions are zero or tiny, scales are one, running statistics are those of
    white noise, and the last layer of a block is often zero: most of what an account has to cover would be zero by
    itself.

    Args:
        model: changed in place.
        seed: of the numbers.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).mul(high - low).add(low).to(like)

    def signed(like: Tensor) -> Tensor:
        return uniform(like, 0.1, 0.5) * torch.where(uniform(like, -1.0, 1.0) < 0, -1.0, 1.0)

    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if any(word in name for word in _ADDED) or isinstance(module, nn.Embedding):
                    parameter.copy_(signed(parameter))
                elif parameter.dim() > 1 and ("weight" in name or name == "proj"):
                    gain = math.sqrt(2) if parameter.dim() == 4 else 1.0
                    fan_in = parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / math.sqrt(fan_in))
                else:
                    parameter.copy_(uniform(parameter, 0.5, 1.5))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(signed(module.running_mean))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
    return model.eval()


_ADDED = ("bias", "beta", "token", "pos", "embed", "latent", "probe", "query")


def random_images(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Colors that vary smoothly, with noise: ``(count, 3, *size)``, and unlike one another."""
    generator = torch.Generator().manual_seed(seed)
    smooth = interpolate(torch.randn(count, 3, 3, 3, generator=generator), size, mode="bilinear")
    return 1.5 * smooth + 0.3 * torch.randn(count, 3, *size, generator=generator)
