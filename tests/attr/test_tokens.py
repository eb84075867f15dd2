"""Transformers: tokens must be laid out as an image, and a map of tokens that decide nothing is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, TokenGrid
from captum_fam.attr.tokens import looks_channels_last

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

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


def exact_map(net: Any, layer: nn.Module, x: Tensor, support: Tensor) -> Tensor:
    """Gradient of <z, u> times the activation, in plain autograd; the norm of z is held constant."""
    saved: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: saved.append(output))
    z = net(x)
    handle.remove()
    t = nn.functional.normalize(net(support)).mean(0).detach()
    u = t / z.detach().norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad((z * u).sum(), saved[0])
    return (gradient * saved[0]).detach()


# Vision transformers


@pytest.mark.parametrize("name", ["encoder.layers.encoder_layer_1.ln_1", "encoder.layers.encoder_layer_0.ln_1"])
def test_the_patches_of_a_vit_get_the_exact_shares(name: str, vit: Any) -> None:
    layer = vit.get_submodule(name)
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    got = LayerSimilarityCAM(vit, layer, token_grid=TokenGrid()).attribute(x, support)
    want = exact_map(vit, layer, x, support).sum(2)[:, 1:].reshape(2, 1, 4, 4)
    assert want.abs().max() > 1e-3
    assert torch.allclose(got, want, atol=1e-14)


def test_the_patch_embedding_of_a_vit_needs_no_grid(vit: Any) -> None:
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    got = LayerSimilarityCAM(vit, vit.conv_proj).attribute(x, support)
    assert torch.allclose(got, exact_map(vit, vit.conv_proj, x, support).sum(1, keepdim=True), atol=1e-14)


def test_the_share_of_a_patch_vanishes_where_a_norm_follows(vit: Any) -> None:
    """A norm forgets the length of a token, so that gradient times activation is zero on the residual stream."""
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    block, norm = vit.encoder.layers[0], vit.encoder.layers[1].ln_1
    of_block, of_norm = (
        LayerSimilarityCAM(vit, layer, token_grid=TokenGrid()).attribute(x, support) for layer in (block, norm)
    )
    assert of_block.abs().max() < 1e-5 * of_norm.abs().max()


def test_the_share_of_the_class_token_is_part_of_the_delta(vit: Any) -> None:
    layer = vit.encoder.layers[-1].ln_1
    x, support = images(2, 16, 16), images(3, 16, 16, seed=1)
    _, delta = LayerSimilarityCAM(vit, layer, token_grid=TokenGrid()).attribute(
        x, support, return_convergence_delta=True
    )
    shares = exact_map(vit, layer, x, support).sum(2)
    z, t = nn.functional.normalize(vit(x)), nn.functional.normalize(vit(support))
    assert torch.allclose(delta, shares[:, 1:].sum(1) - (z @ t.T).mean(1), atol=1e-13)


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
        got = LayerSimilarityCAM(net, net.last.norm1, token_grid=grid).attribute(x, support)
    want = exact_map(net, net.last.norm1, x, support).sum(2)[:, 3:].reshape(2, 1, 3, 5)
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
    message = r"gives \(2, 17, 12\), which looks channels-last; pass token_grid=TokenGrid\(\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        method(vit, name).attribute(images(2, 16, 16), images(3, 16, 16))


def test_tokens_are_refused_also_behind_a_head_of_another_length(vit: Any) -> None:
    vit.heads = nn.Linear(12, 5).double()
    for name in ("encoder.layers.encoder_layer_1.ln_1", "encoder.dropout"):  # the second has no sizes of its own
        with pytest.raises(ValueError, match="looks channels-last"):
            LayerFAM(vit, name).attribute(images(2, 16, 16), images(3, 16, 16))


@pytest.mark.parametrize("method", [LayerFAM, LayerSimilarityCAM])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.encoder_layer_1",
        "encoder.ln",
        "encoder.layers.encoder_layer_1.ln_2",
        "encoder.layers.encoder_layer_1.mlp",
    ],
)
def test_tokens_that_no_longer_reach_the_class_token_are_refused(name: str, method: Method, vit: Any) -> None:
    """After the last attention the patches decide nothing; only the class token does, which the grid drops."""
    with pytest.raises(ValueError, match=r"the embedding does not depend on it.*one before the last attention"):
        method(vit, name, token_grid=TokenGrid()).attribute(images(2, 16, 16), images(3, 16, 16))


def test_attention_that_gives_its_weights_is_refused_by_name(vit: Any) -> None:
    layer = vit.encoder.layers[0].self_attention  # gives (tokens, None)
    with pytest.raises(ValueError, match="layer MultiheadAttention gives a NoneType among its tensors"):
        LayerFAM(vit, layer, token_grid=TokenGrid()).attribute(images(2, 16, 16), images(3, 16, 16))


# Swin transformers


@pytest.mark.parametrize(("name", "grid"), [("features.1", (4, 2)), ("features.3", (2, 1)), ("norm", (2, 1))])
@pytest.mark.parametrize("method", ALL)
def test_a_swin_is_explained_on_its_grid(method: Method, name: str, grid: tuple[int, int], swin: Any) -> None:
    x, support = images(2, 16, 8), images(3, 16, 8, seed=1)
    got = method(swin, name, token_grid=TokenGrid()).attribute(x, support)
    assert got.shape == (2, 1, *grid)
    if method is LayerSimilarityCAM:
        want = exact_map(swin, swin.get_submodule(name), x, support).sum(3).unsqueeze(1)
        assert torch.allclose(got, want, atol=1e-13)


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
    with pytest.raises(ValueError, match="looks channels-last; pass token_grid"):
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


@pytest.mark.parametrize(
    ("grid", "shape", "message"),
    [
        (TokenGrid(), (2, 16, 12), r"16 tokens less 1 prefix tokens do not fill a grid of 3 x 3; pass TokenGrid\(size"),
        (TokenGrid(size=(3, 5)), (2, 18, 8), r"18 tokens less 1 prefix tokens do not fill a grid of 3 x 5"),
        (TokenGrid(prefix_tokens=5), (2, 5, 8), r"5 tokens less 5 prefix tokens do not fill a grid of 0 x 0"),
        (TokenGrid(), (2, 12), r"expected tokens \(B, T, N\) or \(B, h, w, N\), got \(2, 12\)"),
    ],
)
def test_tokens_that_fill_no_grid_are_refused(grid: TokenGrid, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(torch.zeros(shape))


def test_a_wrong_grid_is_refused_by_the_method(vit: Any) -> None:
    with pytest.raises(ValueError, match="17 tokens less 2 prefix tokens do not fill a grid of 3 x 3"):
        LayerFAM(vit, vit.encoder.layers[-1].ln_1, token_grid=TokenGrid(prefix_tokens=2)).attribute(
            images(2, 16, 16), images(3, 16, 16)
        )
