"""A small model of pictures, picture files, and the scores of pictures computed without the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam.models import EmbeddingModel

HEIGHT, WIDTH = 20, 12
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


class SmallNet(nn.Module):
    """A convolution, the layer to explain; the mean over all positions; a linear layer with a bias."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.LeakyReLU(0.3))
        self.head = nn.Linear(6, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def small_net(seed: int = 3, outputs: int = 5) -> SmallNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(outputs).eval()


def small_model(seed: int = 3) -> EmbeddingModel:
    return EmbeddingModel("small", small_net(seed), "features", size=(HEIGHT, WIDTH), mean=MEAN, std=STD)


def picture(seed: int, height: int = 33, width: int = 47) -> Image.Image:
    """A picture of noise around a color of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, 3) + rng.integers(-60, 60, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, names: Sequence[str], seed: int = 0) -> list[Path]:
    """Write one picture per name, each of another size."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed + number, 30 + number, 50 - 2 * number).save(path)
    return paths


def as_input(image: Image.Image | Path | str) -> Tensor:
    """The input of the small model, float64 ``(3, 20, 12)``: resized by PIL, then normalized by arithmetic."""
    opened = image if isinstance(image, Image.Image) else Image.open(image)
    resized = opened.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, np.float64) / 255
    return torch.from_numpy(((pixels - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1).copy())


def embeddings(images: Sequence[Image.Image | Path | str], seed: int = 3) -> Tensor:
    """The embeddings of the small model in float64, ``(n, 5)``."""
    with torch.no_grad():
        made: Tensor = small_net(seed).double()(torch.stack([as_input(image) for image in images]))
        return made


def cosines(queries: Tensor, supports: Tensor) -> Tensor:
    """The cosine of every query and every support, ``(B, K)``."""
    return (queries / queries.norm(dim=1, keepdim=True)) @ (supports / supports.norm(dim=1, keepdim=True)).T
