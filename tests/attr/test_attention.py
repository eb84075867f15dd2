"""Attention of the last block and rollout, against softmax(q k) in float64 and the libraries' own weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torchvision.models import SwinTransformer, VisionTransformer

from captum_fam import SimilarityToSupport, SupportSet, TokenGrid, Views, explain
from captum_fam.attr import LayerAttention, LayerAttentionRollout, get_method
from captum_fam.attr.attention_weights import watch_attention

METHODS = [LayerAttention, LayerAttentionRollout]
GRID = TokenGrid(size=(2, 3))


@pytest.fixture
def vit() -> nn.Module:
    net = VisionTransformer(48, 16, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=40)
    net.heads = nn.Identity()
    return net.double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 48, 48, dtype=torch.float64)


def rolled_out(attention: list[Tensor]) -> Tensor:
    """Rollout with numpy, image by image."""
    flows = []
    for image in range(len(attention[0])):
        flow = np.eye(attention[0].shape[-1])
        for block in attention:
            flow = (0.5 * block[image].numpy() + 0.5 * np.eye(len(flow))) @ flow
        flows.append(torch.from_numpy(flow))
    return torch.stack(flows)


def shown(method: Any, attention: list[Tensor]) -> Tensor:
    return rolled_out(attention) if method is LayerAttentionRollout else attention[-1]


def own_weights(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The weights that every ``nn.MultiheadAttention`` of a model gives when it is asked for them."""
    kept: list[Tensor] = []

    def ask(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        kept.append(module.forward(*args, **{**kwargs, "need_weights": True})[1])

    handles = [
        module.register_forward_hook(ask, with_kwargs=True)
        for module in net.modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return kept


class Mixing(nn.Module):
    """Blocks with given attention over the pixels of an image, each ``(T, T)``, written with softmax."""

    def __init__(self, *blocks: list[list[float]]) -> None:
        super().__init__()
        self.blocks = [torch.tensor(block, dtype=torch.float64).log() for block in blocks]
        self.tokens = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).mT)
        for block in self.blocks:
            tokens = torch.softmax(block.expand(len(x), 1, -1, -1), dim=-1)[:, 0] @ tokens
        return tokens.mean(1)


