"""Transformers: tokens must be laid out as an image, and a map of tokens that decide nothing is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, TokenGrid
from captum_fam.attr.tokens import TokenHints, looks_channels_last, measure_token_grid

pytestmark = [
    pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning"),
    pytest.mark.filterwarnings("ignore:the map explains:UserWarning"),  # small nets with random weights
]

Method = Callable[..., Any]
ALL = [LayerFAM, LayerSimilarityCAM, LayerCorrespondence]


def _randomly(net: nn.Module) -> Any:
    """Weights large enough that the class token sees the patches (torchvision starts its last head at zero)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.4 * noise)
    return net.double().eval()


@pytest.fixture
def vit() -> Any:
    """Two blocks, 4 x 4 patches and a class token, 12 channels; the embedding is the class token."""
    net = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24
    )
    net.heads = nn.Identity()
    return _randomly(net)


@pytest.fixture
def swin() -> Any:
    """Two stages, (B, 4, 2, 8) and (B, 2, 1, 16) for images of 16 x 8."""
    net = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=[2, 2]
    )
    net.head = nn.Identity()
    return _randomly(net)


class Registers(nn.Module):
    """A transformer of 3 x 5 patches behind a class token and two registers, on images of 12 x 20."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.prefix = nn.Parameter(torch.zeros(1, 3, 8))
        self.places = nn.Parameter(torch.zeros(1, 18, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.last = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.places
        tokens = self.last(self.block(tokens))
        return tokens[:, 0] if self.pool == "class token" else tokens[:, 3:].mean(1)


def images(count: int, *size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class HeldNorm(nn.LayerNorm):
    """Its deviation is a constant."""

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(-1, correction=0, keepdim=True).detach()
        return (x - x.mean(-1, keepdim=True)) / (variance + self.eps).sqrt() * self.weight + self.bias


class HeldGELU(nn.GELU):
    """Its slope from zero is a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (nn.functional.gelu(x) / x).detach()


