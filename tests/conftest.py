"""Tiny float64 embedding models, whose answers fit on paper, and the data beside the repository."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captum_fam.pooling import GAP, GMP, LSE, GeM
from tests.perturbed_products import PerturbedProducts

POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "gap": GAP,
    "gmp": GMP,
    "gem": GeM,
    "lse": lambda: LSE(sharpness=2.0),
}
_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# No two sides alike, so that a transposed map cannot pass.
_SIZES = {1: (9,), 2: (7, 5), 3: (4, 3, 5)}

_REGISTRIES = {
    "captum_fam.attr.registry": "METHODS",
    "captum_fam.models.registry": "_MODELS",
    "captum_fam.similarity.registry": "_MAKERS",
    "captum_fam.experiments.measures.base": "MEASURES",
    "captum_fam.experiments.protocols.registry": "PROTOCOLS",
}

# The tests that --perturb-products is for: those of the maps and what they are made of.
_OF_MAPS = ("attr", "similarity", "test_functional.py", "test_rounding.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--perturb-products",
        choices=("up", "down"),
        help="run the tests of the maps with every matrix product rounded as another processor might",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unperturbed: runs compiled code, which --perturb-products cannot reach into")


@pytest.fixture(autouse=True)
def _perturbed_products(request: pytest.FixtureRequest) -> Iterator[None]:
    direction = request.config.getoption("--perturb-products")
    reached = request.path.relative_to(Path(__file__).parent).parts[0] in _OF_MAPS
    reached = reached and request.node.get_closest_marker("unperturbed") is None
    with PerturbedProducts(direction) if direction and reached else nullcontext():
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _registries() -> Iterator[None]:
    """Takes back what the tests of a module register."""
    # First, so that what the package itself registers is not taken for a test's. The experiments need an extra.
    rooms = ("attr", "models", "models.efficientnet_lite0", "models.dlib_face", "demo.network", "similarity")
    rooms += ("experiments.networks", "experiments.measures", "experiments.protocols")
    for room in rooms:
        with suppress(ImportError):
            import_module(f"captum_fam.{room}")
    registries = [vars(sys.modules[module])[name] for module, name in _REGISTRIES.items() if module in sys.modules]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


class EmbeddingNet(nn.Module):
    """convolution -> activation function (``features``, the layer to explain) -> ``pooling`` -> ``head`` -> L2.

    Args:
        pooling: a key of ``POOLINGS``.
        head: None (the embedding is the pooled layer), ``"linear"`` (no bias) or ``"linear-bias"``.
        normalize: end with an L2 normalization, as retrieval models do.
        rank: number of spatial dimensions, 1 to 3.
        signed: LeakyReLU instead of ReLU, so that activations and contributions have both signs.
        channels: N; the heads have J = 4.
        seed: of the weights.
    """

    def __init__(
        self,
        pooling: str = "gap",
        head: str | None = None,
        normalize: bool = False,
        rank: int = 2,
        signed: bool = False,
        channels: int = 6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                _CONVOLUTIONS[rank](3, channels, 3, padding=1), nn.LeakyReLU(0.3) if signed else nn.ReLU()
            )
            self.pooling = POOLINGS[pooling]()
            self.head = nn.Identity() if head is None else nn.Linear(channels, 4, bias=head == "linear-bias")
        self.normalize = normalize
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.head(self.pooling(self.features(x)))
        return nn.functional.normalize(embedding, dim=1) if self.normalize else embedding


@pytest.fixture
def make_net() -> Callable[..., EmbeddingNet]:
    """``make_net(pooling, head, normalize, rank, signed, channels, seed)``: a float64 model in eval mode."""
    return EmbeddingNet


@pytest.fixture
def make_images() -> Callable[..., Tensor]:
    """``make_images(count, rank, seed)``: float64 inputs ``(count, 3, *spatial)`` with unequal sides."""

    def make(count: int, rank: int = 2, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, *_SIZES[rank], generator=generator, dtype=torch.float64)

    return make


@pytest.fixture
def queries(make_images: Callable[..., Tensor]) -> Tensor:
    """Two query images, ``(2, 3, 7, 5)``."""
    return make_images(2, seed=1)


@pytest.fixture
def supports(make_images: Callable[..., Tensor]) -> Tensor:
    """Three support images, ``(3, 3, 7, 5)``."""
    return make_images(3, seed=2)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The data that is never committed: ``$CAPTUM_FAM_SHARED``, else the folder ``shared`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("CAPTUM_FAM_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data: {folder.name} is not beside the repository, nor in $CAPTUM_FAM_SHARED")
    return folder


class LargestTensor(TorchDispatchMode):
    """``numel`` is the largest number of elements of any tensor that torch made, views too, on the way back too."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


@pytest.fixture
def largest_tensor() -> type[LargestTensor]:
    """``with largest_tensor() as seen: ...; seen.numel``: the largest tensor made meanwhile."""
    return LargestTensor
