"""The account of a score against a float64 reference that pushes every position and every bias forward by itself."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid
from tests.attr import account_reference as reference

pytestmark = pytest.mark.filterwarnings("ignore:.*explains:UserWarning")

Array = NDArray[np.float64]
Weights = dict[str, Array]

WIDTH, HEADS, FEATURES = 6, 2, 5
K = 2  # supports of each class


# The networks


class SdpaAttention(nn.Module):
    """With the parameters of ``nn.MultiheadAttention``, by torch's fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return self.out_proj(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)


class WrittenAttention(SdpaAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(3) @ v


class EinsumAttention(SdpaAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhid,bhjd->bhij", q * (WIDTH // HEADS) ** -0.5, k)
        return torch.einsum("bhij,bhjd->bhid", functional.softmax(weights, dim=-1), v)


class TorchAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` called as vision models call it."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__(WIDTH, HEADS, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=self.need_weights)[0]


class WrittenNorm(nn.Module):
    """Layer normalization by hand over ``dim``, as in ConvNeXt's own code."""

    def __init__(self, width: int, dim: int = -1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(self.dim, keepdim=True)
        x = centered / torch.sqrt(centered.pow(2).mean(self.dim, keepdim=True) + 1e-5)
        shape = [-1 if at == self.dim % x.dim() else 1 for at in range(x.dim())]
        return x * self.weight.view(shape) + self.bias.view(shape)


class WrittenRMSNorm(nn.Module):
    """As in Llama-like vision towers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class QuickGELU(nn.Module):
    """CLIP's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class WrittenGELU(nn.Module):
    """As older Hugging Face models write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class WrittenTanhGELU(nn.Module):
    """The approximation by a tanh, as GPT-like models write it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class WrittenHardswish(nn.Module):
    """As older MobileNets write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (functional.relu6(x + 3.0) / 6.0)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "mha": lambda: TorchAttention(need_weights=False),
    "mha-weights": lambda: TorchAttention(need_weights=True),
    "sdpa": SdpaAttention,
    "written": WrittenAttention,
    "einsum": EinsumAttention,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "layer-written": WrittenNorm,
    "rms": lambda width: nn.RMSNorm(width, eps=1e-5),
    "rms-written": WrittenRMSNorm,
}


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[float], float]]] = {
    "gelu": (nn.GELU, reference.gelu),
    "gelu-written": (WrittenGELU, reference.gelu),
    "tanh-gelu": (lambda: nn.GELU("tanh"), reference.tanh_gelu),
    "tanh-gelu-written": (WrittenTanhGELU, reference.tanh_gelu),
    "quick-gelu": (QuickGELU, reference.quick_gelu),
    "silu": (nn.SiLU, reference.sigmoid),
    "hardswish": (nn.Hardswish, reference.hardsigmoid),
    "hardswish-written": (WrittenHardswish, reference.hardsigmoid),
}


class Block(nn.Module):
    """A pre-norm block with the parameter names of ``nn.TransformerEncoderLayer``."""

    def __init__(self, attention: str, norm: str, activation: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = NORMS[norm](WIDTH), NORMS[norm](WIDTH)
        self.self_attn = ATTENTIONS[attention]()
        self.linear1, self.linear2 = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)
        self.activation = ACTIVATIONS[activation][0]()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(self.activation(self.linear1(self.norm2(x))))


class Vit(nn.Module):
    """Images of 4 x 6, 2 x 3 patches behind a class token and ``registers``, two blocks, a linear head and L2.

    ``attention`` "encoder" takes torch's own encoder layers.
    """

    def __init__(
        self,
        attention: str = "mha",
        norm: str = "layer",
        pool: str = "class",
        registers: int = 0,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.pool, self.n_prefix, self.gate = pool, 1 + registers, ACTIVATIONS[activation][1]
        self.patches = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.cls_token = nn.Parameter(torch.empty(1, WIDTH))
        self.register_tokens = nn.Parameter(torch.empty(registers, WIDTH))
        self.places = nn.Parameter(torch.empty(self.n_prefix + 6, WIDTH))
        self.blocks = nn.Sequential(*(self._block(attention, norm, activation) for _ in range(2)))
        self.norm = NORMS[norm](WIDTH)
        self.head = nn.Linear(WIDTH, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.register_tokens)]
        tokens = self.blocks(torch.cat([*prefix, patches], 1) + self.places)
        # Before the norm or behind it, for the class token this is the same; the bias of the norm acts at its position.
        if self.pool == "class-first":
            pooled = self.norm(tokens[:, 0])
        else:
            tokens = self.norm(tokens)
            pooled = tokens[:, 0] if self.pool == "class" else tokens[:, self.n_prefix :].mean(1)
        return functional.normalize(self.head(pooled), dim=1)

    @staticmethod
    def _block(attention: str, norm: str, activation: str) -> nn.Module:
        if attention == "encoder":
            return nn.TransformerEncoderLayer(
                WIDTH, HEADS, 9, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
        return Block(attention, norm, activation)


class ConvNextBlock(nn.Module):
    """``channels_first`` writes norm and point-wise layers for ``(B, N, h, w)``, the other for ``(B, h, w, N)``."""

    def __init__(self, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.dwconv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        if channels_first:
            self.norm: nn.Module = WrittenNorm(4, dim=1)
            self.up, self.down = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)
        else:
            self.norm = nn.LayerNorm(4)
            self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)
        self.gamma = nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x)
        if self.channels_first:
            return x + self.gamma.view(-1, 1, 1) * self.down(functional.gelu(self.up(self.norm(y))))
        y = self.gamma * self.down(functional.gelu(self.up(self.norm(y.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Images of 3 x 5, a stem, one block of 4 channels, average pooling, layer norm, a linear head."""

    def __init__(self, channels_first: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = ConvNextBlock(channels_first)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.stem(x)).mean((2, 3))))


class FrozenBatchNorm(nn.Module):
    """Batch norm as detection models freeze it: a scale and a shift made of buffers in every pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            getattr(self, name).view(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Cnn(nn.Module):
    """Images of 5 x 7: convolutions, batch norm, squeeze-and-excitation, a strided convolution, then a retrieval head.

    ``frozen`` writes the batch norm by hand, ``strided_bias`` gives the strided convolution, 3 x 4, a bias.
    """

    def __init__(self, frozen: bool = False, strided_bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.bn = FrozenBatchNorm(6) if frozen else nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.strided = nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=strided_bias)
        self.fc, self.neck = nn.Linear(5, FEATURES), nn.BatchNorm1d(FEATURES)
        self.whiten = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(self.stem(x).relu())).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        x = self.strided(x * gate[:, :, None, None]).relu()
        x = self.neck(self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1)))
        x = x / x.norm(dim=1, keepdim=True)
        return functional.normalize(self.whiten(x), dim=1)


def randomized(net: nn.Module) -> nn.Module:
    """Every weight, bias and statistic is random, by its name: networks with the same names are the same function."""
    net = net.double().eval()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            is_scale = name.endswith("var") or (tensor.dim() == 1 and name.endswith("weight"))
            # Small enough that attention does not saturate, large enough that biases do not own all.
            tensor.copy_(0.5 + noise.abs() if is_scale else (0.3 if tensor.dim() == 1 else 0.5) * noise)
    return net


# The same networks for the reference, cut at a layer


class Cut(NamedTuple):
    """The steps before and behind a layer, its grid and the tokens before its patches."""

    before: list[reference.Step]
    behind: list[reference.Step]
    size: tuple[int, int]
    prefix: int = 0


def cut_vit(net: nn.Module, layer: str) -> Cut:
    """At the patches, or at the tokens that go into a block or come out of it."""
    assert isinstance(net, Vit)
    w = copied(net)

    def norm(name: str) -> reference.Step:
        return reference.LayerNorm(w[f"{name}.weight"], w.get(f"{name}.bias"), centered=f"{name}.bias" in w)

    def linear(name: str) -> reference.Step:
        return reference.Linear(w[f"{name}.weight"], w[f"{name}.bias"])

    def block(name: str) -> list[reference.Step]:
        attention = reference.Attention(
            *(w[f"{name}.self_attn.{part}"] for part in ("in_proj_weight", "in_proj_bias")),
            *(w[f"{name}.self_attn.out_proj.{part}"] for part in ("weight", "bias")),
            heads=HEADS,
        )
        mlp = [linear(f"{name}.linear1"), reference.Quotient(net.gate), linear(f"{name}.linear2")]
        return [
            reference.Residual([norm(f"{name}.norm1"), attention]),
            reference.Residual([norm(f"{name}.norm2"), *mlp]),
        ]

    if net.pool == "class-first":
        pooled = [reference.Select(0), norm("norm")]
    else:
        pooled = [norm("norm"), reference.Select(0) if net.pool == "class" else reference.Mean(net.n_prefix)]
    steps: dict[str, list[reference.Step]] = {
        "patches": [reference.Conv(w["patches.weight"], w["patches.bias"], size=(4, 6), stride=2)],
        "tokens": [reference.Tokens(np.concatenate([w["cls_token"], w["register_tokens"]]), w["places"])],
        "blocks.0": block("blocks.0"),
        "blocks.1": block("blocks.1"),
        "end": [*pooled, linear("head"), reference.UnitLength()],
    }
    return Cut(*split(steps, layer), size=(2, 3), prefix=net.n_prefix)


def cut_convnext(net: nn.Module, layer: str) -> Cut:
    """At the stem, the input of the block, or at the depthwise convolution, around which the skip goes."""
    w = copied(net)
    fork = reference.Fork()
    up, down = w["block.up.weight"], w["block.down.weight"]  # (out, in), or (out, in, 1, 1) as convolutions
    inner = [
        reference.LayerNorm(w["block.norm.weight"], w["block.norm.bias"]),
        reference.Linear(up.reshape(up.shape[:2]), w["block.up.bias"]),
        reference.Quotient(reference.gelu),
        reference.Linear(down.reshape(down.shape[:2]), w["block.down.bias"]),
        reference.Scale(w["block.gamma"]),
    ]
    dwconv = reference.Conv(w["block.dwconv.weight"], w["block.dwconv.bias"], (3, 5), padding=1, depthwise=True)
    block: dict[str, list[reference.Step]] = (
        {"block.dwconv": [fork, dwconv], "rest": [*inner, reference.Bypass(fork)]}
        if layer == "block.dwconv"
        else {"block": [reference.Residual([dwconv, *inner])]}
    )
    steps: dict[str, list[reference.Step]] = {
        "stem": [reference.Conv(w["stem.weight"], w["stem.bias"], (3, 5), padding=1)],
        **block,
        "end": [
            reference.Mean(),
            reference.LayerNorm(w["norm.weight"], w["norm.bias"]),
            reference.Linear(w["head.weight"], w["head.bias"]),
        ],
    }
    return Cut(*split(steps, layer), size=(3, 5))


def cut_cnn(net: nn.Module, layer: str) -> Cut:
    """At the stem, the second convolution, or the strided one, whose grid is 3 x 4."""
    w = copied(net)

    def batch_norm(name: str) -> reference.Step:
        return reference.BatchNorm(*(w[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")))

    def linear(name: str) -> reference.Step:
        return reference.Linear(w[f"{name}.weight"], w[f"{name}.bias"])

    gate = reference.SqueezeExcite(
        *(w[f"{name}.{part}"] for name in ("squeeze", "excite") for part in ("weight", "bias"))
    )
    strided = reference.Conv(w["strided.weight"], w.get("strided.bias"), (5, 7), stride=2, padding=1)
    steps: dict[str, list[reference.Step]] = {
        "stem": [reference.Conv(w["stem.weight"], w["stem.bias"], (5, 7), padding=1)],
        "conv": [
            reference.Quotient(reference.relu),
            reference.Conv(w["conv.weight"], w["conv.bias"], (5, 7), padding=1),
        ],
        "strided": [batch_norm("bn"), reference.Quotient(reference.relu), gate, strided],
        "end": [
            reference.Quotient(reference.relu),
            reference.Mean(),
            linear("fc"),
            batch_norm("neck"),
            reference.UnitLength(),
            linear("whiten"),
            reference.UnitLength(),
        ],
    }
    return Cut(*split(steps, layer), size=(3, 4) if layer == "strided" else (5, 7))


def copied(net: nn.Module) -> Weights:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


def split(steps: dict[str, list[reference.Step]], layer: str) -> tuple[list[reference.Step], list[reference.Step]]:
    """The steps up to the end of ``layer``, and those behind it."""
    names = list(steps)
    end = names.index(layer) + 1
    before, behind = ([step for name in part for step in steps[name]] for part in (names[:end], names[end:]))
    return before, behind


# What is compared


class Case(NamedTuple):
    """A network, and a layer by its name there and in the reference's steps."""

    net: Callable[[], nn.Module]
    cut: Callable[[nn.Module, str], Cut]
    layer: str
    reference_layer: str
    to_input: bool = False


def vit_cases(name: str, layers: tuple[str, ...] = ("block 0 input",), **options: Any) -> dict[str, Case]:
    def make() -> nn.Module:
        return Vit(**options)

    cases = {
        "patches": Case(make, cut_vit, "patches", "patches"),
        "block 0 input": Case(make, cut_vit, "blocks.0", "tokens", to_input=True),
        "block 0": Case(make, cut_vit, "blocks.0", "blocks.0"),
    }
    return {f"vit {name} {layer}": cases[layer] for layer in layers}


def convnext_cases(*layers: tuple[str, str, bool]) -> dict[str, Case]:
    return {
        f"convnext {name} {layer}{' input' * to_input}": Case(
            partial(ConvNext, name == "channels-first"), cut_convnext, layer, reference_layer, to_input
        )
        for name in ("channels-last", "channels-first")
        for layer, reference_layer, to_input in layers
    }


BLOCK, ALL = ("block 0 input", "block 0"), ("patches", "block 0 input", "block 0")
SAME_GRID = {
    **vit_cases("mha", ALL, attention="mha"),
    **vit_cases("mha with weights", attention="mha-weights"),
    **vit_cases("sdpa", BLOCK, attention="sdpa"),
    **vit_cases("written attention", BLOCK, attention="written"),
    **vit_cases("einsum", BLOCK, attention="einsum"),
    **vit_cases("encoder layers", BLOCK, attention="encoder"),
    **{k: v for name in NORMS for k, v in vit_cases(name, norm=name, attention="sdpa").items()},
    **{k: v for name in ACTIVATIONS for k, v in vit_cases(name, activation=name).items()},
    **vit_cases("class token before the norm", BLOCK, pool="class-first"),
    **vit_cases("mean", BLOCK, pool="mean"),
    **vit_cases("registers", ALL, registers=2),
    **vit_cases("registers mean", ALL, registers=2, pool="mean"),
    **convnext_cases(("block", "stem", True), ("block", "block", False)),
    **{
        f"cnn {name} {layer}": Case(partial(Cnn, name == "frozen", strided_bias=False), cut_cnn, layer, layer)
        for name in ("batch norm", "frozen")
        for layer in ("stem", "conv", "strided")
    },
}
OTHER_GRID = {f"cnn with a strided bias {layer}": Case(Cnn, cut_cnn, layer, layer) for layer in ("stem", "conv")}
IN_A_BRANCH = convnext_cases(("block.dwconv", "block.dwconv", False))
CASES = {**SAME_GRID, **OTHER_GRID, **IN_A_BRANCH}


@dataclass(frozen=True)
class Truth:
    """What the reference says of one case: a list has an entry for each query."""

    cut: Cut
    embeddings: list[Array]
    supports: Array
    sources: list[list[reference.Source]]

    def score(self, query: int, foil: bool) -> float:
        return float(self.embeddings[query] @ self.weights(query, foil))

    def weights(self, query: int, foil: bool) -> Array:
        """Of the embedding in the mean cosine to the first class, less that to the second for a foil."""
        wanted, other = (
            reference.cosine_weights(self.embeddings[query], part) for part in (self.supports[:K], self.supports[K:])
        )
        return wanted - other if foil else wanted

    def account(self, query: int, foil: bool, biases: str = "positions") -> reference.Account:
        weights = self.weights(query, foil)
        return reference.account(self.sources[query], weights, self.cut.size, self.cut.prefix, biases)


def images(case: Case) -> Tensor:
    """Two queries, then K supports of each of two classes, each of its own color, so that pooling keeps them apart."""
    size = {cut_vit: (4, 6), cut_convnext: (3, 5), cut_cnn: (5, 7)}[case.cut]
    generator = torch.Generator().manual_seed(3)
    colors, details = (
        torch.randn(2 + 2 * K, 3, *sides, generator=generator, dtype=torch.float64) for sides in ((1, 1), size)
    )
    return 0.5 * colors + details


@cache
def truth(name: str) -> Truth:
    case = CASES[name]
    cut = case.cut(randomized(case.net()), case.reference_layer)
    rows = [image.reshape(3, -1).T for image in images(case).numpy()]
    embeddings, sources = [], []
    for image in rows[:2]:
        embedding, found = reference.contributions(
            reference.Chain(cut.behind), reference.Chain(cut.before).forward(image)
        )
        embeddings.append(embedding)
        sources.append(found)
    whole = reference.Chain(cut.before + cut.behind)
    return Truth(cut, embeddings, np.array([whole.forward(image)[0] for image in rows[2:]]), sources)


def account_of(name: str, foil: bool, **options: Any) -> Any:
    """The package's account of both queries."""
    case = CASES[name]
    net, data = randomized(case.net()), images(case)
    queries, supports = data[:2], data[2:]
    cut = truth(name).cut
    if isinstance(net, Vit) and case.layer != "patches":
        options["token_grid"] = TokenGrid(size=cut.size, prefix_tokens=cut.prefix)
    if foil:
        classes = SupportSet(supports, [0] * K + [1] * K)
        cam = LayerSimilarityCAM(SimilarityToSupport(net, classes, foil="others"), case.layer, **options)
        return cam.details(queries, target=0, attribute_to_layer_input=case.to_input)
    cam = LayerSimilarityCAM(net, case.layer, **options)
    return cam.details(queries, support=supports[:K], attribute_to_layer_input=case.to_input)


# The tests


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_same_network_and_its_parts_add_up_to_the_embedding(name):
    case = CASES[name]
    with torch.no_grad():
        embeddings = randomized(case.net())(images(case)).numpy()
    expected = truth(name)
    np.testing.assert_allclose(embeddings[2:], expected.supports, rtol=0, atol=1e-12)
    for query in range(2):
        total = np.sum([source.values for source in expected.sources[query]], axis=0)
        np.testing.assert_allclose(embeddings[query], expected.embeddings[query], rtol=0, atol=1e-12)
        np.testing.assert_allclose(total, expected.embeddings[query], rtol=0, atol=1e-12)


@pytest.mark.parametrize("foil", [False, True], ids=["no foil", "foil"])
@pytest.mark.parametrize("name", SAME_GRID)
def test_every_position_owns_what_it_and_the_biases_there_push_to_the_score(name, foil):
    details = account_of(name, foil)
    for query in range(2):
        expected = truth(name).account(query, foil)
        close(details.attributions[query, 0], expected.map)
        check_shares(details, query, expected)
        close(details.coverage[query], expected.map.sum() / truth(name).score(query, foil))


@pytest.mark.parametrize("name", {**SAME_GRID, **OTHER_GRID})
def test_biases_apart_leave_every_position_what_its_activation_pushes_to_the_score(name):
    details = account_of(name, foil=True, biases="apart")
    for query in range(2):
        expected = truth(name).account(query, True, "apart")
        close(details.attributions[query, 0], expected.map)
        check_shares(details, query, expected)
        close(details.coverage[query], expected.map.sum() / truth(name).score(query, foil=True))


@pytest.mark.parametrize("foil", [False, True], ids=["no foil", "foil"])
@pytest.mark.parametrize("name", OTHER_GRID)
def test_a_bias_on_a_coarser_grid_is_laid_on_the_map_with_its_whole_share(name, foil):
    details = account_of(name, foil)
    for query in range(2):
        expected = truth(name).account(query, foil)
        assert abs(expected.elsewhere) > 1e-5
        close(details.attributions[query].sum(), expected.map.sum() + expected.elsewhere)
        check_shares(details, query, expected)


@pytest.mark.parametrize("biases", ["positions", "apart"])
@pytest.mark.parametrize("name", IN_A_BRANCH)
def test_what_goes_around_a_layer_in_a_branch_has_a_name_of_its_own_and_is_no_bias(name, biases):
    details = account_of(name, foil=False, biases=biases)
    for query in range(2):
        expected = truth(name).account(query, False, biases)
        close(details.attributions[query, 0], expected.map)
        check_shares(details, query, expected)


def check_shares(details: Any, query: int, expected: reference.Account) -> None:
    """The shares by name, and nothing is left for the rest. A share of nothing may be left out."""
    names = {
        "map": expected.map.sum() + expected.elsewhere,
        "class token": expected.class_token,
        "registers": expected.registers,
        "bias": expected.bias,
        "other paths": expected.bypass,
        "rest": 0.0,
    }
    for name, value in names.items():
        close(details.shares[name][query] if value or name in details.shares else torch.zeros(()), value)
    assert set(details.shares) <= set(names)


def close(found: Tensor, expected: float | Array) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