class HeldAttention(nn.MultiheadAttention):
    """Its weights are constants; for attention of tokens to themselves, one head after another."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        queries, keys, values = (x @ self.in_proj_weight.T + self.in_proj_bias).chunk(3, -1)
        heads = []
        for q, k, v in zip(*(part.split(self.head_dim, -1) for part in (queries, keys, values)), strict=True):
            weights = (q @ k.transpose(1, 2) / self.head_dim**0.5).softmax(-1).detach()
            heads.append(weights @ v)
        return self.out_proj(torch.cat(heads, -1)), None


def exact_map(net: Any, name: str, x: Tensor, support: Tensor) -> Tensor:
    """Gradient of <z, u> times the activation, in plain autograd of a model that holds its scales itself."""
    held = copy.deepcopy(net)
    for module in held.modules():
        for kind in (HeldNorm, HeldGELU, HeldAttention):
            if type(module) is kind.__base__:
                module.__class__ = kind
    softmax = nn.functional.softmax
    saved: list[Tensor] = []
    held.get_submodule(name).register_forward_hook(lambda _, __, output: saved.append(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "softmax", lambda *args, **options: softmax(*args, **options).detach())
        z = held(x)
    t = nn.functional.normalize(net(support)).mean(0).detach()
    u = t / z.detach().norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad((z * u).sum(), saved[0])
    return (gradient * saved[0]).detach()


# Vision transformers


@pytest.mark.parametrize(
    "name",
    [
        "encoder.dropout",
        "encoder.layers.encoder_layer_0.ln_1",
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_1.ln_1",
    ],
)
def test_the_patches_of_a_vit_get_the_exact_shares(name: str, vit: Any) -> None:
    """Also on the residual stream, where a norm follows."""
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    got = LayerSimilarityCAM(vit, name, token_grid=TokenGrid(), biases="apart").attribute(x, support)
    want = exact_map(vit, name, x, support).sum(2)[:, 1:].reshape(2, 1, 4, 4)
    assert want.abs().max() > 1e-3
    assert torch.allclose(got, want, atol=1e-13)


def test_the_patch_embedding_of_a_vit_needs_no_grid(vit: Any) -> None:
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    got = LayerSimilarityCAM(vit, vit.conv_proj, biases="apart").attribute(x, support)
    assert torch.allclose(got, exact_map(vit, "conv_proj", x, support).sum(1, keepdim=True), atol=1e-13)


def test_the_class_token_has_a_share_of_its_own(vit: Any) -> None:
    name = "encoder.layers.encoder_layer_0"
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    details = LayerSimilarityCAM(vit, name, token_grid=TokenGrid(), biases="apart").details(x, support)
    exact = exact_map(vit, name, x, support).sum(2)
    z, t = nn.functional.normalize(vit(x)), nn.functional.normalize(vit(support))
    score = (z @ t.T).mean(1)
    assert torch.allclose(details.shares["class token"], exact[:, 0], atol=1e-13)
    assert torch.allclose(details.shares["bias"], score - exact.sum(1), atol=1e-13)
    assert torch.allclose(details.convergence_delta, exact[:, 1:].sum(1) - score, atol=1e-13)
    assert details.shares["rest"].abs().max() < 1e-13


@pytest.mark.parametrize("method", ALL)
def test_a_vit_is_explained_on_its_grid(method: Method, vit: Any) -> None:
    layer = vit.encoder.layers[-1].ln_1
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    got = method(vit, layer, token_grid=TokenGrid()).attribute(x, support)
    assert got.shape == (2, 1, 4, 4)
    assert got.flatten(1).std(1).min() > 0
    scores = SimilarityToSupport(vit, support)
    assert torch.allclose(method(scores, layer, token_grid=TokenGrid()).attribute(x), got)
    alone = method(vit, layer, token_grid=TokenGrid()).attribute(x[1:], support)
    assert torch.allclose(alone, got[1:], atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("decorated", [False, True])
def test_fused_attention_is_followed_in_every_grad_mode(mode: Callable[[], Any], decorated: bool, vit: Any) -> None:
    """In eval mode and without gradients torch's attention takes a fused path that has no derivative."""
    layer = vit.encoder.layers[-1].ln_1
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    want = LayerSimilarityCAM(vit, layer, token_grid=TokenGrid()).attribute(x, support)
    forward_func = mode()(lambda x: vit(x)) if decorated else vit
    with torch.enable_grad() if decorated else mode():
        got = LayerSimilarityCAM(forward_func, layer, token_grid=TokenGrid()).attribute(x, support)
    assert torch.allclose(got, want, atol=1e-13)


@pytest.mark.skipif(
    torch.__version__ < (2, 5),
    reason="before torch 2.5 a TransformerEncoderLayer without a graph passes over its layers and their hooks",
)
@pytest.mark.parametrize("pool", ["class token", "mean"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_registers_and_grids_that_are_not_square_are_laid_out(pool: str, mode: Callable[[], Any]) -> None:
    net = _randomly(Registers(pool))
    x, support = images(2, 12, 20), images(3, 12, 20, seed=1)
    grid = TokenGrid(size=(3, 5), prefix_tokens=3)
    with mode():
        got = LayerSimilarityCAM(net, net.last.norm1, token_grid=grid, biases="apart").attribute(x, support)
    want = exact_map(net, "last.norm1", x, support).sum(2)[:, 3:].reshape(2, 1, 3, 5)
    assert want.abs().max() > 1e-3
    assert torch.allclose(got, want, atol=1e-13)
    assert LayerFAM(net, "block", token_grid=grid).attribute(x, support).shape == (2, 1, 3, 5)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.encoder_layer_1.ln_1",
        "encoder.layers.encoder_layer_0",
        "encoder.dropout",
        "encoder.layers.encoder_layer_0.mlp",
    ],
)
def test_tokens_without_a_grid_are_refused(name: str, method: Method, vit: Any) -> None:
    message = r"gives \(2, 17, 12\), .*channels-last.*token_grid="
    with pytest.raises(ValueError, match=message):
        method(vit, name).attribute(images(2, 16, 16), images(3, 16, 16))