def test_maps_by_hand() -> None:
    net = Mixing([[0, 1], [0.5, 0.5]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]).eval()
    x = torch.rand(3, 4, 1, 2, dtype=torch.float64)
    # Without a class token, the row is the mean of the rows; (A + I) / 2 is [[1/2, 1/2], [1/4, 3/4]], the identity, and
    # a half everywhere.
    options = {"token_grid": TokenGrid(size=(1, 2), prefix_tokens=0)}
    last = LayerAttention(net, "tokens", **options).attribute(x)
    rollout = LayerAttentionRollout(net, "tokens", **options).attribute(x)
    torch.testing.assert_close(last, torch.full((3, 1, 1, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(rollout, torch.tensor([0.375, 0.625]).double().expand(3, 1, 1, 2))
    # With the first token as a class token, the row is the first, and the map starts at the second token.
    options = {"token_grid": TokenGrid(size=(1, 1))}
    last = LayerAttention(net, "tokens", **options).attribute(x)
    rollout = LayerAttentionRollout(net, "tokens", **options).attribute(x)
    assert last.flatten().tolist() == [1] * 3
    assert rollout.flatten().tolist() == [0.625] * 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["encoder.dropout", "encoder.layers.encoder_layer_2", "conv_proj"])
def test_torchvision_gives_the_weights_of_its_modules(method: Any, layer: str, vit: nn.Module, x: Tensor) -> None:
    weights = own_weights(vit, x)
    assert len(weights) == 3
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    found = method(vit, layer, token_grid=None if layer == "conv_proj" else TokenGrid()).attribute(x)
    expected = shown(method, weights)[:, 0, 1:].unflatten(1, (1, 3, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(method(vit.float(), "conv_proj").attribute(x.float()).double(), found, rtol=0, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    assert all(torch.equal(value.double(), before[name].float().double()) for name, value in vit.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in vit.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("class_token", "registers"), [(True, 0), (True, 4), (False, 0), (False, 2)])
@pytest.mark.parametrize("is_fused", [True, False])
def test_timm_gives_the_softmax_of_queries_and_keys_in_float64(
    method: Any, class_token: bool, registers: int, is_fused: bool
) -> None:
    timm = pytest.importorskip("timm")
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=(32, 48),
        embed_dim=30,
        depth=2,
        num_heads=3,
        num_classes=0,
        class_token=class_token,
        reg_tokens=registers,
        global_pool="token" if class_token else "avg",
    )
    net = net.double().eval()
    x, inputs = torch.randn(2, 3, 32, 48, dtype=torch.float64), []
    for block in net.blocks:
        block.attn.fused_attn = is_fused
    handles = [block.attn.register_forward_hook(lambda _, args, __: inputs.append(args[0])) for block in net.blocks]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    weights = []
    for block, tokens in zip(net.blocks, inputs, strict=True):
        both = [
            tokens @ part.T + bias
            for part, bias in zip(
                *(value.detach().chunk(3) for value in (block.attn.qkv.weight, block.attn.qkv.bias)), strict=True
            )
        ]
        heads = []
        for head in range(3):
            query, key = (part[..., 10 * head : 10 * head + 10] for part in both[:2])
            power = (query @ key.mT / 10**0.5).exp()
            heads.append(power / power.sum(-1, keepdim=True))
        weights.append(torch.stack(heads).mean(0))
    prefix = class_token + registers
    rows = shown(method, weights)
    row = rows[:, 0] if class_token else rows[:, prefix:].mean(1)
    grid = TokenGrid(size=(2, 3), prefix_tokens=prefix, registers=registers)
    found = method(net, "blocks.0", token_grid=grid).attribute(x)
    torch.testing.assert_close(found, row[:, prefix:].unflatten(1, (1, 2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_transformers_give_the_attentions_of_their_output(implementation: str) -> None:
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTConfig(**options, image_size=48, patch_size=16, attn_implementation="eager")
    net = transformers.ViTModel(config, add_pooling_layer=False).eval()
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        weights = [one.mean(1).double() for one in net(x, output_attentions=True).attentions]
    net.set_attn_implementation(implementation)

    def embed(images: Tensor) -> Tensor:
        return net(images).last_hidden_state[:, 0]  # type: ignore[no-any-return]

    for method in METHODS:
        found = method(embed, net.embeddings, token_grid=TokenGrid()).attribute(x)
        expected = shown(method, weights)[:, 0, 1:].unflatten(1, (1, 3, 3))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_open_clip_gives_the_weights_of_its_modules(method: Any) -> None:
    pytest.importorskip("open_clip")
    from open_clip.transformer import VisionTransformer as ClipVisionTransformer

    net = ClipVisionTransformer(48, 16, width=32, layers=2, heads=4, mlp_ratio=2, output_dim=8).eval()
    x = torch.randn(2, 3, 48, 48)
    weights = [one.double() for one in own_weights(net, x)]
    found = method(net, "ln_pre", token_grid=TokenGrid()).attribute(x)
    expected = shown(method, weights)[:, 0, 1:].unflatten(1, (1, 3, 3))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_of_torch_takes_no_fast_path_that_hides_its_attention(batch_first: bool) -> None:
    block = nn.TransformerEncoderLayer(16, 2, 24, dropout=0, batch_first=batch_first)
    net = nn.TransformerEncoder(block, 2, enable_nested_tensor=False).double().eval()
    tokens = torch.randn(3, 6, 16, dtype=torch.float64)
    tokens = tokens if batch_first else tokens.transpose(0, 1)
    kept: list[Tensor] = []
    with watch_attention(3, lambda attention, view: kept.append(attention)):
        output = net(tokens)
    for one, expected in zip(kept, own_weights(net.train(), tokens), strict=True):
        torch.testing.assert_close(one, expected)
    torch.testing.assert_close(output, net.eval()(tokens))


MASKS = {
    "none": None,
    "boolean": torch.rand(5, 5, generator=torch.Generator().manual_seed(3)) > 0.3,
    "per image": torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(3)),
    "per head": torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"enable_gqa": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_a_fused_attention_give_its_output(mask: Any, options: Any, dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 6, 5, 8), torch.randn(2, 2 if "enable_gqa" in options else 6, 5, 8)
    query, key = query.to(dtype), key.to(dtype)
    if mask is not None:
        mask = mask | torch.eye(5, dtype=torch.bool) if mask.dtype == torch.bool else mask.to(dtype)
    value = torch.eye(5, dtype=dtype).expand(*key.shape[:2], 5, 5)  # then the output is the weights themselves
    kept: list[Tensor] = []
    with watch_attention(2, lambda attention, view: kept.append(attention)):
        weights = scaled_dot_product_attention(query, key, value, mask, **options)
    (found,) = kept
    assert found.dtype == torch.float32
    rounding = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, weights.float().mean(1), rtol=0, atol=rounding)


def test_heads_may_share_one_key() -> None:
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 1, 5, 4)
    kept: list[Tensor] = []
    with watch_attention(2, lambda attention, view: kept.append(attention)):
        weights = scaled_dot_product_attention(query, key, torch.eye(5).expand(2, 3, 5, 5))
    torch.testing.assert_close(kept[0], weights.mean(1))


def test_a_causal_attention_looks_back_only() -> None:
    kept: list[Tensor] = []
    with watch_attention(2, lambda attention, view: kept.append(attention)):
        scaled_dot_product_attention(*torch.randn(3, 2 * 4, 5, 8), is_causal=True)  # heads and images in one dimension
    assert kept[0].shape == (2, 5, 5)
    assert not kept[0].triu(1).any()
    torch.testing.assert_close(kept[0].sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize("method", METHODS)
def test_every_image_has_its_map_in_every_batch_and_on_any_path(method: Any, vit: nn.Module, x: Tensor) -> None:
    attribution = method(vit, "encoder.ln", token_grid=TokenGrid())
    both = attribution.attribute(x)
    for number in range(2):
        torch.testing.assert_close(attribution.attribute(x[number : number + 1]), both[number : number + 1])
    for context in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", enabled=False), nullcontext()):
        with context:
            torch.testing.assert_close(attribution.attribute(x), both)


def test_tokens_may_come_first() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Identity()
            self.attention = nn.MultiheadAttention(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.tokens(x.flatten(2).permute(2, 0, 1))
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(0)  # type: ignore[no-any-return]

    net, x = First().double().eval(), torch.randn(4, 6, 2, 3, dtype=torch.float64)
    expected = own_weights(net, x)[0].mean(1).unflatten(1, (1, 2, 3))
    own: Callable[[Tensor], Tensor] = lambda tokens: tokens.permute(1, 2, 0).unflatten(2, (2, 3))  # noqa: E731
    for grid in (TokenGrid(size=(2, 3), prefix_tokens=0, sequence_first=True), own):
        torch.testing.assert_close(LayerAttention(net, "tokens", token_grid=grid).attribute(x), expected)


@pytest.mark.parametrize("method", METHODS)
def test_views_are_laid_back_and_averaged(method: Any, vit: nn.Module, x: Tensor) -> None:
    options = {"token_grid": TokenGrid()}
    plain, mirrored = (method(vit, "encoder.dropout", **options).attribute(one) for one in (x, x.flip(-1)))
    found = method(Views(vit, ["identity", "hflip"]), vit.encoder.dropout, **options).attribute(x)
    torch.testing.assert_close(found, (plain + mirrored.flip(-1)) / 2)


def test_layers_of_a_list_have_their_own_grids(vit: nn.Module, x: Tensor) -> None:
    first, second = LayerAttention(vit, ["encoder.dropout", "encoder.ln"], token_grid=TokenGrid()).attribute(x)
    assert torch.equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_windows_and_models_without_attention_are_named(method: Any) -> None:
    swin = SwinTransformer([2, 2], 12, [2], [2], [4, 4]).eval()
    swin.head = nn.Identity()
    words = "needs a transformer whose blocks attend to all tokens, and found attention within windows of 16 tokens; "
    with pytest.raises(ValueError, match=f"{method.__name__} {words}"):
        method(swin, "features", token_grid=TokenGrid()).attribute(torch.randn(2, 3, 32, 32))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="found no call of an attention or a softmax over tokens; use another method"):
        method(net, "1").attribute(torch.randn(2, 3, 8, 8))


def test_pooling_by_attention_alone_is_named() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).mT[:, None]
            return scaled_dot_product_attention(tokens[:, :, :1], tokens, tokens)[:, 0, 0]

    with pytest.raises(ValueError, match="found attention of 1 query to 6 tokens"):
        LayerAttention(Pooled().eval(), "conv").attribute(torch.randn(2, 3, 4, 5))


class Pooling(nn.Module):
    """A layer of two tokens an image, a block over them, and then attention of one query to some tokens.

    Args:
        joins: whether a class token joins the tokens behind the block, and is the query.
    """

    def __init__(self, joins: bool) -> None:
        super().__init__()
        self.tokens = nn.Identity()
        self.joins = joins

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).mT)
        tokens = torch.softmax(BLOCK.log().expand(len(x), 1, 2, 2), dim=-1)[:, 0] @ tokens
        query = torch.ones_like(tokens[:, :1])
        keys = torch.cat([query, tokens], 1) if self.joins else tokens
        return scaled_dot_product_attention(query[:, None], keys[:, None], keys[:, None])[:, 0, 0]


BLOCK = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_queries_that_pool_the_tokens_of_the_last_block_are_no_block(method: Any) -> None:
    grid = TokenGrid(size=(1, 2), prefix_tokens=0)
    found = method(Pooling(joins=False).eval(), "tokens", token_grid=grid).attribute(torch.rand(3, 4, 1, 2).double())
    # The mean row of the block, and of half the block plus half the identity.
    expected = [0.375, 0.625] if method is LayerAttention else [0.4375, 0.5625]
    torch.testing.assert_close(found, torch.tensor(expected).double().expand(3, 1, 1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_a_class_token_that_joins_behind_the_blocks_is_named(method: Any) -> None:
    grid = TokenGrid(size=(1, 2), prefix_tokens=0)
    with pytest.raises(ValueError, match="attend to all tokens, and found attention of 1 query to 3 tokens; use"):
        method(Pooling(joins=True).eval(), "tokens", token_grid=grid).attribute(torch.rand(3, 4, 1, 2).double())


@pytest.mark.parametrize("method_name", ["attention", "attention-rollout"])
@pytest.mark.parametrize("name", ["cait", "xcit", "pvt_v2"])
def test_class_attention_and_attention_over_channels_or_fewer_tokens_are_named(method_name: str, name: str) -> None:
    models = pytest.importorskip("timm").models
    # 4 x 4 patches, and as many channels a head, over which XCiT attends.
    sizes: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 4}
    net = {
        "cait": lambda: models.cait.Cait(**sizes, num_classes=0),
        "xcit": lambda: models.xcit.Xcit(**sizes, num_classes=0),
        "pvt_v2": lambda: models.pvt_v2.PyramidVisionTransformerV2(
            depths=(1,) * 4, embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 2, 2), num_classes=0
        ),
    }[name]()
    with pytest.raises(ValueError, match=r"attend to all tokens, and found .*attention of \d+ quer(y|ies) to"):
        explain(net.eval(), torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), method=method_name)


@pytest.mark.parametrize("method", METHODS)
def test_registers_that_join_behind_the_layer_are_no_class_token(method: Any) -> None:
    timm = pytest.importorskip("timm")
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    net = timm.models.vision_transformer.VisionTransformer(
        **sizes, num_classes=0, class_token=False, reg_tokens=2, global_pool="avg"
    )
    net = net.double().eval()
    nn.init.normal_(net.reg_token, std=4)  # then the registers attend to other tokens than the patches do
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = method(net, "patch_embed", token_grid=TokenGrid(prefix_tokens=0)).attribute(x)
    behind = method(net, "blocks.1", token_grid=TokenGrid(prefix_tokens=2, registers=2)).attribute(x)
    torch.testing.assert_close(before, behind)


def test_a_layer_of_other_tokens_is_refused(vit: nn.Module, x: Tensor) -> None:
    net = nn.Sequential(nn.AvgPool2d(24), nn.Upsample(scale_factor=24), vit)
    for layer, count in (("0", 4), ("1", 2304)):
        with pytest.raises(
            ValueError, match=f"layer: it has {count} positions, and the attention of the model is over 10"
        ):
            LayerAttention(net, layer).attribute(x)


def test_a_rollout_over_blocks_of_other_tokens_is_refused() -> None:
    class Merging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for tokens in (x, x[..., ::2, :]):
                mixed = scaled_dot_product_attention(tokens, tokens, tokens)
            return mixed.mean(1)

    net = nn.Sequential(nn.Flatten(2), Merging()).eval()
    with pytest.raises(ValueError, match="the same tokens, and found attention over 4 and then over 2 tokens"):
        LayerAttentionRollout(net, "0", token_grid=TokenGrid(prefix_tokens=0)).attribute(torch.randn(3, 4, 8))


def test_shares_of_channels_are_refused(vit: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match="attr_dim_summation=False: the map of LayerAttention has no shares"):
        LayerAttention(vit, "conv_proj").attribute(x, attr_dim_summation=False)


@pytest.mark.parametrize(
    ("name", "method"), [("attention", LayerAttention), ("attention-rollout", LayerAttentionRollout)]
)
@pytest.mark.filterwarnings("ignore:the map explains")
def test_both_are_registered_as_baselines_of_transformers(name: str, method: Any, vit: nn.Module, x: Tensor) -> None:
    entry = get_method(name)
    assert entry.make is method
    assert (entry.unit, entry.signed, entry.takes_foil, entry.support_blind) == ("none", False, False, True)
    assert entry.needs_attention
    support = SupportSet(torch.randn(4, 3, 48, 48, dtype=torch.float64), [0, 0, 1, 1])
    expected = method(vit, "encoder.ln", token_grid=TokenGrid()).attribute(x)
    scores = SimilarityToSupport(vit, support)
    torch.testing.assert_close(method(scores, vit.encoder.ln, token_grid=TokenGrid()).attribute(x), expected)
    why = explain(
        vit, x, support, layer="encoder.ln", method=["similarity-cam", name], foil="others", sides="both", top=1
    )
    (beside,) = why.beside
    torch.testing.assert_close(beside.attributions, expected)
    assert beside.support_blind
    assert beside.pairs is not None
    for number, (pair,) in enumerate(beside.pairs):
        torch.testing.assert_close(pair.query_map, expected[number, 0])
        image = support.inputs[pair.row][None]
        torch.testing.assert_close(
            pair.support_map, method(vit, "encoder.ln", token_grid=TokenGrid()).attribute(image)[0, 0]
        )


class OwnAttention(nn.Module):
    """A transformer block with attention by hand, in one of several layouts of images (b) and heads (h)."""

    def __init__(self, layout: str, heads: int, width: int = 5) -> None:
        super().__init__()
        self.layout, self.heads, self.width = layout, heads, width
        self.tokens = nn.Identity()
        self.project = nn.Linear(4, 3 * heads * width)
        self.join = nn.Linear(heads * width, 4)
        self.kept = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).mT)
        q, k, v = self.project(tokens).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        self.kept = ((q @ k.mT) * 3).softmax(-1).mean(1).detach()
        if self.layout != "b h":
            q, k, v = ((one if self.layout == "(b h)" else one.transpose(0, 1)) for one in (q, k, v))
            q, k, v = (one if self.layout == "h b" else one.flatten(0, 1) for one in (q, k, v))
        weights = ((q @ k.mT) * 3).softmax(-1).to(v.dtype)
        out = torch.einsum("...ij,...jd->...id", weights, v) if self.layout == "h b" else weights @ v
        if self.layout != "b h":
            groups = (len(x), self.heads) if self.layout == "(b h)" else (self.heads, len(x))
            out = out.reshape(*groups, *out.shape[-2:])
            out = out if self.layout == "(b h)" else out.transpose(0, 1)
        return self.join(out.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("layout", ["b h", "h b", "(b h)", "(h b)"])
def test_attention_by_hand_is_read_in_each_layout_of_images_and_heads(layout: str, batch: int) -> None:
    net = OwnAttention(layout, heads=3).double().eval()
    x = torch.randn(batch, 4, 2, 3, dtype=torch.float64)
    grid = TokenGrid(size=(2, 3), prefix_tokens=0)
    found = LayerAttention(net, "tokens", token_grid=grid).attribute(x)
    with torch.no_grad():
        net(x)
    torch.testing.assert_close(found, net.kept.mean(1).unflatten(1, (1, 2, 3)), rtol=0, atol=1e-12)


class ScaledImages(nn.Module):
    """A net with a further argument, one number per image, in front of heads that come before images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = OwnAttention("h b", heads=2)

    def forward(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        assert name == "all"
        embedding: Tensor = self.net(x * scale[:, None, None, None])
        return embedding


def test_images_that_go_one_by_one_keep_their_own_further_arguments() -> None:
    net = ScaledImages().double().eval()
    x, scale = torch.randn(2, 4, 1, 3, dtype=torch.float64), torch.tensor([1.0, 2.0]).double()
    grid = TokenGrid(size=(1, 3), prefix_tokens=0)
    method = LayerAttention(net, "net.tokens", token_grid=grid)
    found = method.attribute(x, additional_forward_args=(scale, "all"))
    with torch.no_grad():
        net(x, scale, "all")
    torch.testing.assert_close(found, net.net.kept.mean(1).unflatten(1, (1, 1, 3)), rtol=0, atol=1e-12)


class Unusual(nn.Module):
    """Softmaxes over as many entries as there are tokens, which are no attention to tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.tokens = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).mT)[:, None]  # one head
        weights = (tokens @ tokens.mT).softmax(-1)
        if self.kind == "difference":
            return ((weights - 0.5 * (tokens @ tokens.mT * 2).softmax(-1)) @ tokens).mean((1, 2))
        if self.kind == "channels":
            return ((tokens.mT @ tokens).softmax(-1) @ tokens.mT).mean((1, 3))
        return tokens.mean((1, 2)) + weights.mean((1, 2, 3))[:, None]  # "aside"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("difference", "found no call of an attention or a softmax over tokens"),
        ("aside", "found no call of an attention or a softmax over tokens"),
        ("channels", "weights of 4 tokens or of 4 channels"),
    ],
)
def test_a_softmax_that_is_no_attention_to_tokens_gives_no_map(method: Any, kind: str, words: str) -> None:
    x = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    grid = TokenGrid(size=(2, 2), prefix_tokens=0)
    with pytest.raises(ValueError, match=words):
        method(Unusual(kind).eval(), "tokens", token_grid=grid).attribute(x)


