"""Trains without batch normalization, alone or as one of the processes of torchrun: ``python job.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_fam.embedding.ranks import joined
from captum_fam.experiments.training import FewShotRecipe, LabeledImages, MetricRecipe, train_few_shot, train_metric
from captum_fam.models import EmbeddingModel
from captum_fam.pooling import GAP


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.LeakyReLU(0.1))
        self.pooling = GAP()

    def forward(self, x: Tensor) -> Tensor:
        return self.pooling(self.features(x))


class Images(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(48, 3, 16, 16, generator=generator)
        self.labels = torch.arange(48) % 3

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def run(out: Path) -> None:
    """Few-shot and metric learning with the margin loss, whose sampling is random."""
    torch.manual_seed(3)
    nets = [EmbeddingModel("net", Net(), "features", 16, True, (0.5,) * 3, (0.5,) * 3, pooling=GAP()) for _ in range(2)]
    data = Images()
    decoded = LabeledImages((data.images * 255).byte(), data.labels)
    few_shot = FewShotRecipe(way=2, query=2, epochs=2, episodes=8, val_episodes=5, learning_rates=(0.05,) * 4)
    metric = MetricRecipe("margin", steps=6, period=3, way=2, images=4, learning_rate=1e-2)
    with joined("cpu") as ranks:
        train_few_shot(nets[0], decoded, decoded, out / "few-shot", few_shot, ranks=ranks)
        train_metric(nets[1], data, None, out / "metric", metric, embedding_size=5, ranks=ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
