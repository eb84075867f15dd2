"""Models of all kinds of heads for pairs of positions, and the equations of pairs, written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from captum_fam import TokenGrid, Views
from captum_fam.similarity import Bilinear, Cosine, Dot, Euclidean, Mahalanobis, Similarity, UnitEuclidean


class ConvNet(nn.Module):
    """Convolution, activation function (``features``), mean over the positions, and a head."""

    def __init__(self, head: nn.Module, signed: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.3) if signed else nn.ReLU())
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.features(x).mean((2, 3)))
        return embedding


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=1)


class SmallViT(nn.Module):
    """Patches of 2 x 2, a class token, position embeddings and two blocks; every parameter is random."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 1 + 12, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        for block in self.blocks:
            tokens = block(tokens)
        embedding: Tensor = self.norm(tokens)[:, 0]
        return embedding


class Case(NamedTuple):
    model: nn.Module
    layer: nn.Module
    inputs: Tensor  # (3, 3, *spatial), float64
    options: dict[str, Any]


def random_inputs(*spatial: int) -> Tensor:
    return torch.randn(3, 3, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def make_case(name: str) -> Case:
    """A float64 model in eval mode, its layer and three inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        case = _CASES[name]()
    return case._replace(model=case.model.double().eval())


def _convolutional(head: Callable[[], nn.Module], signed: bool = False) -> Callable[[], Case]:
    def make() -> Case:
        model = ConvNet(head(), signed)
        return Case(model, model.features, random_inputs(7, 5), {})

    return make


def _views() -> Case:
    net = ConvNet(nn.Linear(6, 4), signed=True)
    return Case(Views(net, ["identity", "hflip"], normalize="before"), net.features, random_inputs(7, 5), {})


def _vit(biases: str = "positions") -> Case:
    model = SmallViT()
    return Case(model, model.blocks[0], random_inputs(6, 8), {"token_grid": TokenGrid(size=(3, 4)), "biases": biases})


def _of_rank(rank: int) -> Case:
    convolution, spatial = {1: (nn.Conv1d, (9,)), 3: (nn.Conv3d, (4, 3, 5))}[rank]
    layer = nn.Sequential(convolution(3, 6, 3, padding=1), nn.ReLU())
    model = nn.Sequential(
        layer, nn.BatchNorm1d(6) if rank == 1 else nn.BatchNorm3d(6), nn.Flatten(2), _Mean(), nn.Linear(6, 4)
    )
    nn.init.normal_(model[1].bias)
    return Case(model, layer, random_inputs(*spatial), {})


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


_CASES: dict[str, Callable[[], Case]] = {
    "headless": _convolutional(nn.Identity),
    "signed head": _convolutional(lambda: nn.Linear(6, 4), signed=True),
    "whitening": _convolutional(lambda: nn.Sequential(Unit(), nn.Linear(6, 5), Unit()), signed=True),
    "many features": _convolutional(lambda: nn.Sequential(nn.Linear(6, 90), nn.GELU(), nn.Linear(90, 80)), True),
    "vit": _vit,
    "vit, biases apart": lambda: _vit("apart"),
    "views": _views,
    "signal": lambda: _of_rank(1),
    "volume": lambda: _of_rank(3),
}
CASES = tuple(_CASES)


def similarities(features: int) -> dict[str, Similarity]:
    """All similarities with linear weights of the package, for embeddings of J features."""
    generator = torch.Generator().manual_seed(3)
    square = torch.randn(features, features, dtype=torch.float64, generator=generator)
    return {
        "cosine": Cosine(),
        "dot": Dot(),
        "bilinear": Bilinear(square),
        "squared-euclidean": Euclidean(squared=True),
        "euclidean": Euclidean(),
        "mahalanobis": Mahalanobis(square @ square.T),
        "unit-euclidean": UnitEuclidean(),
        "squared-unit-euclidean": UnitEuclidean(squared=True),
    }


def pair_share(similarity: Similarity, z: list[float], t: list[float], part: list[float], other: list[float]) -> float:
    """What a part of the query and a part of the support add to the similarity of z and t, in plain loops."""

    def inner(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    def length(a: list[float]) -> float:
        return math.sqrt(inner(a, a))

    def through(matrix: Tensor) -> float:
        return inner(part, [inner(row, other) for row in matrix.tolist()])

    if isinstance(similarity, Dot):
        return inner(part, other)
    if isinstance(similarity, Bilinear):
        return through(similarity.matrix)
    if isinstance(similarity, Mahalanobis):
        return 2 * through(similarity.factor @ similarity.factor.T)
    cosine_share = inner(part, other) / (length(z) * length(t))
    if isinstance(similarity, UnitEuclidean):
        cosine = inner(z, t) / (length(z) * length(t))
        return cosine_share * (2 if similarity.squared else 2 / (math.sqrt(2) + math.sqrt(2 - 2 * cosine)))
    if isinstance(similarity, Euclidean):
        distance = length([a - b for a, b in zip(z, t, strict=True)])
        return 2 * inner(part, other) / (1 if similarity.squared else distance + length(t))
    return cosine_share


def query_alone(similarity: Similarity, z: list[float], t: list[float], part: list[float]) -> float:
    """What a part of the query adds to a distance without the support, in plain loops."""
    if isinstance(similarity, Euclidean | Mahalanobis):
        # The squared distance is |z|^2 - 2 z t + |t|^2: the first term is half of a pair of the query with itself.
        return -pair_share(similarity, z, t, part, z) / 2
    return 0.0