class Converting(nn.Module):
    """Attention by hand with calls between the softmax and the product, by keyword too, that keep the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).mT)[:, None]
        weights = (tokens @ tokens.mT).softmax(-1)
        assert weights.type() == "torch.DoubleTensor"
        self.kept = weights[:, 0].mean(1)
        weights = nn.functional.dropout(input=weights.float(), p=0.5, training=False)
        near = torch.eye(tokens.shape[2]).to_sparse() @ tokens[0, 0].type_as(weights)
        return (weights @ tokens.type_as(weights)).mean((1, 2)) + 0 * near.mean()


def test_calls_between_the_softmax_and_the_values_are_followed() -> None:
    net, x = Converting().eval(), torch.randn(2, 4, 2, 3, dtype=torch.float64)
    found = LayerAttention(net, "tokens", token_grid=TokenGrid(size=(2, 3), prefix_tokens=0)).attribute(x)
    net(x)
    torch.testing.assert_close(found.flatten(1), net.kept, rtol=0, atol=1e-12)


class Asked(nn.Module):
    """A multi-head attention of torch that is asked for its weights, over as many tokens as a head has channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Identity()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(2).mT)
        attended, self.kept = self.attention(tokens, tokens, tokens, need_weights=True)
        mean: Tensor = attended.mean(1)
        return mean


def test_the_attention_of_torch_is_of_tokens_whatever_their_number() -> None:
    net, x = Asked().double().eval(), torch.randn(3, 12, 2, 3, dtype=torch.float64)
    found = LayerAttention(net, "tokens", token_grid=TokenGrid(size=(2, 3), prefix_tokens=0)).attribute(x)
    net(x)
    torch.testing.assert_close(found.flatten(1), net.kept.mean(1), rtol=0, atol=1e-12)