def test_tokens_are_refused_also_behind_a_head_of_another_length(vit: Any) -> None:
    vit.heads = nn.Linear(12, 5).double()
    for name in ("encoder.layers.encoder_layer_1.ln_1", "encoder.dropout"):  # the second has no sizes of its own
        with pytest.raises(ValueError, match="looks channels-last"):
            LayerFAM(vit, name).attribute(images(2, 16, 16), images(3, 16, 16))


BEHIND_THE_LAST_ATTENTION = [
    "encoder.layers.encoder_layer_1",
    "encoder.ln",
    "encoder.layers.encoder_layer_1.ln_2",
    "encoder.layers.encoder_layer_1.mlp",
]


@pytest.mark.parametrize("name", BEHIND_THE_LAST_ATTENTION)
def test_tokens_that_no_longer_reach_the_class_token_have_no_map(name: str, vit: Any) -> None:
    """After the last attention the patches decide nothing; only the class token does, which the grid drops."""
    with pytest.raises(ValueError, match=r"layer: .*does not depend on it.*last attention"):
        LayerFAM(vit, name, token_grid=TokenGrid()).attribute(images(2, 16, 16), images(3, 16, 16))


@pytest.mark.parametrize("name", BEHIND_THE_LAST_ATTENTION)
def test_behind_the_last_attention_the_class_token_has_the_whole_account(name: str, vit: Any) -> None:
    """But for what goes around a branch."""
    cam = LayerSimilarityCAM(vit, name, token_grid=TokenGrid())
    with pytest.warns(UserWarning, match=r"the map explains 0 % of the score"):
        details = cam.details(images(2, 16, 16), images(3, 16, 16, seed=1))
    assert not details.attributions.any()
    assert not details.coverage.any()
    beside = details.shares.get("other paths", torch.zeros(2))
    assert torch.allclose(details.shares["class token"] + beside, details.comparison.score, atol=1e-13)
    assert ("other paths" in details.shares) == name.endswith(("ln_2", "mlp"))


def test_attention_that_gives_its_weights_is_refused_by_name(vit: Any) -> None:
    layer = vit.encoder.layers[0].self_attention  # gives (tokens, None)
    with pytest.raises(ValueError, match=r"layer MultiheadAttention .*NoneType"):
        LayerFAM(vit, layer, token_grid=TokenGrid()).attribute(images(2, 16, 16), images(3, 16, 16))


# Swin transformers


@pytest.mark.parametrize(("name", "grid"), [("features.1", (4, 2)), ("features.3", (2, 1)), ("norm", (2, 1))])
@pytest.mark.parametrize("method", ALL)
def test_a_swin_is_explained_on_its_grid(method: Method, name: str, grid: tuple[int, int], swin: Any) -> None:
    x, support = images(2, 16, 8), images(3, 16, 8, seed=1)
    options = {"biases": "apart"} if method is LayerSimilarityCAM else {}
    got = method(swin, name, token_grid=TokenGrid(), **options).attribute(x, support)
    assert got.shape == (2, 1, *grid)
    if method is LayerSimilarityCAM:
        assert torch.allclose(got, exact_map(swin, name, x, support).sum(3).unsqueeze(1), atol=1e-13)


def test_the_exact_map_of_a_swin_sums_to_the_similarity(swin: Any) -> None:
    """Behind its last norm a Swin is pooling alone."""
    x, support = images(2, 16, 8), images(3, 16, 8, seed=1)
    got, delta = LayerSimilarityCAM(swin, swin.norm, token_grid=TokenGrid()).attribute(
        x, support, return_convergence_delta=True
    )
    z, t = nn.functional.normalize(swin(x)), nn.functional.normalize(swin(support))
    assert torch.allclose(got.flatten(1).sum(1), (z @ t.T).mean(1), atol=1e-13)
    assert delta.abs().max() < 1e-13


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", ["features.0", "features.1", "features.3", "norm"])
def test_a_swin_without_a_grid_is_refused(name: str, method: Method, swin: Any) -> None:
    with pytest.raises(ValueError, match=r"channels-last.*token_grid"):
        method(swin, name).attribute(images(2, 40, 24), images(3, 40, 24))


def test_the_channels_first_layers_of_a_swin_need_no_grid(swin: Any) -> None:
    x, support = images(2, 16, 8), images(3, 16, 8, seed=1)
    want = LayerFAM(swin, swin.norm, token_grid=TokenGrid()).attribute(x, support)
    got = LayerFAM(swin, swin.permute).attribute(x, support)
    assert torch.allclose(got, want, atol=1e-14)


# Convolutional models with layers that could be mistaken for tokens


def test_layer_norms_over_channels_first_maps_are_no_tokens() -> None:
    net = torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, 16, 1), torchvision.models.convnext.CNBlockConfig(16, None, 1)]
    )
    net.classifier = nn.Flatten()
    _randomly(net)
    x, support = images(2, 40, 24), images(3, 40, 24, seed=1)
    for name in ("features.0", "features.0.1", "features.1", "features.2.0", "features.3", "avgpool"):
        assert LayerFAM(net, name).attribute(x, support).shape[:2] == (2, 1)


def test_a_layer_norm_over_whole_maps_is_no_token_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LayerNorm([6, 5, 4]), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert LayerFAM(_randomly(net), net[1]).attribute(images(2, 7, 6), images(3, 7, 6)).shape == (2, 1, 5, 4)


def test_a_map_as_wide_as_the_embedding_is_long_is_no_token_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    assert LayerFAM(_randomly(net), net[1]).attribute(images(2, 7, 6), images(3, 7, 6)).shape == (2, 1, 5, 4)


def test_the_channels_decide_by_layer_then_model_then_embedding() -> None:
    tokens, maps = torch.zeros(2, 17, 12), torch.zeros(2, 6, 9, 12)
    plain = nn.Identity()
    assert looks_channels_last([nn.LayerNorm(12)], tokens, 5)
    assert looks_channels_last([plain, nn.LayerNorm(12)], tokens, 5)
    assert not looks_channels_last([plain, nn.Conv2d(3, 6, 1)], maps, 12)
    assert looks_channels_last([plain, print], tokens, 12)
    assert not looks_channels_last([plain, print], tokens, 17)
    assert not looks_channels_last([plain, print], torch.zeros(2, 12, 3, 12), 12)
    # As many tokens as channels: a layer of tokens alone still decides.
    assert looks_channels_last([nn.LayerNorm(12)], torch.zeros(2, 12, 12), 12)


def test_an_identity_as_grid_says_that_dimension_one_holds_the_channels() -> None:
    def forward(x: Tensor) -> Tensor:
        return pooling(layer(x)).flatten(1)

    layer, pooling = nn.Conv2d(3, 6, 3).double(), nn.AdaptiveAvgPool2d((1, 4))
    unpooled = nn.Identity()
    x, support = images(2, 7, 26), images(3, 7, 26)

    def pooled(x: Tensor) -> Tensor:
        return unpooled(layer(x)).mean((2, 3)).repeat(1, 4)  # J = 24, as wide as the map

    with pytest.raises(ValueError, match=r"token_grid=torch\.nn\.Identity\(\)"):
        LayerFAM(pooled, unpooled).attribute(x, support)
    got = LayerFAM(pooled, unpooled, token_grid=nn.Identity()).attribute(x, support)
    assert torch.allclose(got, LayerFAM(pooled, layer).attribute(x, support))


# TokenGrid


def test_token_grid_puts_each_token_in_its_place() -> None:
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    grid = TokenGrid(size=(2, 3))(tokens)
    assert grid.shape == (2, 3, 2, 3)
    for row in range(2):
        for column in range(3):
            assert torch.equal(grid[:, :, row, column], tokens[:, 1 + 3 * row + column])
    square = TokenGrid(prefix_tokens=0)(tokens[:, :4])
    assert torch.equal(square[:, :, 1, 0], tokens[:, 2])
    assert torch.equal(TokenGrid()(torch.zeros(2, 4, 5, 3)), torch.zeros(2, 3, 4, 5))


def test_a_class_token_between_the_patches_is_taken_out() -> None:
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    grid = TokenGrid(size=(2, 3), prefix_tokens=0, class_token=4)(tokens)
    want = [tokens[:, index] for index in (0, 1, 2, 3, 5, 6)]
    assert torch.equal(grid.flatten(2), torch.stack(want, 2))
    behind = TokenGrid(size=(1, 5), prefix_tokens=1, class_token=6)(tokens)
    assert torch.equal(behind[:, :, 0], tokens[:, 1:6].transpose(1, 2))


def test_tokens_may_come_first() -> None:
    tokens = torch.arange(7 * 2 * 3).reshape(7, 2, 3)
    grid = TokenGrid(size=(2, 3), sequence_first=True)
    assert torch.equal(grid(tokens), TokenGrid(size=(2, 3))(tokens.transpose(0, 1)))
    assert torch.equal(grid(tokens)[:, :, 1, 2], tokens[6])


@pytest.mark.parametrize("method", ALL)
def test_a_model_with_its_tokens_first_has_the_maps_of_one_with_its_batch_first(method: Method) -> None:
    class Encoder(nn.Module):
        def __init__(self, batch_first: bool) -> None:
            super().__init__()
            self.patches, self.batch_first = nn.Conv2d(3, 8, 4, stride=4), batch_first
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
            self.joined = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = self.joined(tokens if self.batch_first else tokens.transpose(0, 1))
            return self.block(tokens).mean(1 if self.batch_first else 0)

    first, last = _randomly(Encoder(True)), Encoder(False).double().eval()
    last.load_state_dict(first.state_dict())
    x, support = images(3, 12, 20), images(2, 12, 20, seed=1)
    grid = TokenGrid(size=(3, 5), prefix_tokens=0)
    want = method(first, first.joined, token_grid=grid).attribute(x, support)
    got = method(last, last.joined, token_grid=replace(grid, sequence_first=True)).attribute(x, support)
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "shape", "message"),
    [
        (TokenGrid(), (2, 16, 12), r"16 tokens .*1 prefix tokens .*3 x 3; pass TokenGrid\(size"),
        (TokenGrid(size=(3, 5)), (2, 18, 8), r"18 tokens .*3 x 5"),
        (TokenGrid(prefix_tokens=5), (2, 5, 8), r"5 tokens .*5 prefix tokens .*0 x 0"),
        (TokenGrid(), (2, 12), r"expected tokens .*got \(2, 12\)"),
        (TokenGrid(class_token=0), (2, 16, 8), r"class_token=0 .*16 tokens"),
        (TokenGrid(class_token=16), (2, 16, 8), r"class_token=16 .*16 tokens"),
        (
            TokenGrid(prefix_tokens=0, class_token=4),
            (2, 8, 8),
            r"8 tokens .*and a class token",
        ),
    ],
)
def test_tokens_that_fill_no_grid_are_refused(grid: TokenGrid, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(torch.zeros(shape))


def test_a_wrong_grid_is_refused_by_the_method(vit: Any) -> None:
    with pytest.raises(ValueError, match=r"token_grid: 17 tokens .*2 prefix tokens.*3 x 3"):
        LayerFAM(vit, vit.encoder.layers[-1].ln_1, token_grid=TokenGrid(prefix_tokens=2)).attribute(
            images(2, 16, 16), images(3, 16, 16)
        )


# Measuring grids


def grid_of(size: tuple[int, int] | None, prefix: int = 0, **options: int) -> TokenGrid:
    return TokenGrid(size, prefix, **options)


VIT, REGISTERS = TokenHints(class_tokens=1), TokenHints(class_tokens=1, registers=4)


@pytest.mark.parametrize(
    ("count", "image", "constant", "hints", "want"),
    [
        # Measured: tokens that are the same for every image.
        (197, (224, 224), [0], TokenHints(), grid_of(None, 1)),
        (196, (224, 224), [], VIT, grid_of(None)),  # XCiT and CaiT, whose class token joins later
        (201, (224, 224), [0, 1, 2, 3, 4], TokenHints(), grid_of(None, 5)),
        (25, (64, 96), [12], TokenHints(), grid_of((4, 6), class_token=12)),  # Vision Mamba
        (25, (64, 96), [24], TokenHints(), grid_of((4, 6), class_token=24)),
        # Mixed before they were seen: by the hints.
        (197, (224, 224), [], VIT, grid_of(None, 1)),
        (25, (64, 96), [], VIT, grid_of((4, 6), 1)),  # not 5 x 5, which is as far from 2:3
        (78, (64, 96), [], VIT, grid_of((7, 11), 1)),  # PiT's overlapping patches
        (29, (64, 96), [], REGISTERS, grid_of((4, 6), 5)),
        (28, (64, 96), [], TokenHints(registers=4), grid_of((4, 6), 4, registers=4)),
        (26, (64, 96), [], TokenHints(class_tokens=2), grid_of((4, 6), 2, registers=0)),
        # Without hints: the fewest that leave the very aspect of the image.
        (27, (64, 96), [], TokenHints(), grid_of((4, 6), 3)),
        # Constants that are no prefix, as padding is, say nothing.
        (24, (64, 96), [5, 11, 17, 23], TokenHints(), grid_of((4, 6))),
        # Overlapping patches of a spectrogram; a wide grid; one row.
        (1212, (128, 1024), [], TokenHints(), grid_of((12, 101))),
        (36, (64, 144), [], TokenHints(), grid_of((4, 9))),
        (6, (16, 96), [], TokenHints(), grid_of((1, 6))),
        # No positions.
        (256, (224, 224), [], TokenHints(queries=frozenset({256})), None),
        (1, (64, 96), [], TokenHints(), None),
        (2, (64, 64), [0], TokenHints(), None),
    ],
)
def test_a_grid_is_measured_by_the_aspect_of_the_image_and_what_it_leaves_out(
    count: int, image: tuple[int, int], constant: list[int], hints: TokenHints, want: TokenGrid | None
) -> None:
    assert measure_token_grid(count, image, constant, hints) == want
    if want is not None:
        size = want(torch.zeros(2, count, 3)).shape[2:]
        assert want.size is None or size == want.size


def test_the_names_of_parameters_say_which_tokens_a_model_has() -> None:
    def holding(**tokens: tuple[int, ...]) -> nn.Module:
        net = nn.Module()
        net.inner = nn.Module()
        for name, shape in tokens.items():
            net.inner.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        return net

    assert TokenHints.of(holding(cls_token=(1, 1, 8), reg_token=(1, 4, 8), pos_embed=(1, 21, 8))) == REGISTERS
    assert TokenHints.of(holding(cls_token=(1, 1, 8), register_tokens=(1, 4, 8), mask_token=(1, 8))) == REGISTERS
    assert TokenHints.of(holding(class_embedding=(8,), storage_tokens=(1, 4, 8))) == REGISTERS
    assert TokenHints.of(holding(cls_token=(1, 1, 8), dist_token=(1, 1, 8))) == TokenHints(class_tokens=2)
    assert TokenHints.of(holding(query=(15, 8))) == TokenHints(queries=frozenset({15}))
    assert TokenHints.of(torchvision.models.resnet18()) == TokenHints()
